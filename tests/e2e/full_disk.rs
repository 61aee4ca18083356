//! Disks that are full: small file systems in memory, filled to the brim. Needs root for the mounts.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use dunlin_tests::eventually;

use crate::site::{Daemon, LIMIT, Site};

/// Sessions of an agent that a log takes at most before it needs another byte of disk: each is some hundred bytes, and it
/// grows by blocks of 4 KiB and more.
const SESSIONS_MAX: usize = 200;

/// A file system of its own, gone with the value.
struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    fn mount(dir: PathBuf, size_mib: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let options = format!("size={size_mib}m");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).status()?;
        ensure!(status.success(), "mounting a tmpfs needs root");
        Ok(Self { dir })
    }

    fn free_bytes(&self) -> anyhow::Result<u64> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        Ok(disk.f_bavail * disk.f_frsize)
    }

    /// Writes a file until so much is free, or nothing.
    fn fill(&self, leave_bytes: u64) -> anyhow::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.dir.join("filler"))?;
        let block = vec![1; 64 << 10];
        loop {
            let spare = self.free_bytes()?.saturating_sub(leave_bytes);
            let most = usize::try_from(spare)?.min(block.len());
            match file.write(&block[..most]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn relieve(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.dir.join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.dir).status();
        if !status.is_ok_and(|status| status.success()) {
            tracing::error!(dir = %self.dir.display(), "a test's mount is left");
        }
    }
}

fn count(dir: &Path) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?.count())
}

/// A controller whose disk is nearly full refuses what would add to it, with the folder's name, and goes on answering;
/// nothing half-made is left, deletions work, and with room everything works again. When the disk is full to the last byte
/// the controller ends, saying so (its log engine cannot go on after a failed write); started again with room it has
/// everything that was acknowledged.
#[test]
fn a_controller_on_a_full_disk_loses_nothing() -> anyhow::Result<()> {
    let site = Site::new()?;
    let disk = SmallDisk::mount(site.path("disk"), 160)?;
    let data = disk.dir.join("c");
    let folder = data.display().to_string();
    let mut controller = site.controller(&data)?;
    site.wait_answering()?;
    let token = site.ok(&["token", "create"])?;
    let agent = site.agent("h1", &site.path("h1"), Some(token.trim()), "test")?;
    site.wait_host("h1", "Up")?;
    let image = site.path("image");
    std::fs::write(&image, vec![7; 1 << 20])?;
    let image = image.display().to_string();
    site.ok(&["image", "import", "first", &image])?;
    site.ok(&["vm", "create", "web", "--driver", "test", "--mem-mib", "64", "--start", "--wait"])?;

    // The reserve for images is larger than that for other writes.
    disk.fill(48 << 20)?;
    let (large, blobs) = (site.path("large"), count(&data.join("blobs"))?);
    std::fs::write(&large, vec![9; 8 << 20])?;
    site.refused(
        &["image", "import", "large", &large.display().to_string()],
        6,
        &["no room", &folder, "[no_capacity]"],
    )?;
    assert_eq!(count(&data.join("blobs"))?, blobs, "half of an image is left");
    site.ok(&["vm", "create", "small", "--driver", "test"])?;

    disk.fill(16 << 20)?;
    let begun = std::time::Instant::now();
    site.refused(
        &["vm", "create", "late", "--driver", "test"],
        6,
        &["disk", "full", &folder, "[no_capacity]"],
    )?;
    site.refused(&["token", "create"], 6, &["full", "[no_capacity]"])?;
    ensure!(begun.elapsed() < LIMIT / 6, "a refusal took {:?}", begun.elapsed());
    assert_eq!(site.names("vm")?, ["small", "web"]);
    site.ok(&["vm", "delete", "small", "--wait"])?;
    site.ok(&["image", "delete", "first"])?;
    ensure!(controller.alive()?, "it ended");

    disk.relieve()?;
    site.ok(&["vm", "create", "late", "--driver", "test"])?;
    site.ok(&["image", "import", "large", &large.display().to_string()])?;
    to_the_last_byte(&site, &disk, controller, agent)
}

