use dunlin_model::vm::Power;
use dunlin_model::{ErrorCode, Kind, Object, Secret};
use dunlin_proto::{Fault, Wire as _, v1};

use crate::testing::{Cluster, code, key, ok, vm};

fn create(object: v1::Object) -> v1::CreateRequest {
    v1::CreateRequest { idempotency_key: key(), object: Some(object), dry_run: false }
}

fn get(kind: Kind, name: &str) -> v1::GetRequest {
    v1::GetRequest { kind: kind.to_wire(), name: name.into(), ..v1::GetRequest::default() }
}

/// Whatever controller is asked, a write is carried out once per key, and a read that follows sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reach_the_leader_from_anywhere_and_once() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let other = (1..=3).find(|id| ![leader, follower].contains(id)).unwrap();

    // Through a follower, repeated through another and through the leader: one VM, the same answer.
    let request = create(vm("web", Power::Stopped));
    let created = ok(cluster.client(follower).create(request.clone()).await);
    for id in [other, leader] {
        assert_eq!(ok(cluster.client(id).create(request.clone()).await), created);
    }
    for id in 1..=3 {
        assert_eq!(ok(cluster.client(id).get(get(Kind::Vm, "web")).await), created);
        assert_eq!(ok(cluster.client(id).get(get(Kind::Vm, &created.uid().to_string())).await), created);
    }

    // The key is bound to what it was used for.
    let reused = v1::CreateRequest { object: Some(vm("db", Power::Stopped)), ..request };
    let (found, message) = code(cluster.client(follower).create(reused).await);
    assert_eq!(found, ErrorCode::KeyReused, "{message}");

    // Refusals made on the leader arrive whole, near names and the current object included.
    let (found, message) = code(cluster.client(follower).create(create(vm("web", Power::Stopped))).await);
    assert_eq!((found, message.as_str()), (ErrorCode::AlreadyExists, "a vm called web exists"));
    let (found, message) = code(cluster.client(follower).get(get(Kind::Vm, "wbe")).await);
    assert_eq!(found, ErrorCode::NotFound);
    assert!(message.contains("did you mean web?"), "{message}");
    let Object::Vm(mut stale) = created.clone() else { panic!("{created:?}") };
    stale.spec.mem_mib = 256;
    let update = |vm: &dunlin_model::vm::Vm| v1::UpdateRequest {
        idempotency_key: key(),
        object: Some(Object::from(vm.clone()).into()),
        dry_run: false,
    };
    let updated = ok(cluster.client(other).update(update(&stale)).await);
    let fault = Fault::from(cluster.client(other).update(update(&stale)).await.unwrap_err());
    assert_eq!((fault.code, fault.current), (ErrorCode::StaleRevision, Some(Box::new(updated))));

    // The cluster names its controllers and its leader.
    let Object::Cluster(seen) = ok(cluster.client(follower).get(get(Kind::Cluster, "")).await) else {
        panic!("no cluster");
    };
    assert_eq!(seen.status.leader.map(|id| id.0), Some(leader));
    let endpoints: Vec<_> = seen.status.controllers.iter().map(|c| c.endpoint.clone()).collect();
    assert_eq!(endpoints, [1, 2, 3].map(|id| cluster.endpoint(id)));

    // A deletion, repeated.
    let delete = v1::DeleteRequest {
        idempotency_key: key(),
        kind: Kind::Vm.to_wire(),
        name: "web".into(),
        ..v1::DeleteRequest::default()
    };
    for id in [follower, leader, other] {
        cluster.client(id).delete(delete.clone()).await.unwrap();
    }
}

/// A bad field is named as it is written in YAML, and nothing is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_by_field() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(1);
    let before = cluster.controller(1).node.replica.read().revision();

    let with = |change: fn(&mut v1::VmSpec)| {
        let mut object = vm("web", Power::Stopped);
        let Some(v1::object::Choice::Vm(vm)) = &mut object.choice else { unreachable!() };
        change(vm.spec.as_mut().unwrap());
        object
    };
    let mut check = async |object: v1::Object, starts: &str| {
        let (found, message) = code(client.create(create(object)).await);
        assert_eq!(found, ErrorCode::InvalidArgument, "{message}");
        assert!(message.starts_with(starts), "{message}");
    };
    check(vm("", Power::Stopped), "metadata.name: ").await;
    check(with(|spec| spec.mem_mib = 1), "spec.mem_mib: 1 is out of range; allowed: ").await;
    check(with(|spec| spec.power = 77), "spec.power: ").await;
    check(
        with(|spec| {
            spec.vnc = Some(v1::Vnc { password: Some(Secret::REDACTED.into()), ..v1::Vnc::default() });
        }),
        "spec.vnc.password: ",
    )
    .await;
    check(v1::Object::default(), "object: is missing").await;
    let host = v1::Host {
        metadata: Some(v1::Metadata { name: "h".into(), ..v1::Metadata::default() }),
        ..v1::Host::default()
    };
    check(
        v1::Object { choice: Some(v1::object::Choice::Host(host)) },
        "kind: only these are created by hand",
    )
    .await;

    let long = v1::CreateRequest { idempotency_key: "k".repeat(65), ..create(vm("web", Power::Stopped)) };
    assert_eq!(code(client.create(long).await).0, ErrorCode::InvalidArgument);
    let drain = v1::StartTaskRequest {
        kind: Kind::Vm.to_wire(),
        name: "web".into(),
        act: Some(v1::Act { choice: Some(v1::act::Choice::Drain(v1::Unit {})) }),
        ..v1::StartTaskRequest::default()
    };
    let (found, message) = code(client.start_task(drain).await);
    assert_eq!(
        (found, message.as_str()),
        (ErrorCode::InvalidArgument, "kind: drain is not done to a Vm; allowed: Host")
    );
    let token = v1::CreateTokenRequest { ttl_s: 0, ..v1::CreateTokenRequest::default() };
    assert_eq!(code(client.create_token(token).await).0, ErrorCode::InvalidArgument);
    assert_eq!(cluster.controller(1).node.replica.read().revision(), before, "nothing was stored");
}

