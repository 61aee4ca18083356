//! One-shot acts: what to do next with one order. Pure; the same loop that follows [`plan`](super::plan) follows this.
//!
//! An act is journaled as begun before anything is done for it, and as ended with its result. After a crash in
//! between, what was begun is not done again, but judged by what can be seen. Saving is the exception: the driver's
//! contract makes a second call complete the first.

use dunlin_drivers::hypervisor::{Guest, Run, Send};
use dunlin_model::desired::ActOrder;
use dunlin_model::observed::EndCause;
use dunlin_model::task::{Act, TaskPhase};

use crate::journal::{ActRecord, Record};

/// What to do next with an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ActStep {
    /// Nothing before this moment, ms since 1970, unless something changes.
    Wait(u64),
    /// It has ended and been journaled.
    Over,
    /// Journal that it is begun, then do it.
    Begin,
    /// Press the power button again: a guest that was booting did not hear it.
    Press,
    /// Call `save` (again), and see whether the file is there when the guest has ended.
    Save,
    /// Journal how it ended.
    End(TaskPhase, String),
}

/// Between two presses of a power button, ms. A guest hears it once its drivers are in, seconds after it began to boot;
/// one that heard it already is not hurried by another press.
const PRESS_EVERY_MS: u64 = 2_000;

/// The next step of `order`, at `now_ms` since 1970.
pub(crate) fn plan_act(record: &Record, order: &ActOrder, guest: Option<&Guest>, now_ms: u64) -> ActStep {
    match record.acts.get(&order.task) {
        Some(act) if act.ended.is_some() => ActStep::Over,
        Some(act) => under_way(act, order, guest, now_ms),
        None => fresh(order, guest),
    }
}

fn fresh(order: &ActOrder, guest: Option<&Guest>) -> ActStep {
    let failed = |why: &str| ActStep::End(TaskPhase::Failed, why.to_owned());
    if order.cancel {
        return ActStep::End(TaskPhase::Cancelled, "cancelled before it was begun".to_owned());
    }
    let Some(guest) = guest.filter(|guest| !matches!(guest.run, Run::Ended(..))) else {
        return failed("the VM has no process here");
    };
    if guest.incarnation != order.incarnation {
        return failed(&format!(
            "it was meant for incarnation {}, here runs {}",
            order.incarnation, guest.incarnation
        ));
    }
    let moving = matches!(guest.send, Some(Send::Copying(_) | Send::AtSwitchover(_) | Send::Sent(_)));
    match (&order.act, &guest.run) {
        (Act::Drain, _) => failed("a drain is no act on a VM"),
        (_, Run::Incoming | Run::Arrived | Run::Outgoing) => failed("the VM is changing hosts"),
        (Act::Save | Act::Reset | Act::Reboot { .. }, _) if moving => failed("the VM is changing hosts"),
        (Act::Shutdown { .. } | Act::Reboot { .. }, Run::Paused) => {
            failed("the VM is paused and cannot hear its power button")
        }
        _ => ActStep::Begin,
    }
}

fn under_way(act: &ActRecord, order: &ActOrder, guest: Option<&Guest>, now_ms: u64) -> ActStep {
    let end = |phase, message: &str| ActStep::End(phase, message.to_owned());
    let here = guest.filter(|guest| guest.incarnation == act.incarnation);
    let ending = here.and_then(|guest| match &guest.run {
        Run::Ended(cause, message) => Some((*cause, message.as_str())),
        _ => None,
    });
    if matches!(act.act, Act::Save) {
        return match (here, ending) {
            (Some(_), None | Some((EndCause::Told, _))) => ActStep::Save,
            (_, Some((_, message))) => end(TaskPhase::Failed, &format!("the VM ended meanwhile: {message}")),
            (None, None) => end(TaskPhase::Failed, "the VM's process is gone"),
        };
    }
    let timeout_s = match act.act {
        Act::Shutdown { timeout_s } | Act::Reboot { timeout_s } => timeout_s,
        Act::Reset => return end(TaskPhase::Succeeded, "begun before the agent was restarted"),
        Act::Save | Act::Drain => return end(TaskPhase::Failed, "no such act on a VM"),
    };
    let shutdown = matches!(act.act, Act::Shutdown { .. });
    match (ending, here) {
        (Some((EndCause::GuestShutdown, _)), _) if shutdown => {
            end(TaskPhase::Succeeded, "the guest powered off")
        }
        (Some((_, message)), _) => end(TaskPhase::Failed, &format!("the VM ended otherwise: {message}")),
        (None, None) => end(TaskPhase::Failed, "the VM's process is gone"),
        (None, Some(guest)) if !shutdown && guest.reboots > act.reboots => {
            end(TaskPhase::Succeeded, "the guest powered off and was started again")
        }
        (None, Some(_)) if order.cancel => {
            end(TaskPhase::Cancelled, "no longer waited for; the guest may still heed its power button")
        }
        (None, Some(_)) => {
            let until = act.begun_ms.saturating_add(timeout_s.saturating_mul(1000));
            // A clock that was set back must not make it wait for longer than was asked.
            if now_ms >= until || now_ms < act.begun_ms {
                let message = format!("the guest did not power off within {timeout_s} s");
                return ActStep::End(TaskPhase::Failed, message);
            }
            let press_at = act.pressed_ms.max(act.begun_ms).saturating_add(PRESS_EVERY_MS);
            match here.is_some_and(|guest| guest.run == Run::Running) {
                true if now_ms >= press_at => ActStep::Press,
                true => ActStep::Wait(until.min(press_at)),
                // It cannot hear anything now.
                false => ActStep::Wait(until),
            }
        }
    }
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
