//! What a host is told: a function of the state and of what it reports, never stored.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::desired::{ActOrder, Assignment, DesiredSet, Role, SendStep};
use dunlin_model::migration::{Migration, MigrationPhase};
use dunlin_model::observed::{ObservedVm, Process, ReceiveState};
use dunlin_model::task::Act;
use dunlin_model::vm::{Adoption, Power, Vm, VmPhase, VmSpec};
use dunlin_model::{HostId, Incarnation, Name, Timestamp, VmId};
use dunlin_state::State;
use dunlin_state::migration::handed_over;

use super::migration::{ARRIVE_MAX_MS, receiving, since};
use super::observed::{HostView, Observed, Sight};
use super::vm::{has_process, is_current};

/// The whole desired set of a host. None while it cannot be seen: a host is told nothing before it has said everything.
#[must_use]
pub fn desired_set(state: &State, observed: &Observed, host: HostId, now: Timestamp) -> Option<DesiredSet> {
    let Sight::Seen(view) = observed.sight(state, host) else { return None };
    let assignments = assignments(state, view, host, now);
    let images = images(state, &assignments);
    Some(DesiredSet { host, generation: state.revision(), assignments, acts: acts(state, host), images })
}

/// Must `new` be sent, after `sent` was? Its generation alone is no news, unless a VM it names was written since: the host
/// then has to say that it knows (`taken`), even if it has nothing else to do about it.
#[must_use]
pub fn is_news(state: &State, sent: &DesiredSet, new: &DesiredSet) -> bool {
    let written = |vm: VmId| state.vm(vm).is_some_and(|vm| vm.metadata.revision > sent.generation);
    sent.assignments != new.assignments
        || sent.acts != new.acts
        || sent.images != new.images
        || new.assignments.iter().any(|one| written(one.vm))
}

fn assignments(state: &State, view: &HostView, host: HostId, now: Timestamp) -> Vec<Assignment> {
    let touching = state.vms_touching(host).map(|vm| vm.metadata.uid);
    let moving = state.host_migrations(host).map(|m| m.spec.vm);
    let all: BTreeSet<VmId> = touching.chain(moving).chain(view.vms.keys().copied()).collect();
    let one = |uid: VmId| {
        let seen = view.vms.get(&uid);
        match state.vm(uid) {
            Some(vm) => known(state, host, vm, seen, now),
            None => seen.map(unknown),
        }
    };
    all.into_iter().filter_map(one).collect()
}

/// A VM that was deleted, or never was: no incarnation of it may run.
fn unknown(seen: &ObservedVm) -> Assignment {
    Assignment {
        vm: seen.vm,
        name: seen.name.clone(),
        incarnation: Incarnation(u64::MAX),
        continues: None,
        spec: VmSpec::new(*dunlin_model::vm::spec::MEM_MIB.start()),
        built: None,
        role: Role::Discard { elsewhere: false },
    }
}

fn known(
    state: &State,
    host: HostId,
    vm: &Vm,
    seen: Option<&ObservedVm>,
    now: Timestamp,
) -> Option<Assignment> {
    let highest = state.fence(vm.metadata.uid).highest;
    let own = vm.status.host == Some(host);
    let (incarnation, role) = if vm.status.phase == VmPhase::Deleting {
        let leaves = own && vm.status.adoption == Some(Adoption::Leaving);
        (highest, if leaves { Role::Release } else { Role::Discard { elsewhere: false } })
    } else if let Some(told) = in_migration(state, host, vm, seen, now) {
        told
    } else if own {
        (vm.status.incarnation, own_role(vm, seen, host))
    } else {
        seen?;
        let elsewhere = vm.status.volumes_on.is_some_and(|on| on != host);
        (highest, if keeps_files(vm, seen, host) { Role::Hold } else { Role::Discard { elsewhere } })
    };
    Some(Assignment {
        vm: vm.metadata.uid,
        name: vm.metadata.name.clone(),
        incarnation,
        continues: vm.status.continues.filter(|_| own && incarnation == vm.status.incarnation),
        spec: vm.spec.clone(),
        built: vm.status.built.clone().filter(|_| matches!(role, Role::Receive { .. })),
        role,
    })
}

/// Are disks or saved memory there that are the only ones? In doubt they are kept.
fn keeps_files(vm: &Vm, seen: Option<&ObservedVm>, host: HostId) -> bool {
    let saved_here = vm.status.saved.as_ref().is_some_and(|saved| saved.host == host);
    let doubt = vm.status.volumes_on.is_none()
        && vm.spec.has_local_disks()
        && seen.is_some_and(|seen| seen.has_volumes);
    // What it said on its serial console is asked for most when it has ended.
    let last_here = vm.status.host.is_none() && vm.status.last_host == Some(host);
    vm.status.volumes_on == Some(host) || saved_here || doubt || last_here
}

