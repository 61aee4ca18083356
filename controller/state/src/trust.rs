//! Whom the cluster believes: its authorities, and who holds certificates of them.
//!
//! ```text
//!   Install (founding) -> one authority signs -- Rotate -> the new signs, both are believed -- Drop -> the new alone
//!   holder: nothing -- Join, with a token --> issued -- Renew, with a certificate --> issued ... -- Revoke --> refused
//!                                               ^------------------ Join, with a token ------------------------+
//! ```
//! DECISION: a revocation is one number for each holder, below which every serial is refused, not a list of serials: it is
//! whole at once, it never grows, and a controller that lags behind refuses too little for a moment instead of refusing
//! whoever has just joined.
//!
//! DECISION: the authority's key lies here, in the log and the snapshots of every controller, so that any leader can sign
//! and no machine is special. Whoever reads a controller's data directory can make himself anybody; it is kept from
//! everybody but its owner, and nothing shows the key.

use std::sync::Arc;

use dunlin_model::cluster::Cluster;
use dunlin_model::event::EventLevel;
use dunlin_model::identity::{Authority, Issued};
use dunlin_model::{ErrorCode, HostId, Identity, Role, Timestamp};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::draft::Draft;
use crate::{Rejected, State, host, token};

/// Certificates remembered of one holder, newest last: he renews one at a time, and an admin has a few machines.
const ISSUED_KEPT: usize = 8;
/// Serial numbers up to this one are those of the founding controllers, given before there was a cluster to count them.
pub const FOUNDING_SERIALS: u64 = 1_000;
/// A holder whose certificates have ended is forgotten after so long, ms: a day, for clocks that differ and people who ask.
const FORGOTTEN_AFTER_MS: u64 = 24 * 3600 * 1000;

/// Authorities and holders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trust {
    /// Oldest first; the last one signs.
    pub(crate) authorities: Arc<Vec<Authority>>,
    pub(crate) holders: OrdMap<Identity, Holder>,
    pub(crate) counters: Counters,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The last serial number given.
    pub serial: u64,
    /// Changes that somebody who is connected may mind: authorities and revocations.
    pub epoch: u64,
}

/// One who has certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The last of them, newest last.
    pub issued: Vec<Issued>,
    /// Serials below this are refused.
    pub floor: u64,
}

/// A certificate that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// SHA-256 of the public key, hex.
    pub key_sha256: String,
    /// Which authority will sign it: that of the state the proposer saw.
    pub authority: String,
    /// Until when it is to hold.
    pub expires: Timestamp,
}

/// A change of whom the cluster believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustChange {
    /// The first authority, and the certificates it has issued to the founding controllers.
    Install { authority: Box<Authority>, issued: Vec<(Identity, Issued)> },
    /// A controller or an admin trades a token for a certificate. The same key again: the same certificate.
    Join { token_sha256: String, identity: Identity, ask: Ask },
    /// Who shows a certificate gets another. The same key again: the same certificate.
    Renew { identity: Identity, serial: u64, ask: Ask },
    /// Every certificate of that holder is refused from now on.
    Revoke { identity: Identity },
    /// Another authority signs from now on; the one before is believed until it is dropped.
    Rotate { authority: Box<Authority> },
    /// An authority that signs no more is not believed any more. Refused while somebody has nothing better, unless forced.
    Drop { authority: String, force: bool },
}

impl Trust {
    /// The authorities that are believed, oldest first.
    #[must_use]
    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    /// The authority that signs. None before the cluster is founded.
    #[must_use]
    pub fn signer(&self) -> Option<&Authority> {
        self.authorities.last()
    }

    /// Counts what somebody who is connected may mind.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.counters.epoch
    }

    /// Who holds certificates, in order.
    pub fn holders(&self) -> impl Iterator<Item = (&Identity, &Holder)> {
        self.holders.iter()
    }

    /// May the certificate of that number still be shown?
    #[must_use]
    pub fn admits(&self, identity: &Identity, serial: u64) -> bool {
        self.holders.get(identity).is_none_or(|holder| serial >= holder.floor)
    }

    /// The certificate issued to that key, if it may still be shown.
    #[must_use]
    pub fn issued(&self, identity: &Identity, key_sha256: &str) -> Option<&Issued> {
        let holder = self.holders.get(identity)?;
        holder.issued.iter().rfind(|issued| issued.key_sha256 == key_sha256 && issued.serial >= holder.floor)
    }

    /// Those whose newest certificate is of that authority and holds at `now`.
    pub fn users<'a>(&'a self, authority: &'a str, now: Timestamp) -> impl Iterator<Item = &'a Identity> {
        let uses = move |holder: &Holder| {
            let newest = holder.issued.last().filter(|issued| issued.serial >= holder.floor);
            newest.is_some_and(|issued| issued.authority == authority && issued.expires > now)
        };
        self.holders.iter().filter(move |(_, holder)| uses(holder)).map(|(identity, _)| identity)
    }

    fn outlived(&self, identity: &Identity, holder: &Holder, state: &State, now: Timestamp) -> bool {
        let last = holder.issued.iter().map(|issued| issued.expires).max().unwrap_or_default();
        let stands = matches!(identity, Identity::Host(uid) if state.host(*uid).is_some());
        !stands && now.millis_since(last) > FORGOTTEN_AFTER_MS
    }
}

