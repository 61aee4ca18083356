//! One-time tokens, and the hosts that joined with them.

use dunlin_model::event::EventLevel;
use dunlin_model::host::{Host, HostSpec, HostStatus};
use dunlin_model::{ErrorCode, HostId, Labels, Name, Timestamp, meta};

use crate::Rejected;
use crate::draft::Draft;
use crate::reserve::recount;
use crate::tracked::Tracked;

/// Tokens outstanding at once; each is one host that may join.
pub(crate) const TOKENS_MAX: usize = 1_024;

pub(crate) fn create(draft: &mut Draft, sha256: &str, expires: Timestamp) -> Result<(), Rejected> {
    let now = draft.now();
    let tokens = &mut draft.state.tokens;
    tokens.retain_unexpired(now);
    if tokens.len() >= TOKENS_MAX {
        let message = format!("{TOKENS_MAX} tokens are outstanding already; let some be used or expire");
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    tokens.insert(sha256.to_owned(), expires);
    let uid = draft.state.cluster().map(|cluster| cluster.metadata.uid);
    let uid = uid.ok_or_else(|| Rejected::new(ErrorCode::WrongState, "the cluster is not founded yet"))?;
    draft.take::<dunlin_model::cluster::Cluster>(uid).map(drop)
}

/// Drops what may no longer be used.
trait Unexpired {
    fn retain_unexpired(&mut self, now: Timestamp);
}

impl Unexpired for Tracked<String, Timestamp> {
    fn retain_unexpired(&mut self, now: Timestamp) {
        let old: Vec<String> =
            self.iter().filter(|(_, expires)| **expires <= now).map(|(token, _)| token.clone()).collect();
        for token in old {
            self.remove(&token);
        }
    }
}

pub(crate) fn drop_expired(draft: &mut Draft) {
    let now = draft.now();
    draft.state.tokens.retain_unexpired(now);
}

pub(crate) fn join(
    draft: &mut Draft,
    token_sha256: &str,
    uid: HostId,
    name: &Name,
    labels: &Labels,
    secret_sha256: &str,
) -> Result<(), Rejected> {
    if let Some(known) = draft.state.host_secret_sha256(uid) {
        if known == secret_sha256 {
            return draft.take::<Host>(uid).map(drop);
        }
        let message = format!("host {uid} has joined with another secret");
        return Err(Rejected::new(ErrorCode::Unauthenticated, message));
    }
    let now = draft.now();
    match draft.state.tokens.get(token_sha256) {
        Some(expires) if *expires > now => {}
        Some(_) => return Err(Rejected::new(ErrorCode::Unauthenticated, "the token has expired")),
        None => {
            let message = "the token is unknown or was used before";
            return Err(Rejected::new(ErrorCode::Unauthenticated, message));
        }
    }
    meta::validate_labels(labels)?;
    let metadata = draft.card::<Host, _>(uid, uid.0, name, labels)?;
    draft.state.tokens.remove(&token_sha256.to_owned());
    draft.state.secrets.insert(uid, secret_sha256.to_owned());
    // A host that was removed by force and comes back may still hold places.
    let reserved = recount(draft.state, uid);
    let status = HostStatus { since: now, reserved, ..HostStatus::default() };
    let host = Host { metadata, spec: HostSpec::default(), status };
    draft.event(EventLevel::Normal, "HostJoined", &host, "its agent has joined");
    draft.put(host);
    Ok(())
}
