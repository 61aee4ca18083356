//! Clients that create and delete VMs all the time at whichever controller answers, and write down what was promised.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dunlin_model::{ErrorCode, Kind};
use dunlin_pki::Dialer;
use dunlin_proto::v1::fleet_client::FleetClient;
use dunlin_proto::{Fault, Wire as _, v1};
use dunlin_tests::client;
use tonic::transport::Channel;

use crate::writes::new_vm;

/// VMs that one client leaves alone before it deletes the oldest.
const LIVE_MAX: usize = 60;
/// One try.
const TRY: Duration = Duration::from_millis(500);
/// Between two calls of a client: the load is to be steady, not heavy.
const PAUSE: Duration = Duration::from_millis(40);
/// A call that has not succeeded by now never will: longer than any fault lasts.
const LIMIT: Duration = Duration::from_secs(120);

/// What a client knows for certain at the end.
#[derive(Default)]
pub(super) struct Promised {
    /// Created, and not deleted since.
    pub(super) present: BTreeSet<String>,
    /// Deleted.
    pub(super) absent: BTreeSet<String>,
}

/// What is asked for, again and again until it is done.
enum Call {
    Create(Box<v1::CreateRequest>),
    Delete(v1::DeleteRequest),
}

impl Call {
    async fn send(&self, client: &mut FleetClient<Channel>) -> Result<(), tonic::Status> {
        match self {
            Self::Create(request) => client.create(request.as_ref().clone()).await.map(drop),
            Self::Delete(request) => client.delete(request.clone()).await.map(drop),
        }
    }
}

/// One client.
pub(super) struct Writer {
    pub(super) number: usize,
    pub(super) channels: Vec<FleetClient<Channel>>,
    pub(super) done: Arc<AtomicBool>,
    pub(super) writes: Arc<AtomicU64>,
}

impl Writer {
    /// Connections to every controller, to be made inside a runtime.
    pub(super) fn dial(dialer: &Dialer, endpoints: &[String]) -> anyhow::Result<Vec<FleetClient<Channel>>> {
        let dial = |endpoint: &String| client::lazy(Some(dialer), endpoint).map(FleetClient::new);
        endpoints.iter().map(dial).collect()
    }

    /// Until it is told to stop.
    pub(super) async fn run(self) -> anyhow::Result<Promised> {
        let (mut live, mut promised) = (VecDeque::new(), Promised::default());
        for round in 0_u64.. {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("c{}-{round}", self.number);
            self.create(&name).await?;
            promised.present.insert(name.clone());
            live.push_back(name);
            if live.len() > LIVE_MAX
                && let Some(oldest) = live.pop_front()
            {
                promised.present.remove(&oldest);
                self.delete(&oldest).await?;
                promised.absent.insert(oldest);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(promised)
    }

    async fn create(&self, name: &str) -> anyhow::Result<()> {
        let object = Some(new_vm(name));
        let request = v1::CreateRequest { idempotency_key: name.to_owned(), object, dry_run: false };
        self.repeat(name, &Call::Create(Box::new(request))).await
    }

    async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let request = v1::DeleteRequest {
            kind: Kind::Vm.to_wire(),
            name: name.to_owned(),
            idempotency_key: format!("d-{name}"),
            ..Default::default()
        };
        self.repeat(name, &Call::Delete(request)).await
    }

    /// One controller after the other with the same key, until one says that it is done.
    async fn repeat(&self, name: &str, call: &Call) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut at = self.number;
        while began.elapsed() < LIMIT {
            let mut client = self.channels[at % self.channels.len()].clone();
            at += 1;
            match tokio::time::timeout(TRY, call.send(&mut client)).await {
                Ok(Ok(())) => {
                    self.writes.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(Err(status)) => {
                    let code = Fault::from(status.clone()).code;
                    // A connection that breaks is told without a code of ours.
                    let broke = matches!(code, ErrorCode::Internal) || code.retryable();
                    anyhow::ensure!(broke, "{name}: {code}: {}", status.message());
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => {}
            }
        }
        anyhow::bail!("{name}: nothing was committed within {LIMIT:?}")
    }
}
