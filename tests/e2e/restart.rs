//! Everything of ours dies at once; the guests do not notice.

use std::time::{Duration, Instant};

use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions, eventually};

/// From the start of the processes to the first write that is accepted.
const WRITES_WITHIN: Duration = Duration::from_secs(5);

/// kill -9 of all controllers and all agents, then a new start: every object is back, no guest was restarted, and writes
/// work within five seconds. Then only the leader dies, and the API answers on.
#[test]
fn real_qemu_guests_outlive_every_process_of_ours() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 2, drivers: "qemu" })?;
    fleet.import_guest()?;
    let names = ["one", "two"];
    for name in names {
        fleet.create_ticking(name, "image=disk,format=raw", &[])?;
    }
    for name in names {
        fleet.ticks_beyond(&fleet.disk_file(&fleet.vm(name)?)?, None, BOOT_LIMIT)?;
    }
    let before: Vec<_> = names.iter().map(|name| fleet.vm(name)).collect::<anyhow::Result<_>>()?;
    let images = fleet.json(&["image", "list"])?["items"].clone();
    for id in 1..=3 {
        fleet.controller(id)?.kill()?;
    }
    for host in ["host-1", "host-2"] {
        fleet.agent(host)?.kill()?;
    }
    eventually("all are dead", BOOT_LIMIT, || {
        let left = fleet.processes(&["--own-session"]).len();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    })?;
    let started = Instant::now();
    let upping = std::thread::scope(|scope| {
        let up = scope.spawn(|| fleet.up());
        let written = eventually("a write after the restart", BOOT_LIMIT, || {
            fleet.ok(&["host", "cordon", "host-1"]).map_err(|e| e.to_string())
        });
        let took = started.elapsed();
        written.map(|_| println!("the first write was accepted {took:?} after the start")).and_then(|()| {
            anyhow::ensure!(took <= WRITES_WITHIN, "the first write took {took:?}");
            up.join().map_err(|_| anyhow::anyhow!("up panicked"))?
        })
    });
    upping?;
    fleet.ok(&["host", "uncordon", "host-1"])?;
    assert_eq!(fleet.json(&["image", "list"])?["items"], images);
    for vm in &before {
        let name = vm.metadata.name.as_str();
        let after = fleet.wait_phase(name, VmPhase::Running, BOOT_LIMIT)?;
        assert_eq!((after.metadata.uid, &after.spec), (vm.metadata.uid, &vm.spec));
        assert_eq!(
            (after.status.pid, after.status.incarnation),
            (vm.status.pid, vm.status.incarnation),
            "{name} was restarted"
        );
        let guests = fleet.guests(&after);
        assert_eq!(guests.len(), 1);
        assert_eq!(Some(u32::try_from(guests[0].pid)?), vm.status.pid);
        let disk = fleet.disk_file(&after)?;
        let ring = dunlin_tests::Ring::read(&disk)?;
        assert_eq!(fleet.ticks_beyond(&disk, Some(ring.last_seq), BOOT_LIMIT)?.boots, 1);
    }
    // The fleet is in command again, not only present.
    fleet.ok(&["vm", "pause", "one", "--wait"])?;
    fleet.ok(&["vm", "resume", "one", "--wait"])?;
    the_leader_dies(&fleet)
}

fn the_leader_dies(fleet: &Fleet) -> anyhow::Result<()> {
    let leader = fleet.leader()?;
    fleet.controller(leader)?.kill()?;
    let started = Instant::now();
    fleet.ok(&["host", "cordon", "host-2"])?;
    println!("a write was accepted {:?} after the leader was killed", started.elapsed());
    let now = fleet.leader()?;
    assert_ne!(now, leader);
    fleet.ok(&["vm", "destroy", "two", "--wait"])?;
    fleet.up()?;
    eventually("three controllers again", BOOT_LIMIT, || {
        fleet.controller(leader).map_err(|e| e.to_string())
    })?;
    Ok(())
}
