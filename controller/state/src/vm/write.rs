//! What users write of VMs.

use dunlin_model::capabilities::{DriverPower, unsupported};
use dunlin_model::event::EventLevel;
use dunlin_model::host::Host;
use dunlin_model::vm::{Adoption, Built, Power, Vm, VmPhase, VmSpec, VmStatus};
use dunlin_model::{ErrorCode, Invalid, Kind, Labels, Level, Name, Revision, Secret, VmId, meta};

use super::{VmEvent, enter};
use crate::command::NewVm;
use crate::draft::{Draft, refuse_stale};
use crate::reserve::{check_room, held};
use crate::{Rejected, State, migration, quota};

pub(crate) fn create(
    draft: &mut Draft,
    uid: VmId,
    own_uid: bool,
    name: &Name,
    labels: &Labels,
    spec: &VmSpec,
) -> Result<(), Rejected> {
    check_spec(draft.state, spec)?;
    quota::admit(draft.state, None, spec)?;
    meta::validate_labels(labels)?;
    let metadata = draft.card::<Vm, _>(uid, uid.0, name, labels)?;
    if own_uid {
        super::skip_incarnations(draft, uid);
    }
    let status = VmStatus { since: draft.now(), ..VmStatus::default() };
    let mut vm = Vm { metadata, spec: spec.clone(), status };
    keep_secrets(&mut vm.spec, None)?;
    if spec.power != Power::Stopped {
        enter(draft, &mut vm, VmEvent::Start)?;
    }
    let message = format!("{} vCPUs, {} MiB", spec.cpus, spec.mem_mib);
    draft.event(EventLevel::Normal, "VmCreated", &vm, message);
    draft.put(vm);
    Ok(())
}

/// All of them or, when one is refused, none; the refusal says which.
pub(crate) fn create_all(draft: &mut Draft, vms: &[NewVm]) -> Result<(), Rejected> {
    for (at, NewVm { uid, own_uid, name, labels, spec }) in vms.iter().enumerate() {
        create(draft, *uid, *own_uid, name, labels, spec).map_err(|rejected| {
            let message = format!("objects[{at}]: {}", rejected.message);
            Rejected { message, ..rejected }
        })?;
    }
    Ok(())
}

pub(super) fn check_spec(state: &State, spec: &VmSpec) -> Result<(), Rejected> {
    spec.validate()?;
    for image in spec.images() {
        state.find::<dunlin_model::image::Image>(image)?;
    }
    if let Some(host) = &spec.placement.host {
        state.find::<Host>(host)?;
    }
    Ok(())
}

/// A secret written back as it reads keeps the stored one.
fn keep_secrets(spec: &mut VmSpec, stored: Option<&VmSpec>) -> Result<(), Rejected> {
    let mut stored = stored.cloned();
    for (field, secret) in spec.secrets_mut().filter(|(_, secret)| secret.expose() == Secret::REDACTED) {
        let kept = stored.as_mut().and_then(|spec| {
            let mut all = spec.secrets_mut();
            all.find(|(other, _)| *other == field).map(|(_, kept)| kept.clone())
        });
        let problem = "is the mark of a hidden value, and none is stored";
        *secret = kept.ok_or_else(|| Invalid::new(field, problem, "the value itself"))?;
    }
    Ok(())
}

pub(crate) fn update(
    draft: &mut Draft,
    uid: VmId,
    read: Revision,
    labels: &Labels,
    spec: &VmSpec,
) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    refuse_stale(vm.clone(), read)?;
    refuse_deleting(&vm)?;
    meta::validate_labels(labels)?;
    let mut spec = spec.clone();
    keep_secrets(&mut spec, Some(&vm.spec))?;
    if spec != vm.spec {
        check_spec(draft.state, &spec)?;
        refuse_rebuild(draft.state, &vm, &spec)?;
        quota::admit(draft.state, Some(&vm), &spec)?;
        rebuild(draft, &mut vm, &spec)?;
    }
    let (power, before) = (spec.power, vm.spec.power);
    vm.metadata.labels.clone_from(labels);
    vm.spec = VmSpec { power: before, ..spec };
    if vm.status.built.is_some() {
        super::keep_disks_here(&mut vm);
    }
    if draft.state.vm(uid).is_some_and(|stored| stored.spec != vm.spec) {
        vm.metadata.generation = vm.metadata.generation.next();
    }
    want(draft, &mut vm, power)?;
    draft.put(vm);
    Ok(())
}

/// Is there a process to which disks may be given and from which they may be taken?
fn may_follow(vm: &Vm) -> bool {
    matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused)
        && vm.status.saved.is_none()
        && vm.status.migration.is_none()
        && vm.status.task.is_none()
}

/// And is everybody able to read that it follows?
fn follows(state: &State, vm: &Vm) -> bool {
    state.level() >= Level::REBUILDING && may_follow(vm)
}

