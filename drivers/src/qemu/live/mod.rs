//! Real guests under TCG on this machine. The guest ticks ten times a second; a tick is printed only once it is on
//! its disk, so what was printed and what lies on a disk can be held against each other.
//!
//! Several drivers with folders of their own stand for several hosts.

mod adoption;
mod boards;
mod conforms;
mod lifecycle;
mod migration;
mod migration_faults;
mod plugging;
mod saving;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationLimits};
use dunlin_model::vm::{AccelChoice, Boot, DiskBus, DiskFormat, FileRef, VmSpec};
use dunlin_model::{Incarnation, VmId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::broadcast::Receiver;
use tokio::time::{Instant, sleep, timeout};

use super::{Qemu, QemuConfig};
use crate::hypervisor::{Guest, Hypervisor, Launch, LaunchDisk, LaunchMode, LaunchNic, Notice, Run, Send};
use crate::run_dir::RunDir;

/// Everything here is done within a second or two; a busy builder may need ten times that.
const PATIENCE: Duration = Duration::from_secs(40);
/// A disk's ring of ticks begins here; see tests/guest/record.h.
const RING_START: usize = 1 << 20;
/// One tick's place in the ring; see tests/guest/record.h.
const SLOT_BYTES: usize = 512;

/// The folder with the guest's kernel, made when it is not there.
fn guest_files() -> &'static Path {
    static FILES: OnceLock<PathBuf> = OnceLock::new();
    FILES.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let status = std::process::Command::new(root.join("tests/guest/build")).status();
        assert!(status.expect("tests/guest/build runs").success(), "tests/guest/build makes the guest");
        root.join("target/guest")
    })
}

/// Hosts, their folders, and every process that was seen: none survives the test.
struct Fleet {
    dir: TempDir,
    vm: VmId,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A failed test leaves guests behind; they carry the VM's id, which is this test's alone.
        for incarnation in 0..8 {
            if let Some(process) = tokio::runtime::Handle::try_current()
                .ok()
                .and_then(|_| super::process::Process::find(&format!("dunlin.{}.{incarnation}", self.vm)))
            {
                process.kill();
            }
        }
    }
}

