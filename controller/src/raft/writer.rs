//! The one thread that writes the log: it takes every write that waits, makes them, syncs once, and reports.
//!
//! Group commit: one `fdatasync` covers all writes of a group, and nothing is reported before it. Writes are made in
//! the order they were sent, votes among entries, as consensus demands. Purging, which promises nothing to anybody,
//! happens in slices between the groups, so that an append never waits for more than one slice.

use std::sync::{Arc, mpsc};
use std::{io, thread};

use dunlin_proto::v1 as wire;
use openraft::storage::LogFlushed;
use tokio::sync::oneshot;

use super::StoreError;
use super::engine::{LogEngine, MetaKey};
use super::log_store::Shared;
use super::record;
use super::state_machine::error_chain;
use super::types::{Entry, LogId, Types, Vote, log_id_to_wire};
use super::witness::{Seen, Witness};
use crate::metrics;

/// Writes taken into one group at most: bounds how long the first of them waits for the others to be copied.
const GROUP_WRITES: usize = 256;

/// Entries purged between two groups: about a millisecond of work. (Slices of 1000 were measured to hold up three
/// replicas on one machine for 600 ms.)
const PURGE_SLICE: u64 = 16;

/// One write, and whom to tell.
pub(super) enum Write {
    Append {
        entries: Vec<Entry>,
        ticket: u64,
        /// Set where somebody waits for it.
        flushed: Option<LogFlushed<Types>>,
    },
    Truncate {
        first: u64,
        done: oneshot::Sender<Result<(), String>>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Any named value; used for the identity.
    Put {
        key: MetaKey,
        value: Vec<u8>,
        done: oneshot::Sender<Result<(), String>>,
    },
    Purge {
        upto: LogId,
    },
}

/// Whom to tell about a write.
enum Report {
    Flushed(LogFlushed<Types>),
    Done(oneshot::Sender<Result<(), String>>),
}

impl Report {
    fn send(self, result: &Result<(), String>) {
        match self {
            Self::Flushed(flushed) => flushed.log_io_completed(result.clone().map_err(io::Error::other)),
            // The caller may have been dropped; the write stands all the same.
            Self::Done(done) => drop(done.send(result.clone())),
        }
    }
}

/// Starts the thread. It ends when every sender is gone, or when the engine fails; `closed` resolves after it has let
/// go of the engine.
pub(super) fn start(
    engine: Arc<dyn LogEngine>,
    shared: Arc<Shared>,
    witness: Witness,
    durable: Seen,
) -> io::Result<(mpsc::Sender<Write>, oneshot::Receiver<()>)> {
    let (sender, receiver) = mpsc::channel();
    let (closing, closed) = oneshot::channel();
    let writer = Writer { engine, shared, witness, made: durable, marked: None, purge_to: None };
    thread::Builder::new().name("raft-log".into()).spawn(move || {
        writer.run(&receiver);
        drop(closing);
    })?;
    Ok((sender, closed))
}

struct Writer {
    engine: Arc<dyn LogEngine>,
    shared: Arc<Shared>,
    witness: Witness,
    /// How far the writes go that were made, durable or not.
    made: Seen,
    /// The committed entry that was last written down.
    marked: Option<LogId>,
    purge_to: Option<u64>,
}

impl Writer {
    fn run(mut self, receiver: &mpsc::Receiver<Write>) {
        loop {
            let first = if self.purge_to.is_some() {
                match receiver.try_recv() {
                    Ok(write) => Some(write),
                    Err(mpsc::TryRecvError::Empty) => None,
                    Err(mpsc::TryRecvError::Disconnected) => return self.close(),
                }
            } else {
                match receiver.recv() {
                    Ok(write) => Some(write),
                    Err(mpsc::RecvError) => return self.close(),
                }
            };
            let result = match first {
                Some(first) => self.group(first, receiver),
                None => self.purge_slice(),
            };
            if let Err(error) = result {
                // The core stops on the failed write, and the process with it; later writers see the channel closed.
                self.shared.tell_durable(Err(error_chain(&error).into()));
                tracing::error!(%error, "the log cannot be written");
                return;
            }
        }
    }

