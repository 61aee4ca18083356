//! Keeps a controller's own certificate fresh, its ports at what the cluster believes, and the cluster's authorities few.

use std::sync::Arc;
use std::time::Duration;

use dunlin_state::{Command, Trust, TrustChange};

use crate::api::renew_own;
use crate::node::Node;

/// How often it is looked whether something is due. Certificates live for days; a rotation waits for this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a renewal that failed: there is a week left, and a leader may be gone.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Until the controller stops.
pub(crate) async fn keep(node: Arc<Node>) {
    node.closing.run_until_cancelled(follow(&node)).await;
}

async fn follow(node: &Node) {
    let mut views = node.replica.watch();
    let mut seen = None;
    loop {
        let believed = views.borrow_and_update().trust().clone();
        if seen != Some(believed.epoch()) {
            match node.keys.follow(&believed) {
                Ok(()) => seen = Some(believed.epoch()),
                Err(error) => tracing::error!(%error, "what the cluster believes could not be taken over"),
            }
        }
        // The log of a controller that was off for long may be applied only after it listens.
        if let Err(error) = node.keys.mend(&believed) {
            tracing::error!(%error, "the certificate of this controller has ended and could not be mended");
        }
        let mut pause = LOOK_EVERY;
        if node.keys.is_due() {
            match renew_own(node).await {
                Ok(()) => tracing::info!("renewed the certificate of this controller"),
                Err(fault) => {
                    tracing::debug!(%fault, "the certificate of this controller is not renewed yet");
                    pause = RETRY_EVERY;
                }
            }
        }
        if let Some(term) = node.leading() {
            drop_unused(node, &believed, term).await;
        }
        let news = views.wait_for(|view| Some(view.trust().epoch()) != seen);
        if let Ok(Err(_)) = tokio::time::timeout(pause, news).await {
            return;
        }
    }
}

/// An authority that signs no more and that nobody needs any more goes.
async fn drop_unused(node: &Node, believed: &Trust, term: u64) {
    let [old, _] = believed.authorities() else { return };
    if believed.users(&old.id, node.config.clock.now()).next().is_some() {
        return;
    }
    let change = TrustChange::Drop { authority: old.id.clone(), force: false };
    match node.replica.propose_in_term(term, &Command::Trust(change)).await {
        Ok(Ok(_)) => tracing::info!(authority = old.id, "dropped an authority that nobody uses"),
        Ok(Err(rejected)) => tracing::debug!(%rejected, "an authority stays"),
        Err(error) => tracing::debug!(%error, "an authority stays for now"),
    }
}
