//! Migrations that are hit by crashes and faults, settled as the protocol settles them: exactly one side runs the guest.

use std::path::Path;
use std::time::Duration;

use dunlin_model::migration::MigrationLimits;
use dunlin_model::vm::SimSpec;
use dunlin_model::{Incarnation, VmId};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::tests::launch;
use super::{SimConfig, SimDriver};
use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::{Guest, Hypervisor, Launch, LaunchMode, Run, Send};

const FIRST: Incarnation = Incarnation(1);

fn vm() -> VmId {
    "00000000-0000-4000-8000-00000000000a".parse().unwrap()
}

async fn guest(driver: &SimDriver) -> Option<Guest> {
    driver.list().await.unwrap().pop()
}

/// Repeats a verb while it fails for a moment, as an agent does.
async fn persist<T>(mut verb: impl AsyncFnMut() -> Result<T, DriverError>) -> Result<T, DriverError> {
    for _ in 0..100 {
        match verb().await {
            Err(error) if error.kind == DriverErrorKind::Transient => {}
            done => return done,
        }
    }
    panic!("a hundred faults in a row");
}

/// Two hosts, of which each can crash: its agent is killed and a new one takes over.
struct Pair {
    folder: tempfile::TempDir,
    source: Option<SimDriver>,
    destination: Option<SimDriver>,
    handed_over: bool,
}

impl Pair {
    async fn new(sim: SimSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Some(open(&folder.path().join("a")).await);
        let destination = Some(open(&folder.path().join("b")).await);
        let pair = Self { folder, source, destination, handed_over: false };
        persist(async || pair.source().start(launch(vm(), FIRST, sim.clone())).await).await.unwrap();
        let limits = MigrationLimits::default();
        let mode = LaunchMode::Incoming { listen: String::new(), limits: limits.clone() };
        let incoming = Launch { mode, ..launch(vm(), FIRST.next(), sim) };
        let waiting = persist(async || pair.destination().start(incoming.clone()).await).await.unwrap();
        let endpoint = waiting.endpoint.unwrap();
        let out = async || pair.source().migrate_out(vm(), endpoint.clone(), limits.clone()).await;
        persist(out).await.unwrap();
        pair
    }

    fn source(&self) -> &SimDriver {
        self.source.as_ref().unwrap()
    }

    fn destination(&self) -> &SimDriver {
        self.destination.as_ref().unwrap()
    }

    async fn crash_source(&mut self) {
        self.source = None;
        self.source = Some(open(&self.folder.path().join("a")).await);
    }

    /// The agent is killed between the last byte it sent and writing that down.
    async fn crash_source_before_it_knows(&mut self) {
        self.source = None;
        let file = self.folder.path().join("a").join(format!("{}.guest", vm()));
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert!(record["sending"]["stage"]["Sent"].is_object());
        record["sending"]["stage"] = "Switching".into();
        std::fs::write(&file, record.to_string()).unwrap();
        self.source = Some(open(&self.folder.path().join("a")).await);
    }

    async fn crash_destination(&mut self) {
        self.destination = None;
        self.destination = Some(open(&self.folder.path().join("b")).await);
    }

