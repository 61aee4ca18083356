//! Applies committed entries to the machine, publishes views of it, answers proposers, keeps the snapshot.
//!
//! The state is in memory; what is durable is the snapshot plus the log behind it. A start loads the snapshot, and
//! the core replays the committed entries that follow.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dunlin_model::Timestamp;
use dunlin_proto::v1 as wire;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use prost::Message;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::log_store::Durable;
use super::snapshot::{self, SnapshotDir};
use super::types::{
    Entry, LogId, Snapshot, SnapshotData, SnapshotMeta, StorageError, StoredMembership, Types,
};
use super::types::{meta_from_wire, meta_to_wire};
use super::{Machine, ProposeError, Stamp, StoreError, View};
use crate::metrics;

/// Packs with more bytes than this together are decoded and applied on a blocking thread.
const INLINE_BYTES: usize = 128 << 10;

/// Who waits for the outcome of one command.
pub(super) type Waiter<M> = oneshot::Sender<Result<<M as Machine>::Outcome, ProposeError>>;

/// An outcome on its way to its proposer.
type Answer<M> = (Waiter<M>, Result<<M as Machine>::Outcome, ProposeError>);

/// The packs this process has proposed and whose outcome is awaited, by their sequence number.
pub(super) struct Pending<M: Machine> {
    /// This run of the process, so that an earlier run's packs in the log are not taken for its own.
    pub(super) run: u64,
    pub(super) proposer: u64,
    waiting: Mutex<HashMap<u64, Vec<Waiter<M>>>>,
}

impl<M: Machine> Pending<M> {
    pub(super) fn new(proposer: u64, run: u64) -> Self {
        Self { run, proposer, waiting: Mutex::new(HashMap::new()) }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Vec<Waiter<M>>>> {
        self.waiting.lock().expect("no holder of this lock panics: it guards map operations only")
    }

    pub(super) fn insert(&self, sequence: u64, waiters: Vec<Waiter<M>>) {
        self.waiting().insert(sequence, waiters);
    }

    pub(super) fn take(&self, sequence: u64) -> Option<Vec<Waiter<M>>> {
        self.waiting().remove(&sequence)
    }

    /// Nobody will answer any more.
    pub(super) fn stop(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        for waiter in waiting.into_values().flatten() {
            drop(waiter.send(Err(ProposeError::Stopped)));
        }
    }

    fn own(&self, pack: &wire::Pack) -> Option<Vec<Waiter<M>>> {
        (pack.proposer == self.proposer && pack.run == self.run).then(|| self.take(pack.sequence)).flatten()
    }
}

/// The machine and where in the log it stands.
#[derive(Clone)]
struct Position<M> {
    machine: M,
    commands: u64,
    time: Timestamp,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl<M: Machine> Position<M> {
    fn view(&self) -> View<M> {
        View {
            machine: self.machine.clone(),
            index: self.commands,
            time: self.time,
            log_end: self.last.map_or(0, |last| last.index + 1),
        }
    }

    /// Applies one pack. Fails when this binary does not understand it, or the machine panics.
    fn apply(
        &mut self,
        at: LogId,
        bytes: &[u8],
        pending: &Pending<M>,
        answers: &mut Vec<Answer<M>>,
    ) -> Result<(), String> {
        let pack = wire::Pack::decode(bytes)
            .map_err(|e| format!("the pack at log index {} is garbled: {e}", at.index))?;
        let mut waiters = pending.own(&pack).unwrap_or_default().into_iter();
        self.time = self.time.max(Timestamp(pack.time_ms));
        for packed in &pack.commands {
            let waiter = waiters.next();
            if let Some(term) = packed.only_in_term
                && term != at.leader_id.term
            {
                answers.extend(waiter.map(|waiter| (waiter, Err(ProposeError::TermOver { term }))));
                continue;
            }
            let command: M::Command = serde_json::from_slice(&packed.json).map_err(|e| {
                format!("a command at log index {} is unknown to this binary (is it older than the leader's?): {e}", at.index)
            })?;
            self.commands += 1;
            let stamp = Stamp { index: self.commands, time: self.time };
            let outcome =
                catch_unwind(AssertUnwindSafe(|| self.machine.apply(stamp, &command))).map_err(|_| {
                    format!("the state machine panicked on command {}, log index {}", stamp.index, at.index)
                })?;
            answers.extend(waiter.map(|waiter| (waiter, Ok(outcome))));
        }
        Ok(())
    }
}

/// The current snapshot.
#[derive(Clone)]
struct Kept {
    meta: SnapshotMeta,
    path: PathBuf,
}

/// The state machine as the consensus core sees it.
pub(super) struct Applier<M: Machine> {
    /// Taken while a blocking thread works on it.
    position: Option<Position<M>>,
    views: watch::Sender<View<M>>,
    pending: Arc<Pending<M>>,
    snapshots: SnapshotDir,
    kept: Arc<Mutex<Option<Kept>>>,
    /// The cluster's id as the snapshot head carries it; empty while unknown.
    cluster: watch::Receiver<String>,
    bytes_since_snapshot: Arc<AtomicU64>,
    builds: u64,
    /// How much of the log is on disk: nothing beyond it is applied.
    durable: Option<watch::Receiver<Durable>>,
}

impl<M: Machine> Applier<M> {
    /// Loads the snapshot, if there is one, over `machine`. Blocks.
    pub(super) fn open(
        machine: M,
        snapshots: SnapshotDir,
        pending: Arc<Pending<M>>,
        cluster: watch::Receiver<String>,
    ) -> Result<Self, StoreError> {
        let mut kept = None;
        let mut position = Position {
            machine,
            commands: 0,
            time: Timestamp(0),
            last: None,
            membership: StoredMembership::default(),
        };
        if let Some(path) = snapshots.newest()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut file =
                std::fs::File::open(&path).map_err(|source| snapshots.error("open a snapshot in", source))?;
            let loaded =
                load(&mut file).map_err(|error| snapshots.damaged(format!("snapshot {name}: {error}")))?;
            let mine = cluster.borrow().clone();
            if loaded.cluster != mine {
                let of = loaded.cluster;
                return Err(snapshots
                    .damaged(format!("snapshot {name} is of cluster {of:?}, but the log of {mine:?}")));
            }
            position = loaded.position;
            kept = Some(Kept { meta: loaded.meta, path });
        }
        let (views, _) = watch::channel(position.view());
        Ok(Self {
            position: Some(position),
            views,
            pending,
            snapshots,
            kept: Arc::new(Mutex::new(kept)),
            cluster,
            bytes_since_snapshot: Arc::default(),
            builds: 0,
            durable: None,
        })
    }

