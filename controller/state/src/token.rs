//! One-time tokens, and the hosts that joined with them.

use dunlin_model::event::EventLevel;
use dunlin_model::host::{Host, HostSpec, HostStatus};
use dunlin_model::{ErrorCode, HostId, Identity, Labels, Name, Role, Timestamp, meta};
use serde::{Deserialize, Serialize};

use crate::draft::Draft;
use crate::reserve::recount;
use crate::trust::Ask;
use crate::{Rejected, trust};

/// Tokens outstanding at once; each is one who may join.
pub(crate) const TOKENS_MAX: usize = 1_024;

/// What an outstanding token is good for. Only its hash is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) role: Role,
    pub(crate) expires: Timestamp,
}

pub(crate) fn create(
    draft: &mut Draft,
    sha256: &str,
    role: Role,
    expires: Timestamp,
) -> Result<(), Rejected> {
    drop_expired(draft);
    let tokens = &mut draft.state.tokens;
    if tokens.len() >= TOKENS_MAX {
        let message = format!("{TOKENS_MAX} tokens are outstanding already; let some be used or expire");
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    tokens.insert(sha256.to_owned(), Token { role, expires });
    let uid = draft.state.cluster().map(|cluster| cluster.metadata.uid);
    let uid = uid.ok_or_else(|| Rejected::new(ErrorCode::WrongState, "the cluster is not founded yet"))?;
    draft.take::<dunlin_model::cluster::Cluster>(uid).map(drop)
}

/// Drops what may no longer be used.
pub(crate) fn drop_expired(draft: &mut Draft) {
    let now = draft.now();
    let tokens = &mut draft.state.tokens;
    let old = tokens.iter().filter(|(_, token)| token.expires <= now);
    let old: Vec<String> = old.map(|(sha256, _)| sha256.clone()).collect();
    for sha256 in old {
        tokens.remove(&sha256);
    }
}

/// Refuses a token that does not let anybody in, or not as that.
pub(crate) fn check(draft: &Draft, sha256: &str, role: Role) -> Result<(), Rejected> {
    match draft.state.tokens.get(sha256) {
        Some(token) if token.expires <= draft.now() => {
            Err(Rejected::new(ErrorCode::Unauthenticated, "the token has expired"))
        }
        Some(token) if token.role != role => {
            let message = format!("the token is for the role {}, not for {role}", token.role);
            Err(Rejected::new(ErrorCode::Forbidden, message))
        }
        Some(_) => Ok(()),
        None => {
            let message = "the token is unknown or was used before";
            Err(Rejected::new(ErrorCode::Unauthenticated, message))
        }
    }
}

pub(crate) fn join(
    draft: &mut Draft,
    token_sha256: &str,
    uid: HostId,
    name: &Name,
    labels: &Labels,
    ask: &Ask,
) -> Result<(), Rejected> {
    let identity = Identity::Host(uid);
    let trust = &draft.state.trust;
    let repeated = trust.issued(&identity, &ask.key_sha256).is_some();
    if let Some(known) = draft.state.host(uid).cloned() {
        draft.answer(dunlin_model::Kind::Host, uid.0);
        if repeated {
            return Ok(());
        }
        return readmit(draft, token_sha256, known, ask);
    }
    check(draft, token_sha256, Role::Host)?;
    meta::validate_labels(labels)?;
    let metadata = draft.card::<Host, _>(uid, uid.0, name, labels)?;
    trust::issue(draft, &identity, ask)?;
    draft.state.tokens.remove(&token_sha256.to_owned());
    // A host that was removed by force and comes back may still hold places.
    let reserved = recount(draft.state, uid);
    let status = HostStatus { since: draft.now(), reserved, ..HostStatus::default() };
    let host = Host { metadata, spec: HostSpec::default(), status };
    draft.event(EventLevel::Normal, "HostJoined", &host, "its agent has joined");
    draft.put(host);
    Ok(())
}

/// A host that was revoked, or whose certificates have all ended, is let in again by a token: an admin's word.
fn readmit(draft: &mut Draft, token_sha256: &str, host: Host, ask: &Ask) -> Result<(), Rejected> {
    let identity = Identity::Host(host.metadata.uid);
    let now = draft.now();
    let holder = draft.state.trust.holders.get(&identity);
    let holds =
        |issued: &dunlin_model::identity::Issued, floor| issued.serial >= floor && issued.expires > now;
    if holder.is_some_and(|holder| holder.issued.iter().any(|issued| holds(issued, holder.floor))) {
        let message = format!("host {} has joined with another key", host.metadata.uid);
        return Err(Rejected::new(ErrorCode::Unauthenticated, message));
    }
    check(draft, token_sha256, Role::Host)?;
    trust::issue(draft, &identity, ask)?;
    draft.state.tokens.remove(&token_sha256.to_owned());
    let message = "its agent was let in again with a new token";
    draft.event(EventLevel::Normal, "HostReadmitted", &host, message);
    draft.put_anew(host);
    Ok(())
}
