//! The state as bytes: one JSON line for the header, one for each thing, one to end it. Streamed both ways.
//!
//! The history for watchers stays behind: after a restore they list again.

use std::io::{BufRead, Write};
use std::sync::Arc;

use dunlin_model::identity::Authority;
use dunlin_model::{
    ApiTokenId, Identity, Kind, Level, Object, Revision, Secret, TaskId, Timestamp, UserId, VmId,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::State;
use crate::changes::History;
use crate::draft::is_active;
use crate::keys::Answer;
use crate::owners::Owners;
use crate::reserve::hosts_of;
use crate::state::{Fence, OrderFor};
use crate::token::Token;
use crate::trust::{Counters, Holder};

/// Version of the encoding. A reader takes this and every older one. 2 added the owners of fields. 3 is 2 of a cluster whose level
/// was raised: a release that knows no levels would not miss the fields that it does not know.
pub const VERSION: u32 = 3;
/// What every release reads that a cluster at the oldest level may have.
const VERSION_UNRAISED: u32 = 2;
/// Longest line read, bytes: one object, far larger than any that validates.
pub const LINE_MAX: u64 = 16 << 20;

/// Why a snapshot could not be written or read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The writer failed.
    #[error("writing a snapshot")]
    Write(#[source] std::io::Error),
    /// The reader failed.
    #[error("reading a snapshot")]
    Read(#[source] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line} of the snapshot is malformed")]
    Malformed {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a newer program.
    #[error("the snapshot has version {0}; this program reads up to {VERSION}")]
    Version(u32),
    /// It ends too early, or its parts do not fit each other.
    #[error("the snapshot is broken: {0}")]
    Broken(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Head { version: u32, index: u64, time: Timestamp, revision: Revision },
    Object(Arc<Object>),
    Fence(VmId, Fence),
    Order(TaskId, OrderFor),
    Token(String, Token),
    Counters(Counters),
    Authority(Box<Authority>),
    Holder(Identity, Holder),
    Password(UserId, Secret),
    Bearer(Secret, ApiTokenId),
    Answer(String, Answer),
    Owners(Kind, Uuid, Owners),
    End { lines: u64 },
}

/// Writes the state.
pub fn encode(state: &State, to: &mut impl Write) -> Result<(), SnapshotError> {
    let mut lines = 0;
    let mut put = |line: &Line| -> Result<(), SnapshotError> {
        lines += 1;
        serde_json::to_writer(&mut *to, line).map_err(|e| SnapshotError::Write(e.into()))?;
        to.write_all(b"\n").map_err(SnapshotError::Write)
    };
    let State { index, time, revision, .. } = *state;
    let version = if state.level() > Level::OLDEST { VERSION } else { VERSION_UNRAISED };
    put(&Line::Head { version, index, time, revision })?;
    state.objects.values().try_for_each(|object| put(&Line::Object(Arc::clone(object))))?;
    state.fences.iter().try_for_each(|(vm, fence)| put(&Line::Fence(*vm, *fence)))?;
    state.orders.iter().try_for_each(|(task, order)| put(&Line::Order(*task, *order)))?;
    state.owners.iter().try_for_each(|((kind, uid), own)| put(&Line::Owners(*kind, *uid, own.clone())))?;
    state.tokens.iter().try_for_each(|(sha256, token)| put(&Line::Token(sha256.clone(), token.clone())))?;
    put(&Line::Counters(state.trust.counters))?;
    let authorities = state.trust.authorities.iter();
    authorities.cloned().try_for_each(|authority| put(&Line::Authority(Box::new(authority))))?;
    let holders = state.trust.holders.iter();
    holders.clone().try_for_each(|(who, holder)| put(&Line::Holder(who.clone(), holder.clone())))?;
    state.passwords.iter().try_for_each(|(user, hash)| put(&Line::Password(*user, hash.clone())))?;
    state.bearers.iter().try_for_each(|(hash, token)| put(&Line::Bearer(hash.clone(), *token)))?;
    let mut answers = state.answers.iter();
    answers.try_for_each(|(key, answer)| put(&Line::Answer(key.to_string(), answer.clone())))?;
    serde_json::to_writer(&mut *to, &Line::End { lines }).map_err(|e| SnapshotError::Write(e.into()))?;
    to.write_all(b"\n").map_err(SnapshotError::Write)?;
    to.flush().map_err(SnapshotError::Write)
}

/// Reads a state back, whole or not at all.
pub fn decode(from: &mut impl BufRead) -> Result<State, SnapshotError> {
    let mut state = State::new();
    let mut count = 0;
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let mut limited = std::io::Read::take(&mut *from, LINE_MAX);
        let read = limited.read_until(b'\n', &mut buffer).map_err(SnapshotError::Read)?;
        if read == 0 {
            return Err(SnapshotError::Broken(format!("it ends after {count} lines")));
        }
        let line = serde_json::from_slice(&buffer)
            .map_err(|source| SnapshotError::Malformed { line: count + 1, source })?;
        if let (Line::Head { .. }, true) | (Line::Object(_) | Line::End { .. }, false) = (&line, count > 0) {
            return Err(SnapshotError::Broken(format!("line {} is out of place", count + 1)));
        }
        if let Line::End { lines } = line {
            let whole = lines == count;
            // Only now: what a VM takes also depends on images, which come behind it.
            crate::quota::count_anew(&mut state);
            let broken = format!("it says {lines} lines and has {count}");
            return if whole { Ok(state) } else { Err(SnapshotError::Broken(broken)) };
        }
        take_in(&mut state, line)?;
        count += 1;
    }
}

fn take_in(state: &mut State, line: Line) -> Result<(), SnapshotError> {
    match line {
        Line::Head { version, .. } if version > VERSION => return Err(SnapshotError::Version(version)),
        Line::Head { index, time, revision, .. } => {
            (state.index, state.time, state.revision) = (index, time, revision);
            state.history = History::starting_at(revision);
        }
        Line::Object(object) => insert(state, object),
        Line::Fence(vm, fence) => state.fences.insert(vm, fence),
        Line::Order(task, order) => state.orders.insert(task, order),
        Line::Token(sha256, token) => state.tokens.insert(sha256, token),
        Line::Counters(counters) => state.trust.counters = counters,
        Line::Authority(authority) => Arc::make_mut(&mut state.trust.authorities).push(*authority),
        Line::Holder(who, holder) => drop(state.trust.holders.insert(who, holder)),
        Line::Password(user, hash) => state.passwords.insert(user, hash),
        Line::Bearer(hash, token) => state.bearers.insert(hash, token),
        Line::Answer(key, answer) => state.answers.insert(&key, answer),
        Line::Owners(kind, uid, own) => state.owners.insert((kind, uid), own),
        Line::End { .. } => {}
    }
    Ok(())
}

pub(crate) fn insert(state: &mut State, object: Arc<Object>) {
    let key = (object.kind(), object.uid());
    for host in hosts_of(&object) {
        match &*object {
            Object::Vm(vm) => state.by_host.insert((host, vm.metadata.uid)),
            Object::Migration(m) => state.moves.insert((host, m.metadata.uid)),
            _ => {}
        }
    }
    if is_active(&object) {
        state.active.insert(key);
    }
    state.marks.follow(None, Some(&object));
    state.event_count += usize::from(key.0 == Kind::Event);
    state.names.insert((key.0, object.name().clone()), key.1);
    state.objects.insert(key, object);
}
