//! Stores that earlier releases wrote are read. A release adds its own here and never touches the older ones.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{ControllerId, Kind, Name, Object};
use dunlin_state::{State, invariant};

use crate::fleet::Replica;
use crate::raft;

/// Until a single controller leads: an election with nobody to ask.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a controller of 0.1 had acknowledged when it was killed in the middle of its log: two hosts, a project with a
/// quota, a user, an image, a VM that had migrated, one that was deleted, and forty that were never started.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_0_1_is_read() {
    let folder = tempfile::tempdir().unwrap();
    unpack(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/stores/0.1.tar.gz")), folder.path());
    let replica = open(folder.path()).await;
    judge(&state(&replica).await);
    replica.snapshot().await;
    replica.shutdown().await;
    // What this release makes of it can be read again.
    let replica = open(folder.path()).await;
    judge(&state(&replica).await);
    replica.shutdown().await;
}

fn unpack(archive: &Path, into: &Path) {
    let done = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into).status().unwrap();
    assert!(done.success(), "unpacking {}", archive.display());
}

async fn open(folder: &Path) -> Replica {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    let config = raft::Config::new(ControllerId(1), folder.join("raft"), listen);
    Replica::open(config, State::new()).await.unwrap()
}

async fn state(replica: &Replica) -> State {
    let mut leadership = replica.leadership();
    let leads = leadership.wait_for(|now| now.is_me);
    drop(tokio::time::timeout(PATIENCE, leads).await.expect("it leads alone").unwrap());
    replica.linearizable().await.unwrap().machine
}

fn judge(state: &State) {
    let of = |kind| state.objects_of(kind).count();
    assert_eq!((of(Kind::Vm), of(Kind::Host), of(Kind::Image)), (42, 2, 1));
    assert_eq!((of(Kind::Migration), of(Kind::User)), (1, 1));
    let web = vm(state, "web").expect("web was acknowledged");
    assert_eq!(web.status.phase, VmPhase::Running);
    assert_eq!(web.status.host_name.as_ref().map(Name::as_str), Some("host-2"));
    assert_eq!(web.status.incarnation.0, 2, "it has migrated once");
    assert_eq!(web.metadata.labels.get("tier").map(String::as_str), Some("front"));
    assert_eq!(web.spec.project.as_str(), "lab");
    assert!(vm(state, "gone").is_none(), "its deletion was acknowledged");
    let Some(Object::Project(lab)) = named(state, Kind::Project, "lab") else { panic!("no project lab") };
    assert_eq!(lab.spec.quota.vms, Some(5));
    assert!(named(state, Kind::User, "ada").is_some());
    invariant::check(state).unwrap();
}

fn named<'a>(state: &'a State, kind: Kind, name: &str) -> Option<&'a Object> {
    state.object_named(kind, &name.parse().unwrap()).map(AsRef::as_ref)
}

fn vm<'a>(state: &'a State, name: &str) -> Option<&'a Vm> {
    match named(state, Kind::Vm, name) {
        Some(Object::Vm(vm)) => Some(vm),
        _ => None,
    }
}
