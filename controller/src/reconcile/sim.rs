//! The protocol against itself: state, step and desired sets on one side, simple hosts on the other, from one seed.
//!
//! Phase 1 creates, moves, stops, deletes, and breaks things: messages are late or lost with their session, agents and
//! hosts die, processes die, leaders change and half of what the old one proposed still lands. Phase 2 breaks nothing
//! more, and everything must come to rest as its spec says.

mod agent;
mod away;
mod chaos;
mod leave;
mod wire;

use std::collections::{BTreeMap, VecDeque};

use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use dunlin_model::desired::DesiredSet;
use dunlin_model::host::HostPhase;
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{ClusterId, HostId, Incarnation, Labels, Role, Timestamp, VmId};
use dunlin_state::{Command, Stamp, State, Write, apply, invariant};
use uuid::Uuid;

use self::agent::Host;
use super::{Observed, Report, desired, step};

/// Seeds of an ordinary run: some ten seconds unoptimised. `DUNLIN_SIM_SEEDS` asks for more, `DUNLIN_SIM_SEED` says where to
/// begin: the seed of a failure alone replays it.
const SEEDS: u64 = 120;
/// One tick of phase 1, ms.
const TICK_MS: u64 = 50;
/// Ticks with faults.
const CHAOS_TICKS: u32 = 500;
/// One tick of phase 2, ms: its bounds in seconds pass quickly.
const CALM_TICK_MS: u64 = 250;
/// Ticks within which everything must be at rest: three minutes.
const CALM_TICKS: u32 = 720;
/// Lines of what happened before a failure.
const TRACE_MAX: usize = 400;
/// Ticks without a command, a set or a report that count as rest.
const REST_TICKS: u32 = 30;

/// splitmix64.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn uuid(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.next(), self.next())
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let index = usize::try_from(self.below(from.len() as u64)).unwrap();
        from.get(index).copied()
    }
}

/// Messages of one session, in order, each with the time it arrives at.
#[derive(Debug, Default)]
struct Link {
    down: VecDeque<(u64, DesiredSet)>,
    up: VecDeque<(u64, Report)>,
    sent: Option<DesiredSet>,
}

/// Something that happened, written out only when the run fails.
#[derive(Debug)]
#[allow(dead_code)] // Read through Debug.
enum Line {
    Command(Box<Command>, Result<u64, String>),
    Fault(&'static str, usize),
    Guest(VmId, dunlin_model::observed::EndCause),
}

struct World {
    seed: u64,
    rng: Rng,
    now: u64,
    state: State,
    index: u64,
    /// Log index up to which the invariants were checked.
    checked: u64,
    observed: Observed,
    hosts: Vec<Host>,
    links: BTreeMap<HostId, Link>,
    /// Commands proposed and not yet committed.
    proposed: VecDeque<Command>,
    /// Every process ever begun: no two may share a number.
    begun: BTreeMap<(VmId, Incarnation), HostId>,
    incarnations: BTreeMap<VmId, Incarnation>,
    trace: VecDeque<(u64, Line)>,
    /// Ticks since anything happened.
    quiet: u32,
    /// May things still break?
    breaks: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let hosts: Vec<Host> = (0..3).map(|_| Host::new(HostId(rng.uuid()))).collect();
        let now = 1_000_000;
        let mut world = Self {
            seed,
            rng,
            now,
            state: State::new(),
            index: 0,
            checked: 0,
            observed: Observed::new(Timestamp(now)),
            hosts,
            links: BTreeMap::new(),
            proposed: VecDeque::new(),
            begun: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            trace: VecDeque::new(),
            quiet: 0,
            breaks: true,
        };
        let uid = ClusterId(world.rng.uuid());
        world.must(&Command::FoundCluster {
            uid,
            name: "sim".parse().unwrap(),
            controllers: Vec::new(),
            level: dunlin_model::Level::NEWEST,
        });
        for index in 0..world.hosts.len() {
            let expires = Timestamp(now + 1_000_000);
            let write = Write::CreateToken { sha256: format!("token{index}"), role: Role::Host, expires };
            world.must(&Command::Write { key: format!("token{index}"), write });
            world.must(&Command::JoinHost {
                token_sha256: format!("token{index}"),
                uid: world.hosts[index].id,
                name: format!("h{index}").parse().unwrap(),
                labels: Labels::new(),
                ask: crate::testing::ask("key"),
            });
        }
        world
    }

    fn note(&mut self, line: Line) {
        if self.trace.len() > TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back((self.now, line));
    }