/// The part of the host that the VM is bound to.
fn own_role(vm: &Vm, seen: Option<&ObservedVm>, host: HostId) -> Role {
    let lost = match vm.status.phase {
        VmPhase::Starting => false,
        // It ran here and the host does not know it: before it may be started anew, the host must have closed this
        // incarnation. Ended is known and stays so.
        VmPhase::Running | VmPhase::Paused => {
            let current = seen.filter(|seen| is_current(vm, seen));
            current.is_none_or(|seen| seen.process == Process::None)
        }
        _ => true,
    };
    if lost || vm.spec.power == Power::Stopped {
        return Role::Hold;
    }
    if vm.status.adoption == Some(Adoption::Asked) {
        return Role::Adopt { power: vm.spec.power };
    }
    let saved = vm.status.saved.as_ref().filter(|saved| saved.host == host);
    Role::Run { power: vm.spec.power, restore_from: saved.map(|saved| saved.path.clone()), received: false }
}

/// The part of a host in the migration the VM is in. None when it has none of its own: it is told as without one.
fn in_migration(
    state: &State,
    host: HostId,
    vm: &Vm,
    seen: Option<&ObservedVm>,
    now: Timestamp,
) -> Option<(Incarnation, Role)> {
    let migration = state.migration_of(vm)?;
    let status = &migration.status;
    let (source, destination) = (status.from == Some(host), status.to == Some(host));
    let runs = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused);
    match status.phase {
        MigrationPhase::Reserved | MigrationPhase::Prepared | MigrationPhase::Copying if destination => {
            let (migration, limits) = (migration.metadata.uid, migration.spec.limits.clone());
            let role = Role::Receive { migration, limits, disks: status.disk_bytes.clone() };
            Some((status.incarnation, role))
        }
        MigrationPhase::Prepared | MigrationPhase::Copying if source && runs && is_there(vm, seen) => {
            Some((vm.status.incarnation, send(migration, vm, SendStep::Copy)?))
        }
        MigrationPhase::Switching if source => {
            Some((state.fence(vm.metadata.uid).source, send(migration, vm, SendStep::Switch)?))
        }
        MigrationPhase::Switching if destination => {
            Some((status.incarnation, received(migration, vm, seen, now)))
        }
        MigrationPhase::Aborting if destination => {
            Some((status.incarnation, Role::Discard { elsewhere: true }))
        }
        MigrationPhase::Aborting
            if source
                && runs
                && is_there(vm, seen)
                && vm.spec.power != Power::Stopped
                && !handed_over(migration) =>
        {
            Some((vm.status.incarnation, send(migration, vm, SendStep::Cancel)?))
        }
        _ => None,
    }
}

fn is_there(vm: &Vm, seen: Option<&ObservedVm>) -> bool {
    seen.is_some_and(|seen| is_current(vm, seen) && has_process(seen))
}

/// None before the destination has said where it listens.
fn send(migration: &Migration, vm: &Vm, step: SendStep) -> Option<Role> {
    Some(Role::Send {
        migration: migration.metadata.uid,
        endpoint: migration.status.endpoint.clone()?,
        limits: migration.spec.limits.clone(),
        step,
        power: vm.spec.power,
    })
}

/// After the hand-over: continue what was received. A VM that is to be stopped comes up standing still first, so that
/// the migration can end.
fn received(migration: &Migration, vm: &Vm, seen: Option<&ObservedVm>, now: Timestamp) -> Role {
    let arrived = seen.is_some_and(|seen| {
        seen.process != Process::Incoming
            || receiving(seen, migration.metadata.uid) == Some(&ReceiveState::Arrived)
    });
    if !arrived && now.millis_since(since(migration)) > ARRIVE_MAX_MS {
        return Role::Hold;
    }
    let power = if vm.spec.power == Power::Running { Power::Running } else { Power::Paused };
    Role::Run { power, restore_from: None, received: true }
}

fn acts(state: &State, host: HostId) -> Vec<ActOrder> {
    let order = |task: &dunlin_model::task::Task| {
        let order = state.order_of(task.metadata.uid)?;
        (order.host == host && task.spec.act != Act::Drain).then(|| ActOrder {
            task: task.metadata.uid,
            vm: order.vm,
            incarnation: order.incarnation,
            act: task.spec.act.clone(),
            cancel: task.status.cancel,
        })
    };
    state.active_tasks().filter_map(order).collect()
}

fn images(state: &State, assignments: &[Assignment]) -> BTreeMap<Name, dunlin_model::image::ImageSpec> {
    let needed = assignments.iter().filter(|one| matches!(one.role, Role::Run { .. } | Role::Receive { .. }));
    let names = needed.flat_map(|one| one.spec.images());
    names.filter_map(|name| Some((name.clone(), state.image_named(name)?.spec.clone()))).collect()
}
