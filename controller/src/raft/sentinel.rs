//! Replaces a leader that hangs: its process is stopped or wedged, its host is gone, and no socket closes.
//!
//! A follower that hears nothing asks the leader for a sign of life, on a connection that carries no log entries. When
//! none comes, and a quorum says that it hears nothing either, the leader is lost and the followers stand, one after
//! the other, as they do for a dead one. A follower that alone is cut off finds nobody to agree and disturbs nobody. What
//! is answered late only because a machine is busy stays within the bounds, since all of this runs on threads of its own
//! ([`super::threads`]).
//!
//! ```text
//!  listening ──nothing for REST──> ask the leader ──answer──> listening
//!                                       │none until SILENCE is full
//!                                       v
//!                              ask the others ──no quorum hears nothing──> listening
//!                                       │it hears nothing
//!                                       v
//!                              stand (elector) ──> somebody leads
//! ```
//! The election timers stand behind this; their lease is longer than all of it.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Code;

use super::client::{Network, Peer};
use super::elector::{Evidence, Lost};
use super::hearing::Hearing;
use super::types::Raft;

/// Silence after which the leader is asked, and the pause between two looks. Under load appends come far more often,
/// and an idle leader is asked some ten times a second.
const REST: Duration = Duration::from_millis(50);

/// Silence after which a leader counts as lost. A stopped process must be replaced within half a second, of which
/// the election takes up to a quarter; a busy machine keeps a thread from running for tens of milliseconds.
const SILENCE: Duration = Duration::from_millis(200);

/// The least time a leader has for its answer, and the longest another follower may take.
const PATIENCE: Duration = Duration::from_millis(100);

/// What others must have missed to agree: they look at other moments, and heard the leader up to REST later.
const AGREED: Duration = Duration::from_millis(100);

/// Watches the leader for one controller.
pub(super) struct Sentinel {
    pub(super) raft: Raft,
    pub(super) me: u64,
    pub(super) network: Network,
    pub(super) hearing: Hearing,
}

impl Sentinel {
    /// Runs until the core stops.
    pub(super) async fn run(self) {
        let mut ticks = interval(REST);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (leader, running) = {
                let metrics = self.raft.metrics();
                let seen = metrics.borrow();
                (seen.current_leader, seen.running_state.is_ok())
            };
            if !running {
                return;
            }
            let lost = leader.and_then(|leader| Lost::of(&self.raft, self.me, leader));
            let Some((leader, lost)) = leader.zip(lost) else { continue };
            if self.lives(leader, &lost).await || !self.others_agree(leader).await {
                continue;
            }
            let silent = Evidence::Silent { hearing: self.hearing.clone(), at_least: SILENCE };
            if !lost.replace(&self.raft, &silent).await {
                tracing::info!(leader, "the leader was silent, but it was not replaced");
            }
        }
    }

    /// Whether the leader was heard, or gives an answer before its silence is full.
    async fn lives(&self, leader: u64, lost: &Lost) -> bool {
        let silence = self.hearing.silence(leader);
        if silence < REST {
            return true;
        }
        let left = SILENCE.saturating_sub(silence).max(PATIENCE);
        let mut peer = self.network.peer(leader, lost.address());
        match timeout(left, peer.heard(leader)).await {
            // An answer of any kind, even that it does not know the question.
            Ok(Ok(_)) => self.hearing.note(leader),
            Ok(Err(status)) if !matches!(status.code(), Code::Unavailable | Code::Cancelled) => {
                self.hearing.note(leader);
            }
            Ok(Err(_)) | Err(_) => {}
        }
        self.hearing.silence(leader) < SILENCE
    }

    /// Whether a quorum, this controller included, hears nothing of it.
    async fn others_agree(&self, leader: u64) -> bool {
        let (others, voters) = {
            let metrics = self.raft.metrics();
            let seen = metrics.borrow();
            let membership = seen.membership_config.membership();
            let others = membership.voter_ids().filter(|id| *id != leader && *id != self.me);
            let address = |id| Some((id, membership.get_node(&id)?.raft.clone()));
            (others.filter_map(address).collect::<Vec<_>>(), membership.voter_ids().count())
        };
        let mut asked = JoinSet::new();
        for (id, address) in others {
            asked.spawn(misses(self.network.peer(id, &address), leader));
        }
        let mut agreed = 1;
        while agreed <= voters / 2 {
            match asked.join_next().await {
                Some(missed) => agreed += usize::from(matches!(missed, Ok(true))),
                None => return false,
            }
        }
        true
    }
}

/// Whether that controller says that it hears nothing of the leader either.
async fn misses(mut peer: Peer, leader: u64) -> bool {
    matches!(timeout(PATIENCE, peer.heard(leader)).await, Ok(Ok(silence)) if silence >= AGREED)
}
