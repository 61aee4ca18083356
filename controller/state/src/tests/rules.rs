//! The rules that users and planners meet.

use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationOutcome, MigrationPhase};
use dunlin_model::vm::{CloudInit, MachineType, Power, VmPhase, VmSpec, Vnc};
use dunlin_model::{ErrorCode, Incarnation, Labels, Name, Revision, Secret};

use super::{Fleet, host_id, join, migration_id, open, vm_id};
use crate::command::{Command, MigrationEvent, Seen, Write};
use crate::vm::{RESTARTS_MAX, STEADY_RUN_MS};
use crate::{Rejected, snapshot};

#[track_caller]
fn says(refused: &Rejected, code: ErrorCode, text: &str) {
    assert_eq!(refused.code, code, "{refused}");
    assert!(refused.message.contains(text), "{refused}");
}

fn migrate(number: u64, event: MigrationEvent) -> Command {
    Command::Migrate { migration: migration_id(number), event }
}

/// A token lets one host in once; the same join again is the same join; another secret, a used or expired token and a
/// taken name are refused.
#[test]
fn a_token_joins_one_host() {
    let mut fleet = Fleet::new(1);
    fleet.ok(&join(0, "used long ago", "secret"));
    says(&fleet.refused(&join(0, "t0", "other")), ErrorCode::Unauthenticated, "another key");
    says(&fleet.refused(&join(1, "t0", "secret")), ErrorCode::Unauthenticated, "used before");
    fleet.ok(&fleet.token("late"));
    fleet.now += 60_001;
    says(&fleet.refused(&join(1, "late", "secret")), ErrorCode::Unauthenticated, "expired");
    fleet.ok(&fleet.token("good"));
    let Command::JoinHost { token_sha256, labels, ask, .. } = join(1, "good", "secret") else { panic!() };
    let name: Name = "h0".parse().unwrap();
    let taken = Command::JoinHost { token_sha256, uid: host_id(1), name, labels, ask };
    says(&fleet.refused(&taken), ErrorCode::AlreadyExists, "a host called h0 exists");
    fleet.ok(&join(1, "good", "secret"));
}

/// News of an older session changes nothing, and an older session cannot open.
#[test]
fn sessions_are_fenced() {
    let mut fleet = Fleet::new(1);
    fleet.ok(&open(0, 5));
    says(&fleet.refused(&open(0, 5)), ErrorCode::WrongState, "is old");
    let before = fleet.state.revision();
    fleet.ok(&Command::CloseSession { host: host_id(0), session: 1, message: String::new() });
    assert_eq!(fleet.state.revision(), before);
}

/// The same key and request give the same answer and no second object, though the edge minted another uid; another
/// request under the key is refused.
#[test]
fn a_key_is_answered_once() {
    let mut fleet = Fleet::new(1);
    let create = |uid, name: &str| Command::Write {
        key: "k".to_owned(),
        write: Write::CreateVm {
            uid: vm_id(uid),
            own_uid: false,
            name: name.parse().unwrap(),
            labels: Labels::new(),
            spec: VmSpec::new(64),
        },
    };
    let first = fleet.ok(&create(1, "a"));
    let again = fleet.ok(&create(2, "a"));
    assert!(again.repeated && !first.repeated);
    assert_eq!((again.revision, again.object), (first.revision, first.object));
    says(&fleet.refused(&create(3, "b")), ErrorCode::KeyReused, "another request");
    fleet.now += crate::keys::ANSWER_LIFETIME_MS + 1;
    assert!(fleet.state.needs_sweep(dunlin_model::Timestamp(fleet.now)));
    fleet.ok(&Command::Sweep);
    assert!(!fleet.state.needs_sweep(dunlin_model::Timestamp(fleet.now)));
    fleet.ok(&create(3, "b"));
}

/// A uid that a user chose is kept, refused while another VM has it, and after that VM is gone no incarnation of it is
/// given out again: hosts remember the highest and refuse lower ones.
#[test]
fn a_chosen_uid_is_kept_and_its_incarnations_go_on() {
    let mut fleet = Fleet::new(1);
    let create = |name: &str| Write::CreateVm {
        uid: vm_id(1),
        own_uid: true,
        name: name.parse().unwrap(),
        labels: Labels::new(),
        spec: VmSpec { power: Power::Running, ..VmSpec::new(64) },
    };
    fleet.write_ok(create("vm1"));
    let first = bound_incarnation(&mut fleet);
    let taken = format!("metadata.uid: {} is the uid of the vm vm1", vm_id(1));
    says(&fleet.write_refused(create("vm2")), ErrorCode::AlreadyExists, &taken);
    fleet.write_ok(Write::DeleteVm { uid: vm_id(1) });
    fleet.ok(&Command::ForgetVm { vm: vm_id(1) });
    fleet.write_ok(create("vm2"));
    assert!(bound_incarnation(&mut fleet) > first);
}

