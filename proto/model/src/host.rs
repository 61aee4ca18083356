//! A machine that runs guests.

use serde::{Deserialize, Serialize};

use crate::capabilities::HostCapabilities;
use crate::{HostId, Resource, Timestamp};

/// One enrolled host.
pub type Host = Resource<HostId, HostSpec, HostStatus>;

/// What the admin wants of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Takes no new VM when set; those it has stay.
    #[serde(default)]
    pub cordoned: bool,
}

/// What the host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Is its agent's session alive?
    pub phase: HostPhase,
    /// What its agent has probed. Empty until the first session.
    pub capabilities: HostCapabilities,
    /// Promised to VMs placed or arriving here.
    pub reserved: Reserved,
    /// Version of its agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// Counts its sessions: raised by each, so that the news of an older session is known as old.
    pub session: u64,
    /// Since when it is in this phase.
    pub since: Timestamp,
    /// Why it is in this phase.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// ```text
/// Joining -> Up <-> Down
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPhase {
    /// Enrolled; its agent has never held a session.
    #[default]
    Joining,
    /// Its agent holds a session with the leader.
    Up,
    /// Its agent's session ended. Its guests may well be running.
    Down,
}

/// Capacity that has been promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// vCPUs.
    pub cpus: u64,
    /// Memory, MiB.
    pub mem_mib: u64,
    /// VMs placed or arriving.
    pub vms: u64,
}
