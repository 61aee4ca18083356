//! Emptying hosts: a few moves at a time, as many as the budgets let run, until nothing is left that can go.
//!
//! ```text
//! each step: what is left -> moves under way | waits | fits nowhere | can go -> begin as many as there are slots
//! ```
//! Remembers nothing: what has been done is in the state, so a new leader goes on where the old one stood. A VM that fits
//! nowhere does not hold up the others, and goes as soon as there is room; until then the task says which and why.

use dunlin_model::migration::{Migration, MigrationCause, MigrationLimits, MigrationPhase, MigrationSpec};
use dunlin_model::task::{DrainProgress, Task, TaskPhase};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{HostId, MigrationId, Name, TaskId};
use dunlin_state::{Command, State, Write};
use uuid::Uuid;

/// Migrations tried for one VM before a drain gives up.
pub(super) const DRAIN_TRIES_MAX: usize = 3;

/// What stands in the way of a planned migration only for now.
const WAITS: &[&str] = &["", "Budget", "SourceDown"];

/// What is left on a host that is being emptied.
#[derive(Debug, Default)]
struct Left<'a> {
    /// On their way.
    going: Vec<&'a Migration>,
    /// Migrations that find no destination.
    stuck: Vec<&'a Migration>,
    /// They start, stop, are saved, or are moved by somebody else.
    waits: usize,
    /// They could go now.
    ready: Vec<&'a Vm>,
}

pub(super) fn step(state: &State, task: &Task, commands: &mut Vec<Command>) {
    let host = HostId(task.spec.uid);
    let now = task.status.drain.unwrap_or_default();
    let percent = task.status.progress_percent;
    if task.status.cancel {
        commands.extend(tell(task, TaskPhase::Cancelled, percent, "cancelled".to_owned(), now));
        return;
    }
    if state.host(host).is_none() {
        commands.extend(tell(task, TaskPhase::Failed, 0, "the host was removed".to_owned(), now));
        return;
    }
    let left = match look(state, task, host) {
        Ok(left) => left,
        Err(why) => {
            commands.extend(tell(task, TaskPhase::Failed, percent, why, now));
            return;
        }
    };
    let slots = slots(state, host, &left);
    let begun = left.ready.iter().take(slots);
    commands.extend(begun.map(|vm| migrate(task.metadata.uid, vm)));
    let progress = progress(state, task, host, &left);
    if progress.left == 0 {
        let message = format!("nothing is left on the host; {} VMs were moved", progress.moved);
        commands.extend(tell(task, TaskPhase::Succeeded, 100, message, progress));
        return;
    }
    let done = progress.moved * 100 / (progress.moved + progress.left);
    let percent = u32::try_from(done).unwrap_or(100);
    commands.extend(tell(task, TaskPhase::Running, percent, describe(&progress, &left), progress));
}

/// Writes only what is news; the time that is left passes by itself.
fn tell(
    task: &Task,
    phase: TaskPhase,
    percent: u32,
    message: String,
    drain: DrainProgress,
) -> Option<Command> {
    let known = DrainProgress { eta_s: None, ..task.status.drain.unwrap_or_default() };
    let same = phase == task.status.phase
        && message == task.status.message
        && known == DrainProgress { eta_s: None, was_cordoned: known.was_cordoned, ..drain };
    let (task, drain) = (task.metadata.uid, Some(drain));
    (!same).then_some(Command::Progress { task, phase, progress_percent: percent, message, drain })
}

/// Sorts what is on the host. The error is why the drain cannot end well.
fn look<'a>(state: &'a State, task: &Task, host: HostId) -> Result<Left<'a>, String> {
    let mut left = Left::default();
    for vm in state.host_vms(host) {
        if let Some(migration) = state.migration_of(vm) {
            let ours = migration.spec.cause == MigrationCause::Drain;
            let planned = migration.status.phase == MigrationPhase::Planned;
            match planned && !WAITS.contains(&migration.status.reason.as_str()) {
                true if ours => left.stuck.push(migration),
                _ if ours => left.going.push(migration),
                _ => left.waits += 1,
            }
            continue;
        }
        let runs = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused);
        if !runs || vm.spec.power == Power::Stopped || vm.status.task.is_some() {
            left.waits += 1;
            continue;
        }
        let tries = tries(state, task, vm);
        state.check_movable(vm).map_err(|refusal| refusal.message)?;
        if tries >= DRAIN_TRIES_MAX {
            return Err(format!("VM {} could not be moved in {tries} tries", vm.metadata.name));
        }
        left.ready.push(vm);
    }
    // The largest first: it has the least choice, and the most of it now.
    left.ready.sort_by_key(|vm| (std::cmp::Reverse(vm.spec.mem_mib), vm.metadata.uid));
    Ok(left)
}

