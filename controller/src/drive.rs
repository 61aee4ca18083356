//! The leader's loop: looks at the state and at what hosts report, and proposes what the reconcilers ask for.
//!
//! ```text
//!  not leading <---leadership---> leading: wake -> step(state, observed, now) -> propose, many in flight --+
//!                                           ^--- state applied, report, timer, proposal settled -----------+
//! ```
//! Plans nothing itself. Every proposal is fenced with the term, so one that outlives the leadership does nothing. A
//! command that is refused is not proposed again at once: the state it was planned on is out of date, or its author is
//! wrong, and neither may spin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::Object;
use dunlin_state::{Command, Outcome, Rejected};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::fleet::View;
use crate::node::Node;
use crate::raft::ProposeError;
use crate::reconcile::{Observed, step};
use crate::{balancer, clock, found, metrics};

/// How long the loop may sleep: what only time brings (timeouts of migrations, sweeps) is seen this late at most.
const WAKE_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Least time between two looks: changes that come together are planned together.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// The pause, in times of what the look took: over a large and busy fleet, looking takes a quarter of one CPU at most.
const PAUSE_PER_LOOK: u32 = 3;
/// Proposals in flight. One log entry takes some hundreds; what does not fit is planned again when some have settled.
const IN_FLIGHT_MAX: usize = 512;
/// After a first refusal; doubled by each further one of the same command.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest a refused command waits.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A command that has not been planned for so long after its backoff is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Until the controller stops: drives the fleet in every term in which this controller leads.
pub(crate) async fn drive(node: Arc<Node>) {
    let mut leadership = node.replica.leadership();
    loop {
        let lead = tokio::select! {
            lead = leadership.wait_for(|now| now.is_me) => lead.map(|now| now.term),
            () = node.closing.cancelled() => return,
        };
        let Ok(term) = lead else { return };
        tracing::info!(term, "leads");
        let over = leadership.wait_for(|now| !now.is_me || now.term != term);
        tokio::select! {
            // Dropping the loop takes nothing back and proposes nothing more.
            over = over => if over.is_err() { return },
            () = lead_term(&node, term) => {}
            () = balancer::level(&node, term) => {}
            () = node.closing.cancelled() => return,
        }
        tracing::info!(term, "leads no longer");
    }
}

async fn lead_term(node: &Node, term: u64) {
    node.board.begin(term);
    found::found(node, term).await;
    let mut views = node.replica.watch();
    let mut reports = node.board.watch();
    let mut proposals = Proposals::default();
    let mut settling = JoinSet::new();
    loop {
        let view = views.borrow_and_update().clone();
        reports.mark_unchanged();
        let began = Instant::now();
        let commands = match look(view.clone(), node.board.snapshot()).await {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(%error, "the reconcilers failed; they will look again");
                tokio::time::sleep(WAKE_AT_LEAST_EVERY).await;
                continue;
            }
        };
        metrics::RECONCILE.observe(began.elapsed());
        let pause = LOOK_PAUSE.max(began.elapsed() * PAUSE_PER_LOOK);
        for command in commands {
            let Some(key) = proposals.admit(&command, Instant::now()) else { continue };
            let replica = node.replica.clone();
            let held = metrics::RECONCILE_RUNNING.held();
            settling.spawn(async move {
                let result = replica.propose_in_term(term, &command).await;
                drop(held);
                if let (Command::Migrate { .. }, Ok(Ok(outcome))) = (&command, &result)
                    && let Some(Object::Migration(migration)) = outcome.object.as_deref()
                {
                    metrics::migrated(migration);
                }
                (key, result)
            });
        }
        tokio::time::sleep(pause).await;
        let now = Instant::now();
        let wake_at =
            proposals.next_retry(now).unwrap_or(now + WAKE_AT_LEAST_EVERY).min(now + WAKE_AT_LEAST_EVERY);
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = reports.changed() => if changed.is_err() { return },
            Some(Ok((key, result))) = settling.join_next() => proposals.settle(key, &result, Instant::now()),
            () = tokio::time::sleep_until(wake_at) => {
                node.board.forget_acts(&view);
            }
        }
        while let Some(Ok((key, result))) = settling.try_join_next() {
            proposals.settle(key, &result, Instant::now());
        }
    }
}

/// One step, on a thread of its own: over a large fleet it takes milliseconds.
async fn look(view: View, observed: Arc<Observed>) -> Result<Vec<Command>, JoinError> {
    tokio::task::spawn_blocking(move || step(&view, &observed, clock::now())).await
}

