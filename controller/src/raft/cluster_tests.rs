//! Several replicas in one process, over loopback, with real stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dunlin_model::{ClusterId, ControllerId};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::demo_tests::{Cluster, Demo, Put, copy, free_address, until};
use super::proposer::COMMAND_BYTES_MAX;
use super::threads::WORKERS;
use super::{OpenError, ProposeError, Replica, SnapshotPolicy, StopReason, StoreError, Timers};

/// What was acknowledged is there after all controllers restart, in the same order, under the same numbers.
#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_the_restart_of_all() {
    let mut cluster = Cluster::new(3);
    cluster.start_all().await;
    let (leader, _) = cluster.leader().await;
    let leading = cluster.up[&leader].clone();
    let puts = (0..200).map(|i| {
        let leading = leading.clone();
        tokio::spawn(async move { leading.propose(&Put::new(format!("k{i}"), "v")).await.unwrap().0 })
    });
    let mut numbers = Vec::new();
    for put in puts.collect::<Vec<_>>() {
        numbers.push(put.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=200).collect::<Vec<_>>(), "each command has its own number, without gaps");
    assert!(leading.metrics().last_log.unwrap() < 150, "waiting commands share entries");
    let before = cluster.converged().await;
    let id = leading.cluster().unwrap();
    drop(leading);

    cluster.stop_all().await;
    cluster.start_all().await;
    let after = cluster.converged().await;
    assert_eq!(after, before);
    assert!(cluster.up.values().all(|replica| replica.cluster() == Some(id)));
    assert_eq!(cluster.put("k0", "w").await, 201);
    cluster.stop_all().await;
}

/// The files alone, as a killed process leaves them, hold everything that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_write_is_in_the_files() {
    let mut cluster = Cluster::new(1);
    cluster.start_all().await;
    let mut image = cluster.config(1);
    for round in 0..3 {
        let big = "x".repeat(300_000);
        cluster.put(&format!("small{round}"), "v").await;
        cluster.put(&format!("big{round}"), &big).await;
        image.data_dir = cluster.dir.path().join(format!("image{round}"));
        copy(&cluster.config(1).data_dir, &image.data_dir);
        image.listen = free_address();
        let risen = Replica::open(image.clone(), Demo::default()).await.unwrap();
        let view = until("the image to lead", async || risen.linearizable().await.ok()).await;
        assert_eq!(view.machine, cluster.up[&1].read().machine);
        assert_eq!(view.map[&format!("big{round}")], big);
        risen.shutdown().await;
    }
    cluster.stop_all().await;
}

/// When the leader goes away another one leads soon, nothing acknowledged is lost, and the old one comes back.
#[tokio::test(flavor = "multi_thread")]
async fn another_leads_when_the_leader_goes() {
    let mut cluster = Cluster::new(3);
    cluster.start_all().await;
    for round in 0..3 {
        let (leader, term) = cluster.leader().await;
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let enough = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (leading, acknowledged, enough) =
                    (cluster.up[&leader].clone(), Arc::clone(&acknowledged), Arc::clone(&enough));
                tokio::spawn(async move {
                    for i in 0.. {
                        let key = format!("r{round}w{writer}n{i}");
                        match leading.propose(&Put::new(&key, "v")).await {
                            Ok(_) => acknowledged.lock().await.push(key),
                            Err(error) => return error,
                        }
                        enough.store(i > 20, Ordering::Relaxed);
                    }
                    unreachable!("an endless loop")
                })
            })
            .collect();
        until("some writes", async || enough.load(Ordering::Relaxed).then_some(())).await;
        cluster.stop(leader).await;
        let start = Instant::now();
        for writer in writers {
            let error = writer.await.unwrap();
            // On a busy machine it may have lost its leadership just before.
            assert!(error.is_unknown() || matches!(error, ProposeError::NotLeader { .. }), "{error}");
        }
        let (next, next_term) = cluster.leader().await;
        cluster.put(&format!("r{round}"), "first").await;
        println!("round {round}: a write went through {:?} after the leader left", start.elapsed());
        assert!(next != leader && next_term > term);
        let state = cluster.converged().await;
        for key in acknowledged.lock().await.iter() {
            assert!(state.map.contains_key(key), "{key} was acknowledged and is lost");
        }
        cluster.start(leader).await;
        cluster.converged().await;
    }
    cluster.stop_all().await;
}

