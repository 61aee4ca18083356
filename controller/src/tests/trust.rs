//! Whoever may not, does not: certificates, tokens and ports, each refused with its code.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dunlin_model::host::HostPhase;
use dunlin_model::{ControllerId, ErrorCode, Identity, Kind, Object, Role};
use dunlin_pki::{KeyPair, Keyring, Ring, Trust};
use dunlin_proto::v1::agent_gate_client::AgentGateClient;
use dunlin_proto::v1::fleet_client::FleetClient;
use dunlin_proto::v1::identities_client::IdentitiesClient;
use dunlin_proto::v1::raft_transport_client::RaftTransportClient;
use dunlin_proto::{Wire as _, v1};
use tokio::io::AsyncReadExt as _;
use tonic::transport::{Channel, Endpoint};

use crate::clock;
use crate::testing::{Cluster, FakeAgent, code, eventually, given, join, key, keyring, ok, shown, soon, vm};

const DAY: u64 = 24 * 3600 * 1000;

fn images() -> v1::ListRequest {
    v1::ListRequest { kind: Kind::Image.to_wire(), ..v1::ListRequest::default() }
}

fn admin(name: &str) -> Identity {
    Identity::Admin(name.parse().unwrap())
}

fn who() -> v1::WhoAmIRequest {
    v1::WhoAmIRequest {}
}

async fn lists(channel: Channel) -> Result<(), (ErrorCode, String)> {
    let answer = FleetClient::new(channel).list(images()).await;
    if answer.is_ok() { Ok(()) } else { Err(code(answer)) }
}

/// On the port for everybody: none, an expired, an early, a foreign and a revoked certificate are told apart in the answer; an
/// agent is let to what agents need and no further; a caller's name counts only from a controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_do_not_hold_are_refused() {
    let cluster = Cluster::start(1).await;
    let ours = &cluster.authority;
    let now = clock::now().0;
    let as_shown = |authority: &_, who: Identity, from: u64, to: u64| {
        let roots = match keyring(ours, None).ring().trust {
            Trust::Roots(roots) => roots,
            Trust::Pinned(_) => unreachable!(),
        };
        let shown = Some(shown(authority, who, 77, from, to));
        let ring = Ring { shown, trust: Trust::Roots(roots), beside: Vec::new() };
        cluster.channel(1, &Keyring::new(ring, dunlin_pki::Clock::system()).unwrap())
    };
    let refused = async |channel: Channel, says: &str| {
        let (found, message) = lists(channel).await.unwrap_err();
        assert_eq!(found, ErrorCode::Unauthenticated, "{message}");
        assert!(message.contains(says), "{message}");
    };
    let theirs = dunlin_pki::make(clock::now()).unwrap();
    lists(as_shown(ours, admin("ada"), now, now + DAY)).await.unwrap();
    refused(cluster.channel(1, &keyring(ours, None)), "no certificate was shown").await;
    refused(as_shown(ours, admin("ada"), now - 2 * DAY, now - DAY), "has expired").await;
    refused(as_shown(ours, admin("ada"), now + DAY, now + 2 * DAY), "does not hold yet").await;
    refused(as_shown(&theirs, admin("ada"), now, now + DAY), "not of this cluster's authority").await;

    // An agent may list images and read their bytes; nothing else of the fleet is its business.
    let agent = FakeAgent::join(&cluster.endpoint(1), &cluster.token(1).await, "h1").await;
    let mut as_agent = FleetClient::new(cluster.channel(1, &agent.keyring));
    as_agent.list(images()).await.unwrap();
    let vms = v1::ListRequest { kind: Kind::Vm.to_wire(), ..v1::ListRequest::default() };
    assert_eq!(code(as_agent.list(vms).await).0, ErrorCode::Forbidden);
    let create = v1::CreateRequest {
        idempotency_key: key(),
        object: Some(vm("web", dunlin_model::vm::Power::Stopped)),
        dry_run: false,
    };
    assert_eq!(code(as_agent.create(create.clone()).await).0, ErrorCode::Forbidden);
    let token = v1::CreateTokenRequest { ttl_s: 60, ..v1::CreateTokenRequest::default() };
    assert_eq!(code(as_agent.create_token(token).await).0, ErrorCode::Forbidden);
    // An admin's name, written by an agent, is taken away and not believed.
    let mut pretends = tonic::Request::new(create);
    pretends.metadata_mut().insert("dunlin-caller", "admin/ada#1".parse().unwrap());
    pretends.metadata_mut().insert("dunlin-forwarded", "1".parse().unwrap());
    assert_eq!(code(as_agent.create(pretends).await).0, ErrorCode::Forbidden);
    // Nor does an admin speak as an agent.
    let tunnel = AgentGateClient::new(as_shown(ours, admin("ada"), now, now + DAY));
    let chunks = tokio_stream::iter([v1::TunnelChunk::default()]);
    assert_eq!(code(tunnel.clone().tunnel(chunks).await.map(drop)).0, ErrorCode::Forbidden);

    // A controller's word for who asked counts, to the end of that one's rights.
    let by_controller = keyring(ours, Some((Identity::Controller(ControllerId(1)), 1)));
    let mut passed_on = tonic::Request::new(who());
    passed_on.metadata_mut().insert("dunlin-caller", "admin/eve#3".parse().unwrap());
    let channel = cluster.channel(1, &by_controller);
    let told = IdentitiesClient::new(channel.clone()).who_am_i(passed_on).await.unwrap().into_inner();
    assert_eq!((told.identity.as_str(), told.serial), ("admin/eve", 3));
    let mut passed_on = tonic::Request::new(v1::RotateRequest::default());
    passed_on.metadata_mut().insert("dunlin-caller", format!("host/{}#3", agent.host).parse().unwrap());
    assert_eq!(code(IdentitiesClient::new(channel).rotate(passed_on).await).0, ErrorCode::Forbidden);
}

