//! Emptying hosts: a few moves at a time, as many as the budgets let run, until nothing is left that can go.
//!
//! ```text
//! each step: what is left -> moves under way | waits | fits nowhere | can go -> begin as many as there are slots
//! ```
//! Where each goes is planned for all hosts that are being emptied at this moment, by the scheduler and as `--dry-run`
//! tells it: where the cluster's policy wants it, as long as the rest still fits after that. A VM that has no place does
//! not hold up the others, and goes as soon as there is room.
//! Until then the task says which and why. Remembers nothing: what has been done is in the state, so a new leader goes on
//! where the old one stood.

use dunlin_model::migration::{Migration, MigrationCause, MigrationLimits, MigrationPhase, MigrationSpec};
use dunlin_model::task::{DrainProgress, Task, TaskPhase};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{HostId, MigrationId, Name, TaskId, Timestamp};
use dunlin_scheduler::evacuate::{Evacuation, Evacuee, Misfit, depart};
use dunlin_scheduler::waves::{Step, seat};
use dunlin_state::{Command, State, Write};
use uuid::Uuid;

use super::{Observed, levelling, mirror};

/// Migrations tried for one VM before a drain gives up.
pub(super) const DRAIN_TRIES_MAX: usize = 3;

/// What stands in the way of a planned migration only for now.
const WAITS: &[&str] = &["", "Budget", "SourceDown"];
/// A move that has found no room for so long is called off, ms: the assignment it came from is out of date.
const PLANNED_MAX_MS: u64 = 10_000;

/// What is left on a host that is being emptied.
#[derive(Debug, Default)]
struct Left<'a> {
    /// On their way.
    going: Vec<&'a Migration>,
    /// On their way, and without a place where they were to go.
    outdated: Vec<&'a Migration>,
    /// They start, stop, are saved, or are moved by somebody else.
    waits: usize,
    /// They could go now.
    ready: Vec<&'a Vm>,
}

/// Takes every drain one step on. They are planned as one.
pub(super) fn step(
    state: &State,
    observed: &Observed,
    now: Timestamp,
    drains: &[&Task],
    commands: &mut Vec<Command>,
) {
    let hosts = || drains.iter().filter(|task| !task.status.cancel).map(|task| HostId(task.spec.uid));
    let mut exodus: Option<Exodus> = None;
    for task in drains {
        one(state, now, task, (&mut exodus, &|| Exodus::new(state, observed, now, hosts())), commands);
    }
}

/// The hosts that are being emptied, and where everything on them goes. Made once for all drains of a step, and only when
/// one of them has something to begin.
#[derive(Debug)]
struct Exodus {
    plan: Evacuation,
}

impl Exodus {
    fn new(state: &State, observed: &Observed, now: Timestamp, hosts: impl Iterator<Item = HostId>) -> Self {
        let mut snapshot = mirror::of(state, observed, now);
        let hosts: Vec<_> = hosts.filter_map(|host| snapshot.find_host(host)).collect();
        // What was begun and has no room of its own yet is as good as there: what is planned now comes after it.
        for migration in state.active_migrations().filter(|m| m.status.phase == MigrationPhase::Planned) {
            let to = migration.spec.to.as_ref().and_then(|to| snapshot.host_named(to));
            let step = snapshot.find_vm(migration.spec.vm).zip(to);
            let seated = step.and_then(|(vm, to)| Some((vm, seat(&snapshot, Step { vm, to })?)));
            if let Some((vm, seat)) = seated {
                snapshot.hold(vm, seat);
            }
        }
        Self { plan: depart(&snapshot, &hosts, &levelling::budgets(state)) }
    }

    /// VMs of that host and where they go, those that go first first.
    fn from(&self, host: HostId) -> impl Iterator<Item = &Evacuee> {
        self.plan.waves.iter().flat_map(|wave| &wave.moves).filter(move |step| step.from == host)
    }

