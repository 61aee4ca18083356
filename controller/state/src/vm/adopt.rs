//! Guests that somebody else started: taken under management where they run, and handed back.
//!
//! ```text
//!  (unmanaged) --adopt--> Starting, Asked --seen--> Running, Done --release--> Deleting, Leaving --gone--> (unmanaged)
//!                               \---- refused by its host: as if nobody had asked ----^
//! ```

use dunlin_model::event::EventLevel;
use dunlin_model::host::{Host, HostPhase};
use dunlin_model::vm::{Adoption, Power, Vm, VmPhase, VmSpec, VmStatus};
use dunlin_model::{ErrorCode, HostId, Kind, Labels, Name, VmId};

use super::write::check_spec;
use super::{VmEvent, enter, fresh_incarnation, skip_incarnations};
use crate::draft::Draft;
use crate::{Rejected, quota};

/// The reason of a VM that is being handed back.
const RELEASING: &str = "Releasing";

pub(crate) fn adopt(
    draft: &mut Draft,
    uid: VmId,
    name: &Name,
    spec: &VmSpec,
    host: HostId,
) -> Result<(), Rejected> {
    if let Some(vm) = draft.state.vm(uid) {
        let again = matches!(vm.status.adoption, Some(Adoption::Asked | Adoption::Done))
            && vm.status.phase != VmPhase::Deleting;
        if again {
            draft.answer(Kind::Vm, uid.0);
            return Ok(());
        }
        let message = format!("VM {} has the uid {uid} already", vm.metadata.name);
        return Err(Rejected::new(ErrorCode::AlreadyExists, message));
    }
    let host = running_on(draft, host)?;
    check_spec(draft.state, spec)?;
    quota::admit(draft.state, None, spec)?;
    let metadata = draft.card::<Vm, _>(uid, uid.0, name, &Labels::new())?;
    skip_incarnations(draft, uid);
    let status = VmStatus { since: draft.now(), adoption: Some(Adoption::Asked), ..VmStatus::default() };
    let mut vm = Vm { metadata, spec: spec.clone(), status };
    enter(draft, &mut vm, VmEvent::Start)?;
    enter(draft, &mut vm, VmEvent::Bind)?;
    vm.status.host = Some(host.metadata.uid);
    vm.status.host_name = Some(host.metadata.name.clone());
    vm.status.incarnation = fresh_incarnation(draft, uid);
    let message = format!("it runs on host {} already", host.metadata.name);
    draft.event(EventLevel::Normal, "VmAdopting", &vm, message);
    draft.put(vm);
    Ok(())
}

/// The host, if it can be told. What runs there runs there, whether or not more may be placed.
fn running_on(draft: &Draft, id: HostId) -> Result<Host, Rejected> {
    let host = draft.state.host(id).cloned();
    let host = host.ok_or_else(|| Rejected::new(ErrorCode::NotFound, format!("no host has the uid {id}")))?;
    if host.status.phase == HostPhase::Up {
        return Ok(host);
    }
    Err(Rejected::new(ErrorCode::WrongState, format!("host {} is not up", host.metadata.name)))
}

pub(crate) fn release(draft: &mut Draft, uid: VmId) -> Result<(), Rejected> {
    let mut vm = draft.take::<Vm>(uid)?;
    let name = vm.metadata.name.clone();
    let wrong = |why: &str| Err(Rejected::new(ErrorCode::WrongState, format!("VM {name} {why}")));
    match vm.status.adoption {
        Some(Adoption::Leaving) => return Ok(()),
        None => return wrong("was made by the fleet, and there is nobody to hand it back to"),
        Some(Adoption::Asked | Adoption::Done) => {}
    }
    if vm.status.migration.is_some() {
        return wrong("is in a migration; release it when that is over");
    }
    if vm.status.task.is_some() || vm.status.saved.is_some() {
        return wrong("has saved memory, which would be lost; restore it first");
    }
    if vm.status.phase == VmPhase::Deleting || vm.spec.power == Power::Stopped && vm.status.host.is_some() {
        return wrong("is being stopped or deleted");
    }
    enter(draft, &mut vm, VmEvent::Delete)?;
    vm.status.adoption = Some(Adoption::Leaving);
    RELEASING.clone_into(&mut vm.status.reason);
    "its host hands it back as it is".clone_into(&mut vm.status.message);
    draft.event(EventLevel::Normal, "VmReleasing", &vm, "it goes on where it is, and nobody here manages it");
    draft.put(vm);
    draft.answer(Kind::Vm, uid.0);
    Ok(())
}

/// Its host has no such guest, or cannot take it over: it is let go of, as if nobody had asked.
pub(super) fn refused(draft: &mut Draft, vm: &mut Vm, why: &str) -> Result<(), Rejected> {
    enter(draft, vm, VmEvent::Delete)?;
    vm.status.adoption = Some(Adoption::Leaving);
    "AdoptionRefused".clone_into(&mut vm.status.reason);
    why.clone_into(&mut vm.status.message);
    draft.event(EventLevel::Warning, "VmAdoptionRefused", vm, why);
    Ok(())
}
