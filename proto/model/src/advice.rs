//! What the scheduler answers when asked: explanations, plans and proofs, for people and for programs. Never stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::BalanceMode;
use crate::decision::{Decision, Grounds};
use crate::{Kind, Name, Revision};

/// Hosts told one by one in an answer; of a larger fleet the first that fit and the first that do not.
pub const HOSTS_MAX: usize = 200;

/// Why something is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Vm, Host or Migration.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// The revision of the fleet it speaks of.
    pub revision: Revision,
    /// What is so: one sentence each, with the numbers.
    pub facts: Vec<String>,
    /// Why it went where it is, as it was kept when that was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Decision>,
    /// What would be decided now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Decision>,
    /// The same, host by host; at most [`HOSTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostVerdict>,
    /// What would have to change, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub would_help: Vec<String>,
    /// Moves of other VMs that would make room, the cheapest set found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub make_room: Vec<PlannedMove>,
}

/// What the scheduler says of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostVerdict {
    /// Which.
    pub host: Name,
    /// May the VM go there?
    pub fits: bool,
    /// If so, its score.
    pub score: i64,
    /// If not, one word why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same as a sentence, with the numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// One move of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedMove {
    /// Moves of one wave run at once; a wave begins when the one before is done. From 1.
    pub wave: u32,
    /// The VM.
    pub vm: Name,
    /// The host it is on.
    pub from: Name,
    /// The host it goes to.
    pub to: Name,
    /// Why, and what it brings and costs.
    pub grounds: Grounds,
}

/// A VM that finds no place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Misfit {
    /// The VM.
    pub vm: Name,
    /// The host it is on.
    pub host: Name,
    /// One word why.
    pub reason: String,
    /// The same as a sentence, with the numbers.
    pub text: String,
}

/// How hosts would be emptied, with the proof that it works: every VM is in `moves`, or in `misfits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainPlan {
    /// The revision of the fleet it was made on.
    pub revision: Revision,
    /// The hosts to be emptied.
    pub hosts: Vec<Name>,
    /// VMs on them.
    pub vms: u64,
    /// In the order of their waves.
    pub moves: Vec<PlannedMove>,
    /// VMs that would stay.
    pub misfits: Vec<Misfit>,
    /// From the first move to the last, ms, as expected.
    pub total_ms: u64,
}

/// What the balancer would do now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BalancePlan {
    /// The revision of the fleet it was made on.
    pub revision: Revision,
    /// What it may do.
    pub mode: BalanceMode,
    /// The level it was made for, 1 to 5.
    pub level: u32,
    /// One sentence: how much better it gets, or why nothing is worth a move.
    pub verdict: String,
    /// Pain before, thousandths of a CPU; see [`Effect`](crate::decision::Effect).
    pub pain_before_milli: u64,
    /// Pain after every move.
    pub pain_after_milli: u64,
    /// In the order of their waves.
    pub moves: Vec<PlannedMove>,
    /// The hosts it looked at.
    pub hosts: Vec<HostLoad>,
    /// What was measured and not believed, one sentence each.
    pub distrusted: Vec<String>,
    /// Hosts that carry nothing after the plan and may be switched off; only where that was asked for.
    pub emptied: Vec<Name>,
}

/// One host's load, before and after a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostLoad {
    /// Which.
    pub host: Name,
    /// CPU it has, thousandths of a CPU.
    pub cpu_milli: u64,
    /// CPU its VMs ask for.
    pub asked_milli: u64,
    /// The same after the plan.
    pub asked_after_milli: u64,
    /// Memory that is used of what may be promised, percent.
    pub mem_percent: u64,
    /// VMs on it.
    pub vms: u64,
    /// Of those, VMs whose load is known.
    pub measured: u64,
}

/// How much more fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// The revision of the fleet it was counted on.
    pub revision: Revision,
    /// vCPUs of the flavour.
    pub cpus: u32,
    /// Memory of the flavour, MiB.
    pub mem_mib: u64,
    /// VMs of it that could be started now, in all.
    pub fits: u64,
    /// The same per host; at most [`HOSTS_MAX`].
    pub hosts: Vec<HostRoom>,
    /// Hosts that may fail at once.
    pub failures: u32,
    /// Could every VM be started elsewhere, whichever hosts these are?
    pub survives: bool,
    /// If not: the worst hosts, and what of them would not start.
    pub worst: Vec<Name>,
    /// VMs that would find no place.
    pub misfits: Vec<Misfit>,
    /// One sentence.
    pub verdict: String,
}

/// Room on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostRoom {
    /// Which.
    pub host: Name,
    /// VMs of the flavour that fit.
    pub fits: u64,
    /// What ends first: `Memory`, `Cpus`, `Cordoned`.
    pub limit: String,
    /// vCPUs that may still be promised.
    pub cpus_free: u64,
    /// Memory that may still be promised, MiB.
    pub mem_free_mib: u64,
}