    /// How long it takes until that host is empty, by the sizes of what leaves it, s.
    fn lasts_s(&self, host: HostId) -> u64 {
        let waves = self.plan.waves.iter().filter(|wave| wave.moves.iter().any(|step| step.from == host));
        waves.map(|wave| wave.took_ms).sum::<u64>().div_ceil(1_000)
    }

    fn misfits(&self, host: HostId) -> Vec<&Misfit> {
        self.plan.misfits.iter().filter(|misfit| misfit.from == host).collect()
    }
}

fn one(
    state: &State,
    time: Timestamp,
    task: &Task,
    (exodus, make): (&mut Option<Exodus>, &dyn Fn() -> Exodus),
    commands: &mut Vec<Command>,
) {
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
    let left = match look(state, time, task, host) {
        Ok(left) => left,
        Err(why) => {
            commands.extend(tell(task, TaskPhase::Failed, percent, why, now));
            return;
        }
    };
    for migration in &left.outdated {
        let uid = migration.metadata.uid;
        let key = format!("outdated-{uid}");
        commands.push(Command::Write { key, write: Write::CancelMigration { uid } });
    }
    let slots = slots(state, host, &left);
    let (mut misfits, mut begun, mut lasts_s) = (Vec::new(), 0, None);
    if !left.ready.is_empty() {
        let exodus = exodus.get_or_insert_with(make);
        (misfits, lasts_s) = (exodus.misfits(host), Some(exodus.lasts_s(host)));
        let ready = |step: &Evacuee| left.ready.iter().find(|vm| vm.metadata.uid == step.vm);
        let going = exodus.from(host).filter_map(|step| Some((ready(step)?, step)));
        for (vm, step) in going.take(slots) {
            commands.push(migrate(task.metadata.uid, vm, step.to_name.clone()));
            begun += 1;
        }
    }
    let mut progress = progress(state, task, host, &left, begun, misfits.len());
    // Before there is anything to go by, the sizes of the VMs are.
    progress.eta_s = progress.eta_s.or(lasts_s).or(task.status.drain.and_then(|known| known.eta_s));
    if progress.left == 0 {
        let message = match progress.moved {
            1 => "nothing is left on the host; 1 VM was moved".to_owned(),
            moved => format!("nothing is left on the host; {moved} VMs were moved"),
        };
        commands.extend(tell(task, TaskPhase::Succeeded, 100, message, progress));
        return;
    }
    let done = progress.moved * 100 / (progress.moved + progress.left);
    let percent = u32::try_from(done).unwrap_or(100);
    let message = describe(&progress, &left, &misfits);
    commands.extend(tell(task, TaskPhase::Running, percent, message, progress));
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
fn look<'a>(state: &'a State, now: Timestamp, task: &Task, host: HostId) -> Result<Left<'a>, String> {
    let mut left = Left::default();
    for vm in state.host_vms(host) {
        if let Some(migration) = state.migration_of(vm) {
            let ours = migration.spec.cause == MigrationCause::Drain;
            let status = &migration.status;
            let waits = status.phase == MigrationPhase::Planned && !WAITS.contains(&status.reason.as_str());
            let long = now.millis_since(migration.metadata.created) > PLANNED_MAX_MS;
            if ours && waits && long && !status.cancel {
                left.outdated.push(migration);
            }
            if ours {
                left.going.push(migration);
            } else {
                left.waits += 1;
            }
            continue;
        }
        let runs = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused);
        if !runs || vm.spec.power == Power::Stopped || vm.status.task.is_some() {
            left.waits += 1;
            continue;
        }
        let tries = failures(state, task, vm).count();
        state.check_movable(vm).map_err(|refusal| refusal.message)?;
        if tries >= DRAIN_TRIES_MAX {
            let last = last_failure(state, task, vm);
            return Err(format!("VM {} could not be moved in {tries} tries: {last}", vm.metadata.name));
        }
        left.ready.push(vm);
    }
    Ok(left)
}

