//! What a live migration costs, in the unit of what it gains: CPU time that guests do not get, ms.

use crate::snapshot::{Load, Snapshot, VmIdx};

/// How fast memory travels and what that takes from the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Bandwidth of one migration, MiB/s.
    pub mib_s: u64,
    /// CPU that both hosts together spend on a MiB: read, encrypt, send, receive, decrypt, write, ms.
    pub cpu_ms_per_gib: u64,
    /// Longest the guest stands still, ms, when all goes well.
    pub blackout_ms: u64,
    /// CPU the guest loses to write protection of its pages while it is copied, percent of its demand.
    pub slowdown_percent: u64,
}

impl Default for Link {
    /// 10 Gbit/s at half its speed; one core encrypts about 1 GiB/s, and there are two ends; a switch-over below a third of
    /// a second is what QEMU aims at; a tenth is what busy guests were seen to lose.
    fn default() -> Self {
        Self { mib_s: 600, cpu_ms_per_gib: 2_000, blackout_ms: 300, slowdown_percent: 10 }
    }
}

/// What one move takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes over the wire, MiB: pages written meanwhile are sent again.
    pub sent_mib: u64,
    /// How long it takes, ms.
    pub took_ms: u64,
    /// CPU that guests do not get for it, ms.
    pub cpu_ms: u64,
}

/// Above this share of the bandwidth, pages are written about as fast as they are sent: it would not end by itself.
const DIRTY_PERCENT_MAX: u64 = 80;

/// The cost of moving a VM. None when it writes its memory faster than it could be sent.
#[must_use]
pub fn cost(snapshot: &Snapshot, vm: VmIdx, load: &Load, link: &Link) -> Option<Cost> {
    let row = snapshot.vm(vm);
    let amounts = snapshot.profile(row.profile).amounts;
    let mem_mib = match load.mem_mib {
        0 => amounts.mem_mib + amounts.huge_mib,
        used => used,
    };
    let mib_s = link.mib_s.max(1);
    if load.dirty_mib_s.saturating_mul(100) > mib_s.saturating_mul(DIRTY_PERCENT_MAX) {
        return None;
    }
    // Each round sends what was written during the one before: a geometric series.
    let rounds = mem_mib.saturating_mul(mib_s) / (mib_s - load.dirty_mib_s).max(1);
    let sent_mib = row.local_disk_mib.saturating_add(rounds);
    let took_ms = (sent_mib.saturating_mul(1_000) / mib_s).saturating_add(link.blackout_ms);
    let demand_milli = load.cpu_mean_milli.saturating_add(load.cpu_unmet_milli);
    let copying = sent_mib.saturating_mul(link.cpu_ms_per_gib) / 1_024;
    let slowed = took_ms.saturating_mul(demand_milli).saturating_mul(link.slowdown_percent) / 100_000;
    let stands_still = link.blackout_ms.saturating_mul(demand_milli) / 1_000;
    let cpu_ms = copying.saturating_add(slowed).saturating_add(stands_still);
    Some(Cost { sent_mib, took_ms, cpu_ms })
}