/// Full to the last byte: sooner or later a write of the controller's own fails, and the log engine with it, for good.
fn to_the_last_byte(
    site: &Site,
    disk: &SmallDisk,
    mut controller: Daemon,
    mut agent: Daemon,
) -> anyhow::Result<()> {
    let data = disk.dir.join("c");
    // A session that closes and one that opens are written to the log, whatever room there is.
    for round in 0.. {
        ensure!(round < SESSIONS_MAX, "the log took {round} sessions on a full disk");
        disk.fill(0)?;
        agent.kill()?;
        agent = site.agent("h1", &site.path("h1"), None, "test")?;
        let ended = eventually("h1 comes up, or the controller ends", LIMIT, || {
            if !controller.alive().map_err(|e| e.to_string())? {
                return Ok(true);
            }
            let host = site.run(&["host", "show", "h1", "-o", "json"]).map_err(|e| e.to_string())?;
            if host.stdout.contains("\"phase\": \"Up\"") { Ok(false) } else { Err(host.stderr) }
        })?;
        if ended {
            println!("the controller ended in session {round} on the full disk");
            break;
        }
    }
    controller.ends_saying(&["the controller had to stop", "No space left on device"])?;
    site.controller(&data)?.ends_saying(&["open the store", "No space left on device"])?;
    disk.relieve()?;
    let mut controller = site.controller(&data)?;
    site.wait_host("h1", "Up")?;
    assert_eq!(site.names("vm")?, ["late", "web"]);
    assert_eq!(site.names("image")?, ["large"]);
    site.wait_vm("web", "Running")?;
    site.ok(&["vm", "create", "after", "--driver", "test"])?;
    ensure!(controller.alive()? && agent.alive()?, "somebody ended");
    Ok(())
}

/// An agent whose disk is full says which image it cannot keep and keeps no half of it, goes on with the guests it has,
/// starts again on the full disk, and starts the VM when there is room.
#[test]
fn real_qemu_agent_on_a_full_disk() -> anyhow::Result<()> {
    let site = Site::new()?;
    let disk = SmallDisk::mount(site.path("disk"), 96)?;
    let data = disk.dir.join("h1");
    let _controller = site.controller(&site.path("c"))?;
    site.wait_answering()?;
    let token = site.ok(&["token", "create"])?;
    let agent = site.agent("h1", &data, Some(token.trim()), "qemu,test")?;
    site.wait_host("h1", "Up")?;
    let guest = dunlin_tests::fleet::guest_dir()?;
    for (name, file) in [("kernel", "vmlinux"), ("initrd", "initrd.img")] {
        site.ok(&["image", "import", name, &guest.join(file).display().to_string()])?;
    }
    site.ok(&["vm", "create", "sim", "--driver", "test", "--mem-mib", "64", "--start", "--wait"])?;

    disk.fill(1 << 20)?;
    let cmdline = std::fs::read_to_string(guest.join("cmdline"))?;
    let from = ["--kernel", "kernel", "--initrd", "initrd", "--cmdline", cmdline.trim()];
    site.ok(&[&["vm", "create", "real", "--mem-mib", "128", "--start"], &from[..]].concat())?;
    let message = site.wait_vm("real", "Failed")?;
    ensure!(
        message.contains("image kernel could not be kept") && message.contains("No space left"),
        "{message}"
    );
    println!("{message}");
    assert_eq!(count(&data.join("images"))?, 0, "half of an image is left");

    // To the last byte, and the agent starts anew on it.
    disk.fill(0)?;
    agent.kill()?;
    site.wait_host("h1", "Down")?;
    let mut agent = site.agent("h1", &data, None, "qemu,test")?;
    site.wait_host("h1", "Up")?;
    site.wait_vm("sim", "Running")?;
    ensure!(agent.alive()?, "it ended");

    disk.relieve()?;
    site.ok(&["vm", "start", "real", "--wait"])?;
    for name in ["real", "sim"] {
        site.ok(&["vm", "delete", name, "--wait"])?;
    }
    Ok(())
}
