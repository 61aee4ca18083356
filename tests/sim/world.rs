//! One run: everything there is, and the order in which it has its turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_model::{ClusterId, HostId, Labels, Role, Timestamp};
use dunlin_state::trust::Ask;
use dunlin_state::{Command, Stamp, State, Write, apply, invariant, snapshot};
use tempfile::TempDir;

use crate::Mutant;
use crate::controllers::{Controller, Entry};
use crate::disk::Disk;
use crate::faults::member;
use crate::hosts::Host;
use crate::hypervisor::Plane;
use crate::invariants::incarnations::Incarnations;
use crate::invariants::one_place::OnePlace;
use crate::invariants::tasks::Tasks;
use crate::invariants::watchers::Watcher;
use crate::net::Net;
use crate::rng::Rng;
use crate::sessions::Pipe;
use crate::time::{Skewed, Time};
use crate::users::Request;

const HOSTS: usize = 3;
/// Controllers there may be; three of them are members at first.
const CONTROLLERS: usize = 5;
const MEMBERS: usize = 3;
const WATCHERS: usize = 2;
/// One tick of phase 1, ms, and how many there are: a minute.
const TICK_MS: u64 = 100;
const CHAOS_TICKS: u32 = 600;
/// One tick of phase 2, ms: its bounds in minutes pass quickly. And how many there are at most: ten minutes.
const CALM_TICK_MS: u64 = 250;
const CALM_TICKS: u32 = 2_400;
/// Ticks without a command, a set or a report that count as rest.
const REST_TICKS: u32 = 40;

pub(crate) struct World {
    seed: u64,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) rng: Rng,
    time: Time,
    pub(crate) net: Net,
    /// What is committed.
    pub(crate) log: Vec<Entry>,
    /// All of it applied from the beginning, by nobody who ever crashes.
    pub(crate) whole_log: State,
    checked: usize,
    pub(crate) term: u64,
    pub(crate) leader: Option<usize>,
    pub(crate) leaderless_since: Option<u64>,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) plane: Arc<Plane>,
    pub(crate) pipes: Vec<Pipe>,
    pub(crate) requests: Vec<Request>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) one_place: OnePlace,
    pub(crate) incarnations: Incarnations,
    pub(crate) tasks: Tasks,
    /// Ticks since anything happened.
    pub(crate) quiet: u32,
    /// May things still break?
    pub(crate) breaks: bool,
    traces: bool,
    dir: TempDir,
}

/// Runs one seed to its end, on a runtime of its own with one thread and a clock that only moves when all wait.
pub(crate) fn run(seed: u64, mutant: Option<Mutant>) -> World {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let mut world = runtime.expect("a runtime needs nothing").block_on(async {
        let mut world = World::new(seed, mutant);
        for _ in 0..CHAOS_TICKS {
            world.users();
            world.faults().await;
            world.tick(TICK_MS).await;
        }
        world.settle().await;
        for host in 0..world.hosts.len() {
            world.kill_agent(host).await;
        }
        world
    });
    world.pipes.clear();
    world
}

