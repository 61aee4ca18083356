//! Migrations that arrive.

use std::time::Instant;

use dunlin_model::migration::{Endpoint, MigrationLimits};

use super::{Fleet, close, slow};
use crate::error::DriverErrorKind;
use crate::hypervisor::{Hypervisor, Run, Send};

/// The whole way with a disk that only one host has: the guest goes on with the next tick, everything it was told is
/// on disk is on the destination's, and at no instant do both sides run.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_disk_of_its_own() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    let (b, endpoint) = fleet.receiving("b").await;
    assert!(endpoint.memory.starts_with("tcp:127.0.0.1:") && endpoint.disks.starts_with("127.0.0.1:"));
    assert_eq!(b.resume(fleet.vm).await.expect_err("empty").kind, DriverErrorKind::Refused);
    assert_eq!(a.migrate_switch(fleet.vm).await.expect_err("early").kind, DriverErrorKind::Refused);

    let begun = Instant::now();
    a.migrate_out(fleet.vm, endpoint.clone(), MigrationLimits::default()).await.expect("begin");
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin again");
    let other = Endpoint { memory: "tcp:127.0.0.1:1".into(), disks: String::new() };
    let elsewhere = a.migrate_out(fleet.vm, other, MigrationLimits::default()).await;
    assert_eq!(elsewhere.expect_err("busy").kind, DriverErrorKind::Busy);
    let guest = fleet.until_at_switchover(&a).await;
    assert_eq!(guest.run, Run::Outgoing);
    assert_eq!(fleet.guest(&b).await.run, Run::Incoming, "nothing runs there before it is told");
    assert_eq!(a.resume(fleet.vm).await.expect_err("handed over").kind, DriverErrorKind::Refused);
    a.migrate_switch(fleet.vm).await.expect("switch");
    a.migrate_switch(fleet.vm).await.expect("switch again");
    let arrived = fleet.until_arrived(&b).await;
    assert!(!arrived.ever_ran && arrived.endpoint.is_none(), "{arrived:?}");
    let guest = b.resume(fleet.vm).await.expect("resume");
    let took_ms = begun.elapsed().as_millis();
    assert!(guest.run == Run::Running && guest.ever_ran, "{guest:?}");
    let figures = fleet.until_sent(&a).await;
    let still_ms = guest.resumed_at_ms.expect("resumed").saturating_sub(figures.stopped_at_ms);
    println!("migration with disk: {took_ms} ms in all, {figures:?}, stood still {still_ms} ms");
    assert!(still_ms >= figures.downtime_ms / 2 && still_ms < 10_000, "{still_ms} and {figures:?}");
    assert!(figures.transferred_bytes > 1 << 20 && figures.total_ms > 0, "{figures:?}");

    let last = fleet.last_tick("a").expect("ticked");
    fleet.wait_tick("b", last + 2).await;
    let ticks = fleet.ticks_across(&["a", "b"]);
    assert!(ticks.windows(2).all(|pair| pair[1] == pair[0] + 1), "every tick once, in order: {ticks:?}");
    assert_eq!(fleet.last_tick("a"), Some(last), "the source stands still");
    a.destroy(fleet.vm).await.expect("destroy");
    a.forget(fleet.vm).await.expect("forget");
    fleet.assert_goes_on("b").await;
    b.destroy(fleet.vm).await.expect("destroy");
    fleet.assert_on_disk(&["b"], &fleet.path("b.raw"));
    let (source, target) =
        (super::ticks_on_disk(&fleet.path("a.raw")), super::ticks_on_disk(&fleet.path("b.raw")));
    assert!(source.is_subset(&target), "missing: {:?}", source.difference(&target).collect::<Vec<_>>());
    fleet.end(&b).await;
}

/// The whole way with a disk both hosts see: nothing is mirrored, and both sides' ticks are on it.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_shared_disk() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.driver("a"), fleet.driver("b"));
    let disk = fleet.disk("shared");
    a.start(fleet.launch(&disk, true)).await.expect("start");
    fleet.wait_tick("a", 0).await;
    let endpoint = b.start(fleet.incoming(&disk, true)).await.expect("incoming").endpoint.expect("endpoint");
    assert_eq!(endpoint.disks, "");
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_arrived(&b).await;
    b.resume(fleet.vm).await.expect("resume");
    let figures = fleet.until_sent(&a).await;
    assert_eq!(figures.disk_bytes, 0);
    let last = fleet.last_tick("a").expect("ticked");
    fleet.wait_tick("b", last + 2).await;
    fleet.end(&a).await;
    b.destroy(fleet.vm).await.expect("destroy");
    fleet.assert_on_disk(&["b"], &disk);
    assert!(super::ticks_on_disk(&disk).contains(&last));
    fleet.end(&b).await;
}

/// A paused guest moves too, and stays paused until somebody says otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn while_paused() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    a.pause(fleet.vm).await.expect("pause");
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_arrived(&b).await;
    fleet.until_sent(&a).await;
    assert_eq!(fleet.ticks("b"), [0; 0]);
    b.resume(fleet.vm).await.expect("resume");
    fleet.assert_goes_on("b").await;
    fleet.end(&a).await;
    fleet.end(&b).await;
}

