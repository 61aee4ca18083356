use dunlin_model::host::HostPhase;
use dunlin_model::{ErrorCode, Kind, Level, Object};
use dunlin_proto::{Fault, v1};

use crate::RunError;
use crate::testing::{Cluster, FakeAgent, eventually, soon};

/// Every sentence of an upgrade, or why it was refused.
async fn upgrade(cluster: &Cluster, id: u64, force: bool) -> Result<Vec<String>, Fault> {
    let request = v1::UpgradeRequest { force, dry_run: false };
    let mut news = cluster.operator(id).upgrade(request).await?.into_inner();
    let mut told = Vec::new();
    while let Some(one) = soon("news of the upgrade", news.message()).await? {
        told.push(one.text);
    }
    Ok(told)
}

fn level(cluster: &Cluster, id: u64) -> Level {
    cluster.controller(id).node.replica.read().level()
}

/// Two releases side by side: while one controller or agent reads only the older level, nothing is raised and all goes on; once
/// all read the newer it is raised, by whichever controller is asked, and then the old controller does not start and the old
/// agent is sent away, each with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_written_before_all_can_read_it() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.follower().await;
    cluster.stop_one(old).await;
    cluster.set_level(old, Level::OLDEST);
    cluster.start_one(old).await;
    let leader = cluster.leader().await;
    assert_ne!(old, leader, "one that follows was restarted");
    let token = cluster.token(leader).await;
    let mut agent = FakeAgent::join(&cluster.endpoint(leader), &token, "h1").await;
    agent.level = Level::OLDEST;
    let says = |told: Result<Vec<String>, Fault>, words: &str| {
        let fault = told.unwrap_err();
        assert_eq!(fault.code, ErrorCode::WrongState);
        assert!(fault.message.contains(words), "{}", fault.message);
    };
    eventually("the restarted controller is one of them", || cluster.controller(old).node.leader().is_some())
        .await;
    says(upgrade(&cluster, leader, true).await, &format!("controller {old} of release"));
    assert_eq!(level(&cluster, leader), Level::OLDEST);

    cluster.stop_one(old).await;
    says(upgrade(&cluster, leader, true).await, &format!("controller {old} does not answer"));
    cluster.set_level(old, Level::NEWEST);
    cluster.start_one(old).await;
    eventually("the upgraded controller is one of them", || cluster.controller(old).node.leader().is_some())
        .await;
    let leader = cluster.leader().await;
    says(upgrade(&cluster, old, false).await, "host h1 holds no session");
    let node = &cluster.controller(leader).node;
    let playing = tokio::spawn(agent.live());
    eventually("the old agent holds a session", || node.sessions.count() == 1).await;
    says(upgrade(&cluster, old, true).await, "the agent of host h1, of release fake, reads up to level 1");

    // Gone for a while, it is outvoted by force, and is told so when it comes back.
    playing.abort();
    eventually("the old agent has gone", || node.sessions.count() == 0).await;
    let told = upgrade(&cluster, old, true).await.unwrap();
    assert!(told[0].contains("everything is written at level 2"), "{told:?}");
    eventually("every controller has it", || (1..=3).all(|id| level(&cluster, id) == Level(2))).await;
    let again = upgrade(&cluster, leader, false).await.unwrap();
    assert!(again[0].contains("the highest"), "{again:?}");
    let Some(Object::Cluster(shown)) = cluster.stored(old, Kind::Cluster, "test") else {
        panic!("no cluster")
    };
    assert_eq!(shown.status.level, Level(2));

    cluster.stop_one(old).await;
    cluster.set_level(old, Level::OLDEST);
    match cluster.refuses(old).await {
        RunError::TooOld(too_old) => {
            assert!(too_old.to_string().contains("install the release"), "{too_old}");
        }
        other => panic!("{other}"),
    }
    let token = cluster.token(leader).await;
    let mut late = FakeAgent::join(&cluster.endpoint(leader), &token, "h2").await;
    late.level = Level::OLDEST;
    let mut link = late.hello(&cluster.endpoint(leader)).await.unwrap();
    let Some(v1::to_agent::Message::Goodbye(goodbye)) = soon("an answer to Hello", link.next()).await else {
        panic!("it was let in");
    };
    assert!(goodbye.message.contains("reads up to 1: install"), "{}", goodbye.message);
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
    let (is, about, what) = grade(&found, "version");
    assert_eq!((is, about.as_str()), (v1::finding::Grade::Warning, "cluster"), "{what}");
    assert!(what.contains("level 1") && what.contains("level 2"), "{what}");
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
