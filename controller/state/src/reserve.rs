//! Who holds how much of which host. Reservations live in the replicated state: two planners cannot sell the same memory.
//!
//! A VM holds its size where it is bound, from BindVm until its process is known to be gone. A migration holds the same
//! size once more on the other host, from Reserve until that host has let go.

use dunlin_model::host::{Host, Reserved};
use dunlin_model::migration::{Migration, MigrationPhase};
use dunlin_model::vm::{Vm, VmPhase, VmSpec};
use dunlin_model::{ErrorCode, HostId, Object};

use crate::{Rejected, State};

/// What a VM takes: as much as it asks for, and no less than its process has.
#[must_use]
pub fn held(vm: &Vm) -> Reserved {
    let asked = size(&vm.spec);
    match &vm.status.built {
        None => asked,
        Some(built) => Reserved {
            cpus: asked.cpus.max(built.cpus.into()),
            mem_mib: asked.mem_mib.max(built.mem_mib),
            ..asked
        },
    }
}

/// What a VM of this spec takes.
#[must_use]
pub fn size(spec: &VmSpec) -> Reserved {
    Reserved { cpus: spec.cpus.into(), mem_mib: spec.mem_mib, vms: 1 }
}

/// The host on which a migration holds a second place for its VM.
#[must_use]
pub fn migration_holds(migration: &Migration) -> Option<HostId> {
    match migration.status.phase {
        MigrationPhase::Planned | MigrationPhase::Done | MigrationPhase::Aborted => None,
        MigrationPhase::Reserved
        | MigrationPhase::Prepared
        | MigrationPhase::Copying
        | MigrationPhase::Aborting => migration.status.to,
        MigrationPhase::Switching => migration.status.from,
    }
}

/// The host on which a VM holds its place. A Deleting one keeps it: its process may still be there.
#[must_use]
pub fn vm_holds(vm: &Vm) -> Option<HostId> {
    let holds = vm.status.phase.holds_reservation() || vm.status.phase == VmPhase::Deleting;
    vm.status.host.filter(|_| holds)
}

/// What an object holds, and where.
pub(crate) fn claim(state: &State, object: &Object) -> Option<(HostId, Reserved)> {
    match object {
        Object::Vm(vm) => Some((vm_holds(vm)?, held(vm))),
        Object::Migration(migration) => {
            Some((migration_holds(migration)?, held(state.vm(migration.spec.vm)?)))
        }
        _ => None,
    }
}

/// The hosts under which an object is indexed.
pub(crate) fn hosts_of(object: &Object) -> Vec<HostId> {
    match object {
        Object::Vm(vm) => {
            let saved = vm.status.saved.as_ref().map(|saved| saved.host);
            [vm.status.host, vm.status.volumes_on, saved].into_iter().flatten().collect()
        }
        Object::Migration(m) if !m.status.phase.is_terminal() => {
            [m.status.from, m.status.to].into_iter().flatten().collect()
        }
        _ => Vec::new(),
    }
}

/// Sums every claim on one host afresh.
#[must_use]
pub fn recount(state: &State, host: HostId) -> Reserved {
    let vms = state.host_vms(host).filter(|vm| vm_holds(vm) == Some(host)).map(held);
    let moves = state.host_migrations(host).filter(|m| migration_holds(m) == Some(host));
    let moves = moves.filter_map(|m| state.vm(m.spec.vm)).map(held);
    vms.chain(moves).fold(Reserved::default(), |sum, one| Reserved {
        cpus: sum.cpus + one.cpus,
        mem_mib: sum.mem_mib + one.mem_mib,
        vms: sum.vms + one.vms,
    })
}

/// Refuses when `host` cannot take another VM of this spec now.
pub fn check_room(state: &State, host: &Host, spec: &VmSpec) -> Result<(), Rejected> {
    let policy = state.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    let (caps, reserved) = (&host.status.capabilities, &host.status.reserved);
    let sellable_mib = caps.mem_mib.saturating_sub(policy.host_reserve_mib);
    let sellable_mib = sellable_mib.saturating_mul(policy.mem_overcommit_percent.into()) / 100;
    let free_mib = sellable_mib.saturating_sub(reserved.mem_mib);
    let name = &host.metadata.name;
    if free_mib < spec.mem_mib {
        let message =
            format!("host {name}: not enough memory (need {} MiB, free {free_mib} MiB)", spec.mem_mib);
        return Err(Rejected::new(ErrorCode::NoCapacity, message));
    }
    let sellable = u64::from(caps.cpus) * u64::from(policy.cpu_overcommit_percent) / 100;
    let free_cpus = sellable.saturating_sub(reserved.cpus);
    if free_cpus < u64::from(spec.cpus) {
        let message = format!("host {name}: not enough vCPUs (need {}, free {free_cpus})", spec.cpus);
        return Err(Rejected::new(ErrorCode::NoCapacity, message));
    }
    check_resources(state, host, spec)
}

/// What VMs hold of a resource of a host. Few take any, so it is summed up when one more wants some.
#[must_use]
pub fn taken(state: &State, host: HostId, resource: &str) -> u64 {
    let vms = state.host_vms(host).filter(|vm| vm_holds(vm) == Some(host));
    let moves = state.host_migrations(host).filter(|m| migration_holds(m) == Some(host));
    let all = vms.chain(moves.filter_map(|m| state.vm(m.spec.vm)));
    all.filter_map(|vm| vm.spec.placement.resources.get(resource)).sum()
}

fn check_resources(state: &State, host: &Host, spec: &VmSpec) -> Result<(), Rejected> {
    for (resource, need) in &spec.placement.resources {
        let has = host.spec.resources.get(resource).copied().unwrap_or(0);
        let free = has.saturating_sub(taken(state, host.metadata.uid, resource));
        if free < *need {
            let name = &host.metadata.name;
            let message = format!("host {name}: not enough {resource} (need {need}, free {free})");
            return Err(Rejected::new(ErrorCode::NoCapacity, message));
        }
    }
    Ok(())
}
