//! The balancer's step over a small fleet: three guests that want a CPU each, on one of three hosts of two CPUs.

use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use dunlin_model::cluster::{BalanceMode, BalanceSpec, ClusterSpec};
use dunlin_model::image::{ImageFormat, ImageSpec};
use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationOutcome};
use dunlin_model::observed::Sample;
use dunlin_model::vm::{DiskSource, Power, VmSpec};
use dunlin_model::{ClusterId, HostId, ImageId, Labels, MigrationId, Role, Timestamp, VmId};
use dunlin_state::{Command, MigrationEvent, Seen, Stamp, State, Write, apply, invariant};
use uuid::Uuid;

use super::{Observed, balance};
use crate::advise::{Aim, Scene, balance_plan};

const START_MS: u64 = 1_800_000_000_000;

struct Fleet {
    state: State,
    observed: Observed,
    index: u64,
    now: u64,
}

fn host(number: u64) -> HostId {
    HostId(Uuid::from_u64_pair(1, number))
}

fn vm(number: u64) -> VmId {
    VmId(Uuid::from_u64_pair(2, number))
}

impl Fleet {
    fn new(mode: BalanceMode) -> Self {
        Self::seated(mode, |_| 0)
    }

    /// With each guest on a host of its own choice.
    fn seated(mode: BalanceMode, on: fn(u64) -> u64) -> Self {
        let observed = Observed::new(Timestamp(START_MS));
        let mut fleet = Self { state: State::new(), observed, index: 0, now: START_MS };
        let uid = ClusterId(Uuid::from_u128(9));
        fleet.ok(&Command::FoundCluster {
            uid,
            name: "c".parse().unwrap(),
            controllers: Vec::new(),
            level: dunlin_model::Level::NEWEST,
        });
        for number in 0..3 {
            fleet.host(number);
        }
        fleet.mode(mode);
        for number in 0..3 {
            fleet.guest(number, on(number));
        }
        fleet
    }

    fn ok(&mut self, command: &Command) {
        self.index += 1;
        let stamp = Stamp { index: self.index, time: Timestamp(self.now) };
        apply(&mut self.state, &stamp, command).unwrap_or_else(|refused| panic!("{refused}: {command:?}"));
        invariant::check(&self.state).unwrap();
    }

    fn write(&mut self, write: Write) {
        self.ok(&Command::Write { key: format!("k{}", self.index), write });
    }

    fn host(&mut self, number: u64) {
        let token = format!("t{number}");
        self.write(Write::CreateToken {
            sha256: token.clone(),
            role: Role::Host,
            expires: Timestamp(self.now + 1_000),
        });
        let (name, labels) = (format!("h{number}").parse().unwrap(), Labels::new());
        self.ok(&Command::JoinHost {
            token_sha256: token,
            uid: host(number),
            name,
            labels,
            ask: crate::testing::ask("key"),
        });
        let driver = DriverCapabilities {
            name: DriverName::Qemu,
            accels: vec![AccelProbe { accel: Accel::Tcg, usable: true, evidence: String::new() }],
            powers: [DriverPower::Migrate].into(),
            ..DriverCapabilities::default()
        };
        let capabilities = HostCapabilities {
            cpus: 2,
            mem_mib: 4_096,
            drivers: vec![driver],
            ..HostCapabilities::default()
        };
        let agent_version = "0.1".to_owned();
        self.ok(&Command::OpenSession { host: host(number), session: 1, agent_version, capabilities });
    }

    fn mode(&mut self, mode: BalanceMode) {
        let revision = self.state.cluster().unwrap().metadata.revision;
        let spec = ClusterSpec { balance: BalanceSpec { mode, level: 5 }, ..ClusterSpec::default() };
        self.write(Write::UpdateCluster { revision, labels: Labels::new(), spec });
    }

    fn guest(&mut self, number: u64, on: u64) {
        let spec = VmSpec { power: Power::Running, ..VmSpec::new(256) };
        let name = format!("v{number}").parse().unwrap();
        let (uid, labels) = (vm(number), Labels::new());
        self.write(Write::CreateVm { uid, own_uid: false, name, labels, spec });
        let (generation, incarnation) = self.card(number);
        self.ok(&Command::BindVm { vm: vm(number), generation, incarnation, host: host(on), why: None });
        let (_, incarnation) = self.card(number);
        let seen = Seen::Running { pid: None, vnc: None };
        self.ok(&Command::Observe { vm: vm(number), host: host(on), incarnation, seen });
    }

