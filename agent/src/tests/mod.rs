//! The whole agent, with the simulated hypervisor under it and a controller above it that the test plays by hand.

mod away;
mod blobs;
mod fake;
mod guests;
mod identity;
mod images;
mod migration;

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_drivers::Hypervisor;
use dunlin_drivers::simulated::{SimConfig, SimDriver};
use dunlin_model::capabilities::DriverName;
use dunlin_model::desired::{Assignment, Role};
use dunlin_model::observed::{ObservedVm, Process};
use dunlin_model::vm::{Power, SimSpec, VmSpec};
use dunlin_model::{HostId, Incarnation, Labels, VmId};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{Config, Error, SimulatedHost, run_with};
pub(crate) use fake::dialer;
use fake::{Fake, PATIENCE, token};

/// A host: its data folder outlives its agent.
struct House {
    config: Config,
    agent: Option<JoinHandle<Result<(), Error>>>,
    driver: Option<Arc<SimDriver>>,
    _dir: TempDir,
}

impl House {
    fn new(name: &str, controllers: &[&Fake]) -> Self {
        let dir = TempDir::new().unwrap();
        let config = Config {
            data_dir: dir.path().to_owned(),
            controllers: controllers.iter().map(|fake| fake.endpoint.clone()).collect(),
            token: Some(token("")),
            name: name.parse().unwrap(),
            labels: Labels::new(),
            address: "127.0.0.1".to_owned(),
            qemu: false,
            lxc: false,
            uml: false,
            test: Some(SimulatedHost { cpus: 8, mem_mib: 8192 }),
            libvirt: None,
            libvirt_peer: None,
            image_cache_mib: 1024,
            metrics_listen: None,
            level: dunlin_model::Level::NEWEST,
            networks: BTreeMap::new(),
        };
        Self { config, agent: None, driver: None, _dir: dir }
    }

    /// Starts the agent, once whatever an earlier one left behind has let go.
    async fn start(&mut self) {
        self.start_beside(Vec::new()).await;
    }

    /// The same, with other drivers beside the simulated one.
    async fn start_beside(&mut self, mut drivers: Vec<Arc<dyn Hypervisor>>) {
        let sim = SimConfig::new(self.config.data_dir.join("test"));
        let driver =
            eventually("the driver's folder", async || SimDriver::open(sim.clone()).await.ok()).await;
        let driver = Arc::new(driver);
        let lock = || crate::identity::DirLock::take(&self.config.data_dir).ok();
        drop(eventually("the data folder", async || lock()).await);
        self.driver = Some(Arc::clone(&driver));
        let config = self.config.clone();
        drivers.push(driver);
        self.agent = Some(tokio::spawn(run_with(config, drivers, std::future::pending())));
    }

    /// Ends the agent in the middle of whatever it does, as kill -9 would.
    async fn kill(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.abort();
        let _ = agent.await;
        self.driver = None;
    }

    async fn restart(&mut self, fake: &Fake) {
        self.kill().await;
        fake.lost(self.id(fake).await);
        self.start().await;
    }

    fn sim(&self) -> &SimDriver {
        self.driver.as_ref().unwrap()
    }

    /// Its uid, once it has joined.
    async fn id(&self, fake: &Fake) -> HostId {
        let name = self.config.name.to_string();
        let joined = |state: &mut fake::State| {
            let join = state.joins.iter().find(|join| join.name == name)?;
            Some(join.host_uid.parse().unwrap())
        };
        fake.until("its join", joined).await
    }
}

/// Asks again until there is an answer.
async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::task::yield_now().await;
    }
}

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn told(vm: VmId, incarnation: u64, role: Role) -> Assignment {
    let mut spec = VmSpec::new(64);
    spec.driver = DriverName::Test;
    spec.sim = Some(SimSpec { boot_ms: 1, ..SimSpec::default() });
    Assignment {
        vm,
        name: format!("vm-{}", vm.0.as_u128()).parse().unwrap(),
        incarnation: Incarnation(incarnation),
        continues: None,
        built: None,
        spec,
        role,
    }
}

fn running() -> Role {
    Role::Run { power: Power::Running, restore_from: None, received: false }
}

fn paused() -> Role {
    Role::Run { power: Power::Paused, restore_from: None, received: false }
}

fn runs_as(incarnation: u64) -> impl Fn(&ObservedVm) -> bool {
    move |seen| seen.process == Process::Running && seen.incarnation == Incarnation(incarnation)
}

fn has_ended(seen: &ObservedVm) -> bool {
    matches!(seen.process, Process::Ended { .. })
}
