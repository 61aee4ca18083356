//! VMs: what users write, what hosts saw, and the one table of phases.

mod observe;
mod write;

pub(crate) use observe::{bind, explain, keep_disks_here, observe, refuse_moved, restarted, taker};
pub(crate) use write::{create, delete, forget, set_power, update};

use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{ErrorCode, Incarnation, VmId};
use thiserror::Error;

use crate::Rejected;
use crate::draft::Draft;

/// Restarts after crashes before a VM stays Failed.
pub const RESTARTS_MAX: u32 = 5;
/// A guest that ran this long before it died has earned a fresh count of restarts, ms.
pub const STEADY_RUN_MS: u64 = 600_000;

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

/// Takes it off its host. Its disks stay where they are.
pub(crate) fn unbind(vm: &mut Vm) {
    vm.status.host = None;
    vm.status.host_name = None;
    vm.status.pid = None;
    vm.status.vnc = None;
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
