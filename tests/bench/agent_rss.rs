//! Resident memory of an agent with ten guests, against the same agent with none.

use anyhow::Context;
use dunlin_tests::{Fleet, FleetOptions};

/// Guests on the host.
const GUESTS: usize = 10;

pub(crate) fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 1, drivers: "qemu" })?;
    fleet.import_guest()?;
    // Ten guests on however few CPUs this machine has.
    fleet.ok(&["cluster", "set", "--cpu-overcommit-percent", "1000"])?;
    let mib = |kib: u64| f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
    let idle = fleet.agent("host-1")?.rss_kib().context("the agent's memory")?;
    for number in 0..GUESTS {
        fleet.create_ticking(&format!("guest-{number}"), "image=disk,format=raw", &["--wait"])?;
    }
    let busy = fleet.agent("host-1")?.rss_kib()?;
    // A restarted agent has adopted its guests instead of starting them: what it needs in the long run.
    fleet.agent("host-1")?.kill()?;
    fleet.up()?;
    dunlin_tests::eventually("the agent has its guests again", dunlin_tests::fleet::BOOT_LIMIT, || {
        fleet.ok(&["vm", "pause", "guest-0", "--wait"]).map_err(|e| e.to_string())
    })?;
    let adopted = fleet.agent("host-1")?.rss_kib()?;
    println!("| agent | VmRSS MiB |\n| --- | --- |\n| no guest | {:.1} |", mib(idle));
    println!("| {GUESTS} guests it started | {:.1} (goal: at most 10) |", mib(busy));
    println!("| the same {GUESTS}, after a restart | {:.1} |", mib(adopted));
    Ok(())
}