    fn fail(&self, why: &str) -> ! {
        for (at, line) in &self.trace {
            println!("{at} {line:?}");
        }
        for vm in self.state.vms() {
            println!("{:?} {:?}", vm.metadata.name, vm.status);
        }
        for migration in self.state.active_migrations() {
            println!("{:?} {:?}", migration.metadata.name, migration.status);
        }
        for host in &self.hosts {
            println!("{:?} up {} {} session {:?}", host.id, host.powered, host.agent_up, host.session);
            println!("  {:?}\n  {:?}", host.processes, host.disk);
            println!(
                "  set {:?}",
                host.set.as_ref().map(|set| (
                    set.generation,
                    set.assignments.iter().map(|a| (a.vm, a.incarnation, &a.role)).collect::<Vec<_>>()
                ))
            );
            println!(
                "  view {:?}",
                self.observed.host(host.id).map(|view| (view.session, view.complete, view.taken, &view.vms))
            );
        }
        panic!("seed {}: {why}", self.seed);
    }

    fn must(&mut self, command: &Command) {
        let done = self.commit(command);
        assert!(done, "seed {}: {command:?} was refused", self.seed);
    }

    fn commit(&mut self, command: &Command) -> bool {
        self.index += 1;
        let stamp = Stamp { index: self.index, time: Timestamp(self.now) };
        let result = apply(&mut self.state, &stamp, command);
        let done = result.is_ok();
        let told = result.map(|outcome| outcome.revision.0).map_err(|refused| refused.message);
        self.note(Line::Command(Box::new(command.clone()), told));
        done
    }

    /// One round of the leader, the hosts and the wires between.
    fn tick(&mut self, tick_ms: u64) {
        self.now += tick_ms;
        self.quiet += 1;
        self.connect();
        self.lead();
        self.carry();
        self.hypervisors();
        for index in 0..self.hosts.len() {
            let host = &mut self.hosts[index];
            if host.agent_up {
                host.converge(&mut self.rng, self.now);
            }
        }
        self.oracle();
    }

    /// The leader's loop: what it proposed earlier is committed now, what it sees leads to new proposals.
    fn lead(&mut self) {
        let landed = self.rng.below(self.proposed.len() as u64 + 1);
        for _ in 0..landed.max(u64::from(!self.proposed.is_empty())) {
            let Some(command) = self.proposed.pop_front() else { break };
            self.commit(&command);
            self.quiet = 0;
        }
        if self.proposed.is_empty() {
            self.proposed.extend(step(&self.state, &self.observed, Timestamp(self.now)));
        }
        for host in &self.hosts {
            let id = host.id;
            let Some(new) = desired::desired_set(&self.state, &self.observed, id, Timestamp(self.now)) else {
                continue;
            };
            let Some(link) = self.links.get_mut(&id) else { continue };
            if link.sent.as_ref().is_none_or(|sent| desired::is_news(&self.state, sent, &new)) {
                let after = link.down.back().map_or(self.now, |(at, _)| *at);
                link.down.push_back((after.max(self.now) + self.rng.below(150), new.clone()));
                link.sent = Some(new);
                self.quiet = 0;
            }
        }
    }

    fn oracle(&mut self) {
        if self.index != self.checked {
            self.checked = self.index;
            invariant::check(&self.state).unwrap_or_else(|broken| self.fail(&broken));
        }
        let mut running: BTreeMap<VmId, HostId> = BTreeMap::new();
        for host in &self.hosts {
            for (vm, guest) in &host.processes {
                if guest.executes()
                    && let Some(other) = running.insert(*vm, host.id)
                {
                    self.fail(&format!("{vm} runs on {other} and on {}", host.id));
                }
                let first = self.begun.entry((*vm, guest.incarnation)).or_insert(host.id);
                if *first != host.id {
                    let first = *first;
                    self.fail(&format!(
                        "{vm} incarnation {} was on {first} and is on {}",
                        guest.incarnation, host.id
                    ));
                }
            }
        }
        for vm in self.state.vms() {
            let last = self.incarnations.insert(vm.metadata.uid, vm.status.incarnation).unwrap_or_default();
            if vm.status.incarnation < last {
                self.fail(&format!("the incarnation of {} went back", vm.metadata.name));
            }
        }
    }

    /// Phase 2: nothing breaks any more, and everything must come to rest.
    fn settle(&mut self) {
        self.calm();
        for _ in 0..CALM_TICKS {
            // What is under way may be waiting for one of its bounds.
            let idle =
                self.state.active_migrations().next().is_none() && self.state.active_tasks().next().is_none();
            if idle && self.quiet > REST_TICKS && self.proposed.is_empty() {
                break;
            }
            self.tick(CALM_TICK_MS);
        }
        if self.quiet <= REST_TICKS {
            self.fail("it does not come to rest");
        }
        self.at_rest();
    }

