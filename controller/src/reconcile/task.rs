//! Tasks: acts from what the agents report of them, and drains from what is left on the host.

use dunlin_model::host::HostPhase;
use dunlin_model::task::{Act, Task, TaskPhase};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{HostId, Timestamp};
use dunlin_state::{Command, State};

use super::{Observed, drain};

/// A task is given up when its host has been Down so long, ms. An agent that was only restarted, or lost its way to a new
/// leader, is back by then; whoever waits should know after minutes, not days.
pub(super) const HOST_DOWN_MAX_MS: u64 = 120_000;
/// Progress of less than so many percent is not worth a write.
pub(super) const PROGRESS_STEP_PERCENT: u32 = 10;

pub(super) fn step(state: &State, observed: &Observed, now: Timestamp, commands: &mut Vec<Command>) {
    let mut drains = Vec::new();
    for task in state.active_tasks() {
        if let Some(given_up) = host_down(state, task, now) {
            commands.extend(given_up);
            continue;
        }
        match task.spec.act {
            Act::Drain => drains.push(task),
            Act::Shutdown { .. } | Act::Reboot { .. } | Act::Reset | Act::Save => {
                commands.extend(act(state, observed, task));
            }
        }
    }
    drain::step(state, observed, now, &drains, commands);
}

/// Its host is Down: it says so, and in the end it is given up. None while the host is not Down.
fn host_down(state: &State, task: &Task, now: Timestamp) -> Option<Option<Command>> {
    let drains = matches!(task.spec.act, Act::Drain);
    if drains && task.status.cancel {
        return None;
    }
    let id = if drains {
        HostId(task.spec.uid)
    } else {
        let order = state.order_of(task.metadata.uid)?;
        // One that has left the host does not wait for it.
        state.vm(order.vm).filter(|vm| vm.status.host == Some(order.host))?;
        order.host
    };
    let host = state.host(id).filter(|host| host.status.phase == HostPhase::Down)?;
    let (name, since) = (&host.metadata.name, host.status.since);
    if now.millis_since(since) <= HOST_DOWN_MAX_MS {
        let message = format!("host {name} is down since {since}");
        return Some(progress(task, TaskPhase::Running, task.status.progress_percent, message));
    }
    let late = match task.spec.act {
        Act::Drain => "its VMs may still run there and cannot be moved",
        _ => "what its agent has begun it may still bring to an end",
    };
    let message = format!(
        "host {name} is down since {since}, longer than the {} s a task waits for it; {late}",
        HOST_DOWN_MAX_MS / 1_000
    );
    Some(progress(task, TaskPhase::Failed, task.status.progress_percent, message))
}

fn progress(
    task: &Task,
    phase: TaskPhase,
    progress_percent: u32,
    message: impl Into<String>,
) -> Option<Command> {
    let message = message.into();
    let status = &task.status;
    let far = progress_percent.abs_diff(status.progress_percent) >= PROGRESS_STEP_PERCENT;
    if phase == status.phase && message == status.message && !far {
        return None;
    }
    Some(Command::Progress { task: task.metadata.uid, phase, progress_percent, message, drain: None })
}

fn act(state: &State, observed: &Observed, task: &Task) -> Option<Command> {
    let order = state.order_of(task.metadata.uid)?;
    let view = observed.sight(state, order.host);
    let report = match view {
        super::observed::Sight::Seen(view) => view.acts.get(&task.metadata.uid),
        _ => None,
    };
    if let Some(report) = report.filter(|report| report.phase.is_terminal()) {
        return progress(task, report.phase, report.progress_percent, &report.message);
    }
    let vm = state.vm(order.vm);
    let same = vm.is_some_and(|vm| {
        vm.status.incarnation == order.incarnation
            && vm.status.host == Some(order.host)
            && matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused)
    });
    if !same {
        return outlived(task, vm, order.incarnation);
    }
    let report = report.filter(|report| report.phase == TaskPhase::Running)?;
    progress(task, TaskPhase::Running, report.progress_percent, &report.message)
}

/// The process it was ordered for is no more: either that was its purpose, or it failed.
fn outlived(task: &Task, vm: Option<&Vm>, ordered: dunlin_model::Incarnation) -> Option<Command> {
    let unmoved = vm.filter(|vm| vm.status.incarnation == ordered).map(|vm| vm.status.phase);
    match (&task.spec.act, unmoved) {
        (Act::Shutdown { .. }, Some(VmPhase::Stopped)) => {
            progress(task, TaskPhase::Succeeded, 100, "the guest powered off")
        }
        (Act::Save, Some(VmPhase::Saved)) => progress(task, TaskPhase::Succeeded, 100, "saved"),
        (_, Some(phase)) => progress(task, TaskPhase::Failed, 0, format!("the VM became {phase} under it")),
        (_, None) => {
            let why =
                if vm.is_some() { "the VM changed hosts or was started anew" } else { "the VM was deleted" };
            progress(task, TaskPhase::Failed, 0, why)
        }
    }
}
