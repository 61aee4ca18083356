//! What to do next with one VM: a table over what was told, what is there, and what the journal remembers.
//!
//! Pure. Knows no driver and no clock; [`plan`] is asked again after every step, with the newest of everything, so a
//! step may be done twice, fail, or be cut short anywhere without harm.
//!
//! ```text
//!   told \ guest | none        | lower inc. | Running/Paused | Incoming | Arrived  | Outgoing       | Ended
//!   Run          | start       | destroy    | match power    | destroy  | destroy  | call off       | rest
//!   Run received | note end    | destroy    | match power    | rest     | let run  | call off       | rest
//!   Run continues| note end    | adopt      | match power    |          |          | let run        | rest
//!   Adopt        | take over   | adopt      | match power    |          |          | rest           | rest
//!   Release      | bury        | let go     | let go         | let go   | let go   | let go         | let go
//!   Hold         | rest        | destroy    | destroy        | destroy  | destroy  | destroy        | forget
//!   Receive      | start       | destroy    | rest           | rest     | rest     | rest           | rest
//!   Send Copy    | note end    | destroy    | begin to send  | rest     | rest     | rest           | rest
//!   Send Switch  | note end    | destroy    | stand still    | rest     | rest     | pass it once   | rest
//!   Send Cancel  | note end    | destroy    | call off, power| rest     | rest     | call off       | rest
//!   Discard      | drop files  | destroy    | destroy        | destroy  | destroy  | destroy        | forget
//!   (not named)  | rest        | rest       | rest           | rest     | rest     | rest           | rest
//! ```

use dunlin_drivers::hypervisor::{Guest, Run, Send};
use dunlin_model::desired::{Assignment, Role, SendStep};
use dunlin_model::observed::EndCause;
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{Incarnation, MigrationId};

use super::refit::{self, Change};
use crate::journal::{Ended, Record};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: it is as told, or only time or others can change it.
    Rest,
    /// Make disks and bring up a process.
    Start(Start),
    /// Take over the process that somebody else started.
    TakeOver,
    /// Let the process go on without us.
    LetGo,
    /// Remember nothing of the VM, and touch nothing of it.
    Bury,
    /// Kill the process.
    Destroy,
    /// Let the driver forget an ended guest.
    Forget,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs run.
    Resume,
    /// The process carries on under a higher incarnation.
    Adopt(Incarnation),
    /// Begin to send it away.
    MigrateOut(MigrationId),
    /// Pass the switch-over.
    Switch,
    /// Call the sending off.
    CallOff,
    /// Remember an ending of which the driver knows nothing.
    NoteEnd(Ended),
    /// The saved memory has been used, or is out of date: remove it.
    DropSaved,
    /// Give its process a device, or take one.
    Refit(Change),
    /// Remove everything made for the VM here.
    DropAll,
}

/// How the process gets its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// From power-on.
    Boot,
    /// From a saved file.
    Restore(String),
    /// From another host.
    Receive(MigrationId),
}

/// Must the assignment be refused because a newer incarnation is known here?
///
/// Discard is let through as long as it cannot hit a guest that ran under a newer incarnation: an aborted migration
/// discards the process that was to become incarnation + 1.
pub(crate) fn is_stale(record: &Record, desired: &Assignment, guest: Option<&Guest>) -> bool {
    let newer = guest.filter(|guest| guest.incarnation > desired.incarnation);
    match desired.role {
        Role::Discard { .. } | Role::Release => newer.is_some_and(|guest| guest.ever_ran),
        _ => desired.incarnation < record.told || newer.is_some(),
    }
}

/// The next step towards `desired`. The record must have it already, unless it is Discard.
pub(crate) fn plan(record: &Record, desired: Option<&Assignment>, guest: Option<&Guest>) -> Step {
    let Some(desired) = desired else { return Step::Rest };
    if is_stale(record, desired, guest) {
        return Step::Rest;
    }
    match &desired.role {
        Role::Hold => empty(guest, Step::Rest),
        Role::Discard { .. } if record.is_tombstone() => empty(guest, Step::Rest),
        Role::Discard { .. } => empty(guest, Step::DropAll),
        Role::Release => match guest {
            Some(_) => Step::LetGo,
            None if record.is_tombstone() => Step::Rest,
            None => Step::Bury,
        },
        Role::Run { .. } | Role::Adopt { .. } | Role::Receive { .. } | Role::Send { .. } => {
            live(record, desired, guest)
        }
    }
}

