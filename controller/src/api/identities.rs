//! The Identities service: joining, renewing, revoking, and the authorities.

use std::sync::Arc;

use dunlin_model::meta::validate_labels;
use dunlin_model::rights::Verb;
use dunlin_model::{ControllerId, ErrorCode, Identity, Invalid, Kind, Name, Role, Timestamp};
use dunlin_pki::{JoinToken, KeyPair, Keyring, PublicKey, Shown, fingerprint, pem_certificates};
use dunlin_proto::v1::identities_client::IdentitiesClient;
use dunlin_proto::v1::identities_server::{Identities, IdentitiesServer};
use dunlin_proto::{Fault, Wire as _, read, v1};
use dunlin_state::rights::Scope;
use dunlin_state::{Command, Trust, TrustChange};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::call::{CALL_DEADLINE, Call};
use super::{carry, commit, peers, reads};
use crate::audit::Entry;
use crate::mint;
use crate::node::Node;
use crate::rights::{self, Caller};
use crate::trust::{self, Certified, LOCAL_ADMIN, Peer, certify};

/// Longest secret of a token, bytes: what is minted has 64.
const SECRET_BYTES_MAX: usize = 256;

/// The Identities service of one controller.
#[derive(Debug)]
pub(crate) struct Holders {
    node: Arc<Node>,
}

impl Holders {
    pub(crate) fn service(node: Arc<Node>) -> IdentitiesServer<Self> {
        IdentitiesServer::new(Self { node })
    }
}

