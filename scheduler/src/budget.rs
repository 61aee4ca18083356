//! How many migrations may run at once, and what each may be counted on to move.

use dunlin_model::cluster::ClusterSpec;
use serde::{Deserialize, Serialize};

use crate::balance::cost::Link;

/// Limits on what runs at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// Migrations one host takes part in, in or out.
    pub per_host: u32,
    /// Migrations over the uplink of one rack, in or out. Those within a rack do not count.
    pub per_link: u32,
    /// Migrations in all.
    pub fleet: u32,
    /// Bandwidth of one migration, MiB/s.
    pub mib_s: u64,
}

impl Default for Budgets {
    /// Two a host as oVirt does; a 40 Gbit/s uplink carries 8 of them; 64 in all keep a control plane comfortable.
    fn default() -> Self {
        Self { per_host: 2, per_link: 8, fleet: 64, mib_s: Link::default().mib_s }
    }
}

impl From<&ClusterSpec> for Budgets {
    fn from(spec: &ClusterSpec) -> Self {
        Self { per_host: spec.migrations_per_host, ..Self::default() }
    }
}

impl Budgets {
    /// What one migration is counted on to cost.
    #[must_use]
    pub fn link(&self) -> Link {
        Link { mib_s: self.mib_s.max(1), ..Link::default() }
    }
}