/// No process may be left; then `after`.
fn empty(guest: Option<&Guest>, after: Step) -> Step {
    match guest {
        None => after,
        Some(guest) if has_ended(guest) => Step::Forget,
        Some(_) => Step::Destroy,
    }
}

fn live(record: &Record, desired: &Assignment, guest: Option<&Guest>) -> Step {
    match guest {
        Some(guest) if guest.incarnation < desired.incarnation => lower(record, desired, guest),
        Some(guest) => match &desired.role {
            Role::Run { power, received, .. } => run(record, desired, guest, *power, *received),
            Role::Receive { migration, .. } => receive(record, guest, *migration),
            Role::Send { migration, step, power, .. } => send(record, guest, *migration, *step, *power),
            // It is not ours to end, whatever it looks like.
            Role::Adopt { .. } if matches!(guest.run, Run::Incoming | Run::Arrived) => Step::Rest,
            Role::Adopt { power } => run(record, desired, guest, *power, false),
            Role::Hold | Role::Discard { .. } | Role::Release => Step::Rest,
        },
        None => no_process(record, desired),
    }
}

/// A process of a lower incarnation: it carries on when that was said, and goes otherwise.
fn lower(record: &Record, desired: &Assignment, guest: &Guest) -> Step {
    let continues = desired.continues == Some(guest.incarnation) && !is_receive(desired);
    if matches!(desired.role, Role::Adopt { .. }) && !has_ended(guest) {
        return Step::Adopt(desired.incarnation);
    }
    match (&guest.run, continues) {
        (Run::Ended(cause, message), true) if ended_at(record, desired.incarnation).is_none() => {
            Step::NoteEnd(Ended {
                incarnation: desired.incarnation,
                cause: *cause,
                message: message.clone(),
                ever_ran: true,
                receiving: None,
            })
        }
        (Run::Ended(..), _) => Step::Forget,
        (_, true) => Step::Adopt(desired.incarnation),
        (_, false) => Step::Destroy,
    }
}

fn no_process(record: &Record, desired: &Assignment) -> Step {
    let ended = ended_at(record, desired.incarnation);
    let started = record.started.filter(|started| started.incarnation == desired.incarnation);
    let vanished = started.filter(|started| started.up);
    let note = |cause, message: &str, ever_ran, receiving| {
        Step::NoteEnd(Ended {
            incarnation: desired.incarnation,
            cause,
            message: message.to_owned(),
            ever_ran,
            receiving,
        })
    };
    let ran = record.ran == Some(desired.incarnation);
    match &desired.role {
        Role::Run { restore_from, received, .. } => {
            // What came of an abandoned attempt to receive this incarnation says nothing of a fresh start.
            let counts = |receiving: Option<MigrationId>| receiving.is_none() || *received || ran;
            if ended.is_some_and(|ended| counts(ended.receiving)) {
                return Step::Rest;
            }
            if let Some(started) = vanished.filter(|started| counts(started.receiving)) {
                return note(EndCause::Died, "its process is gone", ran, started.receiving);
            }
            if *received {
                let receiving = started.and_then(|started| started.receiving);
                return note(EndCause::Refused, "no process has received it here", false, receiving);
            }
            let continued = record.started.map(|started| started.incarnation);
            if desired.continues.is_some() && desired.continues == continued {
                return note(EndCause::Died, "the process that was to carry on is gone", true, None);
            }
            Step::Start(restore_from.clone().map_or(Start::Boot, Start::Restore))
        }
        Role::Receive { migration, .. } => {
            let same = |receiving: Option<MigrationId>| receiving == Some(*migration);
            if ended.is_some_and(|ended| same(ended.receiving)) {
                return Step::Rest;
            }
            if vanished.is_some_and(|started| same(started.receiving)) {
                return note(EndCause::Died, "the waiting process is gone", ran, Some(*migration));
            }
            Step::Start(Start::Receive(*migration))
        }
        Role::Adopt { .. } if ended.is_some() => Step::Rest,
        Role::Adopt { .. } if vanished.is_some() => note(EndCause::Died, "its process is gone", ran, None),
        Role::Adopt { .. } => Step::TakeOver,
        Role::Send { .. } if ended.is_some() => Step::Rest,
        Role::Send { .. } => note(EndCause::Died, "its process is gone", true, None),
        Role::Hold | Role::Discard { .. } | Role::Release => Step::Rest,
    }
}