/// Moves that may be begun now: what the host's budget leaves, of what the fleet's leaves.
fn slots(state: &State, host: HostId, left: &Left<'_>) -> usize {
    let planned = left.going.iter().filter(|m| m.status.phase == MigrationPhase::Planned).count();
    let here = state.migrations_per_host().saturating_sub(state.migrations_on(host) + planned);
    let fleet = state.migrations_per_fleet().saturating_sub(state.active_migrations().count());
    here.min(fleet)
}

fn progress(
    state: &State,
    task: &Task,
    host: HostId,
    left: &Left<'_>,
    begun: usize,
    stuck: usize,
) -> DrainProgress {
    let ours = |m: &&Migration| m.spec.cause == MigrationCause::Drain && since(task, host, m);
    // What is handed over counts as gone from here although its migration is still being tidied up.
    let gone = |m: &&Migration| matches!(m.status.phase, MigrationPhase::Switching | MigrationPhase::Done);
    let moved = state.migrations().filter(ours).filter(gone).count() as u64;
    let (begun, stuck) = (begun as u64, stuck as u64);
    let rest = (left.going.len() + left.waits + left.ready.len()) as u64;
    let size = state.migrations_per_host().min(state.migrations_per_fleet()).max(1) as u64;
    let waves = |vms: u64| u32::try_from(vms.div_ceil(size)).unwrap_or(u32::MAX);
    let to_go = rest.saturating_sub(stuck);
    let elapsed_s = task.status.started.map_or(0, |at| state.time().millis_since(at)) / 1_000;
    DrainProgress {
        was_cordoned: false,
        moved,
        left: rest,
        stuck,
        wave: waves(moved + left.going.len() as u64 + begun),
        waves: waves(moved + to_go),
        eta_s: (moved > 0).then(|| elapsed_s * to_go / moved),
    }
}

fn describe(progress: &DrainProgress, left: &Left<'_>, misfits: &[&Misfit]) -> String {
    let DrainProgress { moved, left: rest, wave, waves, .. } = progress;
    let plural = if *moved == 1 { "" } else { "s" };
    let mut text = format!("wave {wave} of {waves}: {moved} VM{plural} moved, {rest} left");
    if left.waits > 0 {
        text.push_str(&format!("; {} start, stop, are saved or are moved by somebody else", left.waits));
    }
    if let Some(first) = misfits.first() {
        let (count, vm, why) = (misfits.len(), &first.vm_name, &first.reason);
        text.push_str(&format!("; {count} fit nowhere: VM {vm}: {why}"));
    }
    text
}

fn since(task: &Task, host: HostId, migration: &Migration) -> bool {
    migration.status.from == Some(host) && migration.metadata.created >= task.metadata.created
}

/// Drain migrations of this VM that had a destination and ended without moving it, since the task began.
fn failures<'a>(state: &'a State, task: &'a Task, vm: &'a Vm) -> impl Iterator<Item = &'a Migration> {
    state.migrations().filter(|m| {
        m.spec.vm == vm.metadata.uid
            && m.spec.cause == MigrationCause::Drain
            && m.status.phase.is_terminal()
            && m.status.to.is_some()
            && since(task, HostId(task.spec.uid), m)
    })
}

/// Why the newest of them ended so.
fn last_failure(state: &State, task: &Task, vm: &Vm) -> String {
    let last = failures(state, task, vm).max_by_key(|m| (m.metadata.created, m.metadata.revision));
    last.map_or_else(String::new, |m| m.status.message.clone())
}

fn migrate(task: TaskId, vm: &Vm, to: Name) -> Command {
    let uid = derive(task, vm);
    let short: String = vm.metadata.name.as_str().chars().take(40).collect();
    let name: Name = format!("drain-{short}-{:08x}", uid.0.as_fields().0)
        .parse()
        .expect("a word, a cut name and hex digits make a name");
    let spec = MigrationSpec {
        vm: vm.metadata.uid,
        vm_name: vm.metadata.name.clone(),
        to: Some(to),
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
