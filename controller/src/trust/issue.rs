//! Signing, on the leader: the log gives the number, then the authority's key signs.

use dunlin_model::identity::Issued;
use dunlin_model::{ControllerId, ErrorCode, Identity, Role, Timestamp};
use dunlin_pki::{
    CertificateDer, Grant, KeyPair, PkiError, PublicKey, Shown, make_endorsed, pem_certificates, sign,
};
use dunlin_proto::Fault;
use dunlin_state::trust::Ask;
use dunlin_state::{Command, State, Trust, TrustChange};

use crate::api::{carry, rejected_fault};
use crate::node::Node;

/// Life of the certificates of controllers and hosts, ms: a fortnight. They are renewed at its half, so a host may be off
/// for a week and come back by itself, and one that was forgotten is out after two.
const MACHINE_LIFE_MS: u64 = 14 * DAY_MS;
/// Life of an admin's certificate, ms: a month, renewed by use after half of it: people go on holidays.
const ADMIN_LIFE_MS: u64 = 30 * DAY_MS;
/// One day, ms.
const DAY_MS: u64 = 24 * 3600 * 1000;
/// How often signing is tried: a rotation may come between the look and the log, two never do.
const TRIES: u32 = 3;

/// How long a certificate of that role holds.
pub(super) const fn life_ms(role: Role) -> u64 {
    match role {
        Role::Controller | Role::Host => MACHINE_LIFE_MS,
        Role::Admin => ADMIN_LIFE_MS,
    }
}

/// A certificate, and what the log says of it.
#[derive(Clone, Debug)]
pub(crate) struct Certified {
    pub(crate) certificate: String,
    pub(crate) issued: Issued,
}

/// Commits that a certificate is issued, by the command that `how` makes of the ask, and signs it.
pub(crate) async fn certify(
    node: &Node,
    identity: &Identity,
    key: &PublicKey,
    how: impl Fn(Ask) -> Command,
) -> Result<Certified, Fault> {
    let key_sha256 = key.sha256();
    let mut tries = 1;
    loop {
        let view = node.replica.read();
        let founding = || Fault::new(ErrorCode::Unavailable, "the cluster is being founded");
        let authority = view.trust().signer().ok_or_else(founding)?.id.clone();
        let expires = Timestamp(node.config.clock.now().0 + life_ms(identity.role()));
        let ask = Ask { key_sha256: key_sha256.clone(), authority, expires };
        let proposed = node.replica.propose(&how(ask)).await.map_err(|e| carry::propose_fault(&e))?;
        match proposed {
            Ok(_) => return finish(node, node.replica.read().trust(), identity, key),
            Err(rejected) if rejected.code == ErrorCode::WrongState && tries < TRIES => tries += 1,
            Err(rejected) => return Err(rejected_fault(rejected)),
        }
    }
}

fn finish(node: &Node, trust: &Trust, identity: &Identity, key: &PublicKey) -> Result<Certified, Fault> {
    let gone = || Fault::new(ErrorCode::Unauthenticated, format!("{identity} was revoked meanwhile"));
    let issued = trust.issued(identity, &key.sha256()).ok_or_else(gone)?.clone();
    let authority = trust.authorities().iter().find(|known| known.id == issued.authority);
    let authority = authority.ok_or_else(gone)?;
    let grant = Grant {
        identity: identity.clone(),
        serial: issued.serial,
        issued: issued.at,
        expires: issued.expires,
        names: names(node, identity),
    };
    let certificate = sign(authority, key, &grant).map_err(|e| internal(&e))?;
    tracing::info!(%identity, serial = issued.serial, "issued a certificate");
    Ok(Certified { certificate, issued })
}

/// Where a controller is reached, for clients that look at names: browsers and curl.
fn names(node: &Node, identity: &Identity) -> Vec<String> {
    let Identity::Controller(id) = identity else { return Vec::new() };
    let endpoints = node.controllers().into_iter().filter(|known| known.id == *id);
    endpoints.filter_map(|known| crate::config::host_of(&known.endpoint).map(str::to_owned)).collect()
}

/// An identity for the first controller of a cluster that is brought back, signed by the authority that came with it.
pub(crate) fn certify_restored(
    state: &mut State,
    id: ControllerId,
    endpoint: &str,
    now: Timestamp,
) -> Result<(Shown, Vec<CertificateDer<'static>>), PkiError> {
    let signer = state.trust().signer().cloned();
    let missing = || PkiError::Unreadable { what: "the authority", problem: "there is none".to_owned() };
    let signer = signer.ok_or_else(missing)?;
    let (key, identity) = (KeyPair::generate()?, Identity::Controller(id));
    let expires = Timestamp(now.0 + life_ms(identity.role()));
    let ask = Ask { key_sha256: key.public().sha256(), authority: signer.id.clone(), expires };
    let serial = state.certify_restored(identity.clone(), ask, now);
    let names = crate::config::host_of(endpoint).map(str::to_owned).into_iter().collect();
    let grant = Grant { identity, serial, issued: now, expires, names };
    let certificate = sign(&signer, &key.public(), &grant)?;
    let pem: String = state.trust().authorities().iter().map(|known| known.certificate.as_str()).collect();
    Ok((Shown { key: key.to_pem(), certificate, issued: now, expires }, pem_certificates(&pem)?))
}

/// A new authority from now on.
pub(crate) async fn rotate(node: &Node) -> Result<(), Fault> {
    let view = node.replica.read();
    let founding = || Fault::new(ErrorCode::Unavailable, "the cluster is being founded");
    let before = view.trust().signer().ok_or_else(founding)?;
    let authority = make_endorsed(node.config.clock.now(), before).map_err(|e| internal(&e))?;
    let command = Command::Trust(TrustChange::Rotate { authority: Box::new(authority) });
    let proposed = node.replica.propose(&command).await.map_err(|e| carry::propose_fault(&e))?;
    proposed.map(drop).map_err(rejected_fault)
}

fn internal(error: &PkiError) -> Fault {
    Fault::new(ErrorCode::Internal, error.to_string())
}
