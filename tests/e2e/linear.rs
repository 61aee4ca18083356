//! What clients of three controllers saw while leaders died, held against what one register could have answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use dunlin_model::{ErrorCode, Kind};
use dunlin_proto::v1::fleet_client::FleetClient;
use dunlin_proto::{Fault, Wire as _, v1};
use dunlin_tests::linear::{self, Act};
use dunlin_tests::{Fleet, FleetOptions, client, eventually};
use tonic::transport::Channel;

/// Registers: labels of VMs that nobody starts.
const REGISTERS: usize = 3;
/// Clients at once, each of which asks any controller.
const CLIENTS: u64 = 8;
/// Calls of each client.
const CALLS: u64 = 120;
/// Leaders that are killed, evenly spread over all calls.
const KILLS: u64 = 3;
/// A client gives up on an answer after this; an election takes a tenth.
const PATIENCE: Duration = Duration::from_secs(2);
/// Until all calls are done on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(120);
/// The label that holds a register's value.
const LABEL: &str = "value";

type History = Arc<Vec<Mutex<Vec<linear::Call>>>>;

/// Reads and compare-and-swaps of eight clients at all three controllers, while leaders are killed with kill -9 and started
/// again: there is an order of all calls in which one register would have given the same answers.
#[test]
fn answers_are_linearizable_while_leaders_die() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 0, drivers: "test" })?;
    for register in 0..REGISTERS {
        fleet.ok(&["vm", "create", &format!("register-{register}"), "--label", &format!("{LABEL}=0")])?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let clients = {
        let _inside = runtime.enter();
        client::of_each(&fleet)?
    };
    let history: History = Arc::new((0..REGISTERS).map(|_| Mutex::default()).collect());
    let (done, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let running: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Caller { number, clients: clients.clone(), history: Arc::clone(&history), began };
            runtime.spawn(client.run(Arc::clone(&done)))
        })
        .collect();
    for kill in 1..=KILLS {
        let share = CLIENTS * CALLS * kill / (KILLS + 1);
        eventually("calls are answered", LIMIT, || {
            let so_far = done.load(Ordering::Relaxed);
            if so_far >= share { Ok(()) } else { Err(format!("{so_far} of {share}")) }
        })?;
        fleet.controller(fleet.leader()?)?.kill()?;
        fleet.up()?;
    }
    for client in running {
        runtime.block_on(client)??;
    }
    let mut tally = [0_usize; 4];
    for (register, calls) in history.iter().enumerate() {
        let calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
        for call in calls.iter() {
            let index = match call.act {
                Act::Read(_) => 0,
                Act::Swapped { .. } => 1,
                Act::Refused { .. } => 2,
                Act::Unknown { .. } => 3,
            };
            tally[index] += 1;
        }
        let order = linear::order(0, &calls);
        anyhow::ensure!(order.is_some(), "register {register} is not linearizable: {calls:#?}");
    }
    let [read, swapped, refused, unknown] = tally;
    println!(
        "{read} reads, {swapped} writes, {refused} refused, {unknown} without an answer, {KILLS} leaders killed"
    );
    anyhow::ensure!(read > 0 && swapped > 0 && refused > 0, "the history says nothing: {tally:?}");
    Ok(())
}

/// One client.
struct Caller {
    number: u64,
    clients: Vec<FleetClient<Channel>>,
    history: History,
    began: Instant,
}

impl Caller {
    async fn run(mut self, done: Arc<AtomicU64>) -> anyhow::Result<()> {
        // What it saw last, and may therefore swap: others have written since, so that some swaps are refused.
        let mut seen: Vec<Option<v1::Object>> = vec![None; REGISTERS];
        for call in 0..CALLS {
            let register = usize::try_from((call * 7 + self.number) % 3)? % REGISTERS;
            let at = usize::try_from(call + self.number)? % self.clients.len();
            match seen[register].take() {
                Some(object) => self.swap(at, register, object, self.number * CALLS + call + 1).await?,
                None => seen[register] = self.read(at, register).await?,
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads one; no answer tells nothing and is not recorded.
    async fn read(&mut self, at: usize, register: usize) -> anyhow::Result<Option<v1::Object>> {
        let request = v1::GetRequest {
            kind: Kind::Vm.to_wire(),
            name: format!("register-{register}"),
            ..Default::default()
        };
        let sent = self.now();
        let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, self.clients[at].get(request)).await else {
            return Ok(None);
        };
        let object = answer.into_inner();
        let value = value_of(&object)?;
        self.note(register, sent, Act::Read(value));
        Ok(Some(object))
    }

    async fn swap(
        &mut self,
        at: usize,
        register: usize,
        mut object: v1::Object,
        new: u64,
    ) -> anyhow::Result<()> {
        let expect = value_of(&object)?;
        metadata(&mut object)?.labels.insert(LABEL.into(), new.to_string());
        let request = v1::UpdateRequest {
            idempotency_key: format!("{}-{new}", self.number),
            object: Some(object),
            dry_run: false,
        };
        let sent = self.now();
        let answer = tokio::time::timeout(PATIENCE, self.clients[at].update(request)).await;
        let act = match answer.map(|answer| answer.map_err(|status| Fault::from(status).code)) {
            Ok(Ok(_)) => Act::Swapped { expect, new },
            Ok(Err(ErrorCode::StaleRevision)) => Act::Refused { expect },
            Ok(Err(code)) if !code.retryable() => anyhow::bail!("swapping {expect} for {new}: {code}"),
            _ => Act::Unknown { expect, new },
        };
        self.note(register, sent, act);
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("five hundred years are not reached")
    }

    fn note(&self, register: usize, sent: u64, act: Act) {
        let call = linear::Call { sent, ended: self.now(), act };
        self.history[register].lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

fn metadata(object: &mut v1::Object) -> anyhow::Result<&mut v1::Metadata> {
    match &mut object.choice {
        Some(v1::object::Choice::Vm(vm)) => vm.metadata.as_mut().context("an object without metadata"),
        _ => anyhow::bail!("not a VM"),
    }
}

fn value_of(object: &v1::Object) -> anyhow::Result<u64> {
    let text = metadata(&mut object.clone())?.labels.get(LABEL).cloned().context("the label is gone")?;
    Ok(text.parse()?)
}
