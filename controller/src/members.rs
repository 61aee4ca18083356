//! Adding, replacing and removing controllers, and handing the leadership over: the leader's side.
//!
//! Owns the order of the steps and what is refused because it would stop the cluster. Every step can be repeated: whoever
//! asks again after a break finds what is done and goes on from there.
//!
//! ```text
//!  add:     reach it -> learner -> close behind -> voter -> endpoints told
//!  replace: the same, and the lost one leaves in the step in which the new one gets its vote
//!  remove:  enough of the others answer? -> voter no more -> endpoints told
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_model::{ControllerId, ErrorCode, Identity, Invalid};
use dunlin_proto::Fault;
use dunlin_state::{Command, TrustChange};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::api::{cluster_of, reads_level};
use crate::config::{CONTROLLERS_MAX, validate_endpoint};
use crate::found;
use crate::node::Node;
use crate::raft::{Member, MembershipError};

/// Between two looks at how far a new controller has come.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two words about it.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A new controller that comes no closer for so long is given up: its disk or the network is what must be looked at.
const STALL: Duration = Duration::from_secs(30);

/// Takes one sentence about how it goes.
pub(crate) type Tell<'a> = &'a (dyn Fn(String) + Send + Sync);

/// A controller to take in.
#[derive(Clone, Debug)]
pub(crate) struct Addition {
    pub(crate) id: ControllerId,
    pub(crate) member: Member,
    /// Whose place it takes.
    pub(crate) replaces: Option<ControllerId>,
    pub(crate) force: bool,
}

/// A controller as the leader sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) id: ControllerId,
    pub(crate) member: Member,
    pub(crate) votes: bool,
    pub(crate) behind: Option<u64>,
    pub(crate) answers: bool,
}

/// Every controller, asked just now.
pub(crate) async fn list(node: &Node) -> Vec<Seen> {
    let metrics = node.replica.metrics();
    let endpoints: BTreeMap<_, _> =
        node.controllers().into_iter().map(|known| (known.id, known.endpoint)).collect();
    let ask = metrics.members.into_iter().map(|(id, mut member)| {
        if let Some(endpoint) = endpoints.get(&id) {
            member.api.clone_from(endpoint);
        }
        let (votes, behind) = (metrics.voters.contains(&id), node.replica.behind(id));
        async move {
            let answers = id == node.config.id || cluster_of(&node.peers, &member.api).await.is_some();
            let behind = if id == node.config.id { None } else { behind };
            Seen { id, member, votes, behind, answers }
        }
    });
    join_all(ask).await
}

/// Takes a controller in.
pub(crate) async fn add(node: &Node, term: u64, asked: Addition, tell: Tell<'_>) -> Result<(), Fault> {
    let Addition { id, member, replaces, force } = asked;
    let seen = list(node).await;
    let known = seen.iter().find(|one| one.id == id);
    if let Some(known) = known
        && known.member.raft != member.raft
    {
        let message = format!(
            "controller {id} is a member already, at {}: give the new one a number of its own",
            known.member.raft
        );
        return Err(Fault::new(ErrorCode::AlreadyExists, message));
    }
    if known.is_some_and(|known| known.votes) {
        tell(format!("controller {id} votes already"));
        found::found(node, term).await;
        return Ok(());
    }
    let level = node.replica.read().level();
    if let Some((version, reads)) = reads_level(&node.peers, &member.api).await
        && reads < level
    {
        let message = format!(
            "controller {id} is of release {version} and reads up to level {reads}, but everything is written at level {level}: \
             install the release that the others have"
        );
        return Err(Fault::new(ErrorCode::WrongState, message));
    }
    let voters = voters_after(&seen, id, replaces, node.config.id, force)?;
    if known.is_none() {
        tell(format!("controller {id} at {} is asked to learn", member.raft));
        node.replica.add_learner(id, member.clone()).await.map_err(|e| fault(&e))?;
    }
    catch_up(node, id, &member, tell).await?;
    tell(format!("controller {id} has caught up and gets its vote"));
    node.replica.change_membership(&voters).await.map_err(|e| fault(&e))?;
    found::found(node, term).await;
    if let Some(lost) = replaces {
        put_out(node, term, lost).await;
    }
    tell(voting(&voters));
    Ok(())
}