/// A token makes one holder of its own role, once; the same key may ask again for the same certificate; and the local socket
/// needs none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_good_once_and_for_one_role() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let endpoint = cluster.endpoint(follower);
    let asks = |role: Role, name: &str, key: &KeyPair| v1::JoinRequest {
        role: role.to_wire(),
        name: name.into(),
        host_uid: if role == Role::Host { crate::mint::uuid().to_string() } else { String::new() },
        public_key: key.public().as_bytes().to_vec(),
        ..v1::JoinRequest::default()
    };
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let token = cluster.role_token(follower, Role::Admin).await;
    for role in [Role::Host, Role::Controller] {
        let (found, message) = code(join(&endpoint, &token, asks(role, "4", &first)).await);
        assert_eq!(found, ErrorCode::Forbidden, "{message}");
        assert!(message.contains("the token is for the role admin"), "{message}");
    }
    let answer = join(&endpoint, &token, asks(Role::Admin, "ada", &first)).await.unwrap();
    let again = join(&endpoint, &token, asks(Role::Admin, "ada", &first)).await.unwrap();
    assert_eq!((&answer.identity, answer.expires_ms), (&again.identity, again.expires_ms));
    let (found, message) = code(join(&endpoint, &token, asks(Role::Admin, "ada", &second)).await);
    assert_eq!(found, ErrorCode::Unauthenticated);
    assert!(message.contains("used before"), "{message}");
    let ada = given(&first, answer);
    for id in [follower, cluster.leader().await] {
        let told =
            IdentitiesClient::new(cluster.channel(id, &ada)).who_am_i(who()).await.unwrap().into_inner();
        assert_eq!(told.identity, "admin/ada");
    }
    let bad = v1::JoinRequest { public_key: vec![4; 64], ..asks(Role::Admin, "bob", &second) };
    assert_eq!(code(join(&endpoint, &token, bad).await).0, ErrorCode::InvalidArgument);
    let reserved = asks(Role::Admin, "local-socket", &second);
    assert_eq!(code(join(&endpoint, &token, reserved).await).0, ErrorCode::InvalidArgument);

    // Nothing that the API shows holds a key.
    let mut told =
        format!("{:?}", cluster.identities(1).show_authorities(v1::ShowAuthoritiesRequest {}).await.unwrap());
    let events = v1::ListRequest { kind: Kind::Event.to_wire(), ..v1::ListRequest::default() };
    told += &format!("{:?}", cluster.client(1).list(events).await.unwrap());
    assert!(told.contains("admin/ada") && !told.contains("PRIVATE"), "{told}");

    let socket = cluster.config(follower).data_dir.join("admin.sock");
    let channel = Endpoint::from_static("http://local.invalid")
        .connect_with_connector_lazy(dunlin_pki::UnixDialer::new(&socket));
    let told = IdentitiesClient::new(channel.clone()).who_am_i(who()).await.unwrap().into_inner();
    assert_eq!((told.identity.as_str(), told.serial), ("admin/local-socket", 0));
    let token = v1::CreateTokenRequest { ttl_s: 60, ..v1::CreateTokenRequest::default() };
    FleetClient::new(channel).create_token(token).await.unwrap();
}

