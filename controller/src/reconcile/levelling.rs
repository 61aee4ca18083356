//! What the scheduler's balancer says of the fleet, in the words of the model: plans with their grounds, and the history
//! it needs, read back from the migrations that are kept.
//!
//! The history is not remembered but read: a new leader knows the same moves, cool-downs and broken promises.

use std::collections::BTreeMap;

use dunlin_model::decision::{Effect, Grounds, MoveCost};
use dunlin_model::migration::{Migration, MigrationCause, MigrationOutcome};
use dunlin_model::{HostId, Timestamp};
use dunlin_scheduler::Snapshot;
use dunlin_scheduler::balance::{Ask, BalancePlan, Eagerness, Pain, PlannedMove, balance};
use dunlin_scheduler::budget::Budgets;
use dunlin_scheduler::consolidate::{Frugality, consolidate};
use dunlin_scheduler::history::{History, Made};
use dunlin_state::State;

/// What the guest is expected to stand still for in a move, ms; QEMU aims at it.
const DOWNTIME_MS: u64 = 300;

/// The moves of the recent past that were made to level the load.
pub(crate) fn history(state: &State, now: Timestamp) -> History {
    let mut history = History::default();
    let mut made: Vec<(Made, Option<u64>)> = state
        .migrations()
        .filter(|m| m.spec.cause == MigrationCause::Balance)
        .filter_map(remembered)
        .collect();
    made.sort_by_key(|(made, _)| made.at_ms);
    for (made, observed_milli) in made {
        history.record(made);
        if let Some(observed_milli) = observed_milli {
            history.judge(&made, observed_milli, made.at_ms + dunlin_scheduler::history::SETTLE_MS);
        }
    }
    history.forget(now.0);
    history
}

/// What a migration means to the history. One under way counts as made: its VM rests, and it is part of the radius.
fn remembered(migration: &Migration) -> Option<(Made, Option<u64>)> {
    let (spec, status) = (&migration.spec, &migration.status);
    let moved = status.outcome == Some(MigrationOutcome::Moved);
    if status.phase.is_terminal() && !moved {
        return None;
    }
    let at = status.history.last().map_or(migration.metadata.created, |(_, at)| *at);
    let gain = |effect: &Effect| effect.pain_before_milli.saturating_sub(effect.pain_after_milli);
    let promised = spec.grounds.as_ref().map_or(0, |grounds| gain(&grounds.predicted));
    let made = Made {
        vm: spec.vm,
        from: status.from?,
        to: status.to?,
        at_ms: at.0,
        promised_milli: if moved { promised } else { 0 },
        observed_milli: None,
    };
    Some((made, status.effect.as_ref().map(gain)))
}

/// The level the cluster has set.
pub(crate) fn eagerness(state: &State) -> Eagerness {
    let level = state.cluster().map(|cluster| cluster.spec.balance.level);
    level.and_then(|level| Eagerness::try_from(u8::try_from(level).ok()?).ok()).unwrap_or_default()
}

/// What the fleet's migrations may take.
pub(crate) fn budgets(state: &State) -> Budgets {
    let spec = state.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    Budgets { fleet: spec.migrations_per_fleet, ..Budgets::from(&spec) }
}

/// What the balancer would do now.
pub(crate) fn plan(state: &State, snapshot: &Snapshot, level: Eagerness) -> BalancePlan {
    let history = history(state, Timestamp(snapshot.now_ms));
    let ask = Ask { level, budgets: budgets(state), ..Ask::new(&history) };
    balance(snapshot, &ask)
}

/// Which hosts could be emptied now, and how. Room for hosts that fail is what keeps one on; none is kept awake besides.
pub(crate) fn consolidation(state: &State, snapshot: &Snapshot, level: Eagerness) -> BalancePlan {
    let history = history(state, Timestamp(snapshot.now_ms));
    let ask = Ask { level, budgets: budgets(state), ..Ask::new(&history) };
    consolidate(snapshot, &ask, &Frugality { awake: 0, ..Frugality::default() })
}

/// All pain there is, thousandths of a CPU.
pub(crate) const fn all_milli(pain: &Pain) -> u64 {
    pain.unserved_milli.saturating_add(pain.unfair_milli)
}

/// CPU that is asked of each host, and what it has, thousandths of a CPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    hosts: BTreeMap<HostId, (u64, u64)>,
}

impl Asked {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mut hosts: BTreeMap<HostId, (u64, u64)> =
            snapshot.hosts().map(|(_, row)| (row.uid, (0, row.physical.cpu_milli))).collect();
        for (_, row) in snapshot.vms() {
            let (Some(seat), Some(load)) = (row.at, row.load) else { continue };
            if let Some((asked, _)) = hosts.get_mut(&snapshot.host(seat.host).uid) {
                *asked += load.cpu_mean_milli + load.cpu_unmet_milli;
            }
        }
        Self { hosts }
    }

    pub(crate) fn milli(&self, host: HostId) -> u64 {
        self.hosts.get(&host).map_or(0, |(asked, _)| *asked)
    }

    pub(crate) fn percent(&self, host: HostId) -> u64 {
        self.hosts.get(&host).map_or(0, |(asked, has)| asked * 100 / (*has).max(1))
    }

    pub(crate) fn carry(&mut self, milli: u64, from: HostId, to: HostId) {
        if let Some((asked, _)) = self.hosts.get_mut(&from) {
            *asked = asked.saturating_sub(milli);
        }
        if let Some((asked, _)) = self.hosts.get_mut(&to) {
            *asked += milli;
        }
    }
}

/// A move of a plan, with its wave and why.
#[derive(Clone, Debug)]
pub(crate) struct Grounded {
    pub(crate) wave: u32,
    pub(crate) planned: PlannedMove,
    pub(crate) grounds: Grounds,
}

/// Every move with the fleet before and after it, in the order of the plan.
pub(crate) fn grounded(snapshot: &Snapshot, plan: &BalancePlan) -> Vec<Grounded> {
    let mut asked = Asked::of(snapshot);
    let mut pain = all_milli(&plan.before);
    let mut found = Vec::new();
    for (wave, moves) in (1..).zip(&plan.waves) {
        for planned in &moves.moves {
            let load = snapshot.find_vm(planned.vm).and_then(|vm| snapshot.vm(vm).load).unwrap_or_default();
            let (from, to) = (planned.from, planned.to);
            let before = (asked.percent(from), asked.percent(to));
            asked.carry(load.cpu_mean_milli + load.cpu_unmet_milli, from, to);
            let after = pain.saturating_sub(planned.gain_milli);
            let predicted = Effect {
                pain_before_milli: pain,
                pain_after_milli: after,
                from_percent_before: before.0,
                from_percent_after: asked.percent(from),
                to_percent_before: before.1,
                to_percent_after: asked.percent(to),
            };
            pain = after;
            let cost =
                MoveCost { send_mib: planned.sent_mib, total_ms: planned.took_ms, downtime_ms: DOWNTIME_MS };
            let grounds = Grounds { reason: planned.reason.clone(), predicted, cost };
            found.push(Grounded { wave, planned: planned.clone(), grounds });
        }
    }
    found
}