    fn card(&self, number: u64) -> (dunlin_model::Generation, dunlin_model::Incarnation) {
        let vm = self.state.vm(vm(number)).unwrap();
        (vm.metadata.generation, vm.status.incarnation)
    }

    /// Every guest is measured where it is: it has run all the time for `seconds`.
    fn run(&mut self, seconds: u64) {
        self.run_at(seconds, 100);
    }

    /// The same for that part of the time, percent.
    fn run_at(&mut self, seconds: u64, percent: u64) {
        for _ in 0..seconds / 5 {
            self.now += 5_000;
            let at_ms = self.now - START_MS;
            for number in 0..3 {
                let at = self.state.vm(vm(number)).unwrap().status.host.unwrap();
                let cpu_ms = at_ms * percent / 100;
                let taken = Sample { vm: vm(number), cpu_ms, wait_ms: 0, rss_mib: 200, dirty_mib_s: None };
                self.observed.measured(at, at_ms, &[(taken, 1_000)], Timestamp(self.now));
            }
        }
    }

    fn look(&self) -> Vec<Command> {
        balance(&self.state, &self.observed, Timestamp(self.now))
    }

    /// Looks, and commits all that is proposed.
    fn settle(&mut self) -> usize {
        let commands = self.look();
        let count = commands.len();
        commands.iter().for_each(|command| self.ok(command));
        count
    }

    /// Every migration under way goes through.
    fn carry_through(&mut self) {
        let all: Vec<MigrationId> = self.state.active_migrations().map(|m| m.metadata.uid).collect();
        for migration in all {
            let known = self.state.migration(migration).unwrap();
            let vm = self.state.vm(known.spec.vm).unwrap();
            let to = self.state.host_named(known.spec.to.as_ref().unwrap()).unwrap().metadata.uid;
            let (vm_generation, vm_incarnation) = (vm.metadata.generation, vm.status.incarnation);
            let figures = MigrationFigures::default();
            for event in [
                MigrationEvent::Reserve {
                    host: to,
                    vm_generation,
                    vm_incarnation,
                    why: None,
                    disk_bytes: Default::default(),
                },
                MigrationEvent::Ready { endpoint: Endpoint::default() },
                MigrationEvent::Started,
                MigrationEvent::HandOver { figures },
                MigrationEvent::Arrived { figures, outcome: MigrationOutcome::Moved },
            ] {
                self.ok(&Command::Migrate { migration, event });
            }
        }
    }
}

/// Nothing is moved before anything is measured, nor while balancing is off.
#[test]
fn nothing_moves_unmeasured_or_unasked() {
    let fleet = Fleet::new(BalanceMode::Auto);
    assert_eq!(fleet.look(), []);
    let mut fleet = Fleet::new(BalanceMode::Off);
    fleet.run(60);
    assert_eq!(fleet.look(), []);
}

/// Recommendations stand still while the fleet does; a dismissed one is not made again; those that nobody wants any more
/// expire.
#[test]
fn recommendations_stand_and_expire() {
    let mut fleet = Fleet::new(BalanceMode::Recommend);
    fleet.run(60);
    assert_eq!(fleet.settle(), 2, "one guest for each of the empty hosts");
    fleet.run(10);
    assert_eq!(fleet.look(), [], "nothing has changed");
    let open: Vec<_> = fleet.state.open_recommendations().cloned().collect();
    for found in &open {
        let grounds = &found.spec.grounds;
        assert!(grounds.predicted.pain_after_milli < grounds.predicted.pain_before_milli, "{grounds:?}");
        assert!(grounds.reason.contains("CPUs of demand"), "{}", grounds.reason);
    }
    let decide = |approve, number: usize| Write::DecideRecommendation {
        uid: open[number].metadata.uid,
        approve,
        migration: MigrationId(Uuid::from_u128(77)),
        name: "m".parse().unwrap(),
    };
    fleet.write(decide(false, 0));
    fleet.run(10);
    fleet.settle();
    let same = |found: &dunlin_model::recommendation::Recommendation| {
        (found.spec.vm, found.spec.to) == (open[0].spec.vm, open[0].spec.to)
    };
    assert!(!fleet.state.open_recommendations().any(same), "somebody said no to it");
    fleet.write(decide(true, 1));
    fleet.carry_through();
    fleet.mode(BalanceMode::Off);
    fleet.settle();
    assert_eq!(fleet.state.open_recommendations().count(), 0);
}

