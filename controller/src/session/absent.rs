//! Hosts that are Up in the state but hold no session with the leader: after a grace they are Down.
//!
//! Level-triggered: looks again and again at what is, so a proposal that was lost is simply made again.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::HostId;
use dunlin_model::host::HostPhase;
use dunlin_state::Command;

use crate::node::Node;

/// After the end of a session: an agent that restarts, or whose connection broke, is back within this.
const GRACE_AFTER_SESSION: Duration = Duration::from_secs(3);
/// After the beginning of a leadership: every agent must find the new leader first, which may take several tries.
const GRACE_AFTER_ELECTION: Duration = Duration::from_secs(10);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Until the controller stops: closes the sessions of hosts that are away for too long, while this controller leads.
pub(crate) async fn close_absent(node: Arc<Node>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut term = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = node.closing.cancelled() => return,
        }
        let now = node.leading();
        if now != term {
            node.sessions.forget_absences();
            term = now;
        }
        if let Some(term) = now {
            look(&node, term).await;
        }
    }
}

async fn look(node: &Node, term: u64) {
    let view = node.replica.read();
    let up = view.hosts().filter(|host| host.status.phase == HostPhase::Up).map(|host| host.metadata.uid);
    for (host, absence) in node.sessions.absences(up) {
        let grace = if absence.held { GRACE_AFTER_SESSION } else { GRACE_AFTER_ELECTION };
        if absence.lasted() >= grace {
            let session = view.host(host).map_or(0, |host| host.status.session);
            close(node, term, host, session, absence.held).await;
        }
    }
}

async fn close(node: &Node, term: u64, host: HostId, session: u64, held: bool) {
    let message = if held { "its agent's session ended" } else { "its agent has not found the new leader" };
    let command = Command::CloseSession { host, session, message: message.into() };
    match node.replica.propose_in_term(term, &command).await {
        Ok(Ok(_)) => tracing::warn!(host = %host, session, message, "a host is down"),
        Ok(Err(rejected)) => {
            tracing::debug!(host = %host, session, %rejected, "closing a session was refused")
        }
        Err(error) => tracing::debug!(host = %host, session, %error, "closing a session has to wait"),
    }
}
