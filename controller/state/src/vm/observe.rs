//! What the leader and the hosts say of VMs: binding, and every transition of a process.

use dunlin_model::decision::Decision;
use dunlin_model::event::EventLevel;
use dunlin_model::host::{Host, HostPhase};
use dunlin_model::migration::MigrationPhase;
use dunlin_model::vm::{Adoption, Built, Power, RestartPolicy, Vm, VmPhase};
use dunlin_model::{ErrorCode, Generation, HostId, Incarnation, VmId};

use super::{RESTARTS_MAX, STEADY_RUN_MS, VmEvent, enter, fresh_incarnation, unbind};
use crate::command::Seen;
use crate::draft::Draft;
use crate::reserve::check_room;
use crate::{Rejected, rules};

pub(crate) fn bind(
    draft: &mut Draft,
    uid: VmId,
    generation: Generation,
    incarnation: Incarnation,
    host: HostId,
    why: Option<&Decision>,
) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    refuse_moved(&vm, generation, incarnation)?;
    if vm.status.migration.is_some() {
        let message = format!("VM {} is still in a migration", vm.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    let host = taker(draft, host)?;
    let pinned = vm.status.saved.as_ref().map(|saved| saved.host).or(vm.status.volumes_on);
    if pinned.is_some_and(|pinned| pinned != host.metadata.uid) {
        let message = format!("the disks of VM {} are not on host {}", vm.metadata.name, host.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    rules::check(draft.state, &vm, &host)?;
    check_room(draft.state, &host, &vm.spec)?;
    enter(draft, &mut vm, VmEvent::Bind)?;
    vm.status.host = Some(host.metadata.uid);
    vm.status.host_name = Some(host.metadata.name.clone());
    vm.status.incarnation = fresh_incarnation(draft, uid);
    vm.status.continues = None;
    vm.status.chosen = why.cloned();
    let message = format!("on host {} as incarnation {}", host.metadata.name, vm.status.incarnation);
    draft.event(EventLevel::Normal, "VmScheduled", &vm, message);
    draft.put(vm);
    Ok(())
}

/// Refuses a proposal that was made for another spec or incarnation.
pub(crate) fn refuse_moved(
    vm: &Vm,
    generation: Generation,
    incarnation: Incarnation,
) -> Result<(), Rejected> {
    if vm.metadata.generation == generation && vm.status.incarnation == incarnation {
        return Ok(());
    }
    let message = format!(
        "VM {} is at generation {}, incarnation {}; the proposal assumed {generation} and {incarnation}",
        vm.metadata.name, vm.metadata.generation, vm.status.incarnation
    );
    Err(Rejected::new(ErrorCode::StaleRevision, message))
}

/// The host, when it may take a VM.
pub(crate) fn taker(draft: &Draft, id: HostId) -> Result<Host, Rejected> {
    let host = draft.state.host(id).cloned();
    let host = host.ok_or_else(|| Rejected::new(ErrorCode::NotFound, format!("no host has the uid {id}")))?;
    let refuse =
        |why: &str| Rejected::new(ErrorCode::WrongState, format!("host {} {why}", host.metadata.name));
    if host.status.phase != HostPhase::Up {
        return Err(refuse("is not up"));
    }
    if host.spec.cordoned {
        return Err(refuse("is cordoned"));
    }
    Ok(host)
}

pub(crate) fn explain(
    draft: &mut Draft,
    uid: VmId,
    generation: Generation,
    reason: &str,
    message: &str,
) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    let incarnation = vm.status.incarnation;
    refuse_moved(&vm, generation, incarnation)?;
    if vm.status.phase != VmPhase::Pending {
        let message = format!("VM {} is {}, not Pending", vm.metadata.name, vm.status.phase);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    if vm.status.reason == reason && vm.status.message == message {
        return Ok(());
    }
    let news = vm.status.reason != reason;
    reason.clone_into(&mut vm.status.reason);
    message.clone_into(&mut vm.status.message);
    if news {
        // Only another reason is worth an event: the numbers in the message move with every change of the fleet.
        draft.event(EventLevel::Warning, "VmUnschedulable", &vm, message);
    }
    draft.put(vm);
    Ok(())
}

pub(crate) fn observe(
    draft: &mut Draft,
    uid: VmId,
    host: HostId,
    incarnation: Incarnation,
    seen: &Seen,
) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    if vm.status.incarnation != incarnation || vm.status.host != Some(host) {
        let message = format!(
            "VM {}: incarnation {incarnation} on that host is not the one that may run ({})",
            vm.metadata.name, vm.status.incarnation
        );
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    if draft.state.migration_of(&vm).is_some_and(|m| m.status.phase == MigrationPhase::Switching) {
        // What its process does decides first how the migration ends.
        let message = format!("VM {} is being handed over", vm.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    match seen {
        Seen::Running { pid, vnc } => runs(draft, &mut vm, VmEvent::Running, *pid, vnc.clone())?,
        Seen::Paused { pid, vnc } => runs(draft, &mut vm, VmEvent::Paused, *pid, vnc.clone())?,
        Seen::PoweredOff => {
            set_power_spec(&mut vm, Power::Stopped);
            enter(draft, &mut vm, VmEvent::Ended)?;
            unbind(&mut vm);
            note(draft, &vm, EventLevel::Normal, "VmPoweredOff", "the guest powered itself off");
        }
        Seen::Stopped => stopped(draft, &mut vm)?,
        Seen::Saved(saved) => {
            set_power_spec(&mut vm, Power::Stopped);
            enter(draft, &mut vm, VmEvent::Saved)?;
            unbind(&mut vm);
            vm.status.saved = Some(saved.clone());
            let message = format!("{} bytes of memory are kept", saved.size_bytes);
            note(draft, &vm, EventLevel::Normal, "VmSaved", message);
        }
        Seen::Refused { message } if vm.status.adoption == Some(Adoption::Asked) => {
            super::adopt::refused(draft, &mut vm, message)?;
        }
        Seen::Refused { message } => {
            enter(draft, &mut vm, VmEvent::Fail)?;
            unbind(&mut vm);
            "StartRefused".clone_into(&mut vm.status.reason);
            vm.status.message.clone_from(message);
            note(draft, &vm, EventLevel::Warning, "VmStartRefused", message);
        }
        Seen::Died { message } => died(draft, &mut vm, message)?,
        Seen::VolumesMade => keep_disks_here(&mut vm),
        Seen::Doing { message } => {
            if vm.status.phase == VmPhase::Starting {
                vm.status.message.clone_from(message);
            }
        }
        Seen::Built(built) => is_built(draft, &mut vm, built.as_ref())?,
    }
    draft.put(vm);
    Ok(())
}

fn note(draft: &mut Draft, vm: &Vm, level: EventLevel, reason: &str, message: impl Into<String>) {
    draft.event(level, reason, vm, message);
}

fn set_power_spec(vm: &mut Vm, power: Power) {
    if vm.spec.power != power {
        vm.spec.power = power;
        vm.metadata.generation = vm.metadata.generation.next();
    }
}

/// How its process is built by now. Not while it moves: both ends hold room for it as it was then.
fn is_built(draft: &mut Draft, vm: &mut Vm, built: Option<&Built>) -> Result<(), Rejected> {
    if draft.state.migration_of(vm).is_some_and(|m| m.status.phase != MigrationPhase::Planned) {
        let message = format!("VM {} is being migrated", vm.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    vm.status.built = built.cloned();
    let before = std::mem::take(&mut vm.status.pending);
    vm.status.pending = built.map(|built| built.pending(&vm.spec)).unwrap_or_default();
    let message = match built {
        Some(built) if !vm.status.pending.is_empty() => {
            let note = if built.note.is_empty() { String::new() } else { format!(" ({})", built.note) };
            format!("{} cannot follow before its next start{note}", vm.status.pending.join(", "))
        }
        _ if before.is_empty() => return Ok(()),
        _ => "its machine is as its spec asks".to_owned(),
    };
    note(draft, vm, EventLevel::Normal, "VmChanged", message);
    Ok(())
}

/// Disks that only this host has tie the VM to it.
pub(crate) fn keep_disks_here(vm: &mut Vm) {
    if vm.spec.has_local_disks() {
        vm.status.volumes_on = vm.status.host;
    }
}

fn runs(
    draft: &mut Draft,
    vm: &mut Vm,
    event: VmEvent,
    pid: Option<u32>,
    vnc: Option<String>,
) -> Result<(), Rejected> {
    let before = vm.status.phase;
    enter(draft, vm, event)?;
    vm.status.pid = pid;
    vm.status.vnc = vnc;
    // What was saved is in memory again, and the disks move on from it: it must never be restored twice.
    vm.status.saved = None;
    keep_disks_here(vm);
    let adopted = vm.status.adoption == Some(Adoption::Asked);
    if adopted {
        vm.status.adoption = Some(Adoption::Done);
    }
    let (reason, message) = match (before, vm.status.phase) {
        (VmPhase::Starting, _) if adopted => ("VmAdopted", "it goes on as it was, and the fleet manages it"),
        (VmPhase::Starting, _) => ("VmStarted", "its vCPUs are ready"),
        (VmPhase::Running, VmPhase::Paused) => ("VmPaused", "its vCPUs stand still"),
        (VmPhase::Paused, VmPhase::Running) => ("VmResumed", "its vCPUs run again"),
        _ => return Ok(()),
    };
    note(draft, vm, EventLevel::Normal, reason, message);
    Ok(())
}

/// The process is gone as the fleet wanted. When somebody wants it back meanwhile, it is started afresh.
fn stopped(draft: &mut Draft, vm: &mut Vm) -> Result<(), Rejected> {
    let wanted = vm.spec.power != Power::Stopped;
    enter(draft, vm, if wanted { VmEvent::Restart } else { VmEvent::Ended })?;
    unbind(vm);
    if vm.status.saved.is_some() && !wanted {
        // It was told to stop before the restore had run: the saved memory is as good as before.
        vm.status.phase = VmPhase::Saved;
    }
    note(draft, vm, EventLevel::Normal, "VmStopped", "its process was ended as asked");
    Ok(())
}

fn died(draft: &mut Draft, vm: &mut Vm, message: &str) -> Result<(), Rejected> {
    let ran =
        vm.status.phase == VmPhase::Running && draft.now().millis_since(vm.status.since) >= STEADY_RUN_MS;
    if ran {
        vm.status.restarts = 0;
    }
    note(draft, vm, EventLevel::Warning, "VmCrashed", message);
    if vm.spec.power == Power::Stopped {
        enter(draft, vm, VmEvent::Ended)?;
    } else if vm.spec.restart == RestartPolicy::OnCrash && vm.status.restarts < RESTARTS_MAX {
        enter(draft, vm, VmEvent::Restart)?;
        vm.status.restarts += 1;
        "Crashed".clone_into(&mut vm.status.reason);
        message.clone_into(&mut vm.status.message);
    } else {
        enter(draft, vm, VmEvent::Fail)?;
        let often = vm.spec.restart == RestartPolicy::OnCrash;
        if often { "CrashLoop" } else { "Crashed" }.clone_into(&mut vm.status.reason);
        message.clone_into(&mut vm.status.message);
    }
    unbind(vm);
    Ok(())
}

/// Both sides of a migration died around the hand-over: a crash like any other.
pub(crate) fn restarted(draft: &mut Draft, vm: &mut Vm, message: &str) -> Result<(), Rejected> {
    died(draft, vm, message)
}