/// Moves are made wave by wave, each VM once; after the time they have to work, what they brought is written down, by any
/// leader; and then the fleet is left alone.
#[test]
fn moves_are_made_once_and_judged() {
    let mut fleet = Fleet::new(BalanceMode::Auto);
    fleet.run(60);
    for _ in 0..4 {
        fleet.settle();
        assert_eq!(fleet.look(), [], "what is under way is waited for");
        fleet.carry_through();
        fleet.run(15);
    }
    let hosts: std::collections::BTreeSet<_> = fleet.state.vms().map(|vm| vm.status.host).collect();
    assert_eq!((hosts.len(), fleet.state.migrations().count()), (3, 2), "one on each, by two moves");
    fleet.run(660);
    // Another leader: it has measured nothing but what came since.
    fleet.observed = Observed::new(Timestamp(fleet.now));
    fleet.run(30);
    assert_eq!(fleet.settle(), 2, "two effects");
    for migration in fleet.state.migrations() {
        let effect = migration.status.effect.expect("it was judged");
        assert!(effect.pain_before_milli > effect.pain_after_milli, "{effect:?}");
        assert!(effect.from_percent_before > effect.from_percent_after, "{effect:?}");
    }
    assert_eq!(fleet.look(), [], "and left alone");
}

/// Idle guests on three hosts are put on one, each by one move, and the hosts that are empty then are named.
#[test]
fn idle_guests_free_hosts() {
    let mut fleet = Fleet::seated(BalanceMode::Off, |number| number);
    fleet.run_at(60, 10);
    let plan = |fleet: &Fleet| {
        let scene = Scene { state: &fleet.state, observed: &fleet.observed, now: Timestamp(fleet.now) };
        balance_plan(&scene, Aim { level: None, consolidate: true })
    };
    let (told, moves) = plan(&fleet);
    assert_eq!((told.emptied.len(), moves.len()), (2, 2), "{}", told.verdict);
    assert!(told.verdict.contains("2 hosts can be switched off"), "{}", told.verdict);
    assert!(told.moves.iter().all(|step| step.to == told.moves[0].to), "{:?}", told.moves);
    for found in &moves {
        let (key, write) = super::balance::migration(&fleet.state, found);
        fleet.ok(&Command::Write { key, write });
    }
    fleet.carry_through();
    fleet.run_at(60, 10);
    let (after, moves) = plan(&fleet);
    assert_eq!((after.emptied.len(), moves.len()), (2, 0), "{}", after.verdict);
    for name in &after.emptied {
        let host = fleet.state.host_named(name).unwrap().metadata.uid;
        assert_eq!(fleet.state.host_vms(host).count(), 0, "{name}");
    }
}

/// Of hosts that are as good as each other, the one that has the image already gets the VM.
#[test]
fn an_image_that_is_there_decides_between_equals() {
    let mut fleet = Fleet::seated(BalanceMode::Off, |number| number);
    let spec = ImageSpec {
        format: ImageFormat::Raw,
        sha256: "ab".repeat(32),
        size_bytes: 512,
        source: "debian.raw".to_owned(),
    };
    let (uid, labels) = (ImageId(Uuid::from_u128(7)), Labels::new());
    fleet.write(Write::CreateImage { uid, name: "debian".parse().unwrap(), labels: labels.clone(), spec });
    let image = DiskSource::Image("debian".parse().unwrap());
    let disk = serde_json::from_value(serde_json::json!({ "name": "vda", "source": image })).unwrap();
    let spec = VmSpec { disks: vec![disk], ..VmSpec::new(256) };
    fleet.write(Write::CreateVm { uid: vm(9), own_uid: false, name: "v9".parse().unwrap(), labels, spec });
    let chosen = |fleet: &Fleet| {
        let mut snapshot = super::mirror::of(&fleet.state, &fleet.observed, Timestamp(fleet.now));
        let request = snapshot.start(fleet.state.vm(vm(9)).unwrap());
        let decision = dunlin_scheduler::place(&snapshot, &request);
        decision.host().unwrap()
    };
    assert_eq!(chosen(&fleet), host(0), "the first of equals");
    let known = fleet.state.host(host(2)).unwrap().status.capabilities.clone();
    let capabilities = HostCapabilities { images: ["ab".repeat(32)].into(), ..known };
    fleet.ok(&Command::SetCapabilities { host: host(2), session: 1, capabilities });
    assert_eq!(chosen(&fleet), host(2));
}