impl State {
    /// Whom the cluster believes.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Are there holders to forget?
    pub(crate) fn has_outlived_holders(&self, now: Timestamp) -> bool {
        let trust: &Trust = &self.trust;
        trust.holders.iter().any(|(identity, holder)| trust.outlived(identity, holder, self, now))
    }
}

pub(crate) fn change(draft: &mut Draft, change: &TrustChange) -> Result<(), Rejected> {
    let cluster = cluster(draft)?;
    draft.take::<Cluster>(cluster)?;
    match change {
        TrustChange::Install { authority, issued } => install(draft, authority, issued),
        TrustChange::Join { token_sha256, identity, ask } => join(draft, token_sha256, identity, ask),
        TrustChange::Renew { identity, serial, ask } => renew(draft, identity, *serial, ask),
        TrustChange::Revoke { identity } => revoke(draft, identity),
        TrustChange::Rotate { authority } => rotate(draft, authority),
        TrustChange::Drop { authority, force } => drop_authority(draft, authority, *force),
    }
}

fn cluster(draft: &Draft) -> Result<dunlin_model::ClusterId, Rejected> {
    let uid = draft.state.cluster().map(|cluster| cluster.metadata.uid);
    uid.ok_or_else(|| Rejected::new(ErrorCode::WrongState, "the cluster is not founded yet"))
}

fn install(draft: &mut Draft, authority: &Authority, issued: &[(Identity, Issued)]) -> Result<(), Rejected> {
    let trust: &mut Trust = &mut draft.state.trust;
    match trust.signer() {
        Some(known) if known.id == authority.id => return Ok(()),
        Some(_) => {
            return Err(Rejected::new(ErrorCode::AlreadyExists, "the cluster has an authority already"));
        }
        None => {}
    }
    trust.authorities = Arc::new(vec![authority.clone()]);
    trust.counters = Counters { serial: FOUNDING_SERIALS, epoch: 1 };
    for (identity, issued) in issued {
        let holder = Holder { issued: vec![issued.clone()], floor: 0 };
        trust.holders.insert(identity.clone(), holder);
    }
    Ok(())
}

fn join(draft: &mut Draft, token_sha256: &str, identity: &Identity, ask: &Ask) -> Result<(), Rejected> {
    let trust: &Trust = &draft.state.trust;
    if trust.issued(identity, &ask.key_sha256).is_some() {
        return Ok(());
    }
    if identity.role() == Role::Host {
        return Err(Rejected::new(ErrorCode::InvalidArgument, "a host joins as a host"));
    }
    token::check(draft, token_sha256, identity.role())?;
    let now = draft.now();
    let holder = draft.state.trust.holders.get(identity);
    let holds = |holder: &Holder| {
        holder.issued.iter().any(|issued| issued.serial >= holder.floor && issued.expires > now)
    };
    if identity.role() == Role::Controller && holder.is_some_and(holds) {
        let message = format!("there is a {identity}; when it is gone for good, revoke it first");
        return Err(Rejected::new(ErrorCode::AlreadyExists, message));
    }
    issue(draft, identity, ask)?;
    draft.state.tokens.remove(&token_sha256.to_owned());
    tell(draft, EventLevel::Normal, "IdentityJoined", format!("{identity} has joined"))
}

/// Gives a certificate the next number.
pub(crate) fn issue(draft: &mut Draft, identity: &Identity, ask: &Ask) -> Result<(), Rejected> {
    let at = draft.now();
    let trust: &mut Trust = &mut draft.state.trust;
    let signer = trust.signer().map_or("", |signer| signer.id.as_str());
    if signer != ask.authority {
        return Err(Rejected::new(ErrorCode::WrongState, "another authority signs by now; ask again"));
    }
    trust.counters.serial += 1;
    let holder = trust.holders.entry(identity.clone()).or_default();
    let Ask { key_sha256, authority, expires } = ask.clone();
    holder.issued.push(Issued { serial: trust.counters.serial, key_sha256, authority, at, expires });
    let surplus = holder.issued.len().saturating_sub(ISSUED_KEPT);
    holder.issued.drain(..surplus);
    Ok(())
}

