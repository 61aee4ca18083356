//! Hosts: sessions, capabilities, cordons, removal.

use dunlin_model::capabilities::HostCapabilities;
use dunlin_model::event::EventLevel;
use dunlin_model::host::{Host, HostPhase, HostSpec};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{ErrorCode, HostId, Kind, Labels, Level, Revision, meta};

use crate::draft::{Draft, refuse_stale};
use crate::vm::{tell_down, unbind};
use crate::{Rejected, migration, trust};

pub(crate) fn open_session(
    draft: &mut Draft,
    id: HostId,
    session: u64,
    agent_version: &str,
    capabilities: &HostCapabilities,
) -> Result<(), Rejected> {
    let mut host = draft.take::<Host>(id)?;
    if session <= host.status.session {
        let message = format!(
            "host {}: session {} is known, so {session} is old",
            host.metadata.name, host.status.session
        );
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    host.status.session = session;
    agent_version.clone_into(&mut host.status.agent_version);
    host.status.capabilities = capabilities.clone();
    if host.status.phase != HostPhase::Up {
        host.status.phase = HostPhase::Up;
        host.status.since = draft.now();
        host.status.message = String::new();
        let message = format!("its agent {agent_version} holds session {session}");
        draft.event(EventLevel::Normal, "HostUp", &host, message);
    }
    draft.put(host);
    tell_vms(draft, id);
    Ok(())
}

pub(crate) fn close_session(
    draft: &mut Draft,
    id: HostId,
    session: u64,
    message: &str,
) -> Result<(), Rejected> {
    let mut host = draft.take::<Host>(id)?;
    if session != host.status.session || host.status.phase != HostPhase::Up {
        return Ok(());
    }
    host.status.phase = HostPhase::Down;
    host.status.since = draft.now();
    message.clone_into(&mut host.status.message);
    draft.event(EventLevel::Warning, "HostDown", &host, message);
    draft.put(host);
    tell_vms(draft, id);
    Ok(())
}

/// Each VM that waits for this host says so, or no longer: see [`Draft::put`].
fn tell_vms(draft: &mut Draft, host: HostId) {
    let here: Vec<Vm> = draft.state.vms_touching(host).cloned().collect();
    for vm in here {
        let mut told = vm.clone();
        tell_down(draft.state, &mut told);
        if told != vm {
            draft.put(told);
        }
    }
    draft.answer(Kind::Host, host.0);
}

pub(crate) fn set_capabilities(
    draft: &mut Draft,
    id: HostId,
    session: u64,
    capabilities: &HostCapabilities,
) -> Result<(), Rejected> {
    let mut host = draft.take::<Host>(id)?;
    if session != host.status.session {
        let message = format!("host {}: session {session} is not the current one", host.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    host.status.capabilities = capabilities.clone();
    draft.put(host);
    Ok(())
}

pub(crate) fn update(
    draft: &mut Draft,
    id: HostId,
    read: Revision,
    labels: &Labels,
    spec: HostSpec,
) -> Result<(), Rejected> {
    let mut host = draft.take::<Host>(id)?;
    refuse_stale(host.clone(), read)?;
    meta::validate_labels(labels)?;
    spec.validate()?;
    host.metadata.labels.clone_from(labels);
    let cordoned = spec.cordoned;
    let spec = HostSpec { cordoned: host.spec.cordoned, ..spec };
    if host.spec != spec {
        host.spec = spec;
        host.metadata.generation = host.metadata.generation.next();
        // Events are stored: every release writes the same.
        let message = match draft.state.level() >= Level::RESOURCES {
            true => "its rack, zone, taints or resources were changed",
            false => "its rack, zone or taints were changed",
        };
        draft.event(EventLevel::Normal, "HostChanged", &host, message);
    }
    draft.put(host);
    set_cordon(draft, id, cordoned)
}

pub(crate) fn set_cordon(draft: &mut Draft, id: HostId, cordoned: bool) -> Result<(), Rejected> {
    let mut host = draft.take::<Host>(id)?;
    if host.spec.cordoned != cordoned {
        host.spec.cordoned = cordoned;
        host.metadata.generation = host.metadata.generation.next();
        let (reason, message) = if cordoned {
            ("HostCordoned", "it takes no new VM")
        } else {
            ("HostUncordoned", "it takes new VMs again")
        };
        draft.event(EventLevel::Normal, reason, &host, message);
        draft.put(host);
    }
    Ok(())
}

/// Its certificates are refused from now on: whatever it still does is not heard.
pub(crate) fn revoked(draft: &mut Draft, id: HostId) -> Result<(), Rejected> {
    let mut host = draft.take::<Host>(id)?;
    host.status.phase = HostPhase::Down;
    host.status.since = draft.now();
    host.status.message = "it was revoked; it comes back only with a new token".to_owned();
    let message = "its certificates are refused from now on";
    draft.event(EventLevel::Warning, "HostRevoked", &host, message);
    draft.put(host);
    tell_vms(draft, id);
    Ok(())
}

/// A forced removal is the admin's word that no guest of this host runs any more: its VMs become Failed, and a guest
/// that was handed over to it is handed back to the source that still holds it.
pub(crate) fn remove(draft: &mut Draft, id: HostId, force: bool) -> Result<(), Rejected> {
    let host = draft.take::<Host>(id)?;
    let name = host.metadata.name.clone();
    let here: Vec<Vm> = draft.state.vms_touching(id).cloned().collect();
    let moves = draft.state.host_migrations(id).count();
    if !force && (!here.is_empty() || moves > 0) {
        let message = format!(
            "host {name} still has {} VMs (running or with disks) and {moves} migrations; drain it, or force",
            here.len()
        );
        return Err(Rejected::new(ErrorCode::InUse, message));
    }
    migration::host_removed(draft, id)?;
    for vm in here {
        // The migrations' end may have changed it.
        let Some(mut vm) = draft.state.vm(vm.metadata.uid).cloned() else { continue };
        if vm.status.host != Some(id) {
            continue;
        }
        unbind(&mut vm);
        if vm.status.phase != VmPhase::Deleting {
            vm.status.phase = VmPhase::Failed;
            vm.status.since = draft.now();
            vm.status.reason = "HostRemoved".to_owned();
            vm.status.message = format!("host {name} was removed while it was bound to it");
            draft.event(EventLevel::Warning, "VmLost", &vm, vm.status.message.clone());
        }
        draft.put(vm);
    }
    trust::refuse_host(draft, id);
    let message = if force { "removed by force" } else { "removed" };
    draft.event(EventLevel::Normal, "HostRemoved", &host, message);
    draft.remove(Kind::Host, id.0);
    tell_vms(draft, id);
    // The answer is the host, not the last VM looked at.
    draft.answer(Kind::Host, id.0);
    Ok(())
}
