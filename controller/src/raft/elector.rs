//! Replaces a leader whose process has died without waiting for its silence.
//!
//! A killed process closes its sockets at once. When a connection from the leader closes, and a fresh connection to it
//! is refused, it is dead, and this controller stands for election. Anything less certain (a timeout, a leader that
//! accepts again) is left to the election timers.
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
//! one after the other in the order of their ids, and the second round at the latest is decided by ordinary votes.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::types::Raft;

/// Between two controllers that stand: longer than a vote with its fsync takes on a decent disk.
const STAGGER: Duration = Duration::from_millis(20);

/// Between two rounds of one controller.
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
        if let Some(lost) = Lost::of(&raft, me, controller)
            && !lost.replace(&raft).await
        {
            tracing::info!(controller, "the leader's connection closed; the election timers decide");
        }
    }
}

/// A leader that may be dead.
struct Lost {
    leader: u64,
    address: String,
    /// This controller's place among the other voters.
    rank: u32,
}

impl Lost {
    fn of(raft: &Raft, me: u64, controller: u64) -> Option<Self> {
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        if metrics.current_leader != Some(controller) || controller == me {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let address = membership.get_node(&controller)?.raft.clone();
        let rank = membership.voter_ids().filter(|id| *id != controller && *id < me).count();
        membership.voter_ids().any(|id| id == me).then_some(Self {
            leader: controller,
            address,
            rank: u32::try_from(rank).unwrap_or(0),
        })
    }

    /// Stands until somebody leads. Returns false when the leader is not certainly dead, or no round decided.
    async fn replace(&self, raft: &Raft) -> bool {
        for _ in 0..ROUNDS {
            if !refuses(&self.address).await {
                return false;
            }
            sleep(STAGGER * self.rank).await;
            if self.is_replaced(raft) {
                return true;
            }
            tracing::info!(leader = self.leader, "the leader's process is gone; standing for election");
            if raft.trigger().elect().await.is_err() {
                return true;
            }
            let mut metrics = raft.metrics();
            let somebody = metrics
                .wait_for(|metrics| metrics.current_leader.is_some_and(|leader| leader != self.leader));
            if timeout(ROUND, somebody).await.is_ok() {
                return true;
            }
        }
        false
    }

    fn is_replaced(&self, raft: &Raft) -> bool {
        raft.metrics().borrow().current_leader.is_some_and(|leader| leader != self.leader)
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
