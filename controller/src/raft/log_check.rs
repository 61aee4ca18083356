//! Reads a log back, and judges at start whether it can be trusted.
//!
//! A crash can leave three things behind, and each is mended here: entries behind the last mark (never acknowledged;
//! kept if whole, dropped and told if torn), entries that were purged but not yet removed, and a log that ends before
//! the snapshot begins. Anything else is damage and refused: a controller that forgets what it acknowledged can make
//! the cluster forget it.

use std::ops::Range;
use std::path::Path;

use super::StoreError;
use super::engine::{LogEngine, MetaKey};
use super::record;
use super::types::{DecodeError, Entry, LogId, Vote, log_id_from_wire};
use super::witness::Seen;

/// Entries decoded at a time while checking: bounds the memory of a start.
const CHECK_BYTES: usize = 4 << 20;

/// A log that makes sense.
pub(super) struct Checked {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Everything behind `purged`, without a gap.
    pub(super) entries: Vec<Entry>,
    /// One past the last entry, or past the last purged one.
    pub(super) log_end: u64,
}

/// Reads entries back.
pub(super) fn read(
    engine: &dyn LogEngine,
    range: Range<u64>,
    max_bytes: usize,
) -> Result<Vec<Entry>, ReadBack> {
    let records = engine.read(range, max_bytes).map_err(ReadBack::Engine)?;
    let decode = |(index, record)| {
        let entry = record::decode_entry(record).map_err(|source| ReadBack::Entry { index, source })?;
        if entry.log_id.index == index { Ok(entry) } else { Err(ReadBack::Misplaced { index }) }
    };
    records.into_iter().map(decode).collect()
}

/// Why an entry could not be read back.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadBack {
    #[error("{0}")]
    Engine(StoreError),
    #[error("entry {index} is unreadable: {source}")]
    Entry { index: u64, source: DecodeError },
    #[error("entry {index} carries another number")]
    Misplaced { index: u64 },
}

/// Checks the whole store. `applied` is where the snapshot ends, `seen` what the witness says.
pub(super) fn check(
    engine: &dyn LogEngine,
    path: &Path,
    applied: Option<LogId>,
    seen: Seen,
) -> Result<Checked, StoreError> {
    let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };
    let unreadable = |name: &str, error: DecodeError| damaged(format!("its {name} is unreadable: {error}"));
    let vote =
        engine.get(MetaKey::Vote)?.map(record::decode_vote).transpose().map_err(|e| unreadable("vote", e))?;
    let purged = engine.get(MetaKey::Purged)?.map(record::decode_log_id).transpose();
    let purged = purged.map_err(|e| unreadable("purge mark", e))?;
    let marks = engine.get(MetaKey::Marks)?.map(record::decode_marks).transpose();
    let marks = marks.map_err(|e| unreadable("end mark", e))?.unwrap_or_default();
    let committed = marks.committed.map(log_id_from_wire);

    if let Some(purged) = purged
        && applied.is_none_or(|applied| applied.index < purged.index)
    {
        let end = applied.map_or_else(
            || "there is no snapshot".into(),
            |applied| format!("the snapshot ends at {}", applied.index),
        );
        return Err(damaged(format!("the log was purged up to {}, but {end}", purged.index)));
    }
    let start = purged.map_or(0, |purged| purged.index + 1);
    let written = marks.log_end.max(seen.log_end);
    let entries = load(engine, path, start, written)?;
    let log_end = entries.last().map_or(start, |last| last.log_id.index + 1);
    if log_end < written {
        return Err(damaged(format!("the log ends at {log_end}, but was written up to {written}")));
    }
    let term = vote.map_or(0, |vote| vote.leader_id.term);
    if term < seen.term {
        return Err(damaged(format!(
            "its last vote is of term {term}, but it has voted in term {}",
            seen.term
        )));
    }
    if let Some(committed) = committed
        && committed.index >= log_end
        && applied.is_none_or(|applied| applied.index < committed.index)
    {
        return Err(damaged(format!(
            "entry {} was committed, but the log ends at {log_end}",
            committed.index
        )));
    }
    Ok(Checked { vote, committed, purged, entries, log_end })
}

/// All entries from `start` on. Those behind `marked_end` were never acknowledged: the first torn one ends the log.
fn load(engine: &dyn LogEngine, path: &Path, start: u64, marked_end: u64) -> Result<Vec<Entry>, StoreError> {
    let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let next = entries.last().map_or(start, |last| last.log_id.index + 1);
        let records = engine.read(next..u64::MAX, CHECK_BYTES)?;
        if records.is_empty() {
            return Ok(entries);
        }
        for (index, record) in records {
            let expected = entries.last().map_or(start, |last| last.log_id.index + 1);
            let trouble = if index == expected {
                match record::decode_entry(record) {
                    Ok(entry) if entry.log_id.index == index => {
                        entries.push(entry);
                        continue;
                    }
                    Ok(entry) => format!("entry {index} says it is entry {}", entry.log_id.index),
                    Err(error) => format!("entry {index} is unreadable: {error}"),
                }
            } else {
                format!("entries {expected} to {} are missing", index - 1)
            };
            if expected < marked_end {
                return Err(damaged(trouble));
            }
            tracing::warn!(
                entry = expected,
                trouble,
                "dropped the torn end of the log; it was never acknowledged"
            );
            engine.truncate_from(expected)?;
            return Ok(entries);
        }
    }
}