fn run(record: &Record, desired: &Assignment, guest: &Guest, power: Power, received: bool) -> Step {
    let abandoned = record.started.is_some_and(|started| started.receiving.is_some()) && !guest.ever_ran;
    match (&guest.run, &guest.send) {
        (Run::Ended(..), _) if abandoned && !received => Step::Forget,
        (Run::Ended(..), _) => Step::Rest,
        (Run::Incoming | Run::Arrived, _) if !received => Step::Destroy,
        (Run::Incoming, _) => Step::Rest,
        (Run::Arrived, _) => let_be(power),
        (_, Some(Send::Copying(_) | Send::AtSwitchover(_))) => Step::CallOff,
        (Run::Outgoing, Some(Send::Sent(_) | Send::Holding(_))) if desired.continues.is_some() => {
            let_be(power)
        }
        (Run::Outgoing, _) => Step::Rest,
        (Run::Running | Run::Paused, _) => match match_power(guest, power) {
            Step::Rest if has_old_save(record, desired.incarnation) => Step::DropSaved,
            Step::Rest if guest.run == Run::Running => refit(record, &desired.spec),
            step => step,
        },
    }
}

/// The next change towards the spec that a running process can follow.
fn refit(record: &Record, spec: &VmSpec) -> Step {
    let built = record.built.as_ref();
    built.and_then(|built| refit::next(built, spec, &record.stuck)).map_or(Step::Rest, Step::Refit)
}

fn receive(record: &Record, guest: &Guest, migration: MigrationId) -> Step {
    let ours = record.started.is_some_and(|started| started.receiving == Some(migration));
    match guest.run {
        _ if ours => Step::Rest,
        // It was waiting for a migration that has since been given up.
        Run::Ended(..) => Step::Forget,
        Run::Incoming | Run::Arrived => Step::Destroy,
        Run::Running | Run::Paused | Run::Outgoing => Step::Rest,
    }
}

fn send(record: &Record, guest: &Guest, migration: MigrationId, step: SendStep, power: Power) -> Step {
    let sending = record.sending.as_ref().filter(|sending| sending.migration == migration);
    match (step, &guest.run, &guest.send) {
        (_, Run::Ended(..) | Run::Incoming | Run::Arrived, _) => Step::Rest,
        (SendStep::Copy, ..) if sending.is_some_and(|s| s.begun || s.failed.is_some()) => Step::Rest,
        (SendStep::Copy, ..) => Step::MigrateOut(migration),
        (SendStep::Switch, _, Some(Send::AtSwitchover(_))) => Step::Switch,
        // The sending failed on its own just before the hand-over was committed. The destination has not got
        // everything, but the guest is no longer ours to run until it is handed back.
        (SendStep::Switch, Run::Running, None | Some(Send::Cancelled(_) | Send::Holding(_))) => Step::Pause,
        (SendStep::Switch, ..) => Step::Rest,
        (SendStep::Cancel, _, Some(Send::Copying(_) | Send::AtSwitchover(_))) => Step::CallOff,
        (SendStep::Cancel, ..) => match_power(guest, power),
    }
}

/// Lets a guest that stands still at the edge of a migration go on as `power` says.
fn let_be(power: Power) -> Step {
    match power {
        Power::Running => Step::Resume,
        Power::Paused => Step::Pause,
        Power::Stopped => Step::Rest,
    }
}

fn match_power(guest: &Guest, power: Power) -> Step {
    match (&guest.run, power) {
        (Run::Running, Power::Paused) => Step::Pause,
        (Run::Paused, Power::Running) => Step::Resume,
        _ => Step::Rest,
    }
}

fn has_ended(guest: &Guest) -> bool {
    matches!(guest.run, Run::Ended(..))
}

fn is_receive(desired: &Assignment) -> bool {
    matches!(desired.role, Role::Receive { .. })
}

fn ended_at(record: &Record, incarnation: Incarnation) -> Option<&Ended> {
    record.ended.as_ref().filter(|ended| ended.incarnation == incarnation)
}

fn has_old_save(record: &Record, incarnation: Incarnation) -> bool {
    record.saved.as_ref().is_some_and(|saved| saved.incarnation < incarnation)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
