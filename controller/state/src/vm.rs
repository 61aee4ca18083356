//! VMs: what users write, what hosts saw, and the one table of phases.

mod adopt;
mod observe;
mod write;

pub(crate) use adopt::{adopt, release};
pub(crate) use observe::{bind, explain, keep_disks_here, observe, refuse_moved, restarted, taker};
pub(crate) use write::{create, create_all, delete, forget, set_power, update};

use dunlin_model::host::{Host, HostPhase};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{ErrorCode, HostId, Incarnation, VmId};
use thiserror::Error;

use crate::draft::Draft;
use crate::{Rejected, State};

/// Restarts after crashes before a VM stays Failed.
pub const RESTARTS_MAX: u32 = 5;
/// A guest that ran this long before it died has earned a fresh count of restarts, ms.
pub const STEADY_RUN_MS: u64 = 600_000;

/// The reason a VM shows while a host that it cannot do without is Down.
pub const HOST_DOWN: &str = "HostDown";

/// What moves a VM from phase to phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// Its power is to be on.
    Start,
    /// It got a host.
    Bind,
    /// vCPUs were seen to run.
    Running,
    /// vCPUs were seen to stand still.
    Paused,
    /// Its process ended because the guest or the fleet wanted that.
    Ended,
    /// Its memory was saved.
    Saved,
    /// Its process died and will be started again.
    Restart,
    /// It could not start, died too often, or its host was removed.
    Fail,
    /// Its power is to be off, while it has no process.
    GiveUp,
    /// The same, and saved memory is kept.
    KeepSaved,
    /// It is to be removed.
    Delete,
}

/// A step the table does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a VM that is {phase} cannot take the step {event:?}")]
pub struct Illegal {
    /// Where it stands.
    pub phase: VmPhase,
    /// What was to happen.
    pub event: VmEvent,
}

/// The table.
pub const fn next(phase: VmPhase, event: VmEvent) -> Result<VmPhase, Illegal> {
    use VmPhase as P;
    match (phase, event) {
        (P::Stopped | P::Failed | P::Saved, VmEvent::Start) => Ok(P::Pending),
        (P::Pending, VmEvent::Bind) => Ok(P::Starting),
        (P::Starting | P::Running | P::Paused, VmEvent::Running) => Ok(P::Running),
        (P::Starting | P::Running | P::Paused, VmEvent::Paused) => Ok(P::Paused),
        (P::Starting | P::Running | P::Paused, VmEvent::Ended) => Ok(P::Stopped),
        (P::Running | P::Paused, VmEvent::Saved) => Ok(P::Saved),
        (P::Starting | P::Running | P::Paused, VmEvent::Restart) => Ok(P::Pending),
        (P::Starting | P::Running | P::Paused, VmEvent::Fail) => Ok(P::Failed),
        (P::Pending | P::Failed, VmEvent::GiveUp) => Ok(P::Stopped),
        (P::Pending | P::Failed, VmEvent::KeepSaved) => Ok(P::Saved),
        (
            P::Stopped | P::Pending | P::Starting | P::Running | P::Paused | P::Saved | P::Failed,
            VmEvent::Delete,
        ) => Ok(P::Deleting),
        _ => Err(Illegal { phase, event }),
    }
}

/// Takes the step, noting since when and forgetting the last reason. Staying in a phase changes nothing.
pub(crate) fn enter(draft: &Draft, vm: &mut Vm, event: VmEvent) -> Result<(), Rejected> {
    let phase = next(vm.status.phase, event).map_err(|illegal| {
        Rejected::new(ErrorCode::WrongState, format!("VM {}: {illegal}", vm.metadata.name))
    })?;
    if vm.status.phase != phase {
        vm.status.phase = phase;
        vm.status.since = draft.now();
        vm.status.reason = String::new();
        vm.status.message = String::new();
    }
    Ok(())
}

/// Takes it off its host. Its disks stay where they are, and so does what it said there.
pub(crate) fn unbind(vm: &mut Vm) {
    vm.status.last_host = vm.status.host.take().or(vm.status.last_host);
    vm.status.host_name = None;
    vm.status.built = None;
    vm.status.pending.clear();
    vm.status.pid = None;
    vm.status.vnc = None;
}

/// Says on a VM whether a host that it waits for is Down: what is shown of it then is only what was last seen.
pub(crate) fn tell_down(state: &State, vm: &mut Vm) {
    let Some(host) = down(state, vm) else {
        if vm.status.reason == HOST_DOWN {
            vm.status.reason.clear();
            vm.status.message.clear();
        }
        return;
    };
    let (name, since) = (&host.metadata.name, host.status.since);
    HOST_DOWN.clone_into(&mut vm.status.reason);
    vm.status.message = if vm.status.phase == VmPhase::Deleting {
        format!(
            "host {name} is down since {since}; what it has of the VM is removed when it is back. If it never will be: dunlin host remove {name} --force"
        )
    } else {
        format!(
            "host {name} is down since {since}; this is what was last seen, and the guest may still run there"
        )
    };
}

/// The first host that the VM waits for and that is Down.
pub(crate) fn down<'a>(state: &'a State, vm: &Vm) -> Option<&'a Host> {
    let mut hosts = waits_for(vm).filter_map(|host| state.host(host));
    hosts.find(|host| host.status.phase == HostPhase::Down)
}

/// The hosts without which a VM cannot be deleted, and the first, without which nothing can be done to its process.
pub(crate) fn waits_for(vm: &Vm) -> impl Iterator<Item = HostId> {
    let saved = vm.status.saved.as_ref().map(|saved| saved.host);
    let deleting = vm.status.phase == VmPhase::Deleting;
    let disks = [vm.status.volumes_on, saved].into_iter().flatten().filter(move |_| deleting);
    vm.status.host.into_iter().chain(disks)
}

/// Passes over every incarnation that a VM of the same uid may have had before it was deleted: hosts remember the highest
/// they were told and refuse lower ones. An incarnation takes a command of its own, so none is above the log's index.
pub(crate) fn skip_incarnations(draft: &mut Draft, vm: VmId) {
    let mut fence = draft.state.fence(vm);
    fence.highest = fence.highest.max(Incarnation(draft.state.index));
    draft.state.fences.insert(vm, fence);
}

/// A number no process of the VM ever carried.
pub(crate) fn fresh_incarnation(draft: &mut Draft, vm: VmId) -> Incarnation {
    let mut fence = draft.state.fence(vm);
    fence.highest = fence.highest.next();
    draft.state.fences.insert(vm, fence);
    fence.highest
}
