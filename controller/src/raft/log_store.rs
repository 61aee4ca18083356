//! The log as the consensus core sees it: a memory of the newest entries over a [`LogEngine`], written by one thread.
//!
//! Owns the order of writes and the check of the store at start. Entries are readable from memory as soon as
//! they are appended; those that fell out of it are read back on a blocking thread.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use tokio::sync::{oneshot, watch};

use super::StoreError;
use super::engine::{LogEngine, MetaKey};
use super::log_check::{self, Checked};
use super::types::{Entry, LogId, StorageError, Types, Vote};
use super::witness::{Seen, Witness};
use super::writer::{self, Write};

/// Entries kept in memory: enough that a follower that is keeping up, and `apply`, never touch the disk.
const TAIL_ENTRIES: usize = 4_096;

/// ... and their bytes, whatever their number.
const TAIL_BYTES: usize = 32 << 20;

/// Bytes of entries sent to a follower in one message (one entry may be larger). Far below the transport's limit.
const SEND_BYTES: usize = 1 << 20;

/// The log. Clones share it; the store closes when the last is gone.
#[derive(Clone)]
pub(super) struct LogStore {
    // Field order matters: the writer thread ends when the last sender is dropped, and must then be the last owner
    // of the engine.
    shared: Arc<Shared>,
    engine: Arc<dyn LogEngine>,
    writes: mpsc::Sender<Write>,
}

/// What the log store and its writer thread both see.
pub(super) struct Shared {
    state: Mutex<State>,
    durable: watch::Sender<Durable>,
}

/// One past the last entry on disk; or why the log cannot be written any more.
pub(super) type Durable = Result<u64, Arc<str>>;

struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The newest entries, without a gap up to `last`, and the ticket of the append that brought each.
    tail: BTreeMap<u64, (Entry, u64)>,
    tail_bytes: usize,
    next_ticket: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics: it guards map operations only")
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.state().committed
    }

    /// Everything before `log_end` is on disk; or nothing more ever will be.
    pub(super) fn tell_durable(&self, log_end: Durable) {
        self.durable.send_if_modified(|before| {
            let changed = *before != log_end;
            *before = log_end;
            changed
        });
    }

    /// Everything up to `ticket` is on disk and may leave memory.
    pub(super) fn written(&self, ticket: u64) {
        let mut state = self.state();
        while state.tail.len() > TAIL_ENTRIES || state.tail_bytes > TAIL_BYTES {
            match state.tail.first_entry() {
                Some(first) if first.get().1 <= ticket => {
                    let (entry, _) = first.remove();
                    state.tail_bytes -= size_of_entry(&entry);
                }
                _ => return,
            }
        }
    }
}

impl State {
    fn push(&mut self, entry: Entry, ticket: u64) {
        self.tail_bytes += size_of_entry(&entry);
        self.last = Some(entry.log_id);
        if let Some((old, _)) = self.tail.insert(entry.log_id.index, (entry, ticket)) {
            self.tail_bytes -= size_of_entry(&old);
        }
    }

    /// Keeps the entries of `keep` and recounts their bytes.
    fn keep(&mut self, keep: BTreeMap<u64, (Entry, u64)>) {
        self.tail_bytes = keep.values().map(|(entry, _)| size_of_entry(entry)).sum();
        self.tail = keep;
    }
}

/// What an entry costs in memory, about.
fn size_of_entry(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(pack) => 128 + pack.bytes.len(),
        _ => 512,
    }
}

