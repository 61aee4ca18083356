//! Planners that look at different moments: what they decide together must hold all the same.

use std::collections::BTreeMap;

use dunlin_model::decision::{Decision, Effect, Grounds, MoveCost};
use dunlin_model::host::same_place;
use dunlin_model::recommendation::{RecommendationPhase, RecommendationSpec};
use dunlin_model::task::{Act, TaskPhase, TaskSpec};
use dunlin_model::vm::{Power, Rule, Scope, VmSpec, Wants};
use dunlin_model::{ErrorCode, Kind, Labels, RecommendationId, TaskId};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Fleet, host_id, migration_id, vm_id};
use crate::State;
use crate::command::{Command, MigrationEvent, Seen, Write};

const HOSTS: u64 = 4;
const VMS: u64 = 12;
/// Each host has one; every fourth VM takes it.
const LICENCE: &str = "licence/db";

fn label(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into()
}

/// VMs of which a host takes three at most; every third belongs to the app, and some of those keep apart from it.
fn fleet() -> Fleet {
    let mut fleet = Fleet::new(HOSTS);
    for number in 0..HOSTS {
        let host = fleet.state.host(host_id(number)).unwrap().clone();
        fleet.write_ok(Write::UpdateHost {
            uid: host_id(number),
            revision: host.metadata.revision,
            labels: Labels::new(),
            cordoned: false,
            rack: Some(format!("r{}", number / 2).parse().unwrap()),
            zone: None,
            taints: Labels::new(),
            resources: BTreeMap::from([(LICENCE.to_owned(), 1)]),
        });
    }
    for number in 0..VMS {
        let mut spec = VmSpec { power: Power::Running, ..VmSpec::new(300) };
        let app = number.is_multiple_of(3);
        if app && number.is_multiple_of(2) {
            let over = if number.is_multiple_of(4) { Scope::Rack } else { Scope::Host };
            spec.placement.rules =
                vec![Rule { wants: Wants::Apart, with: label("app", "x"), over, weight: None }];
        }
        if number % 4 == 1 {
            spec.placement.resources.insert(LICENCE.to_owned(), 1);
        }
        let labels = if app { label("app", "x") } else { Labels::new() };
        let name = format!("vm{number}").parse().unwrap();
        fleet.write_ok(Write::CreateVm { uid: vm_id(number), own_uid: false, name, labels, spec });
    }
    fleet
}

/// Hosts on which a VM holds a place.
fn places(state: &State, number: u64) -> Vec<dunlin_model::HostId> {
    let vm = state.vm(vm_id(number)).unwrap();
    let second = state.migration_of(vm).and_then(crate::reserve::migration_holds);
    crate::reserve::vm_holds(vm).into_iter().chain(second).collect()
}

fn check(state: &State) {
    for host in state.hosts() {
        let (reserved, caps) = (host.status.reserved, &host.status.capabilities);
        assert!(reserved.mem_mib <= caps.mem_mib - 256, "{} is oversold: {reserved:?}", host.metadata.name);
        assert!(
            reserved.cpus <= u64::from(caps.cpus) * 4,
            "{} is oversold: {reserved:?}",
            host.metadata.name
        );
        let holders = (0..VMS).filter(|number| {
            let takes = !state.vm(vm_id(*number)).unwrap().spec.placement.resources.is_empty();
            takes && places(state, *number).contains(&host.metadata.uid)
        });
        assert!(holders.count() <= 1, "{} has one licence", host.metadata.name);
    }
    for one in 0..VMS {
        let vm = state.vm(vm_id(one)).unwrap();
        for rule in &vm.spec.placement.rules {
            for other in (0..VMS).filter(|other| *other != one) {
                if !rule.is_about(&state.vm(vm_id(other)).unwrap().metadata.labels) {
                    continue;
                }
                for (a, b) in
                    places(state, one).iter().flat_map(|a| places(state, other).into_iter().map(|b| (*a, b)))
                {
                    let (a, b) = (state.host(a).unwrap(), state.host(b).unwrap());
                    assert!(!same_place(a, b, rule.over), "vm{one} and vm{other} share {:?}", rule.over);
                }
            }
        }
    }
}

