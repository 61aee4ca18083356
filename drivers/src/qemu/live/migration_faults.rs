//! Migrations that do not arrive: who has the guest afterwards.

use dunlin_model::Incarnation;
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::EndCause;

use super::{Fleet, close, kill, slow};
use crate::error::DriverErrorKind;
use crate::hypervisor::{Guest, Hypervisor, Run, Send};

fn memory_flows(guest: &Guest) -> bool {
    matches!(&guest.send, Some(Send::Copying(progress)) if progress.transferred_bytes > 1 << 20)
}

fn is_cancelled(guest: &Guest) -> bool {
    matches!(guest.send, Some(Send::Cancelled(_)))
}

/// Called off, or failing, at any point before the switch-over: the guest goes on at the source as it was, the
/// destination never ran it, and the next attempt succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn before_the_switch_over_the_source_keeps_it() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    a.migrate_cancel(fleet.vm).await.expect("nothing to cancel");

    // Cancelled while memory flows.
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, slow()).await.expect("begin");
    fleet.until(&a, "memory flows", memory_flows).await;
    a.migrate_cancel(fleet.vm).await.expect("cancel");
    let guest = fleet.guest(&a).await;
    assert!(is_cancelled(&guest) && guest.run == Run::Running, "{guest:?}");
    fleet.assert_goes_on("a").await;
    a.migrate_cancel(fleet.vm).await.expect("cancel again");
    let ended = fleet.until_ended(&b).await;
    assert!(!ended.ever_ran, "{ended:?}");
    fleet.end(&b).await;

    // Cancelled at the switch-over, when the mirrors are complete and the guest stands still.
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    a.migrate_cancel(fleet.vm).await.expect("cancel");
    assert_eq!(fleet.guest(&a).await.run, Run::Running);
    fleet.assert_goes_on("a").await;
    assert!(!fleet.until_ended(&b).await.ever_ran);
    fleet.end(&b).await;

    // The destination dies while memory flows.
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, slow()).await.expect("begin");
    fleet.until(&a, "memory flows", memory_flows).await;
    kill(fleet.guest(&b).await.pid.expect("pid"));
    let guest = fleet.until(&a, "the end of the attempt", is_cancelled).await;
    assert_eq!(guest.run, Run::Running);
    fleet.assert_goes_on("a").await;
    let ended = fleet.until_ended(&b).await;
    assert!(matches!(ended.run, Run::Ended(EndCause::Died, _)) && !ended.ever_ran, "{ended:?}");
    fleet.end(&b).await;

    // Nobody is there at all.
    let nobody = Endpoint { memory: "tcp:127.0.0.1:9".into(), disks: "127.0.0.1:9".into() };
    let error = a.migrate_out(fleet.vm, nobody, MigrationLimits::default()).await.expect_err("nobody");
    assert!(error.kind == DriverErrorKind::Refused && error.message.contains("refused"), "{error}");
    fleet.assert_goes_on("a").await;

    // And now it goes through.
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_arrived(&b).await;
    b.resume(fleet.vm).await.expect("resume");
    fleet.assert_goes_on("b").await;
    let last = fleet.last_tick("a").expect("ticked");
    fleet.end(&a).await;
    b.destroy(fleet.vm).await.expect("destroy");
    fleet.assert_on_disk(&["b"], &fleet.path("b.raw"));
    assert!(super::ticks_on_disk(&fleet.path("b.raw")).is_superset(&(0..=last).collect()));
    fleet.end(&b).await;
}

/// The destination dies at the switch-over and the source is told to pass it: it holds the guest, still and whole,
/// and runs it only when that is said, under the higher incarnation.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_dies_at_the_switch_over_hands_back() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    kill(fleet.guest(&b).await.pid.expect("pid"));
    assert!(!fleet.until_ended(&b).await.ever_ran);
    a.migrate_switch(fleet.vm).await.expect("switch");
    let ended = |guest: &Guest| matches!(guest.send, Some(Send::Holding(_) | Send::Sent(_)));
    let guest = fleet.until(&a, "the end of the sending", ended).await;
    assert!(guest.run == Run::Outgoing && matches!(guest.send, Some(Send::Holding(_))), "{guest:?}");
    let error = a.migrate_cancel(fleet.vm).await.expect_err("too late");
    assert_eq!(error.kind, DriverErrorKind::Refused);
    close(a).await;
    let a = fleet.driver("a");
    let guest = fleet.guest(&a).await;
    assert!(guest.run == Run::Outgoing && ended(&guest), "it holds still across a new agent: {guest:?}");
    hand_back(&fleet, &a).await;
    fleet.end(&b).await;
    fleet.end(&a).await;
}

/// All was sent, and the destination died before it ran: the source has everything still, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_dies_after_all_was_sent_hands_back() {
    let fleet = Fleet::new();
    let a = fleet.ticking("a").await;
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_sent(&a).await;
    fleet.until_arrived(&b).await;
    b.destroy(fleet.vm).await.expect("destroy");
    let ended = fleet.guest(&b).await;
    assert!(matches!(ended.run, Run::Ended(EndCause::Told, _)) && !ended.ever_ran, "{ended:?}");
    let before = fleet.last_tick("a").expect("ticked");
    hand_back(&fleet, &a).await;
    assert!(fleet.ticks("a").contains(&(before + 1)), "no tick is left out");
    fleet.end(&b).await;

    // The guest that was handed back can be sent again.
    let (b, endpoint) = fleet.receiving("b").await;
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_arrived(&b).await;
    b.resume(fleet.vm).await.expect("resume");
    fleet.assert_goes_on("b").await;
    fleet.end(&a).await;
    b.destroy(fleet.vm).await.expect("destroy");
    fleet.assert_on_disk(&["b"], &fleet.path("b.raw"));
    fleet.end(&b).await;
}

async fn hand_back(fleet: &Fleet, a: &crate::qemu::Qemu) {
    a.adopt_incarnation(fleet.vm, Incarnation(3)).await.expect("adopt");
    a.adopt_incarnation(fleet.vm, Incarnation(3)).await.expect("adopt again");
    let error = a.adopt_incarnation(fleet.vm, Incarnation(2)).await.expect_err("lower");
    assert_eq!(error.kind, DriverErrorKind::Refused);
    let guest = a.resume(fleet.vm).await.expect("resume");
    assert_eq!((guest.run, guest.incarnation, guest.send), (Run::Running, Incarnation(3), None));
    fleet.assert_goes_on("a").await;
}
