//! Which of the hosts that fit is best. Integers only, so that every replica and every rerun agrees.

use dunlin_model::cluster::PlacementPolicy;

use crate::snapshot::{HostRow, Policy, Request};

/// The best score: an empty host under spread, a full one under pack.
pub const SCORE_MAX: u64 = 2_000;

/// 0 to [`SCORE_MAX`]: thousandths of memory plus thousandths of vCPUs left free once the VM is there, or, to pack,
/// those taken.
#[must_use]
pub fn score(policy: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> u64 {
    let left = |free: u64, need: u64, total: u64| free.saturating_sub(need) * 1_000 / total.max(1);
    let mem = left(row.mem_free_mib(policy), request.spec.mem_mib, row.mem_total_mib(policy));
    let cpus = left(row.cpus_free(policy), request.spec.cpus.into(), row.cpus_total(policy));
    match policy.placement {
        PlacementPolicy::Spread => mem + cpus,
        PlacementPolicy::Pack | PlacementPolicy::PowerSaving => SCORE_MAX - mem - cpus,
    }
}