/// What one planner proposes, on the state it looked at.
fn proposal(seen: &State, fleet: &Fleet, vm: u64, host: u64) -> Command {
    let known = seen.vm(vm_id(vm)).unwrap();
    let (generation, incarnation) = (known.metadata.generation, known.status.incarnation);
    match seen.migration_of(known) {
        Some(migration) => Command::Migrate {
            migration: migration.metadata.uid,
            event: MigrationEvent::Reserve {
                host: host_id(host),
                vm_generation: generation,
                vm_incarnation: incarnation,
                disk_bytes: Default::default(),
                why: Some(Box::default()),
            },
        },
        None if known.status.host.is_some() => {
            let number = 1_000 + fleet.index;
            Command::Write { key: format!("m{number}"), write: Fleet::migration(number, vm, None) }
        }
        None => Command::BindVm {
            vm: vm_id(vm),
            generation,
            incarnation,
            host: host_id(host),
            why: Some(Box::new(Decision { fitting: 1, ..Decision::default() })),
        },
    }
}

/// Plays proposals of two planners, each of whom looks at the fleet only now and then. Returns how many were refused
/// although the planner's own state would have taken them.
fn play(draws: &[(bool, bool, u8, u8)]) -> usize {
    let mut fleet = fleet();
    let mut seen = [fleet.state.clone(), fleet.state.clone()];
    let mut refused_late = 0;
    for (planner, look, vm, host) in draws {
        let at = usize::from(*planner);
        if *look {
            seen[at] = fleet.state.clone();
        }
        let command = proposal(&seen[at], &fleet, u64::from(*vm) % VMS, u64::from(*host) % HOSTS);
        let alone = Fleet { state: seen[at].clone(), ..fleet.clone() }.try_apply(&command).is_ok();
        let result = fleet.try_apply(&command);
        check(&fleet.state);
        refused_late += usize::from(alone && result.is_err());
        if let (Ok(_), Command::BindVm { .. }) = (&result, &command) {
            fleet.observe(u64::from(*vm) % VMS, Seen::Running { pid: None, vnc: None }).unwrap();
        }
    }
    refused_late
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// However old the states are that two planners decide on, no host is sold beyond what it has and no rule is broken.
    #[test]
    fn two_planners_never_oversell(draws in proptest::collection::vec(any::<(bool, bool, u8, u8)>(), 1..120)) {
        play(&draws);
    }
}

/// The property above is not empty: planners do collide, and the later one is refused.
#[test]
fn planners_collide() {
    let mut random = 7_u64;
    let draws = (0..400).map(|_| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let [.., a, b, c, d] = random.to_le_bytes();
        (a.is_multiple_of(2), b.is_multiple_of(8), c, d)
    });
    let draws: Vec<_> = draws.collect();
    assert!(play(&draws) > 5, "only {} collisions", play(&draws));
}

/// A drain gives back the cordon it took and no other, calls off what it began, and its progress keeps that.
#[test]
fn a_cancelled_drain_gives_the_host_back() {
    for cordoned in [false, true] {
        let mut fleet = Fleet::new(2);
        fleet.running(0, 0, 100);
        let host = fleet.state.host(host_id(0)).unwrap().clone();
        fleet.write_ok(Write::UpdateHost {
            uid: host_id(0),
            revision: host.metadata.revision,
            labels: Labels::new(),
            cordoned,
            rack: None,
            zone: None,
            taints: Labels::new(),
            resources: BTreeMap::new(),
        });
        let task = TaskId(Uuid::from_u128(9));
        let spec =
            TaskSpec { act: Act::Drain, kind: Kind::Host, uid: host_id(0).0, name: "h0".parse().unwrap() };
        fleet.write_ok(Write::CreateTask { uid: task, name: "t".parse().unwrap(), spec });
        let mut write = Fleet::migration(1, 0, Some("h1"));
        if let Write::CreateMigration { spec, .. } = &mut write {
            spec.cause = dunlin_model::migration::MigrationCause::Drain;
        }
        fleet.write_ok(write);
        let drain = Some(dunlin_model::task::DrainProgress { left: 1, ..Default::default() });
        let progress =
            |phase| Command::Progress { task, phase, progress_percent: 0, message: String::new(), drain };
        fleet.ok(&progress(TaskPhase::Running));
        assert!(fleet.state.host(host_id(0)).unwrap().spec.cordoned);
        fleet.write_ok(Write::CancelTask { uid: task });
        assert!(fleet.state.migration(migration_id(1)).unwrap().status.cancel, "it goes nowhere any more");
        fleet.ok(&progress(TaskPhase::Cancelled));
        assert_eq!(fleet.state.host(host_id(0)).unwrap().spec.cordoned, cordoned);
        let known = fleet.state.task(task).unwrap().status.drain.unwrap();
        assert_eq!((known.was_cordoned, known.left), (cordoned, 1));
    }
}