/// A dry run answers with what would be stored, and stores nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_stores_nothing() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(1);
    let before = cluster.controller(1).node.replica.read().revision();
    let rehearsal = v1::CreateRequest { dry_run: true, ..create(vm("web", Power::Running)) };
    let Object::Vm(would) = ok(client.create(rehearsal.clone()).await) else { panic!("no VM") };
    assert_eq!(would.metadata.name.as_str(), "web");
    assert!(would.metadata.revision > before);
    assert_eq!(cluster.controller(1).node.replica.read().revision(), before);
    assert_eq!(code(client.get(get(Kind::Vm, "web")).await).0, ErrorCode::NotFound);
    // The key of a rehearsal is not used up.
    ok(client.create(v1::CreateRequest { dry_run: false, ..rehearsal }).await);
}

/// A list is cut by labels, name and limit, and says of which revision it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_pages_of_one_revision() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(1);
    for index in 0..5 {
        let mut object = vm(&format!("vm-{index}"), Power::Stopped);
        let Some(v1::object::Choice::Vm(vm)) = &mut object.choice else { unreachable!() };
        let tier = if index % 2 == 0 { "web" } else { "db" };
        vm.metadata.as_mut().unwrap().labels.insert("tier".into(), tier.into());
        ok(client.create(create(object)).await);
    }
    let all = v1::ListRequest { kind: Kind::Vm.to_wire(), ..v1::ListRequest::default() };
    let mut list = async |request: v1::ListRequest| {
        let answer = client.list(request).await.unwrap().into_inner();
        assert_eq!(answer.revision, cluster.controller(1).node.replica.read().revision().0);
        let objects = answer.objects.into_iter().map(|object| Object::try_from(object).unwrap());
        (objects.map(|object| object.name().to_string()).collect::<Vec<_>>(), answer.more)
    };
    let web = v1::ListRequest { labels: [("tier".to_owned(), "web".to_owned())].into(), ..all.clone() };
    assert_eq!(list(web.clone()).await, (vec!["vm-0".into(), "vm-2".into(), "vm-4".into()], false));
    let page = v1::ListRequest { limit: 2, ..web };
    assert_eq!(list(page.clone()).await, (vec!["vm-0".into(), "vm-2".into()], true));
    assert_eq!(list(all).await.0.len(), 5);
}

/// A VNC password goes in and never comes out, on no way; written back as it reads, it is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_do_not_leave() {
    const PASSWORD: &str = "hunter22";
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(1);
    let mut object = vm("web", Power::Stopped);
    let Some(v1::object::Choice::Vm(asked)) = &mut object.choice else { unreachable!() };
    asked.spec.as_mut().unwrap().vnc =
        Some(v1::Vnc { password: Some(PASSWORD.into()), ..v1::Vnc::default() });
    let created = client.create(create(object.clone())).await.unwrap().into_inner();
    let mut seen = vec![format!("{created:?}")];
    seen.push(format!("{:?}", client.get(get(Kind::Vm, "web")).await.unwrap().into_inner()));
    let all = v1::ListRequest { kind: Kind::Vm.to_wire(), ..v1::ListRequest::default() };
    seen.push(format!("{:?}", client.list(all).await.unwrap().into_inner()));
    let mut watch = client.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    loop {
        let event = watch.message().await.unwrap().unwrap();
        let vm = format!("{event:?}");
        let is_vm = vm.contains("hunter") || vm.contains(Secret::REDACTED);
        seen.push(vm);
        if is_vm {
            break;
        }
    }

    // Written back with the mark, and then again with the old revision.
    let update = v1::UpdateRequest { idempotency_key: key(), object: Some(created), dry_run: false };
    seen.push(format!("{:?}", client.update(update.clone()).await.unwrap().into_inner()));
    let mut changed = update;
    changed.idempotency_key = key();
    let Some(v1::object::Choice::Vm(vm)) = &mut changed.object.as_mut().unwrap().choice else {
        unreachable!()
    };
    vm.metadata.as_mut().unwrap().revision = 1;
    let refusal = client.update(changed).await.unwrap_err();
    let fault = Fault::from(refusal.clone());
    assert_eq!(fault.code, ErrorCode::StaleRevision);
    let Some(Object::Vm(current)) = fault.current.as_deref() else { panic!("{fault:?}") };
    let shown = current.spec.vnc.as_ref().unwrap().password.as_ref().unwrap();
    assert_eq!(shown.expose(), Secret::REDACTED);
    for text in seen {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    let Some(Object::Vm(stored)) = cluster.stored(1, Kind::Vm, "web") else { panic!("not stored") };
    assert_eq!(stored.spec.vnc.unwrap().password.unwrap().expose(), PASSWORD);
}
