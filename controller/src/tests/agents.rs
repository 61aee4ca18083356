use std::time::{Duration, Instant};

use dunlin_model::host::HostPhase;
use dunlin_model::vm::{Power, VmPhase};
use dunlin_model::{ErrorCode, Kind, Object};
use dunlin_proto::v1::to_agent::Message;
use dunlin_proto::{Wire as _, v1};

use crate::mint;
use crate::testing::{Cluster, FakeAgent, code, eventually, key, ok, soon, vm};

fn host_phase(cluster: &Cluster, id: u64, name: &str) -> Option<HostPhase> {
    match cluster.stored(id, Kind::Host, name)? {
        Object::Host(host) => Some(host.status.phase),
        _ => None,
    }
}

fn vm_phase(cluster: &Cluster, id: u64, name: &str) -> Option<VmPhase> {
    match cluster.stored(id, Kind::Vm, name)? {
        Object::Vm(vm) => Some(vm.status.phase),
        _ => None,
    }
}

/// A VM that is asked for runs on a host, and whoever watches sees it come up; stopped and deleted, it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_comes_up_and_goes() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(1);
    let agent = FakeAgent::join(&cluster.endpoint(1), &cluster.token(1).await, "h1").await;
    let life = tokio::spawn(agent.clone().live());
    eventually("the host is up", || host_phase(&cluster, 1, "h1") == Some(HostPhase::Up)).await;

    let request =
        v1::CreateRequest { idempotency_key: key(), object: Some(vm("web", Power::Running)), dry_run: false };
    let watch = v1::WatchRequest {
        kinds: vec![Kind::Vm.to_wire()],
        after_revision: cluster.controller(1).node.replica.read().revision().0,
        name: "web".into(),
        ..v1::WatchRequest::default()
    };
    let mut watch = client.watch(watch).await.unwrap().into_inner();
    let began = Instant::now();
    ok(client.create(request).await);
    let created = began.elapsed();
    let mut phases = Vec::new();
    while phases.last() != Some(&VmPhase::Running) {
        let event = soon("the VM runs", watch.message()).await.unwrap().unwrap();
        if let Some(Object::Vm(vm)) = event.object.map(|object| Object::try_from(object).unwrap()) {
            phases.push(vm.status.phase);
            phases.dedup();
        }
    }
    println!("create answered after {created:?}, running after {:?}", began.elapsed());
    assert_eq!(phases, [VmPhase::Pending, VmPhase::Starting, VmPhase::Running]);

    let power = |power: Power| v1::SetPowerRequest {
        idempotency_key: key(),
        vm: "web".into(),
        power: power.to_wire(),
        ..v1::SetPowerRequest::default()
    };
    for (asked, reached) in [
        (Power::Paused, VmPhase::Paused),
        (Power::Running, VmPhase::Running),
        (Power::Stopped, VmPhase::Stopped),
    ] {
        ok(client.set_power(power(asked)).await);
        eventually("the phase follows the power", || vm_phase(&cluster, 1, "web") == Some(reached)).await;
    }
    let delete = v1::DeleteRequest {
        idempotency_key: key(),
        kind: Kind::Vm.to_wire(),
        name: "web".into(),
        ..v1::DeleteRequest::default()
    };
    client.delete(delete).await.unwrap();
    eventually("the VM is forgotten", || vm_phase(&cluster, 1, "web").is_none()).await;
    assert_eq!(agent.seen.lock().unwrap().sessions.len(), 1, "one session carried it all");

    // When the agent goes, its host is down after the grace and not before it; when it is back, it is up.
    life.abort();
    let gone = Instant::now();
    eventually("the host is down", || host_phase(&cluster, 1, "h1") == Some(HostPhase::Down)).await;
    assert!(gone.elapsed() >= Duration::from_secs(8), "it was given {:?}", gone.elapsed());
    let life = tokio::spawn(agent.clone().live());
    eventually("the host is up", || host_phase(&cluster, 1, "h1") == Some(HostPhase::Up)).await;
    life.abort();
}