fn renew(draft: &mut Draft, identity: &Identity, serial: u64, ask: &Ask) -> Result<(), Rejected> {
    let gone = matches!(identity, Identity::Host(uid) if draft.state.host(*uid).is_none());
    if gone || !draft.state.trust.admits(identity, serial) {
        let message = format!("the certificate of {identity} was revoked");
        return Err(Rejected::new(ErrorCode::Unauthenticated, message));
    }
    if draft.state.trust.issued(identity, &ask.key_sha256).is_some() {
        return Ok(());
    }
    issue(draft, identity, ask)
}

fn revoke(draft: &mut Draft, identity: &Identity) -> Result<(), Rejected> {
    if let Identity::Host(uid) = identity {
        refuse_all(draft, identity);
        return host::revoked(draft, *uid);
    }
    if !draft.state.trust.holders.contains_key(identity) {
        return Err(Rejected::new(ErrorCode::NotFound, format!("{identity} has no certificate")));
    }
    refuse_all(draft, identity);
    tell(draft, EventLevel::Warning, "IdentityRevoked", format!("{identity} was revoked"))
}

/// A host is gone: so are its certificates.
pub(crate) fn refuse_host(draft: &mut Draft, host: HostId) {
    refuse_all(draft, &Identity::Host(host));
}

fn refuse_all(draft: &mut Draft, identity: &Identity) {
    let trust: &mut Trust = &mut draft.state.trust;
    trust.counters.epoch += 1;
    let floor = trust.counters.serial + 1;
    trust.holders.entry(identity.clone()).or_default().floor = floor;
}

fn rotate(draft: &mut Draft, authority: &Authority) -> Result<(), Rejected> {
    let now = draft.now();
    let trust: &mut Trust = &mut draft.state.trust;
    match trust.authorities() {
        [] => return Err(Rejected::new(ErrorCode::WrongState, "the cluster has no authority yet")),
        [_] => {}
        [old, ..] => {
            let users = trust.users(&old.id, now).count();
            let message = format!(
                "a rotation is under way: {users} still have certificates of authority {}; see `dunlin ca show`",
                old.id
            );
            return Err(Rejected::new(ErrorCode::WrongState, message));
        }
    }
    Arc::make_mut(&mut trust.authorities).push(authority.clone());
    trust.counters.epoch += 1;
    tell(
        draft,
        EventLevel::Normal,
        "AuthorityRotated",
        format!("authority {} signs from now on", authority.id),
    )
}

fn drop_authority(draft: &mut Draft, id: &str, force: bool) -> Result<(), Rejected> {
    let now = draft.now();
    let trust: &mut Trust = &mut draft.state.trust;
    let Some(at) = trust.authorities.iter().position(|authority| authority.id == id) else { return Ok(()) };
    if at + 1 == trust.authorities.len() {
        return Err(Rejected::new(ErrorCode::InUse, format!("authority {id} signs; rotate first")));
    }
    let users: Vec<String> = trust.users(id, now).map(ToString::to_string).collect();
    if !force && !users.is_empty() {
        let message = format!("these still have certificates of authority {id} alone: {}", users.join(", "));
        return Err(Rejected::new(ErrorCode::InUse, message));
    }
    Arc::make_mut(&mut trust.authorities).remove(at);
    trust.counters.epoch += 1;
    tell(draft, EventLevel::Normal, "AuthorityDropped", format!("authority {id} is not believed any more"))
}

/// Notes what happened to the cluster as a whole.
fn tell(draft: &mut Draft, level: EventLevel, reason: &str, message: String) -> Result<(), Rejected> {
    let uid = cluster(draft)?;
    let cluster = draft.take::<Cluster>(uid)?;
    draft.event(level, reason, &cluster, message);
    draft.put_anew(cluster);
    Ok(())
}

pub(crate) fn forget_outlived(draft: &mut Draft) {
    let now = draft.now();
    let trust: &Trust = &draft.state.trust;
    let outlived = trust.holders.iter().filter(|(who, holder)| trust.outlived(who, holder, draft.state, now));
    let outlived: Vec<Identity> = outlived.map(|(identity, _)| identity.clone()).collect();
    for identity in outlived {
        draft.state.trust.holders.remove(&identity);
    }
}

impl State {
    /// A certificate for a controller, given outside of the log while a state is brought back: by a backup's restore, of
    /// which it is the first. Returns its number.
    pub fn certify_restored(&mut self, identity: Identity, ask: Ask, at: Timestamp) -> u64 {
        let trust: &mut Trust = &mut self.trust;
        trust.counters.serial += 1;
        let Ask { key_sha256, authority, expires } = ask;
        let serial = trust.counters.serial;
        let holder = trust.holders.entry(identity).or_default();
        holder.issued.push(Issued { serial, key_sha256, authority, at, expires });
        serial
    }

    /// Nobody is believed any more: for a state that becomes another cluster's.
    pub fn believe_nobody(&mut self) {
        *self.trust = Trust::default();
    }
}
