//! Packs the commands that wait into log entries.
//!
//! DECISION: one entry carries every command that is waiting, because the core appends and syncs entry by entry: at
//! 5 ms per fsync that is 171 commands a second unpacked (measured with 64 callers) however many wait. There is no
//! batching timer: a command that finds nothing in flight goes out alone at once, and what arrives while entries are
//! in flight shares the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_model::ControllerId;
use dunlin_proto::v1 as wire;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::error::{ClientWriteError, Fatal, ForwardToLeader, RaftError};
use prost::Message;
use prost::bytes::Bytes;
use tokio::sync::mpsc;

use super::state_machine::{Pending, Waiter};
use super::types::{Pack, Raft};
use super::{Leader, Machine, Member, ProposeError};
use crate::{clock, metrics};

/// The longest command, as JSON. A command is a change to one object; a megabyte is no change but a payload.
pub(super) const COMMAND_BYTES_MAX: usize = 1 << 20;

/// A pack is closed once it has this many bytes: a follower takes it in one message and writes it within a millisecond.
const PACK_BYTES: usize = 192 << 10;

/// ... or this many commands, so that no caller waits for the decoding of more.
const PACK_COMMANDS: usize = 512;

/// Entries on their way at once. An entry costs three controllers a millisecond of CPU whatever it carries (wake-ups,
/// messages, three syncs), so the fewer the better: with one on its way, everybody else waits for the next, and shares it.
const IN_FLIGHT: usize = 1;

/// Callers that may wait for a pack. Behind it, callers wait to be let in.
pub(super) const QUEUE: usize = 4_096;

/// What a command costs in a pack beside its JSON.
const COMMAND_OVERHEAD: usize = 16;

/// One command on its way to a pack.
pub(super) struct Proposal<M: Machine> {
    pub(super) only_in_term: Option<u64>,
    pub(super) json: Vec<u8>,
    pub(super) waiter: Waiter<M>,
}

/// Runs until every sender of `proposals` is gone or the core has stopped.
pub(super) async fn run<M: Machine>(
    raft: Raft,
    pending: Arc<Pending<M>>,
    mut proposals: mpsc::Receiver<Proposal<M>>,
    deadline: Duration,
) {
    let mut sequence = 0;
    let mut in_flight = FuturesUnordered::new();
    let mut held: Option<Proposal<M>> = None;
    loop {
        while in_flight.len() >= IN_FLIGHT {
            in_flight.next().await;
        }
        let first = match held.take() {
            Some(proposal) => proposal,
            None => tokio::select! {
                biased;
                Some(()) = in_flight.next(), if !in_flight.is_empty() => continue,
                proposal = proposals.recv() => match proposal {
                    Some(proposal) => proposal,
                    None => break,
                },
            },
        };
        sequence += 1;
        let (pack, waiters, left_over) = gather(first, &mut proposals, &pending, sequence);
        metrics::RAFT_PACKS.inc();
        metrics::RAFT_COMMANDS.add(waiters.len() as u64);
        held = left_over;
        pending.insert(sequence, waiters);
        let (pack, appended) = Pack::proposed(pack);
        match raft.client_write_ff(pack).await {
            Ok(answer) => {
                let (pending, raft) = (Arc::clone(&pending), raft.clone());
                in_flight.push(async move {
                    let Ok(answer) = tokio::time::timeout(deadline, answer).await else {
                        // The callers have seen the same deadline pass. Without a quorum, or when the entry came
                        // back inside a snapshot, no answer may ever arrive.
                        drop(pending.take(sequence));
                        return;
                    };
                    match answer {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => {
                            refuse(&raft, &pending, sequence, &RaftError::APIError(error), &appended);
                        }
                        Err(_) => {
                            refuse(&raft, &pending, sequence, &RaftError::Fatal(Fatal::Stopped), &appended);
                        }
                    }
                });
            }
            Err(fatal) => refuse(&raft, &pending, sequence, &RaftError::Fatal(fatal), &appended),
        }
    }
    while in_flight.next().await.is_some() {}
}

/// Takes what waits, up to the bounds. The proposal that would overflow the pack is handed back.
fn gather<M: Machine>(
    first: Proposal<M>,
    proposals: &mut mpsc::Receiver<Proposal<M>>,
    pending: &Pending<M>,
    sequence: u64,
) -> (Bytes, Vec<Waiter<M>>, Option<Proposal<M>>) {
    let mut commands = Vec::new();
    let mut waiters = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    let mut left_over = None;
    while let Some(Proposal { only_in_term, json, waiter }) = next.take() {
        if waiter.is_closed() && !commands.is_empty() {
            // Its caller has given up and was told that the outcome is unknown; not to propose it is one of them.
            next = proposals.try_recv().ok();
            continue;
        }
        let cost = json.len() + COMMAND_OVERHEAD;
        if !commands.is_empty() && bytes + cost > PACK_BYTES {
            left_over = Some(Proposal { only_in_term, json, waiter });
            break;
        }
        bytes += cost;
        commands.push(wire::PackedCommand { json: json.into(), only_in_term });
        waiters.push(waiter);
        if commands.len() < PACK_COMMANDS && bytes < PACK_BYTES {
            next = proposals.try_recv().ok();
        }
    }
    let pack = wire::Pack {
        proposer: pending.proposer,
        run: pending.run,
        sequence,
        time_ms: clock::now().0,
        commands,
    };
    (pack.encode_to_vec().into(), waiters, left_over)
}

/// Tells the callers of a pack that it failed, and whether its fate is open.
///
/// The core says "forward to the leader" both when it never took the pack and when it removed the pack from its log
/// again; in the second case another controller may still hold it and commit it.
fn refuse<M: Machine>(
    raft: &Raft,
    pending: &Pending<M>,
    sequence: u64,
    error: &RaftError<u64, ClientWriteError<u64, Member>>,
    appended: &AtomicBool,
) {
    let error = match error {
        RaftError::Fatal(_) => ProposeError::Stopped,
        RaftError::APIError(_) if appended.load(Ordering::SeqCst) => ProposeError::Unavailable,
        RaftError::APIError(ClientWriteError::ForwardToLeader(hint)) => {
            ProposeError::NotLeader { leader: leader_of(raft, hint) }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(_)) => ProposeError::Unavailable,
    };
    for waiter in pending.take(sequence).into_iter().flatten() {
        drop(waiter.send(Err(error.clone())));
    }
}

/// The hint of the core as the rest of the house names it.
pub(super) fn leader_of(raft: &Raft, hint: &ForwardToLeader<u64, Member>) -> Option<Leader> {
    let id = hint.leader_id?;
    let known = || raft.metrics().borrow().membership_config.membership().get_node(&id).cloned();
    let member = hint.leader_node.clone().or_else(known)?;
    Some(Leader { id: ControllerId(id), member })
}
