//! What each step of a migration does. The table has already said that the step is legal.

use dunlin_model::decision::Effect;
use dunlin_model::event::EventLevel;
use dunlin_model::migration::{Migration, MigrationFigures, MigrationOutcome, MigrationPhase};
use dunlin_model::vm::{Disk, Power, Vm, VmPhase};
use dunlin_model::{ErrorCode, Generation, HostId, Incarnation, Kind, MigrationId};

use super::next;
use crate::command::MigrationEvent;
use crate::draft::Draft;
use crate::reserve::check_room;
use crate::vm::{fresh_incarnation, keep_disks_here, refuse_moved, restarted, taker};
use crate::{Rejected, State, rules};

pub(crate) fn step(draft: &mut Draft, id: MigrationId, event: &MigrationEvent) -> Result<(), Rejected> {
    let mut migration = draft.take::<Migration>(id)?;
    let phase = next(migration.status.phase, event).map_err(|illegal| {
        Rejected::new(ErrorCode::WrongState, format!("migration {}: {illegal}", migration.metadata.name))
    })?;
    let mut vm = draft.take::<Vm>(migration.spec.vm)?;
    let m = &mut migration;
    match event {
        MigrationEvent::Reserve { host, vm_generation, vm_incarnation, disk_bytes, why } => {
            reserve(draft, m, &vm, *host, *vm_generation, *vm_incarnation)?;
            m.status.disk_bytes.clone_from(disk_bytes);
            m.status.chosen = why.as_deref().cloned();
        }
        MigrationEvent::Wait { reason, message } => say(m, reason, message),
        MigrationEvent::Ready { endpoint } => m.status.endpoint = Some(endpoint.clone()),
        MigrationEvent::Started => {}
        MigrationEvent::HandOver { figures } => hand_over(draft, m, &mut vm, *figures)?,
        MigrationEvent::HandBack { reason, message } => {
            hand_back(draft, m, &mut vm);
            say(m, reason, message);
        }
        MigrationEvent::Arrived { figures, outcome } => arrived(draft, m, &mut vm, *figures, *outcome)?,
        // The reason of a cancel is kept: it came first.
        MigrationEvent::Abort { reason, message } if !m.status.cancel => say(m, reason, message),
        MigrationEvent::Abort { .. } => {}
        MigrationEvent::Cleaned { outcome } => {
            m.status.outcome = Some(*outcome);
            vm.status.migration = None;
        }
    }
    if phase != m.status.phase {
        m.status.phase = phase;
        m.status.history.push((phase, draft.now()));
        announce(draft, m, &vm);
    }
    draft.put(migration);
    draft.put(vm);
    draft.answer(Kind::Migration, id.0);
    Ok(())
}

fn say(migration: &mut Migration, reason: &str, message: &str) {
    reason.clone_into(&mut migration.status.reason);
    message.clone_into(&mut migration.status.message);
}

fn refuse(migration: &Migration, why: &str) -> Rejected {
    Rejected::new(ErrorCode::WrongState, format!("migration {}: {why}", migration.metadata.name))
}

/// Refuses when the guest does not run, or is not meant to.
fn refuse_halted(migration: &Migration, vm: &Vm) -> Result<(), Rejected> {
    if migration.status.cancel {
        return Err(refuse(migration, "it was asked to end"));
    }
    let runs = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused);
    if runs && vm.spec.power != Power::Stopped {
        return Ok(());
    }
    Err(refuse(migration, "its VM does not run, or is to be stopped"))
}

impl State {
    /// Live migrations beyond Planned that a host takes part in.
    #[must_use]
    pub fn migrations_on(&self, host: HostId) -> usize {
        self.host_migrations(host).filter(|m| m.status.phase != MigrationPhase::Planned).count()
    }

    /// Live migrations beyond Planned.
    #[must_use]
    pub fn migrations_running(&self) -> usize {
        self.active_migrations().filter(|m| m.status.phase != MigrationPhase::Planned).count()
    }

    /// Live migrations that may run at once.
    #[must_use]
    pub fn migrations_per_fleet(&self) -> usize {
        let spec = self.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
        usize::try_from(spec.migrations_per_fleet).unwrap_or(usize::MAX)
    }

    /// Live migrations a host may take part in at once.
    #[must_use]
    pub fn migrations_per_host(&self) -> usize {
        let spec = self.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
        usize::try_from(spec.migrations_per_host).unwrap_or(usize::MAX)
    }
}

fn reserve(
    draft: &mut Draft,
    migration: &mut Migration,
    vm: &Vm,
    to: HostId,
    generation: Generation,
    incarnation: Incarnation,
) -> Result<(), Rejected> {
    refuse_halted(migration, vm)?;
    refuse_moved(vm, generation, incarnation)?;
    let host = taker(draft, to)?;
    let from = vm.status.host.ok_or_else(|| refuse(migration, "its VM has no host"))?;
    if from == to {
        return Err(refuse(migration, "its VM is on that host already"));
    }
    if migration.spec.to.as_ref().is_some_and(|name| *name != host.metadata.name) {
        return Err(refuse(migration, "another destination was asked for"));
    }
    let budget = draft.state.migrations_per_host();
    if [from, to].iter().any(|host| draft.state.migrations_on(*host) >= budget) {
        let message = format!("its hosts take part in {budget} migrations at once at most");
        return Err(Rejected::new(ErrorCode::NoCapacity, message));
    }
    let fleet = draft.state.migrations_per_fleet();
    if draft.state.migrations_running() >= fleet {
        let message = format!("the fleet runs {fleet} migrations at once at most");
        return Err(Rejected::new(ErrorCode::NoCapacity, message));
    }
    rules::check(draft.state, vm, &host)?;
    check_room(draft.state, &host, &vm.spec)?;
    migration.status.to = Some(to);
    migration.status.to_name = Some(host.metadata.name.clone());
    migration.status.incarnation = fresh_incarnation(draft, vm.metadata.uid);
    let mut fence = draft.state.fence(vm.metadata.uid);
    fence.source = vm.status.incarnation;
    draft.state.fences.insert(vm.metadata.uid, fence);
    say(migration, "", "");
    Ok(())
}

