//! Real controllers and agents, each on a machine of its own, are killed, stopped and cut off under load, one thing after
//! the other, for as long as asked. Then the faults stop, and everything that was acknowledged has to be there.
//!
//! `make chaos` (fifteen minutes) or `MINUTES=2 SEED=7 make chaos`. Needs root: the machines are network namespaces.

mod lan;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dunlin_pki::{Clock, Keyring, Ring, Trust, read_roots, read_shown};
use dunlin_tests::{eventually, fleet};
use rustix::process::{Pid, Signal, kill_process};

use lan::Lan;
use load::{Promised, Writer};

const CONTROLLERS: [&str; 3] = ["c1", "c2", "c3"];
const HOSTS: [&str; 4] = ["h1", "h2", "h3", "h4"];
/// Running VMs, which nothing may stop and nothing may run twice.
const GUESTS: usize = 24;
const WRITERS: usize = 8;
/// Everything heals within this.
const LIMIT: Duration = Duration::from_secs(120);

/// What is done to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Killed,
    Stopped,
    CutOff,
}

/// A daemon on a machine.
struct Daemon {
    words: Vec<String>,
    child: Option<Child>,
}

/// Everything that runs.
struct Chaos {
    root: tempfile::TempDir,
    lan: Lan,
    daemons: BTreeMap<&'static str, Daemon>,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let knob = |name: &str, usual: u64| match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}: a number")),
        Err(_) => Ok(usual),
    };
    let (minutes, seed) = (knob("MINUTES", 15)?, knob("SEED", 1)?);
    let mut chaos = Chaos::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (done, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let channels =
            runtime.block_on(async { Writer::dial(&chaos.keyring()?.dialer(), &chaos.endpoints()) })?;
        let writer = Writer { number, channels, done: Arc::clone(&done), writes: Arc::clone(&writes) };
        writers.push(runtime.spawn(writer.run()));
    }
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let mut dice = Dice(seed);
    let mut told = BTreeMap::<(Fault, bool), u64>::new();
    while Instant::now() < until {
        let machine = if dice.below(3) == 0 { HOSTS[dice.below(4)] } else { CONTROLLERS[dice.below(3)] };
        let fault = [Fault::Killed, Fault::Stopped, Fault::CutOff][dice.below(3)];
        *told.entry((fault, machine.starts_with('c'))).or_default() += 1;
        chaos.strike(machine, fault, Duration::from_millis(200 + 100 * dice.below(60) as u64))?;
        chaos.disturb(&mut dice);
        std::thread::sleep(Duration::from_millis(100 * dice.below(40) as u64));
    }
    done.store(true, Ordering::Relaxed);
    let mut promised = Promised::default();
    for writer in writers {
        let Promised { present, absent } = runtime.block_on(writer)??;
        promised.present.extend(present);
        promised.absent.extend(absent);
    }
    let healing = Instant::now();
    chaos.wait_healed()?;
    println!("| what | machines | times |\n| --- | --- | --- |");
    for ((fault, is_controller), times) in told {
        println!("| {fault:?} | {} | {times} |", if is_controller { "controllers" } else { "hosts" });
    }
    println!(
        "\n{minutes} minutes, seed {seed}: {} writes acknowledged; whole again {:.1} s after the last fault",
        writes.load(Ordering::Relaxed),
        healing.elapsed().as_secs_f64()
    );
    chaos.judge(&promised)
}

/// Numbers from a seed (SplitMix64), so that a run can be repeated as far as the machine allows.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

impl Chaos {
    /// Three controllers, four hosts, and the guests, all of them up.
    fn start() -> anyhow::Result<Self> {
        let machines: Vec<_> = CONTROLLERS.iter().chain(&HOSTS).map(|name| (*name).to_owned()).collect();
        let root = tempfile::Builder::new().prefix("dl").tempdir()?;
        let mut chaos = Self { root, lan: Lan::new(&machines)?, daemons: BTreeMap::new() };
        let bundle = chaos.path("bundle").display().to_string();
        let members = chaos.members();
        chaos
            .ok(&[&["ca", "init", &bundle][..], &members.iter().map(String::as_str).collect::<Vec<_>>()]
                .concat())?;
        for (number, machine) in CONTROLLERS.iter().enumerate() {
            std::fs::create_dir(chaos.path(machine))?;
            let made = chaos.path("bundle").join(format!("controller-{}/tls", number + 1));
            std::fs::rename(made, chaos.path(machine).join("tls"))?;
            let words = chaos.controller_words(number + 1, machine);
            chaos.daemons.insert(machine, Daemon { words, child: None });
            chaos.launch(machine, None)?;
        }
        let data = chaos.path("c1").display().to_string();
        eventually("the controllers answer", LIMIT, || {
            if !chaos.path("contexts.yaml").exists() {
                chaos.ok(&["admin", "enroll", "--data-dir", &data]).map_err(|e| e.to_string())?;
            }
            chaos.ok(&["cluster", "show"]).map(drop).map_err(|e| e.to_string())
        })?;
        for machine in HOSTS {
            let token = chaos.ok(&["token", "create"])?;
            let words = chaos.agent_words(machine);
            chaos.daemons.insert(machine, Daemon { words, child: None });
            chaos.launch(machine, Some(token.trim()))?;
        }
        chaos.wait_hosts()?;
        for guest in 0..GUESTS {
            chaos.ok(&[
                "vm",
                "create",
                &format!("g{guest}"),
                "--mem-mib",
                "64",
                "--driver",
                "test",
                "--start",
            ])?;
        }
        chaos.wait_guests()?;
        Ok(chaos)
    }

