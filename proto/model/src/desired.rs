//! What a host is told: the whole set it should be, never a difference.
//!
//! Lost messages need no replay. The agent compares the set with what runs, acts on the difference, and refuses any set
//! of a lower generation and any assignment of a lower incarnation than it has seen.

use serde::{Deserialize, Serialize};

use crate::image::ImageSpec;
use crate::migration::{Endpoint, MigrationLimits};
use crate::task::Act;
use crate::vm::{Built, Power, VmSpec};
use crate::{HostId, Incarnation, MigrationId, Name, Revision, TaskId, VmId};
use std::collections::BTreeMap;

/// Everything one host should be doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSet {
    /// For whom.
    pub host: HostId,
    /// The revision of the state it was computed from; it only grows, across leaders too.
    pub generation: Revision,
    /// One entry for each VM the host has to do with. A VM that is not named is left alone and reported.
    pub assignments: Vec<Assignment>,
    /// One-shot acts not yet reported as ended.
    pub acts: Vec<ActOrder>,
    /// Every image the assignments name, so that the host can fetch it by its hash.
    pub images: BTreeMap<Name, ImageSpec>,
}

/// What the host has to do with one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which VM.
    pub vm: VmId,
    /// Its name, for process titles and logs.
    pub name: Name,
    /// The incarnation this host may run (or receive, or send away).
    pub incarnation: Incarnation,
    /// After a hand-back: the process of this older incarnation carries on under the new number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Incarnation>,
    /// How it is to be built.
    pub spec: VmSpec,
    /// How the process is built that is to be received here, where that is not as the spec says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Built>,
    /// What to do with it.
    pub role: Role,
}

/// What a host is to do with a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Run it, started afresh if this incarnation has no process. Also tells the destination of a migration, after the
    /// hand-over, that its received process of this incarnation may continue.
    Run {
        /// Running or Paused.
        power: Power,
        /// Start from this saved file instead of booting, when there is no process yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restore_from: Option<String>,
        /// The process must have come from a migration: if there is none, report it as gone instead of booting.
        #[serde(default)]
        received: bool,
    },
    /// Take over the process that somebody else started here, as it is; if there is none, report it as refused. From then
    /// on as `Run`.
    Adopt {
        /// Running or Paused.
        power: Power,
    },
    /// Hand back what was taken over: its process goes on, and nothing of it is known here any more.
    Release,
    /// Keep its disks (and its saved memory); no process may be left.
    Hold,
    /// Prepare to receive it: disks made, process waiting, both ends listening. It may not run.
    Receive {
        /// For which migration.
        migration: MigrationId,
        /// Bounds, some of which the receiving side sets too.
        limits: MigrationLimits,
        /// Virtual size of each disk that is not shared, bytes, as its source reported it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        disks: BTreeMap<Name, u64>,
    },
    /// Send it to `endpoint`.
    Send {
        /// For which migration.
        migration: MigrationId,
        /// Where the destination listens.
        endpoint: Endpoint,
        /// Bounds of the copy.
        limits: MigrationLimits,
        /// How far the source may go.
        step: SendStep,
        /// What the guest's vCPUs should be doing when the copy is called off: Running or Paused.
        power: Power,
    },
    /// Let go of it: kill its process, delete the disks and files made for it here.
    Discard {
        /// Its disks live on another host now, so that what is left of them here is out of date.
        #[serde(default)]
        elsewhere: bool,
    },
}

/// How far the source of a migration may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendStep {
    /// Copy, and stop before the switch-over: [`ObservedSend::AtSwitchover`](crate::observed::SendState).
    Copy,
    /// The hand-over is committed: finish, and never run it again.
    Switch,
    /// Called off before the hand-over: cancel and carry on running.
    Cancel,
}

/// A one-shot act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActOrder {
    /// The operation id: acted on at most once.
    pub task: TaskId,
    /// On which VM.
    pub vm: VmId,
    /// Only on this incarnation.
    pub incarnation: Incarnation,
    /// What.
    pub act: Act,
    /// Asked to end early.
    pub cancel: bool,
}
