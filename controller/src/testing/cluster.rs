//! One to five controllers on loopback addresses of their own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};

use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{ControllerId, ErrorCode, Kind, Object};
use dunlin_proto::v1::fleet_client::FleetClient;
use dunlin_proto::{Fault, Wire as _, v1};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::{eventually, soon};
use crate::{Config, Controller, Peer, mint};

/// Controllers, each with a directory and loopback address of its own.
pub(crate) struct Cluster {
    configs: BTreeMap<u64, Config>,
    running: BTreeMap<u64, Controller>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `count` controllers and waits until they are one founded cluster.
    pub(crate) async fn start(count: u64) -> Self {
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
            api_endpoint: format!("http://{}", address(id, port)),
            raft_endpoint: address(id, port + 1),
        };
        let config = |id: u64| {
            let (api, raft) = (address(id, port).parse().unwrap(), address(id, port + 1).parse().unwrap());
            let single = Config::single(dir.path().join(id.to_string()), api, raft, "test".parse().unwrap());
            Config {
                id: ControllerId(id),
                peers: ids.iter().filter(|other| **other != id).map(|other| peer(*other)).collect(),
                init: ids.iter().map(|id| ControllerId(*id)).collect(),
                ..single
            }
        };
        let configs: BTreeMap<_, _> = ids.iter().map(|id| (*id, config(*id))).collect();
        let mut cluster = Self { configs, running: BTreeMap::new(), _dir: dir };
        for id in ids {
            cluster.start_one(id).await;
        }
        let running = &cluster.running;
        eventually("the cluster is founded", || {
            running.values().all(|controller| controller.node.replica.read().cluster().is_some())
        })
        .await;
        cluster
    }

    pub(crate) async fn start_one(&mut self, id: u64) {
        let controller = Controller::start(self.configs[&id].clone()).await.unwrap();
        self.running.insert(id, controller);
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
        FleetClient::new(Endpoint::from_shared(self.endpoint(id)).unwrap().connect_lazy())
    }

    /// An object as the controller `id` stores it now.
    pub(crate) fn stored(&self, id: u64, kind: Kind, name: &str) -> Option<Object> {
        let view = self.running[&id].node.replica.read();
        view.object_named(kind, &name.parse().unwrap()).map(|object| Object::clone(object))
    }

    pub(crate) async fn token(&self, id: u64) -> String {
        let request = v1::CreateTokenRequest { ttl_s: 600, ..v1::CreateTokenRequest::default() };
        self.client(id).create_token(request).await.unwrap().into_inner().token
    }
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
