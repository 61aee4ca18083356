//! What was moved, and whether it helped: the memory that keeps a balancer from going in circles.
//!
//! Owns cool-downs, the blast radius, and the promises of earlier moves. Refuses to know the clock: every call says the
//! time. The leader keeps it in memory; a new leader starts without, and then [`VmRow::moved_ms`] still guards each VM.
//!
//! ```text
//! moved --settle--> kept its promise: forgotten with the return ban
//!               \-> did not: the VM is barred, twice as long each time
//! ```
//!
//! [`VmRow::moved_ms`]: crate::snapshot::VmRow::moved_ms

use std::collections::{BTreeMap, VecDeque};

use dunlin_model::{HostId, VmId};
use serde::{Deserialize, Serialize};

/// A VM that was moved stays for so long, ms: half an hour, as others do.
pub const COOL_DOWN_MS: u64 = 30 * 60_000;

/// It does not return to where it came from for so long, ms: more than the hour within which a return counts as a circle.
pub const RETURN_BAN_MS: u64 = 2 * 3_600_000;

/// The effect of a move is judged after so long, ms: samples of a few minutes have to come in first.
pub const SETTLE_MS: u64 = 10 * 60_000;

/// A VM whose move did not help is barred for so long at first, ms.
pub const BAR_MS: u64 = 2 * 3_600_000;

/// A bar doubles with every disappointment, up to so many times: about 10 days.
const DOUBLINGS_MAX: u32 = 7;

/// A move has helped when at least this part of what was promised came true, percent.
pub const KEPT_PERCENT_MIN: u64 = 25;

/// A move that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Which VM.
    pub vm: VmId,
    /// From where.
    pub from: HostId,
    /// To where.
    pub to: HostId,
    /// When it was done, ms.
    pub at_ms: u64,
    /// The pain it was to take away, thousandths of a CPU. 0: it was not made for that, and is not judged.
    pub promised_milli: u64,
    /// What it took away, once judged.
    pub observed_milli: Option<u64>,
}

/// What is known of one VM that was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bar {
    until_ms: u64,
    disappointments: u32,
}

/// The moves of the recent past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Oldest first.
    made: VecDeque<Made>,
    bars: BTreeMap<VmId, Bar>,
}

/// Moves remembered: more than any blast radius lets happen within the longest ban.
const MADE_MAX: usize = 1 << 16;

impl History {
    /// A move was carried out.
    pub fn record(&mut self, made: Made) {
        if self.made.len() == MADE_MAX {
            self.made.pop_front();
        }
        self.made.push_back(made);
    }

    /// Forgets what no longer matters.
    pub fn forget(&mut self, now_ms: u64) {
        let old = RETURN_BAN_MS.max(SETTLE_MS);
        while self.made.front().is_some_and(|made| now_ms.saturating_sub(made.at_ms) > old) {
            self.made.pop_front();
        }
        self.bars.retain(|_, bar| now_ms.saturating_sub(bar.until_ms) < BAR_MS << DOUBLINGS_MAX);
    }

    /// All moves remembered, oldest first.
    pub fn made(&self) -> impl Iterator<Item = &Made> {
        self.made.iter()
    }

    /// Moves since `now_ms - window_ms`.
    #[must_use]
    pub fn moves_within(&self, now_ms: u64, window_ms: u64) -> u64 {
        self.recent(now_ms, window_ms).count() as u64
    }

    /// Moves whose effect can be judged now and has not been.
    pub fn to_judge(&self, now_ms: u64) -> impl Iterator<Item = Made> + '_ {
        let due = move |made: &&Made| {
            made.promised_milli > 0
                && made.observed_milli.is_none()
                && now_ms.saturating_sub(made.at_ms) >= SETTLE_MS
        };
        self.made.iter().filter(due).copied()
    }

    /// What a move has really taken away. One that disappointed bars its VM.
    pub fn judge(&mut self, made: &Made, observed_milli: u64, now_ms: u64) {
        let known = self.made.iter_mut().find(|known| known.vm == made.vm && known.at_ms == made.at_ms);
        if let Some(known) = known {
            known.observed_milli = Some(observed_milli);
        }
        if observed_milli * 100 < made.promised_milli * KEPT_PERCENT_MIN {
            let bar = self.bars.entry(made.vm).or_default();
            bar.until_ms = now_ms + (BAR_MS << bar.disappointments.min(DOUBLINGS_MAX));
            bar.disappointments += 1;
        } else {
            self.bars.remove(&made.vm);
        }
    }

    /// VMs that are not moved now, and why.
    #[must_use]
    pub fn resting(&self, now_ms: u64) -> BTreeMap<VmId, Rest> {
        let cooling = self.recent(now_ms, COOL_DOWN_MS).map(|made| (made.vm, Rest::CoolingDown));
        let barred = self.bars.iter().filter(|(_, bar)| now_ms < bar.until_ms);
        cooling.chain(barred.map(|(vm, _)| (*vm, Rest::Disappointed))).collect()
    }

    /// VMs and the hosts they left so lately that going back would be a circle.
    pub fn left_since(&self, now_ms: u64) -> impl Iterator<Item = (VmId, HostId)> + '_ {
        self.recent(now_ms, RETURN_BAN_MS).map(|made| (made.vm, made.from))
    }

    fn recent(&self, now_ms: u64, within_ms: u64) -> impl Iterator<Item = &Made> {
        self.made.iter().rev().take_while(move |made| now_ms.saturating_sub(made.at_ms) < within_ms)
    }
}

/// Why a VM is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rest {
    /// It was moved lately.
    CoolingDown,
    /// Its last move did not help.
    Disappointed,
}
