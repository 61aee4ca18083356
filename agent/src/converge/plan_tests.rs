use dunlin_model::VmId;
use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationLimits};
use dunlin_model::observed::SendProgress;
use dunlin_model::vm::VmSpec;
use uuid::Uuid;

use super::*;
use crate::journal::{Saved, Sending, Started};

const VM: VmId = VmId(Uuid::from_u128(1));
const OURS: MigrationId = MigrationId(Uuid::from_u128(2));
const OTHER: MigrationId = MigrationId(Uuid::from_u128(3));
/// The incarnation of every assignment.
const NOW: Incarnation = Incarnation(5);

fn told(role: Role, continues: Option<u64>) -> Assignment {
    Assignment {
        vm: VM,
        name: "vm".parse().unwrap(),
        incarnation: NOW,
        continues: continues.map(Incarnation),
        built: None,
        spec: VmSpec::new(64),
        role,
    }
}

fn run_as(power: Power, received: bool) -> Role {
    Role::Run { power, restore_from: None, received }
}

fn receive_for(migration: MigrationId) -> Role {
    Role::Receive { migration, limits: MigrationLimits::default(), disks: Default::default() }
}

fn send_to(step: SendStep) -> Role {
    let (endpoint, limits) = (Endpoint::default(), MigrationLimits::default());
    Role::Send { migration: OURS, endpoint, limits, step, power: Power::Running }
}

fn guest(incarnation: u64, run: Run, send: Option<Send>) -> Guest {
    let ever_ran = !matches!(run, Run::Incoming | Run::Arrived);
    Guest {
        vm: VM,
        name: "vm".parse().unwrap(),
        incarnation: Incarnation(incarnation),
        run,
        pid: None,
        vnc: None,
        endpoint: None,
        send,
        disk_bytes: Default::default(),
        layout: None,
        ever_ran,
        reboots: 0,
        resumed_at_ms: None,
    }
}

fn record_of(assignment: &Assignment, receiving: Option<MigrationId>, sending: bool) -> Record {
    let mut record = Record::new(VM, "vm".parse().unwrap());
    record.told = NOW;
    record.assignment = Some(assignment.clone());
    record.started = Some(Started { incarnation: NOW, receiving, up: true });
    record.sending = sending.then_some(Sending { migration: OURS, begun: true, failed: None });
    record
}

/// The columns of the table: every state a guest can be in.
fn guests() -> Vec<Option<Guest>> {
    let progress = SendProgress::default();
    let at = || Some(Send::AtSwitchover(progress));
    let why = || "why".to_owned();
    let died = || Run::Ended(EndCause::Died, why());
    vec![
        None,
        Some(guest(5, Run::Running, None)),
        Some(guest(5, Run::Paused, None)),
        Some(guest(5, Run::Incoming, None)),
        Some(guest(5, Run::Arrived, None)),
        Some(guest(5, Run::Running, Some(Send::Copying(progress)))),
        Some(guest(5, Run::Outgoing, at())),
        Some(guest(5, Run::Outgoing, Some(Send::Sent(MigrationFigures::default())))),
        Some(guest(5, Run::Outgoing, Some(Send::Holding(why())))),
        Some(guest(5, Run::Running, Some(Send::Cancelled(why())))),
        Some(guest(5, died(), None)),
        Some(guest(4, Run::Running, None)),
        Some(guest(4, Run::Outgoing, Some(Send::Holding(why())))),
        Some(guest(4, died(), None)),
        Some(guest(6, Run::Running, None)),
    ]
}

fn word(step: &Step) -> &'static str {
    match step {
        Step::Rest => ".",
        Step::Start(_) => "start",
        Step::TakeOver => "take",
        Step::LetGo => "letgo",
        Step::Bury => "bury",
        Step::Destroy => "kill",
        Step::Forget => "forget",
        Step::Pause => "pause",
        Step::Resume => "go",
        Step::Adopt(_) => "adopt",
        Step::MigrateOut(_) => "send",
        Step::Switch => "switch",
        Step::CallOff => "off",
        Step::NoteEnd(_) => "note",
        Step::DropSaved => "unsave",
        Step::Refit(_) => "refit",
        Step::DropAll => "drop",
    }
}

/// Name, role, incarnation it continues, migration it was started for, its sending begun, and the expected steps.
type Row = (&'static str, Option<Role>, Option<u64>, Option<MigrationId>, bool, &'static str);

