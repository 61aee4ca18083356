//! The conformance suite on simulated hosts, and what is promised beyond it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::DriverPower;
use dunlin_model::vm::{SimSpec, VmSpec};
use dunlin_model::{Incarnation, VmId};

use super::{Injection, SimConfig, SimDriver};
use crate::conformance::{self, Fixture, Outcome};
use crate::hypervisor::{DriverResult, Hypervisor, Launch, LaunchMode};

pub(super) fn launch(vm: VmId, incarnation: Incarnation, sim: SimSpec) -> Launch {
    let mut spec = VmSpec::new(64);
    spec.sim = Some(sim);
    let name = format!("vm-{}", &vm.to_string()[24..]).parse().unwrap();
    let mode = LaunchMode::Boot;
    let (disks, nics) = (Vec::new(), Vec::new());
    Launch { vm, name, incarnation, spec, disks, kernel: None, initrd: None, nics, mode, paused: false }
}

struct SimFixture {
    folder: tempfile::TempDir,
    lacking: Vec<DriverPower>,
    open: Mutex<[Weak<SimDriver>; 2]>,
}

impl SimFixture {
    fn new(lacking: Vec<DriverPower>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), lacking, open: Mutex::default() }
    }

    fn driver(&self, host: usize) -> Arc<SimDriver> {
        self.open.lock().unwrap()[host].upgrade().unwrap()
    }
}

#[async_trait]
impl Fixture for SimFixture {
    async fn open(&self, host: usize) -> DriverResult<Arc<dyn Hypervisor>> {
        let mut config = SimConfig::new(self.folder.path().join(host.to_string()));
        config.powers.retain(|power| !self.lacking.contains(power));
        let driver = Arc::new(SimDriver::open(config).await?);
        self.open.lock().unwrap()[host] = Arc::downgrade(&driver);
        Ok(driver)
    }

    fn launch(&self, _host: usize, vm: VmId, incarnation: Incarnation) -> Launch {
        launch(vm, incarnation, SimSpec { dirty_mib_s: 10, ..SimSpec::default() })
    }

    fn scratch(&self, _host: usize) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn power_off(&self, host: usize, vm: VmId) {
        self.driver(host).inject(vm, Injection::PowerOff).unwrap();
    }

    async fn kill(&self, host: usize, vm: VmId) {
        self.driver(host).inject(vm, Injection::Die).unwrap();
    }
}

#[tokio::test]
async fn conforms() {
    // Every check of the suite holds on a simulated host that can do everything, and none is left out.
    let report = conformance::suite(&SimFixture::new(Vec::new())).await.unwrap();
    println!("{report}");
    assert!(report.lines.iter().all(|(_, _, outcome)| *outcome == Outcome::Passed));
}

#[tokio::test]
async fn conforms_without_powers() {
    // A host without powers refuses their verbs as Unsupported and still starts, lists and destroys guests.
    use DriverPower::{Console, Migrate, MigrateStorage, Pause, Reset, Save, Shutdown};
    let lacking = vec![Console, Migrate, MigrateStorage, Pause, Reset, Save, Shutdown];
    let report = conformance::suite(&SimFixture::new(lacking)).await.unwrap();
    println!("{report}");
    assert_eq!(report.failures().count(), 0);
    assert!(report.lines.iter().any(|(_, _, outcome)| matches!(outcome, Outcome::Lacks(_))));
}