/// A recommendation becomes the migration it recommends, once; one whose VM has gone elsewhere does not; a dismissed or
/// expired one stays so.
#[test]
fn recommendations_are_decided_once() {
    let mut fleet = Fleet::new(3);
    fleet.running(0, 0, 100);
    fleet.running(1, 0, 100);
    let grounds = Grounds { reason: "r".to_owned(), predicted: Effect::default(), cost: MoveCost::default() };
    let recommend = |number: u64, vm: u64, from: u64| {
        let name = |number: u64| format!("h{number}").parse().unwrap();
        let spec = RecommendationSpec {
            vm: vm_id(vm),
            vm_name: format!("vm{vm}").parse().unwrap(),
            from: host_id(from),
            from_name: name(from),
            to: host_id(2),
            to_name: name(2),
            wave: 1,
            grounds: grounds.clone(),
        };
        let uid = RecommendationId(Uuid::from_u64_pair(5, number));
        Command::Recommend { uid, name: format!("r{number}").parse().unwrap(), spec: Box::new(spec) }
    };
    let decide = |number: u64, approve: bool| Write::DecideRecommendation {
        uid: RecommendationId(Uuid::from_u64_pair(5, number)),
        approve,
        migration: migration_id(number),
        name: format!("m{number}").parse().unwrap(),
    };
    assert_eq!(fleet.refused(&recommend(1, 0, 1)).code, ErrorCode::WrongState, "it is not on h1");
    fleet.ok(&recommend(1, 0, 0));
    assert_eq!(fleet.refused(&recommend(2, 0, 0)).code, ErrorCode::AlreadyExists);
    fleet.ok(&recommend(3, 1, 0));
    fleet.write_ok(decide(1, true));
    let migration = fleet.state.migration(migration_id(1)).unwrap();
    assert_eq!(migration.spec.grounds.as_ref(), Some(&grounds));
    assert_eq!(fleet.write_refused(decide(1, true)).code, ErrorCode::WrongState);
    fleet.write_ok(decide(3, false));
    assert_eq!(fleet.write_refused(decide(3, true)).code, ErrorCode::WrongState);
    let phase = |number: u64| {
        fleet.state.recommendation(RecommendationId(Uuid::from_u64_pair(5, number))).unwrap().status.phase
    };
    assert_eq!((phase(1), phase(3)), (RecommendationPhase::Approved, RecommendationPhase::Dismissed));
    let early = Command::NoteEffect { migration: migration_id(1), effect: Effect::default() };
    assert_eq!(fleet.refused(&early).code, ErrorCode::WrongState, "it is not over");
}

/// A taint keeps away whoever does not tolerate it, also where the planner did not know of it yet.
#[test]
fn taints_are_checked_at_the_commit() {
    let mut fleet = Fleet::new(1);
    let host = fleet.state.host(host_id(0)).unwrap().clone();
    fleet.write_ok(Write::UpdateHost {
        uid: host_id(0),
        revision: host.metadata.revision,
        labels: Labels::new(),
        cordoned: false,
        rack: None,
        zone: None,
        taints: label("gpu", "yes"),
        resources: BTreeMap::new(),
    });
    fleet.create(0, VmSpec { power: Power::Running, ..VmSpec::new(64) });
    assert!(fleet.bind(0, 0).unwrap_err().message.contains("gpu=yes"));
    let mut spec = VmSpec { power: Power::Running, ..VmSpec::new(64) };
    spec.placement.tolerates = label("gpu", "yes");
    fleet.create(1, spec);
    fleet.bind(1, 0).unwrap();
}
