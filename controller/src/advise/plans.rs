//! What would be moved: to empty hosts, and to level the load.

use std::collections::BTreeMap;

use dunlin_model::advice::{BalancePlan, DrainPlan, HostLoad, Misfit, PlannedMove};
use dunlin_model::decision::{Effect, Grounds, MoveCost};
use dunlin_model::host::Host;
use dunlin_model::{HostId, Name, Revision};
use dunlin_scheduler::Snapshot;
use dunlin_scheduler::balance::Eagerness;
use dunlin_scheduler::distrust;
use dunlin_scheduler::evacuate::{self, depart};

use super::Scene;
use crate::reconcile::levelling::{self, Asked, Grounded, all_milli, grounded};

/// Measurements that are not believed, told one by one at most: the rest is counted.
const DISTRUSTED_MAX: usize = 20;

/// How those hosts would be emptied, all at once.
pub(crate) fn drain_plan(scene: &Scene<'_>, hosts: &[&Host]) -> DrainPlan {
    let snapshot = scene.mirror();
    let asked: Vec<_> = hosts.iter().filter_map(|host| snapshot.find_host(host.metadata.uid)).collect();
    let plan = depart(&snapshot, &asked, &levelling::budgets(scene.state));
    let name = |host: HostId| scene.state.host(host).map(|host| host.metadata.name.clone());
    let mut loads = Asked::of(&snapshot);
    let mut moves = Vec::new();
    for (wave, step) in
        (1..).zip(&plan.waves).flat_map(|(wave, moves)| moves.moves.iter().map(move |m| (wave, m)))
    {
        let Some(from) = name(step.from) else { continue };
        moves.push(PlannedMove {
            wave,
            vm: step.vm_name.clone(),
            grounds: drained(&snapshot, &mut loads, step, &from),
            from,
            to: step.to_name.clone(),
        });
    }
    let vms = hosts.iter().map(|host| scene.state.host_vms(host.metadata.uid).count() as u64).sum();
    DrainPlan {
        revision: Revision(snapshot.revision),
        hosts: hosts.iter().map(|host| host.metadata.name.clone()).collect(),
        vms,
        moves,
        misfits: plan.misfits.iter().filter_map(|found| Some(misfit(found, name(found.from)?))).collect(),
        total_ms: plan.waves.iter().map(|wave| wave.took_ms).sum(),
    }
}

fn drained(snapshot: &Snapshot, loads: &mut Asked, step: &evacuate::Evacuee, from_name: &Name) -> Grounds {
    let (from, to) = (step.from, step.to);
    let row = snapshot.find_vm(step.vm).map(|vm| snapshot.vm(vm));
    let load = row.and_then(|row| row.load).unwrap_or_default();
    let size = row.map(|row| snapshot.profile(row.profile).amounts.mem_mib + row.local_disk_mib).unwrap_or(0);
    let before = (loads.percent(from), loads.percent(to));
    loads.carry(load.cpu_mean_milli + load.cpu_unmet_milli, from, to);
    let predicted = Effect {
        from_percent_before: before.0,
        from_percent_after: loads.percent(from),
        to_percent_before: before.1,
        to_percent_after: loads.percent(to),
        ..Effect::default()
    };
    let cost = MoveCost { send_mib: size, total_ms: step.took_ms, downtime_ms: 0 };
    Grounds { reason: format!("{from_name} is to be empty"), predicted, cost }
}

pub(super) fn misfit(found: &evacuate::Misfit, host: Name) -> Misfit {
    let reason = if found.alone { "NoPlace" } else { "NoPlaceBesideOthers" };
    Misfit { vm: found.vm_name.clone(), host, reason: reason.to_owned(), text: found.reason.clone() }
}

/// What a balancer is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aim {
    /// The cluster's own when not said.
    pub(crate) level: Option<Eagerness>,
    /// Hosts are to be emptied; else the load is to be levelled.
    pub(crate) consolidate: bool,
}

/// What the balancer would do now, and the moves as they can be begun.
pub(crate) fn balance_plan(scene: &Scene<'_>, aim: Aim) -> (BalancePlan, Vec<Grounded>) {
    let snapshot = scene.mirror();
    let level = aim.level.unwrap_or_else(|| levelling::eagerness(scene.state));
    let make = if aim.consolidate { levelling::consolidation } else { levelling::plan };
    let plan = make(scene.state, &snapshot, level);
    let found = grounded(&snapshot, &plan);
    let mode = scene.state.cluster().map(|cluster| cluster.spec.balance.mode).unwrap_or_default();
    let moves = found.iter().map(|found| PlannedMove {
        wave: found.wave,
        vm: found.planned.vm_name.clone(),
        from: found.planned.from_name.clone(),
        to: found.planned.to_name.clone(),
        grounds: found.grounds.clone(),
    });
    let told = BalancePlan {
        revision: Revision(plan.revision),
        mode,
        level: u8::from(level).into(),
        verdict: plan.verdict(),
        pain_before_milli: all_milli(&plan.before),
        pain_after_milli: all_milli(&plan.after),
        moves: moves.collect(),
        hosts: loads(&snapshot, &found),
        distrusted: distrusted(&snapshot),
        emptied: plan
            .emptied
            .iter()
            .filter_map(|host| Some(scene.state.host(*host)?.metadata.name.clone()))
            .collect(),
    };
    (told, found)
}

fn loads(snapshot: &Snapshot, moves: &[Grounded]) -> Vec<HostLoad> {
    let before = Asked::of(snapshot);
    let mut after = before.clone();
    for found in moves {
        let load = snapshot.find_vm(found.planned.vm).and_then(|vm| snapshot.vm(vm).load).unwrap_or_default();
        after.carry(load.cpu_mean_milli + load.cpu_unmet_milli, found.planned.from, found.planned.to);
    }
    let mut counts: BTreeMap<HostId, (u64, u64)> = BTreeMap::new();
    for (_, row) in snapshot.vms() {
        let Some(seat) = row.at else { continue };
        let (vms, measured) = counts.entry(snapshot.host(seat.host).uid).or_default();
        *vms += 1;
        *measured += u64::from(row.load.is_some());
    }
    let told = snapshot.hosts().map(|(at, row)| {
        let room = snapshot.room(at);
        let (vms, measured) = counts.get(&row.uid).copied().unwrap_or_default();
        HostLoad {
            host: row.name.clone(),
            cpu_milli: row.physical.cpu_milli,
            asked_milli: before.milli(row.uid),
            asked_after_milli: after.milli(row.uid),
            mem_percent: room.used.mem_mib * 100 / row.total.mem_mib.max(1),
            vms,
            measured,
        }
    });
    let mut told: Vec<HostLoad> = told.collect();
    told.sort_by_key(|host| std::cmp::Reverse((host.asked_milli * 1_000 / host.cpu_milli.max(1), host.vms)));
    told.truncate(dunlin_model::advice::HOSTS_MAX);
    told
}

/// Running VMs whose load may not be used, and why.
fn distrusted(snapshot: &Snapshot) -> Vec<String> {
    let doubts = snapshot.vms().filter_map(|(_, row)| {
        let seat = row.at.filter(|_| row.movable)?;
        let promised = snapshot.profile(row.profile).amounts.cpu_milli;
        let doubt = distrust::judge(row.load.as_ref(), promised, snapshot.now_ms).err()?;
        Some(format!("VM {} on host {}: {doubt:?}", row.name, snapshot.host(seat.host).name))
    });
    let mut told: Vec<String> = doubts.collect();
    let more = told.len().saturating_sub(DISTRUSTED_MAX);
    told.truncate(DISTRUSTED_MAX);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}
