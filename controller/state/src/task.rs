//! Tasks: the one table of phases, who may begin one, and what its end brings.

use dunlin_model::capabilities::{DriverPower, unsupported};
use dunlin_model::event::EventLevel;
use dunlin_model::host::Host;
use dunlin_model::task::{Act, DrainProgress, Task, TaskPhase, TaskSpec, TaskStatus};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{ErrorCode, HostId, Invalid, Kind, Labels, Name, TaskId, VmId};
use thiserror::Error;

use crate::draft::Draft;
use crate::state::OrderFor;
use crate::{Rejected, host, migration};

/// Seconds a power button may be waited for.
const TIMEOUT_S: std::ops::RangeInclusive<u64> = 1..=86_400;

/// A step the table does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a task that is {from} cannot become {to}")]
pub struct Illegal {
    /// Where it stands.
    pub from: TaskPhase,
    /// Where it was to go.
    pub to: TaskPhase,
}

/// The table.
pub const fn next(from: TaskPhase, to: TaskPhase) -> Result<TaskPhase, Illegal> {
    use TaskPhase as P;
    match (from, to) {
        (P::Queued | P::Running, P::Running | P::Succeeded | P::Failed | P::Cancelled) => Ok(to),
        _ => Err(Illegal { from, to }),
    }
}

pub(crate) fn create(draft: &mut Draft, uid: TaskId, name: &Name, spec: &TaskSpec) -> Result<(), Rejected> {
    match spec.act {
        Act::Shutdown { timeout_s } | Act::Reboot { timeout_s } if !TIMEOUT_S.contains(&timeout_s) => {
            let problem = format!("{timeout_s} is out of range");
            return Err(Invalid::new("spec.act.timeout_s", problem, "1 to 86400").into());
        }
        _ => {}
    }
    let mut status = TaskStatus::default();
    let spec = match spec.act {
        Act::Drain => {
            let was_cordoned = draft.state.host(HostId(spec.uid)).is_some_and(|host| host.spec.cordoned);
            status.drain = Some(DrainProgress { was_cordoned, ..DrainProgress::default() });
            drain(draft, uid, spec)?
        }
        Act::Shutdown { .. } | Act::Reboot { .. } | Act::Reset | Act::Save => order(draft, uid, spec)?,
    };
    let metadata = draft.card::<Task, _>(uid, uid.0, name, &Labels::new())?;
    let task = Task { metadata, spec, status };
    let message = format!("{} of {}", task.spec.act.as_str(), task.spec.name);
    draft.event(EventLevel::Normal, "TaskQueued", &task, message);
    draft.put(task);
    Ok(())
}

fn refuse_kind(spec: &TaskSpec, kind: Kind) -> Result<(), Rejected> {
    if spec.kind == kind {
        return Ok(());
    }
    let problem = format!("{} is not done to a {}", spec.act.as_str(), spec.kind);
    Err(Invalid::new("spec.kind", problem, kind.to_string()).into())
}