    fn controller_words(&self, number: usize, machine: &str) -> Vec<String> {
        let mut words = vec!["controller".to_owned(), "--id".to_owned(), number.to_string()];
        let address = self.lan.address(machine);
        for (flag, value) in [
            ("--data-dir", self.path(machine).display().to_string()),
            ("--listen", format!("{address}:7400")),
            ("--raft-listen", format!("{address}:7401")),
        ] {
            words.extend([flag.to_owned(), value]);
        }
        words.extend(self.members());
        words
    }

    fn members(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (number, machine) in CONTROLLERS.iter().enumerate() {
            let address = self.lan.address(machine);
            words.extend(["--member".to_owned(), format!("{}={address}:7400/{address}:7401", number + 1)]);
        }
        words
    }

    fn agent_words(&self, machine: &str) -> Vec<String> {
        let data = self.path(machine).display().to_string();
        let mut words: Vec<String> =
            ["agent", "--data-dir", &data, "--name", machine, "--driver", "test"].map(str::to_owned).into();
        words.extend(["--address".to_owned(), self.lan.address(machine)]);
        for endpoint in self.endpoints() {
            words.extend(["--controller".to_owned(), endpoint]);
        }
        words
    }

    fn endpoints(&self) -> Vec<String> {
        CONTROLLERS.iter().map(|machine| format!("https://{}:7400", self.lan.address(machine))).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn keyring(&self) -> anyhow::Result<Arc<Keyring>> {
        let contexts = std::fs::read_to_string(self.path("contexts.yaml"))?;
        let name =
            contexts.lines().find_map(|line| line.strip_prefix("current:")).context("no context")?.trim();
        let shown = read_shown(&self.path(&format!("{name}.pem")))?;
        let roots = read_roots(&self.path(&format!("{name}-ca.pem")))?.context("no authorities")?;
        Ok(Keyring::new(Ring { shown, trust: Trust::Roots(roots), beside: Vec::new() }, Clock::system())?)
    }

    fn ok(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(fleet::binary()?);
        command.args(words).env("DUNLIN_CONFIG", self.path("contexts.yaml")).env_remove("DUNLIN_ENDPOINT");
        let output = command.stdin(Stdio::null()).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "dunlin {}: {stderr}", words.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn items(&self, words: &[&str]) -> anyhow::Result<Vec<serde_json::Value>> {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&[words, &["-o", "json"]].concat())?)?;
        Ok(list["items"].as_array().context("no items")?.clone())
    }

