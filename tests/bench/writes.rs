//! Writes through three controllers with fsync on, against etcd on the same machine in turns.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use dunlin_proto::v1;
use dunlin_tests::{Fleet, FleetOptions, eventually};
use prost::Message as _;

use crate::load::{self, Target};
use crate::median_and_worst;

/// One measured stretch.
const STRETCH: Duration = Duration::from_secs(4);
/// Rounds; ours and etcd's alternate.
const ROUNDS: usize = 3;
/// Creates in one batch, and puts in one transaction of etcd's.
const BATCH: usize = 100;
/// Syncs and round trips measured for the floor.
const FLOOR_SAMPLES: usize = 200;

/// What is measured: callers at once, and whether each call is a batch.
const LOADS: [(usize, bool); 7] =
    [(1, false), (64, false), (256, false), (1_000, false), (1, true), (64, true), (256, true)];

pub(crate) fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 0, drivers: "test" })?;
    let servers: Vec<i32> = (1..=3).map(|id| Ok(fleet.controller(id)?.pid)).collect::<anyhow::Result<_>>()?;
    let etcd = Etcd::start(fleet.scratch())?;
    println!("fdatasync + round trip over loopback: {:.3} ms", floor_ms(fleet.scratch())?);
    println!(
        "| clients | a call | writes/s | p50 ms | p99 ms | server CPU us/write | etcd writes/s | p50 ms | p99 ms | CPU us/put | ratio of writes/s | of CPU | of p99 |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (callers, batch) in LOADS {
        if std::env::var("DUNLIN_CLIENTS").is_ok_and(|wanted| wanted != callers.to_string()) {
            continue;
        }
        let ours = Target {
            endpoint: leader_endpoint(&fleet)?,
            tls: Some(fleet.keyring()?.caller()),
            path: if batch { "/dunlin.v1.Fleet/CreateMany" } else { "/dunlin.v1.Fleet/Create" },
        };
        let make: fn() -> Vec<u8> = if batch { create_many } else { create };
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            mine.push(Figures::measure(&ours, callers, batch, make, &servers)?);
            if let Some(etcd) = &etcd {
                theirs.push(etcd.measure(callers, batch)?);
            }
        }
        let what = if batch { format!("{BATCH} creates") } else { "1 create".to_owned() };
        let ours = Figures::median(&mine);
        if theirs.is_empty() {
            println!("| {callers} | {what} | {} | etcd is not installed | | | | | | |", ours.row());
            continue;
        }
        let them = Figures::median(&theirs);
        let (rate, cpu, p99) =
            (ours.per_s / them.per_s, them.cpu_us / ours.cpu_us, them.p99_ms / ours.p99_ms);
        println!(
            "| {callers} | {what} | {} | {} | {rate:.2} | {cpu:.2} | {p99:.2} |",
            ours.row(),
            them.row()
        );
    }
    Ok(())
}

fn leader_endpoint(fleet: &Fleet) -> anyhow::Result<String> {
    let leader = fleet.leader()?;
    let cluster = fleet.json(&["cluster", "show"])?;
    let controllers = cluster["status"]["controllers"].as_array().context("no controllers")?;
    let found = controllers.iter().find(|controller| controller["id"] == leader);
    let endpoint = found.and_then(|controller| controller["endpoint"].as_str());
    Ok(endpoint.context("the leader has no endpoint")?.to_owned())
}

/// What came of one stretch. A batch of n counts as n writes.
#[derive(Clone, Copy)]
struct Figures {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// CPU of all three servers per write.
    cpu_us: f64,
}

impl Figures {
    fn measure(
        target: &Target,
        callers: usize,
        batch: bool,
        make: fn() -> Vec<u8>,
        servers: &[i32],
    ) -> anyhow::Result<Self> {
        let before = cpu_us(servers)?;
        let (mut times, took) = load::run(target, callers, STRETCH, make)?;
        let spent = cpu_us(servers)? - before;
        anyhow::ensure!(!times.is_empty(), "nothing was written");
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let writes = (times.len() * if batch { BATCH } else { 1 }) as f64;
        Ok(Self {
            per_s: writes / took.as_secs_f64(),
            p50_ms: at(50),
            p99_ms: at(99),
            cpu_us: spent / writes,
        })
    }