/// Did it? A command that is accepted and changes nothing must not be proposed in a circle either.
fn changed_something(outcome: &Outcome) -> bool {
    outcome.object.as_ref().is_none_or(|object| object.revision() == outcome.revision)
}

/// What was proposed: in flight, or refused and waiting.
#[derive(Debug, Default)]
struct Proposals {
    /// By the JSON of the command without its record of why, which is what makes two commands the same.
    known: BTreeMap<String, Standing>,
    in_flight: usize,
}

#[derive(Clone, Copy, Debug)]
enum Standing {
    InFlight { backoff: Duration },
    Refused { backoff: Duration, until: Instant },
}

impl Proposals {
    /// May it be proposed now? Then it counts as in flight under the key returned.
    fn admit(&mut self, command: &Command, now: Instant) -> Option<String> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let same = command.without_why();
        let key = serde_json::to_string(&same).expect("a command goes through the log as JSON");
        let backoff = match self.known.get(&key) {
            Some(Standing::InFlight { .. }) => return None,
            Some(Standing::Refused { until, .. }) if *until > now => return None,
            Some(Standing::Refused { backoff, .. }) => (*backoff * 2).min(BACKOFF_MAX),
            None => BACKOFF_MIN,
        };
        self.known.insert(key.clone(), Standing::InFlight { backoff });
        self.in_flight += 1;
        Some(key)
    }

    fn settle(
        &mut self,
        key: String,
        result: &Result<Result<Outcome, Rejected>, ProposeError>,
        now: Instant,
    ) {
        self.in_flight -= 1;
        let standing = self.known.remove(&key);
        metrics::RECONCILE_PROPOSED.inc(&[match result {
            Ok(Ok(outcome)) if changed_something(outcome) => "done",
            Ok(Ok(_)) => "nothing changed",
            Ok(Err(_)) => "refused",
            Err(_) => "no outcome",
        }]);
        match result {
            Ok(Ok(outcome)) if changed_something(outcome) => return,
            Ok(Ok(_)) => tracing::debug!(command = key, "a proposal changed nothing"),
            Ok(Err(rejected)) => tracing::debug!(command = key, %rejected, "a proposal was refused"),
            Err(error) => tracing::debug!(command = key, %error, "a proposal has no outcome"),
        }
        if let Some(Standing::InFlight { backoff }) = standing {
            self.known.insert(key, Standing::Refused { backoff, until: now + backoff });
        }
    }

    /// When a refused command may next be tried. Forgets those that are no longer planned.
    fn next_retry(&mut self, now: Instant) -> Option<Instant> {
        self.known.retain(|_, standing| match standing {
            Standing::InFlight { .. } => true,
            Standing::Refused { until, .. } => *until + FORGET_AFTER > now,
        });
        let waiting = self.known.values().filter_map(|standing| match standing {
            Standing::Refused { until, .. } if *until > now => Some(*until),
            _ => None,
        });
        waiting.min()
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::{ErrorCode, VmId};

    use super::*;

    /// A refused command waits, longer each time, and a command in flight is not proposed twice.
    #[test]
    fn a_refused_command_does_not_spin() {
        let command = Command::ForgetVm { vm: VmId(uuid::Uuid::nil()) };
        let refused = Ok(Err(Rejected::new(ErrorCode::WrongState, "no")));
        let mut proposals = Proposals::default();
        let mut now = Instant::now();
        let mut waited = Vec::new();
        for _ in 0..9 {
            let key = proposals.admit(&command, now).expect("it may be tried");
            assert_eq!(proposals.admit(&command, now), None, "it is in flight");
            proposals.settle(key, &refused, now);
            assert_eq!(proposals.admit(&command, now), None, "it was just refused");
            let retry = proposals.next_retry(now).expect("it will be tried again");
            waited.push((retry - now).as_millis());
            now = retry;
        }
        assert_eq!(waited, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);

        let key = proposals.admit(&command, now).expect("it may be tried");
        let accepted = Outcome { revision: dunlin_model::Revision(1), object: None, repeated: false };
        proposals.settle(key, &Ok(Ok(accepted)), now);
        let key = proposals.admit(&command, now).expect("nothing stands against it after a success");
        proposals.settle(key, &refused, now);
        proposals.next_retry(now + FORGET_AFTER * 2);
        assert!(proposals.known.is_empty(), "what is no longer planned is forgotten");
    }
}
