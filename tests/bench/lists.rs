//! Reads of a fleet of ten thousand VMs: the whole list, one object, and a change seen by a thousand watchers.

use std::time::{Duration, Instant};

use anyhow::Context;
use dunlin_proto::v1;
use dunlin_tests::{Fleet, FleetOptions};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use v1::fleet_client::FleetClient;

use crate::median_and_worst;
use crate::writes::new_vm;

const VMS: usize = 10_000;
/// VMs in one call of those that fill the fleet.
const MANY: usize = 200;
const LISTS: usize = 15;
const GETS: usize = 2_000;
const WATCHERS: usize = 1_000;
/// Changes each watcher sees.
const CHANGES: usize = 20;
/// Watchers of one connection: below what an HTTP/2 server allows of streams.
const WATCHERS_PER_CONNECTION: usize = 100;
/// The longest a change may be on its way.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 0, drivers: "test" })?;
    let cluster = fleet.json(&["cluster", "show"])?;
    let leader = fleet.leader()?;
    let controllers = cluster["status"]["controllers"].as_array().context("no controllers")?;
    let found = controllers.iter().find(|controller| controller["id"] == leader);
    let endpoint = found.and_then(|one| one["endpoint"].as_str()).context("the leader has no endpoint")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&fleet.dialer()?, endpoint))
}

fn client(channel: Channel) -> FleetClient<Channel> {
    FleetClient::new(channel).max_decoding_message_size(64 << 20)
}

async fn measure(dialer: &dunlin_pki::Dialer, endpoint: &str) -> anyhow::Result<()> {
    let dial = || async {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
        Ok::<_, anyhow::Error>(endpoint.connect_with_connector(dialer.clone()).await?)
    };
    let mut fleet = client(dial().await?);
    for batch in 0..VMS / MANY {
        let objects = (0..MANY).map(|number| new_vm(&format!("vm-{:05}", batch * MANY + number))).collect();
        let request =
            v1::CreateManyRequest { idempotency_key: format!("fill-{batch}"), objects, dry_run: false };
        fleet.create_many(request).await?;
    }
    println!("| read of {VMS} VMs | median ms | p99 or worst ms |");
    println!("| --- | --- | --- |");
    let (mut lists, mut bytes) = (Vec::new(), 0);
    for _ in 0..LISTS {
        let began = Instant::now();
        let (mut count, mut page_token) = (0, String::new());
        bytes = 0;
        loop {
            let request = v1::ListRequest { kind: v1::Kind::Vm.into(), page_token, ..Default::default() };
            let page = fleet.list(request).await?.into_inner();
            bytes += prost::Message::encoded_len(&page);
            count += page.objects.len();
            page_token = page.next_page_token;
            if !page.more {
                break;
            }
        }
        lists.push(began.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(count == VMS, "{count} VMs were listed");
    }
    let (median, worst) = median_and_worst(lists);
    println!("| all of them, every field, {} KiB, page by page | {median:.1} | {worst:.1} |", bytes >> 10);
    let mut gets = Vec::new();
    for number in 0..GETS {
        let name = format!("vm-{:05}", number * 7919 % VMS);
        let began = Instant::now();
        fleet.get(v1::GetRequest { kind: v1::Kind::Vm.into(), name, ..Default::default() }).await?;
        gets.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let (median, p99) = median_and_p99(gets);
    println!("| one by name, linearizable | {median:.2} | {p99:.2} |");
    let mut channels = Vec::new();
    for _ in 0..WATCHERS.div_ceil(WATCHERS_PER_CONNECTION) {
        channels.push(dial().await?);
    }
    fan_out(&mut fleet, &channels).await
}

async fn fan_out(fleet: &mut FleetClient<Channel>, channels: &[Channel]) -> anyhow::Result<()> {
    let now =
        fleet.list(v1::ListRequest { kind: v1::Kind::Vm.into(), limit: 1, ..Default::default() }).await?;
    let after_revision = now.into_inner().revision;
    let (seen, mut seeing) = mpsc::unbounded_channel();
    let mut watchers = Vec::new();
    for number in 0..WATCHERS {
        let mut watcher = client(channels[number % channels.len()].clone());
        let request =
            v1::WatchRequest { kinds: vec![v1::Kind::Vm.into()], after_revision, ..Default::default() };
        let mut stream = watcher.watch(request).await?.into_inner();
        let seen = seen.clone();
        watchers.push(tokio::spawn(async move {
            while let Some(event) = stream.message().await? {
                if event.object.is_some() && seen.send(Instant::now()).is_err() {
                    break;
                }
            }
            Ok::<_, anyhow::Error>(())
        }));
    }
    let mut delays = Vec::new();
    for change in 0..CHANGES {
        let name = format!("seen-{change}");
        let request =
            v1::CreateRequest { idempotency_key: name.clone(), object: Some(new_vm(&name)), dry_run: false };
        let began = Instant::now();
        fleet.create(request).await?;
        for _ in 0..WATCHERS {
            let at = tokio::time::timeout(LIMIT, seeing.recv()).await?.context("the watchers ended")?;
            delays.push(at.duration_since(began).as_secs_f64() * 1e3);
        }
    }
    watchers.iter().for_each(tokio::task::JoinHandle::abort);
    let (median, p99) = median_and_p99(delays);
    println!("| a change, from the request to each of {WATCHERS} watchers | {median:.1} | {p99:.1} |");
    Ok(())
}

fn median_and_p99(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
