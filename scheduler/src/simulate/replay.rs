//! Runs a trace over a fleet: each arrival is decided as in earnest, each departure frees its room.

use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use super::{Arrival, Trace, check};
use crate::group::batch;
use crate::make_room::{Bounds, make_room};
use crate::place::Placer;
use crate::request::Request;
use crate::snapshot::{ProfileIdx, Seat, Snapshot, TiesIdx, VmIdx};

/// The window over which moves are counted against their budget, seconds: a day.
const BUDGET_WINDOW_S: u64 = 86_400;

/// Moves for one VM at most: more are a rebuild of the fleet for a single guest.
const MOVES_MAX: u32 = 32;

/// A move as dear as a TiB: fewer moves win against fewer bytes.
const FEWEST_MIB: u64 = 1 << 20;

/// How a trace is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Running VMs that may be moved within a day to let another in, in thousandths of those that live.
    pub moves_per_day_permille: u32,
    /// Arrivals of one batch are decided together: the members of a group know of each other.
    pub batches: bool,
    /// Up to this moment of the trace nothing is counted: the fleet fills up from nothing.
    pub warm_up_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { moves_per_day_permille: 0, batches: true, warm_up_s: 0 }
    }
}

/// What came of it. Sums over time are weighted by how long things stayed so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// VMs that came.
    pub arrived: u64,
    /// Of those, VMs for which there was no place.
    pub rejected: u64,
    /// Most hosts with a VM on them at one time.
    pub hosts_used_max: u64,
    /// The same on average, in thousandths.
    pub hosts_used_mean_milli: u64,
    /// Promised of what hosts with VMs offer, at the fullest of CPU and memory, on average, per mille.
    pub density_permille: u64,
    /// VMs that were moved to let others in.
    pub moves: u64,
    /// Memory that was moved for it, MiB.
    pub moved_mib: u64,
    /// Rules that did not hold in the end.
    pub violations: u64,
}

struct Run<'a> {
    snapshot: Snapshot,
    placer: Placer,
    options: &'a Options,
    demands: Vec<(ProfileIdx, TiesIdx)>,
    /// When, then which: the earliest on top.
    leaving: BinaryHeap<std::cmp::Reverse<(u64, VmIdx)>>,
    /// Moves within the window, with their times.
    moved: Vec<(u64, u32)>,
    live: u64,
    used: u64,
    now_s: u64,
    weighted: Weighted,
    report: Report,
}

/// Sums over time.
#[derive(Clone, Copy, Debug, Default)]
struct Weighted {
    seconds: u128,
    hosts: u128,
    density: u128,
}

/// Replays a trace over a fleet, which may have VMs already.
#[must_use]
pub fn replay(mut fleet: Snapshot, trace: &Trace, options: &Options) -> (Report, Snapshot) {
    let demands = trace.demands.iter().map(|demand| fleet.intern(demand)).collect();
    let live = fleet.vms().count() as u64;
    let used = fleet.hosts_used();
    let report = Report { policy: fleet.policy.name.clone(), ..Report::default() };
    let mut run = Run {
        snapshot: fleet,
        placer: Placer::new(),
        options,
        demands,
        leaving: BinaryHeap::new(),
        moved: Vec::new(),
        live,
        used,
        now_s: trace.arrivals.first().map_or(0, |first| first.at_s),
        weighted: Weighted::default(),
        report,
    };
    let mut rest = trace.arrivals.as_slice();
    while let Some(first) = rest.first() {
        let same = |other: &&Arrival| other.batch == first.batch;
        let many = if options.batches { rest.iter().take_while(same).count() } else { 1 };
        let (now, later) = rest.split_at(many);
        rest = later;
        run.until(first.at_s);
        run.arrive(now);
    }
    run.finish()
}

