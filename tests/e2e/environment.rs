//! What the world around the daemons does wrong: ports that are taken, folders that are somebody else's, files that are
//! missing. Each is told clearly where it happens, and whoever was right goes on.

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, ensure};
use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions, eventually};

use crate::site::{Daemon, LIMIT, Site, free_addresses};

/// A controller whose port, data folder or identity is another's, and an agent with a copied folder, a used token or a
/// taken name, end at once and say which; the ones they would have disturbed go on, and nothing is left of them.
#[test]
fn daemons_end_where_they_are_not_at_home() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut controller = site.controller(&site.path("c"))?;
    site.wait_answering()?;
    taken_ports(&site)?;
    foreign_folders(&site)?;
    let token = site.ok(&["token", "create"])?;
    let token = token.trim();
    let mut agent = site.agent("h1", &site.path("h1"), Some(token), "test")?;
    site.wait_host("h1", "Up")?;
    site.ok(&["vm", "create", "web", "--driver", "test", "--mem-mib", "64", "--start", "--wait"])?;
    strange_agents(&site, token)?;
    ensure!(controller.alive()? && agent.alive()?, "somebody was disturbed");
    site.wait_host("h1", "Up")?;
    site.wait_vm("web", "Running")?;
    assert_eq!(site.names("host")?, ["h1"]);
    // Told to be of a cluster of another name, it knows by itself. Then its own folder again, as before.
    controller.kill()?;
    let other_name = site.path("c").display().to_string();
    let [api, raft] = free_addresses()?;
    let member = format!("1={api}/{raft}");
    let words =
        ["controller", "--id", "1", "--data-dir", &other_name, "--listen", &api, "--raft-listen", &raft];
    let named =
        site.start("named", &[&words[..], &["--member", &member, "--cluster", "lab"]].concat(), &[])?;
    named.ends_saying(&["belongs to a cluster called dunlin", "started for one called lab"])?;
    let _controller = site.controller(&site.path("c"))?;
    site.wait_host("h1", "Up")?;
    Ok(())
}

fn taken_ports(site: &Site) -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let [free] = free_addresses()?;
    for (api, raft) in [(&taken, &free), (&free, &taken)] {
        let data = site.path("nowhere");
        let (data_dir, member) = (data.display().to_string(), format!("1={api}/{raft}"));
        let words =
            ["controller", "--id", "1", "--data-dir", &data_dir, "--listen", api, "--raft-listen", raft];
        let daemon = site.start("port", &[&words[..], &["--member", &member]].concat(), &[])?;
        daemon.ends_saying(&[&taken, "Address already in use"])?;
        ensure!(!data.join("raft").exists(), "a controller that never was has left a store");
    }
    Ok(())
}

fn foreign_folders(site: &Site) -> anyhow::Result<()> {
    let ours = site.path("c").display().to_string();
    let start = |id: &str, data: &str| -> anyhow::Result<Daemon> {
        let [api, raft] = free_addresses()?;
        let member = format!("{id}={api}/{raft}");
        let words = ["controller", "--id", id, "--data-dir", data, "--listen", &api, "--raft-listen", &raft];
        site.start("folder", &[&words[..], &["--member", &member]].concat(), &[])
    };
    start("1", &ours)?.ends_saying(&[&ours, "is in use by another process"])?;
    // A copy is no way around it: it says whose it is.
    let copy = site.path("copy");
    copied(&site.path("c"), &copy)?;
    start("2", &copy.display().to_string())?.ends_saying(&["belongs to controller 1", "this is controller 2"])
}

fn strange_agents(site: &Site, used: &str) -> anyhow::Result<()> {
    let (data, copy) = (site.path("h1"), site.path("h1-copy"));
    site.agent("again", &data, None, "test")?.ends_saying(&["another agent", "uses", "h1"])?;
    copied(&data, &copy)?;
    let says = ["another agent with the identity of host", "was copied", "h1-copy"];
    site.agent("copied", &copy, None, "test")?.ends_saying(&says)?;
    site.agent("h2", &site.path("h2"), Some(used), "test")?
        .ends_saying(&["the token was refused", "used before"])?;
    site.agent("h2", &site.path("h3"), None, "test")?.ends_saying(&["a one-time token is needed"])?;
    let fresh = site.ok(&["token", "create"])?;
    let fresh = fresh.trim();
    site.agent("h1", &site.path("h4"), Some(fresh), "test")?.ends_saying(&["cannot join as h1"])?;
    // A refused name does not use the token up.
    let other = site.agent("h5", &site.path("h4"), Some(fresh), "test")?;
    site.wait_host("h5", "Up")?;
    other.kill()?;
    site.wait_host("h5", "Down")?;
    site.ok(&["host", "remove", "h5"])?;
    Ok(())
}

