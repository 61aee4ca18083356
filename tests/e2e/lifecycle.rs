//! What one does with one VM, from create to delete.

use std::time::Duration;

use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions, Ring, console, eventually};

/// A verb with a real guest: far more than any takes on a busy machine.
const VERB_LIMIT: Duration = Duration::from_secs(60);

/// A real guest goes through every verb of its life, and after its deletion nothing of it is left.
#[test]
fn real_qemu_guest_lives_through_every_verb() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 1, drivers: "qemu" })?;
    fleet.import_guest()?;
    let seed = fleet.dir().join("user-data");
    std::fs::write(&seed, "#!/bin/sh\necho geheim7\n")?;
    let seed = seed.display().to_string();
    let told =
        ["--nic", "network=default", "--vnc", "auto", "--vnc-password", "secret12", "--user-data", &seed];
    fleet.create_guest("web", "image=disk,format=raw", "tick.seed", &told)?;
    let vm = fleet.wait_phase("web", VmPhase::Running, BOOT_LIMIT)?;
    let disk = fleet.disk_file(&vm)?;
    let first = fleet.ticks_beyond(&disk, None, BOOT_LIMIT)?;
    assert_eq!(first.boots, 1);
    assert!(vm.status.vnc.as_deref().is_some_and(|vnc| vnc.contains(":59")), "{:?}", vm.status.vnc);
    let shown = fleet.ok(&["vm", "show", "web", "-o", "yaml"])?;
    assert!(!shown.contains("secret12") && !shown.contains("geheim7"), "a secret is shown: {shown}");

    pause_holds_the_guest_still(&fleet, &disk)?;
    console(&fleet, "web", "ping dunlin", "pong dunlin", VERB_LIMIT)?;
    devices_follow_the_spec(&fleet)?;
    save_and_restore_keep_the_guest(&fleet, &disk)?;
    fleet.ok(&["vm", "set", "web", "--remove-disk", "vdb", "--remove-nic", "1", "--wait"])?;
    assert_eq!(fleet.vm("web")?.status.pending, Vec::<String>::new());

    // The power button is heard once the guest's late drivers are in.
    ready(&fleet, 1)?;
    fleet.ok(&["vm", "reboot", "web", "--wait"])?;
    let rebooted = boots(&fleet, &disk, 2)?;
    fleet.ok(&["vm", "reset", "web", "--wait"])?;
    let reset = boots(&fleet, &disk, rebooted.boots + 1)?;
    assert_eq!(fleet.vm("web")?.status.pid, Some(u32::try_from(fleet.guests(&vm)[0].pid)?));

    ready(&fleet, reset.boots)?;
    fleet.ok(&["vm", "shutdown", "web", "--wait"])?;
    let stopped = fleet.wait_phase("web", VmPhase::Stopped, VERB_LIMIT)?;
    assert!(fleet.guests(&stopped).is_empty(), "a stopped guest has a process");
    let said = fleet.ok(&["vm", "logs", "web"])?;
    assert!(said.contains("boot 1 ") && said.contains("bye poweroff"), "the log of a stopped VM: {said}");
    // What the guest read from its seed, by a kernel's own driver.
    let id = format!("seed meta-data: instance-id: {}", vm.metadata.uid);
    for line in [&id, "seed meta-data: local-hostname: web", "seed user-data: echo geheim7"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    fleet.ok(&["vm", "start", "web", "--wait"])?;
    boots(&fleet, &disk, reset.boots + 1)?;

    fleet.ok(&["vm", "destroy", "web", "--wait"])?;
    assert!(fleet.guests(&stopped).is_empty(), "a destroyed guest has a process");
    fleet.ok(&["vm", "delete", "web", "--wait"])?;
    assert!(!disk.exists(), "the disk of a deleted VM is left");
    assert_eq!(fleet.json(&["vm", "list"])?["items"], serde_json::json!([]));
    let missing = fleet.run(&["vm", "show", "web"])?;
    assert_eq!(missing.status, 3, "{}", missing.stderr);
    Ok(())
}

fn pause_holds_the_guest_still(fleet: &Fleet, disk: &std::path::Path) -> anyhow::Result<()> {
    fleet.ok(&["vm", "pause", "web", "--wait"])?;
    let paused = fleet.vm("web")?;
    assert_eq!(paused.status.phase, VmPhase::Paused);
    let before = Ring::read(disk)?;
    // The only way to see that nothing happens is to give it time to: three ticks' worth.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(Ring::read(disk)?, before, "a paused guest writes");
    fleet.ok(&["vm", "resume", "web", "--wait"])?;
    fleet.ticks_beyond(disk, Some(before.last_seq), VERB_LIMIT)?;
    Ok(())
}

