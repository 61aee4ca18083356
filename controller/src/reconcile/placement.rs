//! Which host a VM starts on, and which one a migration goes to. One snapshot per step: what this step has given away
//! is gone for the rest of it.

use std::collections::BTreeMap;

use dunlin_model::migration::{Migration, MigrationPhase};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{HostId, Timestamp};
use dunlin_scheduler::{Request, Snapshot, place, place_with_spare};
use dunlin_state::{Command, MigrationEvent, State};

use super::observed::Sight;
use super::{Observed, mirror, record};

/// VMs placed in one step: one log batch's worth. The rest follow in the next.
pub(super) const PLACED_PER_STEP_MAX: usize = 256;

pub(super) fn step(state: &State, observed: &Observed, now: Timestamp, commands: &mut Vec<Command>) {
    let mut pending: Vec<&Vm> = state
        .active_vms()
        .filter(|vm| vm.status.phase == VmPhase::Pending && vm.status.migration.is_none())
        .collect();
    pending.sort_by_key(|vm| (vm.status.since, vm.metadata.uid));
    let planned: Vec<&Migration> = state
        .active_migrations()
        .filter(|m| m.status.phase == MigrationPhase::Planned && !m.status.cancel)
        .collect();
    if pending.is_empty() && planned.is_empty() {
        return;
    }
    let mut snapshot = mirror::of(state, observed, now);
    for vm in pending.into_iter().take(PLACED_PER_STEP_MAX) {
        bind(&mut snapshot, vm, commands);
    }
    reserve_all(state, observed, planned, &mut snapshot, commands);
}

fn bind(snapshot: &mut Snapshot, vm: &Vm, commands: &mut Vec<Command>) {
    let request = snapshot.start(vm);
    let (uid, generation) = (vm.metadata.uid, vm.metadata.generation);
    let decision = place_with_spare(snapshot, &request);
    if let Some((host, seat)) = decision.host().zip(decision.seat()) {
        snapshot.accept(&request, seat);
        let (incarnation, why) = (vm.status.incarnation, Some(record::boxed(&decision)));
        commands.push(Command::BindVm { vm: uid, generation, incarnation, host, why });
        return;
    }
    let (reason, message) = (decision.reason(), decision.explain());
    if vm.status.reason != reason || vm.status.message != message {
        commands.push(Command::ExplainPending { vm: uid, generation, reason, message });
    }
}

/// Why nowhere is left, in a word and in full: hosts that fit may only be busy.
fn no_destination(snapshot: &Snapshot, mut request: Request, budget: usize) -> (String, String) {
    request.closed.clear();
    let decision = place(snapshot, &request);
    match decision.host() {
        Some(_) => ("Budget".to_owned(), format!("every host that fits is in {budget} migrations already")),
        None => (decision.reason(), decision.explain()),
    }
}

fn reserve_all(
    state: &State,
    observed: &Observed,
    mut planned: Vec<&Migration>,
    snapshot: &mut Snapshot,
    commands: &mut Vec<Command>,
) {
    planned.sort_by_key(|m| (m.metadata.created, m.metadata.uid));
    let budget = state.migrations_per_host();
    let mut busy: BTreeMap<HostId, usize> = BTreeMap::new();
    for migration in planned {
        let Some(vm) = state.vm(migration.spec.vm) else { continue };
        let Some(from) = vm.status.host else { continue };
        let runs = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused);
        if !runs || vm.spec.power == Power::Stopped {
            continue;
        }
        let free = |busy: &BTreeMap<HostId, usize>, host: HostId| {
            state.migrations_on(host) + busy.get(&host).copied().unwrap_or(0) < budget
        };
        let running = state.migrations_running() + busy.values().sum::<usize>() / 2;
        let uid = migration.metadata.uid;
        let mut wait = |reason: &str, message: String| {
            if migration.status.reason != reason || migration.status.message != message {
                let event = MigrationEvent::Wait { reason: reason.to_owned(), message };
                commands.push(Command::Migrate { migration: uid, event });
            }
        };
        let Sight::Seen(source) = observed.sight(state, from) else {
            wait("SourceDown", "the host it runs on is not up".to_owned());
            continue;
        };
        if !free(&busy, from) {
            wait("Budget", format!("the host it runs on is in {budget} migrations already"));
            continue;
        }
        if running >= state.migrations_per_fleet() {
            wait("Budget", format!("the fleet runs {running} migrations already"));
            continue;
        }
        let seen = source.vms.get(&vm.metadata.uid);
        if seen.is_some_and(|seen| seen.built != vm.status.built) {
            wait("Settling", "its devices are being changed".to_owned());
            continue;
        }
        // A destination whose budget is spent is left out, as if it were the source: it will be free later.
        let mut request = snapshot.migrate(vm, from, migration.spec.to.as_ref());
        request.closed =
            snapshot.hosts().filter(|(_, row)| !free(&busy, row.uid)).map(|(host, _)| host).collect();
        let decision = place(snapshot, &request);
        let Some((host, seat)) = decision.host().zip(decision.seat()) else {
            let (reason, message) = no_destination(snapshot, request, budget);
            wait(&reason, message);
            continue;
        };
        snapshot.accept(&request, seat);
        *busy.entry(from).or_default() += 1;
        *busy.entry(host).or_default() += 1;
        let event = MigrationEvent::Reserve {
            host,
            vm_generation: vm.metadata.generation,
            vm_incarnation: vm.status.incarnation,
            why: Some(record::boxed(&decision)),
            disk_bytes: seen.map(|seen| seen.disk_bytes.clone()).unwrap_or_default(),
        };
        commands.push(Command::Migrate { migration: uid, event });
    }
}