/// Every role meets every state of a guest with the one step that is right. In particular: nothing but `switch` passes
/// the switch-over, nothing runs a guest that was sent unless it was handed back, and what is not named, or runs under
/// a higher incarnation, is left alone.
#[test]
fn every_role_and_every_guest() {
    #[rustfmt::skip]
    let rows: [Row; 16] = [
        // role, continues, receiving, sending begun                             none  run   paus  inc  arr  copy  at     sent hold canc  ended  4run  4hold 4end   6run
        ("not named",   None,                                  None, None, false,       ". . . . . . . . . . . . . . ."),
        ("run",         Some(run_as(Power::Running, false)),   None, None, false,       "start . go kill kill off off . . . . kill kill forget ."),
        ("run paused",  Some(run_as(Power::Paused, false)),    None, None, false,       "start pause . kill kill off off . . pause . kill kill forget ."),
        ("adopt",       Some(Role::Adopt { power: Power::Running }), None, None, false, "take . go . . off off . . . . adopt adopt forget ."),
        ("release",     Some(Role::Release),                   None, None, false,       "bury letgo letgo letgo letgo letgo letgo letgo letgo letgo letgo letgo letgo letgo ."),
        ("received",    Some(run_as(Power::Running, true)),    None, Some(OURS), false, "note . go . go off off . . . . kill kill forget ."),
        ("rec. paused", Some(run_as(Power::Paused, true)),     None, Some(OURS), false, "note pause . . pause off off . . pause . kill kill forget ."),
        ("continues",   Some(run_as(Power::Running, false)),   Some(4), None, true,     "note . go kill kill off off go go . . adopt adopt note ."),
        ("hold",        Some(Role::Hold),                      None, None, false,       ". kill kill kill kill kill kill kill kill kill forget kill kill forget ."),
        ("receive",     Some(receive_for(OURS)),               None, Some(OURS), false, "start . . . . . . . . . . kill kill forget ."),
        ("rec. anew",   Some(receive_for(OURS)),               None, Some(OTHER), false,"start . . kill kill . . . . . forget kill kill forget ."),
        ("send copy",   Some(send_to(SendStep::Copy)),         None, None, false,       "note send send . . send send send send send . kill kill forget ."),
        ("copying",     Some(send_to(SendStep::Copy)),         None, None, true,        "note . . . . . . . . . . kill kill forget ."),
        ("send switch", Some(send_to(SendStep::Switch)),       None, None, true,        "note pause . . . . switch . . pause . kill kill forget ."),
        ("send cancel", Some(send_to(SendStep::Cancel)),       None, None, true,        "note . go . . off off . . . . kill kill forget ."),
        ("discard",     Some(Role::Discard { elsewhere: false }),                   None, None, false,       "drop kill kill kill kill kill kill kill kill kill forget kill kill forget ."),
    ];
    for (name, role, continues, receiving, sending, expected) in rows {
        let desired = role.map(|role| told(role, continues));
        let steps: Vec<_> = guests()
            .iter()
            .map(|guest| {
                let some = told(Role::Hold, None);
                let mut record = record_of(desired.as_ref().unwrap_or(&some), receiving, sending);
                match guest {
                    // Nothing has been started yet under this incarnation.
                    None => {
                        record.started = continues.map(|old| Started {
                            incarnation: Incarnation(old),
                            receiving,
                            up: true,
                        });
                    }
                    Some(guest)
                        if matches!(guest.run, Run::Incoming | Run::Arrived) && receiving.is_none() =>
                    {
                        record.started = Some(Started { incarnation: NOW, receiving: Some(OTHER), up: true });
                    }
                    Some(_) => {}
                }
                word(&plan(&record, desired.as_ref(), guest.as_ref()))
            })
            .collect();
        assert_eq!(steps.join(" "), expected, "{name}");
    }
}

#[allow(clippy::needless_pass_by_value)] // Roles are made on the spot.
fn check(record: &Record, role: Role, guest: Option<&Guest>, expected: &str) {
    let desired = told(role.clone(), None);
    let step = plan(record, Some(&desired), guest);
    assert_eq!(word(&step), expected, "{role:?}: {step:?}");
}

