use std::time::Instant;

use dunlin_model::host::HostPhase;
use dunlin_model::vm::{Power, VmPhase};
use dunlin_model::{ErrorCode, Kind, Object};
use dunlin_proto::{Wire as _, v1};

use crate::testing::{Cluster, FakeAgent, eventually, key, ok, soon, vm};
use crate::{Controller, RunError, raft};

fn create(name: &str, power: Power) -> v1::CreateRequest {
    v1::CreateRequest { idempotency_key: key(), object: Some(vm(name, power)), dry_run: false }
}

/// When the leader stops, the API answers at the others, agents move by themselves, no host goes down and no VM is
/// started again; a controller that comes back is part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_may_go() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let mut lives = Vec::new();
    let mut agents = Vec::new();
    for name in ["h1", "h2"] {
        let agent = FakeAgent::join(&cluster.endpoint(old), &cluster.token(old).await, name).await;
        lives.push(tokio::spawn(agent.clone().live()));
        agents.push(agent);
    }
    let survivor = cluster.follower().await;
    ok(cluster.client(survivor).create(create("web", Power::Running)).await);
    let phase = |cluster: &Cluster, name: &str| match cluster.stored(survivor, Kind::Vm, name) {
        Some(Object::Vm(vm)) => Some(vm.status.phase),
        _ => None,
    };
    eventually("the VM runs", || phase(&cluster, "web") == Some(VmPhase::Running)).await;
    let before = cluster.controller(survivor).node.replica.read().revision().0;

    // A write that is under way while the leader goes is answered, once.
    let mut client = cluster.client(survivor);
    let began = Instant::now();
    let writes = tokio::spawn(async move {
        for index in 0..50 {
            ok(client.create(create(&format!("during-{index}"), Power::Stopped)).await);
        }
    });
    cluster.stop_one(old).await;
    soon("the writes are answered", writes).await.unwrap();
    println!("50 writes around the loss of the leader took {:?}", began.elapsed());
    let new = cluster.leader().await;
    for agent in &agents {
        eventually("the agent holds a session with the new leader", || {
            agent.seen.lock().unwrap().sessions.last().is_some_and(|(_, at)| *at == cluster.endpoint(new))
        })
        .await;
    }
    ok(cluster.client(survivor).create(create("db", Power::Running)).await);
    eventually("a new VM runs", || phase(&cluster, "db") == Some(VmPhase::Running)).await;

    // Nobody noticed.
    let kinds = vec![Kind::Host.to_wire(), Kind::Vm.to_wire()];
    let watch = v1::WatchRequest { kinds, after_revision: before, ..v1::WatchRequest::default() };
    let mut watch = cluster.client(survivor).watch(watch).await.unwrap().into_inner();
    loop {
        let event = soon("a bookmark", watch.message()).await.unwrap().unwrap();
        match event.object.map(|object| Object::try_from(object).unwrap()) {
            Some(Object::Host(host)) => assert_eq!(host.status.phase, HostPhase::Up),
            Some(Object::Vm(vm)) if vm.metadata.name.as_str() == "web" => {
                assert_eq!((vm.status.phase, vm.status.incarnation.0), (VmPhase::Running, 1));
            }
            Some(_) => {}
            None => break,
        }
    }

    cluster.start_one(old).await;
    let get = v1::GetRequest { kind: Kind::Vm.to_wire(), name: "db".into(), ..v1::GetRequest::default() };
    ok(soon("the one that came back reads", cluster.client(old).get(get)).await);
    lives.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Without a quorum nothing is promised: a write and a linearizable read fail within the caller's deadline, a stale
/// read is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_promised() {
    let mut cluster = Cluster::start(3).await;
    ok(cluster.client(1).create(create("web", Power::Stopped)).await);
    eventually("all have it", || (1..=3).all(|id| cluster.stored(id, Kind::Vm, "web").is_some())).await;
    cluster.stop_one(2).await;
    cluster.stop_one(3).await;
    let get = |consistency: v1::Consistency| {
        let name = "web".into();
        let get = v1::GetRequest {
            kind: Kind::Vm.to_wire(),
            name,
            uid: String::new(),
            consistency: consistency.into(),
        };
        let mut request = tonic::Request::new(get);
        request.set_timeout(std::time::Duration::from_secs(2));
        request
    };
    let began = Instant::now();
    let mut request = tonic::Request::new(create("db", Power::Stopped));
    request.set_timeout(std::time::Duration::from_secs(2));
    let fault = dunlin_proto::Fault::from(cluster.client(1).create(request).await.unwrap_err());
    assert!(fault.code.retryable(), "{fault:?}");
    let fault = dunlin_proto::Fault::from(
        cluster.client(1).get(get(v1::Consistency::Linearizable)).await.unwrap_err(),
    );
    assert!(fault.code.retryable(), "{fault:?}");
    assert!(began.elapsed().as_secs() < 6, "{:?}", began.elapsed());
    ok(cluster.client(1).get(get(v1::Consistency::Stale)).await);
    assert_ne!(fault.code, ErrorCode::Internal);
}

/// A directory in use, of another controller, or a port in use: each is told as what it is, and nothing is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_cannot_be_is_told() {
    let mut cluster = Cluster::start(1).await;
    let taken = Controller::start(cluster.config(1).clone()).await.err();
    assert!(matches!(taken, Some(RunError::Listen { .. })), "{taken:?}");
    let elsewhere = |port: u16| {
        let mut config = cluster.config(1).clone();
        config.api_listen.set_port(port);
        config.raft_listen.set_port(port + 1);
        config
    };
    let locked = Controller::start(elsewhere(18_100)).await.err();
    let Some(RunError::Open(raft::OpenError::Store(raft::StoreError::Locked { .. }))) = locked else {
        panic!("{locked:?}");
    };
    let mut other = cluster.config(1).clone();
    cluster.stop_one(1).await;
    (other.id, other.init) = (dunlin_model::ControllerId(2), Vec::new());
    let foreign = Controller::start(other).await.err();
    let Some(RunError::Keys(crate::KeysError::Other { .. })) = foreign else { panic!("{foreign:?}") };
    cluster.start_one(1).await;
    ok(cluster.client(1).create(create("web", Power::Stopped)).await);
}