/// While a process or saved memory may exist, the machine it belongs to stays as it is, but for what a running machine
/// can follow, or its next start.
fn refuse_rebuild(state: &State, vm: &Vm, spec: &VmSpec) -> Result<(), Rejected> {
    let built =
        vm.status.phase.holds_reservation() || vm.status.saved.is_some() || vm.status.migration.is_some();
    let mut same = VmSpec {
        power: spec.power,
        restart: spec.restart,
        placement: spec.placement.clone(),
        ..vm.spec.clone()
    };
    let mut may = "labels, power, restart and placement";
    if follows(state, vm) {
        same = Built::of(spec).onto(&same);
        may = "labels, power, restart, placement, disks, nics, cpus and mem_mib";
    }
    if !built || same == *spec {
        return Ok(());
    }
    let mut message =
        format!("VM {} is {}: only {may} can change now; stop it first", vm.metadata.name, vm.status.phase);
    if state.level() < Level::REBUILDING && may_follow(vm) && Built::of(spec).onto(&same) == *spec {
        let needs = Level::REBUILDING;
        message.push_str(&format!(", or raise the feature level to {needs}: see `dunlin cluster upgrade`"));
    }
    Err(Rejected::new(ErrorCode::WrongState, message))
}

/// A process that runs has what it was built with until its host says otherwise; what it is to get more of, its host
/// must have.
fn rebuild(draft: &Draft, vm: &mut Vm, spec: &VmSpec) -> Result<(), Rejected> {
    let built = vm.status.built.clone().unwrap_or_else(|| Built::of(&vm.spec));
    let host = vm.status.host.and_then(|host| draft.state.host(host)).filter(|_| follows(draft.state, vm));
    let Some(host) = host else { return Ok(()) };
    let has = held(vm);
    let more = VmSpec {
        cpus: spec.cpus.saturating_sub(u32::try_from(has.cpus).unwrap_or(u32::MAX)),
        mem_mib: spec.mem_mib.saturating_sub(has.mem_mib),
        ..spec.clone()
    };
    if more.cpus > 0 || more.mem_mib > 0 {
        check_room(draft.state, host, &more)?;
    }
    vm.status.pending = built.pending(spec);
    if vm.status.built.is_some() || !vm.status.pending.is_empty() {
        vm.status.built = Some(built);
    }
    Ok(())
}

fn refuse_deleting(vm: &Vm) -> Result<(), Rejected> {
    if vm.status.phase == VmPhase::Deleting {
        let message = format!("VM {} is being deleted", vm.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    Ok(())
}

pub(crate) fn set_power(draft: &mut Draft, uid: VmId, power: Power) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    refuse_deleting(&vm)?;
    if power == Power::Paused
        && let Some(host) = vm.status.host.and_then(|host| draft.state.host(host))
        && let Some(driver) = host.status.capabilities.driver(vm.spec.driver)
        && driver.lacks(DriverPower::Pause)
    {
        return Err(Rejected::new(ErrorCode::Unsupported, unsupported(vm.spec.driver, "pause")));
    }
    want(draft, &mut vm, power)?;
    draft.put(vm);
    Ok(())
}

/// Sets the power that is wanted, and takes the step that follows at once where no process is involved.
fn want(draft: &mut Draft, vm: &mut Vm, power: Power) -> Result<(), Rejected> {
    if vm.spec.power != power {
        vm.spec.power = power;
        vm.metadata.generation = vm.metadata.generation.next();
    }
    let on = power != Power::Stopped;
    match vm.status.phase {
        VmPhase::Stopped | VmPhase::Failed | VmPhase::Saved if on => {
            vm.status.restarts = 0;
            enter(draft, vm, VmEvent::Start)?;
        }
        VmPhase::Pending | VmPhase::Failed if !on => {
            let saved = vm.status.saved.is_some();
            enter(draft, vm, if saved { VmEvent::KeepSaved } else { VmEvent::GiveUp })?;
        }
        _ => {}
    }
    if !on {
        migration::call_off(draft, vm, "the VM is to be stopped")?;
    }
    Ok(())
}

pub(crate) fn delete(draft: &mut Draft, uid: VmId) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    if vm.status.phase == VmPhase::Deleting {
        return Ok(());
    }
    enter(draft, &mut vm, VmEvent::Delete)?;
    migration::call_off(draft, &vm, "the VM is to be deleted")?;
    draft.event(EventLevel::Normal, "VmDeleting", &vm, "its guest and disks go");
    draft.put(vm);
    draft.answer(Kind::Vm, uid.0);
    Ok(())
}

pub(crate) fn forget(draft: &mut Draft, uid: VmId) -> Result<(), Rejected> {
    let vm = draft.take::<Vm>(uid)?;
    if vm.status.phase != VmPhase::Deleting || vm.status.migration.is_some() {
        let message = format!("VM {} is {} and not to be forgotten yet", vm.metadata.name, vm.status.phase);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    draft.state.fences.remove(&uid);
    let (reason, message) = match vm.status.adoption {
        Some(Adoption::Leaving) => ("VmReleased", "it is not the fleet's any more"),
        _ => ("VmDeleted", "nothing of it is left"),
    };
    draft.event(EventLevel::Normal, reason, &vm, message);
    draft.remove(Kind::Vm, uid.0);
    Ok(())
}
