//! Random sequences of commands, drawn towards the state as it is so that they get deep.

use std::collections::BTreeMap;

use dunlin_model::event::Event;
use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationOutcome, MigrationPhase};
use dunlin_model::task::{Act, TaskPhase, TaskSpec};
use dunlin_model::vm::device::{Disk, DiskBus, DiskFormat, DiskSource};
use dunlin_model::vm::{Power, Rule, SavedState, Scope, VmSpec, Wants};
use dunlin_model::{Incarnation, Kind, Labels, Level, Revision, Role, TaskId, Timestamp};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Fleet, host_id, join, migration_id, open, vm_id};
use crate::command::{Command, MigrationEvent, Seen, Write};
use crate::owners::Claim;
use crate::{State, snapshot};

type Draw = (u8, u8, u8);

fn power(pick: u8) -> Power {
    [Power::Running, Power::Paused, Power::Stopped][usize::from(pick) % 3]
}

fn label(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into()
}

/// Every third VM belongs to the app.
fn labels(pick: u8) -> Labels {
    if pick.is_multiple_of(3) { label("app", "x") } else { Labels::new() }
}

fn spec(pick: u8) -> VmSpec {
    let mut spec = VmSpec { power: power(pick), ..VmSpec::new(64 + 100 * u64::from(pick % 5)) };
    if pick.is_multiple_of(5) {
        let over = if pick.is_multiple_of(10) { Scope::Host } else { Scope::Rack };
        spec.placement.rules.push(Rule { wants: Wants::Apart, with: label("app", "x"), over, weight: None });
    }
    if pick.is_multiple_of(2) {
        spec.disks.push(Disk {
            name: "vda".parse().unwrap(),
            bus: DiskBus::Virtio,
            format: DiskFormat::Raw,
            source: DiskSource::EmptyMib(1),
            shared: false,
            read_only: false,
        });
    }
    spec
}

fn seen(pick: u8, other: u8) -> Seen {
    let message = "m".to_owned();
    match pick % 20 {
        0..=2 | 9..=19 => Seen::Running { pid: Some(u32::from(other)), vnc: None },
        3 => Seen::Paused { pid: None, vnc: None },
        4 => Seen::PoweredOff,
        5 => Seen::Stopped,
        6 => Seen::Saved(SavedState {
            host: host_id(u64::from(other % 3)),
            path: "/s".to_owned(),
            size_bytes: 1,
        }),
        7 => Seen::Died { message },
        _ => Seen::Refused { message },
    }
}

fn event(state: &State, number: u64, pick: u8, other: u8) -> MigrationEvent {
    let (reason, message) = ("R".to_owned(), "m".to_owned());
    let figures = MigrationFigures::default();
    let migration = state.migration(migration_id(number));
    let vm = migration.and_then(|m| state.vm(m.spec.vm));
    // Mostly the step forward, so that the far phases are reached.
    let forward = match migration.map(|m| m.status.phase) {
        Some(MigrationPhase::Planned) => 0,
        Some(MigrationPhase::Reserved) => 4,
        Some(MigrationPhase::Prepared) => 6,
        Some(MigrationPhase::Copying) => 7,
        Some(MigrationPhase::Switching) => 9 + other % 2,
        _ => 11,
    };
    match if pick < 160 { forward } else { pick % 12 } {
        0..=2 => MigrationEvent::Reserve {
            host: host_id(u64::from(other % 3)),
            vm_generation: vm.map(|vm| vm.metadata.generation).unwrap_or_default(),
            vm_incarnation: vm.map(|vm| vm.status.incarnation).unwrap_or_default(),
            why: None,
            disk_bytes: Default::default(),
        },
        3 => MigrationEvent::Wait { reason, message },
        4 | 5 => MigrationEvent::Ready { endpoint: Endpoint::default() },
        6 => MigrationEvent::Started,
        7 | 8 => MigrationEvent::HandOver { figures },
        9 => MigrationEvent::HandBack { reason, message },
        10 => {
            let outcome = if (other / 2).is_multiple_of(2) {
                MigrationOutcome::Moved
            } else {
                MigrationOutcome::Restarted
            };
            MigrationEvent::Arrived { figures, outcome }
        }
        _ if other.is_multiple_of(2) => MigrationEvent::Abort { reason, message },
        _ => MigrationEvent::Cleaned { outcome: MigrationOutcome::StayedOnSource },
    }
}

/// The write, sometimes applied by one of two managers who own some of the fields.
fn write(fleet: &Fleet, draw: Draw, pick: u8) -> Write {
    let write = plain_write(fleet, draw, pick);
    let (_, a, b) = draw;
    if !matches!(write, Write::CreateVm { .. } | Write::UpdateVm { .. }) || b % 3 == 0 {
        return write;
    }
    let fields = ["/spec/mem_mib", "/spec/power", "/spec/disks", "/metadata/labels/app"];
    let claim = Some(Claim {
        manager: if a.is_multiple_of(2) { "even".to_owned() } else { "odd".to_owned() },
        fields: fields.iter().skip(usize::from(b) % 5).map(|field| (*field).to_owned()).collect(),
        force: b.is_multiple_of(2),
    });
    Write::Checked { expect: None, claim, asked: String::new(), write: Box::new(write) }
}