/// Who is to vote once `id` does, or why not.
fn voters_after(
    seen: &[Seen],
    id: ControllerId,
    replaces: Option<ControllerId>,
    me: ControllerId,
    force: bool,
) -> Result<Vec<ControllerId>, Fault> {
    let mut voters: Vec<_> = seen.iter().filter(|one| one.votes).map(|one| one.id).collect();
    if let Some(lost) = replaces {
        let Some(old) = seen.iter().find(|one| one.id == lost && one.votes) else {
            return Err(Fault::new(ErrorCode::NotFound, format!("no controller {lost} votes")));
        };
        if lost == me {
            return Err(leads(lost));
        }
        if old.answers && !force {
            let message = format!("controller {lost} answers: stop it first, or use --force");
            return Err(Fault::new(ErrorCode::WrongState, message));
        }
        voters.retain(|voter| *voter != lost);
    }
    voters.push(id);
    voters.sort_unstable();
    if voters.len() > CONTROLLERS_MAX {
        let problem = format!("{} controllers would vote", voters.len());
        return Err(Invalid::new("id", problem, format!("at most {CONTROLLERS_MAX} controllers")).into());
    }
    let alive = seen.iter().filter(|one| one.answers && voters.contains(&one.id)).count() + 1;
    enough(&voters, alive, "with", id, force)?;
    Ok(voters)
}

/// Refuses a set of voters of which too few answer.
fn enough(
    voters: &[ControllerId],
    alive: usize,
    with: &str,
    id: ControllerId,
    force: bool,
) -> Result<(), Fault> {
    let need = voters.len() / 2 + 1;
    if alive >= need || force {
        return Ok(());
    }
    let message = format!(
        "{with} controller {id}, {} controllers vote, {need} must answer and {alive} do: the cluster would lose its quorum \
         and take no more writes; bring the others back first, or use --force",
        voters.len()
    );
    Err(Fault::new(ErrorCode::WrongState, message))
}