    fn at_rest(&self) {
        let proposed = step(&self.state, &self.observed, Timestamp(self.now));
        if !proposed.is_empty() {
            self.fail(&format!("at rest, and still {proposed:?}"));
        }
        if let Some(migration) = self.state.active_migrations().next() {
            self.fail(&format!("migration {} never ends", migration.metadata.name));
        }
        if let Some(task) = self.state.active_tasks().next() {
            self.fail(&format!("task {} never ends", task.metadata.name));
        }
        if self.state.hosts().any(|host| host.status.phase != HostPhase::Up) {
            self.fail("a host is not up");
        }
        self.state.vms().for_each(|vm| self.vm_at_rest(vm));
        for host in &self.hosts {
            for vm in host.disk.keys().chain(host.processes.keys()) {
                let keeps = self.state.vm(*vm).is_some_and(|vm| {
                    let status = &vm.status;
                    let saved = status.saved.as_ref().map(|saved| saved.host);
                    let last = status.last_host.filter(|_| status.host.is_none());
                    [status.host, status.volumes_on, saved, last].contains(&Some(host.id))
                });
                if !keeps {
                    self.fail(&format!("{} still has something of {vm}", host.id));
                }
            }
        }
    }

    fn vm_at_rest(&self, vm: &Vm) {
        let phase = vm.status.phase;
        let as_asked = match vm.spec.power {
            Power::Running => matches!(phase, VmPhase::Running | VmPhase::Failed),
            Power::Paused => matches!(phase, VmPhase::Paused | VmPhase::Failed),
            Power::Stopped => matches!(phase, VmPhase::Stopped | VmPhase::Saved | VmPhase::Failed),
        };
        if !as_asked {
            self.fail(&format!("VM {} is {phase}, asked for {:?}", vm.metadata.name, vm.spec.power));
        }
        let uid = vm.metadata.uid;
        let places: Vec<_> =
            self.hosts.iter().filter_map(|host| Some((host.id, host.processes.get(&uid)?))).collect();
        let right = match (vm.status.host, places.as_slice()) {
            (None, []) => true,
            (Some(host), [(place, guest)]) => {
                host == *place
                    && guest.incarnation == vm.status.incarnation
                    && guest.executes() == (phase == VmPhase::Running)
            }
            _ => false,
        };
        if !right {
            self.fail(&format!("VM {} ({phase}) has the processes {places:?}", vm.metadata.name));
        }
    }
}

fn capabilities() -> HostCapabilities {
    let powers = [
        DriverPower::Pause,
        DriverPower::Shutdown,
        DriverPower::Reset,
        DriverPower::Save,
        DriverPower::Migrate,
        DriverPower::MigrateStorage,
    ];
    let probe = AccelProbe { accel: Accel::Simulated, usable: true, evidence: String::new() };
    let driver = DriverCapabilities {
        name: DriverName::Test,
        accels: vec![probe],
        powers: powers.into_iter().collect(),
        ..DriverCapabilities::default()
    };
    HostCapabilities { cpus: 8, mem_mib: 4_096, drivers: vec![driver], ..HostCapabilities::default() }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..CHAOS_TICKS {
        world.users();
        world.faults();
        world.tick(TICK_MS);
    }
    world.settle();
    world
}

/// Whatever breaks, a VM never runs twice; and once nothing breaks any more, everything is as its spec says, nothing is
/// left over, and no step is proposed.
#[test]
fn a_vm_never_runs_twice_and_the_fleet_heals() {
    let from: u64 = std::env::var("DUNLIN_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 =
        std::env::var("DUNLIN_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    for seed in from..from + count {
        let world = run(seed);
        for migration in world.state.migrations() {
            let outcome =
                migration.status.outcome.map_or("none".to_owned(), |outcome| format!("{outcome:?}"));
            *outcomes.entry(outcome).or_default() += 1;
        }
        for task in world.state.tasks() {
            *outcomes.entry(format!("{} {}", task.spec.act.as_str(), task.status.phase)).or_default() += 1;
        }
    }
    println!("{count} seeds from {from}: {outcomes:?}");
    // A simulation that never gets far proves nothing: each way out must have been taken.
    if count >= SEEDS {
        for outcome in [
            "Moved",
            "StayedOnSource",
            "HandedBack",
            "Restarted",
            "Gone",
            "save Succeeded",
            "shutdown Succeeded",
            "drain Succeeded",
        ] {
            assert!(outcomes.contains_key(outcome), "nothing ended {outcome}: {outcomes:?}");
        }
    }
}