/// THE commit: from here on only the destination may run the guest.
fn hand_over(
    draft: &Draft,
    migration: &mut Migration,
    vm: &mut Vm,
    figures: MigrationFigures,
) -> Result<(), Rejected> {
    refuse_halted(migration, vm)?;
    if vm.status.incarnation != draft.state.fence(vm.metadata.uid).source {
        return Err(refuse(migration, "its VM's incarnation has moved"));
    }
    migration.status.figures = Some(figures);
    vm.status.host = migration.status.to;
    vm.status.host_name.clone_from(&migration.status.to_name);
    vm.status.incarnation = migration.status.incarnation;
    vm.status.continues = None;
    vm.status.pid = None;
    vm.status.vnc = None;
    keep_disks_here(vm);
    Ok(())
}

/// The destination never ran it: the source's process carries on, under a number nobody has had.
fn hand_back(draft: &mut Draft, migration: &Migration, vm: &mut Vm) {
    vm.status.continues = Some(draft.state.fence(vm.metadata.uid).source);
    vm.status.incarnation = fresh_incarnation(draft, vm.metadata.uid);
    vm.status.host = migration.status.from;
    vm.status.host_name.clone_from(&migration.status.from_name);
    vm.status.pid = None;
    vm.status.vnc = None;
    keep_disks_here(vm);
}

fn arrived(
    draft: &mut Draft,
    migration: &mut Migration,
    vm: &mut Vm,
    figures: MigrationFigures,
    outcome: MigrationOutcome,
) -> Result<(), Rejected> {
    migration.status.figures = Some(figures);
    migration.status.outcome = Some(outcome);
    vm.status.migration = None;
    if outcome == MigrationOutcome::Restarted && vm.status.phase != VmPhase::Deleting {
        restarted(draft, vm, "source and destination of its migration both died around the hand-over")?;
    }
    Ok(())
}

/// What becomes of the files that the guest wrote to at paths of its old host.
fn left_behind(state: &State, vm: &Vm, from: &str) -> String {
    let incarnation = state.fence(vm.metadata.uid).source;
    let one = |disk: &Disk| {
        let path = disk.own_path()?;
        let aside = Disk::left_behind(path, &vm.metadata.name, incarnation);
        Some(format!(
            "; {path} on {from} is out of date and becomes {aside}, or goes if a migration had made it"
        ))
    };
    vm.spec.disks.iter().filter_map(one).collect()
}

fn announce(draft: &mut Draft, migration: &Migration, moved: &Vm) {
    let status = &migration.status;
    let vm = &migration.spec.vm_name;
    let to = status.to_name.as_ref().map_or("another host".to_owned(), ToString::to_string);
    let from = status.from_name.as_ref().map_or("its host".to_owned(), ToString::to_string);
    let why = &status.message;
    let (level, reason, message) = match status.phase {
        MigrationPhase::Planned | MigrationPhase::Prepared | MigrationPhase::Copying => return,
        MigrationPhase::Reserved => {
            (EventLevel::Normal, "MigrationReserved", format!("host {to} makes ready for VM {vm}"))
        }
        MigrationPhase::Switching => {
            (EventLevel::Normal, "MigrationHandedOver", format!("VM {vm} now belongs to host {to}"))
        }
        MigrationPhase::Done => match status.outcome {
            Some(MigrationOutcome::Moved) => {
                let ms = status.figures.unwrap_or_default().downtime_ms;
                let old = left_behind(draft.state, moved, &from);
                (
                    EventLevel::Normal,
                    "MigrationDone",
                    format!("VM {vm} moved from {from} to {to}, downtime {ms} ms{old}"),
                )
            }
            Some(MigrationOutcome::Restarted) => (
                EventLevel::Warning,
                "MigrationRestarted",
                format!("VM {vm} is started afresh: both sides died"),
            ),
            _ => (EventLevel::Warning, "MigrationGone", format!("VM {vm} is gone")),
        },
        MigrationPhase::Aborting => (EventLevel::Warning, "MigrationAborting", format!("VM {vm}: {why}")),
        MigrationPhase::Aborted => {
            let place = match status.outcome {
                Some(MigrationOutcome::HandedBack) => format!("handed back to {from}"),
                Some(MigrationOutcome::StayedOnSource) => format!("stayed on {from}"),
                _ => "is gone".to_owned(),
            };
            (EventLevel::Warning, "MigrationAborted", format!("VM {vm} {place}: {why}"))
        }
    };
    draft.event(level, reason, migration, message);
}

/// Written once, of one that is over and had grounds.
pub(crate) fn note_effect(draft: &mut Draft, id: MigrationId, effect: Effect) -> Result<(), Rejected> {
    let mut migration = draft.take::<Migration>(id)?;
    if migration.spec.grounds.is_none() || !migration.status.phase.is_terminal() {
        return Err(refuse(&migration, "nothing was predicted of it, or it is not over"));
    }
    if migration.status.effect.is_none() {
        migration.status.effect = Some(effect);
        draft.put(migration);
    }
    Ok(())
}
