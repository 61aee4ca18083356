//! What the tests of the replicated core share: a small machine, and a cluster of replicas in one process.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use dunlin_model::ControllerId;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{Config, Machine, Member, Replica, SnapshotPolicy, Stamp, Timers};

/// No condition in these tests takes so long, unless it never comes.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A map of texts, and a digest of everything that ever happened to it, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Demo {
    pub(super) map: Arc<BTreeMap<String, String>>,
    pub(super) digest: u64,
    pub(super) last_time: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Put {
    pub(super) key: String,
    pub(super) value: String,
}

impl Put {
    pub(super) fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

impl Machine for Demo {
    type Command = Put;
    /// The stamp's index, and the value that was there.
    type Outcome = (u64, Option<String>);

    fn apply(&mut self, stamp: Stamp, command: &Put) -> Self::Outcome {
        assert!(stamp.time.0 >= self.last_time, "time ran backwards");
        assert_ne!(command.key, "panic", "asked to");
        self.last_time = stamp.time.0;
        let seen = format!("{} {} {} {}", self.digest, stamp.index, command.key, command.value);
        self.digest = u64::from(crc32fast::hash(seen.as_bytes()));
        let old = Arc::make_mut(&mut self.map).insert(command.key.clone(), command.value.clone());
        (stamp.index, old)
    }

    fn encode(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(out, self).map_err(io::Error::other)
    }

    fn decode(input: &mut dyn Read) -> io::Result<Self> {
        serde_json::from_reader(input).map_err(io::Error::other)
    }
}

/// An address nobody listens on, for as long as the test runs: each process has an own network of 127/8, and the port
/// lies below those that the kernel gives to outgoing connections. (One of those, closed and to be bound again, was at
/// times somebody else's by then.)
pub(super) fn free_address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(19_000);
    let process = std::process::id();
    let octet = |number: u32| u8::try_from(number % 250 + 1).expect("it is at most 250");
    let ip = Ipv4Addr::new(127, octet(process / 250), octet(process), 77);
    SocketAddr::from((ip, PORT.fetch_add(1, Ordering::Relaxed)))
}

/// Copies a folder as it lies there at this moment.
pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

/// Polls until `condition` gives something.
pub(super) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Some controllers of one cluster, each with its own directory; any of them may be down.
pub(super) struct Cluster {
    pub(super) dir: TempDir,
    pub(super) members: BTreeMap<ControllerId, Member>,
    pub(super) addresses: BTreeMap<u64, SocketAddr>,
    pub(super) policy: SnapshotPolicy,
    pub(super) timers: Timers,
    pub(super) up: BTreeMap<u64, Replica<Demo>>,
}

impl Cluster {
    pub(super) fn new(size: u64) -> Self {
        let mut cluster = Self {
            dir: TempDir::new().expect("a temporary directory"),
            members: BTreeMap::new(),
            addresses: BTreeMap::new(),
            policy: SnapshotPolicy::default(),
            timers: Timers::default(),
            up: BTreeMap::new(),
        };
        for id in 1..=size {
            let member = cluster.address_of(id);
            cluster.members.insert(ControllerId(id), member);
        }
        cluster
    }

    /// Gives controller `id` an address.
    pub(super) fn address_of(&mut self, id: u64) -> Member {
        let address = *self.addresses.entry(id).or_insert_with(free_address);
        Member { raft: address.to_string(), api: format!("http://api-{id}") }
    }

    pub(super) fn config(&self, id: u64) -> Config {
        let mut config =
            Config::new(ControllerId(id), self.dir.path().join(id.to_string()), self.addresses[&id]);
        config.snapshots = self.policy;
        config.timers = self.timers;
        config
    }

    pub(super) async fn start(&mut self, id: u64) {
        let replica = Replica::open(self.config(id), Demo::default()).await.unwrap();
        if self.members.contains_key(&ControllerId(id)) {
            replica.init(&self.members).await.unwrap();
        }
        self.up.insert(id, replica);
    }

    pub(super) async fn start_all(&mut self) {
        for id in self.members.keys().map(|id| id.0).collect::<Vec<_>>() {
            self.start(id).await;
        }
    }

    pub(super) async fn stop(&mut self, id: u64) {
        self.up.remove(&id).expect("it is up").shutdown().await;
    }

    pub(super) async fn stop_all(&mut self) {
        for replica in std::mem::take(&mut self.up).into_values() {
            replica.shutdown().await;
        }
    }

    /// The one that leads, with its term.
    pub(super) async fn leader(&self) -> (u64, u64) {
        until("a leader", async || {
            self.up.iter().find_map(|(id, replica)| {
                let leadership = replica.leadership().borrow().clone();
                leadership.is_me.then_some((*id, leadership.term))
            })
        })
        .await
    }

    /// Writes through whoever leads, until it is acknowledged.
    pub(super) async fn put(&self, key: &str, value: &str) -> u64 {
        until(&format!("{key} to be written"), async || {
            let (leader, _) = self.leader().await;
            self.up[&leader].propose(&Put::new(key, value)).await.ok().map(|(index, _)| index)
        })
        .await
    }

    /// Waits until every running replica has the same state, and returns it.
    pub(super) async fn converged(&self) -> Demo {
        until("all replicas to agree", async || {
            let (leader, _) = self.leader().await;
            let truth = self.up[&leader].linearizable().await.ok()?;
            let same = self.up.values().map(Replica::read);
            let agree =
                same.into_iter().all(|view| view.index == truth.index && view.machine == truth.machine);
            agree.then(|| truth.machine.clone())
        })
        .await
    }
}
