//! Tasks: acts from what the agents report of them, and drains from what is left on the host.

use dunlin_model::host::HostPhase;
use dunlin_model::migration::{Migration, MigrationCause, MigrationLimits, MigrationSpec};
use dunlin_model::task::{Act, Task, TaskPhase};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{HostId, MigrationId, Name, TaskId, Timestamp};
use dunlin_state::{Command, State, Write};
use uuid::Uuid;

use super::Observed;

/// Migrations tried for one VM before a drain gives up.
pub(super) const DRAIN_TRIES_MAX: usize = 3;
/// A task is given up when its host has been Down so long, ms. An agent that was only restarted, or lost its way to a new
/// leader, is back by then; whoever waits should know after minutes, not days.
pub(super) const HOST_DOWN_MAX_MS: u64 = 120_000;
/// Progress of less than so many percent is not worth a write.
pub(super) const PROGRESS_STEP_PERCENT: u32 = 10;

pub(super) fn step(state: &State, observed: &Observed, now: Timestamp, commands: &mut Vec<Command>) {
    for task in state.active_tasks() {
        if let Some(given_up) = host_down(state, task, now) {
            commands.extend(given_up);
            continue;
        }
        match task.spec.act {
            Act::Drain => drain(state, task, commands),
            Act::Shutdown { .. } | Act::Reboot { .. } | Act::Reset | Act::Save => {
                commands.extend(act(state, observed, task));
            }
        }
    }
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
    Some(Command::Progress { task: task.metadata.uid, phase, progress_percent, message })
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

fn drain(state: &State, task: &Task, commands: &mut Vec<Command>) {
    let host = HostId(task.spec.uid);
    if task.status.cancel {
        commands.extend(progress(task, TaskPhase::Cancelled, task.status.progress_percent, "cancelled"));
        return;
    }
    if state.host(host).is_none() {
        commands.extend(progress(task, TaskPhase::Failed, 0, "the host was removed"));
        return;
    }
    let mut left: Vec<&Vm> = state.host_vms(host).collect();
    left.sort_by_key(|vm| vm.metadata.uid);
    if left.is_empty() {
        commands.extend(progress(task, TaskPhase::Succeeded, 100, "nothing is left on the host"));
        return;
    }
    let mut moves = Vec::new();
    for vm in left.iter().filter(|vm| vm.status.migration.is_none()) {
        // What starts, stops or goes away is waited for.
        if !matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused)
            || vm.spec.power == dunlin_model::vm::Power::Stopped
            || vm.status.task.is_some()
        {
            continue;
        }
        let tries = tries(state, task, vm);
        let stuck = match state.check_movable(vm) {
            Err(refusal) => Some(refusal.message),
            Ok(_) if tries >= DRAIN_TRIES_MAX => {
                let last = last_failure(state, task, vm);
                Some(format!("VM {} could not be moved in {tries} tries: {last}", vm.metadata.name))
            }
            Ok(_) => None,
        };
        if let Some(why) = stuck {
            commands.extend(progress(task, TaskPhase::Failed, task.status.progress_percent, why));
            return;
        }
        moves.push(migrate(task.metadata.uid, vm));
    }
    commands.append(&mut moves);
    let message = format!("{} VMs are left", left.len());
    commands.extend(progress(task, TaskPhase::Running, percent(state, task, left.len()), message));
}

/// Drain migrations of this VM that ended without moving it, since the task began.
fn failures<'a>(state: &'a State, task: &Task, vm: &Vm) -> impl Iterator<Item = &'a Migration> {
    let (uid, created, from) = (vm.metadata.uid, task.metadata.created, Some(HostId(task.spec.uid)));
    state.migrations().filter(move |m| {
        m.spec.vm == uid
            && m.spec.cause == MigrationCause::Drain
            && m.metadata.created >= created
            && m.status.phase.is_terminal()
            && m.status.from == from
    })
}

fn tries(state: &State, task: &Task, vm: &Vm) -> usize {
    failures(state, task, vm).count()
}

/// Why the newest of them ended so.
fn last_failure(state: &State, task: &Task, vm: &Vm) -> String {
    let last = failures(state, task, vm).max_by_key(|m| (m.metadata.created, m.metadata.revision));
    last.map_or_else(String::new, |m| m.status.message.clone())
}

fn percent(state: &State, task: &Task, left: usize) -> u32 {
    let host = Some(HostId(task.spec.uid));
    let moved = state
        .migrations()
        .filter(|m| m.status.from == host && m.metadata.created >= task.metadata.created)
        .filter(|m| m.status.phase == dunlin_model::migration::MigrationPhase::Done)
        .count();
    u32::try_from(moved * 100 / (moved + left).max(1)).unwrap_or(100)
}

fn migrate(task: TaskId, vm: &Vm) -> Command {
    let uid = derive(task, vm);
    let short: String = vm.metadata.name.as_str().chars().take(40).collect();
    let name: Name = format!("drain-{short}-{:08x}", uid.0.as_fields().0)
        .parse()
        .expect("a word, a cut name and hex digits make a name");
    let spec = MigrationSpec {
        vm: vm.metadata.uid,
        vm_name: vm.metadata.name.clone(),
        to: None,
        cause: MigrationCause::Drain,
        limits: MigrationLimits::default(),
    };
    Command::Write { key: format!("drain-{uid}"), write: Write::CreateMigration { uid, name, spec } }
}

/// A uid without randomness: the same step taken twice names the same migration. The VM's revision tells tries apart.
fn derive(task: TaskId, vm: &Vm) -> MigrationId {
    let bytes = || {
        let revision = vm.metadata.revision.0.to_be_bytes();
        task.0.into_bytes().into_iter().chain(vm.metadata.uid.0.into_bytes()).chain(revision)
    };
    let fnv = |seed: u64| {
        bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    MigrationId(Uuid::from_u64_pair(fnv(0xcbf2_9ce4_8422_2325), fnv(0x9ae1_6a3b_2f90_404f)))
}
