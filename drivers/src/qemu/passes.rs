//! How often memory is copied while the guest runs, and how long the guest may stand still for the rest.
//!
//! ```text
//!  pass over all memory --rest fits into the stand-still allowed--> guest stops, the rest is sent
//!         |       ^                                                     ^
//!         |       +-- a pass over what was written meanwhile            |
//!         +--- one pass only: whatever was written meanwhile -----------+
//! ```
//! Owns the stand-still asked of QEMU. Refuses to know how a sending is begun or ended.

use serde_json::{Value, json};

use super::owner::{Fault, Owner};
use super::qmp::{Qmp, QmpError};

/// The first stand-still allowed, as a part of the limit. QEMU stops a guest as soon as the rest would go within the
/// limit, and then takes that long; a quiet guest is spared most of it when the limit begins low.
const FIRST_DOWNTIME_DIVISOR: u64 = 10;
/// From this pass over memory on, each one doubles the stand-still allowed, up to the limit: the guest writes faster
/// than it is sent. The first pass sends everything, the second what was written meanwhile.
const RELAX_FROM_PASS: u64 = 3;
/// The stand-still asked for when memory must be copied in one pass, ms. A rest that would go within it is what makes
/// QEMU look again at what was written while the guest runs; nothing goes within zero, so that QEMU sends everything
/// once, stops the guest, and looks then.
const ONE_PASS_DOWNTIME_MS: u64 = 0;
/// A capability that came with QEMU 9.0, as did the repair [`must_copy_once`] is about.
const REPAIRED_WITH: &str = "mapped-ram";

/// Is this a guest whose writes get lost when QEMU looks twice at what it wrote while it runs?
///
/// Such a look takes over the dirty bitmap and clears it. Under TCG it must also tell the emulated CPUs' TLBs, or what
/// is written next to the pages they hold goes unnoticed and the destination runs with old contents: programs with
/// wrong data, kernels that hang or panic. QEMU before 9.0 does not, for memory of a whole number of 256 KiB. The look
/// at the very beginning is harmless all the same, because switching the bitmap on flushes the TLBs after it, and so is
/// the last, because no vCPU runs any more. Source: QEMU's commit 03bfc2188f06, "physmem: Fix migration dirty bitmap
/// coherency with TCG memory access".
pub(super) async fn must_copy_once(qmp: &Qmp) -> Result<bool, QmpError> {
    let kvm = qmp.run("query-kvm", json!({})).await?;
    let capabilities = qmp.run("query-migrate-capabilities", json!({})).await?;
    Ok(loses_writes(&kvm, &capabilities))
}

fn loses_writes(kvm: &Value, capabilities: &Value) -> bool {
    let mut known = capabilities.as_array().into_iter().flatten();
    kvm["enabled"] != true && !known.any(|capability| capability["capability"] == REPAIRED_WITH)
}

/// The stand-still allowed once `pass` has begun, ms.
fn downtime_ms(limit_ms: u64, pass: u64) -> u64 {
    let doublings = u32::try_from(pass.saturating_sub(RELAX_FROM_PASS - 1)).unwrap_or(u32::MAX);
    let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
    (limit_ms / FIRST_DOWNTIME_DIVISOR).max(1).saturating_mul(factor).min(limit_ms)
}

/// The stand-still to begin a sending with, ms.
pub(super) async fn first_downtime_ms(qmp: &Qmp, limit_ms: u64) -> Result<u64, QmpError> {
    Ok(if must_copy_once(qmp).await? { ONE_PASS_DOWNTIME_MS } else { downtime_ms(limit_ms, 0) })
}

impl Owner {
    /// A pass over memory begins: the guest may have to stand still for longer.
    pub(super) async fn passed(&mut self, pass: u64) -> Result<(), Fault> {
        let Some(outgoing) = &self.record.outgoing else { return Ok(()) };
        let downtime_ms = downtime_ms(outgoing.limits.downtime_ms, pass);
        // Asked, because the agent that began this sending may have been another.
        let now = self.qmp.run("query-migrate-parameters", json!({})).await?;
        if now["downtime-limit"] != ONE_PASS_DOWNTIME_MS {
            self.qmp.run("migrate-set-parameters", json!({ "downtime-limit": downtime_ms })).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two passes are made with a tenth of the limit, each later one with twice as much, none with more than the limit,
    /// and none of them asks for the one-pass copy by accident.
    #[test]
    fn the_stand_still_grows_to_the_limit() {
        let allowed = |limit_ms: u64| [0, 1, 2, 3, 4, 5, 6, 80].map(|pass| downtime_ms(limit_ms, pass));
        assert_eq!(allowed(300), [30, 30, 30, 60, 120, 240, 300, 300]);
        assert_eq!(allowed(1), [1; 8]);
        assert_eq!(allowed(60_000)[..4], [6_000, 6_000, 6_000, 12_000]);
        assert!(allowed(u64::MAX).iter().all(|ms| *ms != ONE_PASS_DOWNTIME_MS));
    }

    /// Only an emulated guest of a QEMU without the repair is copied in one pass.
    #[test]
    fn one_pass_is_for_emulation_before_the_repair() {
        let tcg = json!({ "enabled": false, "present": true });
        let kvm = json!({ "enabled": true, "present": true });
        let old =
            json!([{ "capability": "xbzrle", "state": false }, { "capability": "events", "state": true }]);
        let new = json!([{ "capability": "events", "state": true }, { "capability": "mapped-ram", "state": false }]);
        assert!(loses_writes(&tcg, &old));
        assert!(!loses_writes(&tcg, &new) && !loses_writes(&kvm, &old) && !loses_writes(&kvm, &new));
    }
}
