//! Which host a VM starts on, and which one a migration goes to. One snapshot per step: what this step has given away
//! is gone for the rest of it.

use std::collections::BTreeMap;

use dunlin_model::migration::{Migration, MigrationPhase};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{HostId, Timestamp};
use dunlin_scheduler::admit::{Answer, admit};
use dunlin_scheduler::{Snapshot, place};
use dunlin_state::{Command, MigrationEvent, State};

use super::observed::Sight;
use super::{Observed, mirror, record};

/// VMs placed in one step: one log batch's worth. The rest follow in the next.
pub(super) const PLACED_PER_STEP_MAX: usize = 256;

/// Hosts tried for a VM while each would use up the room that is kept for failures: the best ones by the policy.
const SPARE_TRIES_MAX: usize = 8;

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
        bind(state, &mut snapshot, vm, commands);
    }
    reserve_all(state, observed, planned, &mut snapshot, commands);
}

fn bind(state: &State, snapshot: &mut Snapshot, vm: &Vm, commands: &mut Vec<Command>) {
    let mut request = snapshot.start(vm);
    let (uid, generation) = (vm.metadata.uid, vm.metadata.generation);
    let mut decision = place(snapshot, &request);
    // What was started once is let in again after a crash: keeping it out would be the failure that room is kept for.
    let spare = if vm.status.restarts == 0 { snapshot.policy.failover_hosts } else { 0 };
    let mut spoils = None;
    for _ in 0..SPARE_TRIES_MAX {
        let Some((host, seat)) = decision.host().zip(decision.seat()) else { break };
        snapshot.accept(&request, seat);
        let Some(why) = spoilt(state, snapshot, spare) else {
            let (incarnation, why) = (vm.status.incarnation, Some(record::boxed(&decision)));
            commands.push(Command::BindVm { vm: uid, generation, incarnation, host, why });
            return;
        };
        if let Some(at) = request.vm {
            snapshot.take(at);
        }
        spoils = Some(why);
        request.closed.push(seat.host);
        request.closed.sort_unstable();
        decision = place(snapshot, &request);
    }
    let (reason, message) = match spoils {
        Some(why) => ("SpareHosts".to_owned(), why),
        None => (decision.reason(), decision.explain()),
    };
    if vm.status.reason != reason || vm.status.message != message {
        commands.push(Command::ExplainPending { vm: uid, generation, reason, message });
    }
}

/// Why the room that is kept for so many failing hosts would be gone. Only what is proven keeps a VM out.
fn spoilt(state: &State, snapshot: &Snapshot, spare: u32) -> Option<String> {
    if spare == 0 {
        return None;
    }
    let admission = admit(snapshot, spare);
    if admission.answer != Answer::No {
        return None;
    }
    let gap = admission.gaps.first()?;
    let names = gap.hosts.iter().filter_map(|host| Some(state.host(*host)?.metadata.name.to_string()));
    let (hosts, first) = (names.collect::<Vec<_>>().join(" and "), gap.misfits.first()?);
    let (vm, why) = (&first.vm_name, &first.reason);
    Some(format!("{spare} hosts must be able to fail: without {hosts}, VM {vm} would find no place ({why})"))
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
        // A destination whose budget is spent is left out, as if it were the source: it will be free later.
        let mut request = snapshot.migrate(vm, from, migration.spec.to.as_ref());
        request.closed =
            snapshot.hosts().filter(|(_, row)| !free(&busy, row.uid)).map(|(host, _)| host).collect();
        let decision = place(snapshot, &request);
        let Some((host, seat)) = decision.host().zip(decision.seat()) else {
            request.closed.clear();
            let decision = place(snapshot, &request);
            match decision.host() {
                Some(_) => wait("Budget", format!("every host that fits is in {budget} migrations already")),
                None => wait(&decision.reason(), decision.explain()),
            }
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
            disk_bytes: source
                .vms
                .get(&vm.metadata.uid)
                .map(|seen| seen.disk_bytes.clone())
                .unwrap_or_default(),
        };
        commands.push(Command::Migrate { migration: uid, event });
    }
}
