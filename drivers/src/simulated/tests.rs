//! The conformance suite on simulated hosts, and what is promised beyond it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::DriverPower;
use dunlin_model::migration::MigrationLimits;
use dunlin_model::observed::EndCause;
use dunlin_model::vm::{SimSpec, VmSpec};
use dunlin_model::{Incarnation, VmId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Injection, SimConfig, SimDriver};
use crate::conformance::{self, Fixture, Outcome};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Hypervisor, Launch, LaunchMode, Run, Send};

pub(super) fn launch(vm: VmId, incarnation: Incarnation, sim: SimSpec) -> Launch {
    let mut spec = VmSpec::new(64);
    spec.sim = Some(sim);
    let name = format!("vm-{}", &vm.to_string()[24..]).parse().unwrap();
    let mode = LaunchMode::Boot;
    let (disks, nics) = (Vec::new(), Vec::new());
    Launch {
        vm,
        name,
        incarnation,
        spec,
        disks,
        kernel: None,
        initrd: None,
        nics,
        layout: None,
        mode,
        paused: false,
    }
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
    conformance::page::check("test", &report);
    assert!(report.lines.iter().all(|(_, _, outcome)| *outcome == Outcome::Passed));
}

#[tokio::test]
async fn conforms_without_powers() {
    // A host without powers refuses their verbs as Unsupported and still starts, lists and destroys guests.
    use DriverPower::{Console, HotPlug, Migrate, MigrateStorage, Pause, Reset, Save, Shutdown};
    let lacking = vec![Console, HotPlug, Migrate, MigrateStorage, Pause, Reset, Save, Shutdown];
    let report = conformance::suite(&SimFixture::new(lacking)).await.unwrap();
    println!("{report}");
    assert_eq!(report.failures().count(), 0);
    assert!(report.lines.iter().any(|(_, _, outcome)| matches!(outcome, Outcome::Lacks(_))));
}

