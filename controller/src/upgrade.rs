//! Raising the feature level, and what becomes of whoever cannot read it.
//!
//! ```text
//!   every controller answers and reads it, every agent too --> RaiseLevel in the log --> written by all
//!   a controller that does not: is not taken in; ends as soon as it sees the level, and does not start again
//!   an agent that does not: its Hello is refused, with the reason; its guests go on
//! ```

use dunlin_model::{ControllerId, ErrorCode, Level};
use dunlin_proto::Fault;
use dunlin_state::Command;
use futures_util::future::join_all;

use crate::api::{carry, reads_level, rejected_fault};
use crate::members::{self, Tell};
use crate::node::Node;

/// Hosts that are named in a refusal: more would not be read.
const NAMED_MAX: usize = 20;

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

/// What is asked of [`raise`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raise {
    /// How far; none: as far as any controller reads.
    pub(crate) to: Option<Level>,
    /// Although hosts are down.
    pub(crate) force: bool,
    /// Say only whether it could be done.
    pub(crate) dry_run: bool,
}

/// A controller, its release and what it reads; none: it does not say.
type Reader = (ControllerId, Option<(String, Level)>);

/// Raises the level, step by step.
pub(crate) async fn raise(node: &Node, term: u64, asked: Raise, tell: Tell<'_>) -> Result<(), Fault> {
    let refuse = |message: String| Err(Fault::new(ErrorCode::WrongState, message));
    let readers = readers(node).await;
    let highest = readers.iter().filter_map(|(_, reads)| Some(reads.as_ref()?.1)).max().unwrap_or_default();
    let level = node.replica.read().level();
    let to = asked.to.unwrap_or(highest.max(level));
    if to < level {
        return refuse(format!("everything is written at level {level}, and levels never fall: not to {to}"));
    }
    if to == level {
        let more = if level >= highest { ", the highest that any controller reads" } else { "" };
        tell(format!("everything is written at level {level} already{more}"));
        return Ok(());
    }
    let mut behind = controllers_behind(&readers, to);
    behind.extend(agents_behind(node, to, asked.force));
    if !behind.is_empty() {
        return refuse(behind.join("; "));
    }
    if asked.dry_run {
        tell(format!("every controller and agent reads level {to}; it could be raised from {level}"));
        return Ok(());
    }
    for step in level.0 + 1..=to.0 {
        let to = Level(step);
        let proposed = node.replica.propose_in_term(term, &Command::RaiseLevel { to }).await;
        proposed.map_err(|e| carry::propose_fault(&e))?.map_err(rejected_fault)?;
        tell(format!("everything is written at level {to} from now on"));
    }
    Ok(())
}

async fn readers(node: &Node) -> Vec<Reader> {
    let seen = members::list(node).await;
    let ask = seen.iter().map(|one| async {
        let reads = match one.id == node.config.id {
            true => Some((env!("CARGO_PKG_VERSION").to_owned(), node.config.level)),
            false => reads_level(&node.peers, &one.member.api).await,
        };
        (one.id, reads)
    });
    join_all(ask).await
}

/// Controllers that hold it back, each with what to do.
fn controllers_behind(readers: &[Reader], to: Level) -> Vec<String> {
    let behind = readers.iter().filter_map(|(id, reads)| match reads {
        Some((_, reads)) if *reads >= to => None,
        Some((version, reads)) => {
            let release = if version.is_empty() { String::new() } else { format!(" of release {version}") };
            Some(format!("controller {id}{release} reads up to level {reads}, not {to}: upgrade it first"))
        }
        None => Some(format!(
            "controller {id} does not answer, so nobody knows what it reads: start it, or remove it"
        )),
    });
    behind.collect()
}

/// Hosts whose agents hold it back, each with what to do.
fn agents_behind(node: &Node, to: Level, force: bool) -> Vec<String> {
    let (view, seen) = (node.replica.read(), node.sessions.seen());
    let behind = view.hosts().filter_map(|host| {
        let name = &host.metadata.name;
        match seen.get(&host.metadata.uid) {
            Some(seen) if seen.level < to => {
                let (version, reads) = (&host.status.agent_version, seen.level);
                Some(format!(
                    "the agent of host {name}, of release {version}, reads up to level {reads}, not {to}: upgrade it first"
                ))
            }
            None if !force => Some(format!(
                "host {name} holds no session, so nobody knows what its agent reads: start it or remove it; or use --force, and \
                 it is let in again when it is upgraded"
            )),
            _ => None,
        }
    });
    behind.take(NAMED_MAX).collect()
}