fn plain_write(fleet: &Fleet, (_, a, b): Draw, pick: u8) -> Write {
    let vm = u64::from(a % 4);
    let host = host_id(u64::from(a % 3));
    match pick {
        0 => Write::CreateVm {
            uid: vm_id(vm),
            own_uid: b % 2 == 0,
            name: format!("vm{vm}").parse().unwrap(),
            labels: labels(b),
            spec: spec(b),
        },
        1 => Write::SetPower { uid: vm_id(vm), power: power(b) },
        2 => Write::DeleteVm { uid: vm_id(vm) },
        3 => Fleet::migration(100 + fleet.index, vm, None),
        4 => {
            let any = fleet.state.active_migrations().next().map(|m| m.metadata.uid);
            Write::CancelMigration { uid: any.unwrap_or(migration_id(u64::from(b))) }
        }
        5 => {
            let revision = fleet.state.vm(vm_id(vm)).map(|vm| vm.metadata.revision).unwrap_or_default();
            Write::UpdateVm { uid: vm_id(vm), revision, labels: labels(b), spec: spec(b) }
        }
        // Removed hosts come back with a token, else soon none would be left.
        6 if fleet.state.host(host).is_none() || b > 40 => Write::CreateToken {
            sha256: "again".to_owned(),
            role: Role::Host,
            expires: Timestamp(fleet.now + 60_000),
        },
        6 => Write::RemoveHost { uid: host, force: b.is_multiple_of(2) },
        7 => {
            let acts = [Act::Save, Act::Reset, Act::Shutdown { timeout_s: 1 }, Act::Drain];
            let act = acts[usize::from(b) % 4].clone();
            let (kind, uid) = if act == Act::Drain { (Kind::Host, host.0) } else { (Kind::Vm, vm_id(vm).0) };
            let spec = TaskSpec { act, kind, uid, name: "x".parse().unwrap() };
            let uid = TaskId(Uuid::from_u64_pair(4, fleet.index));
            Write::CreateTask { uid, name: format!("t{}", fleet.index).parse().unwrap(), spec }
        }
        _ => {
            let revision = fleet.state.host(host).map(|host| host.metadata.revision).unwrap_or_default();
            Write::UpdateHost {
                uid: host,
                revision,
                labels: Labels::new(),
                cordoned: b.is_multiple_of(8),
                rack: Some(["r0", "r1"][usize::from(b) % 2].parse().unwrap()),
                zone: None,
                taints: if b.is_multiple_of(16) { label("odd", "yes") } else { Labels::new() },
                resources: if b % 5 == 0 {
                    BTreeMap::from([("device/gpu".to_owned(), 1)])
                } else {
                    BTreeMap::new()
                },
            }
        }
    }
}

fn command(fleet: &Fleet, draw: Draw) -> Command {
    let (pick, a, b) = draw;
    let (vm, host) = (vm_id(u64::from(a % 4)), host_id(u64::from(b % 3)));
    let known = fleet.state.vm(vm);
    let incarnation = known.map(|vm| vm.status.incarnation).unwrap_or_default();
    let generation = known.map(|vm| vm.metadata.generation).unwrap_or_default();
    // What is under way gets a third of all commands, so that some of it comes to an end.
    if let Some(migration) = fleet.state.active_migrations().next().filter(|_| pick > 170) {
        let id = migration.metadata.uid;
        let event = event(&fleet.state, id.0.as_u64_pair().1, a, b);
        return Command::Migrate { migration: id, event };
    }
    match pick % 32 {
        pick @ 0..=8 => Command::Write { key: format!("k{}", fleet.index), write: write(fleet, draw, pick) },
        9..=12 => Command::BindVm { vm, generation, incarnation, host, why: None },
        13..=18 => {
            let host = known.and_then(|vm| vm.status.host).unwrap_or(host);
            Command::Observe { vm, host, incarnation, seen: seen(b, a) }
        }
        19 => Command::ForgetVm { vm },
        20..=26 => {
            let any = fleet.state.active_migrations().next().map(|m| m.metadata.uid.0.as_u64_pair().1);
            let number = any.filter(|_| !a.is_multiple_of(8)).unwrap_or(u64::from(a % 4));
            Command::Migrate { migration: migration_id(number), event: event(&fleet.state, number, b, a / 4) }
        }
        27 if b < 40 => {
            let session = fleet.state.host(host).map_or(1, |host| host.status.session);
            Command::CloseSession { host, session, message: "gone".to_owned() }
        }
        28 if fleet.state.host(host).is_none() => join(u64::from(b % 3), "again", "secret"),
        27 | 28 => {
            let session = fleet.state.host(host).map_or(1, |host| host.status.session);
            open(u64::from(b % 3), session + 1)
        }
        29 => {
            let task = fleet.state.active_tasks().next().map(|task| task.metadata.uid);
            let phase = [TaskPhase::Running, TaskPhase::Succeeded, TaskPhase::Cancelled][usize::from(b) % 3];
            let task = task.unwrap_or(TaskId(Uuid::nil()));
            Command::Progress {
                task,
                phase,
                progress_percent: b.into(),
                message: "m".to_owned(),
                drain: None,
            }
        }
        31 if a < 40 => Command::RaiseLevel { to: Level(u32::from(b % 3)) },
        30 => Command::Observe { vm, host, incarnation: Incarnation(u64::from(a)), seen: seen(b, a) },
        _ => Command::Sweep,
    }
}