fn numbered(number: usize) -> VmId {
    format!("00000000-0000-4000-8000-{number:012x}").parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn idle_guests_cost_no_task_and_live_by_the_clock() {
    // Two thousand guests on twenty hosts leave no task behind, and an hour of the clock is an hour of their lives, also
    // when their agents were dead for half of it.
    let folder = tempfile::tempdir().unwrap();
    let config =
        |host: usize| SimConfig { mem_mib: 100 * 64, ..SimConfig::new(folder.path().join(host.to_string())) };
    let mut drivers = Vec::new();
    for host in 0..20 {
        let driver = SimDriver::open(config(host)).await.unwrap();
        for number in 0..100 {
            let started = driver.start(launch(numbered(number), Incarnation(1), SimSpec::default())).await;
            started.unwrap();
        }
        let full = driver.start(launch(numbered(100), Incarnation(1), SimSpec::default())).await;
        assert!(full.unwrap_err().message.contains("cannot allocate"));
        drivers.push(driver);
    }
    tokio::task::yield_now().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    drivers.clear();
    tokio::time::advance(Duration::from_secs(3600)).await;
    for host in 0..20 {
        let samples = SimDriver::open(config(host)).await.unwrap().sample().await.unwrap();
        assert_eq!(samples.len(), 100);
        // Five percent of an hour, and of the time the other guests took to boot.
        assert!(samples.iter().all(|sample| (180_000..183_000).contains(&sample.cpu_ms)), "{samples:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_takes_the_time_its_bytes_would() {
    // 1024 MiB at 100 MiB/s with 50 MiB/s dirtied: rounds of 10.24, 5.12, .. s until the rest fits into the downtime;
    // at 200 MiB/s dirtied it never does, and the guest stays.
    for (dirty_mib_s, expected) in [(50, true), (200, false)] {
        let folder = tempfile::tempdir().unwrap();
        let open = async |host| SimDriver::open(SimConfig::new(folder.path().join(host))).await.unwrap();
        let (source, destination) = (open("a").await, open("b").await);
        let prepared = |incarnation, mode| {
            let sim = SimSpec { dirty_mib_s, ..SimSpec::default() };
            let mut launch = Launch { mode, ..launch(numbered(1), Incarnation(incarnation), sim) };
            launch.spec.mem_mib = 1024;
            launch
        };
        source.start(prepared(1, LaunchMode::Boot)).await.unwrap();
        let limits = MigrationLimits { downtime_ms: 300, bandwidth_mib_s: 100, timeout_s: 60 };
        let mode = LaunchMode::Incoming { listen: String::new(), limits: limits.clone() };
        let endpoint = destination.start(prepared(2, mode)).await.unwrap().endpoint.unwrap();
        let began = tokio::time::Instant::now();
        let mut notices = source.notices();
        source.migrate_out(numbered(1), endpoint, limits).await.unwrap();
        let stopped = loop {
            match notices.recv().await.unwrap().guest.send {
                Some(Send::AtSwitchover(progress)) => break Some(progress),
                Some(Send::Cancelled(why)) => {
                    assert!(why.contains("given up after 60 s"), "{why}");
                    break None;
                }
                _ => {}
            }
        };
        let took = began.elapsed().as_secs();
        let Some(progress) = stopped else {
            assert!(!expected && (60..=62).contains(&took), "{took}");
            continue;
        };
        // 10.24 + 5.12 + 2.56 + 1.28 + 0.64 + 0.32 s; then 16 MiB are left, 160 ms.
        assert!(expected && (20..=21).contains(&took), "{took}");
        assert_eq!(progress.remaining_bytes >> 20, 16);
        source.migrate_switch(numbered(1)).await.unwrap();
        let figures = async {
            loop {
                if let Some(Send::Sent(figures)) = notices.recv().await.unwrap().guest.send {
                    break figures;
                }
            }
        };
        let figures = tokio::time::timeout(Duration::from_secs(60), figures).await.unwrap();
        assert!((160..=165).contains(&figures.downtime_ms), "{figures:?}");
        assert_eq!(figures.transferred_bytes >> 20, 1024 + 512 + 256 + 128 + 64 + 32 + 16);
    }
}

#[tokio::test]
async fn faults_are_the_same_each_time() {
    // The same seed fails the same verbs in the same order; no chance of faults, no faults.
    let story = async |fault_ppm, seed| {
        let folder = tempfile::tempdir().unwrap();
        let driver = SimDriver::open(SimConfig::new(folder.path())).await.unwrap();
        let vm = numbered(1);
        let sim = SimSpec { fault_ppm, seed, boot_ms: 0, ..SimSpec::default() };
        while driver.start(launch(vm, Incarnation(1), sim.clone())).await.is_err() {}
        let mut story = Vec::new();
        for _ in 0..50 {
            story.push(driver.pause(vm).await.is_ok());
            story.push(driver.resume(vm).await.is_ok());
        }
        story
    };
    let first = story(300_000, 7).await;
    let failed = first.iter().filter(|ok| !**ok).count();
    assert!((15..45).contains(&failed), "{failed} of 100 failed, 30 expected");
    assert_eq!(first, story(300_000, 7).await);
    assert_ne!(first, story(300_000, 8).await);
    assert!(story(0, 7).await.iter().all(|ok| *ok));
}

#[tokio::test]
async fn the_console_greets_echoes_and_commands() {
    // What is said on the console comes back and is logged; `poweroff` there ends the guest, as a test of real
    // processes needs it.
    let folder = tempfile::tempdir().unwrap();
    let driver = SimDriver::open(SimConfig::new(folder.path())).await.unwrap();
    let vm = numbered(1);
    driver.start(launch(vm, Incarnation(1), SimSpec::default())).await.unwrap();
    let (socket, log) = driver.console(vm).unwrap();
    assert_eq!(driver.console(vm).unwrap().0, socket);
    let mut lines = BufReader::new(UnixStream::connect(socket).await.unwrap());
    let mut said = async |line: &str| {
        lines.get_mut().write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut reply = String::new();
        lines.read_line(&mut reply).await.unwrap();
        reply
    };
    assert!(said("hello").await.contains("simulated guest"));
    assert_eq!(said("status").await.trim(), "hello");
    let mut notices = driver.notices();
    let content = driver.memory(vm).unwrap().content;
    assert!(said("poweroff").await.contains(&format!("{content:016x}")));
    let ended = notices.recv().await.unwrap().guest.run;
    assert!(matches!(ended, Run::Ended(EndCause::GuestShutdown, _)), "{ended:?}");
    let kept = std::fs::read_to_string(log).unwrap();
    assert!(kept.contains("boot 1 of") && kept.contains("hello") && kept.contains("poweroff"), "{kept}");
}

#[tokio::test]
async fn a_folder_has_one_driver_and_records_it_can_read() {
    // A second driver is kept out, a half-written record is never believed, and one of another version stops the driver
    // instead of losing the guest.
    let folder = tempfile::tempdir().unwrap();
    let driver = SimDriver::open(SimConfig::new(folder.path())).await.unwrap();
    let second = SimDriver::open(SimConfig::new(folder.path())).await.unwrap_err();
    assert_eq!(second.kind, DriverErrorKind::Busy);
    let vm = numbered(1);
    driver.start(launch(vm, Incarnation(1), SimSpec::default())).await.unwrap();
    drop(driver);
    std::fs::write(folder.path().join(format!("{vm}.tmp")), "{\"version\":").unwrap();
    let driver = SimDriver::open(SimConfig::new(folder.path())).await.unwrap();
    assert_eq!(driver.list().await.unwrap()[0].run, Run::Running);
    drop(driver);
    let file = folder.path().join(format!("{vm}.guest"));
    let newer = std::fs::read_to_string(&file).unwrap().replace("\"version\":1", "\"version\":2");
    std::fs::write(&file, newer).unwrap();
    let refused = SimDriver::open(SimConfig::new(folder.path())).await.unwrap_err().to_string();
    assert!(refused.contains(&vm.to_string()) && refused.contains("version 2"), "{refused}");
}
