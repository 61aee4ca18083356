//! The deployment: its placement policy and its controllers.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, ControllerId, Invalid, Resource, invalid::in_range};

/// The one cluster object of a deployment.
pub type Cluster = Resource<ClusterId, ClusterSpec, ClusterStatus>;

/// How the cluster behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// Where a new VM goes among the hosts that fit.
    #[serde(default)]
    pub placement: PlacementPolicy,
    /// vCPUs that may be promised per real CPU, in percent: 400 sells each CPU four times.
    #[serde(default = "default_cpu_overcommit_percent")]
    pub cpu_overcommit_percent: u32,
    /// Memory kept back on every host for the host itself, MiB.
    #[serde(default = "default_host_reserve_mib")]
    pub host_reserve_mib: u64,
    /// Live migrations that one host may take part in at once, in or out.
    #[serde(default = "default_migrations_per_host")]
    pub migrations_per_host: u32,
}

const fn default_cpu_overcommit_percent() -> u32 {
    400
}

const fn default_host_reserve_mib() -> u64 {
    256
}

const fn default_migrations_per_host() -> u32 {
    2
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            placement: PlacementPolicy::default(),
            cpu_overcommit_percent: default_cpu_overcommit_percent(),
            host_reserve_mib: default_host_reserve_mib(),
            migrations_per_host: default_migrations_per_host(),
        }
    }
}

impl ClusterSpec {
    /// Refuses values outside their ranges.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.cpu_overcommit_percent", self.cpu_overcommit_percent.into(), 100..=10_000)?;
        in_range("spec.host_reserve_mib", self.host_reserve_mib, 0..=1 << 20)?;
        in_range("spec.migrations_per_host", self.migrations_per_host.into(), 1..=64)
    }
}

/// Which of the fitting hosts wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementPolicy {
    /// The emptiest.
    #[default]
    Spread,
    /// The fullest.
    Pack,
}

/// What the cluster is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Who replicates the control plane, by id.
    pub controllers: Vec<Controller>,
    /// Who leads, as far as the answering controller knows. Not replicated: filled in at the API edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<ControllerId>,
}

/// One controller of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Its number.
    pub id: ControllerId,
    /// Where clients and agents reach it: `http://host:port`.
    pub endpoint: String,
}
