//! Memory to a file and back.

use dunlin_model::Incarnation;
use dunlin_model::observed::EndCause;

use super::{Fleet, close};
use crate::error::DriverErrorKind;
use crate::hypervisor::{Hypervisor, Launch, LaunchMode, Run};

/// A saved guest goes on, after a restore, with the very next tick; a save that fails leaves it running and no file.
#[tokio::test(flavor = "multi_thread")]
async fn a_saved_guest_goes_on_where_it_was() {
    let fleet = Fleet::new();
    let first = fleet.ticking("a").await;
    let bad = fleet.path("no/such/folder/saved");
    let error = first.save(fleet.vm, bad).await.expect_err("no folder");
    assert!(error.message.contains("No such file"), "{error}");
    let full = first.save(fleet.vm, "/dev/full/x".into()).await.expect_err("no folder");
    assert_ne!(full.kind, DriverErrorKind::Deadline);
    assert_eq!(fleet.guest(&first).await.run, Run::Running);
    fleet.assert_goes_on("a").await;

    let file = fleet.path("saved, with a comma; and $(more)");
    let (one, two) = tokio::join!(first.save(fleet.vm, file.clone()), first.save(fleet.vm, file.clone()));
    let bytes = one.expect("save");
    assert_eq!(two.expect("the same save"), bytes);
    assert_eq!(std::fs::metadata(&file).expect("file").len(), bytes);
    let ended = fleet.guest(&first).await;
    assert_eq!(ended.run, Run::Ended(EndCause::Told, String::new()));
    assert_eq!(first.save(fleet.vm, file.clone()).await.expect("found done"), bytes);
    let last = fleet.last_tick("a").expect("ticked");
    close(first).await;

    let second = fleet.driver("a");
    let restore = Launch {
        incarnation: Incarnation(2),
        mode: LaunchMode::Restore(file),
        paused: true,
        ..fleet.launch(&fleet.path("a.raw"), false)
    };
    let guest = second.start(restore).await.expect("restore");
    assert!(guest.run == Run::Paused && !guest.ever_ran, "{guest:?}");
    second.resume(fleet.vm).await.expect("resume");
    fleet.assert_goes_on("a").await;
    assert!(fleet.ticks("a").contains(&(last + 1)), "no tick is left out");
    assert_eq!(std::fs::read_to_string(fleet.serial("a")).expect("log").matches("boot 1 ").count(), 1);
    second.destroy(fleet.vm).await.expect("destroy");
    fleet.assert_on_disk(&["a"], &fleet.path("a.raw"));
    fleet.end(&second).await;
}

/// An agent killed in the middle of a save: the next one ends it as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn a_save_outlives_the_driver() {
    let fleet = Fleet::new();
    let first = fleet.ticking("a").await;
    let file = fleet.path("saved");
    // The driver goes in the middle of it or after the end: both must come out the same.
    let limit = std::time::Duration::from_millis(30);
    let _ = tokio::time::timeout(limit, first.save(fleet.vm, file.clone())).await;
    close(first).await;
    let second = fleet.driver("a");
    let bytes = second.save(fleet.vm, file.clone()).await.expect("the save is done");
    assert_eq!(std::fs::metadata(&file).expect("file").len(), bytes);
    let ended = fleet.until_ended(&second).await;
    assert!(matches!(ended.run, Run::Ended(EndCause::Told, _)), "{ended:?}");
    fleet.end(&second).await;
}
