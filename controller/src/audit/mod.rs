//! The audit log: who did what, from where, and what came of it. One JSON line for each write and each refusal.
//!
//! ```text
//!  writes ---note---> queue (bounded) --> files under data_dir/audit: line, line, line ... | next file | head
//!  refusals --------^   full: a write waits, a refusal is counted       each line holds the hash of the one before
//! ```
//! Each controller keeps the log of what it decided itself: mostly the leader. Nothing secret is ever given to it. Lines
//! are on disk within a second; a kill -9 may cost the last of them, never an older one.

mod chain;
mod files;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub(crate) use chain::Line;
pub(crate) use files::{AuditError, Files, Wanted, list, verify};

use crate::rights::Caller;
use crate::{clock, metrics};

/// Lines that may wait for the disk: at 10,000 writes a second, half a second of them.
const QUEUE_MAX: usize = 4_096;
/// Lines written at once.
const BATCH_MAX: usize = 1_024;
/// How long lines may lie in the page cache, and how far behind the head may be.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Refusals of unknown callers written down in a second; the others are counted in the next one. Whoever knocks at the
/// door a thousand times a second must not push the older lines out.
const REFUSALS_PER_S_MAX: u64 = 20;

/// One thing that was done, or was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at: Timestamp,
    /// A user's or certificate's name; empty when nobody was known.
    pub(crate) who: String,
    /// By what he was known.
    pub(crate) via: String,
    pub(crate) from: String,
    pub(crate) verb: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<String>,
    /// `ok`, or a code of the public error table.
    pub(crate) outcome: String,
    pub(crate) correlation: String,
    /// So many more refusals of unknown callers, right before this one, have no line of their own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) unwritten: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Entry {
    /// What a caller does now.
    pub(crate) fn of(caller: &Caller, verb: &str) -> Self {
        Self {
            at: clock::now(),
            who: caller.name.clone(),
            via: caller.via.as_str().to_owned(),
            from: caller.from.clone(),
            verb: verb.to_owned(),
            kind: String::new(),
            name: String::new(),
            project: None,
            outcome: "ok".to_owned(),
            correlation: caller.correlation.clone(),
            unwritten: 0,
        }
    }

    /// To which object.
    pub(crate) fn about(self, kind: &str, name: &str, project: Option<String>) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned(), project, ..self }
    }

    /// What came of it.
    pub(crate) fn with_outcome(self, outcome: &str) -> Self {
        Self { outcome: outcome.to_owned(), ..self }
    }
}

enum Order {
    Note(Box<Entry>),
    /// Answered once everything before it is on disk.
    Sync(oneshot::Sender<()>),
}

/// The way into the log.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    queue: mpsc::Sender<Order>,
    refusals: Arc<Mutex<Refusals>>,
}

#[derive(Debug, Default)]
struct Refusals {
    second: u64,
    written: u64,
    unwritten: u64,
}

impl Audit {
    /// Begins to write to `files`; ends, with everything on disk, when the last of its handles is dropped.
    pub(crate) fn start(files: Files) -> Self {
        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(keep(files, orders));
        Self { queue, refusals: Arc::default() }
    }

    /// Writes down what was done. Waits when the disk cannot keep up.
    pub(crate) async fn note(&self, entry: Entry) {
        metrics::AUDIT_LINES.inc();
        if self.queue.send(Order::Note(Box::new(entry))).await.is_err() {
            tracing::error!("the audit log has ended before the controller");
        }
    }

    /// Writes down what was refused. Never waits: a refusal that finds no place is counted in the next.
    pub(crate) fn refusal(&self, mut entry: Entry) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let second = entry.at.0 / 1_000;
        if refusals.second != second {
            (refusals.second, refusals.written) = (second, 0);
        }
        let unknown = entry.who.is_empty();
        if unknown && refusals.written >= REFUSALS_PER_S_MAX {
            refusals.unwritten += 1;
            metrics::AUDIT_UNWRITTEN.inc();
            return;
        }
        entry.unwritten = refusals.unwritten;
        match self.queue.try_send(Order::Note(Box::new(entry))) {
            Ok(()) => {
                metrics::AUDIT_LINES.inc();
                refusals.unwritten = 0;
                refusals.written += u64::from(unknown);
            }
            Err(_) => {
                metrics::AUDIT_UNWRITTEN.inc();
                refusals.unwritten += 1;
            }
        }
    }

    /// Lines that wait for the disk.
    pub(crate) fn waiting(&self) -> usize {
        QUEUE_MAX - self.queue.capacity()
    }

    /// Returns when every line before it can be read.
    pub(crate) async fn written(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Order::Sync(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

async fn keep(mut files: Files, mut orders: mpsc::Receiver<Order>) {
    let mut due = tokio::time::interval(SYNC_EVERY);
    let mut batch = Vec::new();
    loop {
        let open = tokio::select! {
            count = orders.recv_many(&mut batch, BATCH_MAX) => count > 0,
            _ = due.tick() => true,
        };
        let (mut lines, mut waiting) = (Vec::new(), Vec::new());
        for order in batch.drain(..) {
            match order {
                Order::Note(entry) => lines.push(*entry),
                Order::Sync(done) => waiting.push(done),
            }
        }
        let sync = lines.is_empty() || !waiting.is_empty() || !open;
        let worked = tokio::task::spawn_blocking(move || {
            let result = files.append(&lines).and_then(|()| if sync { files.sync() } else { Ok(()) });
            (files, result)
        });
        let Ok((kept, result)) = worked.await else { return };
        files = kept;
        if let Err(error) = result {
            // The fleet goes on: an audit disk that is full must not stop it. `verify` shows the gap.
            tracing::error!(%error, "the audit log could not be written");
        }
        for done in waiting {
            // Whoever has stopped waiting needs no answer.
            let _ = done.send(());
        }
        if !open {
            return;
        }
    }
}
