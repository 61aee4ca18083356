//! Resident memory of an agent with ten guests, against the same agent with none.

use std::time::{Duration, Instant};

use anyhow::Context;
use dunlin_tests::{Fleet, FleetOptions};

use crate::median_and_worst;

/// Guests on the host.
const GUESTS: usize = 10;
/// How long its size is watched: two rests and a half, since it rests once a minute.
const WATCHED: Duration = Duration::from_secs(150);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What its first rest gives back at least; its size moves by less otherwise.
const RESTED_KIB: u64 = 1_024;

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
    // It rests once a minute. Whenever one looks, it is somewhere between two rests: every size over some of them.
    let mut sizes = Vec::new();
    let end = Instant::now() + WATCHED;
    while Instant::now() < end {
        sizes.push(fleet.agent("host-1")?.rss_kib()?);
        std::thread::sleep(LOOK_EVERY);
    }
    let rested = sizes.iter().position(|now| now + RESTED_KIB < adopted).context("it never rested")?;
    let (median, worst) = median_and_worst(sizes.split_off(rested).into_iter().map(mib).collect());
    println!("| agent | VmRSS MiB |\n| --- | --- |\n| no guest | {:.1} |", mib(idle));
    println!("| {GUESTS} guests it started | {:.1} |", mib(busy));
    println!("| the same {GUESTS}, after a restart | {:.1} |", mib(adopted));
    println!("| in the minutes after that, median | {median:.1} (goal: at most 10) |");
    println!("| at most | {worst:.1} |");
    Ok(())
}