impl Run<'_> {
    /// Lets time pass: whoever leaves, leaves.
    fn until(&mut self, at_s: u64) {
        while let Some(std::cmp::Reverse((leaves_s, vm))) = self.leaving.peek().copied() {
            if leaves_s > at_s {
                break;
            }
            self.leaving.pop();
            self.pass(leaves_s);
            self.snapshot.remove_vm(vm);
            self.live -= 1;
            self.used = self.snapshot.hosts_used();
        }
        self.pass(at_s);
    }

    fn pass(&mut self, at_s: u64) {
        let from = self.now_s.max(self.options.warm_up_s);
        self.now_s = self.now_s.max(at_s);
        self.snapshot.now_ms = self.now_s * 1_000;
        let seconds = u128::from(self.now_s.saturating_sub(from));
        if seconds > 0 {
            self.weighted.seconds += seconds;
            self.weighted.hosts += seconds * u128::from(self.used);
            self.weighted.density += seconds * u128::from(self.density_permille());
        }
    }

    fn density_permille(&self) -> u64 {
        let (promised, offered) = self.snapshot.in_use();
        let parts = [(promised.cpu_milli, offered.cpu_milli), (promised.mem_mib, offered.mem_mib)];
        parts.into_iter().map(|(part, whole)| part * 1_000 / whole.max(1)).max().unwrap_or(0)
    }

    fn arrive(&mut self, arrivals: &[Arrival]) {
        let mut members: Vec<(VmIdx, Arrival)> = Vec::with_capacity(arrivals.len());
        for arrival in arrivals {
            let (profile, ties) = self.demands[arrival.demand];
            members.push((self.snapshot.add_interned(profile, ties), *arrival));
        }
        let requests: Vec<Request> =
            members.iter().map(|(vm, _)| Request::start(&self.snapshot, *vm)).collect();
        let seats = batch(&mut self.snapshot, &mut self.placer, &requests);
        for ((vm, arrival), mut seat) in members.into_iter().zip(seats) {
            if seat.is_none() {
                seat = self.squeeze(vm);
            }
            if arrival.at_s >= self.options.warm_up_s {
                self.report.arrived += 1;
                self.report.rejected += u64::from(seat.is_none());
            }
            if seat.is_none() {
                self.snapshot.remove_vm(vm);
                continue;
            }
            self.live += 1;
            if let Some(leaves_s) = arrival.leaves_s {
                self.leaving.push(std::cmp::Reverse((leaves_s, vm)));
            }
        }
        self.used = self.snapshot.hosts_used();
        self.report.hosts_used_max = self.report.hosts_used_max.max(self.used);
    }

    /// Moves others out of the way, within the budget.
    fn squeeze(&mut self, vm: VmIdx) -> Option<Seat> {
        let since = self.now_s.saturating_sub(BUDGET_WINDOW_S);
        self.moved.retain(|(at_s, _)| *at_s > since);
        let spent: u64 = self.moved.iter().map(|(_, moves)| u64::from(*moves)).sum();
        let budget = self.live * u64::from(self.options.moves_per_day_permille) / 1_000;
        let left = u32::try_from(budget.saturating_sub(spent)).unwrap_or(u32::MAX);
        if left == 0 {
            return None;
        }
        let request = Request::start(&self.snapshot, vm);
        // The budget counts moves: the fewest first, the fewest bytes among equals.
        let bounds = Bounds { moves_max: left.min(MOVES_MAX), overhead_mib: FEWEST_MIB, ..Bounds::default() };
        let plan = make_room(&mut self.snapshot, &mut self.placer, &request, &bounds)?;
        for step in &plan.moves {
            self.snapshot.move_to(step.vm, step.to);
        }
        self.snapshot.put(vm, plan.seat);
        let moves = u32::try_from(plan.moves.len()).unwrap_or(u32::MAX);
        self.moved.push((self.now_s, moves));
        self.report.moves += u64::from(moves);
        self.report.moved_mib += plan.cost_mib - u64::from(moves) * FEWEST_MIB;
        Some(plan.seat)
    }

    fn finish(mut self) -> (Report, Snapshot) {
        let seconds = self.weighted.seconds.max(1);
        let mean = |sum: u128, times: u128| u64::try_from(sum * times / seconds).unwrap_or(u64::MAX);
        self.report.hosts_used_mean_milli = mean(self.weighted.hosts, 1_000);
        self.report.density_permille = mean(self.weighted.density, 1);
        self.report.violations = check::violations(&self.snapshot).len() as u64;
        (self.report, self.snapshot)
    }
}