/// An incarnation that has ended here, or whose process has vanished, is not started again; an attempt to receive that
/// was given up stands in the way of neither a fresh start nor another migration.
#[test]
fn once_per_incarnation() {
    let run = || run_as(Power::Running, false);
    let fresh = {
        let mut record = record_of(&told(run(), None), None, false);
        record.started = None;
        record
    };
    let ended = |receiving, ever_ran| {
        let (incarnation, cause, message) = (NOW, EndCause::Refused, "no".to_owned());
        let ended = Some(Ended { incarnation, cause, message, ever_ran, receiving });
        Record { ended, ..fresh.clone() }
    };
    check(&fresh, run(), None, "start");
    check(&ended(None, false), run(), None, ".");
    check(&ended(Some(OTHER), false), run(), None, "start");
    check(&ended(Some(OURS), false), receive_for(OURS), None, ".");
    check(&ended(Some(OTHER), false), receive_for(OURS), None, "start");
    check(&ended(Some(OURS), false), run_as(Power::Running, true), None, ".");

    let started = |receiving, up| Record {
        started: Some(Started { incarnation: NOW, receiving, up }),
        ..fresh.clone()
    };
    check(&started(None, true), run(), None, "note");
    // The agent died between the driver's call and the journal: the call is made again.
    check(&started(None, false), run(), None, "start");
    check(&started(Some(OURS), true), receive_for(OURS), None, "note");
    check(&started(Some(OTHER), true), run(), None, "start");
    let gone = guest(5, Run::Ended(EndCause::Died, String::new()), None);
    check(&started(Some(OTHER), true), run(), Some(&Guest { ever_ran: false, ..gone.clone() }), "forget");
    check(&started(Some(OTHER), true), run(), Some(&gone), ".");
}

/// A process that died as N before it could carry on as N + 2 is reported as the end of N + 2, once, and then let go.
#[test]
fn hand_back_to_a_dead_process() {
    let desired = told(run_as(Power::Running, false), Some(4));
    let mut record = record_of(&desired, None, true);
    record.started = Some(Started { incarnation: Incarnation(4), receiving: None, up: true });
    let dead = guest(4, Run::Ended(EndCause::Died, "killed".to_owned()), None);
    let Step::NoteEnd(ended) = plan(&record, Some(&desired), Some(&dead)) else { panic!() };
    assert_eq!((ended.incarnation, ended.ever_ran, ended.message.as_str()), (NOW, true, "killed"));
    record.ended = Some(ended);
    assert_eq!(plan(&record, Some(&desired), Some(&dead)), Step::Forget);
    assert_eq!(plan(&record, Some(&desired), None), Step::Rest);
}

/// Old incarnations are refused, whatever they ask for; Discard reaches a process that was prepared under a higher one
/// and never ran, and nothing that ran.
#[test]
fn fences() {
    let mut record = record_of(&told(Role::Hold, None), None, false);
    record.told = Incarnation(6);
    for role in [run_as(Power::Running, false), Role::Hold, receive_for(OURS), send_to(SendStep::Copy)] {
        assert!(is_stale(&record, &told(role, None), None));
    }
    assert!(!is_stale(&record, &told(Role::Discard { elsewhere: false }, None), None));
    let waiting = guest(6, Run::Incoming, None);
    check(&record, Role::Discard { elsewhere: false }, Some(&waiting), "kill");
    check(&record, Role::Discard { elsewhere: false }, Some(&guest(6, Run::Paused, None)), ".");
    record.bury();
    check(&record, Role::Discard { elsewhere: false }, None, ".");
}

/// Saved memory is removed once a newer incarnation runs, and not before.
#[test]
fn saved_memory_is_kept_until_it_is_used() {
    let mut record = record_of(&told(Role::Hold, None), None, false);
    let saved = |incarnation| {
        Some(Saved {
            file: "/saved".into(),
            size_bytes: 1,
            incarnation: Incarnation(incarnation),
            built: None,
        })
    };
    let running = guest(5, Run::Running, None);
    record.saved = saved(4);
    check(&record, run_as(Power::Running, false), Some(&running), "unsave");
    check(&record, run_as(Power::Paused, false), Some(&running), "pause");
    record.saved = saved(5);
    check(&record, run_as(Power::Running, false), Some(&running), ".");
}

/// A spec that was told and is not in the journal yet is reported as pending: the report says that it was taken in.
#[test]
fn what_was_told_is_pending_at_once() {
    let before = told(run_as(Power::Running, false), None);
    let mut record = record_of(&before, None, false);
    record.built = Some(dunlin_model::vm::Built::of(&before.spec));
    let running = guest(5, Run::Running, None);
    let built = |record: &Record, told: &Assignment| {
        let seen = super::super::observe::observe(record, Some(told), Some(&running), None, None);
        seen.and_then(|seen| seen.built).map(|built| built.note)
    };
    assert_eq!(built(&record, &before), None, "it is as its spec says");
    let mut after = before.clone();
    after.spec.cpus = 2;
    record.stuck = [("disks[vdb]".to_owned(), "of the spec before".to_owned())].into();
    assert_eq!(built(&record, &after).as_deref(), Some("cpus: follows at the next start"));
    let user = dunlin_model::vm::NicNetwork::User;
    after.spec = VmSpec { cpus: 1, ..after.spec };
    after.spec.nics.push(dunlin_model::vm::Nic { mac: None, model: Default::default(), network: user });
    assert_eq!(built(&record, &after).as_deref(), Some(""), "it is about to be given a NIC");
}
