//! What is reported of one VM: the guest as its driver sees it, and beside it what only the journal knows. Pure.

use std::collections::BTreeMap;

use dunlin_drivers::hypervisor::{Guest, Run, Send};
use dunlin_model::desired::{Assignment, Role, SendStep};
use dunlin_model::observed::{ActReport, ObservedVm, Process, ReceiveState, SavedFile, SendState};
use dunlin_model::task::TaskPhase;
use dunlin_model::vm::Built;
use dunlin_model::vm::built::NOTE_MAX;
use dunlin_model::{MigrationId, TaskId};

use super::refit;
use crate::journal::{ActRecord, Record};

/// The VM as it is to be reported; None when nothing of it is left here and nothing is to become of it here.
/// `doing` is what the agent is at, when it is bringing it up; `away`, why its driver cannot be asked.
pub(crate) fn observe(
    record: &Record,
    desired: Option<&Assignment>,
    guest: Option<&Guest>,
    doing: Option<&str>,
    away: Option<&str>,
) -> Option<ObservedVm> {
    let wanted = desired.is_some_and(|desired| !matches!(desired.role, Role::Discard { .. } | Role::Release));
    if guest.is_none() && record.is_tombstone() && !wanted {
        return None;
    }
    let ended = record.ended.as_ref().filter(|ended| ended.incarnation >= record.told);
    let process = match (guest, doing, ended) {
        _ if away.is_some() => Process::Unknown { why: away.unwrap_or_default().to_owned() },
        (Some(guest), ..) => process_of(guest),
        (None, Some(doing), _) => Process::Starting { doing: doing.to_owned() },
        (None, None, Some(ended)) => {
            Process::Ended { cause: ended.cause, message: ended.message.clone(), ever_ran: ended.ever_ran }
        }
        (None, None, None) => Process::None,
    };
    let incarnation = match (guest, ended) {
        (Some(guest), _) => guest.incarnation,
        (None, Some(ended)) => ended.incarnation,
        (None, None) => record.told,
    };
    Some(ObservedVm {
        vm: record.vm,
        name: guest.map_or_else(|| record.name.clone(), |guest| guest.name.clone()),
        incarnation,
        process,
        has_volumes: !record.volumes.is_empty(),
        pid: guest.and_then(|guest| guest.pid),
        vnc: guest.and_then(|guest| guest.vnc.clone()),
        saved: record.saved.as_ref().map(|saved| SavedFile {
            path: saved.file.display().to_string(),
            size_bytes: saved.size_bytes,
            incarnation: saved.incarnation,
        }),
        built: guest.and_then(|guest| built_of(record, desired, guest)),
        disk_bytes: guest.map(|guest| guest.disk_bytes.clone()).unwrap_or_default(),
        resumed_at_ms: guest.and_then(|guest| guest.resumed_at_ms),
        receive: receive_of(record, guest).filter(|_| away.is_none()),
        send: guest.filter(|_| away.is_none()).and_then(|guest| send_of(record, guest)),
    })
}

/// How its process is built, where that is not what its spec asks for and a fresh start would give.
fn built_of(record: &Record, desired: Option<&Assignment>, guest: &Guest) -> Option<Built> {
    let has_ended = matches!(guest.run, Run::Ended(..));
    let (built, assignment) = (record.built.as_ref().filter(|_| !has_ended)?, record.assignment.as_ref()?);
    // What was told counts, journalled or not: the report says that it was taken in. Nothing of it has been tried yet.
    let spec = desired.map_or(&assignment.spec, |desired| &desired.spec);
    let untried = BTreeMap::new();
    let stuck = if *spec == assignment.spec { &record.stuck } else { &untried };
    let layout = guest.layout.clone().unwrap_or_default();
    let pending = built.pending(spec);
    if pending.is_empty() && layout.is_empty() {
        return None;
    }
    let under_way = refit::next(built, spec, stuck).map(|change| change.field());
    let waits = pending.iter().filter(|field| under_way.as_ref() != Some(*field)).map(|field| {
        let why = stuck.get(field).map_or("follows at the next start", String::as_str);
        format!("{field}: {why}")
    });
    // What comes after the change under way has not been tried yet either.
    let waits = waits.filter(|_| under_way.is_none());
    let mut note = waits.collect::<Vec<_>>().join("; ");
    while note.len() > NOTE_MAX {
        note.pop();
    }
    Some(Built { layout, note, ..built.clone() })
}

