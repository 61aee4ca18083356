//! A live migration: a running guest changes hosts, and at every instant exactly one side may run it.
//!
//! ```text
//! Planned -> Reserved -> Prepared -> Copying -> Switching -> Done
//!    |          |            |          |           |
//!    +----------+------------+----------+           | (hand-back: the destination provably never ran it)
//!               v                                   v
//!            Aborting -------------------------> Aborted
//! ```
//! The commit that enters Switching is the hand-over: it gives the VM to the destination with incarnation + 1.
//! Before it any failure leaves the source running. After it only the destination may continue, unless a second
//! commit hands the VM back with incarnation + 2.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::{Decision, Effect, Grounds};
use crate::invalid::in_range;
use crate::{HostId, Incarnation, Invalid, MigrationId, Name, Resource, Timestamp, VmId};

/// One live migration.
pub type Migration = Resource<MigrationId, MigrationSpec, MigrationStatus>;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationSpec {
    /// The VM to move.
    pub vm: VmId,
    /// Its name.
    pub vm_name: Name,
    /// Where to; the scheduler chooses when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// Who wanted it.
    pub cause: MigrationCause,
    /// How it is to be done.
    #[serde(default)]
    pub limits: MigrationLimits,
    /// Why the fleet wants it, when nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grounds: Option<Grounds>,
}

/// Who wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationCause {
    /// Somebody asked.
    User,
    /// Its host is being drained.
    Drain,
    /// To level the load.
    Balance,
}

/// Bounds of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationLimits {
    /// Stand-still the hypervisor may plan for, ms. QEMU's own default is 300.
    #[serde(default = "default_downtime_ms")]
    pub downtime_ms: u64,
    /// Copy speed, MiB/s; 0: as fast as it goes.
    #[serde(default)]
    pub bandwidth_mib_s: u64,
    /// Given up when the copy takes longer, s.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: u64,
}

const fn default_downtime_ms() -> u64 {
    300
}

const fn default_timeout_s() -> u64 {
    600
}

impl Default for MigrationLimits {
    fn default() -> Self {
        Self { downtime_ms: default_downtime_ms(), bandwidth_mib_s: 0, timeout_s: default_timeout_s() }
    }
}

impl MigrationLimits {
    /// Refuses values out of range.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.limits.downtime_ms", self.downtime_ms, 1..=60_000)?;
        in_range("spec.limits.bandwidth_mib_s", self.bandwidth_mib_s, 0..=1 << 20)?;
        in_range("spec.limits.timeout_s", self.timeout_s, 1..=86_400)
    }
}

/// How it stands, or ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationStatus {
    /// See the picture in the module docs.
    pub phase: MigrationPhase,
    /// The host the VM was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<HostId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_name: Option<Name>,
    /// The host it moves to, once chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<HostId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_name: Option<Name>,
    /// The incarnation the destination will run.
    pub incarnation: Incarnation,
    /// Virtual size of each disk that is not shared, bytes: what the destination makes room for. Empty when the source
    /// could not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disk_bytes: BTreeMap<Name, u64>,
    /// Where the destination listens, once prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// What became of it. None while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<MigrationOutcome>,
    /// Asked to end; obeyed until the hand-over.
    #[serde(default)]
    pub cancel: bool,
    /// One word for machines when it did not go as asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence, with the hypervisor's own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the hypervisor measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<MigrationFigures>,
    /// Why the destination was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Decision>,
    /// What came of it, measured a while after its end, when it had grounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// When each phase began, in order.
    pub history: Vec<(MigrationPhase, Timestamp)>,
}

/// What the hypervisor measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationFigures {
    /// The guest stood still so long, ms: from the source's stop to the destination's first instruction.
    pub downtime_ms: u64,
    /// From the first byte to the end, ms, as the source's hypervisor counts; at least the stand-still.
    pub total_ms: u64,
    /// Memory sent, bytes.
    pub transferred_bytes: u64,
    /// Disks sent, bytes.
    pub disk_bytes: u64,
    /// When the source's vCPUs stopped, ms since 1970 by the source's clock; 0: not known.
    #[serde(default)]
    pub stopped_at_ms: u64,
}

/// Where a destination listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// For memory: `tcp:ADDRESS:PORT`.
    pub memory: String,
    /// For disks that are not shared: `ADDRESS:PORT` of the NBD server; empty when there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub disks: String,
}

/// See the picture in the module docs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MigrationPhase {
    /// Asked for; no destination is chosen, or the budget is spent.
    #[default]
    Planned,
    /// The destination holds memory for it and was told to make ready.
    Reserved,
    /// The destination listens.
    Prepared,
    /// Memory and disks flow; the guest runs on the source.
    Copying,
    /// Handed over: only the destination may continue.
    Switching,
    /// The guest runs on the destination, and the source has let go.
    Done,
    /// Being undone: both sides let go of what they made.
    Aborting,
    /// The guest is where it was.
    Aborted,
}

impl MigrationPhase {
    /// Is it over?
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

impl std::fmt::Display for MigrationPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Planned => "Planned",
            Self::Reserved => "Reserved",
            Self::Prepared => "Prepared",
            Self::Copying => "Copying",
            Self::Switching => "Switching",
            Self::Done => "Done",
            Self::Aborting => "Aborting",
            Self::Aborted => "Aborted",
        })
    }
}

/// Where the guest is after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationOutcome {
    /// On the destination, and it never stopped for longer than the downtime.
    Moved,
    /// On the source, which never let go of it.
    StayedOnSource,
    /// On the source: the hand-over was taken back because the destination never ran it.
    HandedBack,
    /// Started afresh from its disks: both sides died around the hand-over.
    Restarted,
    /// Nowhere: the VM was stopped, deleted or died meanwhile.
    Gone,
}