/// A host that is revoked is out at once: its session ends, its connection is cut, no controller answers it, and it comes back
/// only with a new token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_host_is_out_at_once() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let agent = FakeAgent::join(&cluster.endpoint(leader), &cluster.token(leader).await, "h1").await;
    let life = tokio::spawn(agent.clone().live());
    let phase = || match cluster.stored(leader, Kind::Host, "h1") {
        Some(Object::Host(host)) => Some(host.status.phase),
        _ => None,
    };
    eventually("the host is up", || phase() == Some(HostPhase::Up)).await;
    let channel = cluster.channel(leader, &agent.keyring);
    lists(channel.clone()).await.unwrap();
    let revoke = v1::RevokeRequest { role: Role::Host.to_wire(), name: "h1".into() };
    cluster.identities(cluster.follower().await).revoke(revoke).await.unwrap();
    eventually("the session has ended", || agent.seen.lock().unwrap().goodbye.is_some()).await;
    let goodbye = agent.seen.lock().unwrap().goodbye.clone().unwrap();
    assert_eq!(goodbye.code, "unauthenticated", "{}", goodbye.message);
    assert_eq!(phase(), Some(HostPhase::Down));
    life.abort();
    for id in 1..=3 {
        let fresh = || async { lists(cluster.channel(id, &agent.keyring)).await };
        loop {
            match soon("an answer", fresh()).await {
                Err((ErrorCode::Unauthenticated, message)) if message.contains("revoked") => break,
                // A follower hears of it a moment later.
                Ok(()) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
    // The old connection is cut; the next one is told why.
    loop {
        match lists(channel.clone()).await.unwrap_err() {
            (ErrorCode::Unavailable, _) => tokio::time::sleep(Duration::from_millis(10)).await,
            (found, message) => break assert_eq!(found, ErrorCode::Unauthenticated, "{message}"),
        }
    }
    let renew = v1::RenewRequest { public_key: KeyPair::generate().unwrap().public().as_bytes().to_vec() };
    let mut door = IdentitiesClient::new(cluster.channel(leader, &agent.keyring));
    assert_eq!(code(door.renew(renew).await).0, ErrorCode::Unauthenticated);

    let key = KeyPair::generate().unwrap();
    let request = v1::JoinRequest {
        role: Role::Host.to_wire(),
        name: "h1".into(),
        host_uid: agent.host.to_string(),
        public_key: key.public().as_bytes().to_vec(),
        ..v1::JoinRequest::default()
    };
    let token = cluster.token(leader).await;
    let answer = join(&cluster.endpoint(leader), &token, request).await.unwrap();
    let again = FakeAgent { keyring: given(&key, answer), seen: Default::default(), ..agent };
    let life = tokio::spawn(again.live());
    eventually("the host is up again", || phase() == Some(HostPhase::Up)).await;
    life.abort();
}

/// The alert with which a port ended a handshake, or what came instead.
async fn alert(address: std::net::SocketAddr, keyring: &Arc<Keyring>) -> String {
    let dialled = keyring.dialer().connect(&address.ip().to_string(), address.port()).await;
    let Ok(mut stream) = dialled else { return dialled.unwrap_err().to_string() };
    match soon("the port says something", stream.read_u8()).await {
        Ok(_) => "let in".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// On the controllers' port nobody but a controller gets past the handshake, and none speaks for another; a controller that is
/// revoked is cut off there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_port_is_for_controllers() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let agent = FakeAgent::join(&cluster.endpoint(leader), &cluster.token(leader).await, "h1").await;
    let address = cluster.config(leader).raft_listen;
    let ours = &cluster.authority;
    assert!(alert(address, &agent.keyring).await.contains("AccessDenied"));
    assert!(alert(address, &keyring(ours, Some((admin("ada"), 5)))).await.contains("AccessDenied"));
    assert!(alert(address, &keyring(ours, None)).await.contains("CertificateRequired"));
    let theirs = dunlin_pki::make(clock::now()).unwrap();
    let foreign = keyring(&theirs, Some((Identity::Controller(ControllerId(2)), 2)));
    let trusting = Ring { trust: keyring(ours, None).ring().trust, ..foreign.ring() };
    foreign.replace(trusting).unwrap();
    assert!(alert(address, &foreign).await.contains("UnknownCA"));
    let late =
        shown(ours, Identity::Controller(ControllerId(2)), 2, clock::now().0 - 2 * DAY, clock::now().0 - DAY);
    foreign.replace(Ring { shown: Some(late), ..foreign.ring() }).unwrap();
    assert!(alert(address, &foreign).await.contains("CertificateExpired"));

    let other = (1..=3).find(|id| *id != leader).unwrap();
    let as_other = keyring(ours, Some((Identity::Controller(ControllerId(other)), other)));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    let channel = endpoint.connect_with_connector_lazy(as_other.dialer());
    let cluster_id = cluster.controller(leader).node.replica.cluster().unwrap().to_string();
    let from = |from| v1::ReadIndexRequest {
        header: Some(v1::RaftHeader { version: 1, cluster_id: cluster_id.clone(), from, to: leader }),
    };
    let mut transport = RaftTransportClient::new(channel);
    transport.read_index(from(other)).await.unwrap();
    let pretends = transport.read_index(from(leader)).await.unwrap_err();
    assert_eq!(pretends.code(), tonic::Code::PermissionDenied, "{pretends}");

    let revoke = v1::RevokeRequest { role: Role::Controller.to_wire(), name: other.to_string() };
    cluster.identities(leader).revoke(revoke).await.unwrap();
    let cut = soon("the line is cut", async {
        while transport.read_index(from(other)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    cut.await;
    assert!(alert(address, &as_other).await.contains("CertificateRevoked"));
}

/// Controllers renew long before the end, as the clock says; an authority is replaced while everything runs, sessions
/// included: both are believed until nobody has anything of the old one, and then the new one alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_and_rotation_interrupt_nobody() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let agent = FakeAgent::join(&cluster.endpoint(leader), &cluster.token(leader).await, "h1").await;
    let agent = FakeAgent { keyring: cluster.in_its_time(&agent.keyring), ..agent };
    let ada = cluster.in_its_time(&keyring(&cluster.authority, Some((admin("ada"), 5))));
    let life = tokio::spawn(agent.clone().live());
    eventually("a session is open", || agent.seen.lock().unwrap().sessions.len() == 1).await;
    let trust = || cluster.controller(leader).node.replica.read().trust().clone();
    let serials = || {
        let trust = trust();
        let controllers = trust.holders().filter(|(identity, _)| identity.role() == Role::Controller);
        controllers.map(|(_, holder)| holder.issued.last().unwrap().serial).collect::<Vec<_>>()
    };
    assert_eq!(serials(), [1, 2, 3]);
    // Eight of fourteen days later.
    cluster.ahead_ms.store(8 * DAY, Ordering::Relaxed);
    eventually("all controllers have renewed", || serials().iter().all(|serial| *serial > 1000)).await;

    let old = trust().signer().unwrap().id.clone();
    let known = cluster.identities(leader).rotate(v1::RotateRequest::default()).await.unwrap().into_inner();
    assert_eq!(known.authorities.len(), 2);
    let again = cluster.identities(leader).rotate(v1::RotateRequest::default()).await;
    assert_eq!(code(again).0, ErrorCode::WrongState);
    let of_old = || trust().users(&old, clock::now()).map(ToString::to_string).collect::<Vec<_>>();
    eventually("the controllers have renewed", || of_old() == [format!("host/{}", agent.host)]).await;
    // The agent is told over its session, and who knows only the old authority still finds in.
    eventually("the agent is told", || {
        agent.seen.lock().unwrap().authorities.matches("BEGIN CERTIFICATE").count() == 2
    })
    .await;
    lists(cluster.channel(leader, &ada)).await.unwrap();
    assert_eq!(trust().authorities().len(), 2, "the agent still has the old one's");
    let key = KeyPair::generate().unwrap();
    let renew = v1::RenewRequest { public_key: key.public().as_bytes().to_vec() };
    let mut door = IdentitiesClient::new(cluster.channel(leader, &agent.keyring));
    let renewed = cluster.in_its_time(&given(&key, door.renew(renew).await.unwrap().into_inner()));
    eventually("the old authority is dropped", || trust().authorities().len() == 1).await;
    assert_ne!(trust().signer().unwrap().id, old);
    let soon_refused = async {
        while lists(cluster.channel(leader, &ada)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("certificates of the old one are refused", soon_refused).await;
    lists(cluster.channel(leader, &renewed)).await.unwrap();
    assert_eq!(agent.seen.lock().unwrap().sessions.len(), 1, "the session went on through all of it");
    life.abort();
    // The cluster itself went on too: a write needs two of three.
    let object = Some(vm("web", dunlin_model::vm::Power::Stopped));
    let create = v1::CreateRequest { idempotency_key: crate::testing::key(), object, dry_run: false };
    let given = IdentitiesClient::new(cluster.channel(leader, &renewed)).who_am_i(who()).await.unwrap();
    assert_eq!(given.into_inner().identity, format!("host/{}", agent.host));
    let socket = cluster.config(leader).data_dir.join("admin.sock");
    let near = Endpoint::from_static("http://local.invalid")
        .connect_with_connector_lazy(dunlin_pki::UnixDialer::new(socket));
    ok(FleetClient::new(near).create(create).await);
}

/// A controller that was off until its certificate had ended comes back by itself; one without an identity, or whose folder has
/// a log but none, is told what to do; one that joins with a token gets its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_without_a_certificate_are_helped_or_told() {
    let mut cluster = Cluster::start(3).await;
    for id in 1..=3 {
        cluster.stop_one(id).await;
    }
    cluster.ahead_ms.store(30 * DAY, Ordering::Relaxed);
    for id in 1..=3 {
        cluster.start_one(id).await;
    }
    cluster.leader().await;
    let socket = cluster.config(1).data_dir.join("admin.sock");
    let near = Endpoint::from_static("http://local.invalid")
        .connect_with_connector_lazy(dunlin_pki::UnixDialer::new(socket));
    ok(FleetClient::new(near.clone())
        .create(v1::CreateRequest {
            idempotency_key: key(),
            object: Some(vm("web", dunlin_model::vm::Power::Stopped)),
            dry_run: false,
        })
        .await);

    let dir = tempfile::tempdir().unwrap();
    let mut fourth = cluster.config(1).clone();
    fourth.id = ControllerId(4);
    fourth.data_dir = dir.path().join("4");
    fourth.init = Vec::new();
    fourth.peers = (1..=3).map(|id| peer(&cluster, id)).collect();
    fourth.api_listen.set_port(18_200);
    fourth.raft_listen.set_port(18_201);
    fourth.api_endpoint = format!("https://{}", fourth.api_listen);
    let lost = crate::Controller::start(fourth.clone()).await.err();
    assert!(matches!(lost, Some(crate::RunError::Keys(crate::KeysError::None { .. }))), "{lost:?}");
    let token = v1::CreateTokenRequest {
        ttl_s: 60,
        role: Role::Controller.to_wire(),
        ..v1::CreateTokenRequest::default()
    };
    let token = FleetClient::new(near).create_token(token).await.unwrap().into_inner().token;
    fourth.token = Some(dunlin_model::Secret::new(token));
    let joined = crate::Controller::start(fourth.clone()).await.unwrap();
    assert_eq!(joined.node.keys.me().identity, Identity::Controller(ControllerId(4)));
    soon("it stops", joined.stop()).await;
    // Once it has an identity the token is not needed, and without the identity nothing is made up.
    fourth.token = None;
    let joined = crate::Controller::start(fourth.clone()).await.unwrap();
    soon("it stops", joined.stop()).await;
    std::fs::remove_dir_all(fourth.data_dir.join("tls")).unwrap();
    let lost = crate::Controller::start(fourth).await.err();
    assert!(matches!(lost, Some(crate::RunError::Keys(crate::KeysError::Lost { .. }))), "{lost:?}");
}

fn peer(cluster: &Cluster, id: u64) -> crate::Peer {
    crate::Peer {
        id: ControllerId(id),
        api_endpoint: cluster.endpoint(id),
        raft_endpoint: cluster.config(id).raft_listen.to_string(),
    }
}