/// Carries a request to the leader.
macro_rules! at_leader {
    ($self:ident, $request:ident, $method:ident, $caller:ident, $local:expr) => {{
        let call = Call::admit(&$self.node.calls, &$request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let $caller = &*caller;
        let remote = |channel, request| async move { identities(channel).$method(request).await };
        Ok(Response::new(carry::to_leader(&$self.node, call, $request.into_inner(), $local, remote).await?))
    }};
}

#[tonic::async_trait]
impl Identities for Holders {
    #[tracing::instrument(skip_all, fields(name = request.get_ref().name, uid = request.get_ref().host_uid))]
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::Credentials>, Status> {
        // Refused here already when it makes no sense, wherever the leader is.
        Joining::read(request.get_ref())?;
        at_leader!(self, request, join, caller, |asked| join(&self.node, caller, asked))
    }

    #[tracing::instrument(skip_all)]
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Credentials>, Status> {
        let peer = peer(&request)?;
        PublicKey::parse(&request.get_ref().public_key).map_err(Fault::from)?;
        at_leader!(self, request, renew, _caller, |asked| renew(&self.node, peer.clone(), asked))
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let peer = peer(&request)?;
        Ok(Response::new(v1::WhoAmIResponse {
            identity: peer.identity.to_string(),
            serial: peer.serial,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            level: self.node.config.level.0,
        }))
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn revoke(
        &self,
        request: Request<v1::RevokeRequest>,
    ) -> Result<Response<v1::RevokeResponse>, Status> {
        at_leader!(self, request, revoke, caller, |asked| revoke(&self.node, caller, asked))
    }

    #[tracing::instrument(skip_all)]
    async fn show_authorities(
        &self,
        request: Request<v1::ShowAuthoritiesRequest>,
    ) -> Result<Response<v1::Authorities>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let view = carry::view(&self.node, &call, v1::Consistency::Linearizable).await?;
        let right = (Verb::Read, Kind::Cluster, Scope::Fleet);
        rights::authorise(&self.node, &call.caller, &view, right, "authorities")?;
        Ok(Response::new(show(&self.node, &view)))
    }

    #[tracing::instrument(skip_all)]
    async fn rotate(&self, request: Request<v1::RotateRequest>) -> Result<Response<v1::Authorities>, Status> {
        at_leader!(self, request, rotate, caller, |asked| rotate(&self.node, caller, asked))
    }
}

/// The service over a connection.
fn identities(channel: Channel) -> IdentitiesClient<Channel> {
    IdentitiesClient::new(channel)
}

/// Who asks; the gate lets nobody else through to where this is asked.
fn peer<T>(request: &Request<T>) -> Result<Peer, Fault> {
    let missing = || Fault::new(ErrorCode::Unauthenticated, "no certificate was shown");
    request.extensions().get::<Peer>().cloned().ok_or_else(missing)
}

/// A join, read.
struct Joining {
    token_sha256: String,
    identity: Identity,
    key: PublicKey,
}

impl Joining {
    fn read(asked: &v1::JoinRequest) -> Result<Self, Fault> {
        if asked.token.is_empty() || asked.token.len() > SECRET_BYTES_MAX {
            let problem = format!("{} bytes", asked.token.len());
            return Err(Invalid::new("token", problem, "the secret of a token as it was printed").into());
        }
        let identity = match Role::from_wire(asked.role).map_err(|e| e.under("role"))? {
            Role::Host => {
                validate_labels(&asked.labels)?;
                read::<Name, _>(asked.name.clone(), "name")?;
                Identity::Host(read(asked.host_uid.clone(), "host_uid")?)
            }
            Role::Controller => {
                let wrong = || Invalid::new("name", format!("{:?}", asked.name), "a controller's number");
                let id = asked.name.parse().ok().filter(|id| *id > 0).ok_or_else(wrong)?;
                Identity::Controller(ControllerId(id))
            }
            Role::Admin if asked.name == LOCAL_ADMIN => {
                let problem = format!("{LOCAL_ADMIN} is who calls on the local socket");
                return Err(Invalid::new("name", problem, "another name").into());
            }
            Role::Admin => Identity::Admin(read(asked.name.clone(), "name")?),
        };
        let key = PublicKey::parse(&asked.public_key)?;
        Ok(Self { token_sha256: mint::sha256_hex(&asked.token), identity, key })
    }
}

async fn join(node: &Node, caller: &Caller, asked: v1::JoinRequest) -> Result<v1::Credentials, Fault> {
    let Joining { token_sha256, identity, key } = Joining::read(&asked)?;
    let name: Option<Name> = asked.name.parse().ok();
    let certified = certify(node, &identity, &key, |ask| match (&identity, &name) {
        (Identity::Host(uid), Some(name)) => Command::JoinHost {
            token_sha256: token_sha256.clone(),
            uid: *uid,
            name: name.clone(),
            labels: asked.labels.clone(),
            ask,
        },
        _ => Command::Trust(TrustChange::Join {
            token_sha256: token_sha256.clone(),
            identity: identity.clone(),
            ask,
        }),
    });
    let certified = certified.await;
    let entry = Entry::of(caller, "join").about("", &identity.to_string(), None);
    match &certified {
        Ok(_) => node.audit.note(entry).await,
        Err(fault) => node.audit.refusal(entry.with_outcome(fault.code.as_str())),
    }
    let certified = certified?;
    tracing::info!(%identity, "joined");
    Ok(credentials(node, &identity, certified))
}

async fn renew(node: &Node, peer: Peer, asked: v1::RenewRequest) -> Result<v1::Credentials, Fault> {
    if peer.identity.to_string() == format!("admin/{LOCAL_ADMIN}") {
        let message = "the local socket has no certificate to renew; make a token and join with it";
        return Err(Fault::new(ErrorCode::WrongState, message));
    }
    let key = PublicKey::parse(&asked.public_key)?;
    let Peer { identity, serial, .. } = peer;
    let certified = certify(node, &identity, &key, |ask| {
        Command::Trust(TrustChange::Renew { identity: identity.clone(), serial, ask })
    });
    Ok(credentials(node, &identity, certified.await?))
}

fn credentials(node: &Node, identity: &Identity, certified: Certified) -> v1::Credentials {
    let view = node.replica.read();
    let cluster_uid = view.cluster().map(|cluster| cluster.metadata.uid.to_string()).unwrap_or_default();
    let endpoints = node.controllers().into_iter().map(|controller| controller.endpoint);
    v1::Credentials {
        identity: identity.to_string(),
        certificate: certified.certificate,
        issued_ms: certified.issued.at.0,
        expires_ms: certified.issued.expires.0,
        authorities: authorities(view.trust()),
        cluster_uid,
        controllers: endpoints.collect(),
    }
}

/// The certificates of every authority that is believed, PEM; the last one signs.
pub(crate) fn authorities(trust: &Trust) -> String {
    trust.authorities().iter().map(|known| known.certificate.as_str()).collect()
}

async fn revoke(node: &Node, caller: &Caller, asked: v1::RevokeRequest) -> Result<v1::RevokeResponse, Fault> {
    let role: Role = read(asked.role, "role")?;
    let view = node.replica.read();
    let identity = match role {
        Role::Host => {
            let right = (Verb::Delete, Kind::Host, Scope::Fleet);
            rights::authorise(node, caller, &view, right, &asked.name)?;
            Identity::Host(dunlin_model::HostId(reads::find(&view, Kind::Host, &asked.name)?.uid()))
        }
        Role::Controller | Role::Admin => {
            rights::authorise_all(node, caller, &view, "revoke", "revoking certificates")?;
            format!("{role}/{}", asked.name).parse()?
        }
    };
    drop(view);
    let command = Command::Trust(TrustChange::Revoke { identity: identity.clone() });
    let entry = Entry::of(caller, "revoke").about("", &identity.to_string(), None);
    commit::carried_out(node, entry, &command).await?;
    tracing::warn!(%identity, "revoked");
    Ok(v1::RevokeResponse { identity: identity.to_string() })
}

async fn rotate(node: &Node, caller: &Caller, asked: v1::RotateRequest) -> Result<v1::Authorities, Fault> {
    rights::authorise_all(node, caller, &node.replica.read(), "rotate", "changing authorities")?;
    let entry = Entry::of(caller, "rotate").about("", &asked.drop, None);
    if asked.drop.is_empty() {
        let rotated = trust::rotate(node).await;
        let outcome = rotated.as_ref().map_or_else(|fault| fault.code.as_str(), |_| "ok");
        node.audit.note(entry.with_outcome(outcome)).await;
        rotated?;
    } else {
        let command = Command::Trust(TrustChange::Drop { authority: asked.drop, force: true });
        commit::carried_out(node, entry, &command).await?;
    }
    Ok(show(node, &node.replica.read()))
}

fn show(node: &Node, state: &dunlin_state::State) -> v1::Authorities {
    let (trust, now) = (state.trust(), node.config.clock.now());
    let print =
        |pem: &str| pem_certificates(pem).ok().and_then(|all| all.first().map(|one| fingerprint(one)));
    let authorities = trust.authorities().iter().map(|known| v1::AuthorityInfo {
        id: known.id.clone(),
        fingerprint: print(&known.certificate).unwrap_or_default(),
        made_ms: known.made.0,
        expires_ms: known.expires.0,
        users: trust.users(&known.id, now).count() as u64,
    });
    let holders = trust.holders().filter_map(|(identity, holder)| {
        let newest = holder.issued.last()?;
        let name = match identity {
            Identity::Host(uid) => state.host(*uid).map(|host| host.metadata.name.to_string()),
            _ => None,
        };
        Some(v1::HolderInfo {
            identity: identity.to_string(),
            name: name.unwrap_or_default(),
            serial: newest.serial,
            authority: newest.authority.clone(),
            expires_ms: newest.expires.0,
            revoked: newest.serial < holder.floor,
        })
    });
    v1::Authorities { authorities: authorities.collect(), holders: holders.collect() }
}

/// Gets this controller another certificate, from whichever controller leads.
pub(crate) async fn renew_own(node: &Node) -> Result<(), Fault> {
    let internal = |e: &dyn std::fmt::Display| Fault::new(ErrorCode::Internal, e.to_string());
    let key = KeyPair::generate().map_err(|e| internal(&e))?;
    let asked = v1::RenewRequest { public_key: key.public().as_bytes().to_vec() };
    let me = node.keys.me();
    let call = Call::own(CALL_DEADLINE);
    let local = |asked| renew(node, me.clone(), asked);
    let remote = |channel, request| async move { identities(channel).renew(request).await };
    let given = carry::to_leader(node, call, asked, local, remote).await?;
    let shown = shown(&key, &given);
    node.keys.show(shown).map_err(|e| internal(&e))
}

fn shown(key: &KeyPair, given: &v1::Credentials) -> Shown {
    Shown {
        key: key.to_pem(),
        certificate: given.certificate.clone(),
        issued: Timestamp(given.issued_ms),
        expires: Timestamp(given.expires_ms),
    }
}

/// Trades a token for a controller's certificate; also the authorities' certificates.
pub(crate) async fn join_as_controller(
    keyring: &Arc<Keyring>,
    endpoint: &str,
    token: &JoinToken,
    me: ControllerId,
    key: &KeyPair,
) -> Result<(Shown, String), Fault> {
    let asked = v1::JoinRequest {
        token: token.secret.expose().to_owned(),
        role: Role::Controller.to_wire(),
        name: me.to_string(),
        public_key: key.public().as_bytes().to_vec(),
        ..v1::JoinRequest::default()
    };
    let channel = peers::Peers::new(keyring.dialer()).channel(endpoint)?;
    let given = identities(channel).join(asked).await?.into_inner();
    Ok((shown(key, &given), given.authorities))
}
