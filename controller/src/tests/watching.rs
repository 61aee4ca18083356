use std::collections::BTreeSet;

use dunlin_model::vm::Power;
use dunlin_model::{ErrorCode, Kind, Object};
use dunlin_proto::{Wire as _, v1};
use dunlin_state::changes::CHANGES_MAX;
use tonic::Streaming;

use crate::testing::{Cluster, code, key, ok, soon, vm};

async fn create(cluster: &Cluster, name: &str) -> Object {
    let object = Some(vm(name, Power::Stopped));
    ok(cluster.client(1).create(v1::CreateRequest { idempotency_key: key(), object, dry_run: false }).await)
}

async fn next(watch: &mut Streaming<v1::WatchEvent>) -> v1::WatchEvent {
    soon("a watch event", watch.message()).await.unwrap().unwrap()
}

/// A watch tells every change after its revision in order, wherever it is held, and says how far it has come when
/// nothing happens; one resumed from there misses nothing and repeats nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_complete_ordered_and_resumable() {
    let cluster = Cluster::start(3).await;
    let start = create(&cluster, "vm-0").await.revision().0;
    let request = |after_revision| v1::WatchRequest {
        kinds: vec![Kind::Vm.to_wire()],
        after_revision,
        ..v1::WatchRequest::default()
    };
    let follower = cluster.follower().await;
    let mut watch = cluster.client(follower).watch(request(start)).await.unwrap().into_inner();
    let mut expected = Vec::new();
    for index in 1..=3 {
        expected.push(create(&cluster, &format!("vm-{index}")).await);
    }
    let mut middle = 0;
    for object in &expected {
        let event = next(&mut watch).await;
        assert_eq!(event.r#type(), v1::watch_event::Type::Put);
        assert_eq!(Object::try_from(event.object.unwrap()).unwrap(), *object);
        assert_eq!(event.revision, object.revision().0);
        if middle == 0 {
            middle = event.revision;
        }
    }
    let bookmark = next(&mut watch).await;
    assert_eq!(bookmark.r#type(), v1::watch_event::Type::Bookmark);
    assert!(bookmark.revision >= expected[2].revision().0);

    // Resumed at another controller.
    let mut watch = cluster.client(cluster.leader().await).watch(request(middle)).await.unwrap().into_inner();
    for object in &expected[1..] {
        assert_eq!(next(&mut watch).await.revision, object.revision().0);
    }

    // One object only, to its end.
    let only = v1::WatchRequest { name: "vm-2".into(), ..request(bookmark.revision) };
    let mut watch = cluster.client(follower).watch(only).await.unwrap().into_inner();
    let delete = v1::DeleteRequest {
        idempotency_key: key(),
        kind: Kind::Vm.to_wire(),
        name: "vm-2".into(),
        ..v1::DeleteRequest::default()
    };
    create(&cluster, "vm-9").await;
    cluster.client(1).delete(delete).await.unwrap();
    let Object::Vm(vm) = Object::try_from(next(&mut watch).await.object.unwrap()).unwrap() else {
        panic!("no VM");
    };
    assert_eq!(vm.metadata.name.as_str(), "vm-2");
    let ahead = cluster.client(follower).watch(request(1 << 40)).await;
    assert_eq!(code(ahead).0, ErrorCode::InvalidArgument);
}

/// A watch of a selection tells of what matches, and of what matches no longer as of something gone, once; fields of more than
/// one kind are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selection_is_watched() {
    let cluster = Cluster::start(1).await;
    let start = create(&cluster, "vm-0").await.revision().0;
    let ask = |labels: &str, fields: &str| v1::WatchRequest {
        kinds: vec![Kind::Vm.to_wire()],
        after_revision: start,
        label_selector: labels.into(),
        field_selector: fields.into(),
        ..v1::WatchRequest::default()
    };
    let mut client = cluster.client(1);
    let mut labelled = client.watch(ask("app=web", "")).await.unwrap().into_inner();
    let mut paused = client.watch(ask("", "spec.power=paused")).await.unwrap().into_inner();
    create(&cluster, "vm-1").await;
    let label = |name: &str, value: &str| v1::PatchRequest {
        idempotency_key: key(),
        kind: Kind::Vm.to_wire(),
        name: name.into(),
        patch: format!(r#"{{"metadata": {{"labels": {{"app": "{value}"}}}}}}"#),
        ..v1::PatchRequest::default()
    };
    for (name, value) in [("vm-1", "db"), ("vm-0", "web"), ("vm-0", "db"), ("vm-0", "other"), ("vm-1", "web")]
    {
        client.patch(label(name, value)).await.unwrap();
    }
    let power = v1::SetPowerRequest {
        idempotency_key: key(),
        vm: "vm-1".into(),
        power: v1::Power::Paused.into(),
        ..v1::SetPowerRequest::default()
    };
    client.set_power(power).await.unwrap();
    let put = i32::from(v1::watch_event::Type::Put);
    let told = |event: v1::WatchEvent| {
        let object = Object::try_from(event.object.unwrap()).unwrap();
        (object.name().to_string(), event.r#type == put)
    };
    let seen =
        [told(next(&mut labelled).await), told(next(&mut labelled).await), told(next(&mut labelled).await)];
    let expected = [("vm-0", true), ("vm-0", false), ("vm-1", true)];
    assert_eq!(seen, expected.map(|(name, put)| (name.to_owned(), put)));
    assert_eq!(told(next(&mut paused).await), ("vm-1".to_owned(), true));
    let both = v1::WatchRequest { kinds: Vec::new(), ..ask("", "spec.power=paused") };
    assert_eq!(code(client.watch(both).await).0, ErrorCode::InvalidArgument);
}

/// A watch that begins, or falls, behind what is held is told so, and nothing is skipped silently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_too_late_is_told() {
    let cluster = Cluster::start(1).await;
    let start = create(&cluster, "vm-0").await.revision().0;
    let slow = v1::WatchRequest { after_revision: start, ..v1::WatchRequest::default() };
    let mut slow = cluster.client(1).watch(slow).await.unwrap().into_inner();
    // More changes than the ring holds, while the slow watcher does not read.
    let replica = &cluster.controller(1).node.replica;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let replica = replica.clone();
        writers.spawn(async move {
            for index in 0..=(CHANGES_MAX / 64) {
                let uid = dunlin_model::VmId(crate::mint::uuid());
                let name = format!("w{writer}-{index}").parse().unwrap();
                let (labels, spec) = (Default::default(), dunlin_model::vm::VmSpec::new(128));
                let write = dunlin_state::Write::CreateVm { uid, own_uid: false, name, labels, spec };
                let command = dunlin_state::Command::Write { key: key(), write };
                replica.propose(&command).await.unwrap().unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let late = v1::WatchRequest { after_revision: start, ..v1::WatchRequest::default() };
    let (found, message) = code(cluster.client(1).watch(late).await);
    assert_eq!(found, ErrorCode::Compacted);
    assert!(message.contains("list again"), "{message}");

    // What the slow one gets before it is cut has no gap.
    let mut revisions = BTreeSet::new();
    let fault = loop {
        match soon("the slow watch is cut", slow.message()).await {
            Ok(Some(event)) => {
                revisions.insert(event.revision);
            }
            Ok(None) => panic!("it ended without a word"),
            Err(status) => break dunlin_proto::Fault::from(status),
        }
    };
    assert_eq!(fault.code, ErrorCode::Compacted, "{}", fault.message);
    let (first, last) = (*revisions.first().unwrap(), *revisions.last().unwrap());
    assert_eq!((first, revisions.len() as u64), (start + 1, last - start));
}
