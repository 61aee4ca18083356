//! Who belongs to the cluster, and who leads it.
//!
//! ```text
//!  add_learner ──> it gets a snapshot or the log ──> behind() is small ──> change_membership ──> it votes
//!  hand_over(to) ──Stand──> `to` stands; this leader grants its vote ──> `to` leads
//! ```

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use dunlin_model::ControllerId;
use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::time::{Instant, timeout};

use super::proposer::leader_of;
use super::replica::CAUGHT_UP_ENTRIES;
use super::{Machine, Member, MembershipError, Replica};

/// A membership change waits so many deadlines: it may come right behind an election.
const MEMBERSHIP_DEADLINES: u32 = 4;

/// Between two requests to stand: an election with its syncs.
const STAND_AGAIN: Duration = Duration::from_millis(150);

impl<M: Machine> Replica<M> {
    /// Adds a controller that receives the log but does not vote. Its store must be empty. Leader only.
    pub async fn add_learner(&self, id: ControllerId, member: Member) -> Result<(), MembershipError> {
        if !self.metrics().members.contains_key(&id) {
            self.inner.network.forget(id.0);
        }
        let change = async { self.inner.raft.add_learner(id.0, member, false).await.map(drop) };
        self.change(change).await
    }

    /// How many entries a controller is behind; `None` while it has not been reached. Leader only.
    #[must_use]
    pub fn behind(&self, id: ControllerId) -> Option<u64> {
        let seen = self.inner.raft.metrics().borrow().clone();
        let matched = seen.replication?.get(&id.0).copied()??;
        Some(seen.last_log_index.unwrap_or(0).saturating_sub(matched.index))
    }

    /// Few enough that what is left arrives within a moment.
    #[must_use]
    pub fn is_close(behind: u64) -> bool {
        behind <= CAUGHT_UP_ENTRIES
    }

    /// Makes exactly `voters` vote; each must be a voter or learner already. Controllers that no longer vote leave the
    /// cluster. Leader only.
    pub async fn change_membership(&self, voters: &[ControllerId]) -> Result<(), MembershipError> {
        let voters: BTreeSet<u64> = voters.iter().map(|id| id.0).collect();
        let change = async { self.inner.raft.change_membership(voters, false).await.map(drop) };
        self.change(change).await
    }

    /// Removes controllers that do not vote. Leader only.
    pub async fn remove_learners(&self, learners: &[ControllerId]) -> Result<(), MembershipError> {
        let learners = ChangeMembers::RemoveNodes(learners.iter().map(|id| id.0).collect());
        let change = async { self.inner.raft.change_membership(learners, false).await.map(drop) };
        self.change(change).await
    }

    /// Hands the leadership to `to`, a voter that is close behind. Leader only; returns once it is no longer this one's,
    /// with whom it went to: where two stand at once that may be another.
    pub async fn hand_over(&self, to: ControllerId) -> Result<ControllerId, MembershipError> {
        let members = self.metrics().members;
        let Some(member) = members.get(&to) else {
            return Err(MembershipError::Refused(format!("controller {to} is no member")));
        };
        let mut peer = self.inner.network.peer(to.0, &member.raft);
        let mut leadership = self.leadership();
        let until = Instant::now() + self.inner.deadline;
        loop {
            let asked = peer.stand().await;
            let me = self.inner.identity.me;
            let other = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|leader| leader.id != me));
            if let Ok(Ok(now)) = timeout(STAND_AGAIN, other).await
                && let Some(leader) = &now.leader
            {
                return Ok(leader.id);
            }
            if Instant::now() >= until {
                let millis = self.deadline_ms();
                return match asked {
                    Ok(()) => Err(MembershipError::Deadline { millis }),
                    Err(status) => Err(MembershipError::Refused(format!(
                        "controller {to} did not stand for election: {}",
                        status.message()
                    ))),
                };
            }
        }
    }

    async fn change(
        &self,
        change: impl Future<Output = Result<(), RaftError<u64, ClientWriteError<u64, Member>>>>,
    ) -> Result<(), MembershipError> {
        let deadline = self.inner.deadline * MEMBERSHIP_DEADLINES;
        let Ok(changed) = tokio::time::timeout(deadline, change).await else {
            let millis = self.deadline_ms() * u64::from(MEMBERSHIP_DEADLINES);
            return Err(MembershipError::Deadline { millis });
        };
        changed.map_err(|error| match error {
            RaftError::Fatal(_) => MembershipError::Stopped,
            RaftError::APIError(ClientWriteError::ForwardToLeader(hint)) => {
                MembershipError::NotLeader { leader: leader_of(&self.inner.raft, &hint) }
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            )) => MembershipError::InProgress,
            RaftError::APIError(error) => MembershipError::Refused(error.to_string()),
        })
    }
}