/// An agent that restarts within the grace is never down, and nothing it runs is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_absence_does_not_show() {
    let cluster = Cluster::start(1).await;
    let agent = FakeAgent::join(&cluster.endpoint(1), &cluster.token(1).await, "h1").await;
    let life = tokio::spawn(agent.clone().live());
    let request =
        v1::CreateRequest { idempotency_key: key(), object: Some(vm("web", Power::Running)), dry_run: false };
    ok(cluster.client(1).create(request).await);
    eventually("the VM runs", || vm_phase(&cluster, 1, "web") == Some(VmPhase::Running)).await;
    let view = cluster.controller(1).node.replica.read();
    let (session, before) = (view.host(agent.host).unwrap().status.session, view.revision().0);
    life.abort();
    let restarted = FakeAgent { instance: mint::secret(), ..agent.clone() };
    let life = tokio::spawn(restarted.live());
    eventually("a new session is open", || {
        cluster.controller(1).node.replica.read().host(agent.host).unwrap().status.session > session
    })
    .await;
    let kinds = vec![Kind::Host.to_wire(), Kind::Vm.to_wire()];
    let watch = v1::WatchRequest { kinds, after_revision: before, ..v1::WatchRequest::default() };
    let mut watch = cluster.client(1).watch(watch).await.unwrap().into_inner();
    // A bookmark comes when nothing has happened for five seconds: two of them outlast the grace.
    let mut bookmarks = 0;
    while bookmarks < 2 {
        let event = soon("a bookmark", watch.message()).await.unwrap().unwrap();
        match event.object.map(|object| Object::try_from(object).unwrap()) {
            Some(Object::Host(host)) => assert_eq!(host.status.phase, HostPhase::Up),
            Some(Object::Vm(vm)) => {
                assert_eq!((vm.status.phase, vm.status.incarnation.0), (VmPhase::Running, 1));
            }
            other => {
                assert_eq!(other, None);
                bookmarks += 1;
            }
        }
    }
    life.abort();
}

/// What the controller at `endpoint` says to an agent it does not take.
async fn refusal(agent: FakeAgent, endpoint: &str) -> (ErrorCode, String) {
    let mut link = agent.hello(endpoint).await.unwrap();
    match soon("an answer", link.next()).await {
        Some(Message::Goodbye(goodbye)) => (goodbye.code.parse().unwrap(), goodbye.message),
        other => panic!("{other:?}"),
    }
}

/// Who shows another host's certificate, names another cluster or was never joined is sent away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_sent_away() {
    let cluster = Cluster::start(1).await;
    let endpoint = cluster.endpoint(1);
    let agent = FakeAgent::join(&endpoint, &cluster.token(1).await, "h1").await;
    let other = FakeAgent::join(&endpoint, &cluster.token(1).await, "h2").await;
    let keyring = std::sync::Arc::clone(&other.keyring);
    let (found, message) = refusal(FakeAgent { keyring, ..agent.clone() }, &endpoint).await;
    assert_eq!(found, ErrorCode::Forbidden);
    assert!(message.contains(&format!("host/{}, which may not speak for", other.host)), "{message}");
    let (found, message) =
        refusal(FakeAgent { cluster_uid: mint::uuid().to_string(), ..agent.clone() }, &endpoint).await;
    assert_eq!(found, ErrorCode::Unauthenticated);
    assert!(message.contains(&agent.cluster_uid), "{message}");
    // Signed by the authority itself, and yet no host that ever joined.
    let host = dunlin_model::HostId(mint::uuid());
    let keyring = crate::testing::keyring(&cluster.authority, Some((dunlin_model::Identity::Host(host), 9)));
    let (found, message) = refusal(FakeAgent { host, keyring, ..agent }, &endpoint).await;
    assert_eq!(found, ErrorCode::Unauthenticated);
    assert!(message.contains("has joined, or it was removed"), "{message}");
}

