//! What users write of migrations, and what their other writes do to one under way.

use dunlin_model::capabilities::{DriverPower, unsupported};
use dunlin_model::event::EventLevel;
use dunlin_model::host::Host;
use dunlin_model::migration::{
    Migration, MigrationCause, MigrationOutcome, MigrationPhase, MigrationSpec, MigrationStatus,
};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{ErrorCode, HostId, Kind, Labels, MigrationId, Name};

use super::{before_hand_over, steps};
use crate::command::MigrationEvent;
use crate::draft::Draft;
use crate::{Rejected, State};

impl State {
    /// Can this VM be live-migrated now, wherever to? The refusal says why not.
    pub fn check_movable(&self, vm: &Vm) -> Result<&Host, Rejected> {
        let name = &vm.metadata.name;
        let wrong = |why: String| Rejected::new(ErrorCode::WrongState, format!("VM {name} {why}"));
        if let Some(migration) = self.migration_of(vm) {
            return Err(wrong(format!("is being migrated already, by {}", migration.metadata.name)));
        }
        if let Some(task) = vm.status.task.and_then(|task| self.task(task)) {
            return Err(wrong(format!("is being saved, by task {}", task.metadata.name)));
        }
        if !matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused) || vm.spec.power == Power::Stopped {
            let phase = if vm.spec.power == Power::Stopped {
                "to be stopped".to_owned()
            } else {
                vm.status.phase.to_string()
            };
            return Err(wrong(format!("is {phase}; only a running or paused VM is live-migrated")));
        }
        let host = vm.status.host.and_then(|host| self.host(host));
        let host = host.ok_or_else(|| wrong("has no host".to_owned()))?;
        let driver = host.status.capabilities.driver(vm.spec.driver);
        let can = |power| driver.is_some_and(|driver| !driver.lacks(power));
        let lacks = |what: &str| {
            let verb = format!("migrate {what}").trim_end().to_owned();
            Rejected::new(ErrorCode::Unsupported, unsupported(vm.spec.driver, &verb))
        };
        if !can(DriverPower::Migrate) {
            return Err(lacks(""));
        }
        if vm.spec.has_local_disks() && !can(DriverPower::MigrateStorage) {
            return Err(lacks("with disks that are not shared"));
        }
        Ok(host)
    }
}

pub(crate) fn create(
    draft: &mut Draft,
    uid: MigrationId,
    name: &Name,
    spec: &MigrationSpec,
) -> Result<(), Rejected> {
    spec.limits.validate()?;
    let mut vm = draft.take::<Vm>(spec.vm)?;
    let from = draft.state.check_movable(&vm)?.clone();
    if let Some(to) = &spec.to {
        let to = draft.state.find::<Host>(to)?;
        if to.metadata.uid == from.metadata.uid {
            let message = format!("VM {} is on host {} already", vm.metadata.name, to.metadata.name);
            return Err(Rejected::new(ErrorCode::WrongState, message));
        }
    }
    let metadata = draft.card::<Migration, _>(uid, uid.0, name, &Labels::new())?;
    let status = MigrationStatus {
        from: Some(from.metadata.uid),
        from_name: Some(from.metadata.name.clone()),
        history: vec![(MigrationPhase::Planned, draft.now())],
        ..MigrationStatus::default()
    };
    let spec = MigrationSpec { vm_name: vm.metadata.name.clone(), ..spec.clone() };
    let migration = Migration { metadata, spec, status };
    vm.status.migration = Some(uid);
    let message = format!("VM {} is to leave host {}", vm.metadata.name, from.metadata.name);
    draft.event(EventLevel::Normal, "MigrationPlanned", &migration, message);
    draft.put(migration);
    draft.put(vm);
    Ok(())
}

pub(crate) fn cancel(draft: &mut Draft, uid: MigrationId) -> Result<(), Rejected> {
    let mut migration = draft.take::<Migration>(uid)?;
    let wrong = |why: &str| {
        Rejected::new(ErrorCode::WrongState, format!("migration {} {why}", migration.metadata.name))
    };
    match migration.status.phase {
        MigrationPhase::Done | MigrationPhase::Aborted => return Err(wrong("is over")),
        MigrationPhase::Switching => {
            return Err(wrong(
                "has handed the guest over already: only the destination may continue; migrate it back instead",
            ));
        }
        MigrationPhase::Aborting => return Ok(()),
        MigrationPhase::Planned
        | MigrationPhase::Reserved
        | MigrationPhase::Prepared
        | MigrationPhase::Copying => {}
    }
    migration.status.cancel = true;
    "Cancelled".clone_into(&mut migration.status.reason);
    "cancelled on request".clone_into(&mut migration.status.message);
    draft.put(migration);
    Ok(())
}

/// A VM that is to be stopped or deleted needs no migration any more. After the hand-over it is too late: the migration
/// runs to its end first.
pub(crate) fn call_off(draft: &mut Draft, vm: &Vm, why: &str) -> Result<(), Rejected> {
    let Some(mut migration) = draft.state.migration_of(vm).cloned() else { return Ok(()) };
    if before_hand_over(&migration) && !migration.status.cancel {
        migration.status.cancel = true;
        "VmGone".clone_into(&mut migration.status.reason);
        why.clone_into(&mut migration.status.message);
        draft.put(migration);
    }
    Ok(())
}

/// A drain was cancelled: what it has begun and not yet handed over stays where it is.
pub(crate) fn call_off_drain(draft: &mut Draft, host: HostId) -> Result<(), Rejected> {
    let moves: Vec<Migration> = draft.state.host_migrations(host).cloned().collect();
    for mut migration in moves {
        let ours = migration.spec.cause == MigrationCause::Drain && migration.status.from == Some(host);
        if ours && before_hand_over(&migration) && !migration.status.cancel {
            migration.status.cancel = true;
            "Cancelled".clone_into(&mut migration.status.reason);
            "the drain of its host was cancelled".clone_into(&mut migration.status.message);
            draft.put(migration);
        }
    }
    Ok(())
}

/// The admin vouches that nothing runs on this host any more: its migrations end accordingly.
pub(crate) fn host_removed(draft: &mut Draft, host: HostId) -> Result<(), Rejected> {
    let moves: Vec<Migration> = draft.state.host_migrations(host).cloned().collect();
    for migration in moves {
        let id = migration.metadata.uid;
        let reason = "HostRemoved".to_owned();
        let message = "a host of the migration was removed".to_owned();
        if before_hand_over(&migration) {
            steps::step(draft, id, &MigrationEvent::Abort { reason, message })?;
        } else if migration.status.phase == MigrationPhase::Switching && migration.status.to == Some(host) {
            let deleting =
                draft.state.vm(migration.spec.vm).is_none_or(|vm| vm.status.phase == VmPhase::Deleting);
            let event = if deleting {
                let figures = migration.status.figures.unwrap_or_default();
                MigrationEvent::Arrived { figures, outcome: MigrationOutcome::Gone }
            } else {
                MigrationEvent::HandBack { reason, message }
            };
            steps::step(draft, id, &event)?;
        }
    }
    draft.answer(Kind::Host, host.0);
    Ok(())
}
