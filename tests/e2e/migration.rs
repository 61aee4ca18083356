//! Live migration of guests that tick.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dunlin_model::migration::{MigrationOutcome, MigrationPhase};
use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::{BOOT_LIMIT, guest_dir};
use dunlin_tests::{Fleet, FleetOptions, Follower, HostFolders, Ring, eventually};

/// Migrations in a row of each guest: ten with a disk made from an image, ten with one at a path that each host has for
/// itself, ten with a shared one.
const IN_A_ROW: usize = 10;
/// What the guest's CD is full of.
const CD: u8 = 0xcd;
/// What is on the CD of that name on the other host.
const OTHER_CD: u8 = 0xdc;
/// One migration, the guest's next tick included.
const MOVE_LIMIT: Duration = Duration::from_secs(60);

/// Ten live migrations in a row of each kind of disk, two that move and one that is shared: none fails, no tick is lost or
/// written twice, the guest is never rebooted, exactly one process runs it afterwards, one who follows its console reads
/// every line once, and no copy of a disk is left where it could be taken for the disk.
#[test]
fn real_qemu_thirty_migrations_in_a_row_lose_nothing() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 2, drivers: "qemu" })?;
    fleet.import_guest()?;
    let folders = HostFolders::make(&fleet)?;
    let shared = fleet.scratch().join("shared.raw");
    std::fs::copy(guest_dir()?.join("disk.raw"), &shared)?;
    fleet.create_ticking("mover", "image=disk,format=raw", &[])?;
    fleet.create_ticking("sharer", &format!("path={},format=raw,shared", shared.display()), &[])?;
    let mut names = vec!["mover", "sharer"];
    match &folders {
        Some(folders) => {
            a_path_disk(&fleet, folders)?;
            names.push("carrier");
        }
        None => one_folder_is_not_two(&fleet)?,
    }
    let follower = Follower::start(&fleet, "mover")?;
    for round in 0..IN_A_ROW {
        for name in &names {
            let file = || where_it_writes(&fleet, folders.as_ref(), name, &shared);
            let before = fleet.ticks_beyond(&file()?, None, BOOT_LIMIT)?;
            let from = fleet.vm(name)?.status.host_name;
            fleet.ok(&["vm", "migrate", name, "--wait"])?;
            let after = fleet
                .ticks_beyond(&file()?, Some(before.last_seq), MOVE_LIMIT)
                .with_context(|| format!("round {round}: {name}"))?;
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
    every_one_moved(&fleet, names.len() * IN_A_ROW)?;
    let disk = fleet.disk_file(&fleet.vm("mover")?)?;
    follower.reads_every_tick_until(Ring::read(&disk)?.last_seq, MOVE_LIMIT)?;
    the_source_keeps_nothing(&fleet)?;
    if let Some(folders) = &folders {
        one_disk_and_one_out_of_date(&fleet, folders)?;
        a_taken_path_is_refused(&fleet, folders)?;
    }
    cancel_and_refusals(&fleet)
}

/// Each ended as it should and measured itself.
fn every_one_moved(fleet: &Fleet, count: usize) -> anyhow::Result<()> {
    let migrations = fleet.migrations()?;
    let moved = migrations.iter().filter(|m| m.status.phase == MigrationPhase::Done).collect::<Vec<_>>();
    assert_eq!(moved.len(), count);
    for migration in moved {
        let status = &migration.status;
        assert_eq!(status.outcome, Some(MigrationOutcome::Moved));
        let figures = status.figures.ok_or_else(|| anyhow::anyhow!("no figures"))?;
        assert!(figures.total_ms >= figures.downtime_ms && figures.transferred_bytes > 0, "{figures:?}");
        println!(
            "{} {}: stood still {} ms of {} ms, {} MiB of disk",
            migration.metadata.name,
            migration.spec.vm_name,
            figures.downtime_ms,
            figures.total_ms,
            figures.disk_bytes >> 20
        );
    }
    Ok(())
}

/// The raw disk that the guest writes to now.
fn where_it_writes(
    fleet: &Fleet,
    folders: Option<&HostFolders>,
    name: &str,
    shared: &Path,
) -> anyhow::Result<PathBuf> {
    match (name, folders) {
        ("sharer", _) => Ok(shared.to_owned()),
        ("carrier", Some(folders)) => {
            let host = fleet.vm(name)?.status.host_name.ok_or_else(|| anyhow::anyhow!("no host"))?;
            Ok(folders.behind(host.as_str())?.join("carrier.raw"))
        }
        _ => fleet.disk_file(&fleet.vm(name)?),
    }
}

/// A guest with a file of its host's own as its disk.
fn a_path_disk(fleet: &Fleet, folders: &HostFolders) -> anyhow::Result<()> {
    std::fs::copy(guest_dir()?.join("disk.raw"), folders.behind("host-1")?.join("carrier.raw"))?;
    // Nothing but the user knows which host has the file.
    fleet.ok(&["host", "cordon", "host-2"])?;
    let disk = format!("path={},format=raw", folders.path("carrier.raw").display());
    // A CD of the same name and size is on both hosts, and not the same.
    for (host, content) in [("host-1", CD), ("host-2", OTHER_CD)] {
        std::fs::write(folders.behind(host)?.join("cd.iso"), [content; 1 << 20])?;
    }
    let cd = format!("path={},format=raw,ro", folders.path("cd.iso").display());
    fleet.create_ticking("carrier", &disk, &["--disk", &cd])?;
    fleet.ok(&["host", "uncordon", "host-2"])?;
    Ok(())
}

/// The file is where the guest is; the one that it began with is set aside on the host it came from, and nothing else is
/// anywhere.
fn one_disk_and_one_out_of_date(fleet: &Fleet, folders: &HostFolders) -> anyhow::Result<()> {
    let events = fleet.ok(&["event", "list"])?;
    let host = fleet.vm("carrier")?.status.host_name.ok_or_else(|| anyhow::anyhow!("no host"))?;
    assert_eq!(host.as_str(), "host-1", "an even number of migrations leads back");
    eventually("one disk and one that is out of date", MOVE_LIMIT, || {
        let names = |host| folders.names(host).map_err(|e| e.to_string());
        let (first, second) = (names("host-1")?, names("host-2")?);
        let aside = first.get(1).is_some_and(|name| name.starts_with("carrier.raw.stale-carrier-"));
        let told = first.get(1).is_some_and(|name| events.contains(name.as_str()));
        let disks = first.len() == 3 && first[0] == "carrier.raw" && aside && told;
        let cds = first.last() == second.last() && second == ["cd.iso"];
        if disks && cds { Ok(()) } else { Err(format!("{first:?} and {second:?}, told: {told}")) }
    })?;
    let with = |host| Ok::<_, anyhow::Error>(std::fs::read(folders.behind(host)?.join("cd.iso"))?[0]);
    assert_eq!((with("host-1")?, with("host-2")?), (CD, OTHER_CD));
    let volumes = fleet.dir().join(format!("host-1/data/volumes/{}", fleet.vm("carrier")?.metadata.uid));
    let brought = std::fs::read(volumes.join("vdb.raw"))?;
    assert!(brought.len() == 1 << 20 && brought.iter().all(|byte| *byte == CD), "the CD came damaged");
    Ok(())
}

/// Where the path is taken, the migration is called off with words that name disk and path; the file there is untouched,
/// and nothing half made is left.
fn a_taken_path_is_refused(fleet: &Fleet, folders: &HostFolders) -> anyhow::Result<()> {
    let others = folders.behind("host-2")?.join("carrier.raw");
    std::fs::write(&others, b"somebody else's disk")?;
    let refused = fleet.run(&["vm", "migrate", "carrier", "--wait"])?;
    let path = folders.path("carrier.raw").display().to_string();
    for word in ["vda", &path, "there is a file already"] {
        assert!(refused.stderr.contains(word), "{word:?} is not in {}", refused.stderr);
    }
    assert_ne!(refused.status, 0);
    assert_eq!(std::fs::read(&others)?, b"somebody else's disk");
    eventually("nothing half made", MOVE_LIMIT, || {
        let names = folders.names("host-2").map_err(|e| e.to_string())?;
        if names == ["carrier.raw", "cd.iso"] { Ok(()) } else { Err(format!("{names:?}")) }
    })?;
    let disk = folders.behind("host-1")?.join("carrier.raw");
    fleet.ticks_beyond(&disk, Some(Ring::read(&disk)?.last_seq), MOVE_LIMIT)?;
    std::fs::remove_file(others)?;
    Ok(())
}

/// Without namespaces all hosts see the same files: a disk that is not said to be shared finds itself in its own way.
fn one_folder_is_not_two(fleet: &Fleet) -> anyhow::Result<()> {
    let file = fleet.scratch().join("carrier.raw");
    std::fs::copy(guest_dir()?.join("disk.raw"), &file)?;
    fleet.create_ticking("carrier", &format!("path={},format=raw", file.display()), &[])?;
    let refused = fleet.run(&["vm", "migrate", "carrier", "--wait"])?;
    assert!(refused.stderr.contains("there is a file already"), "{}", refused.stderr);
    fleet.ticks_beyond(&file, None, BOOT_LIMIT)?;
    Ok(())
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
