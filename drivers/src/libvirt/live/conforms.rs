//! The conformance suite on two real libvirtds: QEMU under TCG, and libvirt's own test hypervisor as far as it goes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::vm::{AccelChoice, Arch, Boot, DiskBus, DiskFormat, FileRef, VmSpec};
use dunlin_model::{Incarnation, VmId};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::daemon::Daemon;
use super::guest_files;
use crate::conformance::{self, Fixture};
use crate::hypervisor::{DriverResult, Guest, Hypervisor, Launch, LaunchDisk, LaunchMode};
use crate::libvirt::client::Client;
use crate::libvirt::link::{Site, domain};
use crate::libvirt::wire::calls::{DomainDestroy, DomainShutdown};
use crate::libvirt::{Libvirt, LibvirtConfig};

/// Everything here is done within a few seconds; a busy builder may need ten times that.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing runs: what is not told at once is not told at all.
const PLAYED_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct LibvirtFixture {
    daemons: [Daemon; 2],
    uri: &'static str,
    /// The test hypervisor forgets everything when nobody looks.
    lookers: tokio::sync::OnceCell<[Client; 2]>,
    sites: Mutex<[Weak<Site>; 2]>,
    open: Mutex<[Weak<Libvirt>; 2]>,
}

impl LibvirtFixture {
    pub(super) fn new(uri: &'static str) -> Self {
        let daemons = Daemon::pair();
        Self {
            daemons,
            uri,
            lookers: tokio::sync::OnceCell::new(),
            sites: Mutex::default(),
            open: Mutex::default(),
        }
    }

    pub(super) fn path(&self, host: usize, name: &str) -> PathBuf {
        self.daemons[host].path(name)
    }

    pub(super) fn daemon(&self, host: usize) -> &Daemon {
        &self.daemons[host]
    }

    pub(super) fn uri(&self, host: usize) -> String {
        self.daemons[host].uri(self.uri)
    }

    fn is_qemu(&self) -> bool {
        self.uri.starts_with("qemu")
    }

    fn driver(&self, host: usize) -> Arc<Libvirt> {
        self.open.lock().expect("lock")[host].upgrade().expect("the host is open")
    }

    async fn guest(&self, host: usize, vm: VmId) -> Guest {
        let guests = self.driver(host).list().await.expect("list");
        guests.into_iter().find(|guest| guest.vm == vm).expect("the guest is listed")
    }

    /// Somebody else at the same daemon.
    pub(super) async fn other(&self, host: usize) -> Client {
        let uri = self.daemons[host].uri(self.uri).parse().expect("uri");
        Client::open(&uri, None).await.expect("open").0
    }
}

#[async_trait]
impl Fixture for LibvirtFixture {
    async fn open(&self, host: usize) -> DriverResult<Arc<dyn Hypervisor>> {
        // What is left of the earlier driver ends by itself; a killed agent would leave nothing.
        let earlier = self.sites.lock().expect("lock")[host].clone();
        while earlier.strong_count() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        if !self.is_qemu() {
            self.lookers.get_or_init(async || [self.other(0).await, self.other(1).await]).await;
        }
        let daemon = &self.daemons[host];
        let mut config = LibvirtConfig::new(daemon.path("agent"), &daemon.uri(self.uri)).expect("uri");
        config.peer = Some(config.uri_text.clone());
        let driver = Arc::new(Libvirt::open(config)?);
        self.open.lock().expect("lock")[host] = Arc::downgrade(&driver);
        self.sites.lock().expect("lock")[host] = Arc::downgrade(&driver.site);
        Ok(driver)
    }

