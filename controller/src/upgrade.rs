//! Raising the feature level, and what becomes of whoever cannot read it.
//!
//! ```text
//!   every controller answers and reads it, every agent too --> RaiseLevel in the log --> written by all
//!   a controller that does not: is not taken in; ends as soon as it sees the level, and does not start again
//!   an agent that does not: its Hello is refused, with the reason; its guests go on
//! ```

use dunlin_model::{ErrorCode, Level};
use dunlin_proto::Fault;
use dunlin_state::Command;
use futures_util::future::join_all;

use crate::api::{carry, reads_level, rejected_fault};
use crate::members::{self, Tell};
use crate::node::Node;

/// This release is too old for its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster writes at feature level {level}, and this controller (release {}) reads up to {reads}: install the release \
     that the other controllers have; nothing was changed here",
    env!("CARGO_PKG_VERSION")
)]
pub struct TooOld {
    /// The cluster's.
    pub level: Level,
    /// The highest this one reads.
    pub reads: Level,
}

/// Refuses a state that this controller does not read.
pub(crate) fn readable(level: Level, reads: Level) -> Result<(), TooOld> {
    if level > reads { Err(TooOld { level, reads }) } else { Ok(()) }
}

/// Returns when the level has grown beyond what this controller reads.
pub(crate) async fn outgrown(node: &Node) -> TooOld {
    let reads = node.config.level;
    let mut views = node.replica.watch();
    match views.wait_for(|view| view.level() > reads).await {
        Ok(view) => TooOld { level: view.level(), reads },
        // The replica is closing, and somebody else says why.
        Err(_) => std::future::pending().await,
    }
}

/// Raises the level as far as the leader's release reads, step by step.
pub(crate) async fn raise(
    node: &Node,
    term: u64,
    force: bool,
    dry_run: bool,
    tell: Tell<'_>,
) -> Result<(), Fault> {
    loop {
        let level = node.replica.read().level();
        let to = Level(level.0 + 1);
        if level >= node.config.level {
            tell(format!(
                "everything is written at level {level}, the highest that the leader's release reads"
            ));
            return Ok(());
        }
        controllers_read(node, to).await?;
        hosts_read(node, to, force)?;
        if dry_run {
            tell(format!("every controller and agent reads level {to}; it could be raised from {level}"));
            return Ok(());
        }
        let proposed = node.replica.propose_in_term(term, &Command::RaiseLevel { to }).await;
        proposed.map_err(|e| carry::propose_fault(&e))?.map_err(rejected_fault)?;
        tell(format!("everything is written at level {to} from now on"));
    }
}

async fn controllers_read(node: &Node, to: Level) -> Result<(), Fault> {
    let refuse = |message: String| Err(Fault::new(ErrorCode::WrongState, message));
    let seen = members::list(node).await;
    let ask = seen.iter().map(|one| async {
        let reads = match one.id == node.config.id {
            true => Some((String::new(), node.config.level)),
            false => reads_level(&node.peers, &one.member.api).await,
        };
        (one.id, reads)
    });
    for (id, reads) in join_all(ask).await {
        match reads {
            None => {
                return refuse(format!(
                    "controller {id} does not answer, so nobody knows what it reads: start it, or remove it"
                ));
            }
            Some((version, reads)) if reads < to => {
                let release =
                    if version.is_empty() { String::new() } else { format!(" of release {version}") };
                return refuse(format!(
                    "controller {id}{release} reads up to level {reads}, not {to}: upgrade it first"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn hosts_read(node: &Node, to: Level, force: bool) -> Result<(), Fault> {
    let refuse = |message: String| Err(Fault::new(ErrorCode::WrongState, message));
    let (view, seen) = (node.replica.read(), node.sessions.seen());
    for host in view.hosts() {
        let name = &host.metadata.name;
        match seen.get(&host.metadata.uid) {
            Some(seen) if seen.level < to => {
                let (version, reads) = (&host.status.agent_version, seen.level);
                return refuse(format!(
                    "the agent of host {name}, of release {version}, reads up to level {reads}, not {to}: upgrade it first"
                ));
            }
            None if !force => {
                return refuse(format!(
                    "host {name} holds no session, so nobody knows what its agent reads: start it or remove it; or use \
                     --force, and it is let in again when it is upgraded"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}
