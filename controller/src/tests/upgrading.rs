//! Two releases side by side, and a cluster that is looked over.

use dunlin_model::capabilities::{DriverName, DriverPower};
use dunlin_model::host::HostPhase;
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{ErrorCode, Kind, Level, Object};
use dunlin_proto::{Fault, Wire as _, v1};

use crate::RunError;
use crate::testing::{Cluster, FakeAgent, code, eventually, key, ok, soon, vm};

fn create(object: v1::Object) -> v1::CreateRequest {
    v1::CreateRequest { idempotency_key: key(), object: Some(object), dry_run: false }
}

/// Every sentence of an upgrade, or why it was refused.
async fn upgrade(cluster: &Cluster, id: u64, asked: v1::UpgradeRequest) -> Result<Vec<String>, Fault> {
    let mut news = cluster.operator(id).upgrade(asked).await?.into_inner();
    let mut told = Vec::new();
    while let Some(one) = soon("news of the upgrade", news.message()).await? {
        told.push(one.text);
    }
    Ok(told)
}

const ASKED: v1::UpgradeRequest = v1::UpgradeRequest { force: false, dry_run: false, to: 0 };
const FORCED: v1::UpgradeRequest = v1::UpgradeRequest { force: true, ..ASKED };

fn level(cluster: &Cluster, id: u64) -> Level {
    cluster.controller(id).node.replica.read().level()
}

#[track_caller]
fn says(told: Result<Vec<String>, Fault>, words: &str) {
    let fault = told.unwrap_err();
    assert_eq!(fault.code, ErrorCode::WrongState);
    assert!(fault.message.contains(words), "{}", fault.message);
}

/// Can the host called h1 plug, as the controller has it written down?
fn plugs(cluster: &Cluster, id: u64) -> bool {
    let Some(Object::Host(host)) = cluster.stored(id, Kind::Host, "h1") else { return false };
    host.status.phase == HostPhase::Up
        && host.status.capabilities.drivers[0].powers.contains(&DriverPower::HotPlug)
}

/// Asks for something that only level 2 has.
async fn create_with_resources(cluster: &Cluster, id: u64) -> Result<Object, (ErrorCode, String)> {
    let mut spec = VmSpec { driver: DriverName::Test, ..VmSpec::new(128) };
    spec.placement.resources = [("licence/db".to_owned(), 1)].into();
    let metadata = v1::Metadata { name: "licensed".into(), ..v1::Metadata::default() };
    let vm = v1::Vm { metadata: Some(metadata), spec: spec.to_wire(), status: None };
    let object = v1::Object { choice: Some(v1::object::Choice::Vm(vm)) };
    let answer = cluster.client(id).create(create(object)).await;
    answer.map(|object| ok(Ok(object))).map_err(|status| code::<()>(Err(status)))
}

/// A cluster is founded at what all its controllers read. While one controller or agent reads no more, the level is not raised, and
/// who holds it back is named; what needs it is refused before it gets into the log that the old one reads, and what hosts say is
/// written as he reads it. Once all read the newer level it is raised, by whichever controller is asked, and all that is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_written_before_all_can_read_it() {
    let old = 3;
    let mut cluster = Cluster::start_reading(3, &[(old, Level::OLDEST)].into()).await;
    let leader = cluster.leader().await;
    assert_eq!(level(&cluster, leader), Level::OLDEST);
    let token = cluster.token(leader).await;
    let agent = FakeAgent::join(&cluster.endpoint(leader), &token, "h1").await;
    let sessions = |cluster: &Cluster, id| cluster.controller(id).node.sessions.count();
    let playing = tokio::spawn(agent.clone().live());
    eventually("the agent holds a session", || sessions(&cluster, leader) == 1).await;
    says(upgrade(&cluster, leader, FORCED).await, &format!("controller {old} of release"));

    let seen_by_old = || cluster.controller(old).node.replica.read().index;
    let before = seen_by_old();
    let (refused, message) = create_with_resources(&cluster, leader).await.unwrap_err();
    assert_eq!(refused, ErrorCode::WrongState, "{message}");
    assert!(message.contains("needs feature level 2") && message.contains("cluster upgrade"), "{message}");
    ok(cluster.client(leader).create(create(vm("plain", Power::Stopped))).await);
    eventually("the old one has what followed", || cluster.stored(old, Kind::Vm, "plain").is_some()).await;
    assert_eq!(seen_by_old(), before + 1, "the old one never got what was refused");
    assert!(!plugs(&cluster, leader), "nor what the host is newly able to do");

    cluster.stop_one(old).await;
    let leader = cluster.leader().await;
    says(upgrade(&cluster, leader, FORCED).await, &format!("controller {old} does not answer"));
    cluster.set_level(old, Level::NEWEST);
    cluster.start_one(old).await;
    let leads = |cluster: &Cluster| cluster.controller(old).node.leader().is_some();
    eventually("the upgraded controller is one of them", || leads(&cluster)).await;
    let leader = cluster.leader().await;
    eventually("the agent is back", || sessions(&cluster, leader) == 1).await;
    let dry = upgrade(&cluster, old, v1::UpgradeRequest { dry_run: true, ..ASKED }).await.unwrap();
    assert!(dry[0].contains("could be raised from 1"), "{dry:?}");
    assert!(!plugs(&cluster, leader) && level(&cluster, leader) == Level::OLDEST, "asking changes nothing");
    let told = upgrade(&cluster, old, ASKED).await.unwrap();
    assert!(told[0].contains("everything is written at level 2"), "{told:?}");
    eventually("every controller has it", || (1..=3).all(|id| level(&cluster, id) == Level(2))).await;
    eventually("what the host says is written in full", || plugs(&cluster, leader)).await;
    create_with_resources(&cluster, leader).await.unwrap();
    let again = upgrade(&cluster, leader, ASKED).await.unwrap();
    assert!(again[0].contains("the highest"), "{again:?}");
    says(upgrade(&cluster, leader, v1::UpgradeRequest { to: 1, ..ASKED }).await, "levels never fall");
    playing.abort();
}

