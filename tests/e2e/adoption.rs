//! Guests that were there before the fleet.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use dunlin_model::vm::{Adoption, Vm};
use dunlin_tests::fleet::guest_dir;
use dunlin_tests::libvirtd::Libvirtd;
use dunlin_tests::{Fleet, FleetOptions, eventually, process};

/// An agent looks for what nobody manages every ten seconds.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
const GUESTS: [&str; 3] = ["old-1", "old-2", "old-3"];

/// A guest as somebody would define it who has never heard of us. The last one has no disk, and so can move between two
/// hosts that share one file system.
fn xml(fleet: &Fleet, number: usize) -> anyhow::Result<String> {
    let files = guest_dir()?;
    let disk = fleet.scratch().join(format!("old-{number}.raw"));
    std::fs::File::create(&disk)?.set_len(4 << 20)?;
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        disk.display()
    );
    Ok(format!(
        "<domain type='qemu'><name>old-{number}</name><uuid>00000000-0000-4000-9200-00000000000{number}</uuid>\
         <title>of somebody else</title><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{0}/vmlinux</kernel><initrd>{0}/initrd.img</initrd>\
         <cmdline>console=ttyS0 panic=-1</cmdline></os><features><acpi/></features>\
         <devices>{1}<serial type='pty'/><console type='pty'/><memballoon model='none'/>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices></domain>",
        files.display(),
        if number == 3 { "" } else { &disk },
    ))
}

/// Starts an agent for each, as somebody would who enrols hosts that run guests already.
fn enrol(fleet: &Fleet, hosts: &[Libvirtd; 2]) -> anyhow::Result<()> {
    let endpoint = fleet.endpoints()?.swap_remove(0);
    for (number, host) in hosts.iter().enumerate() {
        let name = format!("lv-{}", number + 1);
        let folder = fleet.dir().join(&name);
        std::fs::create_dir_all(&folder)?;
        let (data, address) = (folder.join("data"), format!("10.98.0.{}", number + 1));
        let uri = host.uri();
        let token = fleet.json(&["token", "create"])?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        let data = data.display().to_string();
        let words =
            ["agent", "--data-dir", &data, "--controller", &endpoint, "--name", &name, "--address", &address];
        let more =
            ["--driver", "libvirt", "--libvirt-uri", &uri, "--libvirt-peer-uri", &uri, "--own-session"];
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command = fleet.command(&[&words[..], &more[..]].concat())?;
        command.env("DUNLIN_TOKEN", token).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn()?;
    }
    Ok(())
}

fn unmanaged(fleet: &Fleet) -> anyhow::Result<Vec<String>> {
    let all = fleet.json(&["vm", "list", "--unmanaged"])?;
    let name = |found: &serde_json::Value| found["guest"]["name"].as_str().map(str::to_owned);
    all.as_array().context("no list")?.iter().map(|found| name(found).context("no name")).collect()
}

fn sees(fleet: &Fleet, names: &[&str]) -> anyhow::Result<()> {
    eventually(&format!("{names:?} unmanaged"), SEEN_WITHIN, || {
        let found = unmanaged(fleet).map_err(|e| e.to_string())?;
        if found == names { Ok(()) } else { Err(format!("found {found:?}")) }
    })
}

/// The QEMU processes with that UUID, wherever their files are.
fn pids(vm: &str) -> Vec<i32> {
    let mut pids: Vec<_> = process::guests(Path::new(""), vm).into_iter().map(|one| one.pid).collect();
    pids.sort_unstable();
    pids
}

fn uuid(name: &str) -> String {
    format!("00000000-0000-4000-9200-00000000000{}", &name[4..])
}

/// Without the empty element that libvirt keeps where a mark has been: nothing in its API takes that away.
fn unmarked(document: &str) -> String {
    document.lines().filter(|line| line.trim() != "<metadata/>").map(|line| format!("{line}\n")).collect()
}

