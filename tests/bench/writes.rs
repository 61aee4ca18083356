//! Writes through three controllers with fsync on, against etcd on the same machine in turns.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use dunlin_model::Kind;
use dunlin_proto::v1;
use dunlin_tests::{Fleet, FleetOptions, eventually};
use v1::fleet_client::FleetClient;

use crate::median_and_worst;

/// One measured stretch.
const STRETCH: Duration = Duration::from_secs(4);
/// Concurrent clients of each stretch.
const CLIENTS: [usize; 3] = [1, 64, 256];
/// Rounds; ours and etcd's alternate.
const ROUNDS: usize = 3;

pub(crate) fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 0, drivers: "test" })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let leader = fleet.leader()?;
    let cluster = fleet.json(&["cluster", "show"])?;
    let controllers = cluster["status"]["controllers"].as_array().context("no controllers")?;
    let endpoint = controllers
        .iter()
        .find(|controller| controller["id"] == leader)
        .and_then(|controller| controller["endpoint"].as_str())
        .context("the leader has no endpoint")?;
    let etcd = Etcd::start(fleet.scratch())?;
    println!(
        "| clients | writes/s | p50 ms | p99 ms | etcd writes/s | p50 ms | p99 ms | ratio of writes/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for clients in CLIENTS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(runtime.block_on(dunlin(endpoint, clients))?);
            if let Some(etcd) = &etcd {
                theirs.push(etcd.measure(clients)?);
            }
        }
        let middle =
            |of: &[Figures], pick: fn(&Figures) -> f64| median_and_worst(of.iter().map(pick).collect()).0;
        let row = |of: &[Figures]| {
            format!(
                "{:.0} | {:.2} | {:.1}",
                middle(of, |f| f.per_s),
                middle(of, |f| f.p50_ms),
                middle(of, |f| f.p99_ms)
            )
        };
        if theirs.is_empty() {
            println!("| {clients} | {} | etcd is not installed | | | |", row(&ours));
        } else {
            let ratio = middle(&ours, |f| f.per_s) / middle(&theirs, |f| f.per_s);
            println!("| {clients} | {} | {} | {ratio:.2} |", row(&ours), row(&theirs));
        }
    }
    Ok(())
}

/// What came of one stretch.
struct Figures {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Figures {
    fn of(mut times_ms: Vec<f64>, took: Duration) -> anyhow::Result<Self> {
        anyhow::ensure!(!times_ms.is_empty(), "nothing was written");
        times_ms.sort_by(f64::total_cmp);
        let at = |percent: usize| times_ms[(times_ms.len() - 1) * percent / 100];
        let count = f64::from(u32::try_from(times_ms.len())?);
        Ok(Self { per_s: count / took.as_secs_f64(), p50_ms: at(50), p99_ms: at(99) })
    }
}

/// Creates small stopped VMs as fast as it goes: a whole write of the product, checks and events included.
async fn dunlin(endpoint: &str, clients: usize) -> anyhow::Result<Figures> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut channels = Vec::new();
    for _ in 0..clients.min(8) {
        channels.push(
            tonic::transport::Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true).connect().await?,
        );
    }
    let started = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..clients {
        let client = FleetClient::new(channels[number % channels.len()].clone());
        tasks.push(tokio::spawn(write_until(client, Arc::clone(&stop))));
    }
    tokio::time::sleep(STRETCH).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Figures::of(times, started.elapsed())
}

async fn write_until(
    mut client: FleetClient<tonic::transport::Channel>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("w{}", uuid::Uuid::new_v4().simple());
        let object = v1::Object {
            choice: Some(v1::object::Choice::Vm(v1::Vm {
                metadata: Some(v1::Metadata { name: name.clone(), ..Default::default() }),
                spec: Some(v1::VmSpec { mem_mib: 64, ..Default::default() }),
                ..Default::default()
            })),
        };
        let request = v1::CreateRequest { idempotency_key: name, object: Some(object), dry_run: false };
        let began = Instant::now();
        client.create(request).await.with_context(|| format!("creating a {}", Kind::Vm))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Three members of Debian's etcd on loopback, fsync on.
struct Etcd {
    members: Vec<Child>,
    endpoint: String,
}

impl Etcd {
    /// None when it is not installed.
    fn start(scratch: &std::path::Path) -> anyhow::Result<Option<Self>> {
        if Command::new("etcd").arg("--version").output().is_err() {
            return Ok(None);
        }
        let port = |member: u16, peer: u16| 23_790 + member * 2 + peer;
        let initial: Vec<_> = (0..3).map(|m| format!("m{m}=http://127.0.0.1:{}", port(m, 1))).collect();
        let mut members = Vec::new();
        for member in 0..3 {
            let (client, peer) = (
                format!("http://127.0.0.1:{}", port(member, 0)),
                format!("http://127.0.0.1:{}", port(member, 1)),
            );
            let child = Command::new("etcd")
                .args(["--name", &format!("m{member}"), "--initial-cluster", &initial.join(",")])
                .arg("--data-dir")
                .arg(scratch.join(format!("etcd-{member}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            members.push(child);
        }
        let mut etcd = Self { members, endpoint: String::new() };
        let endpoints: Vec<_> = (0..3).map(|m| format!("http://127.0.0.1:{}", port(m, 0))).collect();
        etcd.endpoint = eventually("etcd has a leader", Duration::from_secs(30), || leader(&endpoints))?;
        Ok(Some(etcd))
    }

    /// etcd's own load generator is not packaged; its gRPC is spoken here by hand, a put of as many bytes as our write.
    fn measure(&self, clients: usize) -> anyhow::Result<Figures> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(etcd_puts(&self.endpoint, clients))
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

/// `etcdserverpb.KV/Put`: key (1) and value (2); the answer is not looked into.
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Bytes of a value: about what one of our create requests holds.
const VALUE_BYTES: usize = 256;

async fn etcd_puts(endpoint: &str, clients: usize) -> anyhow::Result<Figures> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut channels = Vec::new();
    for _ in 0..clients.min(8) {
        channels.push(
            tonic::transport::Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true).connect().await?,
        );
    }
    let started = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..clients {
        let mut grpc = tonic::client::Grpc::new(channels[number % channels.len()].clone());
        let stop = Arc::clone(&stop);
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let put = Put { key: uuid::Uuid::new_v4().as_bytes().to_vec(), value: vec![7; VALUE_BYTES] };
                let began = Instant::now();
                grpc.ready().await?;
                let path = tonic::codegen::http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
                let codec = tonic_prost::ProstCodec::<Put, Put>::default();
                let _: tonic::Response<Put> = grpc.unary(tonic::Request::new(put), path, codec).await?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, anyhow::Error>(times)
        }));
    }
    tokio::time::sleep(STRETCH).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Figures::of(times, started.elapsed())
}
