//! Takes pain out of a fleet by moving running VMs, or says why it leaves them where they are.
//!
//! Owns the measure ([`pain`]), the price ([`cost`]), the eagerness ([`level`]) and the search. Refuses to know the clock,
//! to guess: a VM whose load is not trusted ([`distrust`](crate::distrust)) counts, and is not moved; and to carry anything
//! out. The plan is proposed; every move is checked again when it starts.
//!
//! ```text
//! Snapshot (loads, seats, rules) + History -> pain per host -> hottest host first: its busiest useful VM, the best place
//!   -> worth it? gain over the horizon against bytes, blackout, slow-down -> waves under budgets -> BalancePlan
//! ```
//!
//! Use, by the leader every period or when a host's load changes: [`balance`] (or [`consolidate`](crate::consolidate));
//! carry out [`BalancePlan::waves`] one after the other; tell [`History::record`] of each move that was done; call
//! [`settle`] before the next plan, so that promises that were not kept are not repeated.

pub(crate) mod board;
pub mod cost;
pub mod level;
pub mod pain;
pub(crate) mod search;

use dunlin_model::{HostId, Name, VmId};
use serde::{Deserialize, Serialize};

pub use level::Eagerness;
pub use pain::Pain;
pub use search::{balance, settle};

use crate::budget::Budgets;
use crate::history::History;
use crate::snapshot::Seat;

/// What a balancer is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'h> {
    /// How eager.
    pub level: Eagerness,
    /// What may run at once.
    pub budgets: Budgets,
    /// What was moved before.
    pub history: &'h History,
    /// Most moves in this plan, whatever the level allows.
    pub moves_max: usize,
}

impl<'h> Ask<'h> {
    /// With the defaults.
    #[must_use]
    pub fn new(history: &'h History) -> Self {
        Self { level: Eagerness::default(), budgets: Budgets::default(), history, moves_max: usize::MAX }
    }
}

/// What to do, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancePlan {
    /// Which state it was made of.
    pub revision: u64,
    /// The pain now.
    pub before: Pain,
    /// The pain to be expected once all moves are done.
    pub after: Pain,
    /// The moves. All of one wave may run at the same time; the next begins when they are done.
    pub waves: Vec<Wave>,
    /// What was left alone, and why; the most painful first. With no waves, this is the answer.
    pub left: Vec<Left>,
    /// Hosts that carry nothing once all moves are done, and may be switched off. Only consolidation names any.
    pub emptied: Vec<HostId>,
}

/// Moves that run at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// The moves.
    pub moves: Vec<PlannedMove>,
    /// How long the longest is expected to take, ms.
    pub took_ms: u64,
}

/// One VM to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    /// Which VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: Name,
    /// The host it leaves.
    pub from: HostId,
    /// Its name.
    pub from_name: Name,
    /// The host it goes to.
    pub to: HostId,
    /// Its name.
    pub to_name: Name,
    /// The seat there, in the numbers of the snapshot.
    pub seat: Seat,
    /// The pain it takes away, thousandths of a CPU: what [`History`] judges it by.
    pub gain_milli: u64,
    /// The CPU time that buys guests over the horizon, ms.
    pub gain_cpu_ms: u64,
    /// The CPU time it costs guests, ms.
    pub cost_cpu_ms: u64,
    /// What it sends, MiB.
    pub sent_mib: u64,
    /// How long it is expected to take, ms.
    pub took_ms: u64,
    /// For people, with the numbers it was decided by.
    pub reason: String,
}

/// Something that hurts, or could be done, and is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The host; None when the whole fleet is meant.
    pub host: Option<HostId>,
    /// For machines.
    pub why: Why,
    /// For people, with numbers.
    pub text: String,
}

/// Why something is left alone. Closed: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Why {
    /// No host hurts enough to begin.
    Calm,
    /// What was measured there is stale, missing or cannot be.
    Distrusted,
    /// Nothing there may be moved.
    NothingMovable,
    /// What could be moved was moved lately, or its last move did not help.
    Resting,
    /// No host that hurts less has room for any of it, by the rules.
    NoRoom,
    /// A move would gain less than it costs.
    NotWorthIt,
    /// As many VMs have been moved within the window as may be.
    Radius,
    /// The last hosts are needed: what they carry would not fit, or would hurt, elsewhere.
    Needed,
}

impl BalancePlan {
    /// Moves in all waves.
    pub fn moves(&self) -> impl Iterator<Item = &PlannedMove> {
        self.waves.iter().flat_map(|wave| &wave.moves)
    }

    /// The whole answer in one line, for people.
    #[must_use]
    pub fn verdict(&self) -> String {
        let count = self.moves().count();
        if count == 0 {
            let because = self.left.first().map_or("the fleet is empty", |left| left.text.as_str());
            return format!("no beneficial move, because {because}");
        }
        let (moves, waves) = (plural(count, "move"), plural(self.waves.len(), "wave"));
        if !self.emptied.is_empty() {
            return format!("{moves} in {waves}: {} can be switched off", plural(self.emptied.len(), "host"));
        }
        let cpus = |pain: &Pain| cpus(pain.unserved_milli + pain.unfair_milli);
        format!("{moves} in {waves}: pain falls from {} to {} CPUs", cpus(&self.before), cpus(&self.after))
    }
}

pub(crate) fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Thousandths of a CPU for people: `12.3`.
pub(crate) fn cpus(milli: u64) -> String {
    format!("{}.{:02}", milli / 1_000, milli % 1_000 / 10)
}