    fn launch(&self, host: usize, vm: VmId, incarnation: Incarnation) -> Launch {
        let disk = self.daemons[host].path(&format!("{vm}.raw"));
        let file = std::fs::File::options().create(true).append(true).open(&disk).expect("create");
        file.set_len(4 << 20).expect("length");
        let files = guest_files();
        let cmdline = std::fs::read_to_string(files.join("cmdline")).expect("cmdline").trim().to_owned();
        let mut spec = VmSpec::new(128);
        spec.boot = Boot::Kernel { kernel: FileRef::Path("/".into()), initrd: None, cmdline };
        // The test hypervisor plays nothing else.
        (spec.accel, spec.arch) =
            if self.is_qemu() { (AccelChoice::Tcg, Arch::X86_64) } else { (AccelChoice::Any, Arch::I686) };
        let disk = LaunchDisk {
            name: "vda".parse().expect("name"),
            path: disk,
            format: DiskFormat::Raw,
            bus: DiskBus::Virtio,
            read_only: false,
            shared: false,
        };
        Launch {
            vm,
            name: "ticker".parse().expect("name"),
            incarnation,
            spec,
            disks: vec![disk],
            kernel: Some(files.join("vmlinux")),
            initrd: Some(files.join("initrd.img")),
            nics: Vec::new(),
            layout: None,
            mode: LaunchMode::Boot,
            paused: false,
        }
    }

    fn listen(&self, host: usize) -> String {
        ["10.98.0.1", "10.98.0.2"][host].to_owned()
    }

    fn scratch(&self, host: usize) -> PathBuf {
        self.daemons[host].path("")
    }

    fn deadline(&self) -> Duration {
        if self.is_qemu() { PATIENCE } else { PLAYED_PATIENCE }
    }

    /// QEMU's guest only once its late drivers are in, which no notice tells; the test hypervisor's always.
    fn hears_power_button(&self) -> bool {
        !self.is_qemu()
    }

    async fn power_off(&self, host: usize, vm: VmId) {
        if !self.is_qemu() {
            let ended = self.other(host).await.call(&DomainShutdown { domain: domain(vm) }).await;
            return ended.expect("shut down");
        }
        let (socket, log) = self.driver(host).console(vm).expect("console");
        let deadline = Instant::now() + PATIENCE;
        let is_up = || {
            let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            said.rsplit("bye ").next().is_some_and(|since| since.contains("\ntick "))
        };
        while !is_up() {
            assert!(Instant::now() < deadline, "the guest does not boot");
            sleep(Duration::from_millis(10)).await;
        }
        let mut console = tokio::net::UnixStream::connect(socket).await.expect("connect");
        console.write_all(b"poweroff\n").await.expect("write");
        // Held open until it was read.
        while is_up() {
            assert!(Instant::now() < deadline, "the guest does not power off");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn kill(&self, host: usize, vm: VmId) {
        if !self.is_qemu() {
            // There is no process; this is how the test hypervisor's guests die.
            let ended = self.other(host).await.call(&DomainDestroy { domain: domain(vm) }).await;
            return ended.expect("destroy");
        }
        let pid = self.guest(host, vm).await.pid.expect("a process");
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    }
}

async fn report(uri: &'static str) -> conformance::Report {
    let fixture = LibvirtFixture::new(uri);
    let report = conformance::suite(&fixture).await.expect("both hosts open");
    println!("{report}");
    report
}

/// QEMU behind libvirt passes every check that any driver has to pass, but for those of powers it lacks.
#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms() {
    let report = report("qemu:///system").await;
    assert_eq!(report.failures().count(), 0, "{report}");
    conformance::page::check("libvirt qemu", &report);
}

/// What libvirt's test hypervisor cannot: it starts nothing paused, and tells of no restart of a machine.
const BEYOND_TEST: [&str; 3] = ["start resume", "reboot_on_shutdown", "reset"];

/// libvirt's test hypervisor passes what it can be asked, and fails where it is known to.
#[tokio::test(flavor = "multi_thread")]
async fn test_conforms() {
    let report = report("test:///default").await;
    let failures: Vec<&str> = report.failures().map(|(verbs, ..)| *verbs).collect();
    assert_eq!(failures, BEYOND_TEST, "{report}");
    conformance::page::check("libvirt test", &report);
}
