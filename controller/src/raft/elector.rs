//! Replaces a leader whose process has died without waiting for its silence.
//!
//! A killed process closes its sockets at once. When a connection from the leader closes, and a fresh connection to it
//! is refused, it is dead, and this controller stands for election. Anything less certain (a timeout, a leader that
//! accepts again) is left to the sentinel and to the election timers.
//!
//! ```text
//!  leader's connection closes ──> connect to it ──accepted, timeout──> leave it to the timers
//!                                      │refused
//!                                      v
//!                     wait rank x STAGGER, stand ──> somebody leads ──> done
//!                                      ^                  │nobody yet
//!                                      └──── ROUND ───────┘
//! ```
//! Followers refuse every candidate while the dead leader's lease runs, unless they stand themselves; so all stand,
//! one after the other in the order of their ids, and the second round at the latest is decided by ordinary votes. Who has
//! given its vote away lets one round pass.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::hearing::Hearing;
use super::types::{Raft, RaftMetrics};
use super::watchman::leads_ready;

/// Between two controllers that stand in the first round: longer than a vote with its fsync takes on a decent disk.
/// Every round takes twice as long as the one before, in case the machine is too busy for it.
const STAGGER: Duration = Duration::from_millis(20);

/// From the first round to the second of one controller.
const ROUND: Duration = Duration::from_millis(80);

/// After so many rounds the timers take over.
const ROUNDS: u32 = 5;

/// How long the leader may take to accept. A refusal comes within a millisecond.
const PROBE: Duration = Duration::from_millis(100);

/// A dying process closes its connections and its listener one after the other: an accepted probe is repeated after
/// these pauses before it is believed.
const PROBE_PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(10), Duration::from_millis(30), Duration::from_millis(60)];

/// Runs until the transport is gone.
pub(super) async fn run(raft: Raft, me: u64, mut gone: mpsc::UnboundedReceiver<u64>) {
    while let Some(controller) = gone.recv().await {
        let Some(lost) = Lost::of(&raft, me, controller) else { continue };
        if !lost.replace(&raft, &Evidence::Gone).await {
            tracing::info!(controller, "the leader's connection closed; it may live");
        }
    }
}

/// Why a leader counts as lost. Looked at again before every round.
#[derive(Debug)]
pub(super) enum Evidence {
    /// Nobody listens where its process listened.
    Gone,
    /// A quorum hears nothing of it, and this controller has not for so long.
    Silent { hearing: Hearing, at_least: Duration },
}

/// A leader that may be lost.
pub(super) struct Lost {
    me: u64,
    leader: u64,
    address: String,
    /// This controller's place among the other voters.
    rank: u32,
}

impl Lost {
    /// None when `controller` does not lead, or this one has no vote.
    pub(super) fn of(raft: &Raft, me: u64, controller: u64) -> Option<Self> {
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        if metrics.current_leader != Some(controller) || controller == me {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let address = membership.get_node(&controller)?.raft.clone();
        let rank = membership.voter_ids().filter(|id| *id != controller && *id < me).count();
        membership.voter_ids().any(|id| id == me).then_some(Self {
            me,
            leader: controller,
            address,
            rank: u32::try_from(rank).unwrap_or(0),
        })
    }

    /// Stands until somebody else leads. Returns false when the evidence does not hold any more, or no round decided.
    pub(super) async fn replace(&self, raft: &Raft, evidence: &Evidence) -> bool {
        let mut gave_way_to = None;
        for round in 0..ROUNDS {
            if !self.proven(evidence).await {
                return false;
            }
            sleep(STAGGER * self.rank * (1 << round)).await;
            if self.is_replaced(&raft.metrics().borrow()) {
                return true;
            }
            let favoured = self.favoured(&raft.metrics().borrow());
            if favoured.is_some() && favoured != gave_way_to {
                gave_way_to = favoured;
            } else {
                tracing::info!(leader = self.leader, ?evidence, "standing for election");
                if raft.trigger().elect().await.is_err() {
                    return true;
                }
            }
            let mut metrics = raft.metrics();
            let replaced = metrics.wait_for(|metrics| self.is_replaced(metrics));
            if timeout(ROUND * (1 << round), replaced).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Another candidate that has this controller's vote. It may win within this round, and standing against it would
    /// dethrone it at once: with one more entry in its log, so that nobody else could win any more.
    fn favoured(&self, metrics: &RaftMetrics) -> Option<(u64, u64)> {
        let candidate = metrics.vote.leader_id;
        let another = !metrics.vote.committed && ![self.leader, self.me].contains(&candidate.node_id);
        another.then_some((candidate.term, candidate.node_id))
    }

    async fn proven(&self, evidence: &Evidence) -> bool {
        match evidence {
            Evidence::Gone => refuses(&self.address).await,
            Evidence::Silent { hearing, at_least } => hearing.silence(self.leader) >= *at_least,
        }
    }

    /// Where the leader's transport listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether somebody else leads; this controller only once it has committed something, for until then a candidate
    /// that stood at the same time may dethrone it.
    fn is_replaced(&self, metrics: &RaftMetrics) -> bool {
        let another = metrics.current_leader.filter(|leader| *leader != self.leader);
        another.is_some_and(|leader| leader != self.me || leads_ready(metrics))
    }
}

/// Whether nobody listens there. False when that is not certain.
async fn refuses(address: &str) -> bool {
    for pause in PROBE_PAUSES {
        sleep(pause).await;
        match timeout(PROBE, TcpStream::connect(address)).await {
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return true,
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
    }
    false
}