fn drain(draft: &mut Draft, uid: TaskId, spec: &TaskSpec) -> Result<TaskSpec, Rejected> {
    refuse_kind(spec, Kind::Host)?;
    let id = HostId(spec.uid);
    let name = draft.take::<Host>(id)?.metadata.name;
    let other = draft
        .state
        .active_tasks()
        .find(|task| task.metadata.uid != uid && task.spec.act == Act::Drain && task.spec.uid == spec.uid);
    if let Some(other) = other {
        let message = format!("host {name} is being drained already, by task {}", other.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    host::set_cordon(draft, id, true)?;
    Ok(TaskSpec { name, ..spec.clone() })
}

/// Ties the act to the process that runs now.
fn order(draft: &mut Draft, uid: TaskId, spec: &TaskSpec) -> Result<TaskSpec, Rejected> {
    refuse_kind(spec, Kind::Vm)?;
    let mut vm = draft.take::<Vm>(VmId(spec.uid))?;
    let name = vm.metadata.name.clone();
    let act = &spec.act;
    let wrong = |why: String| Rejected::new(ErrorCode::WrongState, format!("VM {name} {why}"));
    let (power, paused_too) = match act {
        Act::Save => (DriverPower::Save, true),
        Act::Reset => (DriverPower::Reset, true),
        Act::Shutdown { .. } | Act::Reboot { .. } | Act::Drain => (DriverPower::Shutdown, false),
    };
    let phase = vm.status.phase;
    if phase != VmPhase::Running && !(paused_too && phase == VmPhase::Paused) {
        return Err(wrong(format!("is {phase}; {} needs a running one", act.as_str())));
    }
    if let Some(task) = vm.status.task.and_then(|task| draft.state.task(task)) {
        return Err(wrong(format!("is being saved, by task {}", task.metadata.name)));
    }
    if let (Act::Save, Some(migration)) = (act, draft.state.migration_of(&vm)) {
        return Err(wrong(format!("is being migrated, by {}", migration.metadata.name)));
    }
    let host = vm.status.host.ok_or_else(|| wrong("has no host".to_owned()))?;
    let driver = draft.state.host(host).and_then(|host| host.status.capabilities.driver(vm.spec.driver));
    if driver.is_none_or(|driver| driver.lacks(power)) {
        return Err(Rejected::new(ErrorCode::Unsupported, unsupported(vm.spec.driver, act.as_str())));
    }
    let order = OrderFor { vm: vm.metadata.uid, host, incarnation: vm.status.incarnation };
    draft.state.orders.insert(uid, order);
    if *act == Act::Save {
        vm.status.task = Some(uid);
        draft.put(vm);
    }
    Ok(TaskSpec { name, ..spec.clone() })
}

pub(crate) fn cancel(draft: &mut Draft, uid: TaskId) -> Result<(), Rejected> {
    let mut task = draft.take::<Task>(uid)?;
    if task.status.phase.is_terminal() {
        let message = format!("task {} is over", task.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    if task.spec.act == Act::Reset {
        let message =
            format!("task {}: a reset happens at once and cannot be called back", task.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    task.status.cancel = true;
    let drained = (task.spec.act == Act::Drain).then_some(HostId(task.spec.uid));
    draft.put(task);
    if let Some(host) = drained {
        migration::call_off_drain(draft, host)?;
    }
    draft.answer(Kind::Task, uid.0);
    Ok(())
}

pub(crate) fn progress(
    draft: &mut Draft,
    uid: TaskId,
    phase: TaskPhase,
    progress_percent: u32,
    message: &str,
    drain: Option<DrainProgress>,
) -> Result<(), Rejected> {
    let mut task = draft.take::<Task>(uid)?;
    let phase = next(task.status.phase, phase).map_err(|illegal| {
        Rejected::new(ErrorCode::WrongState, format!("task {}: {illegal}", task.metadata.name))
    })?;
    task.status.started = task.status.started.or(Some(draft.now()));
    task.status.progress_percent = progress_percent.min(100);
    message.clone_into(&mut task.status.message);
    if let (Some(known), Some(news)) = (&mut task.status.drain, drain) {
        *known = DrainProgress { was_cordoned: known.was_cordoned, ..news };
    }
    task.status.phase = phase;
    if phase.is_terminal() {
        task.status.ended = Some(draft.now());
        ended(draft, &task)?;
    }
    draft.put(task);
    draft.answer(Kind::Task, uid.0);
    Ok(())
}

fn ended(draft: &mut Draft, task: &Task) -> Result<(), Rejected> {
    let (level, reason) = match task.status.phase {
        TaskPhase::Queued | TaskPhase::Running => return Ok(()),
        TaskPhase::Succeeded => (EventLevel::Normal, "TaskSucceeded"),
        TaskPhase::Failed => (EventLevel::Warning, "TaskFailed"),
        TaskPhase::Cancelled => (EventLevel::Normal, "TaskCancelled"),
    };
    let act = format!("{} of {}: {}", task.spec.act.as_str(), task.spec.name, task.status.message);
    draft.event(level, reason, task, act);
    let uid = task.metadata.uid;
    if let Some(order) = draft.state.orders.remove(&uid)
        && let Some(mut vm) = draft.state.vm(order.vm).cloned()
        && vm.status.task == Some(uid)
    {
        vm.status.task = None;
        draft.put(vm);
    }
    let host = HostId(task.spec.uid);
    let uncordon = task.status.drain.is_some_and(|drain| !drain.was_cordoned)
        && task.status.phase == TaskPhase::Cancelled
        && draft.state.host(host).is_some();
    if uncordon { host::set_cordon(draft, host, false) } else { Ok(()) }
}
