//! The worker of one VM: looks, decides, does one step, looks again. Ends when there is nothing to do.
//!
//! ```text
//! woken -> Looking --step--> Doing -> Looking        Looking --nothing, nothing to wait for--> (gone)
//!                  --same step again, or failed--> Waiting --bell or time--> Looking
//! ```

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::desired::{ActOrder, Assignment, Role};
use dunlin_model::{TaskId, VmId};
use tracing::Instrument as _;

use super::act::{ActStep, plan_act};
use super::board::Look;
use super::plan::{Step, is_stale, plan};
use crate::host::Host;
use crate::metrics;

/// A step that changed nothing is done again after this: the hypervisor is still at it, and will say when it is not.
const STALL_RETRY_MS: u64 = 500;

/// First wait after a failure. Most are a busy hypervisor.
const BACKOFF_MIN_MS: u64 = 100;

/// Longest wait between two tries: a host that is mended should be noticed within seconds.
const BACKOFF_MAX_MS: u64 = 5000;

/// What a worker does next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// Journal the assignment before anything is done for it.
    Accept(Arc<Assignment>),
    /// One step towards it.
    Step(Step),
    /// One step of an act.
    Act(ActOrder, ActStep),
    /// Forget acts that are no longer asked for.
    DropActs(Vec<TaskId>),
    /// Nothing, unless something changes or this moment comes, ms since 1970.
    Wait(Option<u64>),
}

/// Decides. Pure.
pub(crate) fn decide(look: &Look, now_ms: u64) -> Next {
    let (record, guest) = (&*look.record, look.guest.as_ref());
    if let Some(desired) = &look.desired
        && !is_stale(record, desired, guest)
        && is_news(look, desired)
    {
        return Next::Accept(Arc::clone(desired));
    }
    if look.away.is_some() {
        // What is there cannot be seen, and nothing is done to what cannot be seen. Its return wakes.
        return Next::Wait(None);
    }
    match plan(record, look.desired.as_deref(), guest) {
        Step::Rest => {}
        step => return Next::Step(step),
    }
    let asked = |task: &TaskId| look.orders.iter().any(|order| order.task == *task);
    let dropped: Vec<_> = record.acts.keys().filter(|task| look.told && !asked(task)).copied().collect();
    if !dropped.is_empty() {
        return Next::DropActs(dropped);
    }
    let mut until: Option<u64> = None;
    for order in &look.orders {
        match plan_act(record, order, guest, now_ms) {
            ActStep::Over => {}
            ActStep::Wait(at) => until = Some(until.map_or(at, |until| until.min(at))),
            // One act at a time.
            ActStep::Begin if until.is_some() => {}
            step => return Next::Act(order.clone(), step),
        }
    }
    Next::Wait(until)
}

/// Is it not what the record has already? Discard is not recorded: what it undoes must stay known until it is undone.
fn is_news(look: &Look, desired: &Arc<Assignment>) -> bool {
    let record = &look.record;
    match desired.role {
        Role::Discard { .. } | Role::Release => {
            let something = look.guest.is_some() || !record.is_tombstone();
            something && record.told < desired.incarnation
        }
        _ => record.told < desired.incarnation || record.assignment.as_ref() != Some(&**desired),
    }
}

/// How fast the same thing may be tried again.
#[derive(Debug, Default)]
struct Pace {
    /// What was done last, and the moment before which it is not done again, by the host's timer.
    last: Option<(Next, Duration)>,
    tries: u32,
}

impl Pace {
    /// How long `next` has to wait, if it was just done.
    fn hold(&self, next: &Next, now: Duration) -> Option<Duration> {
        let (last, not_before) = self.last.as_ref()?;
        if last == next { not_before.checked_sub(now).filter(|wait| !wait.is_zero()) } else { None }
    }

    fn done(&mut self, next: Next, now: Duration) {
        self.tries = 0;
        self.last = Some((next, now + Duration::from_millis(STALL_RETRY_MS)));
    }

    fn failed(&mut self, next: Next, now: Duration) {
        let again = matches!(&self.last, Some((last, _)) if *last == next);
        self.tries = if again { self.tries.saturating_add(1) } else { 1 };
        let wait = BACKOFF_MIN_MS.saturating_mul(1 << self.tries.min(16)).min(BACKOFF_MAX_MS);
        self.last = Some((next, now + Duration::from_millis(wait)));
    }

    /// Times `next` has failed in a row.
    fn failures(&self, next: &Next) -> u32 {
        if matches!(&self.last, Some((last, _)) if last == next) { self.tries } else { 0 }
    }
}

/// Works on `vm` until there is nothing left to do.
pub(crate) async fn work(host: Arc<Host>, vm: VmId) {
    let bell = host.board.bell(vm);
    let mut pace = Pace::default();
    let _working = metrics::WORKING.held();
    loop {
        host.board.begin_look(vm);
        let Some(look) = host.board.look(vm) else { return };
        let next = decide(&look, host.now_ms());
        if let Next::Wait(until) = next {
            host.board.doing(vm, None);
            let Some(until) = until else {
                if host.board.leave(vm) {
                    return;
                }
                continue;
            };
            let wait = Duration::from_millis(until.saturating_sub(host.now_ms()));
            host.ground.within(wait, bell.notified()).await;
            continue;
        }
        if let Some(wait) = pace.hold(&next, host.ground.timer.elapsed()) {
            host.ground.within(wait, bell.notified()).await;
            continue;
        }
        let tries = pace.failures(&next);
        let span = tracing::info_span!("work", %vm, correlation = thread(&host, vm, &next));
        let step = async {
            let done = host.carry_out(vm, &look, &next, tries).await;
            match &done {
                Ok(()) => tracing::debug!(name = %look.record.name, ?next, "a step is done"),
                Err(trouble) => {
                    tracing::warn!(name = %look.record.name, ?next, %trouble, "a step failed and will be tried again");
                }
            }
            done.is_ok()
        };
        if step.instrument(span).await {
            metrics::STEPS.inc(&["done"]);
            pace.done(next, host.ground.timer.elapsed());
        } else {
            metrics::STEPS.inc(&["failed"]);
            pace.failed(next, host.ground.timer.elapsed());
        }
    }
}

/// The user's command behind a step: that of its task, or else that of the VM.
fn thread(host: &Host, vm: VmId, next: &Next) -> String {
    let of_task = match next {
        Next::Act(order, _) => host.board.thread(order.task.0),
        _ => String::new(),
    };
    if of_task.is_empty() { host.board.thread(vm.0) } else { of_task }
}