/// A leader that hangs with all its sockets open is replaced although the election timers would take minutes; when it
/// goes on it follows, and holds what the others hold. Nobody stands while the leader only has nothing to say.
#[tokio::test(flavor = "multi_thread")]
async fn another_leads_when_the_leader_hangs() {
    let mut cluster = Cluster::new(3);
    cluster.timers = Timers { heartbeat_ms: 10_000, election_min_ms: 60_000, election_max_ms: 90_000 };
    cluster.start_all().await;
    // Without the timers somebody has to call the first election.
    cluster.up[&1].inner.raft.trigger().elect().await.unwrap();
    let (leader, term) = cluster.leader().await;
    cluster.put("before", "v").await;
    cluster.converged().await;
    // Several times the silence that would be enough; the leader has nothing to send all the while.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.leader().await, (leader, term), "an idle leader was replaced");

    let hung = cluster.up.remove(&leader).expect("it is up");
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    for _ in 0..WORKERS {
        let held = Arc::clone(&held);
        // Each takes one thread of the core: one waits for the channel, the others for its lock.
        hung.inner.threads.handle().spawn(async move { held.lock().unwrap().recv().is_ok() });
    }
    let (_, next_term) = cluster.leader().await;
    assert!(next_term > term);
    cluster.put("meanwhile", "v").await;
    drop(go_on);
    cluster.up.insert(leader, hung);
    let state = cluster.converged().await;
    assert!(state.map.contains_key("before") && state.map.contains_key("meanwhile"));
    cluster.stop_all().await;
}

/// A follower that was away while the log was compacted gets a snapshot in several chunks, then the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_follower_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.policy = SnapshotPolicy { every_entries: 40, every_bytes: 8 << 20, keep_entries: 4 };
    cluster.start_all().await;
    let (leader, _) = cluster.leader().await;
    let away = if leader == 3 { 2 } else { 3 };
    cluster.put("before", "v").await;
    cluster.converged().await;
    cluster.stop(away).await;
    let big = "y".repeat(400_000);
    for i in 0..120 {
        cluster.put(&format!("k{i}"), if i % 20 == 0 { &big } else { "v" }).await;
    }
    let leading = cluster.up[&leader].clone();
    let purged = until("the log to be purged", async || {
        leading.snapshot().await;
        leading.metrics().purged.filter(|purged| *purged > 40)
    })
    .await;
    assert!(leading.metrics().snapshot.unwrap() >= purged);
    drop(leading);

    cluster.start(away).await;
    let state = cluster.converged().await;
    assert_eq!(state.map.len(), 121);
    assert!(cluster.up[&away].metrics().snapshot.unwrap() > 40, "it came by snapshot, not by log");
    cluster.put("after", "v").await;
    cluster.converged().await;

    cluster.stop_all().await;
    cluster.start_all().await;
    let again = cluster.converged().await;
    assert_eq!(again.map.len(), 122);
    // One more may be in the making.
    let folder = cluster.config(away).data_dir.join("snapshot");
    let files = || std::fs::read_dir(&folder).unwrap().count();
    until("one snapshot to be all that is kept", async || (files() == 1).then_some(())).await;
    cluster.stop_all().await;
}

/// A read on any controller includes what any other has acknowledged before.
#[tokio::test(flavor = "multi_thread")]
async fn a_linearizable_read_sees_every_acknowledged_write() {
    let mut cluster = Cluster::new(3);
    cluster.start_all().await;
    for i in 0..30 {
        let value = i.to_string();
        cluster.put("k", &value).await;
        for replica in cluster.up.values() {
            let view = replica.linearizable().await.unwrap();
            assert_eq!(view.map["k"], value);
        }
    }
    let (leader, _) = cluster.leader().await;
    for id in [1, 2, 3] {
        if id != leader {
            let error = cluster.up[&id].propose(&Put::new("k", "x")).await.unwrap_err();
            let ProposeError::NotLeader { leader: Some(hint) } = &error else { panic!("{error}") };
            assert_eq!((hint.id.0, &hint.member), (leader, &cluster.members[&ControllerId(leader)]));
            assert!(!error.is_unknown());
        }
    }
    cluster.stop_all().await;
}