impl LogStore {
    /// Checks what the engine holds and starts the writer. `applied` is where the snapshot ends. Returns also what
    /// resolves once the store is closed.
    pub(super) fn open(
        engine: Arc<dyn LogEngine>,
        path: &Path,
        me: u64,
        applied: Option<LogId>,
    ) -> Result<(Self, oneshot::Receiver<()>), StoreError> {
        let opened = Witness::open(path);
        let (witness, seen) = opened.map_err(|source| StoreError::Io {
            act: "open the witness of",
            path: path.to_owned(),
            source,
        })?;
        let checked = log_check::check(&*engine, path, applied, seen)?;
        let Checked { vote, committed, purged, entries, log_end } = checked;
        let durable = Seen { log_end, term: vote.map_or(0, |vote| vote.leader_id.term) };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                vote: vote.map(|vote| step_down(vote, me)),
                committed,
                purged,
                last: purged,
                tail: BTreeMap::new(),
                tail_bytes: 0,
                next_ticket: 1,
            }),
            durable: watch::Sender::new(Ok(log_end)),
        });
        {
            let mut state = shared.state();
            for entry in entries {
                state.push(entry, 0);
            }
        }
        shared.written(0);
        let started = writer::start(Arc::clone(&engine), Arc::clone(&shared), witness, durable);
        let (writes, closed) = started.map_err(|source| StoreError::Io {
            act: "start the writer of",
            path: path.to_owned(),
            source,
        })?;
        if let Some(upto) = purged {
            // A crash may have left entries behind that were purged already.
            drop(writes.send(Write::Purge { upto }));
        }
        Ok((Self { shared, engine, writes }, closed))
    }

    /// How much of the log is on disk.
    pub(super) fn durable(&self) -> watch::Receiver<Durable> {
        self.shared.durable.subscribe()
    }

    /// Writes a named value and waits until it is durable.
    pub(super) async fn put(&self, key: MetaKey, value: Vec<u8>) -> Result<(), StorageError> {
        self.write(|done| Write::Put { key, value, done }).await
    }

    async fn write(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Write,
    ) -> Result<(), StorageError> {
        let (done, result) = oneshot::channel();
        self.writes.send(make(done)).map_err(|_| closed())?;
        match result.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(StorageIOError::write(AnyError::error(cause)).into()),
            Err(_) => Err(closed()),
        }
    }

    /// Entries of `start..end` until `max_bytes` are passed, at least one if there is one.
    async fn entries(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<Entry>, StorageError> {
        let (start, mut entries, tail_start) = {
            let state = self.shared.state();
            let start = start.max(state.purged.map_or(0, |purged| purged.index + 1));
            let end = end.min(state.last.map_or(0, |last| last.index + 1));
            if start >= end {
                return Ok(Vec::new());
            }
            let tail_start = state.tail.first_key_value().map_or(end, |(first, _)| (*first).min(end));
            let mut bytes = 0;
            let fits = |(_, (entry, _)): &(&u64, &(Entry, u64))| {
                let had = bytes;
                bytes += size_of_entry(entry);
                had < max_bytes
            };
            let from_tail =
                state.tail.range(start..end).take_while(fits).map(|(_, (entry, _))| entry.clone());
            (start, from_tail.collect::<Vec<_>>(), tail_start)
        };
        if start >= tail_start {
            return Ok(entries);
        }
        let engine = Arc::clone(&self.engine);
        let older =
            tokio::task::spawn_blocking(move || log_check::read(&*engine, start..tail_start, max_bytes));
        let mut older =
            older.await.map_err(|e| StorageError::from(StorageIOError::read_logs(&e)))?.map_err(|error| {
                StorageError::from(StorageIOError::read_log_at_index(
                    start,
                    AnyError::error(error.to_string()),
                ))
            })?;
        // Nothing older at all: the log begins in memory.
        if older.last().is_none_or(|last| last.log_id.index + 1 == tail_start) {
            older.append(&mut entries);
        }
        Ok(older)
    }
}

/// A leader that restarts does not lead until it is elected again.
///
/// The core would restore its leadership on the strength of its own committed vote, and then answer linearizable reads
/// at the commit index it last saved, which may lie before writes it had acknowledged. Its vote still counts as given.
fn step_down(vote: Vote, me: u64) -> Vote {
    if vote.leader_id.node_id == me { Vote { committed: false, ..vote } } else { vote }
}

fn closed() -> StorageError {
    StorageIOError::write(AnyError::error("the log is closed")).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start, end, SEND_BYTES).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let state = self.shared.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.write(|done| Write::Vote { vote: *vote, done }).await?;
        self.shared.state().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.shared.state().vote)
    }

    /// Written with the next group: it only spares a restarted follower the wait for the leader's word.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.shared.state().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.shared.committed())
    }

    /// DECISION: what this controller proposes is reported as written at once, so that the followers write it while it is
    /// being written here: one sync on the way to an acknowledgement and not two. Nothing comes of it before it is on
    /// disk here as well: `apply` waits for that, and so does the news for followers that it is committed. A leader
    /// that dies in between has told nobody, and a restarted one leads only in a new term (`step_down`), so it never
    /// gives a number twice.
    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut all_own = true;
        let ticket = {
            let mut state = self.shared.state();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            for entry in &entries {
                match &entry.payload {
                    openraft::EntryPayload::Normal(pack) if pack.is_own() => pack.mark_appended(),
                    _ => all_own = false,
                }
                state.push(entry.clone(), ticket);
            }
            ticket
        };
        let (now, later) = if all_own { (Some(flushed), None) } else { (None, Some(flushed)) };
        self.writes.send(Write::Append { entries, ticket, flushed: later }).map_err(|_| closed())?;
        if let Some(flushed) = now {
            flushed.log_io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let previous = since.index.checked_sub(1);
        let before = match previous {
            Some(previous) => {
                self.entries(previous, since.index, usize::MAX).await?.pop().map(|entry| entry.log_id)
            }
            None => None,
        };
        {
            let mut state = self.shared.state();
            let mut tail = std::mem::take(&mut state.tail);
            tail.split_off(&since.index);
            state.keep(tail);
            state.last = before.or(state.purged);
        }
        self.write(|done| Write::Truncate { first: since.index, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        {
            let mut state = self.shared.state();
            let mut tail = std::mem::take(&mut state.tail);
            let kept = tail.split_off(&(upto.index + 1));
            state.keep(kept);
            state.purged = state.purged.max(Some(upto));
            state.last = state.last.max(Some(upto));
        }
        self.writes.send(Write::Purge { upto }).map_err(|_| closed())
    }
}