    fn median(of: &[Self]) -> Self {
        let middle = |pick: fn(&Self) -> f64| median_and_worst(of.iter().map(pick).collect()).0;
        Self {
            per_s: middle(|f| f.per_s),
            p50_ms: middle(|f| f.p50_ms),
            p99_ms: middle(|f| f.p99_ms),
            cpu_us: middle(|f| f.cpu_us),
        }
    }

    fn row(&self) -> String {
        format!("{:.0} | {:.2} | {:.1} | {:.1}", self.per_s, self.p50_ms, self.p99_ms, self.cpu_us)
    }
}

/// User and system time of these processes so far, in us, from /proc/PID/stat: fields 14 and 15, in ticks.
pub(crate) fn cpu_us(pids: &[i32]) -> anyhow::Result<f64> {
    let tick_us = 1e6 / rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0.0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in the second field may hold anything but a closing bracket behind it.
        let rest = stat.rsplit_once(')').context("a strange stat")?.1;
        let times: Vec<f64> =
            rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
        ticks += times.iter().sum::<f64>();
    }
    Ok(ticks * tick_us)
}

/// The median time to write and sync 256 bytes to a file that is long enough, and of a round trip over loopback.
fn floor_ms(scratch: &std::path::Path) -> anyhow::Result<f64> {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(scratch.join("floor"))?;
    file.write_all_at(&vec![1; 1 << 20], 0)?;
    file.sync_all()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut there = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (mut here, _) = listener.accept()?;
    there.set_nodelay(true)?;
    here.set_nodelay(true)?;
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; VALUE_BYTES];
        while here.read_exact(&mut bytes).is_ok() && here.write_all(&bytes).is_ok() {}
    });
    let (mut syncs, mut trips) = (Vec::new(), Vec::new());
    let mut bytes = [7; VALUE_BYTES];
    for number in 0..FLOOR_SAMPLES {
        let began = Instant::now();
        file.write_all_at(&bytes, (number * VALUE_BYTES) as u64)?;
        file.sync_data()?;
        syncs.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        there.write_all(&bytes)?;
        there.read_exact(&mut bytes)?;
        trips.push(began.elapsed().as_secs_f64() * 1e3);
    }
    drop(there);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))?;
    Ok(median_and_worst(syncs).0 + median_and_worst(trips).0)
}

/// A small stopped VM: a whole write of the product, checks, events and all.
pub(crate) fn new_vm(name: &str) -> v1::Object {
    v1::Object {
        choice: Some(v1::object::Choice::Vm(v1::Vm {
            metadata: Some(v1::Metadata { name: name.to_owned(), ..Default::default() }),
            spec: Some(v1::VmSpec { mem_mib: 64, ..Default::default() }),
            ..Default::default()
        })),
    }
}

fn create() -> Vec<u8> {
    let name = format!("w{}", uuid::Uuid::new_v4().simple());
    let object = Some(new_vm(&name));
    v1::CreateRequest { idempotency_key: name, object, dry_run: false }.encode_to_vec()
}

fn create_many() -> Vec<u8> {
    let key = uuid::Uuid::new_v4().simple().to_string();
    let objects = (0..BATCH).map(|number| new_vm(&format!("b{key}-{number}"))).collect();
    v1::CreateManyRequest { idempotency_key: key, objects, dry_run: false }.encode_to_vec()
}

/// Three members of Debian's etcd on loopback, fsync on.
pub(crate) struct Etcd {
    pub(crate) members: Vec<Child>,
    pub(crate) endpoints: Vec<String>,
    arguments: Vec<Vec<String>>,
}

