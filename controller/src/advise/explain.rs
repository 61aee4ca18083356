//! Why something is as it is, and what would have to change.

use dunlin_model::advice::{Explanation, HOSTS_MAX, HostVerdict, PlannedMove};
use dunlin_model::decision::{Effect, Grounds, MoveCost};
use dunlin_model::host::{Host, HostPhase};
use dunlin_model::migration::{Migration, MigrationCause, MigrationPhase};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{Kind, Name};
use dunlin_scheduler::explain::remedies;
use dunlin_scheduler::make_room::{Bounds, RoomMove, make_room};
use dunlin_scheduler::place::Placer;
use dunlin_scheduler::score::{Weights, score};
use dunlin_scheduler::spare::TRIES_MAX;
use dunlin_scheduler::{Reason, Request, Seat, Snapshot, place_with_spare, why_not, why_not_spare};

use super::Scene;
use super::facts::{count, cpus, effect, load};
use super::plans::drain_plan;
use crate::reconcile::record;

/// Hosts told of that lack least: a few are enough to act on.
const REMEDIES_MAX: usize = 5;

fn empty(scene: &Scene<'_>, kind: Kind, name: &Name) -> Explanation {
    Explanation {
        kind,
        name: name.clone(),
        revision: scene.state.revision(),
        facts: Vec::new(),
        decided: None,
        now: None,
        hosts: Vec::new(),
        would_help: Vec::new(),
        make_room: Vec::new(),
    }
}

/// Why a VM is where it is, or waits; of one that is yet to be created, where it would go.
pub(crate) fn explain_vm(scene: &Scene<'_>, vm: &Vm) -> Explanation {
    let mut told = empty(scene, Kind::Vm, &vm.metadata.name);
    told.facts = vm_facts(scene, vm);
    let migration = last_move(scene, vm);
    told.decided = migration.and_then(|m| m.status.chosen.clone()).or_else(|| vm.status.chosen.clone());
    let mut snapshot = scene.mirror();
    let request = snapshot.start(vm);
    decide(&mut snapshot, &request, &mut told);
    told
}

fn decide(snapshot: &mut Snapshot, request: &Request, told: &mut Explanation) {
    told.now = Some(record::of(&place_with_spare(snapshot, request)));
    if told.now.as_ref().is_some_and(|now| now.winner.is_none()) {
        told.would_help = would_help(snapshot, request);
        told.make_room = way_in(snapshot, request);
    }
    let weights = Weights::from(&snapshot.policy);
    let verdicts = snapshot.hosts().map(|(at, row)| match why_not(snapshot, request, at) {
        Some(no) => {
            let text = no.left.map_or(no.text.clone(), |(left, unit)| format!("{}{left}{unit})", no.text));
            let text = text.replace("most free", "free");
            HostVerdict {
                host: row.name.clone(),
                fits: false,
                score: 0,
                reason: format!("{:?}", no.reason),
                text,
            }
        }
        None => {
            let score = i64::try_from(score(snapshot, &weights, request, at)).unwrap_or(i64::MAX);
            HostVerdict {
                host: row.name.clone(),
                fits: true,
                score,
                reason: String::new(),
                text: String::new(),
            }
        }
    });
    told.hosts = verdicts.collect();
    let best_first = |a: &HostVerdict, b: &HostVerdict| {
        (b.fits, b.score).cmp(&(a.fits, a.score)).then(a.host.cmp(&b.host))
    };
    told.hosts.sort_by(best_first);
    told.hosts.truncate(HOSTS_MAX);
    // Room kept for failures is asked of the best, as the decision does.
    for verdict in told.hosts.iter_mut().filter(|verdict| verdict.fits).take(TRIES_MAX) {
        let host = snapshot.host_named(&verdict.host);
        if let Some(text) = host.and_then(|host| why_not_spare(snapshot, request, host)) {
            (verdict.fits, verdict.score) = (false, 0);
            (verdict.reason, verdict.text) = (format!("{:?}", Reason::SpareHosts), text);
        }
    }
    told.hosts.sort_by(best_first);
}

/// What would have to change, on the hosts that lack least.
fn would_help(snapshot: &Snapshot, request: &Request) -> Vec<String> {
    let found = remedies(snapshot, request, REMEDIES_MAX).into_iter();
    found
        .map(|remedy| format!("host {} without this: {}", snapshot.host(remedy.host).name, remedy.text))
        .collect()
}