/// The second of two agents with one identity is sent away while the first is alive; a silent first one is replaced;
/// and the agent of a host that is removed is sent away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_has_one_agent() {
    let cluster = Cluster::start(1).await;
    let endpoint = cluster.endpoint(1);
    let agent = FakeAgent::join(&endpoint, &cluster.token(1).await, "h1").await;

    // The first one lives: the second is refused, and told where the first is.
    let life = tokio::spawn(agent.clone().live());
    eventually("the host is up", || host_phase(&cluster, 1, "h1") == Some(HostPhase::Up)).await;
    let double = FakeAgent { instance: mint::secret(), seen: Default::default(), ..agent.clone() };
    let (found, message) = refusal(double.clone(), &endpoint).await;
    assert_eq!(found, ErrorCode::AlreadyExists);
    assert!(message.contains("alive at 127."), "{message}");
    assert_eq!(agent.seen.lock().unwrap().sessions.len(), 1, "the first one did not notice");
    life.abort();

    // The first one hangs: its connection is open, and it answers nothing.
    let hangs = FakeAgent { instance: mint::secret(), ..agent.clone() };
    let mut hung = hangs.hello(&endpoint).await.unwrap();
    assert!(matches!(soon("a welcome", hung.next()).await, Some(Message::Welcome(_))));
    let mut link = double.hello(&endpoint).await.unwrap();
    assert!(matches!(soon("a welcome", link.next()).await, Some(Message::Welcome(_))));
    loop {
        match soon("the hung one is told", hung.from.message()).await.unwrap().and_then(|m| m.message) {
            Some(Message::Goodbye(goodbye)) => break assert_eq!(goodbye.code, "already_exists"),
            Some(Message::Ping(_) | Message::Trust(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    // A host that is removed is sent away.
    let remove = v1::DeleteRequest {
        idempotency_key: key(),
        kind: Kind::Host.to_wire(),
        name: "h1".into(),
        ..v1::DeleteRequest::default()
    };
    cluster.client(1).delete(remove).await.unwrap();
    loop {
        match soon("the removed one is told", link.next()).await {
            Some(Message::Goodbye(goodbye)) => break assert_eq!(goodbye.code, "unauthenticated"),
            Some(Message::Desired(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A console reaches the agent through any controller, both ways, and its end reaches both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_flows_both_ways() {
    let cluster = Cluster::start(3).await;
    let agent = FakeAgent::join(&cluster.endpoint(1), &cluster.token(1).await, "h1").await;
    let life = tokio::spawn(agent.clone().live());
    let request =
        v1::CreateRequest { idempotency_key: key(), object: Some(vm("web", Power::Running)), dry_run: false };
    ok(cluster.client(1).create(request).await);
    eventually("the VM runs", || vm_phase(&cluster, 1, "web") == Some(VmPhase::Running)).await;

    for id in [cluster.leader().await, cluster.follower().await] {
        let (to, stream) = tokio::sync::mpsc::channel(4);
        let open = v1::ConsoleOpen {
            vm: "web".into(),
            mode: v1::ConsoleMode::Interactive.into(),
            places: Vec::new(),
        };
        to.send(v1::ConsoleChunk { open: Some(open), ..Default::default() }).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let mut from = cluster.client(id).console(stream).await.unwrap().into_inner();
        let mut seen = Vec::new();
        let mut read_to = async |end: &[u8]| {
            while !seen.ends_with(end) {
                seen.extend(soon("console bytes", from.message()).await.unwrap().unwrap().data);
            }
            seen.clear();
        };
        read_to(b"login: ").await;
        to.send(v1::ConsoleChunk { data: b"root\n".to_vec(), ..Default::default() }).await.unwrap();
        read_to(b"ROOT\n").await;
        // Half closed, it still reads: nothing ends.
        drop(to);
        let more = tokio::time::timeout(Duration::from_millis(300), from.message()).await;
        assert!(more.is_err(), "{more:?}");
    }
    let open =
        v1::ConsoleOpen { vm: "wbe".into(), mode: v1::ConsoleMode::Interactive.into(), places: Vec::new() };
    let stream = tokio_stream::iter([v1::ConsoleChunk { open: Some(open), ..Default::default() }]);
    let (found, message) = code(cluster.client(1).console(stream).await);
    assert_eq!(found, ErrorCode::NotFound);
    assert!(message.contains("did you mean web?"), "{message}");
    life.abort();
}