impl Etcd {
    /// None when it is not installed.
    pub(crate) fn start(scratch: &std::path::Path) -> anyhow::Result<Option<Self>> {
        if Command::new("etcd").arg("--version").output().is_err() {
            return Ok(None);
        }
        let url = |member: u16, peer: u16| format!("http://127.0.0.1:{}", 23_790 + member * 2 + peer);
        let initial: Vec<_> = (0..3).map(|m| format!("m{m}={}", url(m, 1))).collect();
        let arguments = (0..3).map(|m| {
            let data = scratch.join(format!("etcd-{m}")).display().to_string();
            let words = [
                ("--name", format!("m{m}")),
                ("--initial-cluster", initial.join(",")),
                ("--data-dir", data),
                ("--listen-client-urls", url(m, 0)),
                ("--advertise-client-urls", url(m, 0)),
                ("--listen-peer-urls", url(m, 1)),
                ("--initial-advertise-peer-urls", url(m, 1)),
            ];
            words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
        });
        let endpoints = (0..3).map(|m| url(m, 0)).collect();
        let mut etcd = Self { members: Vec::new(), endpoints, arguments: arguments.collect() };
        for member in 0..3 {
            let child = etcd.spawn(member)?;
            etcd.members.push(child);
        }
        etcd.leader()?;
        Ok(Some(etcd))
    }

    fn spawn(&self, member: usize) -> anyhow::Result<Child> {
        // A bench that is killed takes its members with it: util-linux asks the kernel for that and becomes etcd.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd"]).args(&self.arguments[member]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// Starts a member again that was killed.
    pub(crate) fn revive(&mut self, member: usize) -> anyhow::Result<()> {
        self.members[member].wait()?;
        self.members[member] = self.spawn(member)?;
        Ok(())
    }

    /// Which member leads.
    pub(crate) fn leader(&self) -> anyhow::Result<usize> {
        let leader = eventually("etcd has a leader", Duration::from_secs(30), || leader(&self.endpoints))?;
        self.endpoints.iter().position(|endpoint| *endpoint == leader).context("an unknown leader")
    }

    /// Puts of as many bytes as our write, alone or in transactions.
    fn measure(&self, callers: usize, batch: bool) -> anyhow::Result<Figures> {
        let path = if batch { "/etcdserverpb.KV/Txn" } else { "/etcdserverpb.KV/Put" };
        let make: fn() -> Vec<u8> = if batch { txn } else { put };
        let target = Target { endpoint: self.endpoints[self.leader()?].clone(), tls: None, path };
        let servers: Vec<i32> =
            self.members.iter().filter_map(|member| i32::try_from(member.id()).ok()).collect();
        Figures::measure(&target, callers, batch, make, &servers)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

fn leader(endpoints: &[String]) -> Result<String, String> {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &endpoints.join(","), "endpoint", "status", "-w", "json"])
        .output()
        .map_err(|e| e.to_string())?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let members = told.as_array().ok_or("no members")?;
    let leads = |member: &&serde_json::Value| {
        let status = &member["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    };
    let member = members.iter().find(leads).ok_or("no leader yet")?;
    member["Endpoint"].as_str().map(str::to_owned).ok_or_else(|| "no endpoint".to_owned())
}

/// `etcdserverpb.PutRequest`: key (1) and value (2).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Put {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// `etcdserverpb.RequestOp`: a put (2).
#[derive(Clone, PartialEq, prost::Message)]
struct Op {
    #[prost(message, optional, tag = "2")]
    put: Option<Put>,
}

/// `etcdserverpb.TxnRequest` without conditions: what is done on success (2).
#[derive(Clone, PartialEq, prost::Message)]
struct Txn {
    #[prost(message, repeated, tag = "2")]
    success: Vec<Op>,
}

/// Bytes of a value: about what one of our create requests holds.
const VALUE_BYTES: usize = 256;

fn one_put() -> Put {
    Put { key: uuid::Uuid::new_v4().as_bytes().to_vec(), value: vec![7; VALUE_BYTES] }
}

fn put() -> Vec<u8> {
    one_put().encode_to_vec()
}

fn txn() -> Vec<u8> {
    Txn { success: (0..BATCH).map(|_| Op { put: Some(one_put()) }).collect() }.encode_to_vec()
}
