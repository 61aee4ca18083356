//! Which hosts a gate lets through, by facts and taints: a bit for each. Profiles that ask for the same room share one
//! standing, however their facts differ, as long as enough hosts pass.

use std::sync::Arc;

use crate::filter::{CLASS, refuse_by};
use crate::request::Request;
use crate::snapshot::{ClassIdx, HostIdx, Mark, ProfileIdx, Snapshot, TiesIdx};

use super::field::FAN;
use super::standing::CATCH_UP_SHARE;

/// Which hosts pass: a bit for each, sixteen for each leaf of a field.
pub(super) type Bits = Arc<Vec<u16>>;

/// One host in so many must pass for the shared standing to be searched: below that the search passes over too many.
const BROAD_SHARE: usize = 16;

/// Kept for one gate, brought up to date when hosts change.
#[derive(Clone, Debug, Default)]
pub(super) struct Sieve {
    /// Of the policy and of the hosts, as of when.
    made: Option<(u64, Mark)>,
    bits: Bits,
    through: usize,
    broad: bool,
    all: bool,
}

impl Sieve {
    pub(super) fn follow(&mut self, snapshot: &Snapshot, profile: ProfileIdx) {
        let now = (snapshot.rules_version(), snapshot.hosts_mark());
        if self.made == Some(now) {
            return;
        }
        let slots = snapshot.host_slots();
        let since = self.made.filter(|(rules, _)| *rules == now.0);
        let changed = since.and_then(|(_, mark)| snapshot.hosts_changed_since(mark));
        match changed {
            Some(changed) if changed.len() <= slots / CATCH_UP_SHARE + FAN => {
                if self.bits.len() < slots.div_ceil(FAN) {
                    Arc::make_mut(&mut self.bits).resize(slots.div_ceil(FAN), 0);
                }
                for change in changed {
                    self.set(change.host, asks(snapshot, profile, change.host));
                }
            }
            _ => self.build(snapshot, profile),
        }
        self.broad = self.through * BROAD_SHARE >= snapshot.host_count();
        self.all = self.through == snapshot.host_count();
        self.made = Some(now);
    }

    fn build(&mut self, snapshot: &Snapshot, profile: ProfileIdx) {
        self.through = 0;
        self.bits = Arc::new(vec![0; snapshot.host_slots().div_ceil(FAN)]);
        let mut last: Option<(ClassIdx, bool)> = None;
        let mut known: Vec<Option<bool>> = vec![None; snapshot.class_count()];
        for (host, row) in snapshot.hosts() {
            let passes = match last.filter(|(class, _)| *class == row.class) {
                Some((_, passes)) => passes,
                None => *known[row.class.at()].get_or_insert_with(|| asks(snapshot, profile, host)),
            };
            last = Some((row.class, passes));
            self.set(host, passes);
        }
    }

    fn set(&mut self, host: HostIdx, passes: bool) {
        let (word, bit) = (host.at() / FAN, 1 << (host.at() % FAN));
        if (self.bits[word] & bit != 0) == passes {
            return;
        }
        self.through = if passes { self.through + 1 } else { self.through - 1 };
        Arc::make_mut(&mut self.bits)[word] ^= bit;
    }

    /// Do enough hosts pass?
    pub(super) const fn is_broad(&self) -> bool {
        self.broad
    }

    pub(super) fn passes(&self, host: HostIdx) -> bool {
        self.all || self.bits[host.at() / FAN] >> (host.at() % FAN) & 1 == 1
    }

    /// Those that pass, a bit for each; another list after every change. None when all do.
    pub(super) const fn bits(&self) -> Option<&Bits> {
        if self.all { None } else { Some(&self.bits) }
    }
}

/// Does it pass as it is now? A change that is followed late may name a host that has gone since.
fn asks(snapshot: &Snapshot, profile: ProfileIdx, host: HostIdx) -> bool {
    snapshot.get_host(host).is_some()
        && refuse_by(CLASS, snapshot, &Request::imagined(profile, TiesIdx(0)), host).is_none()
}