    fn launch(&mut self, machine: &'static str, token: Option<&str>) -> anyhow::Result<()> {
        let daemon = self.daemons.get_mut(machine).context("no such daemon")?;
        let log = self.root.path().join(format!("{machine}.log"));
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.lan.on(machine, &fleet::binary()?.display().to_string());
        command.args(&daemon.words).envs(token.map(|token| ("DUNLIN_TOKEN", token)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        daemon.child = Some(command.spawn()?);
        Ok(())
    }

    fn signal(&mut self, machine: &str, signal: Signal) -> anyhow::Result<()> {
        let child =
            self.daemons.get(machine).and_then(|daemon| daemon.child.as_ref()).context("it is down")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("pid 0")?;
        Ok(kill_process(pid, signal)?)
    }

    /// One fault, for so long, and its end.
    fn strike(&mut self, machine: &'static str, fault: Fault, lasts: Duration) -> anyhow::Result<()> {
        match fault {
            Fault::Killed => {
                self.signal(machine, Signal::KILL)?;
                let mut child = self.daemons.get_mut(machine).and_then(|daemon| daemon.child.take());
                child.as_mut().map(Child::wait).transpose()?;
                std::thread::sleep(lasts);
                self.launch(machine, None)
            }
            Fault::Stopped => {
                self.signal(machine, Signal::STOP)?;
                std::thread::sleep(lasts);
                self.signal(machine, Signal::CONT)
            }
            Fault::CutOff => {
                self.lan.plug(machine, false)?;
                std::thread::sleep(lasts);
                self.lan.plug(machine, true)
            }
        }
    }

    /// Sends a guest somewhere else, as far as that is possible at this moment.
    fn disturb(&self, dice: &mut Dice) {
        let guest = format!("g{}", dice.below(GUESTS));
        // No host may be there to take it, or no controller to hear it: then it stays.
        let _ = self.ok(&["vm", "migrate", &guest]);
    }

    fn wait_hosts(&self) -> anyhow::Result<()> {
        eventually("every host is up", LIMIT, || {
            let hosts = self.items(&["host", "list"]).map_err(|e| e.to_string())?;
            let up = hosts.iter().filter(|host| host["status"]["phase"] == "Up").count();
            if up == HOSTS.len() { Ok(()) } else { Err(format!("{up} of {}", HOSTS.len())) }
        })
    }

    fn wait_guests(&self) -> anyhow::Result<()> {
        eventually("every guest runs", LIMIT, || {
            let guests = self.guests().map_err(|e| e.to_string())?;
            let odd = guests.iter().find(|vm| vm["status"]["phase"] != "Running");
            odd.map_or(Ok(()), |vm| Err(format!("{} is {}", vm["metadata"]["name"], vm["status"]["phase"])))
        })
    }

    fn guests(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut all = self.items(&["vm", "list"])?;
        all.retain(|vm| vm["metadata"]["name"].as_str().is_some_and(|name| name.starts_with('g')));
        ensure!(all.len() == GUESTS, "{} of {GUESTS} guests are left", all.len());
        Ok(all)
    }

    fn wait_healed(&self) -> anyhow::Result<()> {
        self.wait_hosts()?;
        self.wait_guests()?;
        eventually("every migration ends", LIMIT, || {
            let all = self.items(&["migration", "list"]).map_err(|e| e.to_string())?;
            let ended = |one: &&serde_json::Value| {
                ["Done", "Aborted"].iter().any(|phase| one["status"]["phase"] == *phase)
            };
            let open = all.len() - all.iter().filter(ended).count();
            if open == 0 { Ok(()) } else { Err(format!("{open} are under way")) }
        })
    }

    /// Whether everything acknowledged is there, and every guest on one host only.
    fn judge(&self, promised: &Promised) -> anyhow::Result<()> {
        let all = self.items(&["vm", "list"])?;
        let names: BTreeSet<_> = all.iter().filter_map(|vm| vm["metadata"]["name"].as_str()).collect();
        let lost: Vec<_> = promised.present.iter().filter(|name| !names.contains(name.as_str())).collect();
        let risen: Vec<_> = promised.absent.iter().filter(|name| names.contains(name.as_str())).collect();
        let mut twice = Vec::new();
        for guest in self.guests()? {
            let uid = guest["metadata"]["uid"].as_str().context("no uid")?;
            let holders: Vec<_> = HOSTS.iter().filter(|host| runs(&self.path(host), uid)).collect();
            if holders.len() != 1 {
                twice.push(format!("{} on {holders:?}", guest["metadata"]["name"]));
            }
        }
        println!(
            "{} creates and {} deletes held against the cluster: {} lost, {} risen again, {} guests not on exactly one host",
            promised.present.len(),
            promised.absent.len(),
            lost.len(),
            risen.len(),
            twice.len()
        );
        if lost.is_empty() && risen.is_empty() && twice.is_empty() {
            return Ok(());
        }
        bail!("lost {lost:?}, risen {risen:?}, {twice:?}")
    }
}

/// Whether the simulated hypervisor of that host keeps a record of the guest in which it runs.
fn runs(data: &Path, uid: &str) -> bool {
    let record = data.join("test").join(format!("{uid}.guest"));
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    record["state"] == "Running"
}

impl Drop for Chaos {
    fn drop(&mut self) {
        if std::env::var_os("DUNLIN_LOGS").is_some() {
            for machine in self.daemons.keys() {
                let said = std::fs::read_to_string(self.path(&format!("{machine}.log"))).unwrap_or_default();
                println!("--- {machine}\n{said}");
            }
        }
        for daemon in self.daemons.values_mut() {
            if let Some(child) = &mut daemon.child {
                // Fails for one that has ended, and then there is nothing to do.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