    /// Marks how far all is committed, so that the next start has all of it at once, before it has found a quorum: with it
    /// the authority, which signs for a controller whose certificate has ended meanwhile (`trust::Keys::mend`).
    fn close(&mut self) {
        if let Err(error) = self.put_marks().and_then(|()| self.engine.sync()) {
            // The marks of the last group stand, and the leader's word does the rest.
            tracing::debug!(%error, "the last mark was not written");
        }
    }

    fn group(&mut self, first: Write, receiver: &mpsc::Receiver<Write>) -> Result<(), StoreError> {
        let mut reports = Vec::new();
        let mut written = None;
        let mut result = Ok(());
        for write in std::iter::once(first).chain(receiver.try_iter().take(GROUP_WRITES - 1)) {
            let made = match &result {
                Ok(()) => self.make(&write),
                Err(_) => Ok(()),
            };
            match write {
                Write::Append { ticket, flushed, .. } => {
                    written = Some(ticket);
                    reports.extend(flushed.map(Report::Flushed));
                }
                Write::Truncate { done, .. } | Write::Vote { done, .. } | Write::Put { done, .. } => {
                    reports.push(Report::Done(done));
                }
                Write::Purge { .. } => {}
            }
            result = result.and(made);
        }
        if result.is_ok() && (written.is_some() || !reports.is_empty()) {
            result = self.put_marks().and_then(|()| self.sync()).and_then(|()| self.testify());
        }
        let told = result.as_ref().map_err(|error| error_chain(error)).copied();
        if told.is_ok() {
            self.shared.tell_durable(Ok(self.made.log_end));
        }
        if let (Ok(()), Some(ticket)) = (&told, written) {
            self.shared.written(ticket);
        }
        for report in reports {
            report.send(&told);
        }
        result
    }

    fn sync(&self) -> Result<(), StoreError> {
        let _timed = metrics::RAFT_FSYNC.time();
        self.engine.sync()
    }

    fn make(&mut self, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Append { entries, .. } => {
                let records: Vec<_> =
                    entries.iter().map(|entry| (entry.log_id.index, record::encode_entry(entry))).collect();
                let timed = metrics::RAFT_APPEND.time();
                self.engine.append(&records)?;
                drop(timed);
                metrics::RAFT_APPENDED.add(records.len() as u64);
                metrics::RAFT_APPENDED_BYTES.add(records.iter().map(|(_, bytes)| bytes.len() as u64).sum());
                self.made.log_end = records.last().map_or(self.made.log_end, |(index, _)| index + 1);
                Ok(())
            }
            Write::Truncate { first, .. } => {
                // The marks go first: a crash in between leaves more entries than marked, never fewer.
                self.made.log_end = self.made.log_end.min(*first);
                self.testify()?;
                self.witness.sync().map_err(|source| witness_error(&source))?;
                self.put_marks()?;
                self.engine.truncate_from(*first)
            }
            Write::Vote { vote, .. } => {
                self.made.term = vote.leader_id.term;
                self.engine.put(MetaKey::Vote, &record::encode_vote(vote))
            }
            Write::Put { key, value, .. } => self.engine.put(*key, value),
            Write::Purge { upto } => {
                self.made.log_end = self.made.log_end.max(upto.index + 1);
                self.engine.put(MetaKey::Purged, &record::encode_log_id(upto))?;
                self.put_marks()?;
                self.purge_to = self.purge_to.max(Some(upto.index));
                Ok(())
            }
        }
    }

    fn put_marks(&mut self) -> Result<(), StoreError> {
        // What is committed may not be written here yet; a mark beyond the end would look like a loss.
        let known = self.shared.committed().filter(|committed| committed.index < self.made.log_end);
        self.marked = known.or(self.marked);
        let committed = self.marked.as_ref().map(log_id_to_wire);
        self.engine.put(
            MetaKey::Marks,
            &record::encode_marks(&wire::StoreMarks { log_end: self.made.log_end, committed }),
        )
    }

    /// Tells the witness. Only what is durable, or about to be less.
    fn testify(&self) -> Result<(), StoreError> {
        self.witness.write(self.made).map_err(|source| witness_error(&source))
    }

    fn purge_slice(&mut self) -> Result<(), StoreError> {
        if let Some(last) = self.purge_to
            && !self.engine.purge_to(last, PURGE_SLICE)?
        {
            self.purge_to = None;
        }
        Ok(())
    }
}

fn witness_error(source: &io::Error) -> StoreError {
    StoreError::Engine { act: "write the witness", cause: source.to_string() }
}
