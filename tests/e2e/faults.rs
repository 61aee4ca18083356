//! kill -9 at random moments of a migration.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use dunlin_model::migration::{MigrationOutcome, MigrationPhase};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_tests::fleet::{BOOT_LIMIT, guest_dir};
use dunlin_tests::{Fleet, FleetOptions, HostFolders, Ring, eventually};

/// Runs; each kills one thing once.
const RUNS: u64 = 30;
/// Until the fleet must have sorted itself out: a restarted guest boots, a killed controller is started again.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// The latest moment of a kill after the migration was asked for: it takes about so long.
const KILL_WITHIN_MS: u64 = 1100;
/// Copy speed: slow enough that most kills hit the migration, not what comes after it.
const BANDWIDTH_MIB_S: &str = "150";
/// A guest that dies more often than this within minutes is not started again by itself; somebody has to.
const RESTARTS_MAX: u32 = 3;

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Leader,
    SourceAgent,
    DestinationAgent,
    DestinationQemu,
}

/// Thirty migrations, each with a kill -9 of the leader, an agent or the destination's QEMU at a random moment, of a guest
/// whose disk was made from an image and of one whose disk is a file of its host: the VM ends running in exactly one place
/// each time, its disk is sound and the only one, and the Migration says truthfully what happened.
#[test]
fn real_qemu_migrations_survive_kill_nine() -> anyhow::Result<()> {
    let seed = std::env::var("DUNLIN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x00d0_711a);
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 2, drivers: "qemu" })?;
    fleet.import_guest()?;
    let folders = HostFolders::make(&fleet)?;
    fleet.create_ticking("phoenix", "image=disk,format=raw", &[])?;
    if let Some(folders) = &folders {
        let file = guest_dir()?.join("disk.raw");
        std::fs::copy(file, folders.behind("host-1")?.join("ash.raw"))?;
        fleet.ok(&["host", "cordon", "host-2"])?;
        fleet.create_ticking(
            "ash",
            &format!("path={},format=raw", folders.path("ash.raw").display()),
            &[],
        )?;
        fleet.ok(&["host", "uncordon", "host-2"])?;
    }
    let mut random = SplitMix(seed);
    let victims = [Victim::Leader, Victim::SourceAgent, Victim::DestinationAgent, Victim::DestinationQemu];
    let mut outcomes = std::collections::BTreeMap::<String, u32>::new();
    for run in 0..RUNS {
        let victim = victims[usize::try_from(run % 4)?];
        let delay_ms = random.next() % KILL_WITHIN_MS;
        // Every victim meets both.
        let carried = folders.as_ref().filter(|_| run / 4 % 2 == 1);
        let told = one_run(&fleet, carried, victim, delay_ms)
            .with_context(|| format!("seed {seed} run {run}: {victim:?} killed after {delay_ms} ms"))?;
        let kind = if carried.is_some() { "a file" } else { "a volume" };
        println!("run {run}, {kind}: {victim:?} killed after {delay_ms} ms: {told}");
        *outcomes.entry(told).or_default() += 1;
    }
    println!("outcomes: {outcomes:?}");
    Ok(())
}

