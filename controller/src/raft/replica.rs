//! The handle that everything else in the controller uses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use dunlin_model::{ClusterId, ControllerId, Invalid};
use openraft::error::{InitializeError, RaftError};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::client::Network;
use super::engine::LogEngine;
use super::hearing::Hearing;
use super::identity::Identity;
use super::log_store::LogStore;
use super::proposer::{self, COMMAND_BYTES_MAX, Proposal};
use super::reads::ReadIndex;
use super::sentinel::Sentinel;
use super::server::{self, Running, Service};
use super::sled_engine::SledEngine;
use super::snapshot::SnapshotDir;
use super::state_machine::{Applier, Pending, error_chain};
use super::threads::Threads;
use super::types::{Raft, members};
use super::watchman::Watchman;
use super::{
    Config, Leader, Machine, Member, MembershipError, OpenError, ProposeError, ReadError, StopReason,
    StoreError, View, elector,
};
use crate::{metrics, mint};

/// Snapshot bytes in one message.
const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;

/// A snapshot chunk's round trip. The last one includes decoding and installing the whole snapshot.
const SNAPSHOT_CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// Entries sent to a follower in one message at most; their bytes are bounded by the log store.
const SEND_ENTRIES: u64 = 256;

/// A new learner counts as caught up when it is at most so many entries behind.
pub(super) const CAUGHT_UP_ENTRIES: u64 = 50;

/// How long the store may take to close: a sync that is under way, and then some.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who leads, as far as this controller knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, when one is known.
    pub leader: Option<Leader>,
    /// Whether it is this controller, and its view holds everything that earlier leaders committed.
    pub is_me: bool,
    /// The current term. Pass it to [`Replica::propose_in_term`].
    pub term: u64,
}

/// Numbers for dashboards and for `dunlin status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The current term.
    pub term: u64,
    /// The last raft log index held, and the last applied, snapshotted and purged.
    pub last_log: Option<u64>,
    /// The last applied raft log index.
    pub last_applied: Option<u64>,
    /// The last raft log index in the snapshot.
    pub snapshot: Option<u64>,
    /// The last raft log index that was purged.
    pub purged: Option<u64>,
    /// Every controller, voters and learners.
    pub members: BTreeMap<ControllerId, Member>,
    /// Those that vote.
    pub voters: Vec<ControllerId>,
    /// On the leader: how many log entries each controller is behind.
    pub lag: BTreeMap<ControllerId, u64>,
}

/// One controller's copy of the replicated state. Cheap to clone; all clones are the same replica.
pub struct Replica<M: Machine> {
    pub(super) inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for Replica<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

pub(super) struct Inner<M: Machine> {
    pub(super) raft: Raft,
    pub(super) deadline: Duration,
    pub(super) identity: Arc<Identity>,
    pub(super) network: Network,
    reads: ReadIndex,
    proposals: mpsc::Sender<Proposal<M>>,
    view: watch::Receiver<View<M>>,
    leadership: watch::Receiver<Leadership>,
    stopped: watch::Receiver<Option<StopReason>>,
    /// What `shutdown` takes.
    running: Mutex<Option<Closing>>,
    /// Last, so that everything above is gone before the threads are.
    pub(super) threads: Threads,
}

/// What has to end before the store is closed.
struct Closing {
    server: Running,
    snapshots: SnapshotDir,
    log: oneshot::Receiver<()>,
}

impl<M: Machine> fmt::Debug for Replica<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("controller", &self.inner.identity.me).finish_non_exhaustive()
    }
}

/// The opened store.
struct Store<M: Machine> {
    identity: Arc<Identity>,
    log: LogStore,
    closed: oneshot::Receiver<()>,
    applier: Applier<M>,
    snapshots: SnapshotDir,
    pending: Arc<Pending<M>>,
}

impl<M: Machine> Store<M> {
    /// Opens everything in the data directory. Blocks.
    fn open(config: &Config, machine: M) -> Result<Self, StoreError> {
        let dir = &config.data_dir;
        let io_error = |act, source: io::Error| StoreError::Io { act, path: dir.clone(), source };
        std::fs::create_dir_all(dir).map_err(|source| io_error("create", source))?;
        let engine: Arc<dyn LogEngine> = Arc::new(SledEngine::open(&dir.join("log"))?);
        let identity = Arc::new(Identity::open(&*engine, config)?);
        let pending = Arc::new(Pending::new(config.id.0, mint::nonce()));
        let snapshots = SnapshotDir::open(dir.join("snapshot"))?;
        let mut applier = Applier::open(machine, snapshots.clone(), Arc::clone(&pending), identity.text())?;
        let (log, closed) = LogStore::open(engine, dir, config.id.0, applier.last_applied())?;
        identity.attach(log.clone());
        applier.wait_for(log.durable());
        Ok(Self { identity, log, closed, applier, snapshots, pending })
    }
}