/// Moves of others that would let it in.
fn way_in(snapshot: &mut Snapshot, request: &Request) -> Vec<PlannedMove> {
    let Some(plan) = make_room(snapshot, &mut Placer::new(), request, &Bounds::default()) else {
        return Vec::new();
    };
    let name = |seat: Seat| snapshot.host(seat.host).name.clone();
    let planned = |step: &RoomMove| {
        let row = snapshot.vm(step.vm);
        let size = snapshot.profile(row.profile).amounts.mem_mib + row.local_disk_mib;
        let reason = format!("makes way on {}", name(step.from));
        let cost = MoveCost { send_mib: size, ..MoveCost::default() };
        PlannedMove {
            wave: step.wave,
            vm: row.name.clone(),
            from: name(step.from),
            to: name(step.to),
            grounds: Grounds { reason, predicted: Effect::default(), cost },
        }
    };
    plan.moves.iter().map(planned).collect()
}

fn vm_facts(scene: &Scene<'_>, vm: &Vm) -> Vec<String> {
    let mut facts = Vec::new();
    let asks = format!("asks for {} and {} MiB", count(vm.spec.cpus.into(), "vCPU"), vm.spec.mem_mib);
    match (&vm.status.host_name, vm.status.phase) {
        (Some(host), phase) => facts.push(format!("is {phase} on host {host}; {asks}")),
        (None, _) if scene.state.vm(vm.metadata.uid).is_none() => facts.push(format!("would be new; {asks}")),
        (None, phase) => facts.push(format!("is {phase}; {asks}")),
    }
    if !vm.status.message.is_empty() {
        facts.push(vm.status.message.clone());
    }
    if let VmPhase::Running | VmPhase::Paused = vm.status.phase {
        let loads = scene.observed.loads();
        facts.push(load(loads.of(vm.metadata.uid).as_ref(), scene.now));
        facts.extend(
            loads.doubt(vm.metadata.uid).map(|doubt| format!("was last measured in vain: {doubt:?}")),
        );
    }
    if let Some(migration) = last_move(scene, vm) {
        let why = migration.spec.grounds.as_ref().map(|grounds| format!(": {}", grounds.reason));
        facts.push(format!(
            "came here by migration {} ({}){}",
            migration.metadata.name,
            cause(migration),
            why.unwrap_or_default()
        ));
    }
    facts.extend(vm.spec.placement.rules.iter().map(|rule| match rule.weight {
        None => format!("is to be {rule}"),
        Some(weight) => format!("would like to be {rule}, with weight {weight}"),
    }));
    facts
}

const fn cause(migration: &Migration) -> &'static str {
    match migration.spec.cause {
        MigrationCause::User => "somebody asked",
        MigrationCause::Drain => "its host was drained",
        MigrationCause::Balance => "to level the load",
    }
}

/// The migration that brought it to the host it is on.
fn last_move<'a>(scene: &Scene<'a>, vm: &Vm) -> Option<&'a Migration> {
    let came = scene.state.migrations().filter(|m| {
        m.spec.vm == vm.metadata.uid
            && m.status.phase == MigrationPhase::Done
            && m.status.to == vm.status.host
    });
    let last = came.max_by_key(|m| m.status.history.last().map(|(_, at)| *at))?;
    (last.status.incarnation == vm.status.incarnation).then_some(last)
}

/// What a host has promised, carries, and takes.
pub(crate) fn explain_host(scene: &Scene<'_>, host: &Host) -> Explanation {
    let mut told = empty(scene, Kind::Host, &host.metadata.name);
    let snapshot = scene.mirror();
    let state = match (host.status.phase, host.spec.cordoned) {
        (HostPhase::Up, false) => "is Up and takes VMs".to_owned(),
        (HostPhase::Up, true) => "is Up and cordoned: it takes no new VM".to_owned(),
        (phase, _) => format!("is {phase:?}: it takes no VM"),
    };
    told.facts.push(state);
    if let Some(at) = snapshot.find_host(host.metadata.uid) {
        told.facts.extend(room_facts(&snapshot, at));
    }
    told.facts.push(carried(scene, host));
    told.facts.extend(place_facts(host));
    told.facts.extend(host.spec.resources.iter().map(|(resource, has)| {
        let taken = dunlin_state::reserve::taken(scene.state, host.metadata.uid, resource);
        format!("has {has} of {resource}, of which {taken} are taken")
    }));
    told.facts.push(leaving(scene, host));
    for migration in scene.state.host_migrations(host.metadata.uid) {
        let status = &migration.status;
        let to = status.to_name.as_ref().map_or("a host yet to be found".to_owned(), ToString::to_string);
        let (vm, phase, why) = (&migration.spec.vm_name, status.phase, cause(migration));
        told.facts.push(format!("VM {vm} is on its way to {to} ({phase}; {why})"));
    }
    for task in scene.state.active_tasks().filter(|task| task.spec.uid == host.metadata.uid.0) {
        told.facts.push(format!("{} {}: {}", task.spec.act.as_str(), task.status.phase, task.status.message));
    }
    told
}