/// Waits until the learner is close behind, and says how it goes.
async fn catch_up(node: &Node, id: ControllerId, member: &Member, tell: Tell<'_>) -> Result<(), Fault> {
    let (mut best, mut better_at) = (None, Instant::now());
    let mut told_at = Instant::now();
    loop {
        let behind = node.replica.behind(id);
        if behind.is_some_and(crate::fleet::Replica::is_close) {
            return Ok(());
        }
        if node.leading().is_none() {
            let message = "the leadership went to another controller; ask again to go on".to_owned();
            return Err(Fault::new(ErrorCode::Unavailable, message));
        }
        if best.is_none_or(|best| behind.is_some_and(|behind| behind < best)) && behind.is_some() {
            (best, better_at) = (behind, Instant::now());
        }
        if better_at.elapsed() > STALL {
            let how = behind.map_or_else(
                || format!("could not be reached at {}: is it running, with --join?", member.raft),
                |behind| format!("stays {behind} entries behind"),
            );
            let message =
                format!("controller {id} {how}; it was given no vote: ask again to go on, or remove it");
            return Err(Fault::new(ErrorCode::Deadline, message));
        }
        if told_at.elapsed() > TELL_EVERY {
            told_at = Instant::now();
            tell(behind.map_or_else(
                || format!("controller {id} has not answered yet"),
                |behind| format!("controller {id} is {behind} entries behind"),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes a controller out.
pub(crate) async fn remove(
    node: &Node,
    term: u64,
    id: ControllerId,
    force: bool,
    tell: Tell<'_>,
) -> Result<(), Fault> {
    let seen = list(node).await;
    let Some(old) = seen.iter().find(|one| one.id == id) else {
        return Err(Fault::new(ErrorCode::NotFound, format!("there is no controller {id}")));
    };
    if id == node.config.id {
        return Err(leads(id));
    }
    let rest: Vec<_> = seen.iter().filter(|one| one.votes && one.id != id).collect();
    let voters: Vec<_> = rest.iter().map(|one| one.id).collect();
    if old.votes {
        let alive = rest.iter().filter(|one| one.answers).count();
        enough(&voters, alive, "without", id, force)?;
        tell(format!("controller {id} is to vote no more"));
        node.replica.change_membership(&voters).await.map_err(|e| fault(&e))?;
    } else {
        node.replica.remove_learners(&[id]).await.map_err(|e| fault(&e))?;
    }
    found::found(node, term).await;
    tell(voting(&voters));
    if voters.len().is_multiple_of(2) {
        let spare = (voters.len() - 1) / 2;
        tell(format!("of {} voters {spare} may fail: an odd number is better", voters.len()));
    }
    put_out(node, term, id).await;
    tell(format!("stop controller {id} for good, and delete its data directory"));
    Ok(())
}

/// A controller that is a member no more is let in nowhere either. Its certificate ends by itself, should this fail.
async fn put_out(node: &Node, term: u64, id: ControllerId) {
    let change = TrustChange::Revoke { identity: Identity::Controller(id) };
    match node.replica.propose_in_term(term, &Command::Trust(change)).await {
        Ok(Ok(_)) => {}
        Ok(Err(refused)) => tracing::debug!(controller = %id, %refused, "had no certificate to revoke"),
        Err(error) => tracing::warn!(controller = %id, %error, "its certificate was not revoked"),
    }
}

/// Hands the leadership to `to`, or to whoever has most of the log.
pub(crate) async fn transfer(node: &Node, to: Option<ControllerId>, tell: Tell<'_>) -> Result<(), Fault> {
    if to == Some(node.config.id) {
        tell(format!("controller {} leads already", node.config.id));
        return Ok(());
    }
    let seen = list(node).await;
    let mut able: Vec<_> =
        seen.iter().filter(|one| one.votes && one.answers && one.id != node.config.id).collect();
    able.sort_by_key(|one| (one.behind.unwrap_or(u64::MAX), one.id));
    let next = match to {
        Some(to) => able.iter().find(|one| one.id == to),
        None => able.first(),
    };
    let Some(next) = next.filter(|next| next.behind.is_some_and(crate::fleet::Replica::is_close)) else {
        let who = to.map_or_else(|| "no other controller".to_owned(), |to| format!("controller {to}"));
        let verb =
            if to.is_some() { "does not vote, does not answer, or is" } else { "votes, answers, and is not" };
        return Err(Fault::new(ErrorCode::WrongState, format!("{who} {verb} far behind")));
    };
    tell(format!("controller {} is asked to lead", next.id));
    let leader = node.replica.hand_over(next.id).await.map_err(|e| fault(&e))?;
    tell(format!("controller {leader} leads"));
    Ok(())
}

fn leads(id: ControllerId) -> Fault {
    let message =
        format!("controller {id} leads: hand the leadership over first (dunlin controller transfer)");
    Fault::new(ErrorCode::WrongState, message)
}

fn voting(voters: &[ControllerId]) -> String {
    let names: Vec<_> = voters.iter().map(ToString::to_string).collect();
    format!("controllers {} vote", names.join(", "))
}

/// Refuses addresses that are none.
pub(crate) fn member(api: String, raft: String) -> Result<Member, Invalid> {
    validate_endpoint("api_endpoint", &api)?;
    match raft.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(Member { raft, api })
        }
        _ => Err(Invalid::new("raft_endpoint", format!("{raft:?} is no address"), "host:port")),
    }
}

fn fault(error: &MembershipError) -> Fault {
    let code = match error {
        MembershipError::NotLeader { .. } => ErrorCode::NotLeader,
        MembershipError::InProgress | MembershipError::Refused(_) => ErrorCode::WrongState,
        MembershipError::Invalid(_) => ErrorCode::InvalidArgument,
        MembershipError::Deadline { .. } => ErrorCode::Deadline,
        MembershipError::Stopped => ErrorCode::Unavailable,
    };
    Fault::new(code, error.to_string())
}
