//! The fleet as the scheduler sees it, from the replicated state and what the hosts report.

use dunlin_model::migration::{MigrationOutcome, MigrationPhase};
use dunlin_model::{Name, Timestamp, VmId};
use dunlin_scheduler::Snapshot;
use dunlin_state::State;

use super::Observed;

/// Everything that placement and balancing ask for.
pub(crate) fn of(state: &State, observed: &Observed, now: Timestamp) -> Snapshot {
    let policy = state.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    let second = state.active_migrations().filter_map(|m| Some((m.status.to?, state.vm(m.spec.vm)?)));
    let mut guests: Vec<_> = state.vms().filter_map(|vm| Some((vm.status.host?, vm))).chain(second).collect();
    // Among equals the lower number goes first: by name that is the same on every try, and what people expect.
    guests.sort_by(|(_, a), (_, b)| a.metadata.name.cmp(&b.metadata.name));
    let mut snapshot = Snapshot::new((&policy).into(), state.hosts(), guests.into_iter());
    snapshot.revision = state.revision().0;
    snapshot.now_ms = now.0;
    let known: Vec<_> = snapshot.vms().map(|(at, row)| (at, row.uid)).collect();
    for (at, vm) in known {
        snapshot.observe_vm(at, observed.loads().of(vm));
        if let Some(mib) = disks_mib(state, observed, vm) {
            snapshot.set_local_disk(at, mib);
        }
    }
    lay_out_images(state, &mut snapshot);
    for (vm, at) in moved(state) {
        if let Some(found) = snapshot.find_vm(vm) {
            snapshot.set_moved(found, Some(at.0));
        }
    }
    snapshot
}

/// Hosts tell their images by what is in them, VMs ask for them by name.
fn lay_out_images(state: &State, snapshot: &mut Snapshot) {
    let names: Vec<(&str, &Name)> =
        state.images().map(|image| (image.spec.sha256.as_str(), &image.metadata.name)).collect();
    let hosts: Vec<_> = snapshot.hosts().map(|(at, row)| (at, row.uid)).collect();
    for (at, host) in hosts {
        let Some(has) = state.host(host).map(|host| &host.status.capabilities.images) else { continue };
        let here = names.iter().filter(|(sha256, _)| has.contains(*sha256));
        snapshot.set_images(at, &here.map(|(_, name)| name.to_string()).collect::<Vec<_>>());
    }
}

/// What its host says of the disks that would have to move along, MiB. None while it says nothing.
fn disks_mib(state: &State, observed: &Observed, vm: VmId) -> Option<u64> {
    let host = state.vm(vm)?.status.host?;
    let disks = &observed.sight(state, host).vm(vm)?.disk_bytes;
    (!disks.is_empty()).then(|| disks.values().sum::<u64>() >> 20)
}

/// When VMs last changed hosts, oldest first. A migration of long ago that is no longer kept does not matter.
fn moved(state: &State) -> Vec<(VmId, Timestamp)> {
    let done = state.migrations().filter(|m| {
        m.status.phase == MigrationPhase::Done && m.status.outcome == Some(MigrationOutcome::Moved)
    });
    let mut moved: Vec<_> = done.filter_map(|m| Some((m.spec.vm, m.status.history.last()?.1))).collect();
    moved.sort_by_key(|(_, at)| *at);
    moved
}