/// A fenced proposal is applied in its own term or never, whether the term is known to be over or the log decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_proposal_needs_its_term() {
    let mut cluster = Cluster::new(3);
    cluster.start_all().await;
    let (leader, term) = cluster.leader().await;
    let leading = cluster.up[&leader].clone();
    leading.propose_in_term(term, &Put::new("mine", "v")).await.unwrap();
    let over = leading.propose_in_term(term - 1, &Put::new("late", "v")).await.unwrap_err();
    assert_eq!(over, ProposeError::TermOver { term: term - 1 });
    // A term that is not known to be over goes into the log, and is refused there by every replica alike.
    let (fenced, plain) = (Put::new("early", "v"), Put::new("plain", "v"));
    let (fenced, plain) = tokio::join!(leading.propose_in_term(term + 1, &fenced), leading.propose(&plain));
    assert_eq!(fenced.unwrap_err(), ProposeError::TermOver { term: term + 1 });
    assert_eq!(plain.unwrap().0, 2, "a refused command takes no number");
    let state = cluster.converged().await;
    assert_eq!(state.map.keys().collect::<Vec<_>>(), ["mine", "plain"]);
    drop(leading);
    cluster.stop_all().await;
}

/// The limits of a command are told, and a command at the limit goes through everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_may_have_a_megabyte() {
    let mut cluster = Cluster::new(3);
    cluster.start_all().await;
    let overhead = serde_json::to_vec(&Put::new("k", "")).unwrap().len();
    let most = "z".repeat(COMMAND_BYTES_MAX - overhead);
    cluster.put("k", &most).await;
    let (leader, _) = cluster.leader().await;
    let error = cluster.up[&leader].propose(&Put::new("k", format!("{most}z"))).await.unwrap_err();
    assert_eq!(error, ProposeError::TooLarge { bytes: COMMAND_BYTES_MAX + 1, limit: COMMAND_BYTES_MAX });
    assert_eq!(cluster.converged().await.map["k"], most);
    cluster.stop_all().await;
    cluster.start_all().await;
    assert_eq!(cluster.converged().await.map["k"], most);
    cluster.stop_all().await;
}

/// A controller can be added, promoted, and removed, and the cluster goes on.
#[tokio::test(flavor = "multi_thread")]
async fn controllers_come_and_go() {
    let mut cluster = Cluster::new(1);
    cluster.start_all().await;
    cluster.put("alone", "v").await;
    for id in [2, 3] {
        let member = cluster.address_of(id);
        cluster.start(id).await;
        cluster.up[&1].add_learner(ControllerId(id), member).await.unwrap();
    }
    cluster.up[&1].change_membership(&[ControllerId(1), ControllerId(2), ControllerId(3)]).await.unwrap();
    cluster.converged().await;
    assert_eq!(cluster.up[&1].metrics().voters.len(), 3);
    cluster.stop(1).await;
    cluster.put("without the first", "v").await;
    let (leader, _) = cluster.leader().await;
    let rest: Vec<_> = [2, 3].map(ControllerId).into();
    cluster.up[&leader].change_membership(&rest).await.unwrap();
    let state = cluster.converged().await;
    assert_eq!(state.map.len(), 2);
    assert_eq!(cluster.up[&leader].metrics().members.len(), 2);
    cluster.stop_all().await;
}