/// What a watcher that follows the changes ends up with.
fn replay(state: &State, from: Revision, base: &State) -> BTreeMap<(Kind, Uuid), Revision> {
    let mut objects: BTreeMap<(Kind, Uuid), Revision> =
        base.objects.iter().map(|(key, object)| (*key, object.revision())).collect();
    let mut last = from;
    for change in state.changes_after(from).unwrap() {
        assert!(change.revision >= last, "changes are out of order");
        last = change.revision;
        let key = (change.object.kind(), change.object.uid());
        if change.deleted {
            objects.remove(&key);
        } else {
            objects.insert(key, change.object.revision());
        }
    }
    objects
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any commands the invariants hold (checked inside), a refused one left no trace, a state that was written and
    /// read back midway goes on exactly as the one that was not, and a watcher sees every change.
    #[test]
    fn any_commands_keep_the_invariants(draws in proptest::collection::vec(any::<Draw>(), 1..160), cut in 0_usize..160) {
        // Half of them begin at the oldest level, and may be raised on the way.
        let mut fleet = Fleet::at(if cut % 2 == 0 { Level::OLDEST } else { Level::NEWEST }, 3);
        let mut restored = None;
        let start = fleet.state.clone();
        for (number, draw) in draws.into_iter().enumerate() {
            if number == cut {
                let mut bytes = Vec::new();
                snapshot::encode(&fleet.state, &mut bytes).unwrap();
                let state = snapshot::decode(&mut bytes.as_slice()).unwrap();
                prop_assert_eq!(&state, &fleet.state);
                restored = Some(Fleet { state, ..fleet.clone() });
            }
            fleet.now += 1_000;
            let command = command(&fleet, draw);
            let before = fleet.state.revision();
            let result = fleet.try_apply(&command);
            let raised = fleet.state.revision().0 - before.0;
            prop_assert!(raised <= 1);
            let changed = fleet.state.changes_after(before).unwrap().count();
            prop_assert_eq!(raised == 1, changed > 0);
            if let Some(other) = &mut restored {
                other.now = fleet.now;
                prop_assert_eq!(other.try_apply(&command), result);
                prop_assert_eq!(&other.state, &fleet.state);
            }
        }
        let seen = replay(&fleet.state, start.revision(), &start);
        let is: BTreeMap<_, _> = fleet.state.objects.iter().map(|(key, object)| (*key, object.revision())).collect();
        prop_assert_eq!(seen, is);
    }
}

/// Random commands reach every phase: a property over sequences that never get anywhere would prove nothing.
#[test]
fn the_random_commands_get_everywhere() {
    let mut reasons = std::collections::BTreeSet::new();
    for seed in 0..100_u64 {
        let mut fleet = Fleet::new(3);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..300 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let [.., c, b, a] = random.to_le_bytes();
            fleet.now += 1_000;
            let command = command(&fleet, (a, b, c));
            let _ = fleet.try_apply(&command);
        }
        reasons.extend(fleet.state.all::<Event>().map(|event| event.spec.reason.clone()));
        assert!(fleet.state.time() >= Timestamp(1));
    }
    for reason in [
        "VmCreated",
        "VmScheduled",
        "VmStarted",
        "VmPaused",
        "VmResumed",
        "VmPoweredOff",
        "VmStopped",
        "VmSaved",
        "VmStartRefused",
        "VmCrashed",
        "VmDeleting",
        "VmDeleted",
        "VmLost",
        "HostUp",
        "HostDown",
        "HostRemoved",
        "HostCordoned",
        "MigrationPlanned",
        "MigrationReserved",
        "MigrationHandedOver",
        "MigrationDone",
        "MigrationAborting",
        "MigrationAborted",
        "MigrationRestarted",
        "TaskQueued",
        "TaskSucceeded",
        "TaskCancelled",
    ] {
        assert!(reasons.contains(reason), "{reason} never happened, only {reasons:?}");
    }
}