fn process_of(guest: &Guest) -> Process {
    match &guest.run {
        Run::Running => Process::Running,
        Run::Paused => Process::Paused,
        Run::Incoming | Run::Arrived => Process::Incoming,
        Run::Outgoing => Process::Outgoing,
        Run::Ended(cause, message) => {
            Process::Ended { cause: *cause, message: message.clone(), ever_ran: guest.ever_ran }
        }
    }
}

fn receive_of(record: &Record, guest: Option<&Guest>) -> Option<(MigrationId, ReceiveState)> {
    let ended = record.ended.as_ref().filter(|ended| ended.incarnation >= record.told);
    let told = match record.assignment.as_ref()?.role {
        Role::Receive { migration, .. } => Some(migration),
        _ => None,
    };
    let started = record.started.and_then(|started| started.receiving);
    let state = match guest.map(|guest| (&guest.run, &guest.endpoint)) {
        Some((Run::Incoming, Some(endpoint))) => (started?, ReceiveState::Ready(endpoint.clone())),
        Some((Run::Incoming, None)) => (started?, ReceiveState::Preparing),
        Some((Run::Arrived, _)) => (started?, ReceiveState::Arrived),
        Some((Run::Ended(_, message), _)) => (started?, ReceiveState::Failed(message.clone())),
        Some(_) => return None,
        None => match ended.and_then(|ended| Some((ended.receiving?, &ended.message))) {
            Some((migration, message)) => (migration, ReceiveState::Failed(message.clone())),
            None => (told?, ReceiveState::Preparing),
        },
    };
    // A process that still waits for a migration that was given up says nothing of the new one.
    (told.is_none() || told == Some(state.0)).then_some(state)
}

fn send_of(record: &Record, guest: &Guest) -> Option<(MigrationId, SendState)> {
    let sending = record.sending.as_ref()?;
    let step = match record.assignment.as_ref()?.role {
        Role::Send { migration, step, .. } if migration == sending.migration => Some(step),
        _ => None,
    };
    if let (Some(_), Some(why)) = (step, &sending.failed) {
        return Some((sending.migration, SendState::Cancelled(why.clone())));
    }
    if !sending.begun {
        return None;
    }
    let state = match (guest.send.as_ref()?, step) {
        (Send::Copying(progress), _) => SendState::Copying(*progress),
        (Send::AtSwitchover(progress), _) => SendState::AtSwitchover(*progress),
        (Send::Sent(figures), Some(_)) => SendState::Sent(*figures),
        // Handed over meanwhile: it is held here, standing still, until the leader has decided.
        (Send::Cancelled(why), Some(SendStep::Switch)) => match guest.run {
            Run::Paused | Run::Outgoing => SendState::Holding(why.clone()),
            _ => return None,
        },
        (Send::Cancelled(why), Some(_)) => SendState::Cancelled(why.clone()),
        (Send::Holding(why), Some(_)) => SendState::Holding(why.clone()),
        (Send::Sent(_) | Send::Cancelled(_) | Send::Holding(_), None) => return None,
    };
    Some((sending.migration, state))
}

/// An act as it is to be reported.
pub(crate) fn act_report(task: TaskId, act: &ActRecord) -> ActReport {
    match &act.ended {
        Some((phase, message)) => ActReport {
            task,
            phase: *phase,
            progress_percent: if *phase == TaskPhase::Succeeded { 100 } else { 0 },
            message: message.clone(),
        },
        None => ActReport {
            task,
            phase: TaskPhase::Running,
            progress_percent: 0,
            message: format!("{} is under way", act.act.as_str()),
        },
    }
}
