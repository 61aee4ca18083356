//! Long work and one-shot acts. A task's uid is the act's operation id: a host's journal makes it happen at most once.
//!
//! ```text
//! Queued -> Running -> Succeeded | Failed | Cancelled
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Kind, Name, Resource, TaskId, Timestamp};

/// One task.
pub type Task = Resource<TaskId, TaskSpec, TaskStatus>;

/// What is to be done, to what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// What.
    pub act: Act,
    /// Kind of the object it is done to: Vm or Host.
    pub kind: Kind,
    /// Uid of that object.
    pub uid: Uuid,
    /// Its name.
    pub name: Name,
}

/// What can be done as a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Press the VM's power button and wait for the guest to power off.
    Shutdown {
        /// Given up after so long, s; the guest then goes on running.
        timeout_s: u64,
    },
    /// Press the power button and start again when the guest is off, in the same process.
    Reboot {
        /// Given up after so long, s.
        timeout_s: u64,
    },
    /// Restart the VM's machine at once.
    Reset,
    /// Save the VM's memory to a file on its host, and stop it.
    Save,
    /// Cordon a host and move every VM away.
    Drain,
}

impl Act {
    /// One word for tables and logs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Shutdown { .. } => "shutdown",
            Self::Reboot { .. } => "reboot",
            Self::Reset => "reset",
            Self::Save => "save",
            Self::Drain => "drain",
        }
    }
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskStatus {
    /// See the picture in the module docs.
    pub phase: TaskPhase,
    /// 0 to 100.
    pub progress_percent: u32,
    /// Asked to end.
    #[serde(default)]
    pub cancel: bool,
    /// What it waits for, or how it ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How far a drain is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainProgress>,
    /// When it began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainProgress {
    /// The host was cordoned before: it stays so when the drain is cancelled.
    pub was_cordoned: bool,
    /// VMs moved away so far.
    pub moved: u64,
    /// VMs still on the host.
    pub left: u64,
    /// Of those, VMs that fit nowhere now.
    pub stuck: u64,
    /// The wave it is in, from 1; 0 before the first.
    pub wave: u32,
    /// Waves in all, as far as can be seen now.
    pub waves: u32,
    /// Until the last VM that can go is moved, s: by what the moves so far have taken, before the first by the VMs' sizes.
    /// As of the last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
}

/// See the picture in the module docs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TaskPhase {
    /// Not begun.
    #[default]
    Queued,
    /// Under way.
    Running,
    /// Done as asked.
    Succeeded,
    /// Not done; the message says why.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl TaskPhase {
    /// Is it over?
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for TaskPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Queued => "Queued",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        })
    }
}
