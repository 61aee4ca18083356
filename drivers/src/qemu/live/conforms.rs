//! The conformance suite on two hosts with real guests.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::{Incarnation, VmId};
use tokio::io::AsyncWriteExt;

use super::{Fleet, PATIENCE, kill};
use crate::conformance::{self, Fixture};
use crate::hypervisor::{DriverResult, Hypervisor, Launch};
use crate::qemu::{Qemu, Site};

/// Two hosts with ticking guests.
struct QemuFixture {
    fleet: Fleet,
    open: Mutex<[Weak<Qemu>; 2]>,
    sites: Mutex<[Weak<Site>; 2]>,
}

impl QemuFixture {
    fn driver(&self, host: usize) -> Arc<Qemu> {
        self.open.lock().expect("lock")[host].upgrade().expect("the host is open")
    }

    fn host(host: usize) -> String {
        format!("host{host}")
    }
}

#[async_trait]
impl Fixture for QemuFixture {
    async fn open(&self, host: usize) -> DriverResult<Arc<dyn Hypervisor>> {
        // What is left of the earlier driver ends by itself; a killed agent would leave nothing.
        let earlier = self.sites.lock().expect("lock")[host].clone();
        while earlier.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let driver = Arc::new(self.fleet.driver(&Self::host(host)));
        self.open.lock().expect("lock")[host] = Arc::downgrade(&driver);
        self.sites.lock().expect("lock")[host] = Arc::downgrade(&driver.site);
        Ok(driver)
    }

    fn launch(&self, host: usize, vm: VmId, incarnation: Incarnation) -> Launch {
        let disk = self.fleet.path(&format!("{host}-{vm}.raw"));
        let file = std::fs::File::options().create(true).append(true).open(&disk).expect("create");
        file.set_len(4 << 20).expect("length");
        Launch { vm, incarnation, ..self.fleet.launch(&disk, false) }
    }

    fn scratch(&self, _host: usize) -> PathBuf {
        self.fleet.path("")
    }

    fn deadline(&self) -> Duration {
        PATIENCE
    }

    /// Only once its late drivers are in, which no notice tells.
    fn hears_power_button(&self) -> bool {
        false
    }

    async fn power_off(&self, host: usize, vm: VmId) {
        let (socket, log) = self.driver(host).console(vm).expect("console");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let is_up = || {
            let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            said.rsplit("bye ").next().is_some_and(|since| since.contains("\ntick "))
        };
        while !is_up() {
            assert!(tokio::time::Instant::now() < deadline, "the guest does not boot");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut console = tokio::net::UnixStream::connect(socket).await.expect("connect");
        console.write_all(b"poweroff\n").await.expect("write");
        // Held open until it was read.
        while is_up() {
            assert!(tokio::time::Instant::now() < deadline, "the guest does not power off");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn kill(&self, host: usize, vm: VmId) {
        let guests = self.driver(host).list().await.expect("list");
        let pid = guests.into_iter().find(|guest| guest.vm == vm).and_then(|guest| guest.pid);
        kill(pid.expect("a process"));
    }
}

/// QEMU passes every check that any driver has to pass, and lacks no power.
#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let fleet = Fleet::new();
    let fixture = QemuFixture { fleet, open: Mutex::default(), sites: Mutex::default() };
    let report = conformance::suite(&fixture).await.expect("both hosts open");
    println!("{report}");
    assert!(report.lines.iter().all(|(_, _, outcome)| *outcome == conformance::Outcome::Passed), "{report}");
    conformance::page::check("qemu", &report);
}
