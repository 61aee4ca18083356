//! Watches the core: tells who leads, asks for snapshots by size, and tells when and why the core has stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_model::ControllerId;
use openraft::ServerState;
use openraft::error::Fatal;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::replica::Leadership;
use super::state_machine::{Pending, error_chain};
use super::types::{Raft, RaftMetrics};
use super::{Config, Leader, Machine, StopReason};
use crate::metrics;

/// What the watchman publishes.
pub(super) struct Watchman<M: Machine> {
    pub(super) raft: Raft,
    pub(super) pending: Arc<Pending<M>>,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) stopped: watch::Sender<Option<StopReason>>,
    pub(super) bytes_since_snapshot: Arc<AtomicU64>,
    pub(super) every_bytes: u64,
    /// A leader that no quorum has answered for so long is no longer announced.
    pub(super) silence_ms: u64,
    pub(super) period: Duration,
}

impl<M: Machine> Watchman<M> {
    pub(super) fn silence_ms(config: &Config) -> u64 {
        config.timers.election_max_ms + config.timers.election_min_ms
    }

    /// Runs until the core stops.
    pub(super) async fn run(self) {
        let mut changes = self.raft.server_metrics();
        let mut ticks = interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready_term = None;
        loop {
            let seen = self.raft.metrics().borrow().clone();
            if seen.state == ServerState::Leader && leads_ready(&seen) {
                ready_term = Some(seen.current_term);
            }
            self.publish(&seen, ready_term);
            let gaining = seen.state == ServerState::Leader && ready_term != Some(seen.current_term);
            let mut metrics = self.raft.metrics();
            let term = seen.current_term;
            let settled = move |m: &RaftMetrics| {
                m.current_term != term || m.state != ServerState::Leader || leads_ready(m)
            };
            let ready = async { metrics.wait_for(settled).await.is_err() };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                stopped = ready, if gaining => if stopped { break },
                _ = ticks.tick() => self.ask_for_snapshot().await,
            }
        }
        let reason = match &self.raft.metrics().borrow().running_state {
            Ok(()) | Err(Fatal::Stopped) => StopReason::Asked,
            Err(fatal) => StopReason::Failed(error_chain(fatal)),
        };
        if let StopReason::Failed(cause) = &reason {
            tracing::error!(cause, "the replicated core failed");
        }
        self.leadership.send_replace(Leadership::default());
        self.stopped.send_replace(Some(reason));
        self.pending.stop();
    }

    fn publish(&self, seen: &RaftMetrics, ready_term: Option<u64>) {
        let leader = seen.current_leader.and_then(|id| {
            let member = seen.membership_config.membership().get_node(&id)?.clone();
            Some(Leader { id: ControllerId(id), member })
        });
        let alone = seen.membership_config.membership().voter_ids().count() == 1;
        let answered = alone || seen.millis_since_quorum_ack.is_some_and(|millis| millis < self.silence_ms);
        let is_me = seen.state == ServerState::Leader && ready_term == Some(seen.current_term) && answered;
        let now = Leadership { leader, is_me, term: seen.current_term };
        self.leadership.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                let id = |leader: &Option<Leader>| leader.as_ref().map(|leader| leader.id);
                if now.leader.is_some() && id(&now.leader) != id(&before.leader) {
                    metrics::RAFT_LEADERS.inc();
                }
                tracing::info!(
                    leader = now.leader.as_ref().map(|leader| leader.id.0),
                    now.is_me,
                    now.term,
                    "leadership"
                );
                *before = now;
            }
            changed
        });
    }

    async fn ask_for_snapshot(&self) {
        if self.bytes_since_snapshot.load(Ordering::Relaxed) >= self.every_bytes {
            // A stopped core is noticed by the loop.
            drop(self.raft.trigger().snapshot().await);
        }
    }
}

/// A leader may act once it has applied an entry of its own term: everything committed before is applied then.
pub(super) fn leads_ready(metrics: &RaftMetrics) -> bool {
    metrics.last_applied.is_some_and(|applied| applied.leader_id.term == metrics.current_term)
}
