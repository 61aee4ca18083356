//! One to five controllers on loopback addresses of their own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use dunlin_model::capabilities::DriverName;
use dunlin_model::identity::Authority;
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{ControllerId, ErrorCode, Identity, Kind, Level, Object, Role, Timestamp};
use dunlin_pki::{Clock, Grant, KeyPair, Keyring, Ring, Shown, Trust, pem_certificates, sign};
use dunlin_proto::v1::fleet_client::FleetClient;
use dunlin_proto::v1::identities_client::IdentitiesClient;
use dunlin_proto::v1::operator_client::OperatorClient;
use dunlin_proto::{Fault, Wire as _, v1};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::{eventually, soon};
use crate::{Config, Controller, Peer, clock, mint};

/// Controllers, each with a directory and loopback address of its own.
pub(crate) struct Cluster {
    /// The authority that the cluster was founded with: for certificates of whatever kind.
    pub(crate) authority: Authority,
    /// Milliseconds that every controller's clock is ahead, where certificates are judged.
    pub(crate) ahead_ms: Arc<AtomicU64>,
    clock: Clock,
    admin: Arc<Keyring>,
    configs: BTreeMap<u64, Config>,
    running: BTreeMap<u64, Controller>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `count` controllers and waits until they are one founded cluster.
    pub(crate) async fn start(count: u64) -> Self {
        Self::start_reading(count, &BTreeMap::new()).await
    }

    /// The same, where some read no more than a level.
    pub(crate) async fn start_reading(count: u64, levels: &BTreeMap<u64, Level>) -> Self {
        static PORT: AtomicU16 = AtomicU16::new(17_000);
        // Each process has a network of its own in 127/8, so that tests do not take each other's ports.
        let process = std::process::id();
        let (high, low) = (process / 250 % 250 + 1, process % 250 + 1);
        let port = PORT.fetch_add(2, Ordering::Relaxed);
        let address = |id: u64, port| format!("127.{high}.{low}.{id}:{port}");
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<u64> = (1..=count).collect();
        let peer = |id: u64| Peer {
            id: ControllerId(id),
            api_endpoint: format!("https://{}", address(id, port)),
            raft_endpoint: address(id, port + 1),
        };
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let ahead = Arc::clone(&ahead_ms);
        let clock = Clock::new(move || Timestamp(clock::now().0 + ahead.load(Ordering::Relaxed)));
        let config = |id: u64| {
            let (api, raft) = (address(id, port).parse().unwrap(), address(id, port + 1).parse().unwrap());
            let single = Config::single(dir.path().join(id.to_string()), api, raft, "test".parse().unwrap());
            Config {
                id: ControllerId(id),
                peers: ids.iter().filter(|other| **other != id).map(|other| peer(*other)).collect(),
                init: ids.iter().map(|id| ControllerId(*id)).collect(),
                clock: clock.clone(),
                level: levels.get(&id).copied().unwrap_or(Level::NEWEST),
                ..single
            }
        };
        let configs: BTreeMap<_, _> = ids.iter().map(|id| (*id, config(*id))).collect();
        let hosts = ids.iter().map(|id| (ControllerId(*id), format!("127.{high}.{low}.{id}"))).collect();
        let bundles = crate::bundle(clock::now(), &hosts).unwrap();
        for (id, bundle) in &bundles {
            bundle.write(&configs[&id.0].data_dir.join("tls")).unwrap();
        }
        let authority = bundles[&ControllerId(1)].authority().clone();
        let admin = keyring(&authority, Some((Identity::Admin("test".parse().unwrap()), 500)));
        let admin = Keyring::new(admin.ring(), clock.clone()).unwrap();
        let running = BTreeMap::new();
        let mut cluster = Self { authority, ahead_ms, clock, admin, configs, running, _dir: dir };
        for id in ids {
            cluster.start_one(id).await;
        }
        let running = &cluster.running;
        eventually("the cluster is founded", || {
            running.values().all(|controller| {
                let view = controller.node.replica.read();
                view.cluster().is_some() && view.trust().signer().is_some()
            })
        })
        .await;
        cluster
    }

    pub(crate) async fn start_one(&mut self, id: u64) {
        let controller = Controller::start(self.configs[&id].clone()).await.unwrap();
        self.running.insert(id, controller);
    }

    /// From its next start on, a controller reads no more than that.
    pub(crate) fn set_level(&mut self, id: u64, level: Level) {
        self.configs.get_mut(&id).unwrap().level = level;
    }

    /// Starts a controller that must refuse to.
    pub(crate) async fn refuses(&self, id: u64) -> crate::RunError {
        Controller::start(self.configs[&id].clone()).await.unwrap_err()
    }

    /// The Operator service of a controller, as the admin sees it.
    pub(crate) fn operator(&self, id: u64) -> OperatorClient<Channel> {
        OperatorClient::new(self.channel(id, &self.admin))
    }