/// Memory of an emulated guest that writes all the time is looked at twice, before and after it is copied, where QEMU
/// would lose writes by looking more often; an agent that is replaced meanwhile does not change that.
#[tokio::test(flavor = "multi_thread")]
async fn a_writing_guest_is_copied_as_often_as_is_safe() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    fleet.say(&a, "dirty 20 16").await;
    fleet.wait_serial("a", "dirtying 20 16").await;
    let (b, endpoint) = fleet.receiving("b").await;
    // Long enough for QEMU to know how fast it sends; it looks only twice anyway before that.
    let limits = MigrationLimits { bandwidth_mib_s: 40, ..MigrationLimits::default() };
    a.migrate_out(fleet.vm, endpoint, limits).await.expect("begin");
    close(a).await;
    let a = fleet.driver("a");
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_arrived(&b).await;
    b.resume(fleet.vm).await.expect("resume");
    fleet.until_sent(&a).await;
    fleet.assert_goes_on("b").await;
    close(a).await;
    let path = fleet.path("a").join("guests").join(fleet.vm.to_string()).join("qmp.sock");
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    let (qmp, _) = crate::qemu::qmp::Qmp::connect(&path, deadline).await.expect("monitor");
    let told = qmp.run("query-migrate", serde_json::json!({})).await.expect("told");
    let looks = told["ram"]["dirty-sync-count"].as_u64().expect("a count");
    let once = crate::qemu::passes::must_copy_once(&qmp).await.expect("known");
    assert!(if once { looks == 2 } else { looks >= 2 }, "{once}: {told}");
    drop(qmp);
    let a = fleet.driver("a");
    fleet.end(&a).await;
    fleet.end(&b).await;
}

/// Both agents are replaced at every step of the way; the migration does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn agents_may_be_replaced_at_every_step() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    let (b, endpoint) = fleet.receiving("b").await;
    close(b).await;
    let b = fleet.driver("b");
    assert_eq!(fleet.guest(&b).await.endpoint.as_ref(), Some(&endpoint), "still Incoming, at the same ports");
    a.migrate_out(fleet.vm, endpoint.clone(), slow()).await.expect("begin");
    close(a).await;
    let a = fleet.driver("a");
    let guest = fleet.guest(&a).await;
    assert!(matches!(guest.send, Some(Send::Copying(_))) && guest.run == Run::Running, "{guest:?}");
    a.migrate_out(fleet.vm, endpoint, slow()).await.expect("found under way");
    let moving = |guest: &crate::hypervisor::Guest| match &guest.send {
        Some(Send::Copying(progress)) => progress.transferred_bytes > 1 << 20,
        _ => false,
    };
    let guest = fleet.until(&a, "memory flows", moving).await;
    assert!(matches!(guest.send, Some(Send::Copying(p)) if p.total_bytes > 128 << 20), "{guest:?}");
    close(a).await;
    let a = fleet.driver("a");
    assert!(moving(&fleet.guest(&a).await));
    // Fast from here on; a driver has no verb for it.
    let path = fleet.path("a").join("guests").join(fleet.vm.to_string()).join("qmp.sock");
    close(a).await;
    let (qmp, _) = crate::qemu::qmp::Qmp::connect(&path, tokio::time::Instant::now() + super::PATIENCE)
        .await
        .expect("monitor");
    qmp.run("migrate-set-parameters", serde_json::json!({ "max-bandwidth": 0 })).await.expect("faster");
    drop(qmp);
    let a = fleet.driver("a");
    fleet.until_at_switchover(&a).await;
    close(a).await;
    let a = fleet.driver("a");
    let guest = fleet.guest(&a).await;
    assert!(matches!(guest.send, Some(Send::AtSwitchover(_))) && guest.run == Run::Outgoing, "{guest:?}");
    a.migrate_switch(fleet.vm).await.expect("switch");
    close(a).await;
    close(b).await;
    let (a, b) = (fleet.driver("a"), fleet.driver("b"));
    fleet.until_arrived(&b).await;
    fleet.until_sent(&a).await;
    close(a).await;
    close(b).await;
    let (a, b) = (fleet.driver("a"), fleet.driver("b"));
    assert!(matches!(fleet.guest(&a).await.send, Some(Send::Sent(_))));
    let guest = fleet.guest(&b).await;
    assert!(guest.run == Run::Arrived && !guest.ever_ran, "{guest:?}");
    b.resume(fleet.vm).await.expect("resume");
    fleet.assert_goes_on("b").await;
    close(b).await;
    let b = fleet.driver("b");
    assert_eq!(fleet.guest(&b).await.run, Run::Running);
    fleet.end(&a).await;
    b.destroy(fleet.vm).await.expect("destroy");
    fleet.assert_on_disk(&["b"], &fleet.path("b.raw"));
    fleet.end(&b).await;
}