fn bound_incarnation(fleet: &mut Fleet) -> dunlin_model::Incarnation {
    fleet.bind(1, 0).unwrap();
    fleet.state.vm(vm_id(1)).unwrap().status.incarnation
}

/// Unknown names are refused with near ones, stale revisions with the object as it is, bad fields by name.
#[test]
fn bad_writes_say_what_is_wrong() {
    let mut fleet = Fleet::new(2);
    let mut spec = VmSpec::new(64);
    spec.placement.host = Some("hO".parse().unwrap());
    let create = |spec| Write::CreateVm {
        uid: vm_id(1),
        own_uid: false,
        name: "a".parse().unwrap(),
        labels: Labels::new(),
        spec,
    };
    says(&fleet.write_refused(create(spec)), ErrorCode::NotFound, "did you mean h0, h1?");
    says(
        &fleet.write_refused(create(VmSpec::new(1))),
        ErrorCode::InvalidArgument,
        "spec.mem_mib: 1 is out of range",
    );
    let mut hidden = VmSpec::new(64);
    hidden.vnc = Some(Vnc { password: Some(Secret::new(Secret::REDACTED)), ..Vnc::default() });
    says(&fleet.write_refused(create(hidden.clone())), ErrorCode::InvalidArgument, "spec.vnc.password");
    let mut open = hidden.clone();
    open.vnc.as_mut().unwrap().password = Some(Secret::new("geheim"));
    hidden.cloud_init =
        Some(CloudInit { user_data: Some(Secret::new(Secret::REDACTED)), ..CloudInit::default() });
    open.cloud_init = Some(CloudInit { user_data: Some(Secret::new("#!geheim")), ..CloudInit::default() });
    fleet.write_ok(create(open));
    let update =
        |revision| Write::UpdateVm { uid: vm_id(1), revision, labels: Labels::new(), spec: hidden.clone() };
    let stale = fleet.write_refused(update(Revision(1)));
    says(&stale, ErrorCode::StaleRevision, "was read at revision 1");
    fleet.write_ok(update(stale.current.unwrap().revision()));
    let kept: Vec<_> = fleet
        .state
        .vm(vm_id(1))
        .unwrap()
        .spec
        .clone()
        .secrets_mut()
        .map(|(_, secret)| secret.clone())
        .collect();
    assert_eq!(kept.iter().map(Secret::expose).collect::<Vec<_>>(), ["geheim", "#!geheim"]);
}

/// What a running machine is to have and has not is named until its host says otherwise; it holds room for the larger of
/// the two, and is promised no more than its host has.
#[test]
fn a_running_machine_follows_its_spec() {
    let mut fleet = Fleet::new(1);
    fleet.running(1, 0, 600);
    let update = |fleet: &mut Fleet, mem_mib: u64, refused: Option<&str>| {
        let vm = fleet.state.vm(vm_id(1)).unwrap().clone();
        let (revision, spec) = (vm.metadata.revision, VmSpec { mem_mib, ..vm.spec });
        let update = Write::UpdateVm { uid: vm_id(1), revision, labels: Labels::new(), spec };
        match refused {
            Some(why) => says(&fleet.write_refused(update), ErrorCode::NoCapacity, why),
            None => drop(fleet.write_ok(update)),
        }
        let status = fleet.state.vm(vm_id(1)).unwrap().status.clone();
        (status.pending, fleet.state.host(host_id(0)).unwrap().status.reserved.mem_mib)
    };
    let mem = || vec!["mem_mib".to_owned()];
    assert_eq!(update(&mut fleet, 700, None), (mem(), 700));
    assert_eq!(update(&mut fleet, 4000, Some("not enough memory")), (mem(), 700));
    assert_eq!(update(&mut fleet, 100, None), (mem(), 600), "its process has 600 until it ends");
    assert_eq!(update(&mut fleet, 600, None), (vec![], 600), "as it was");
    assert_eq!(update(&mut fleet, 100, None), (mem(), 600));
    fleet.observe(1, Seen::Built(None)).unwrap();
    assert_eq!(update(&mut fleet, 100, None), (vec![], 100));
}

