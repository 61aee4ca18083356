//! The balancer's loop on the leader: looks when something was measured or changed, and never more often than its period.
//!
//! Plans nothing itself; see `reconcile::balance`. Proposals are fenced with the term.

use std::time::Duration;

use crate::node::Node;
use crate::reconcile::balance;
use crate::{clock, metrics};

/// Least time between two looks: loads are means over minutes, so more often would see the same.
const PERIOD: Duration = Duration::from_secs(10);

/// Levels the load for as long as this controller leads in `term`. Ends only by being dropped, or when the controller
/// stops.
pub(crate) async fn level(node: &Node, term: u64) {
    let mut measured = node.board.watch_measured();
    let mut views = node.replica.watch();
    loop {
        tokio::time::sleep(PERIOD).await;
        tokio::select! {
            changed = measured.changed() => if changed.is_err() { return },
            changed = views.changed() => if changed.is_err() { return },
        }
        measured.mark_unchanged();
        let (view, observed) = (views.borrow_and_update().clone(), node.board.snapshot());
        let look = tokio::task::spawn_blocking(move || {
            let _timed = metrics::BALANCE.time();
            balance(&view, &observed, clock::now())
        });
        let commands = match look.await {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(%error, "the balancer failed; it will look again");
                continue;
            }
        };
        for command in commands {
            match node.replica.propose_in_term(term, &command).await {
                Ok(Ok(_)) => {}
                // The fleet has changed since it was planned; the next look sees how.
                Ok(Err(rejected)) => tracing::debug!(%rejected, "a move was refused"),
                Err(error) => tracing::debug!(%error, "a move has no outcome"),
            }
        }
    }
}