    pub(crate) async fn stop_one(&mut self, id: u64) {
        let controller = self.running.remove(&id).unwrap();
        soon("a controller stops", controller.stop()).await;
    }

    pub(crate) fn config(&self, id: u64) -> &Config {
        &self.configs[&id]
    }

    pub(crate) fn controller(&self, id: u64) -> &Controller {
        &self.running[&id]
    }

    /// The running controller that leads.
    pub(crate) async fn leader(&self) -> u64 {
        let leads = || self.running.iter().find(|(_, controller)| controller.node.leading().is_some());
        eventually("a controller leads", || leads().is_some()).await;
        *leads().unwrap().0
    }

    /// A running controller that does not lead.
    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.running.keys().find(|id| **id != leader).unwrap()
    }

    pub(crate) fn endpoint(&self, id: u64) -> String {
        self.configs[&id].api_endpoint.clone()
    }

    pub(crate) fn client(&self, id: u64) -> FleetClient<Channel> {
        FleetClient::new(self.channel(id, &self.admin))
    }

    /// A connection to a controller by whoever has that keyring.
    pub(crate) fn channel(&self, id: u64, keyring: &Arc<Keyring>) -> Channel {
        let endpoint = Endpoint::from_shared(self.endpoint(id)).unwrap();
        endpoint.connect_with_connector_lazy(keyring.dialer())
    }

    /// The same, judging certificates at the controllers' time.
    pub(crate) fn in_its_time(&self, keyring: &Keyring) -> Arc<Keyring> {
        Keyring::new(keyring.ring(), self.clock.clone()).unwrap()
    }

    /// The admin's key and certificate, and the authorities: PEM, for a client that is not ours.
    pub(crate) fn pem(&self) -> (String, String) {
        let shown = self.admin.ring().shown.unwrap();
        (format!("{}{}", shown.key.expose(), shown.certificate), self.authority.certificate.clone())
    }

    /// The Identities service of a controller, as the admin sees it.
    pub(crate) fn identities(&self, id: u64) -> IdentitiesClient<Channel> {
        IdentitiesClient::new(self.channel(id, &self.admin))
    }

    /// An object as the controller `id` stores it now.
    pub(crate) fn stored(&self, id: u64, kind: Kind, name: &str) -> Option<Object> {
        let view = self.running[&id].node.replica.read();
        view.object_named(kind, &name.parse().unwrap()).map(|object| Object::clone(object))
    }

    pub(crate) async fn token(&self, id: u64) -> String {
        self.role_token(id, Role::Host).await
    }

    pub(crate) async fn role_token(&self, id: u64, role: Role) -> String {
        let (ttl_s, role) = (600, role.to_wire());
        let request = v1::CreateTokenRequest { ttl_s, role, ..v1::CreateTokenRequest::default() };
        self.client(id).create_token(request).await.unwrap().into_inner().token
    }
}

/// What somebody shows whom that authority signed for, for twenty days, and believes; or shows nothing.
pub(crate) fn keyring(authority: &Authority, who: Option<(Identity, u64)>) -> Arc<Keyring> {
    let now = clock::now();
    let roots = pem_certificates(&authority.certificate).unwrap();
    let shown =
        who.map(|(identity, serial)| shown(authority, identity, serial, now.0, now.0 + 20 * 24 * 3_600_000));
    let ring = Ring { shown, trust: Trust::Roots(roots.clone()), beside: roots };
    Keyring::new(ring, Clock::system()).unwrap()
}

/// A certificate of that authority and time, with its key.
pub(crate) fn shown(authority: &Authority, identity: Identity, serial: u64, from: u64, to: u64) -> Shown {
    let key = KeyPair::generate().unwrap();
    let (issued, expires) = (Timestamp(from), Timestamp(to));
    let grant = Grant { identity, serial, issued, expires, names: Vec::new() };
    let certificate = sign(authority, &key.public(), &grant).unwrap();
    Shown { key: key.to_pem(), certificate, issued, expires }
}

/// A VM of the simulated hypervisor.
pub(crate) fn vm(name: &str, power: Power) -> v1::Object {
    let spec = VmSpec { driver: DriverName::Test, power, ..VmSpec::new(128) };
    let metadata = v1::Metadata { name: name.into(), ..v1::Metadata::default() };
    let vm = v1::Vm { metadata: Some(metadata), spec: spec.to_wire(), status: None };
    v1::Object { choice: Some(v1::object::Choice::Vm(vm)) }
}

/// A fresh idempotency key.
pub(crate) fn key() -> String {
    mint::secret()
}

/// The object of an answer.
pub(crate) fn ok(answer: Result<Response<v1::Object>, Status>) -> Object {
    answer.unwrap().into_inner().try_into().unwrap()
}

/// The public code and message of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> (ErrorCode, String) {
    let fault = Fault::from(answer.unwrap_err());
    (fault.code, fault.message)
}