impl<M: Machine> Replica<M> {
    /// Opens the store, replays it over `machine` (the empty state), listens, and joins the cluster it belongs to.
    pub async fn open(config: Config, machine: M) -> Result<Self, OpenError> {
        config.validate().map_err(OpenError::Config)?;
        let threads = Threads::start().map_err(|error| OpenError::Core(format!("no threads: {error}")))?;
        let opening = threads.handle().clone().spawn(Self::open_inside(config, machine, threads));
        opening.await.map_err(|error| OpenError::Core(error.to_string()))?
    }

    /// Runs on the core's own threads, as does everything it starts.
    async fn open_inside(config: Config, machine: M, threads: Threads) -> Result<Self, OpenError> {
        let listen_error = |source| OpenError::Listen { address: config.listen.to_string(), source };
        let listener = server::bind(config.listen).await.map_err(listen_error)?;
        let opening = config.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&opening, machine)).await;
        let store = store.map_err(|error| OpenError::Core(error.to_string()))??;
        let Store { identity, log, closed, applier, snapshots, pending } = store;
        let view = applier.views();
        let bytes_since_snapshot = applier.bytes_since_snapshot();
        let network = Network::new(Arc::clone(&identity), log.durable(), config.wire.clone());
        let core = Arc::new(core_config(&config)?);
        let raft = Raft::new(config.id.0, core, network.clone(), log, applier).await;
        let raft = raft.map_err(|fatal| OpenError::Core(error_chain(&fatal)))?;

        let reads = ReadIndex::start(raft.clone(), config.deadline);
        let (gone, leaders_gone) = mpsc::unbounded_channel();
        let hearing = Hearing::new();
        let service = Service {
            raft: raft.clone(),
            identity: Arc::clone(&identity),
            reads: reads.clone(),
            hearing: hearing.clone(),
        };
        let running = server::start(listener, config.wire.clone(), service, gone);
        let me = config.id.0;
        tokio::spawn(elector::run(raft.clone(), me, leaders_gone));
        tokio::spawn(Sentinel { raft: raft.clone(), me, network: network.clone(), hearing }.run());
        let (proposals, proposed) = mpsc::channel(proposer::QUEUE);
        tokio::spawn(proposer::run(raft.clone(), Arc::clone(&pending), proposed, config.deadline));
        let (leading, leadership) = watch::channel(Leadership::default());
        let (stopping, stopped) = watch::channel(None);
        let watchman = Watchman {
            raft: raft.clone(),
            pending,
            leadership: leading,
            stopped: stopping,
            bytes_since_snapshot,
            every_bytes: config.snapshots.every_bytes,
            silence_ms: Watchman::<M>::silence_ms(&config),
            period: Duration::from_millis(config.timers.heartbeat_ms),
        };
        tokio::spawn(watchman.run());
        let running = Mutex::new(Some(Closing { server: running, snapshots, log: closed }));
        let deadline = config.deadline;
        let inner = Inner {
            raft,
            deadline,
            identity,
            network,
            reads,
            proposals,
            view,
            leadership,
            stopped,
            running,
            threads,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Forms a new cluster of `members` (1, 3 or 5 with this controller among them), once. Every member may call it
    /// with the same list at every start: it does nothing on a store that has ever held anything, and only the member
    /// with the lowest id acts; the others wait to be contacted.
    pub async fn init(&self, members: &BTreeMap<ControllerId, Member>) -> Result<(), MembershipError> {
        let Inner { raft, identity, .. } = &*self.inner;
        check_members(members, identity.me).map_err(MembershipError::Invalid)?;
        let initialized = raft.is_initialized().await.map_err(|_| MembershipError::Stopped)?;
        if initialized || members.keys().next() != Some(&identity.me) {
            return Ok(());
        }
        identity.join(ClusterId(mint::uuid())).await.map_err(MembershipError::Refused)?;
        let members: BTreeMap<u64, Member> =
            members.iter().map(|(id, member)| (id.0, member.clone())).collect();
        match raft.initialize(members).await {
            // Not allowed means that it has happened already.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(MembershipError::Refused(error.to_string())),
            Err(RaftError::Fatal(_)) => Err(MembershipError::Stopped),
        }
    }

    /// This controller's number.
    #[must_use]
    pub fn id(&self) -> ControllerId {
        self.inner.identity.me
    }

    /// The cluster this controller belongs to; `None` until it is initialised or contacted.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.identity.cluster()
    }

    /// Proposes a command and waits until it is applied here. Only on the leader; forwarding is the caller's business.
    ///
    /// The local view holds the command's effect when this returns. Dropping the future takes nothing back: the
    /// command may still be applied.
    pub async fn propose(&self, command: &M::Command) -> Result<M::Outcome, ProposeError> {
        self.submit(None, command)
            .await
            .inspect_err(|error| metrics::RAFT_PROPOSE_FAILED.inc(&[error.word()]))
    }

    /// Proposals that wait for a log entry.
    #[must_use]
    pub fn waiting(&self) -> usize {
        proposer::QUEUE - self.inner.proposals.capacity()
    }

    /// Like `propose`, but only within the leadership of `term` (from [`Leadership::term`]).
    ///
    /// Guarantee: the command is applied only if the log entry that carries it was appended by this controller as
    /// leader of exactly `term`. So it comes, in log order, before everything that any later leadership (this
    /// controller's own included) proposes; what such a leadership decides can never be overtaken by it. The check is
    /// part of the log and gives the same answer on every controller. A later leader may still be the one to commit
    /// the entry.
    pub async fn propose_in_term(&self, term: u64, command: &M::Command) -> Result<M::Outcome, ProposeError> {
        if self.inner.leadership.borrow().term > term {
            return Err(ProposeError::TermOver { term });
        }
        let done = self.submit(Some(term), command).await;
        done.inspect_err(|error| metrics::RAFT_PROPOSE_FAILED.inc(&[error.word()]))
    }

    async fn submit(
        &self,
        only_in_term: Option<u64>,
        command: &M::Command,
    ) -> Result<M::Outcome, ProposeError> {
        if let Some(refusal) = self.inner.view.borrow().refuses(command) {
            // A leader that has not caught up with its predecessors asks an old state, and another one an older still.
            let Leadership { leader, is_me, .. } = self.inner.leadership.borrow().clone();
            return if is_me { Ok(refusal) } else { Err(ProposeError::NotLeader { leader }) };
        }
        let json = serde_json::to_vec(command).map_err(|error| ProposeError::Encode(error.to_string()))?;
        if json.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: json.len(), limit: COMMAND_BYTES_MAX });
        }
        if self.inner.stopped.borrow().is_some() {
            return Err(ProposeError::Stopped);
        }
        let _timed = metrics::RAFT_PROPOSE.time();
        let (waiter, outcome) = oneshot::channel();
        let proposal = Proposal { only_in_term, json, waiter };
        let answer = async {
            self.inner.proposals.send(proposal).await.map_err(|_| ProposeError::Stopped)?;
            outcome.await.map_err(|_| ProposeError::Unavailable)?
        };
        let expired = || ProposeError::Deadline { millis: self.deadline_ms() };
        tokio::time::timeout(self.inner.deadline, answer).await.map_err(|_| expired())?
    }

    /// The local state, which may lag behind the cluster. O(1), holds no lock.
    #[must_use]
    pub fn read(&self) -> View<M> {
        self.inner.view.borrow().clone()
    }

    /// A state that includes everything acknowledged before the call, on any controller. Works on followers, which
    /// ask the leader for its confirmed index and wait until they have applied that far.
    pub async fn linearizable(&self) -> Result<View<M>, ReadError> {
        let read = async {
            let log_end = match self.inner.reads.confirm().await {
                Err(ReadError::NotLeader { leader: Some(leader) }) if leader.id != self.inner.identity.me => {
                    let mut peer = self.inner.network.peer(leader.id.0, &leader.member.raft);
                    let answer = peer.read_index().await;
                    answer.map_err(|_| ReadError::NotLeader { leader: Some(leader) })?
                }
                answer => answer?,
            };
            let mut view = self.inner.view.clone();
            let applied = view.wait_for(|view| view.log_end >= log_end).await;
            applied.map(|view| view.clone()).map_err(|_| ReadError::Stopped)
        };
        let expired = || ReadError::Deadline { millis: self.deadline_ms() };
        tokio::time::timeout(self.inner.deadline, read).await.map_err(|_| expired())?
    }

    /// The local state as it advances: `changed().await` wakes after every applied batch. Clone the view out of
    /// `borrow()` at once; holding the borrow stops the replica.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View<M>> {
        self.inner.view.clone()
    }

    /// Who leads. A hint, to start and stop leader-only loops; what they do must go through `propose_in_term`.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Asks for a snapshot now, whatever the policy says.
    pub async fn snapshot(&self) {
        // A stopped core is reported by `stopped`.
        drop(self.inner.raft.trigger().snapshot().await);
    }

    /// Numbers for dashboards.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let seen = self.inner.raft.metrics().borrow().clone();
        let membership = seen.membership_config.membership();
        let last = seen.last_log_index.map_or(0, |last| last + 1);
        let lag = |matched: Option<u64>| last.saturating_sub(matched.map_or(0, |matched| matched + 1));
        let replication = seen.replication.unwrap_or_default();
        Metrics {
            term: seen.current_term,
            last_log: seen.last_log_index,
            last_applied: seen.last_applied.map(|id| id.index),
            snapshot: seen.snapshot.map(|id| id.index),
            purged: seen.purged.map(|id| id.index),
            members: members(membership),
            voters: membership.voter_ids().map(ControllerId).collect(),
            lag: replication
                .into_iter()
                .map(|(id, at)| (ControllerId(id), lag(at.map(|at| at.index))))
                .collect(),
        }
    }

    /// Resolves when the replica has stopped, with the reason. Anything but [`StopReason::Asked`] must end the
    /// process: a restart replays the store.
    pub async fn stopped(&self) -> StopReason {
        let mut stopped = self.inner.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(StopReason::Asked),
            Err(_) => StopReason::Asked,
        }
    }

    /// Stops: answers what waits, closes the store. The data directory can be opened again when this returns.
    pub async fn shutdown(&self) {
        let running = self.inner.running.lock().await.take();
        let Some(Closing { server, snapshots, log }) = running else { return };
        // The core first: its leader's sockets close only when it can no longer answer on them.
        drop(self.inner.raft.shutdown().await);
        self.inner.network.close();
        self.inner.identity.release();
        server.stop().await;
        // Waits only for a publication that is under way: a rename and two syncs.
        drop(self.inner.threads.handle().spawn_blocking(move || snapshots.close()).await);
        if tokio::time::timeout(CLOSE_TIMEOUT, log).await.is_err() {
            tracing::error!("the store did not close in time");
        }
    }

    pub(super) fn deadline_ms(&self) -> u64 {
        u64::try_from(self.inner.deadline.as_millis()).unwrap_or(u64::MAX)
    }
}

