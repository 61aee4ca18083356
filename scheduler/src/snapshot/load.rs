//! What has been measured, and when. The snapshot keeps it; `balance` judges whether to believe it.

use serde::{Deserialize, Serialize};

/// One measurement of a VM or a host over its sampling window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// CPU used on average, thousandths of one.
    pub cpu_mean_milli: u64,
    /// CPU used at the peak, thousandths of one.
    pub cpu_peak_milli: u64,
    /// CPU it wanted and did not get, thousandths of one; 0 when not known.
    pub cpu_unmet_milli: u64,
    /// Memory in use, MiB.
    pub mem_mib: u64,
    /// Memory written over, MiB/s: what a live migration has to send again.
    pub dirty_mib_s: u64,
    /// Network traffic, Mbit/s.
    pub net_mbps: u64,
    /// When the window ended, ms on the caller's clock.
    pub sampled_ms: u64,
}

impl Load {
    /// How old it is, ms.
    #[must_use]
    pub const fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.sampled_ms)
    }
}