fn room_facts(snapshot: &Snapshot, at: dunlin_scheduler::HostIdx) -> Vec<String> {
    let (row, room) = (snapshot.host(at), snapshot.room(at));
    let vcpus = |milli: u64| milli / 1_000;
    vec![
        format!(
            "of {} CPUs it may promise {} vCPUs: {} are promised, {} are left",
            vcpus(row.physical.cpu_milli),
            vcpus(row.total.cpu_milli),
            vcpus(room.used.cpu_milli),
            vcpus(room.free.cpu_milli)
        ),
        format!(
            "of {} MiB it may promise {} MiB: {} are promised, {} are left",
            row.physical.mem_mib, row.total.mem_mib, room.used.mem_mib, room.free.mem_mib
        ),
    ]
}

fn carried(scene: &Scene<'_>, host: &Host) -> String {
    let uid = host.metadata.uid;
    let (mut vms, mut measured, mut wanted) = (0, 0, 0);
    for vm in scene.state.host_vms(uid) {
        vms += 1;
        if let Some(load) = scene.observed.loads().of(vm.metadata.uid) {
            measured += 1;
            wanted += load.cpu_mean_milli;
        }
    }
    let has = host.status.capabilities.cpus;
    let vms = count(vms, "VM");
    format!("carries {vms}, of which {measured} are measured: they want {} of its {has} CPUs", cpus(wanted))
}

/// Could it be emptied now?
fn leaving(scene: &Scene<'_>, host: &Host) -> String {
    let plan = drain_plan(scene, &[host]);
    let waves = plan.moves.iter().map(|found| found.wave).max().unwrap_or(0);
    let movable = plan.moves.len() as u64;
    match plan.misfits.first() {
        None if movable == plan.vms => {
            let (vms, waves) = (count(movable, "VM"), count(waves.into(), "wave"));
            format!("could be emptied now: {vms} in {waves}, in about {} s", plan.total_ms.div_ceil(1_000))
        }
        None => format!(
            "could not be emptied now: {} of {} cannot move",
            plan.vms - movable,
            count(plan.vms, "VM")
        ),
        Some(first) => format!("could not be emptied now: VM {}: {}", first.vm, first.text),
    }
}

fn place_facts(host: &Host) -> Vec<String> {
    let named =
        |what: &str, name: &Option<Name>| name.as_ref().map(|name| format!("stands in {what} {name}"));
    let taint = |(key, value): (&String, &String)| format!("refuses VMs that do not tolerate {key}={value}");
    let places = [named("rack", &host.spec.rack), named("zone", &host.spec.zone)];
    places.into_iter().flatten().chain(host.spec.taints.iter().map(taint)).collect()
}

/// What a migration is for, why it goes where it goes, and what came of it.
pub(crate) fn explain_migration(scene: &Scene<'_>, migration: &Migration) -> Explanation {
    let mut told = empty(scene, Kind::Migration, &migration.metadata.name);
    let (spec, status) = (&migration.spec, &migration.status);
    let name =
        |name: &Option<Name>| name.as_ref().map_or("a host yet to be found".to_owned(), ToString::to_string);
    let (from, to, why) = (name(&status.from_name), name(&status.to_name), cause(migration));
    told.facts.push(format!("takes VM {} from {from} to {to}: {why}", spec.vm_name));
    if let Some(grounds) = &spec.grounds {
        told.facts.push(grounds.reason.clone());
        told.facts.push(format!("predicted: {}", effect(&grounds.predicted)));
        let cost = &grounds.cost;
        told.facts.push(format!(
            "expected to send {} MiB in {} ms, with the guest standing still for {} ms",
            cost.send_mib, cost.total_ms, cost.downtime_ms
        ));
        told.facts.push(status.effect.as_ref().map_or_else(
            || {
                let settle_min = dunlin_scheduler::history::SETTLE_MS / 60_000;
                format!("its effect is measured {settle_min} min after its end")
            },
            |observed| format!("observed: {}", effect(observed)),
        ));
    }
    if let Some(figures) = &status.figures {
        told.facts.push(format!(
            "sent {} MiB in {} ms; the guest stood still for {} ms",
            (figures.transferred_bytes + figures.disk_bytes) >> 20,
            figures.total_ms,
            figures.downtime_ms
        ));
    }
    let phase = format!("is {}", status.phase);
    told.facts.push(if status.message.is_empty() { phase } else { format!("{phase}: {}", status.message) });
    told.decided.clone_from(&status.chosen);
    if let (MigrationPhase::Planned, Some(vm)) = (status.phase, scene.state.vm(spec.vm))
        && let Some(from) = status.from
    {
        let mut snapshot = scene.mirror();
        let request = snapshot.migrate(vm, from, spec.to.as_ref());
        decide(&mut snapshot, &request, &mut told);
    }
    told
}
