//! A guest: what was asked for and what has become of it.
//!
//! ```text
//!             start            bind              agent reports
//!  Stopped ----------> Pending ----> Starting ------------------> Running <--> Paused
//!     ^                   ^             |                            |
//!     |                   |             v                            | guest powers off, or is powered off
//!     |                   +--------- Failed <------------------------+ guest process dies (restart policy)
//!     +--------------------------------------------------------------+
//!  Running --save--> Saved --restore--> Pending       any --delete--> Deleting --> gone
//! ```
//! A live migration does not change the phase: `status.migration` names it while it lasts.

pub mod built;
pub mod cloud_init;
pub mod device;
pub mod placement;
pub mod spec;
mod suits;

pub use built::Built;
pub use cloud_init::CloudInit;
pub use device::{Disk, DiskBus, DiskFormat, DiskSource, Mac, Nic, NicModel, NicNetwork, Vnc, VncPort};
pub use placement::{Placement, Rule, Scope, Wants};
pub use spec::{AccelChoice, Arch, Boot, FileRef, MachineType, Power, RestartPolicy, SimSpec, VmSpec};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::Decision;
use crate::{HostId, Incarnation, MigrationId, Name, Resource, TaskId, Timestamp, VmId};

/// One virtual machine.
pub type Vm = Resource<VmId, VmSpec, VmStatus>;

/// What the fleet reports of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmStatus {
    /// Where it stands; see the picture in the module docs.
    pub phase: VmPhase,
    /// The host that may run it, and holds its reservation. None when it is stopped or waits for room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Name of that host, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<Name>,
    /// The host that has disks only it can reach; such a VM starts nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes_on: Option<HostId>,
    /// The host it was last bound to, when it is bound to none: it keeps what the guest said on its serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_host: Option<HostId>,
    /// The only incarnation that may run. Raised by every start and every hand-over.
    pub incarnation: Incarnation,
    /// Set by a hand-back: the older incarnation whose process carries on as this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Incarnation>,
    /// Why it is in this phase: one word for machines, empty when it is as asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same as a sentence, with the hypervisor's own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Process id on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where its display listens: `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc: Option<String>,
    /// What its process was built with, where that is not, or not known to be, what the spec asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Built>,
    /// Fields of the spec that its process has not, by their paths below `spec`. What cannot follow while it runs waits
    /// for a stop and a start; `built.note` says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
    /// Saved memory, when the phase is Saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<SavedState>,
    /// The migration it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
    /// The save task it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Why it was started on the host it was started on last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Decision>,
    /// Restarts after a crash since it was last started by somebody.
    pub restarts: u32,
    /// Since when it is in this phase.
    pub since: Timestamp,
    /// It ran before it was the fleet's, and can be handed back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption: Option<Adoption>,
}

/// How a VM that somebody else started stands to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Adoption {
    /// Its host was told to take it over, as it is.
    Asked,
    /// The fleet manages it.
    Done,
    /// It is being handed back: it goes on, and nobody here manages it.
    Leaving,
}

impl VmStatus {
    /// Has its host said of every field that its process lacks why it cannot follow? Then only a stop and a start help.
    #[must_use]
    pub fn waits_for_restart(&self) -> bool {
        let note = self.built.as_ref().map_or("", |built| built.note.as_str());
        !self.pending.is_empty() && self.pending.iter().all(|field| note.contains(&format!("{field}: ")))
    }
}

/// See the picture in the module docs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum VmPhase {
    /// Nothing runs and nothing should.
    #[default]
    Stopped,
    /// Should run; no host is bound yet.
    Pending,
    /// Bound to a host, which was told to start it.
    Starting,
    /// The hypervisor says its vCPUs run.
    Running,
    /// Its vCPUs stand still, its memory is kept.
    Paused,
    /// Its memory lies in a file on its host.
    Saved,
    /// It could not start, or died and will not be restarted.
    Failed,
    /// To be removed; its host has yet to let go of it.
    Deleting,
}

impl VmPhase {
    /// Does a VM in this phase hold memory on its host?
    #[must_use]
    pub const fn holds_reservation(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused)
    }
}

impl std::fmt::Display for VmPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Stopped => "Stopped",
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Saved => "Saved",
            Self::Failed => "Failed",
            Self::Deleting => "Deleting",
        })
    }
}

/// Memory saved to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SavedState {
    /// The host that has the file.
    pub host: HostId,
    /// The file on that host.
    pub path: String,
    /// Its length, bytes.
    pub size_bytes: u64,
}
