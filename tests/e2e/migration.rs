//! Live migration of guests that tick.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_model::migration::{MigrationOutcome, MigrationPhase};
use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions, Ring, eventually};

/// Migrations in a row of each guest: ten with its disk, ten with a shared one.
const IN_A_ROW: usize = 10;
/// One migration, the guest's next tick included.
const MOVE_LIMIT: Duration = Duration::from_secs(60);

/// Twenty live migrations in a row, with disks that move and disks that are shared: none fails, no tick is lost or written
/// twice, the guest is never rebooted, and exactly one process runs it afterwards.
#[test]
fn real_qemu_twenty_migrations_in_a_row_lose_nothing() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 2, drivers: "qemu" })?;
    fleet.import_guest()?;
    let shared = fleet.scratch().join("shared.raw");
    std::fs::copy(dunlin_tests::fleet::guest_dir()?.join("disk.raw"), &shared)?;
    fleet.create_ticking("mover", "image=disk,format=raw", &[])?;
    fleet.create_ticking("sharer", &format!("path={},format=raw,shared", shared.display()), &[])?;
    for round in 0..IN_A_ROW {
        for name in ["mover", "sharer"] {
            let file = || where_it_writes(&fleet, name, &shared);
            let before = fleet.ticks_beyond(&file()?, None, BOOT_LIMIT)?;
            let from = fleet.vm(name)?.status.host_name;
            fleet.ok(&["vm", "migrate", name, "--wait"])?;
            let after = fleet.ticks_beyond(&file()?, Some(before.last_seq), MOVE_LIMIT)?;
            assert_eq!((after.first_seq, after.boots), (0, 1), "round {round}: {name} lost its past");
            let vm = fleet.vm(name)?;
            assert_ne!(vm.status.host_name, from, "round {round}: {name} has not moved");
            assert_eq!(vm.status.phase, VmPhase::Running);
            eventually("exactly one process", MOVE_LIMIT, || match fleet.guests(&vm).len() {
                1 => Ok(()),
                count => Err(format!("{count} processes of {name}")),
            })?;
        }
    }
    let migrations = fleet.migrations()?;
    assert_eq!(migrations.len(), 2 * IN_A_ROW);
    for migration in &migrations {
        let status = &migration.status;
        assert_eq!((status.phase, status.outcome), (MigrationPhase::Done, Some(MigrationOutcome::Moved)));
        let figures = status.figures.ok_or_else(|| anyhow::anyhow!("no figures"))?;
        assert!(figures.total_ms >= figures.downtime_ms && figures.transferred_bytes > 0, "{figures:?}");
        println!(
            "{} {}: stood still {} ms of {} ms",
            migration.metadata.name, migration.spec.vm_name, figures.downtime_ms, figures.total_ms
        );
    }
    the_source_keeps_nothing(&fleet)?;
    cancel_and_refusals(&fleet)
}

/// The raw disk that the guest writes to now.
fn where_it_writes(fleet: &Fleet, name: &str, shared: &Path) -> anyhow::Result<PathBuf> {
    if name == "sharer" { Ok(shared.to_owned()) } else { fleet.disk_file(&fleet.vm(name)?) }
}

/// A guest that has left takes its disk with it.
fn the_source_keeps_nothing(fleet: &Fleet) -> anyhow::Result<()> {
    let vm = fleet.vm("mover")?;
    eventually("one copy of the disk", MOVE_LIMIT, || {
        let holds =
            |host: &str| fleet.dir().join(format!("{host}/data/volumes/{}", vm.metadata.uid)).exists();
        let copies = ["host-1", "host-2"].into_iter().filter(|host| holds(host)).count();
        if copies == 1 { Ok(()) } else { Err(format!("{copies} copies")) }
    })
}

/// A migration that is cancelled leaves the guest where it was, still ticking; nonsense is refused.
fn cancel_and_refusals(fleet: &Fleet) -> anyhow::Result<()> {
    let vm = fleet.vm("mover")?;
    let disk = fleet.disk_file(&vm)?;
    // Slow enough to be caught in the act: 128 MiB of guest and 64 MiB of disk at 2 MiB/s.
    fleet.ok(&["vm", "migrate", "mover", "--bandwidth-mib-s", "2"])?;
    let name = fleet.migrations()?.last().map(|m| m.metadata.name.to_string()).unwrap_or_default();
    eventually("the copy is under way", MOVE_LIMIT, || {
        let phase = fleet.migrations().map_err(|e| e.to_string())?.last().map(|m| m.status.phase);
        if phase == Some(MigrationPhase::Copying) { Ok(()) } else { Err(format!("{phase:?}")) }
    })?;
    let again = fleet.run(&["vm", "migrate", "mover"])?;
    assert_eq!(again.status, 5, "a second migration of the same VM: {}", again.stderr);
    fleet.ok(&["migration", "cancel", &name, "--wait"])?;
    let ended = fleet.migrations()?.pop().ok_or_else(|| anyhow::anyhow!("no migration"))?;
    assert_eq!(
        (ended.status.phase, ended.status.outcome),
        (MigrationPhase::Aborted, Some(MigrationOutcome::StayedOnSource))
    );
    let before = Ring::read(&disk)?;
    let after = fleet.ticks_beyond(&disk, Some(before.last_seq), MOVE_LIMIT)?;
    assert_eq!(after.boots, 1);
    assert_eq!(fleet.vm("mover")?.status.host_name, vm.status.host_name);
    let nowhere = fleet.run(&["vm", "migrate", "mover", "--to", "host-22"])?;
    assert_eq!(nowhere.status, 3, "{}", nowhere.stderr);
    assert!(nowhere.stderr.contains("host-2"), "no near match: {}", nowhere.stderr);
    Ok(())
}
