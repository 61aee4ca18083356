//! The leader is killed, or stopped, under load: how long until a client that keeps trying has a write committed, and
//! whether anything acknowledged is lost. etcd with its default timers goes through the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dunlin_model::Object;
use dunlin_pki::Dialer;
use dunlin_proto::v1;
use dunlin_tests::{Fleet, FleetOptions, client, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;
use v1::fleet_client::FleetClient;

use crate::writes::{Etcd, Put, new_vm};

/// Leaders lost in each way; etcd's take longer, and fewer show it.
const ROUNDS: usize = 20;
const ROUNDS_ETCD: usize = 5;
/// Callers that write all the time.
const CALLERS: usize = 32;
/// One try: a stopped process keeps its sockets, and says nothing on them. Ten times what a write takes under this load.
const TRY: Duration = Duration::from_millis(150);
/// Between two tries that failed at once.
const PAUSE: Duration = Duration::from_millis(5);
/// Load before each loss.
const CALM: Duration = Duration::from_millis(1_500);
/// The longest a loss may last.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    println!("| loss of the leader | rounds | first commit ms, median | p99 | worst | acknowledged | lost |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 0, drivers: "test" })?;
    for stop in [false, true] {
        let (times, acknowledged) = dunlin(&fleet, &runtime, stop)?;
        let present = runtime.block_on(names(&fleet.dialer()?, &endpoints(&fleet)?))?;
        let lost = acknowledged.difference(&present).count();
        print_row(if stop { "SIGSTOP" } else { "kill -9" }, &times, acknowledged.len(), lost);
    }
    let Some(mut etcd) = Etcd::start(fleet.scratch())? else {
        println!("etcd is not installed");
        return Ok(());
    };
    for stop in [false, true] {
        let (times, acknowledged) = etcd_losses(&mut etcd, &runtime, stop)?;
        let what = if stop { "etcd, SIGSTOP" } else { "etcd, kill -9" };
        println!("{}", row(what, &times, acknowledged, "not looked at"));
    }
    Ok(())
}

fn print_row(what: &str, times_ms: &[f64], acknowledged: usize, lost: usize) {
    println!("{}", row(what, times_ms, acknowledged, &lost.to_string()));
}

fn row(what: &str, times_ms: &[f64], acknowledged: usize, lost: &str) -> String {
    let mut times = times_ms.to_vec();
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[((times.len() * percent).div_ceil(100)).clamp(1, times.len()) - 1];
    let worst = times.last().copied().unwrap_or_default();
    format!(
        "| {what} | {} | {:.0} | {:.0} | {worst:.0} | {acknowledged} | {lost} |",
        times.len(),
        at(50),
        at(99)
    )
}

fn endpoints(fleet: &Fleet) -> anyhow::Result<Vec<String>> {
    let cluster = fleet.json(&["cluster", "show"])?;
    let controllers = cluster["status"]["controllers"].as_array().context("no controllers")?;
    Ok(controllers.iter().filter_map(|one| one["endpoint"].as_str().map(str::to_owned)).collect())
}

fn dial(dialer: Option<&Dialer>, endpoints: &[String]) -> anyhow::Result<Vec<Channel>> {
    endpoints.iter().map(|endpoint| client::lazy(dialer, endpoint)).collect()
}

/// Tries one endpoint after the other with the same key until it is committed.
async fn create(channels: &[Channel], first: usize, name: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    for channel in channels.iter().cycle().skip(first % channels.len()) {
        ensure!(began.elapsed() < LIMIT, "no write was committed within {LIMIT:?}");
        let object = Some(new_vm(name));
        let request = v1::CreateRequest { idempotency_key: name.to_owned(), object, dry_run: false };
        let mut client = FleetClient::new(channel.clone());
        match tokio::time::timeout(TRY, client.create(request)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
            Err(_) => {}
        }
    }
    anyhow::bail!("no endpoints")
}

