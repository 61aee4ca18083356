//! What the hosts' reports mean for each VM. A migration in Switching decides for its VM itself.

use dunlin_model::migration::MigrationPhase;
use dunlin_model::observed::{EndCause, ObservedVm, Process, SavedFile};
use dunlin_model::vm::{Power, SavedState, Vm, VmPhase};
use dunlin_model::{HostId, Level};
use dunlin_state::{Command, Seen, State};

use super::observed::{HostView, Observed, Sight};

pub(super) fn step(state: &State, observed: &Observed, commands: &mut Vec<Command>) {
    for vm in state.active_vms() {
        match vm.status.phase {
            VmPhase::Starting | VmPhase::Running | VmPhase::Paused => bound(state, observed, vm, commands),
            VmPhase::Deleting if vm.status.migration.is_none() && is_gone(state, observed, vm) => {
                commands.push(Command::ForgetVm { vm: vm.metadata.uid });
            }
            _ => {}
        }
    }
}

/// Does the report speak of the process that may run? After a hand-back that is the one of the older incarnation, until
/// it has taken the new number.
pub(super) fn is_current(vm: &Vm, seen: &ObservedVm) -> bool {
    seen.incarnation == vm.status.incarnation || Some(seen.incarnation) == vm.status.continues
}

/// Is there a process of a VM at all?
pub(super) const fn has_process(seen: &ObservedVm) -> bool {
    !matches!(seen.process, Process::None | Process::Ended { .. })
}

fn bound(state: &State, observed: &Observed, vm: &Vm, commands: &mut Vec<Command>) {
    let switching = state.migration_of(vm).is_some_and(|m| m.status.phase == MigrationPhase::Switching);
    let Some(host) = vm.status.host.filter(|_| !switching) else { return };
    let Sight::Seen(view) = observed.sight(state, host) else { return };
    let reported = view.vms.get(&vm.metadata.uid);
    let mut say = |seen: Seen| {
        let (uid, incarnation) = (vm.metadata.uid, vm.status.incarnation);
        commands.push(Command::Observe { vm: uid, host, incarnation, seen });
    };
    let Some(seen) = reported.filter(|seen| is_current(vm, seen)) else {
        if !reported.is_some_and(has_process) {
            nothing(view, vm).into_iter().for_each(say);
        }
        return;
    };
    let (pid, vnc) = (seen.pid, seen.vnc.clone());
    let moved = vm.status.pid != pid || vm.status.vnc != vnc;
    // What was reported before the host knew the spec says nothing of it.
    let rebuilt = state.level() >= Level::REBUILDING
        && view.taken >= vm.metadata.revision
        && state.migration_of(vm).is_none_or(|m| m.status.phase == MigrationPhase::Planned)
        && seen.built != vm.status.built;
    match &seen.process {
        Process::Running if vm.status.phase != VmPhase::Running || moved => say(Seen::Running { pid, vnc }),
        Process::Paused if vm.status.phase != VmPhase::Paused || moved => say(Seen::Paused { pid, vnc }),
        Process::Unknown { why } if vm.status.phase == VmPhase::Starting => {
            if words(why).ne(words(&vm.status.message)) {
                say(Seen::Doing { message: why.clone() });
            }
        }
        Process::Running | Process::Paused if rebuilt => say(Seen::Built(seen.built.clone())),
        Process::Starting { doing } if vm.status.phase == VmPhase::Starting => {
            if made_volumes(vm, seen) {
                say(Seen::VolumesMade);
            }
            // Only another kind of work is news; how far it is changes too often for the log.
            if words(doing).ne(words(&vm.status.message)) {
                say(Seen::Doing { message: doing.clone() });
            }
        }
        Process::None => nothing(view, vm).into_iter().for_each(say),
        Process::Ended { cause, message, ever_ran } => {
            ended(vm, host, seen, *cause, message, *ever_ran).into_iter().for_each(say);
        }
        Process::Running
        | Process::Paused
        | Process::Starting { .. }
        | Process::Incoming
        | Process::Unknown { .. }
        | Process::Outgoing => {}
    }
}

fn words(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !c.is_ascii_digit())
}

fn made_volumes(vm: &Vm, seen: &ObservedVm) -> bool {
    seen.has_volumes && vm.status.volumes_on.is_none() && vm.spec.has_local_disks()
}

/// The host has no process, and does not say that one ended. That proves something only when the host has taken in a
/// set that told it not to start one: see "Hold closes the incarnation" in the protocol.
fn nothing(view: &HostView, vm: &Vm) -> Option<Seen> {
    match vm.status.phase {
        VmPhase::Starting if vm.spec.power != Power::Stopped => None,
        VmPhase::Running | VmPhase::Paused if vm.spec.power != Power::Stopped => {
            // It ran here, so this session began without it, and every set of the session said Hold.
            let message = "its host no longer had its process".to_owned();
            (view.taken.0 > 0).then_some(Seen::Died { message })
        }
        _ => (view.taken >= vm.metadata.revision).then_some(Seen::Stopped),
    }
}

fn ended(
    vm: &Vm,
    host: HostId,
    seen: &ObservedVm,
    cause: EndCause,
    message: &str,
    ever_ran: bool,
) -> Vec<Seen> {
    let mut news = Vec::new();
    if made_volumes(vm, seen) {
        news.push(Seen::VolumesMade);
    }
    let starting = vm.status.phase == VmPhase::Starting;
    if starting && ever_ran {
        // It came up and ended between two reports: saved memory it was restored from is used up.
        news.push(Seen::Running { pid: None, vnc: None });
    }
    let saved = seen.saved.as_ref().filter(|saved| saved.incarnation == seen.incarnation);
    if cause == EndCause::Told && vm.status.task.is_some() && saved.is_none() {
        // It was ended by its save, whose file the host has yet to tell of: that, or the task's failure, comes next.
        return news;
    }
    let off = vm.spec.power == Power::Stopped;
    let message = message.to_owned();
    news.push(match cause {
        EndCause::GuestShutdown => Seen::PoweredOff,
        EndCause::Told => match saved {
            // Without a task it was given up while the host was away, and came to its end all the same.
            Some(SavedFile { path, size_bytes, .. }) if vm.status.task.is_some() || !off => {
                Seen::Saved(SavedState { host, path: path.clone(), size_bytes: *size_bytes })
            }
            // Told to Hold what it did not have, although it should run: its process got lost.
            _ if !off && !starting && !ever_ran => Seen::Died { message },
            _ => Seen::Stopped,
        },
        EndCause::Refused if starting && !ever_ran => Seen::Refused { message },
        EndCause::Refused | EndCause::Died => Seen::Died { message },
    });
    news
}

/// Is nothing of a Deleting VM left, as far as any host can say? Its own hosts must have been heard.
fn is_gone(state: &State, observed: &Observed, vm: &Vm) -> bool {
    let uid = vm.metadata.uid;
    let saved = vm.status.saved.as_ref().map(|saved| saved.host);
    let heard = |host: HostId| match observed.sight(state, host) {
        Sight::Seen(view) => view.taken >= vm.metadata.revision,
        Sight::Unseen => false,
        Sight::Removed => true,
    };
    let own = [vm.status.host, vm.status.volumes_on, saved];
    own.into_iter().flatten().all(heard)
        && state.hosts().all(|host| observed.sight(state, host.metadata.uid).vm(uid).is_none())
}
