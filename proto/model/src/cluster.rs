//! The deployment: its placement policy and its controllers.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterId, ControllerId, Invalid, Level, Resource, invalid::in_range};

/// The one cluster object of a deployment.
pub type Cluster = Resource<ClusterId, ClusterSpec, ClusterStatus>;

/// Most that one score may count.
pub const WEIGHT_MAX: u64 = 100;

/// How the cluster behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// Where a new VM goes among the hosts that fit.
    #[serde(default)]
    pub placement: PlacementPolicy,
    /// What scores count, in place of what the policy says: by the score's name, 0 to 100. `dunlin cluster policy`
    /// lists the names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, u32>,
    /// Filters that are not asked, by name. Those that guard what cannot run at all are asked anyway.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<String>,
    /// Memory that may be promised per real memory, in percent.
    #[serde(default = "default_mem_overcommit_percent")]
    pub mem_overcommit_percent: u32,
    /// vCPUs that may be promised per real CPU, in percent: 400 sells each CPU four times.
    #[serde(default = "default_cpu_overcommit_percent")]
    pub cpu_overcommit_percent: u32,
    /// Memory kept back on every host for the host itself, MiB.
    #[serde(default = "default_host_reserve_mib")]
    pub host_reserve_mib: u64,
    /// Live migrations that one host may take part in at once, in or out.
    #[serde(default = "default_migrations_per_host")]
    pub migrations_per_host: u32,
    /// Live migrations that may run at once in the whole fleet.
    #[serde(default = "default_migrations_per_fleet")]
    pub migrations_per_fleet: u32,
    /// Hosts that may fail at any time and still leave room to start their VMs elsewhere: placement keeps it free.
    #[serde(default)]
    pub spare_hosts: u32,
    /// Levelling the load by live migration.
    #[serde(default)]
    pub balance: BalanceSpec,
}

/// Levelling the load by live migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalanceSpec {
    /// What may be done.
    #[serde(default)]
    pub mode: BalanceMode,
    /// 1 to 5: how small a gain is worth a move. 1 moves only to end a shortage, 5 for a slight unfairness.
    #[serde(default = "default_level")]
    pub level: u32,
}

/// What the balancer may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalanceMode {
    /// Nothing.
    #[default]
    Off,
    /// Write down what it would move; somebody approves it.
    Recommend,
    /// Move.
    Auto,
}

/// Levels of balancing.
pub const LEVEL: std::ops::RangeInclusive<u64> = 1..=5;

const fn default_level() -> u32 {
    3
}

impl Default for BalanceSpec {
    fn default() -> Self {
        Self { mode: BalanceMode::default(), level: default_level() }
    }
}

const fn default_migrations_per_fleet() -> u32 {
    64
}

const fn default_cpu_overcommit_percent() -> u32 {
    400
}

const fn default_mem_overcommit_percent() -> u32 {
    100
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
            weights: BTreeMap::new(),
            without: BTreeSet::new(),
            mem_overcommit_percent: default_mem_overcommit_percent(),
            cpu_overcommit_percent: default_cpu_overcommit_percent(),
            host_reserve_mib: default_host_reserve_mib(),
            migrations_per_host: default_migrations_per_host(),
            migrations_per_fleet: default_migrations_per_fleet(),
            spare_hosts: 0,
            balance: BalanceSpec::default(),
        }
    }
}

impl ClusterSpec {
    /// Refuses values outside their ranges.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.cpu_overcommit_percent", self.cpu_overcommit_percent.into(), 100..=10_000)?;
        in_range("spec.mem_overcommit_percent", self.mem_overcommit_percent.into(), 100..=1_000)?;
        for (name, weight) in &self.weights {
            in_range(&format!("spec.weights.{name}"), u64::from(*weight), 0..=WEIGHT_MAX)?;
        }
        in_range("spec.host_reserve_mib", self.host_reserve_mib, 0..=1 << 20)?;
        in_range("spec.migrations_per_host", self.migrations_per_host.into(), 1..=64)?;
        in_range("spec.migrations_per_fleet", self.migrations_per_fleet.into(), 1..=4_096)?;
        in_range("spec.spare_hosts", self.spare_hosts.into(), 0..=64)?;
        in_range("spec.balance.level", self.balance.level.into(), LEVEL)
    }
}

/// Which of the fitting hosts wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlacementPolicy {
    /// The emptiest.
    #[default]
    Spread,
    /// The fullest.
    Pack,
    /// The fullest, and a host that runs nothing only when no other fits, so that it can be switched off.
    PowerSaving,
}

/// What the cluster is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterStatus {
    /// Who replicates the control plane, by id.
    pub controllers: Vec<Controller>,
    /// Who leads, as far as the answering controller knows. Not replicated: filled in at the API edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<ControllerId>,
    /// What may be written: every controller and agent reads it.
    #[serde(default)]
    pub level: Level,
}

/// One controller of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Controller {
    /// Its number.
    pub id: ControllerId,
    /// Where clients and agents reach it: `https://host:port`.
    pub endpoint: String,
}