    /// From now on only what is on disk here is applied.
    pub(super) fn wait_for(&mut self, durable: watch::Receiver<Durable>) {
        self.durable = Some(durable);
    }

    /// Returns when everything up to `last` is on disk.
    async fn written(&mut self, last: Option<LogId>) -> Result<(), StorageError> {
        let (Some(durable), Some(last)) = (&mut self.durable, last) else { return Ok(()) };
        let reached = durable.wait_for(|end| end.as_ref().map_or(true, |end| *end > last.index)).await;
        let cause = match reached.map(|end| end.clone()) {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(cause)) => cause,
            Err(_) => "the log is closed".into(),
        };
        Err(StorageIOError::apply(last, AnyError::error(cause)).into())
    }

    pub(super) fn views(&self) -> watch::Receiver<View<M>> {
        self.views.subscribe()
    }

    pub(super) fn last_applied(&self) -> Option<LogId> {
        self.position.as_ref().and_then(|position| position.last)
    }

    /// Bytes of commands applied since the last snapshot.
    pub(super) fn bytes_since_snapshot(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes_since_snapshot)
    }

    fn position(&self) -> &Position<M> {
        self.position.as_ref().expect("it is put back before the await that took it returns")
    }
}

/// A snapshot read back.
struct Loaded<M> {
    cluster: String,
    meta: SnapshotMeta,
    position: Position<M>,
}

fn load<M: Machine>(file: &mut std::fs::File) -> Result<Loaded<M>, String> {
    let (head, machine) = snapshot::read(file, |input| M::decode(input)).map_err(|e| e.to_string())?;
    let meta = meta_from_wire(head.meta.ok_or("it has no meta")?).map_err(|e| e.to_string())?;
    let position = Position {
        machine,
        commands: head.applied_commands,
        time: Timestamp(head.time_ms),
        last: meta.last_log_id,
        membership: meta.last_membership.clone(),
    };
    Ok(Loaded { cluster: head.cluster_id, meta, position })
}

