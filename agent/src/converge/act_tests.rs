use std::collections::BTreeMap;

use dunlin_model::{Incarnation, TaskId, VmId};
use uuid::Uuid;

use super::*;

const VM: VmId = VmId(Uuid::from_u128(1));
const TASK: TaskId = TaskId(Uuid::from_u128(2));
const BEGUN_MS: u64 = 1_000_000;

fn guest(run: Run) -> Guest {
    Guest {
        vm: VM,
        name: "vm".parse().unwrap(),
        incarnation: Incarnation(5),
        run,
        pid: None,
        vnc: None,
        endpoint: None,
        send: None,
        disk_bytes: BTreeMap::new(),
        layout: None,
        ever_ran: true,
        reboots: 3,
        resumed_at_ms: None,
    }
}

fn ended(cause: EndCause) -> Option<Guest> {
    Some(guest(Run::Ended(cause, "so it was".to_owned())))
}

#[allow(clippy::needless_pass_by_value)] // Guests are made on the spot.
/// One line: the step, and the words when it ends.
fn step(act: &Act, begun: bool, cancel: bool, guest: Option<Guest>, now_ms: u64) -> String {
    let mut record = Record::new(VM, "vm".parse().unwrap());
    let incarnation = Incarnation(5);
    if begun {
        let act = ActRecord {
            act: act.clone(),
            incarnation,
            begun_ms: BEGUN_MS,
            pressed_ms: 0,
            reboots: 3,
            ended: None,
        };
        record.acts = BTreeMap::from([(TASK, act)]);
    }
    let order = ActOrder { task: TASK, vm: VM, incarnation, act: act.clone(), cancel };
    match plan_act(&record, &order, guest.as_ref(), now_ms) {
        ActStep::Wait(until) => format!("wait {}", until - BEGUN_MS),
        ActStep::Over => "over".to_owned(),
        ActStep::Begin => "begin".to_owned(),
        ActStep::Press => "press".to_owned(),
        ActStep::Save => "save".to_owned(),
        ActStep::End(phase, message) => format!("{phase}: {message}"),
    }
}

/// An act is begun only on a guest that can hear it and is the one that was meant.
#[test]
fn beginning() {
    let shutdown = Act::Shutdown { timeout_s: 60 };
    let fresh = |act: &Act, guest| step(act, false, false, guest, BEGUN_MS);
    let running = || Some(guest(Run::Running));
    for act in [&shutdown, &Act::Reboot { timeout_s: 1 }, &Act::Reset, &Act::Save] {
        assert_eq!(fresh(act, running()), "begin");
        assert_eq!(fresh(act, None), "Failed: the VM has no process here");
        assert_eq!(fresh(act, ended(EndCause::Died)), "Failed: the VM has no process here");
        assert_eq!(fresh(act, Some(guest(Run::Outgoing))), "Failed: the VM is changing hosts");
        let other = Guest { incarnation: Incarnation(6), ..guest(Run::Running) };
        assert_eq!(fresh(act, Some(other)), "Failed: it was meant for incarnation 5, here runs 6");
        assert_eq!(step(act, false, true, running(), BEGUN_MS), "Cancelled: cancelled before it was begun");
    }
    assert_eq!(fresh(&Act::Save, Some(guest(Run::Paused))), "begin");
    assert!(fresh(&shutdown, Some(guest(Run::Paused))).starts_with("Failed: the VM is paused"));
    let moving = Guest { send: Some(Send::Copying(Default::default())), ..guest(Run::Running) };
    assert_eq!(fresh(&shutdown, Some(moving.clone())), "begin");
    assert_eq!(fresh(&Act::Save, Some(moving)), "Failed: the VM is changing hosts");
}

/// What was begun is never begun again: it is waited for, judged by what is seen, and given up in time.
#[test]
fn judging() {
    let shutdown = Act::Shutdown { timeout_s: 60 };
    let reboot = Act::Reboot { timeout_s: 60 };
    let running = || Some(guest(Run::Running));
    let later = |act: &Act, guest| step(act, true, false, guest, BEGUN_MS + 1);

    assert_eq!(later(&shutdown, running()), "wait 2000");
    assert_eq!(later(&shutdown, ended(EndCause::GuestShutdown)), "Succeeded: the guest powered off");
    assert_eq!(later(&shutdown, ended(EndCause::Died)), "Failed: the VM ended otherwise: so it was");
    assert_eq!(later(&shutdown, None), "Failed: the VM's process is gone");
    assert!(step(&shutdown, true, true, running(), BEGUN_MS).starts_with("Cancelled: no longer waited for"));
    let given_up = "Failed: the guest did not power off within 60 s";
    assert_eq!(step(&shutdown, true, false, running(), BEGUN_MS + 60_000), given_up);
    assert_eq!(step(&shutdown, true, false, running(), BEGUN_MS - 1), given_up, "the clock was set back");

    assert_eq!(step(&shutdown, true, false, running(), BEGUN_MS + 2000), "press");
    assert_eq!(later(&shutdown, Some(guest(Run::Paused))), "wait 60000");
    assert_eq!(later(&reboot, running()), "wait 2000");
    let again = Guest { reboots: 4, ..guest(Run::Running) };
    assert_eq!(later(&reboot, Some(again)), "Succeeded: the guest powered off and was started again");
    assert_eq!(later(&reboot, ended(EndCause::GuestShutdown)), "Failed: the VM ended otherwise: so it was");

    assert!(later(&Act::Reset, running()).starts_with("Succeeded"));
    assert_eq!(later(&Act::Save, running()), "save");
    assert_eq!(later(&Act::Save, ended(EndCause::Told)), "save");
    assert_eq!(later(&Act::Save, ended(EndCause::Died)), "Failed: the VM ended meanwhile: so it was");
}