/// A running guest gets a disk and a NIC; what it cannot get says so, and is taken back.
fn devices_follow_the_spec(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.ok(&["vm", "set", "web", "--add-disk", "empty=8", "--add-nic", "network=default", "--wait"])?;
    let vm = fleet.vm("web")?;
    let built = vm.status.built.clone().unwrap_or_default();
    assert_eq!((vm.status.pending.len(), built.disks.len(), built.nics.len()), (0, 2, 2), "{vm:?}");
    assert!(!built.layout.is_empty() && vm.spec.disks[1].name.as_str() == "vdb", "{vm:?}");
    let more = fleet.run(&["vm", "set", "web", "--cpus", "2", "--wait"])?;
    assert!(more.status != 0 && more.stderr.contains("cpus: follows at the next start"), "{}", more.stderr);
    assert!(fleet.ok(&["vm", "list"])?.contains("Running,PendingRestart"));
    fleet.ok(&["vm", "set", "web", "--cpus", "1", "--wait"])?;
    let absent = fleet.run(&["vm", "set", "web", "--remove-disk", "vdz"])?;
    assert!(absent.status != 0 && absent.stderr.contains("there is no disk vdz"), "{}", absent.stderr);
    Ok(())
}

fn save_and_restore_keep_the_guest(fleet: &Fleet, disk: &std::path::Path) -> anyhow::Result<()> {
    let before = Ring::read(disk)?;
    fleet.ok(&["vm", "save", "web", "--wait"])?;
    let saved = fleet.wait_phase("web", VmPhase::Saved, VERB_LIMIT)?;
    assert!(fleet.guests(&saved).is_empty(), "a saved guest has a process");
    let at_rest = Ring::read(disk)?;
    fleet.ok(&["vm", "restore", "web", "--wait"])?;
    let after = fleet.ticks_beyond(disk, Some(at_rest.last_seq), VERB_LIMIT)?;
    assert_eq!(after.boots, before.boots, "the guest was booted instead of restored");
    Ok(())
}

/// Takes a host away under its VM: the fleet says so, starts the VM nowhere else, and takes it back when the host returns.
#[test]
fn a_vm_on_a_host_that_is_down_says_so() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 2, drivers: "test" })?;
    fleet.ok(&["vm", "create", "web", "--driver", "test", "--mem-mib", "64", "--start"])?;
    let before = fleet.wait_phase("web", VmPhase::Running, VERB_LIMIT)?;
    let host = before.status.host_name.clone().map(|name| name.to_string()).unwrap_or_default();
    fleet.agent(&host)?.kill()?;
    let told = eventually("the VM says that its host is down", VERB_LIMIT, || {
        let status = fleet.vm("web").map_err(|e| e.to_string())?.status;
        if status.reason == "HostDown" { Ok(status) } else { Err(format!("{status:?}")) }
    })?;
    assert!(told.message.contains(&format!("host {host} is down since")), "{}", told.message);
    assert_eq!((told.host, told.incarnation), (before.status.host, before.status.incarnation));
    assert!(fleet.ok(&["vm", "list"])?.contains("HostDown"));
    let log = fleet.run(&["vm", "logs", "web"])?;
    assert!(log.status != 0 && log.stderr.contains(&host), "{}", log.stderr);
    fleet.up()?;
    eventually("the VM is as it was", VERB_LIMIT, || {
        let status = fleet.vm("web").map_err(|e| e.to_string())?.status;
        let same = status.phase == VmPhase::Running && status.incarnation == before.status.incarnation;
        if same && status.reason.is_empty() { Ok(()) } else { Err(format!("{status:?}")) }
    })
}

fn boots(fleet: &Fleet, disk: &std::path::Path, wanted: u64) -> anyhow::Result<Ring> {
    eventually("the guest boots again", BOOT_LIMIT, || {
        let ring = Ring::read(disk).map_err(|e| e.to_string())?;
        if ring.boots == wanted {
            Ok(ring)
        } else {
            Err(format!("boot {} of {wanted}: {:?}", ring.boots, fleet.vm("web").map(|vm| vm.status)))
        }
    })
}

/// Waits until the guest says that it is ready in its boot of that number.
fn ready(fleet: &Fleet, boot: u64) -> anyhow::Result<()> {
    let begins = format!("boot {boot} ");
    eventually("the guest is ready", BOOT_LIMIT, || {
        let log = fleet.ok(&["vm", "logs", "web"]).map_err(|e| e.to_string())?;
        let since = log.split_once(&begins).map_or("", |(_, since)| since);
        if since.contains("ready button=") { Ok(()) } else { Err(format!("not ready in boot {boot} yet")) }
    })
}
