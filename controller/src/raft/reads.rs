//! Confirms that this controller still leads, once for all readers that wait.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::ReadError;
use super::proposer::leader_of;
use super::types::Raft;

/// Readers that may wait for a confirmation; behind it they wait to be let in.
const QUEUE: usize = 4_096;

type Answer = Result<u64, ReadError>;

/// Gives out confirmed read indexes.
#[derive(Clone)]
pub(super) struct ReadIndex {
    asking: mpsc::Sender<oneshot::Sender<Answer>>,
}

impl ReadIndex {
    /// Starts the task that asks. It ends with the last clone of the handle.
    pub(super) fn start(raft: Raft, deadline: Duration) -> Self {
        let (asking, mut asked) = mpsc::channel::<oneshot::Sender<Answer>>(QUEUE);
        tokio::spawn(async move {
            let mut waiting = Vec::new();
            // Everybody who asked before a round began is answered by it; who asks during it waits for the next.
            while asked.recv_many(&mut waiting, QUEUE).await > 0 {
                let answer = confirm(&raft, deadline).await;
                for reader in waiting.drain(..) {
                    drop(reader.send(answer.clone()));
                }
            }
        });
        Self { asking }
    }

    /// One past the log index that must be applied before a read, confirmed by a quorum after the call.
    pub(super) async fn confirm(&self) -> Answer {
        let (reader, answer) = oneshot::channel();
        self.asking.send(reader).await.map_err(|_| ReadError::Stopped)?;
        answer.await.map_err(|_| ReadError::Stopped)?
    }
}

async fn confirm(raft: &Raft, deadline: Duration) -> Answer {
    let expired = ReadError::Deadline { millis: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) };
    let started = tokio::time::Instant::now();
    loop {
        let Ok(result) = tokio::time::timeout_at(started + deadline, raft.get_read_log_id()).await else {
            return Err(expired);
        };
        match result {
            Ok((id, _)) => return Ok(id.map_or(0, |id| id.index + 1)),
            Err(RaftError::Fatal(_)) => return Err(ReadError::Stopped),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(hint))) => {
                return Err(ReadError::NotLeader { leader: leader_of(raft, &hint) });
            }
            // A round ends after one heartbeat interval; a slow disk or a lost packet deserves another.
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                tokio::task::yield_now().await;
            }
        }
    }
}