impl Fleet {
    fn new() -> Self {
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a random uid");
        Self { dir: tempfile::tempdir().expect("dir"), vm: random.trim().parse().expect("uid") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn driver(&self, host: &str) -> Qemu {
        Qemu::new(QemuConfig::new(self.path(host)))
    }

    /// The ticking guest with one disk.
    fn launch(&self, disk: &Path, shared: bool) -> Launch {
        let files = guest_files();
        let cmdline = std::fs::read_to_string(files.join("cmdline")).expect("cmdline").trim().to_owned();
        let kernel = FileRef::Path("/".into());
        let mut spec = VmSpec::new(128);
        spec.boot = Boot::Kernel { kernel, initrd: None, cmdline };
        spec.accel = AccelChoice::Tcg;
        let disk = LaunchDisk {
            name: "vda".parse().expect("name"),
            path: disk.to_owned(),
            format: DiskFormat::Raw,
            bus: DiskBus::Virtio,
            read_only: false,
            shared,
        };
        Launch {
            vm: self.vm,
            name: "ticker".parse().expect("name"),
            incarnation: Incarnation(1),
            spec,
            disks: vec![disk],
            kernel: Some(files.join("vmlinux")),
            initrd: Some(files.join("initrd.img")),
            nics: vec![LaunchNic::User],
            layout: None,
            mode: LaunchMode::Boot,
            paused: false,
        }
    }

    /// An empty disk for `host`.
    fn disk(&self, host: &str) -> PathBuf {
        let path = self.path(&format!("{host}.raw"));
        let file = std::fs::File::create(&path).expect("create");
        file.set_len(64 << 20).expect("length");
        path
    }

    /// A running guest on `host` that has ticked, with a disk of its own.
    async fn ticking(&self, host: &str) -> Qemu {
        let qemu = self.driver(host);
        qemu.start(self.launch(&self.disk(host), false)).await.expect("start");
        self.wait_tick(host, 0).await;
        qemu
    }

    fn incoming(&self, disk: &Path, shared: bool) -> Launch {
        let limits = MigrationLimits::default();
        Launch {
            incarnation: Incarnation(2),
            mode: LaunchMode::Incoming { listen: "127.0.0.1".into(), limits },
            ..self.launch(disk, shared)
        }
    }

    /// A host that waits for the guest.
    async fn receiving(&self, host: &str) -> (Qemu, Endpoint) {
        let qemu = self.driver(host);
        let guest = qemu.start(self.incoming(&self.disk(host), false)).await.expect("start incoming");
        assert_eq!(guest.run, Run::Incoming);
        (qemu, guest.endpoint.expect("an endpoint"))
    }

    fn run_dir(&self, host: &str) -> RunDir {
        RunDir::new(&self.path(host), self.vm)
    }

    fn serial(&self, host: &str) -> PathBuf {
        self.run_dir(host).serial_log()
    }

    /// Every tick that was printed on `host`.
    fn ticks(&self, host: &str) -> Vec<u64> {
        self.ticks_across(&[host])
    }

    /// Every tick that was printed on one host after the other. A line may begin on one and end on the next.
    fn ticks_across(&self, hosts: &[&str]) -> Vec<u64> {
        let text: Vec<u8> =
            hosts.iter().flat_map(|host| std::fs::read(self.serial(host)).unwrap_or_default()).collect();
        let text = String::from_utf8_lossy(&text);
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let word = |line: &str| line.strip_prefix("tick ")?.split(' ').next()?.parse().ok();
        whole.lines().filter_map(word).collect()
    }

    fn last_tick(&self, host: &str) -> Option<u64> {
        self.ticks(host).last().copied()
    }

    /// Waits for a tick later than `after` on `host`.
    async fn wait_tick(&self, host: &str, after: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.last_tick(host).is_none_or(|tick| tick <= after) {
            assert!(
                Instant::now() < deadline,
                "no tick after {after}: {:?}",
                std::fs::read(self.serial(host))
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn wait_serial(&self, host: &str, part: &str) {
        self.wait_serial_after(host, "", part).await;
    }

    /// Waits until `part` was said after the last `mark`.
    async fn wait_serial_after(&self, host: &str, mark: &str, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        let said =
            || String::from_utf8_lossy(&std::fs::read(self.serial(host)).unwrap_or_default()).into_owned();
        let is_said = |said: &str| said.rsplit_once(mark).is_some_and(|(_, after)| after.contains(part));
        while mark.is_empty() && !said().contains(part) || !mark.is_empty() && !is_said(&said()) {
            assert!(Instant::now() < deadline, "{part:?} was not said: {}", said());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Does the guest on `host` run on from where it is?
    async fn assert_goes_on(&self, host: &str) {
        let now = self.last_tick(host).unwrap_or(0);
        self.wait_tick(host, now + 1).await;
    }

    /// Every tick that was ever printed on one of `hosts` lies on `disk`, whole.
    fn assert_on_disk(&self, hosts: &[&str], disk: &Path) {
        let found = ticks_on_disk(disk);
        let printed: BTreeSet<u64> = hosts.iter().flat_map(|host| self.ticks(host)).collect();
        assert!(!printed.is_empty(), "it has ticked");
        let lost: Vec<_> = printed.difference(&found).collect();
        assert!(lost.is_empty(), "printed and not on {}: {lost:?}", disk.display());
    }

    async fn say(&self, qemu: &Qemu, line: &str) {
        let (socket, _) = qemu.console(self.vm).expect("console");
        let mut stream = UnixStream::connect(socket).await.expect("console socket");
        stream.write_all(format!("{line}\n").as_bytes()).await.expect("write");
        // The guest echoes what it reads: then it has it all.
        let mut heard = Vec::new();
        let mut bytes = [0; 256];
        let echo = async {
            while !String::from_utf8_lossy(&heard).contains(line) {
                let count = stream.read(&mut bytes).await.expect("read");
                assert!(count > 0, "the console was closed");
                heard.extend_from_slice(&bytes[..count]);
            }
        };
        timeout(PATIENCE, echo).await.expect("the console echoes");
    }

    async fn guest(&self, qemu: &Qemu) -> Guest {
        let all = qemu.list().await.expect("list");
        all.into_iter().find(|guest| guest.vm == self.vm).expect("the guest is listed")
    }

    /// Waits for a state of the guest through notices, as an agent does.
    async fn until(&self, qemu: &Qemu, what: &str, is_so: impl Fn(&Guest) -> bool) -> Guest {
        let mut notices: Receiver<Notice> = qemu.notices();
        let mut last = self.guest(qemu).await;
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&last) {
            match tokio::time::timeout_at(deadline, notices.recv()).await {
                Ok(Ok(notice)) => last = notice.guest,
                Ok(Err(_)) => last = self.guest(qemu).await,
                Err(_) => panic!("waited for {what}, it is {last:?}"),
            }
        }
        last
    }

    async fn until_ended(&self, qemu: &Qemu) -> Guest {
        self.until(qemu, "the end", |guest| matches!(guest.run, Run::Ended(..))).await
    }

    async fn until_at_switchover(&self, qemu: &Qemu) -> Guest {
        self.until(qemu, "the switch-over", |guest| matches!(guest.send, Some(Send::AtSwitchover(_)))).await
    }

    async fn until_sent(&self, qemu: &Qemu) -> MigrationFigures {
        let is_sent = |guest: &Guest| matches!(guest.send, Some(Send::Sent(_)));
        match self.until(qemu, "all is sent", is_sent).await.send {
            Some(Send::Sent(figures)) => figures,
            other => panic!("{other:?}"),
        }
    }

    async fn until_arrived(&self, qemu: &Qemu) -> Guest {
        self.until(qemu, "the arrival", |guest| guest.run == Run::Arrived).await
    }

    async fn end(&self, qemu: &Qemu) {
        qemu.destroy(self.vm).await.expect("destroy");
        qemu.forget(self.vm).await.expect("forget");
        assert!(qemu.list().await.expect("list").is_empty());
    }
}

/// Ends a driver as the death of its agent would: when this returns, nothing of it is left but the guests.
async fn close(qemu: Qemu) {
    let left = std::sync::Arc::downgrade(&qemu.site);
    drop(qemu);
    let deadline = Instant::now() + PATIENCE;
    while left.strong_count() > 0 {
        assert!(Instant::now() < deadline, "an owner does not end with its driver");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Whole records of the ring, by their number.
fn ticks_on_disk(disk: &Path) -> BTreeSet<u64> {
    let bytes = std::fs::read(disk).expect("read the disk");
    let number = |slot: &[u8], at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes"));
    let slots = bytes[RING_START..].chunks_exact(SLOT_BYTES);
    let mut found = BTreeMap::new();
    for slot in slots.filter(|slot| slot.starts_with(b"DUNTICK1")) {
        let seq = number(slot, 8);
        let sound = (80..508).all(|at| slot[at] == (seq.wrapping_add(at as u64) & 0xff) as u8);
        assert!(sound, "record {seq} is torn");
        found.insert(seq, ());
    }
    found.into_keys().collect()
}

/// One field of a process's /proc/PID/status.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

fn slow() -> MigrationLimits {
    MigrationLimits { bandwidth_mib_s: 2, ..MigrationLimits::default() }
}