fn check_members(members: &BTreeMap<ControllerId, Member>, me: ControllerId) -> Result<(), Invalid> {
    if !matches!(members.len(), 1 | 3 | 5) {
        return Err(Invalid::new("members", format!("{} controllers", members.len()), "1, 3 or 5"));
    }
    if !members.contains_key(&me) {
        return Err(Invalid::new(
            "members",
            format!("controller {me} is missing"),
            "a list with this controller",
        ));
    }
    match members.iter().find(|(id, member)| id.0 == 0 || member.raft.is_empty()) {
        Some((id, _)) => {
            Err(Invalid::new(format!("members.{id}"), "no raft address or id 0", "host:port, id from 1"))
        }
        None => Ok(()),
    }
}

fn core_config(config: &Config) -> Result<openraft::Config, OpenError> {
    let core = openraft::Config {
        cluster_name: "dunlin".into(),
        heartbeat_interval: config.timers.heartbeat_ms,
        election_timeout_min: config.timers.election_min_ms,
        election_timeout_max: config.timers.election_max_ms,
        install_snapshot_timeout: u64::try_from(SNAPSHOT_CHUNK_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        max_payload_entries: SEND_ENTRIES,
        replication_lag_threshold: CAUGHT_UP_ENTRIES,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(config.snapshots.every_entries),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        max_in_snapshot_log_to_keep: config.snapshots.keep_entries,
        purge_batch_size: (config.snapshots.keep_entries / 4).max(1),
        ..openraft::Config::default()
    };
    core.validate().map_err(|error| OpenError::Core(error.to_string()))
}