fn kept(kept: &Mutex<Option<Kept>>) -> MutexGuard<'_, Option<Kept>> {
    kept.lock().expect("no holder of this lock panics: it guards one assignment")
}

impl<M: Machine> RaftStateMachine<Types> for Applier<M> {
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let position = self.position();
        Ok((position.last, position.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let count = entries.len();
        let bytes = entries.iter().map(pack_bytes).sum::<usize>();
        self.written(entries.last().map(|last| last.log_id)).await?;
        let mut position = self.position.take().expect("one apply at a time, and each puts it back");
        let pending = Arc::clone(&self.pending);
        let work = move || {
            let mut answers = Vec::new();
            let _timed = metrics::RAFT_APPLY.time();
            let before = position.commands;
            let result = apply_all(&mut position, &entries, &pending, &mut answers);
            metrics::RAFT_APPLIED.add(position.commands - before);
            (position, answers, result)
        };
        let (position, answers, result) = if bytes > INLINE_BYTES {
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|e| StorageError::from(StorageIOError::write_state_machine(&e)))?
        } else {
            work()
        };
        // Readers first: whoever is told an outcome may at once read what it wrote.
        self.views.send_replace(position.view());
        self.position = Some(position);
        for (waiter, answer) in answers {
            // The proposer may have given up waiting; the command stands.
            drop(waiter.send(answer));
        }
        result
            .map_err(|(at, cause)| StorageError::from(StorageIOError::apply(at, AnyError::error(cause))))?;
        self.bytes_since_snapshot.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(vec![(); count])
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        self.bytes_since_snapshot.store(0, Ordering::Relaxed);
        self.builds += 1;
        Builder {
            position: self.position().clone(),
            snapshots: self.snapshots.clone(),
            kept: Arc::clone(&self.kept),
            cluster: self.cluster.borrow().clone(),
            maker: format!("{}-{:x}-{}", self.pending.proposer, self.pending.run, self.builds),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        let path = self.snapshots.temporary();
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).await;
        let file = file.map_err(|e| StorageError::from(StorageIOError::write_snapshot(None, &e)))?;
        Ok(Box::new(SnapshotData { file, incoming: Some(path) }))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        let SnapshotData { file, incoming } = *data;
        let file = file.into_std().await;
        let snapshots = self.snapshots.clone();
        let cluster = self.cluster.borrow().clone();
        let current = Arc::clone(&self.kept);
        let work = move || install::<M>(&snapshots, file, incoming, &cluster, &current);
        let began = Instant::now();
        let installed = tokio::task::spawn_blocking(work).await;
        metrics::RAFT_SNAPSHOT.observe(&["installed"], began.elapsed());
        let failed = |cause: AnyError| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), cause))
        };
        let position =
            installed.map_err(|e| failed(AnyError::new(&e)))?.map_err(|e| failed(AnyError::error(e)))?;
        self.views.send_replace(position.view());
        self.position = Some(position);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let (snapshots, current) = (self.snapshots.clone(), Arc::clone(&self.kept));
        let work = move || {
            // A build that ends now would remove the file whose name was just read.
            let _unchanged = snapshots.hold();
            kept(&current).clone().map(|kept| kept.open(&snapshots)).transpose()
        };
        let failed = |cause: AnyError| StorageError::from(StorageIOError::read_snapshot(None, cause));
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| failed(AnyError::new(&e)))?
            .map_err(|e| failed(AnyError::error(error_chain(&e))))
    }
}

impl Kept {
    /// The snapshot as the core reads it. While publication is held: it removes what was kept before.
    fn open(self, snapshots: &SnapshotDir) -> Result<Snapshot, StoreError> {
        let file = std::fs::File::open(&self.path);
        let file = file.map_err(|source| snapshots.error("open a snapshot in", source))?;
        let snapshot = Box::new(SnapshotData { file: tokio::fs::File::from_std(file), incoming: None });
        Ok(Snapshot { meta: self.meta, snapshot })
    }
}

fn pack_bytes(entry: &Entry) -> usize {
    if let EntryPayload::Normal(pack) = &entry.payload { pack.bytes.len() } else { 0 }
}

