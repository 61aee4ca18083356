//! Wall time of `vm migrate --wait` against QEMU's own total time, and the stand-still as QEMU and as the guest's ticks saw it.

use std::time::Instant;

use anyhow::Context;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions, Ring};

use crate::median_and_worst;

/// Moves of each kind.
const MOVES: usize = 10;

pub(crate) fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 2, drivers: "qemu" })?;
    fleet.import_guest()?;
    let shared = fleet.scratch().join("shared.raw");
    std::fs::copy(dunlin_tests::fleet::guest_dir()?.join("disk.raw"), &shared)?;
    println!(
        "| 128 MiB guest, {MOVES} moves | wall ms | QEMU's total ms | wall / total | stood still ms, QEMU | worst |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let shared_disk = format!("path={},format=raw,shared", shared.display());
    for (name, disk, what) in [
        ("sharer", shared_disk.as_str(), "shared disk"),
        ("mover", "image=disk,format=raw", "its 64 MiB disk moves too"),
    ] {
        let vm = fleet.create_ticking(name, disk, &[])?;
        let file = if name == "sharer" { shared.clone() } else { fleet.disk_file(&vm)? };
        fleet.ticks_beyond(&file, None, BOOT_LIMIT)?;
        let (mut walls, mut totals, mut ratios, mut stills) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..MOVES {
            let started = Instant::now();
            fleet.ok(&["vm", "migrate", name, "--wait"])?;
            let wall = started.elapsed().as_secs_f64() * 1e3;
            let last = fleet.migrations()?.pop().context("no migration")?;
            let figures = last.status.figures.context("no figures")?;
            let total = f64::from(u32::try_from(figures.total_ms)?);
            walls.push(wall);
            totals.push(total);
            ratios.push(wall / total);
            stills.push(f64::from(u32::try_from(figures.downtime_ms)?));
            let file = if name == "sharer" { shared.clone() } else { fleet.disk_file(&fleet.vm(name)?)? };
            let ring = Ring::read(&file)?;
            fleet.ticks_beyond(&file, Some(ring.last_seq), BOOT_LIMIT)?;
        }
        let (still, worst) = median_and_worst(stills);
        println!(
            "| {what} | {:.0} | {:.0} | {:.2} (goal: 1.15) | {still:.0} | {worst:.0} |",
            median_and_worst(walls).0,
            median_and_worst(totals).0,
            median_and_worst(ratios).0
        );
        fleet.ok(&["vm", "delete", name, "--wait"])?;
    }
    Ok(())
}