/// Three running libvirt guests are shown, adopted where they are, commanded, and handed back: one as it was, one that was
/// stopped and started in between, one on the other host it was live-migrated to, by way of its own once more; a name that
/// is taken, and a guest that is not there, are told. The agent is killed when it has been told to adopt and when it has been
/// told to release, the controller with it. A process that was not told to end is the same one, and their documents say what they said: what we have no word
/// for too, after the restart and on the other host.
#[test]
fn three_running_guests_are_adopted_and_released() -> anyhow::Result<()> {
    let hosts = Libvirtd::pair()?;
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 1, drivers: "test" })?;
    for (at, name) in GUESTS.iter().enumerate() {
        let file = fleet.scratch().join(format!("{name}.xml"));
        std::fs::write(&file, xml(&fleet, at + 1)?)?;
        hosts[0].virsh(&["define", &file.display().to_string()])?;
        hosts[0].virsh(&["start", name])?;
    }
    let was: Vec<_> = GUESTS.iter().map(|name| pids(&uuid(name))).collect();
    ensure!(was.iter().all(|pids| pids.len() == 1), "{was:?}");
    let documents = |name: &str| hosts[0].virsh(&["dumpxml", name]).map(|document| unmarked(&document));
    let before: Vec<_> = GUESTS.iter().map(|name| documents(name)).collect::<Result<_, _>>()?;
    let defined =
        |name: &str| hosts[0].virsh(&["dumpxml", "--inactive", name]).map(|document| unmarked(&document));
    let defined_before = defined("old-2")?;

    enrol(&fleet, &hosts)?;
    sees(&fleet, &GUESTS)?;
    refuses(&fleet)?;
    adopts(&fleet, &hosts[0], &was)?;
    fleet.ok(&["vm", "destroy", "older", "--wait"])?;
    ensure!(
        pids(&uuid("old-2")).is_empty() && pids(&uuid("old-1")) == was[0],
        "only what was stopped has ended"
    );
    fleet.ok(&["vm", "start", "older", "--wait"])?;
    ensure!(documents("old-2")?.contains("/dev/urandom"), "started again without what was its own");
    for to in ["lv-2", "lv-1", "lv-2"] {
        fleet.ok(&["vm", "migrate", "wanderer", "--to", to, "--wait"])?;
    }
    let refused = fleet.run(&["vm", "release", "old-2"])?;
    ensure!(refused.status != 0 && refused.stderr.contains("made by the fleet"), "{refused:?}");

    // Told to let go, and then everybody who could do it is killed.
    fleet.ok(&["vm", "release", "old-1"])?;
    fleet.agent("lv-1")?.kill()?;
    fleet.controller(1)?.kill()?;
    fleet.up()?;
    restart_agent(&fleet, &hosts[0])?;
    fleet.ok(&["vm", "release", "older", "wanderer", "--wait"])?;
    sees(&fleet, &["old-1", "old-2", "wanderer"])?;

    ensure!(pids(&uuid("old-1")) == was[0], "old-1 is another process");
    ensure!(documents("old-1")? == before[0], "it was {}\nis {}", before[0], documents("old-1")?);
    ensure!(pids(&uuid("old-2")).len() == 1, "old-2 runs");
    ensure!(defined("old-2")? == defined_before, "it was {defined_before}\nis {}", defined("old-2")?);
    ensure!(hosts[1].virsh(&["domstate", "wanderer"])?.trim() == "running", "it runs where it went");
    ensure!(pids(&uuid("old-3")).len() == 1, "and only there");
    let there = hosts[1].virsh(&["dumpxml", "--inactive", "wanderer"])?;
    for own in ["/dev/urandom", "of somebody else", "vmlinux"] {
        ensure!(there.contains(own), "no {own} in {there}");
    }
    ensure!(!there.contains("dunlin:guest"), "the mark is left in {there}");
    Ok(())
}

/// Two guests of one name cannot be in a project, and what is not there cannot be adopted.
fn refuses(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.ok(&["vm", "create", "old-2", "--mem-mib", "64", "--driver", "test"])?;
    let taken = fleet.run(&["vm", "adopt", "old-2"])?;
    ensure!(taken.status != 0 && taken.stderr.contains("old-2"), "{taken:?}");
    let nobody = fleet.run(&["vm", "adopt", "old-9"])?;
    ensure!(nobody.status != 0 && nobody.stderr.contains("--unmanaged"), "{nobody:?}");
    Ok(())
}

/// All three, under names of their own; `was`: their processes.
fn adopts(fleet: &Fleet, host: &Libvirtd, was: &[Vec<i32>]) -> anyhow::Result<()> {
    fleet.ok(&["vm", "adopt", "old-1", "--wait"])?;
    fleet.ok(&["vm", "adopt", "old-1", "--wait"])?;
    // Asked for, and then everybody who could do it is killed.
    fleet.ok(&["vm", "adopt", "old-2", "--as", "older"])?;
    fleet.agent("lv-1")?.kill()?;
    fleet.controller(1)?.kill()?;
    fleet.up()?;
    restart_agent(fleet, host)?;
    fleet.ok(&["vm", "adopt", "old-2", "--as", "older", "--wait"])?;
    fleet.ok(&["vm", "adopt", "old-3", "--host", "lv-1", "--as", "wanderer", "--wait"])?;
    sees(fleet, &[])?;
    let adopted: Vec<Vm> =
        ["old-1", "older", "wanderer"].iter().map(|name| fleet.vm(name)).collect::<Result<_, _>>()?;
    for (vm, pids) in adopted.iter().zip(was) {
        ensure!(vm.status.adoption == Some(Adoption::Done), "{vm:?}");
        ensure!(vm.status.pid == u32::try_from(pids[0]).ok(), "{vm:?} had {pids:?}");
    }
    ensure!(adopted[0].spec.disks[0].own_path().is_some(), "its disk is known: {:?}", adopted[0].spec.disks);

    fleet.ok(&["vm", "pause", "old-1", "--wait"])?;
    fleet.ok(&["vm", "resume", "old-1", "--wait"])?;
    Ok(())
}

/// As its service would.
fn restart_agent(fleet: &Fleet, host: &Libvirtd) -> anyhow::Result<()> {
    let folder = fleet.dir().join("lv-1");
    let (data, uri) = (folder.join("data").display().to_string(), host.uri());
    let log = std::fs::File::options().append(true).open(folder.join("log"))?;
    let words =
        ["agent", "--data-dir", &data, "--name", "lv-1", "--address", "10.98.0.1", "--driver", "libvirt"];
    let more = ["--libvirt-uri", &uri, "--libvirt-peer-uri", &uri, "--own-session"];
    let mut command = fleet.command(&[&words[..], &more[..]].concat())?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    Ok(())
}