/// A controller that is given the folder of another cluster's controller of the same number ends and says whose it is;
/// its own cluster does not take it in, and takes it back with its own folder.
#[test]
fn a_controller_with_another_clusters_folder_ends() -> anyhow::Result<()> {
    let options = || FleetOptions { controllers: 3, hosts: 0, drivers: "test" };
    let (ours, theirs) = (Fleet::start(options())?, Fleet::start(options())?);
    ours.ok(&["vm", "create", "mine", "--driver", "test"])?;
    let (mine, other) = (ours.controller(3)?, theirs.controller(3)?);
    mine.kill()?;
    other.kill()?;
    let gone = |fleet: &Fleet| {
        eventually("the controller is gone", LIMIT, || match fleet.controller(3) {
            Ok(_) => Err("it is there".to_owned()),
            Err(_) => Ok(()),
        })
    };
    gone(&ours)?;
    gone(&theirs)?;
    let site = Site::new()?;
    let copy = site.path("foreign");
    copied(&theirs.dir().join("controller-3/data"), &copy)?;
    let home = ours.dir().join("controller-3/data").display().to_string();
    let there = copy.display().to_string();
    let words = mine.words[1..].iter().filter(|word| !word.is_empty() && *word != "--own-session");
    let words: Vec<_> =
        words.map(|word| if *word == home { there.as_str() } else { word.as_str() }).collect();
    ensure!(words.contains(&there.as_str()), "{words:?}");
    site.start("foreign", &words, &[])?.ends_saying(&[
        "belongs to cluster",
        "another authority",
        "point this controller at its own",
    ])?;
    ours.ok(&["vm", "create", "still", "--driver", "test"])?;
    ours.up()?;
    eventually("three controllers again", LIMIT, || ours.controller(3).map_err(|e| e.to_string()))?;
    assert_eq!(ours.json(&["vm", "list"])?["items"].as_array().map(Vec::len), Some(2));
    Ok(())
}

/// A disk or kernel that is not on the host and a display port that is taken are refused with their names, the second by
/// QEMU in its own words; once what was missing is there the VM starts, and a deleted VM leaves nothing.
#[test]
fn real_qemu_guests_without_their_files_or_ports() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 1, drivers: "qemu" })?;
    fleet.import_guest()?;
    let disk = fleet.scratch().join("late.raw");
    let path = disk.display().to_string();
    let from_path = format!("path={path},format=raw");
    let failed = |name: &str, says: &[&str]| -> anyhow::Result<()> {
        let vm = fleet.wait_phase(name, VmPhase::Failed, BOOT_LIMIT)?;
        for part in says {
            let message = &vm.status.message;
            ensure!(message.contains(part), "{name} does not say {part:?}: {message}");
        }
        println!("{name}: {}", vm.status.message);
        Ok(())
    };
    let cmdline = std::fs::read_to_string(dunlin_tests::fleet::guest_dir()?.join("cmdline"))?;
    let usual = ["--mem-mib", "128", "--kernel", "kernel", "--initrd", "initrd", "--cmdline", cmdline.trim()];
    fleet.ok(&[&["vm", "create", "late", "--disk", &from_path, "--start"], &usual[..]].concat())?;
    failed("late", &["disk vda", &path, "is not on this host"])?;
    fleet.ok(&["vm", "create", "kernel", "--kernel", "/nowhere/vmlinux", "--mem-mib", "64", "--start"])?;
    failed("kernel", &["kernel", "/nowhere/vmlinux", "is not on this host"])?;
    std::fs::write(&disk, "no disk")?;
    fleet.ok(&[
        "vm",
        "create",
        "odd",
        "--disk",
        &format!("path={path},format=qcow2"),
        "--mem-mib",
        "64",
        "--start",
    ])?;
    failed("odd", &["Image is not in qcow2 format"])?;

    let display = ["--vnc", "5950"];
    fleet.create_ticking("first", "image=disk,format=raw", &display)?;
    fleet.ok(&[&["vm", "create", "second", "--start"], &usual[..], &display[..]].concat())?;
    // QEMU counts displays from port 5900.
    failed("second", &["-vnc 127.0.0.1:50", "Address already in use"])?;
    fleet.ok(&["vm", "destroy", "first", "--wait"])?;
    fleet.ok(&["vm", "start", "second", "--wait"])?;

    std::fs::copy(dunlin_tests::fleet::guest_dir()?.join("disk.raw"), &disk)?;
    fleet.ok(&["vm", "start", "late", "--wait"])?;
    fleet.ticks_beyond(&disk, None, BOOT_LIMIT)?;
    for name in ["late", "kernel", "odd", "first", "second"] {
        fleet.ok(&["vm", "delete", name, "--wait"])?;
    }
    let left = std::fs::read_dir(fleet.dir().join("host-1/data/volumes"))?.count();
    assert_eq!((left, disk.exists()), (0, true), "what was made goes with the VM, what was given stays");
    Ok(())
}

fn copied(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("running cp")?;
    ensure!(status.success(), "cp failed");
    Ok(())
}
