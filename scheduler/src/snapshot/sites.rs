//! The last deltas, each with what a decision reads of the host it touched: an index that follows reads one list from its
//! front to its back, instead of rows all over memory.

use super::amounts::Amounts;
use super::index::{ClassIdx, HostIdx};

/// Changes remembered: an index further behind is built anew, which for most fleets then costs less than catching up.
const CHANGES_MAX: usize = 1 << 14;

/// What a decision reads of a host, whatever is asked for. The default is a host that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Left to promise.
    pub free: Amounts,
    /// What may be promised in all.
    pub total: Amounts,
    /// What it has in common with others.
    pub class: ClassIdx,
    /// The number of its rack; the last it had, of a host that has gone.
    pub rack: u32,
    /// Is there such a host?
    pub there: bool,
    /// Does it take VMs: up, and not cordoned?
    pub open: bool,
    /// Are VMs on it?
    pub busy: bool,
    /// Are VMs on it that others must share it with?
    pub gathers: bool,
}

/// A moment in the life of one snapshot. Equal marks mean equal snapshots, also of a clone that went its own way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Deltas so far.
    count: u64,
    /// A digest of them.
    digest: u64,
}

/// One delta.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The host it touched.
    pub host: HostIdx,
    /// What the host was after it.
    pub site: Site,
    digest: u64,
}

/// The last deltas.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    mark: Mark,
    /// Of the delta that `kept` begins with.
    first: u64,
    kept: Vec<Change>,
}

impl Changes {
    pub(super) const fn mark(&self) -> Mark {
        self.mark
    }

    /// Those since that mark. None when they are no longer kept, or the mark is not of this past.
    pub(super) fn since(&self, mark: Mark) -> Option<&[Change]> {
        let behind = usize::try_from(self.mark.count.checked_sub(mark.count)?).ok()?;
        let from = self.kept.len().checked_sub(behind)?;
        let digest = match from.checked_sub(1) {
            Some(before) => self.kept[before].digest,
            None if self.first == 0 => 0,
            None => return None,
        };
        (digest == mark.digest).then(|| &self.kept[from..])
    }

    pub(super) fn push(&mut self, host: HostIdx, what: u64, site: Site) {
        let words = [
            what ^ (u64::from(host.0) << 32),
            site.free.cpu_milli ^ site.free.mem_mib.rotate_left(32),
            u64::from(site.class.0)
                ^ site.total.cpu_milli.rotate_left(16)
                ^ site.total.mem_mib.rotate_left(40),
        ];
        // FNV's prime spreads the low bits; the rotation brings the high ones back.
        let digest = words.into_iter().fold(self.mark.digest, |digest, word| {
            (digest ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29)
        });
        self.mark = Mark { count: self.mark.count + 1, digest };
        if self.kept.len() == 2 * CHANGES_MAX {
            self.kept.drain(..CHANGES_MAX);
            self.first += CHANGES_MAX as u64;
        }
        self.kept.push(Change { host, site, digest });
    }
}