    async fn at_switchover(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(guest(self.source()).await.unwrap().send, Some(Send::AtSwitchover(_))) {
            assert!(Instant::now() < deadline, "{:?}", guest(self.source()).await);
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn hand_over(&mut self) {
        self.handed_over = true;
        persist(async || self.source().migrate_switch(vm()).await).await.unwrap();
    }

    /// What leader and agents do until the guest runs in one place; never does it run in two. Returns where.
    async fn settle(&mut self) -> &SimDriver {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let source = guest(self.source()).await.unwrap();
            let destination = guest(self.destination()).await.unwrap();
            assert!(Instant::now() < deadline, "{source:?}\n{destination:?}");
            let running = |guest: &Guest| guest.run == Run::Running;
            assert!(!(running(&source) && running(&destination)), "{source:?}\n{destination:?}");
            match (&source.send, &destination.run) {
                _ if self.handed_over && running(&destination) => return self.destination(),
                _ if self.handed_over && running(&source) && source.incarnation > FIRST => {
                    return self.source();
                }
                (_, Run::Arrived) if self.handed_over => {
                    persist(async || self.destination().resume(vm()).await).await.unwrap();
                }
                // Nothing of it runs there and nothing ever did; the source has it whole.
                (_, Run::Ended(..)) if self.handed_over && !destination.ever_ran => {
                    let back = Incarnation(3);
                    persist(async || self.source().adopt_incarnation(vm(), back).await).await.unwrap();
                    persist(async || self.source().resume(vm()).await).await.unwrap();
                }
                (Some(Send::Cancelled(_)), _) if !self.handed_over => {
                    assert!(running(&source), "cancelled, and {source:?}");
                    return self.source();
                }
                (Some(Send::AtSwitchover(_)), _) => self.hand_over().await,
                _ => {}
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn open(dir: &Path) -> SimDriver {
    SimDriver::open(SimConfig { bandwidth_mib_s: 1024, ..SimConfig::new(dir) }).await.unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Copying,
    AtSwitchover,
    /// The hand-over is committed, the source has not heard of it.
    HandedOver,
    /// The source has written down that it switches, and not one byte is out.
    ToldToSwitch,
    Sent,
    Arrived,
    Resumed,
}

#[tokio::test]
async fn a_crash_at_any_moment_leaves_the_same_guest_running_once() {
    // Whichever agent is killed at whichever moment of a migration, the same guest then runs in exactly one place.
    use Moment::{Arrived, AtSwitchover, Copying, HandedOver, Resumed, Sent, ToldToSwitch};
    for moment in [Copying, AtSwitchover, HandedOver, ToldToSwitch, Sent, Arrived, Resumed] {
        for (source_dies, destination_dies) in [(true, false), (false, true), (true, true)] {
            let mut pair = Pair::new(SimSpec { boot_ms: 0, ..SimSpec::default() }).await;
            let content = pair.source().memory(vm()).unwrap().content;
            if moment != Copying {
                pair.at_switchover().await;
            }
            if moment == HandedOver {
                pair.handed_over = true;
            }
            if matches!(moment, ToldToSwitch | Sent | Arrived | Resumed) {
                pair.hand_over().await;
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while match moment {
                Sent => !matches!(guest(pair.source()).await.unwrap().send, Some(Send::Sent(_))),
                Arrived | Resumed => guest(pair.destination()).await.unwrap().run != Run::Arrived,
                _ => false,
            } {
                assert!(Instant::now() < deadline);
                sleep(Duration::from_millis(1)).await;
            }
            if moment == Resumed {
                pair.destination().resume(vm()).await.unwrap();
            }
            if source_dies {
                pair.crash_source().await;
            }
            if destination_dies {
                pair.crash_destination().await;
            }
            let story = format!("{moment:?}, source dies {source_dies}, destination dies {destination_dies}");
            let memory = pair.settle().await.memory(vm()).unwrap();
            assert_eq!((memory.content, memory.boots), (content, 1), "{story}");
        }
    }
}

#[tokio::test]
async fn a_source_that_may_have_sent_all_never_runs_it() {
    // Killed after the last byte is out and before that is written down, the source does not claim the guest, and says
    // so while the destination has not resumed it yet.
    let mut pair = Pair::new(SimSpec { boot_ms: 0, ..SimSpec::default() }).await;
    pair.at_switchover().await;
    pair.hand_over().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while guest(pair.destination()).await.unwrap().run != Run::Arrived {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(1)).await;
    }
    pair.crash_source_before_it_knows().await;
    let source = guest(pair.source()).await.unwrap();
    assert!(source.run == Run::Outgoing && matches!(source.send, Some(Send::Sent(_))), "{source:?}");
    assert_eq!(pair.source().resume(vm()).await.unwrap_err().kind, DriverErrorKind::Refused);
    pair.settle().await;
    assert_eq!(guest(pair.destination()).await.unwrap().run, Run::Running);
}

#[tokio::test]
async fn faults_at_every_verb_leave_the_same_guest_running_once() {
    // With a fifth of all verbs and stages failing, each migration still ends with the same guest in one place, and all
    // three ends of a migration come up: moved, stayed, handed back.
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let sim = SimSpec { boot_ms: 0, fault_ppm: 200_000, seed, ..SimSpec::default() };
        let mut pair = Pair::new(sim).await;
        let content = pair.source().memory(vm()).unwrap().content;
        let memory = pair.settle().await.memory(vm()).unwrap();
        assert_eq!((memory.content, memory.boots), (content, 1), "seed {seed}");
        ends.insert((pair.handed_over, guest(pair.source()).await.unwrap().run == Run::Running));
    }
    assert_eq!(ends, [(false, true), (true, false), (true, true)].into());
}

#[tokio::test]
async fn a_destination_takes_only_its_own_guest() {
    // Garbage, an oversized frame, a hello of another guest or version and a silent caller do not keep the source out.
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (open(&folder.path().join("a")).await, open(&folder.path().join("b")).await);
    source.start(launch(vm(), FIRST, SimSpec::default())).await.unwrap();
    let limits = MigrationLimits::default();
    let mode = LaunchMode::Incoming { listen: "127.0.0.1".to_owned(), limits: limits.clone() };
    let waiting =
        destination.start(Launch { mode, ..launch(vm(), FIRST.next(), SimSpec::default()) }).await.unwrap();
    let endpoint = waiting.endpoint.unwrap();
    let address = endpoint.memory.strip_prefix("tcp:").unwrap();
    let hello = |version: u32, vm: &str, incarnation: u64| {
        let body = format!(
            r#"{{"Hello":{{"version":{version},"vm":"{vm}","incarnation":{incarnation},"mem_mib":64}}}}"#
        );
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length[..], body.as_bytes()].concat()
    };
    let other = "00000000-0000-4000-8000-00000000000b";
    let mine = vm().to_string();
    let callers = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        hello(2, &mine, 1),
        hello(1, other, 1),
        hello(1, &mine, 2),
        Vec::new(),
    ];
    for bytes in callers {
        let mut caller = tokio::net::TcpStream::connect(address).await.unwrap();
        caller.write_all(&bytes).await.unwrap();
    }
    source.migrate_out(vm(), endpoint, limits).await.unwrap();
    let mut pair = Pair { folder, source: Some(source), destination: Some(destination), handed_over: false };
    pair.settle().await;
    assert_eq!(guest(pair.destination()).await.unwrap().run, Run::Running);
}
