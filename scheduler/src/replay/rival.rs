//! The balancer that is measured against: every five minutes it lowers the standard deviation of host load, one best move
//! after the other, until that is below its target. The school of DRS before version 7, of hbal, and of many others.

use crate::filter;
use crate::request::Request;
use crate::snapshot::{HostIdx, HostState, Snapshot, VmIdx};
use crate::waves::{Step, seat};

/// A move has to lower the deviation by this part of it, ppm; else it stops: without it, it would chase rounding.
const GAIN_PPM_MIN: u64 = 2_000;

/// Moves of one round: as many as it may run within its period.
const MOVES_MAX: usize = 200;

/// Scale of loads: a millionth of a host.
const SCALE: i128 = 1_000_000;

/// Plans one round by the loads of the snapshot as they are now.
pub(super) fn plan(snapshot: &Snapshot, target_ppm: u64, now_milli: &[u64]) -> Vec<Step> {
    let mut fleet = snapshot.clone();
    let hosts: Vec<(HostIdx, i128)> = fleet
        .hosts()
        .filter(|(_, row)| row.state == HostState::Up && row.physical.cpu_milli > 0)
        .map(|(host, row)| (host, i128::from(row.physical.cpu_milli)))
        .collect();
    let count = i128::try_from(hosts.len()).unwrap_or(1).max(1);
    let mut capacity = vec![1_i128; fleet.host_slots()];
    let mut load = vec![0_i128; fleet.host_slots()];
    for (host, cpus) in &hosts {
        capacity[host.at()] = *cpus;
        let vms = fleet.room(*host).vms.iter();
        load[host.at()] = vms.map(|vm| i128::from(now_milli[vm.at()])).sum::<i128>() * SCALE / cpus;
    }
    let mut steps: Vec<Step> = Vec::new();
    while steps.len() < MOVES_MAX {
        let sum: i128 = hosts.iter().map(|(host, _)| load[host.at()]).sum();
        let squares: i128 = hosts.iter().map(|(host, _)| load[host.at()] * load[host.at()]).sum();
        // n times n times the variance: no division, no root.
        let spread = |sum: i128, squares: i128| count * squares - sum * sum;
        let now = spread(sum, squares);
        let target = i128::from(target_ppm) * count;
        if now <= target * target {
            break;
        }
        let mut best: Option<(i128, VmIdx, HostIdx)> = None;
        for (vm, row) in fleet.vms() {
            let Some(from) = row.at.map(|at| at.host).filter(|_| row.movable) else { continue };
            let used = i128::from(now_milli[vm.at()]) * SCALE;
            let less = load[from.at()] - used / capacity[from.at()];
            for (to, _) in hosts.iter().filter(|(to, _)| *to != from) {
                let more = load[to.at()] + used / capacity[to.at()];
                let sum = sum + less + more - load[from.at()] - load[to.at()];
                let squares = squares + less * less + more * more
                    - load[from.at()] * load[from.at()]
                    - load[to.at()] * load[to.at()];
                let after = spread(sum, squares);
                if best.is_none_or(|(best, _, _)| after < best)
                    && !steps.iter().any(|step| step.vm == vm)
                    && filter::refuse(&fleet, &Request::to_move(&fleet, vm), *to).is_none()
                {
                    best = Some((after, vm, *to));
                }
            }
        }
        // The deviation falls by half of what its square does.
        let Some((after, vm, to)) =
            best.filter(|(after, _, _)| (now - after) * SCALE > 2 * now * i128::from(GAIN_PPM_MIN))
        else {
            break;
        };
        let _ = after;
        let Some(at) = seat(&fleet, Step { vm, to }) else { break };
        if let Some(from) = fleet.vm(vm).at {
            let used = i128::from(now_milli[vm.at()]) * SCALE;
            load[from.host.at()] -= used / capacity[from.host.at()];
            load[to.at()] += used / capacity[to.at()];
        }
        fleet.put(vm, at);
        steps.push(Step { vm, to });
    }
    steps
}