fn one_run(
    fleet: &Fleet,
    carried: Option<&HostFolders>,
    victim: Victim,
    delay_ms: u64,
) -> anyhow::Result<String> {
    let name = if carried.is_some() { "ash" } else { "phoenix" };
    let mut before = fleet.wait_phase(name, VmPhase::Running, HEAL_LIMIT)?;
    if before.status.restarts >= RESTARTS_MAX {
        fleet.ok(&["vm", "destroy", name, "--wait"])?;
        fleet.ok(&["vm", "start", name, "--wait"])?;
        before = fleet.wait_phase(name, VmPhase::Running, HEAL_LIMIT)?;
    }
    let disk = disk_of(fleet, carried, &before)?;
    // A tick of this boot: the disk remembers those of the boots before.
    let known = Ring::read(&disk).ok().map(|ring| ring.last_seq);
    let ring = fleet.ticks_beyond(&disk, known, BOOT_LIMIT)?;
    let source = before.status.host_name.clone().context("no host")?;
    let destination = if source.as_str() == "host-1" { "host-2" } else { "host-1" };
    fleet.ok(&["vm", "migrate", name, "--bandwidth-mib-s", BANDWIDTH_MIB_S])?;
    // The moment is the test's input, not a condition to wait for.
    std::thread::sleep(Duration::from_millis(delay_ms));
    match victim {
        Victim::Leader => fleet.controller(fleet.leader()?)?.kill()?,
        Victim::SourceAgent => fleet.agent(source.as_str())?.kill()?,
        Victim::DestinationAgent => fleet.agent(destination)?.kill()?,
        Victim::DestinationQemu => {
            let there =
                |process: &&dunlin_tests::process::Process| process.mentions(&format!("{destination}/data"));
            // It may not be there yet, or be the guest itself already: both are moments too.
            if let Some(process) = fleet.guests(&before).iter().find(there) {
                process.kill()?;
            }
        }
    }
    fleet.up()?;
    let migration = eventually("the migration ends", HEAL_LIMIT, || {
        let last = fleet.migrations().map_err(|e| e.to_string())?.pop().ok_or("no migration")?;
        if last.status.phase.is_terminal() { Ok(last) } else { Err(format!("{:?}", last.status)) }
    })?;
    let after = fleet.wait_phase(name, VmPhase::Running, HEAL_LIMIT)?;
    let guests = eventually("exactly one process", HEAL_LIMIT, || {
        let guests = fleet.guests(&after);
        if guests.len() == 1 { Ok(guests) } else { Err(format!("{} processes", guests.len())) }
    })?;
    let host = after.status.host_name.clone().context("no host")?;
    anyhow::ensure!(guests[0].mentions(&format!("{host}/data")), "the process is not on {host}");
    let disk = disk_of(fleet, carried, &after)?;
    let now = fleet.ticks_beyond(&disk, Some(ring.last_seq), BOOT_LIMIT)?;
    anyhow::ensure!(now.first_seq == 0, "the disk lost its past");
    if let Some(folders) = carried {
        the_only_one(folders, host.as_str())?;
    }
    truthful(migration.status.phase, migration.status.outcome, &ring, &now, host.as_str(), source.as_str())?;
    Ok(format!("{:?} {:?} {}", migration.status.phase, migration.status.outcome, migration.status.reason))
}

/// The raw disk that the guest writes to.
fn disk_of(fleet: &Fleet, carried: Option<&HostFolders>, vm: &Vm) -> anyhow::Result<PathBuf> {
    let Some(folders) = carried else { return fleet.disk_file(vm) };
    let host = vm.status.host_name.as_ref().context("no host")?;
    Ok(folders.behind(host.as_str())?.join("ash.raw"))
}

/// Of the file there is one, where the guest is, and the one it began with under another name; nothing is half made.
fn the_only_one(folders: &HostFolders, host: &str) -> anyhow::Result<()> {
    eventually("one file and nothing half made", HEAL_LIMIT, || {
        let (mut disks, mut aside) = (Vec::new(), 0);
        for on in ["host-1", "host-2"] {
            for file in folders.names(on).map_err(|e| e.to_string())? {
                match file.as_str() {
                    "ash.raw" => disks.push(on),
                    stale if stale.starts_with("ash.raw.stale-ash-") => aside += 1,
                    other => return Err(format!("{on} has {other}")),
                }
            }
        }
        let holds = disks == [host] && aside <= 1;
        if holds { Ok(()) } else { Err(format!("disks on {disks:?}, {aside} set aside, it runs on {host}")) }
    })
}

/// Does the Migration's outcome agree with where the guest is, and with how often it was booted?
fn truthful(
    phase: MigrationPhase,
    outcome: Option<MigrationOutcome>,
    before: &Ring,
    after: &Ring,
    host: &str,
    source: &str,
) -> anyhow::Result<()> {
    let same_boot = after.boots == before.boots;
    let moved = host != source;
    let holds = match outcome {
        // A guest whose process was killed after it had arrived is booted again where it is.
        Some(MigrationOutcome::Moved) => phase == MigrationPhase::Done && moved,
        Some(MigrationOutcome::StayedOnSource | MigrationOutcome::HandedBack) => {
            phase == MigrationPhase::Aborted && !moved && same_boot
        }
        Some(MigrationOutcome::Restarted) => !same_boot,
        Some(MigrationOutcome::Gone) | None => false,
    };
    anyhow::ensure!(
        holds,
        "{phase:?} {outcome:?}, but the guest is on {host} (was on {source}), boots {} then {}",
        before.boots,
        after.boots
    );
    Ok(())
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