/// The room of a host is sold once: memory exactly, vCPUs by the overcommit; a running machine keeps its board.
#[test]
fn room_is_sold_once() {
    let mut fleet = Fleet::new(1);
    fleet.running(1, 0, 600);
    fleet.create(2, VmSpec { power: Power::Running, ..VmSpec::new(512) });
    says(&fleet.bind(2, 0).unwrap_err(), ErrorCode::NoCapacity, "need 512 MiB, free 424 MiB");
    fleet.create(3, VmSpec { power: Power::Running, cpus: 8, ..VmSpec::new(64) });
    says(&fleet.bind(3, 0).unwrap_err(), ErrorCode::NoCapacity, "need 8, free 7");
    let vm = fleet.state.vm(vm_id(1)).unwrap().clone();
    let spec = VmSpec { machine: MachineType::Pc, ..vm.spec };
    let update =
        Write::UpdateVm { uid: vm_id(1), revision: vm.metadata.revision, labels: Labels::new(), spec };
    says(&fleet.write_refused(update), ErrorCode::WrongState, "stop it first");
    says(
        &fleet.write_refused(Write::RemoveHost { uid: host_id(0), force: false }),
        ErrorCode::InUse,
        "1 VMs",
    );
}

/// A guest that keeps dying is restarted a bounded number of times; one that ran long enough has a fresh count.
#[test]
fn crashes_are_bounded() {
    let mut fleet = Fleet::new(1);
    fleet.running(1, 0, 64);
    let died = || Seen::Died { message: "signal 9".to_owned() };
    for _ in 0..RESTARTS_MAX {
        fleet.observe(1, died()).unwrap();
        fleet.bind(1, 0).unwrap();
        fleet.observe(1, Seen::Running { pid: None, vnc: None }).unwrap();
    }
    fleet.now += STEADY_RUN_MS;
    fleet.observe(1, died()).unwrap();
    for round in 1..=RESTARTS_MAX {
        let status = &fleet.state.vm(vm_id(1)).unwrap().status;
        assert_eq!((status.phase, status.restarts), (VmPhase::Pending, round));
        fleet.bind(1, 0).unwrap();
        fleet.observe(1, died()).unwrap();
    }
    let status = &fleet.state.vm(vm_id(1)).unwrap().status;
    assert_eq!((status.phase, status.reason.as_str()), (VmPhase::Failed, "CrashLoop"));
    fleet.write_ok(Write::SetPower { uid: vm_id(1), power: Power::Running });
    assert_eq!(fleet.state.vm(vm_id(1)).unwrap().status.phase, VmPhase::Pending);
}

/// A migration from its plan to the hand-over, back again, and what is refused on the way. No number is used twice.
#[test]
fn a_migration_hands_over_and_back() {
    let mut fleet = Fleet::new(2);
    fleet.running(1, 0, 512);
    says(
        &fleet.write_refused(Fleet::migration(1, 1, Some("h0"))),
        ErrorCode::WrongState,
        "on host h0 already",
    );
    says(&fleet.write_refused(Fleet::migration(1, 1, Some("h11"))), ErrorCode::NotFound, "did you mean h1");
    fleet.write_ok(Fleet::migration(1, 1, None));
    says(
        &fleet.write_refused(Fleet::migration(2, 1, None)),
        ErrorCode::WrongState,
        "migrated already, by m1",
    );
    let vm = fleet.state.vm(vm_id(1)).unwrap().clone();
    let reserve = |host| MigrationEvent::Reserve {
        host: host_id(host),
        vm_generation: vm.metadata.generation,
        vm_incarnation: vm.status.incarnation,
        why: None,
        disk_bytes: Default::default(),
    };
    says(&fleet.refused(&migrate(1, reserve(0))), ErrorCode::WrongState, "on that host already");
    fleet.ok(&migrate(1, reserve(1)));
    let figures = MigrationFigures::default();
    says(
        &fleet.refused(&migrate(1, MigrationEvent::HandOver { figures })),
        ErrorCode::WrongState,
        "Reserved",
    );
    fleet.ok(&migrate(1, MigrationEvent::Ready { endpoint: Endpoint::default() }));
    fleet.ok(&migrate(1, MigrationEvent::Started));
    fleet.ok(&migrate(1, MigrationEvent::HandOver { figures }));
    let status = fleet.state.vm(vm_id(1)).unwrap().status.clone();
    assert_eq!((status.host, status.incarnation), (Some(host_id(1)), Incarnation(2)));
    assert_eq!(
        fleet.state.host(host_id(0)).unwrap().status.reserved.mem_mib,
        512,
        "the source still holds its memory"
    );
    let cancel = fleet.write_refused(Write::CancelMigration { uid: migration_id(1) });
    says(&cancel, ErrorCode::WrongState, "handed the guest over already");
    let (reason, message) = ("SendFailed".to_owned(), "broken pipe".to_owned());
    fleet.ok(&migrate(1, MigrationEvent::HandBack { reason, message }));
    let status = fleet.state.vm(vm_id(1)).unwrap().status.clone();
    assert_eq!(status.host, Some(host_id(0)));
    assert_eq!((status.incarnation, status.continues), (Incarnation(3), Some(Incarnation(1))));
    fleet.ok(&migrate(1, MigrationEvent::Cleaned { outcome: MigrationOutcome::HandedBack }));
    fleet.write_ok(Fleet::migration(2, 1, None));
    let vm = fleet.state.vm(vm_id(1)).unwrap().clone();
    let event = MigrationEvent::Reserve {
        host: host_id(1),
        vm_generation: vm.metadata.generation,
        vm_incarnation: vm.status.incarnation,
        why: None,
        disk_bytes: Default::default(),
    };
    fleet.ok(&migrate(2, event));
    assert_eq!(fleet.state.migration(migration_id(2)).unwrap().status.incarnation, Incarnation(4));
    // Stopping the VM calls the migration off, and from then on it cannot be handed over.
    fleet.write_ok(Write::SetPower { uid: vm_id(1), power: Power::Stopped });
    assert!(fleet.state.migration(migration_id(2)).unwrap().status.cancel);
}

