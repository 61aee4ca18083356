//! What the scheduler decided and why, short enough to be kept with the object it decided on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{HostId, Name, Revision};

/// Groups of refused hosts kept with a decision: the largest ones. A fleet has few reasons.
pub const REFUSALS_MAX: usize = 8;

/// Why a VM went where it went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// The revision of the fleet it was taken on.
    pub revision: Revision,
    /// The best host; None when none fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub winner: Option<Candidate>,
    /// The next best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<Candidate>,
    /// Hosts that fit.
    pub fitting: u32,
    /// Hosts that do not, in groups of one reason, the largest first; at most [`REFUSALS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refusal>,
}

/// A host that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// Which.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// The higher the better; the sum of the terms.
    pub score: i64,
    /// What it is made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<Term>,
}

/// One part of a score.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Term {
    /// One word: `spread`, `load`.
    pub name: String,
    /// Its points, weighted.
    pub points: i64,
}

/// Hosts that were refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// One word for machines: `Memory`.
    pub reason: String,
    /// How many hosts.
    pub hosts: u32,
    /// For people: "not enough memory (need 512 MiB, most free 300 MiB)".
    pub text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let noun = if self.hosts == 1 { "host" } else { "hosts" };
        write!(f, "{} {noun}: {}", self.hosts, self.text)
    }
}

/// Why the fleet moves a VM by itself, and what it expects of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Grounds {
    /// One sentence with the numbers: "host-1 is asked for 190 % of its CPU, host-2 for 40 %".
    pub reason: String,
    /// What the move should bring.
    pub predicted: Effect,
    /// What it costs, as expected.
    pub cost: MoveCost,
}

/// A fleet before and after a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Effect {
    /// Pain of the fleet before: what its hosts are asked for and cannot give, and how unfairly it is shared out.
    /// Thousandths of a CPU; it does not shrink as the fleet grows.
    pub pain_before_milli: u64,
    /// The same after.
    pub pain_after_milli: u64,
    /// CPU that the source is asked for, percent of what it has, before.
    pub from_percent_before: u64,
    /// The same after.
    pub from_percent_after: u64,
    /// CPU that the destination is asked for, percent of what it has, before.
    pub to_percent_before: u64,
    /// The same after.
    pub to_percent_after: u64,
}

/// What a live migration costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveCost {
    /// Memory and disks to send, MiB.
    pub send_mib: u64,
    /// From start to end, ms.
    pub total_ms: u64,
    /// The guest stands still for so long, ms.
    pub downtime_ms: u64,
}