/// A folder in memory where there is one: what is kept there is played, and never needs a disk.
fn folder() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder can be made")
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let (time, dir) = (Time::default(), folder());
        let mut rng = Rng::new(seed);
        let plane = Plane::new(rng.next(), time.clone());
        let mut hosts = Vec::new();
        for n in 0..HOSTS {
            let id = HostId(rng.uuid());
            let (disk, data_dir) =
                (Arc::new(Disk::new(rng.next(), time.clone())), dir.path().join(format!("host{n}")));
            if mutant == Some(Mutant::DisksLie) {
                disk.set_lies();
            }
            std::fs::create_dir_all(&data_dir).expect("the folder is ours");
            plane.add(id);
            hosts.push(Host::new(id, disk, data_dir, Skewed::new(time.clone())));
        }
        let mut world = Self {
            seed,
            mutant,
            rng,
            time: time.clone(),
            net: Net::default(),
            log: Vec::new(),
            whole_log: State::new(),
            checked: 0,
            term: 0,
            leader: None,
            leaderless_since: None,
            controllers: (0..CONTROLLERS)
                .map(|n| Controller::new(n < MEMBERS, Skewed::new(time.clone())))
                .collect(),
            hosts,
            plane,
            pipes: Vec::new(),
            requests: Vec::new(),
            watchers: (0..WATCHERS).map(|_| Watcher::new()).collect(),
            one_place: OnePlace::default(),
            incarnations: Incarnations::default(),
            tasks: Tasks::default(),
            quiet: 0,
            breaks: true,
            traces: std::env::var_os("DUNLIN_SIM_TRACE").is_some(),
            dir,
        };
        world.found();
        world
    }

    /// The first entries of the log: a cluster, and hosts that have joined.
    fn found(&mut self) {
        let uid = ClusterId(self.rng.uuid());
        let controllers = (0..MEMBERS).map(member).collect();
        self.first(Command::FoundCluster {
            uid,
            name: "sim".parse().expect("a name"),
            controllers,
            level: dunlin_model::Level::NEWEST,
        });
        for n in 0..self.hosts.len() {
            let (sha256, expires) = (format!("token{n}"), Timestamp::MAX);
            let write = Write::CreateToken { sha256: sha256.clone(), role: Role::Host, expires };
            self.first(Command::Write { key: sha256.clone(), write });
            let ask = Ask { key_sha256: "key".to_owned(), authority: String::new(), expires };
            let (uid, name) = (self.hosts[n].id, format!("h{n}").parse().expect("a name"));
            let labels = Labels::new();
            self.first(Command::JoinHost { token_sha256: sha256, uid, name, labels, ask });
            self.boot(n);
        }
    }

    fn first(&mut self, command: Command) {
        let stamp = Stamp { index: self.log.len() as u64 + 1, time: Timestamp(self.now()) };
        if let Err(refused) = apply(&mut self.whole_log, &stamp, &command) {
            self.fail(&format!("{command:?}: {}", refused.message));
        }
        self.log.push(Entry { stamp, command });
    }

    pub(crate) fn now(&self) -> u64 {
        self.time.now_ms()
    }

    /// Tells what happens, to whoever asked for it.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if self.traces {
            println!("{} {}", self.now(), line());
        }
    }

    pub(crate) fn fail(&self, why: &str) -> ! {
        let seed = self.seed;
        if self.traces {
            self.tell_all();
        }
        panic!("seed {seed}: {why}\nreplay it: DUNLIN_SIM_SEED={seed} DUNLIN_SIM_SEEDS=1 DUNLIN_SIM_TRACE=1");
    }

    fn tell_all(&self) {
        for vm in self.whole_log.vms() {
            println!("{} {} {:?}", vm.metadata.name, vm.metadata.uid, vm.status);
        }
        for migration in self.whole_log.active_migrations() {
            println!("{} {:?}", migration.metadata.name, migration.status);
        }
        for task in self.whole_log.active_tasks() {
            println!("{} {:?} {:?}", task.metadata.name, task.spec, task.status);
        }
        for (n, host) in self.hosts.iter().enumerate() {
            println!("host {n} {} {:?} {:?} {:?}", host.id, host.line, host.dialling, host.agent);
        }
        if let Some(leader) = self.leader {
            for host in &self.hosts {
                println!("seen of {}: {:?}", host.id, self.controllers[leader].observed.host(host.id));
            }
        }
        println!("{:?}", self.plane);
    }

    async fn tick(&mut self, tick_ms: u64) {
        self.time.pass(tick_ms).await;
        self.quiet += 1;
        self.plane.go_on();
        self.booted().await;
        self.insist();
        self.controllers_go_on();
        self.dial();
        self.carry();
        self.check();
    }

    fn check(&mut self) {
        if self.checked != self.log.len() {
            self.checked = self.log.len();
            if let Err(broken) = invariant::check(&self.whole_log) {
                self.fail(&broken);
            }
        }
        self.check_one_place();
        self.check_incarnations();
        self.check_watchers();
        self.check_tasks();
    }

    /// Phase 2.
    async fn settle(&mut self) {
        self.calm().await;
        for _ in 0..CALM_TICKS {
            for host in 0..self.hosts.len() {
                self.boot(host);
            }
            // A request of phase 1 may be heard only now.
            match self.rng.below(40) {
                0 => self.cancel_drains(),
                1 if self.view().active_tasks().next().is_none() => self.uncordon_one(),
                _ => {}
            }
            self.tick(CALM_TICK_MS).await;
            let view = self.view();
            let idle = view.active_migrations().next().is_none() && view.active_tasks().next().is_none();
            let cordoned = view.hosts().any(|host| host.spec.cordoned);
            let asked = self.requests.iter().any(|request| request.answer.is_none());
            if idle && !cordoned && !asked && self.quiet > REST_TICKS {
                return self.check_at_rest();
            }
        }
        self.fail("it does not come to rest");
    }

    /// What came of everything.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, u64> {
        let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
        let mut count = |what: String, times: u64| *outcomes.entry(what).or_default() += times;
        for migration in self.whole_log.migrations() {
            let outcome = migration.status.outcome;
            count(outcome.map_or("none".to_owned(), |outcome| format!("{outcome:?}")), 1);
        }
        for task in self.whole_log.tasks() {
            count(format!("{} {}", task.spec.act.as_str(), task.status.phase), 1);
        }
        count("terms".to_owned(), self.term);
        count("entries".to_owned(), self.log.len() as u64);
        count("lists".to_owned(), self.watchers.iter().map(|watcher| u64::from(watcher.lists)).sum());
        let acknowledged = self.requests.iter().filter(|request| matches!(request.answer, Some(Ok(_))));
        count("acknowledged".to_owned(), acknowledged.count() as u64);
        outcomes
    }

    /// The run, to be compared with another.
    pub(crate) fn print(&self) -> String {
        let mut bytes = Vec::new();
        snapshot::encode(&self.whole_log, &mut bytes).expect("memory takes it");
        let run = format!("{:?}\n{}\n{:?}", self.log, String::from_utf8_lossy(&bytes), self.processes());
        // The one thing that is another each time, and decides nothing.
        run.replace(&self.dir.path().display().to_string(), "")
    }
}