/// Moves that may be begun now: what the host's budget leaves, of what the fleet's leaves.
fn slots(state: &State, host: HostId, left: &Left<'_>) -> usize {
    let planned = left.going.iter().filter(|m| m.status.phase == MigrationPhase::Planned).count();
    let here = state.migrations_per_host().saturating_sub(state.migrations_on(host) + planned);
    let fleet = state.migrations_per_fleet().saturating_sub(state.active_migrations().count());
    here.min(fleet)
}

fn progress(state: &State, task: &Task, host: HostId, left: &Left<'_>) -> DrainProgress {
    let ours = |m: &&Migration| m.spec.cause == MigrationCause::Drain && since(task, host, m);
    let moved = state
        .migrations()
        .filter(ours)
        .filter(|m| matches!(m.status.phase, MigrationPhase::Switching | MigrationPhase::Done));
    let moved = moved.count() as u64;
    let stuck = left.stuck.len() as u64;
    // What is handed over already counts as gone from here although its migration is still being tidied up.
    let rest = (left.going.len() + left.stuck.len() + left.waits + left.ready.len()) as u64;
    let size = state.migrations_per_host().min(state.migrations_per_fleet()).max(1) as u64;
    let waves = |vms: u64| u32::try_from(vms.div_ceil(size)).unwrap_or(u32::MAX);
    let to_go = rest.saturating_sub(stuck);
    let elapsed_s = task.status.started.map_or(0, |at| state.time().millis_since(at)) / 1_000;
    DrainProgress {
        was_cordoned: false,
        moved,
        left: rest,
        stuck,
        wave: waves(moved + left.going.len() as u64),
        waves: waves(moved + to_go),
        eta_s: (moved > 0).then(|| elapsed_s * to_go / moved),
    }
}

fn describe(progress: &DrainProgress, left: &Left<'_>) -> String {
    let DrainProgress { moved, left: rest, wave, waves, .. } = progress;
    let mut text = format!("wave {wave} of {waves}: {moved} VMs moved, {rest} left");
    if left.waits > 0 {
        text.push_str(&format!("; {} start, stop, are saved or are moved by somebody else", left.waits));
    }
    if let Some(first) = left.stuck.first() {
        let (count, vm, why) = (left.stuck.len(), &first.spec.vm_name, &first.status.message);
        text.push_str(&format!("; {count} fit nowhere: VM {vm}: {why}"));
    }
    text
}

fn since(task: &Task, host: HostId, migration: &Migration) -> bool {
    migration.status.from == Some(host) && migration.metadata.created >= task.metadata.created
}

/// Drain migrations of this VM that ended without moving it, since the task began.
fn tries(state: &State, task: &Task, vm: &Vm) -> usize {
    let ours = |m: &&Migration| {
        m.spec.vm == vm.metadata.uid
            && m.spec.cause == MigrationCause::Drain
            && m.status.phase.is_terminal()
            && since(task, HostId(task.spec.uid), m)
    };
    state.migrations().filter(ours).count()
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
        grounds: None,
    };
    Command::Write { key: format!("drain-{uid}"), write: Write::CreateMigration { uid, name, spec } }
}

/// A uid without randomness: the same step taken twice names the same migration. The VM's revision tells tries apart.
fn derive(task: TaskId, vm: &Vm) -> MigrationId {
    MigrationId(uid_of(&[
        task.0.as_bytes(),
        vm.metadata.uid.0.as_bytes(),
        &vm.metadata.revision.0.to_be_bytes(),
    ]))
}

/// FNV-1a of the parts, twice, as a uid.
pub(super) fn uid_of(parts: &[&[u8]]) -> Uuid {
    let fnv = |seed: u64| {
        let bytes = parts.iter().flat_map(|part| part.iter());
        bytes.fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    Uuid::from_u64_pair(fnv(0xcbf2_9ce4_8422_2325), fnv(0x9ae1_6a3b_2f90_404f))
}
