//! What the leader does to level the load, within what the cluster allows.
//!
//! ```text
//! off         nothing; what is still recommended expires
//! recommend   plan -> a recommendation for each move; those that no plan wants any more expire
//! auto        plan -> migrations of its first wave; the next plan when they are over
//! ```
//! Every move keeps its grounds, and when it has had time to work, what came of it. Remembers nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::cluster::BalanceMode;
use dunlin_model::decision::Effect;
use dunlin_model::migration::{MigrationCause, MigrationLimits, MigrationPhase, MigrationSpec};
use dunlin_model::recommendation::{Recommendation, RecommendationPhase, RecommendationSpec};
use dunlin_model::{HostId, MigrationId, Name, RecommendationId, Timestamp, VmId};
use dunlin_scheduler::Snapshot;
use dunlin_scheduler::balance::{Ask, settle};
use dunlin_state::{Command, State, Write};

use super::drain::uid_of;
use super::levelling::{Asked, Grounded, all_milli, budgets, eagerness, grounded, history, plan};
use super::{Observed, mirror};

/// A recommendation stands at least so long before another takes its place, ms: people must be able to read it.
const STANDS_MS: u64 = 60_000;
/// A dismissed move is not recommended again for so long, ms.
const DISMISSED_MS: u64 = 3_600_000;
/// A move that has found no room for so long is called off, ms: the fleet it was planned for is another now.
const PLANNED_MAX_MS: u64 = 60_000;

/// Everything to propose now to level the load.
#[must_use]
pub fn balance(state: &State, observed: &Observed, now: Timestamp) -> Vec<Command> {
    let mut commands = Vec::new();
    let mode = state.cluster().map(|cluster| cluster.spec.balance.mode).unwrap_or_default();
    if mode == BalanceMode::Off && !wants_judgement(state) {
        expire_all(state, "balancing is off", &mut commands);
        return commands;
    }
    let snapshot = mirror::of(state, observed, now);
    judge(state, &snapshot, now, &mut commands);
    match mode {
        BalanceMode::Off => expire_all(state, "balancing is off", &mut commands),
        BalanceMode::Recommend => recommend(state, &snapshot, now, &mut commands),
        BalanceMode::Auto => {
            expire_all(state, "the balancer moves by itself now", &mut commands);
            carry_out(state, &snapshot, now, &mut commands);
        }
    }
    commands
}

fn wants_judgement(state: &State) -> bool {
    state.migrations().any(|m| {
        m.status.phase == MigrationPhase::Done && m.spec.grounds.is_some() && m.status.effect.is_none()
    })
}

/// Writes down what moves that have had time to work have brought.
fn judge(state: &State, snapshot: &Snapshot, now: Timestamp, commands: &mut Vec<Command>) {
    let mut known = history(state, now);
    if known.to_judge(now.0).next().is_none() {
        return;
    }
    let before = history(state, now);
    let ask = Ask { level: eagerness(state), budgets: budgets(state), ..Ask::new(&before) };
    settle(snapshot, &ask, &mut known);
    let pain = all_milli(&plan(state, snapshot, eagerness(state)).before);
    for made in known.made() {
        let Some(observed) = made.observed_milli else { continue };
        let migration = state.migrations().find(|m| {
            m.spec.vm == made.vm
                && m.status.effect.is_none()
                && m.status.to == Some(made.to)
                && m.status.history.last().is_some_and(|(_, at)| at.0 == made.at_ms)
        });
        if let Some(migration) = migration {
            let effect = brought(snapshot, made.vm, (made.from, made.to), pain, observed);
            commands.push(Command::NoteEffect { migration: migration.metadata.uid, effect });
        }
    }
}

/// The fleet as it would be with the VM back where it was, and as it is.
fn brought(snapshot: &Snapshot, vm: VmId, (from, to): (HostId, HostId), pain: u64, observed: u64) -> Effect {
    let after = Asked::of(snapshot);
    let mut before = after.clone();
    let load = snapshot.find_vm(vm).and_then(|vm| snapshot.vm(vm).load).unwrap_or_default();
    before.carry(load.cpu_mean_milli + load.cpu_unmet_milli, to, from);
    Effect {
        pain_before_milli: pain.saturating_add(observed),
        pain_after_milli: pain,
        from_percent_before: before.percent(from),
        from_percent_after: after.percent(from),
        to_percent_before: before.percent(to),
        to_percent_after: after.percent(to),
    }
}

fn expire_all(state: &State, why: &str, commands: &mut Vec<Command>) {
    commands.extend(state.open_recommendations().map(|found| expire(found, why)));
}

fn expire(found: &Recommendation, why: &str) -> Command {
    Command::Expire { recommendation: found.metadata.uid, message: why.to_owned() }
}

