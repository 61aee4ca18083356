//! A machine that runs guests.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capabilities::HostCapabilities;
use crate::invalid::in_range;
use crate::vm::Scope;
use crate::{HostId, Invalid, Name, Resource, Timestamp};

/// Most taints of one host: more is a label set.
pub const TAINTS_MAX: usize = 16;
/// Longest key or value of a taint, bytes: a label's.
const TAINT_MAX: usize = crate::meta::LABEL_MAX;

/// One enrolled host.
pub type Host = Resource<HostId, HostSpec, HostStatus>;

/// What the admin wants of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Takes no new VM when set; those it has stay.
    #[serde(default)]
    pub cordoned: bool,
    /// The rack it stands in, which may fail as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<Name>,
    /// The zone it stands in, which may fail as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Takes only VMs that put up with every one of these; those it has stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taints: BTreeMap<String, String>,
    /// What it has besides CPUs and memory, and how much of each: `device/gpu`, `licence/windows`. VMs say what they take.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, u64>,
}

impl HostSpec {
    /// Refuses taints that are too many or too long, and resources that are none.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.taints", self.taints.len() as u64, 0..=TAINTS_MAX as u64)?;
        for (key, value) in &self.taints {
            if key.is_empty() || key.len() > TAINT_MAX || value.len() > TAINT_MAX {
                let field = format!("spec.taints[{key:?}]");
                let problem = "the key is empty, or key or value too long";
                return Err(Invalid::new(field, problem, "keys of 1 to 253 bytes, values up to 253"));
            }
        }
        crate::vm::placement::validate_resources("spec.resources", &self.resources)
    }
}

/// Do both hosts count as one place?
#[must_use]
pub fn same_place(a: &Host, b: &Host, scope: Scope) -> bool {
    let same = a.metadata.uid == b.metadata.uid;
    match scope {
        Scope::Host => same,
        Scope::Rack => same || (a.spec.rack.is_some() && a.spec.rack == b.spec.rack),
        Scope::Zone => a.spec.zone == b.spec.zone,
    }
}

/// What the host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reserved {
    /// vCPUs.
    pub cpus: u64,
    /// Memory, MiB.
    pub mem_mib: u64,
    /// VMs placed or arriving.
    pub vms: u64,
}