/// The first commit after each loss, and all names that were acknowledged.
fn dunlin(
    fleet: &Fleet,
    runtime: &tokio::runtime::Runtime,
    stop: bool,
) -> anyhow::Result<(Vec<f64>, BTreeSet<String>)> {
    let (endpoints, dialer) = (endpoints(fleet)?, fleet.dialer()?);
    let done = Arc::new(AtomicBool::new(false));
    let run = uuid::Uuid::new_v4().simple().to_string();
    let mut writers = Vec::new();
    for caller in 0..CALLERS {
        let (channels, done, run) =
            (runtime.block_on(async { dial(Some(&dialer), &endpoints) })?, Arc::clone(&done), run.clone());
        writers.push(runtime.spawn(async move {
            let mut names = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let name = format!("f{run}-{caller}-{}", names.len());
                create(&channels, caller + names.len(), &name).await?;
                names.push(name);
            }
            Ok::<_, anyhow::Error>(names)
        }));
    }
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        std::thread::sleep(CALM);
        let leader = eventually("a leader", LIMIT, || fleet.leader().map_err(|e| e.to_string()))?;
        let pid = Pid::from_raw(fleet.controller(leader)?.pid).context("pid 0")?;
        let channels = runtime.block_on(async { dial(Some(&dialer), &endpoints) })?;
        let began = Instant::now();
        kill_process(pid, if stop { Signal::STOP } else { Signal::KILL })?;
        let name = format!("p{run}-{round}");
        runtime.block_on(create(&channels, round, &name))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        if stop {
            kill_process(pid, Signal::CONT)?;
        } else {
            fleet.up()?;
        }
    }
    done.store(true, Ordering::Relaxed);
    let mut acknowledged: BTreeSet<String> = (0..ROUNDS).map(|round| format!("p{run}-{round}")).collect();
    for writer in writers {
        acknowledged.extend(runtime.block_on(writer)??);
    }
    Ok((times, acknowledged))
}

async fn names(dialer: &Dialer, endpoints: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let channel = dial(Some(dialer), endpoints)?.into_iter().next().context("no endpoints")?;
    let mut client = FleetClient::new(channel).max_decoding_message_size(64 << 20);
    let mut names = BTreeSet::new();
    let mut request = v1::ListRequest { kind: v1::Kind::Vm.into(), ..Default::default() };
    loop {
        let page = client.list(request.clone()).await?.into_inner();
        for object in page.objects {
            names.insert(Object::try_from(object)?.name().to_string());
        }
        if !page.more {
            return Ok(names);
        }
        request.page_token = page.next_page_token;
    }
}

async fn put(channels: &[Channel], first: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    for channel in channels.iter().cycle().skip(first % channels.len()) {
        ensure!(began.elapsed() < LIMIT, "no put was committed within {LIMIT:?}");
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        let attempt = async {
            grpc.ready().await?;
            let path = tonic::codegen::http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
            let put = Put { key: uuid::Uuid::new_v4().as_bytes().to_vec(), value: vec![7; 256] };
            let codec = tonic_prost::ProstCodec::<Put, Put>::default();
            let _: tonic::Response<Put> = grpc.unary(tonic::Request::new(put), path, codec).await?;
            Ok::<_, anyhow::Error>(())
        };
        match tokio::time::timeout(TRY, attempt).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
            Err(_) => {}
        }
    }
    anyhow::bail!("no endpoints")
}

fn etcd_losses(
    etcd: &mut Etcd,
    runtime: &tokio::runtime::Runtime,
    stop: bool,
) -> anyhow::Result<(Vec<f64>, usize)> {
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for caller in 0..CALLERS {
        let (channels, done) = (runtime.block_on(async { dial(None, &etcd.endpoints) })?, Arc::clone(&done));
        writers.push(runtime.spawn(async move {
            let mut made = 0;
            while !done.load(Ordering::Relaxed) {
                put(&channels, caller + made).await?;
                made += 1;
            }
            Ok::<_, anyhow::Error>(made)
        }));
    }
    let mut times = Vec::new();
    for round in 0..ROUNDS_ETCD {
        std::thread::sleep(CALM);
        let leader = etcd.leader()?;
        let pid = i32::try_from(etcd.members[leader].id()).ok().and_then(Pid::from_raw).context("no pid")?;
        let channels = runtime.block_on(async { dial(None, &etcd.endpoints) })?;
        let began = Instant::now();
        kill_process(pid, if stop { Signal::STOP } else { Signal::KILL })?;
        runtime.block_on(put(&channels, round))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        if stop {
            kill_process(pid, Signal::CONT)?;
        } else {
            etcd.revive(leader)?;
        }
    }
    done.store(true, Ordering::Relaxed);
    let mut made = ROUNDS_ETCD;
    for writer in writers {
        made += runtime.block_on(writer)??;
    }
    Ok((times, made))
}