fn recommend(state: &State, snapshot: &Snapshot, now: Timestamp, commands: &mut Vec<Command>) {
    let plan = plan(state, snapshot, eagerness(state));
    let moves = grounded(snapshot, &plan);
    let wanted: BTreeMap<VmId, &Grounded> = moves.iter().map(|found| (found.planned.vm, found)).collect();
    let mut open = BTreeSet::new();
    for found in state.open_recommendations() {
        let spec = &found.spec;
        let here = state
            .vm(spec.vm)
            .is_some_and(|vm| vm.status.host == Some(spec.from) && vm.status.migration.is_none());
        let stands = now.millis_since(found.metadata.created) < STANDS_MS;
        let same = wanted.get(&spec.vm).is_some_and(|found| found.planned.to == spec.to);
        if !here {
            commands.push(expire(found, "the VM moves, or is elsewhere now"));
        } else if same || stands {
            open.insert(spec.vm);
        } else if moves.is_empty() {
            commands.push(expire(found, &plan.verdict()));
        } else {
            commands.push(expire(found, "another move has become the better one"));
        }
    }
    // While some stand that the plan knows nothing of, what it says beside them would be too much.
    let settled = open.iter().all(|vm| wanted.contains_key(vm));
    let fresh = wanted.values().filter(|found| settled && !open.contains(&found.planned.vm));
    commands.extend(
        fresh.filter(|found| !dismissed(state, found, now)).map(|found| recommendation(state, found)),
    );
}

/// Has somebody said no to this move lately?
fn dismissed(state: &State, found: &Grounded, now: Timestamp) -> bool {
    state.recommendations().any(|old| {
        old.status.phase == RecommendationPhase::Dismissed
            && (old.spec.vm, old.spec.to) == (found.planned.vm, found.planned.to)
            && now.millis_since(old.status.since) < DISMISSED_MS
    })
}

fn recommendation(state: &State, found: &Grounded) -> Command {
    let planned = &found.planned;
    let (uid, name) = named(state, "move", planned.vm, &planned.vm_name);
    let spec = RecommendationSpec {
        vm: planned.vm,
        vm_name: planned.vm_name.clone(),
        from: planned.from,
        from_name: planned.from_name.clone(),
        to: planned.to,
        to_name: planned.to_name.clone(),
        wave: found.wave,
        grounds: found.grounds.clone(),
    };
    Command::Recommend { uid: RecommendationId(uid), name, spec: Box::new(spec) }
}

/// One wave at a time: the next is planned on what the last has brought.
fn carry_out(state: &State, snapshot: &Snapshot, now: Timestamp, commands: &mut Vec<Command>) {
    let mut under_way = false;
    for migration in state.active_migrations().filter(|m| m.spec.cause == MigrationCause::Balance) {
        under_way = true;
        let waits = migration.status.phase == MigrationPhase::Planned && !migration.status.cancel;
        if waits && now.millis_since(migration.metadata.created) > PLANNED_MAX_MS {
            let uid = migration.metadata.uid;
            let key = format!("outdated-{uid}");
            commands.push(Command::Write { key, write: Write::CancelMigration { uid } });
        }
    }
    if under_way {
        return;
    }
    let plan = plan(state, snapshot, eagerness(state));
    let first = grounded(snapshot, &plan)
        .into_iter()
        .filter(|found| found.wave == 1 && !dismissed(state, found, now));
    commands.extend(first.map(|found| {
        let (key, write) = migration(state, &found);
        Command::Write { key, write }
    }));
}

/// The write that begins a move, and its key: the same plan on the same fleet begins it once.
pub(crate) fn migration(state: &State, found: &Grounded) -> (String, Write) {
    let planned = &found.planned;
    let (uid, name) = named(state, "balance", planned.vm, &planned.vm_name);
    let spec = MigrationSpec {
        vm: planned.vm,
        vm_name: planned.vm_name.clone(),
        to: Some(planned.to_name.clone()),
        cause: MigrationCause::Balance,
        limits: MigrationLimits::default(),
        grounds: Some(found.grounds.clone()),
    };
    (format!("balance-{uid}"), Write::CreateMigration { uid: MigrationId(uid), name, spec })
}

/// A uid and a name without randomness. The VM's revision tells tries apart, the fleet's time those of an unchanged VM.
fn named(state: &State, what: &str, vm: VmId, vm_name: &Name) -> (uuid::Uuid, Name) {
    let revision = state.vm(vm).map_or(0, |vm| vm.metadata.revision.0);
    let past = state.recommendations().filter(|found| found.spec.vm == vm).count() as u64;
    let parts = [what.as_bytes(), vm.0.as_bytes(), &revision.to_be_bytes(), &past.to_be_bytes()];
    let uid = uid_of(&parts);
    let short: String = vm_name.as_str().chars().take(40).collect();
    let name = format!("{what}-{short}-{:08x}", uid.as_fields().0);
    (uid, name.parse().expect("a word, a cut name and hex digits make a name"))
}