fn apply_all<M: Machine>(
    position: &mut Position<M>,
    entries: &[Entry],
    pending: &Pending<M>,
    answers: &mut Vec<Answer<M>>,
) -> Result<(), (LogId, String)> {
    for entry in entries {
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(pack) => {
                position
                    .apply(entry.log_id, &pack.bytes, pending, answers)
                    .map_err(|cause| (entry.log_id, cause))?;
            }
            EntryPayload::Membership(membership) => {
                position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
        }
        position.last = Some(entry.log_id);
    }
    Ok(())
}

/// Checks a received file, reads the machine from it, and makes it the snapshot.
fn install<M: Machine>(
    snapshots: &SnapshotDir,
    mut file: std::fs::File,
    incoming: Option<PathBuf>,
    cluster: &str,
    current: &Mutex<Option<Kept>>,
) -> Result<Position<M>, String> {
    let Loaded { cluster: of, meta, position } = load::<M>(&mut file)?;
    if of != cluster {
        return Err(format!("the leader sent a snapshot of cluster {of:?}; this is {cluster:?}"));
    }
    let head = head(of, &meta, &position);
    let temporary = match incoming {
        Some(path) => path,
        // Not received but handed over as an open file: write the same content anew.
        None => snapshots.write(&head, |out| position.machine.encode(out)).map_err(|e| error_chain(&e))?,
    };
    keep(snapshots, &temporary, &head, &meta, current).map_err(|e| error_chain(&e))?;
    Ok(position)
}

fn head<M>(cluster_id: String, meta: &SnapshotMeta, position: &Position<M>) -> wire::SnapshotHead {
    wire::SnapshotHead {
        cluster_id,
        meta: Some(meta_to_wire(meta)),
        applied_commands: position.commands,
        time_ms: position.time.0,
    }
}

/// Makes a complete file the snapshot, unless there is a newer one already: a build may end after an installation
/// that overtook it. Returns the snapshot that is kept, opened before anybody can replace it.
fn keep(
    snapshots: &SnapshotDir,
    temporary: &Path,
    head: &wire::SnapshotHead,
    meta: &SnapshotMeta,
    current: &Mutex<Option<Kept>>,
) -> Result<Snapshot, StoreError> {
    let _publishing = snapshots.lock()?;
    if let Some(newer) = kept(current).clone().filter(|kept| kept.meta.last_log_id > meta.last_log_id) {
        std::fs::remove_file(temporary).map_err(|source| snapshots.error("clean up", source))?;
        return newer.open(snapshots);
    }
    let path = snapshots.publish(temporary, head)?;
    let new = Kept { meta: meta.clone(), path };
    *kept(current) = Some(new.clone());
    new.open(snapshots)
}

/// Writes a snapshot of a copy of the state, while `apply` goes on.
pub(super) struct Builder<M> {
    position: Position<M>,
    snapshots: SnapshotDir,
    kept: Arc<Mutex<Option<Kept>>>,
    cluster: String,
    /// Distinguishes this file from any other of the same log position.
    maker: String,
}

impl<M: Machine> RaftSnapshotBuilder<Types> for Builder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let Self { position, snapshots, kept: current, cluster, maker } = self;
        let at = position.last.unwrap_or_default();
        let meta = SnapshotMeta {
            last_log_id: position.last,
            last_membership: position.membership.clone(),
            snapshot_id: format!("{}-{}-{maker}", at.leader_id.term, at.index),
        };
        let head = head(cluster.clone(), &meta, position);
        let (machine, snapshots, current, of) =
            (position.machine.clone(), snapshots.clone(), Arc::clone(current), meta.clone());
        let work = move || {
            let temporary = snapshots.write(&head, |out| machine.encode(out))?;
            keep(&snapshots, &temporary, &head, &of, &current)
        };
        let began = Instant::now();
        let written = tokio::task::spawn_blocking(work).await;
        metrics::RAFT_SNAPSHOT.observe(&["made"], began.elapsed());
        let failed = |cause: AnyError| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), cause))
        };
        written.map_err(|e| failed(AnyError::new(&e)))?.map_err(|e| failed(AnyError::error(error_chain(&e))))
    }
}

/// An error with its causes, for places that keep only a text.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        // Some errors say their cause themselves.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}