/// A forced removal of the destination is the admin's word that nothing runs there: the source gets its guest back.
#[test]
fn a_removed_destination_hands_back() {
    let mut fleet = Fleet::new(2);
    fleet.running(1, 0, 512);
    fleet.write_ok(Fleet::migration(1, 1, None));
    let vm = fleet.state.vm(vm_id(1)).unwrap().clone();
    let reserve = MigrationEvent::Reserve {
        host: host_id(1),
        vm_generation: vm.metadata.generation,
        vm_incarnation: vm.status.incarnation,
        why: None,
        disk_bytes: Default::default(),
    };
    fleet.ok(&migrate(1, reserve));
    fleet.ok(&migrate(1, MigrationEvent::Ready { endpoint: Endpoint::default() }));
    fleet.ok(&migrate(1, MigrationEvent::Started));
    fleet.ok(&migrate(1, MigrationEvent::HandOver { figures: MigrationFigures::default() }));
    let removed = fleet.write_ok(Write::RemoveHost { uid: host_id(1), force: true });
    assert_eq!(removed.object.unwrap().name().as_str(), "h1");
    assert_eq!(fleet.state.migration(migration_id(1)).unwrap().status.phase, MigrationPhase::Aborting);
    assert_eq!(fleet.state.vm(vm_id(1)).unwrap().status.host, Some(host_id(0)));
}

/// A snapshot that was cut off, altered or written by a newer program is refused.
#[test]
fn a_broken_snapshot_is_refused() {
    let mut fleet = Fleet::new(2);
    fleet.running(1, 0, 64);
    let mut bytes = Vec::new();
    snapshot::encode(&fleet.state, &mut bytes).unwrap();
    assert_eq!(snapshot::decode(&mut bytes.as_slice()).unwrap(), fleet.state);
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for cut in 0..lines.len() {
        let short: Vec<u8> = lines[..cut].concat();
        assert!(snapshot::decode(&mut short.as_slice()).is_err(), "cut after line {cut}");
        if cut > 0 && cut < lines.len() - 1 {
            let holed: Vec<u8> = [&lines[..cut], &lines[cut + 1..]].concat().concat();
            assert!(snapshot::decode(&mut holed.as_slice()).is_err(), "without line {cut}");
        }
    }
    let as_version = |version: u32| {
        let own = format!("\"version\":{}", snapshot::VERSION);
        let text =
            String::from_utf8(bytes.clone()).unwrap().replacen(&own, &format!("\"version\":{version}"), 1);
        snapshot::decode(&mut text.as_bytes())
    };
    (1..=snapshot::VERSION).for_each(|known| drop(as_version(known).unwrap()));
    let newer = snapshot::VERSION + 1;
    let refused = as_version(newer).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("the snapshot has version {newer}; this program reads up to {}", snapshot::VERSION)
    );
}
