//! Waiting for an object to become what was asked for.

use std::time::Duration;

use dunlin_model::migration::{Migration, MigrationOutcome, MigrationPhase};
use dunlin_model::task::{Task, TaskPhase};
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{ErrorCode, Object, Revision};

use crate::args::WaitArgs;
use crate::client::{Change, Fleet};
use crate::failure::Failure;
use crate::output::progress::Progress;

/// What a look at the object says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not yet: percent, and what it is doing.
    Going(u64, String),
    /// It is so.
    Reached,
    /// It never will be.
    Missed(String),
}

/// Follows `object` until `judge` is content, it is missed, or the time is up. Returns the object as last seen.
pub(crate) async fn until(
    fleet: &Fleet,
    wait: WaitArgs,
    object: Object,
    judge: impl Fn(&Change) -> Verdict,
) -> Result<Object, Failure> {
    let title = format!("{} {}", object.kind().to_string().to_lowercase(), object.name());
    let mut progress = Progress::new(&title);
    let limit = Duration::from_secs(wait.wait_s);
    match tokio::time::timeout(limit, follow(fleet, object, &title, judge, &mut progress)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Wait(format!("{title}: not there after {} s", wait.wait_s))),
    }
}

async fn follow(
    fleet: &Fleet,
    object: Object,
    title: &str,
    judge: impl Fn(&Change) -> Verdict,
    progress: &mut Progress,
) -> Result<Object, Failure> {
    let (kind, name) = (object.kind(), object.name().to_string());
    let mut after = Revision(object.revision().0.saturating_sub(1));
    let mut change = Change { object, deleted: false };
    loop {
        let mut watch = fleet.watch(&[kind], after, &name).await?;
        loop {
            match judge(&change) {
                Verdict::Going(percent, doing) => progress.at(percent, &format!("{title}: {doing}")),
                Verdict::Reached => return Ok(change.object),
                Verdict::Missed(why) => return Err(Failure::Wait(format!("{title}: {why}"))),
            }
            change = match watch.next().await {
                Ok(change) => change,
                Err(fault) if fault.code == ErrorCode::Compacted => break,
                Err(fault) => return Err(fault.into()),
            };
        }
        // The history was cut under us: read it again and go on from there.
        change = match fleet.get(kind, &name).await {
            Ok(object) => Change { object, deleted: false },
            Err(fault) if fault.code == ErrorCode::NotFound => Change { deleted: true, ..change },
            Err(fault) => return Err(fault.into()),
        };
        after = change.object.revision();
    }
}

/// Waits for a VM's phase.
pub(crate) fn vm_phase(wanted: &'static [VmPhase]) -> impl Fn(&Change) -> Verdict {
    move |change| match &change.object {
        _ if change.deleted => Verdict::Missed("was deleted".to_owned()),
        Object::Vm(vm) if wanted.contains(&vm.status.phase) => Verdict::Reached,
        Object::Vm(vm) if vm.status.phase == VmPhase::Failed => Verdict::Missed(why(vm)),
        Object::Vm(vm) => Verdict::Going(percent(vm.status.phase), why(vm)),
        other => wrong_kind(other),
    }
}

/// Waits until a VM's process is as its spec asks, or cannot be before its next start.
pub(crate) fn vm_follows(change: &Change) -> Verdict {
    let Object::Vm(vm) = &change.object else { return wrong_kind(&change.object) };
    let status = &vm.status;
    match &status.built {
        _ if change.deleted => Verdict::Missed("was deleted".to_owned()),
        _ if status.pending.is_empty() => Verdict::Reached,
        Some(built) if status.waits_for_restart() => {
            Verdict::Missed(format!("waits for a stop and a start: {}", built.note))
        }
        _ => Verdict::Going(50, format!("changing {}", status.pending.join(", "))),
    }
}

/// Waits for an object to be gone.
pub(crate) fn gone(change: &Change) -> Verdict {
    if change.deleted { Verdict::Reached } else { Verdict::Going(50, "being removed".to_owned()) }
}

/// Waits for a task to end well.
pub(crate) fn task_done(change: &Change) -> Verdict {
    let Object::Task(Task { status, .. }) = &change.object else { return wrong_kind(&change.object) };
    let doing = || format!("{} {}", status.phase, status.message).trim_end().to_owned();
    match status.phase {
        TaskPhase::Succeeded => Verdict::Reached,
        TaskPhase::Failed | TaskPhase::Cancelled => Verdict::Missed(doing()),
        TaskPhase::Queued | TaskPhase::Running => {
            let eta_s = status.drain.and_then(|drain| drain.eta_s);
            let eta = eta_s.map_or_else(String::new, |eta_s| format!("; about {eta_s} s to go"));
            Verdict::Going(status.progress_percent.into(), doing() + &eta)
        }
    }
}

/// Waits for a migration to end with the guest at its destination.
pub(crate) fn migration_done(change: &Change) -> Verdict {
    let Object::Migration(Migration { status, .. }) = &change.object else {
        return wrong_kind(&change.object);
    };
    let doing = format!("{} {}", status.phase, status.message).trim_end().to_owned();
    match (status.phase, status.outcome) {
        (MigrationPhase::Done, Some(MigrationOutcome::Moved)) => Verdict::Reached,
        (phase, outcome) if phase.is_terminal() => {
            let outcome = outcome.map_or_else(String::new, |outcome| format!(", outcome {outcome:?}"));
            Verdict::Missed(format!("{doing}{outcome}"))
        }
        (phase, _) => Verdict::Going(u64::from(phase as u8) * 20, doing),
    }
}

fn percent(phase: VmPhase) -> u64 {
    match phase {
        VmPhase::Pending => 10,
        VmPhase::Starting => 50,
        _ => 80,
    }
}

fn why(vm: &Vm) -> String {
    let status = &vm.status;
    [status.phase.to_string(), status.reason.clone(), status.message.clone()].join(" ").trim_end().to_owned()
}

fn wrong_kind(object: &Object) -> Verdict {
    Verdict::Missed(format!("the fleet answered with a {}", object.kind()))
}