/// A voter that lost its store has forgotten what it promised: the leader does not fill it up again under its old
/// name, but takes it back once it was removed and added.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_without_its_store_is_not_refilled() {
    let mut cluster = Cluster::new(3);
    cluster.start_all().await;
    let (leader, _) = cluster.leader().await;
    let wiped = if leader == 3 { 2 } else { 3 };
    for i in 0..10 {
        cluster.put(&format!("k{i}"), "v").await;
    }
    cluster.converged().await;
    cluster.stop(wiped).await;
    std::fs::remove_dir_all(cluster.config(wiped).data_dir).unwrap();
    cluster.start(wiped).await;
    cluster.put("meanwhile", "v").await;
    let contacted = async || cluster.up[&wiped].cluster();
    until("the wiped controller to be contacted", contacted).await;
    for _ in 0..20 {
        cluster.put("meanwhile", "v").await;
        assert_eq!(cluster.up[&wiped].read().index, 0);
    }
    let (leader, _) = cluster.leader().await;
    let rest: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != wiped).map(ControllerId).collect();
    cluster.up[&leader].change_membership(&rest).await.unwrap();
    let member = cluster.address_of(wiped);
    cluster.up[&leader].add_learner(ControllerId(wiped), member).await.unwrap();
    cluster.up[&leader].change_membership(&[1, 2, 3].map(ControllerId)).await.unwrap();
    assert_eq!(cluster.converged().await.map.len(), 11);
    cluster.stop_all().await;
}

/// A data directory serves one controller of one cluster, in one process at a time; the refusal says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_store_is_refused() {
    let mut cluster = Cluster::new(1);
    cluster.start_all().await;
    cluster.put("k", "v").await;
    let mut config = cluster.config(1);
    config.listen = free_address();
    let refused = async |config| match Replica::open(config, Demo::default()).await {
        Err(OpenError::Store(error)) => error,
        other => panic!("{other:?}"),
    };
    let error = refused(config.clone()).await;
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    cluster.stop_all().await;

    let mut other = config.clone();
    other.cluster = Some(ClusterId(Uuid::from_u128(7)));
    let error = refused(other).await;
    assert!(matches!(error, StoreError::ForeignCluster { .. }), "{error}");
    let mut other = config.clone();
    other.id = ControllerId(2);
    let error = refused(other).await;
    assert!(matches!(error, StoreError::ForeignController { found: ControllerId(1), .. }), "{error}");
    // And none of these attempts has changed anything.
    cluster.start_all().await;
    assert_eq!(cluster.converged().await.map["k"], "v");
    cluster.stop_all().await;
}

/// Controllers of two clusters that are pointed at each other refuse each other's messages and stay what they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_cluster_is_refused() {
    let mut ours = Cluster::new(1);
    let mut theirs = Cluster::new(1);
    ours.start_all().await;
    theirs.start_all().await;
    theirs.put("theirs", "v").await;
    ours.put("ours", "v").await;
    let foreign = theirs.members[&ControllerId(1)].clone();
    // Controller 2 of our cluster is said to live where controller 1 of theirs does.
    let leading = ours.up[&1].clone();
    let adding = tokio::spawn(async move { leading.add_learner(ControllerId(2), foreign).await });
    until("the learner to be known", async || (ours.up[&1].metrics().members.len() == 2).then_some(())).await;
    ours.put("more", "v").await;
    assert_eq!(ours.up[&1].metrics().lag[&ControllerId(2)], ours.up[&1].metrics().last_log.unwrap() + 1);
    assert_eq!(theirs.converged().await.map.len(), 1);
    assert_ne!(ours.up[&1].cluster(), theirs.up[&1].cluster());
    adding.abort();
    ours.stop_all().await;
    theirs.stop_all().await;
}

/// A stopped replica says so to everybody who waits, and a state machine that panics stops it.
#[tokio::test(flavor = "multi_thread")]
async fn stopping_is_told() {
    let mut cluster = Cluster::new(1);
    cluster.start_all().await;
    cluster.leader().await;
    let replica = cluster.up[&1].clone();
    let watching = tokio::spawn({
        let replica = replica.clone();
        async move { replica.stopped().await }
    });
    cluster.stop_all().await;
    assert_eq!(watching.await.unwrap(), StopReason::Asked);
    assert_eq!(replica.propose(&Put::new("k", "v")).await.unwrap_err(), ProposeError::Stopped);
    drop(replica);

    cluster.start_all().await;
    cluster.leader().await;
    let replica = cluster.up[&1].clone();
    let error = replica.propose(&Put::new("panic", "please")).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    let StopReason::Failed(cause) = replica.stopped().await else { panic!("it was not asked to stop") };
    assert!(cause.contains("panicked"), "{cause}");
    drop(replica);
    cluster.stop_all().await;
}