/// An agent that reads too little holds the level back while it is there, and is outvoted by force when it is not. From then on it
/// is sent away, and a controller of its kind does not start, is not taken in and ends, each with the reason and what to install.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_old_is_told() {
    let mut cluster = Cluster::start_reading(3, &(1..=3).map(|id| (id, Level::OLDEST)).collect()).await;
    for id in 1..=3 {
        cluster.stop_one(id).await;
        cluster.set_level(id, Level::NEWEST);
        cluster.start_one(id).await;
        cluster.leader().await;
    }
    let leader = cluster.leader().await;
    let token = cluster.token(leader).await;
    let mut agent = FakeAgent::join(&cluster.endpoint(leader), &token, "h1").await;
    agent.level = Level::OLDEST;
    says(upgrade(&cluster, leader, ASKED).await, "host h1 holds no session");
    let playing = tokio::spawn(agent.clone().live());
    let node = &cluster.controller(leader).node;
    eventually("the old agent holds a session", || node.sessions.count() == 1).await;
    says(
        upgrade(&cluster, leader, FORCED).await,
        "the agent of host h1, of release fake, reads up to level 1",
    );
    playing.abort();
    eventually("the old agent has gone", || node.sessions.count() == 0).await;
    upgrade(&cluster, leader, FORCED).await.unwrap();
    eventually("every controller has it", || (1..=3).all(|id| level(&cluster, id) == Level(2))).await;
    let mut link = agent.hello(&cluster.endpoint(leader)).await.unwrap();
    let Some(v1::to_agent::Message::Goodbye(goodbye)) = soon("an answer to Hello", link.next()).await else {
        panic!("it was let in");
    };
    assert!(goodbye.message.contains("reads up to 1: install"), "{}", goodbye.message);

    let old = cluster.follower().await;
    cluster.stop_one(old).await;
    cluster.set_level(old, Level::OLDEST);
    match cluster.refuses(old).await {
        RunError::TooOld(too_old) => {
            assert!(too_old.to_string().contains("install the release"), "{too_old}");
        }
        other => panic!("{other}"),
    }
}

/// A doctor finds what is wrong, from whichever controller he is asked, and without a quorum above all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_looked_over() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let token = cluster.token(leader).await;
    let agent = FakeAgent::join(&cluster.endpoint(leader), &token, "h1").await;
    let playing = tokio::spawn(agent.live());
    let node = &cluster.controller(leader).node;
    eventually("the agent's clock is known", || {
        node.sessions.seen().values().any(|seen| seen.ahead_ms.is_some())
    })
    .await;
    let follower = cluster.follower().await;
    eventually("the follower knows the host", || {
        let view = cluster.controller(follower).node.replica.read();
        view.hosts().any(|host| host.status.phase == HostPhase::Up)
    })
    .await;
    let look = async |cluster: &Cluster, id: u64| {
        let told = cluster.operator(id).diagnose(v1::DiagnoseRequest {}).await.unwrap().into_inner();
        told.findings
    };
    let grade = |findings: &[v1::Finding], check: &str| {
        let worst = findings.iter().find(|finding| finding.check == check).expect("every check is told of");
        (worst.grade(), worst.about.clone(), worst.found.clone())
    };
    let found = look(&cluster, follower).await;
    for check in ["quorum", "clock", "certificate", "host", "driver"] {
        let (is, about, what) = grade(&found, check);
        assert_eq!(is, v1::finding::Grade::Fine, "{check}: {about} {what}");
    }
    let odd = found.iter().find(|finding| finding.about == "host h1").unwrap();
    assert!(odd.found.contains("release fake") && !odd.advice.is_empty(), "{odd:?}");
    playing.abort();
    for id in (1..=3).filter(|id| *id != follower) {
        cluster.stop_one(id).await;
    }
    let found = look(&cluster, follower).await;
    let (is, _, what) = grade(&found, "quorum");
    assert_eq!(is, v1::finding::Grade::Error);
    assert!(found[0].grade() == v1::finding::Grade::Error, "the worst comes first");
    assert!(what.contains("1 of 3 controllers"), "{what}");
}
