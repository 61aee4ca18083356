//! A day of measured load over a fleet, under a balancer or none: what would have gone unserved, and what it took.
//!
//! Owns the clock of the replay, meters, and the count of what went wrong. Refuses to decide: every decision is taken by the
//! same functions the controller calls. The same fleet, loads and rule give the same report.
//!
//! ```text
//! each slot of 5 min:  minute by minute: demand of each host against its CPUs, moves under way and their price
//!                      end of slot: readings -> meters -> loads of the snapshot -> the rule plans moves for the next slot
//! ```

mod rival;
pub mod seat;
pub mod trace;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::balance::cost::{Cost, cost};
use crate::balance::{Ask, Eagerness, balance, settle};
use crate::budget::Budgets;
use crate::distrust::{Meter, Reading};
use crate::history::{History, Made};
use crate::snapshot::{HostIdx, Seat, Snapshot, VmIdx};
use crate::waves::{Step, waves};

use trace::SLOT_MS;

/// Minutes of a slot: moves finish at full minutes.
const MINUTES: u64 = SLOT_MS / MINUTE_MS;

/// A minute, ms.
const MINUTE_MS: u64 = 60_000;

/// A VM that comes back within this time went in a circle, ms.
pub const CIRCLE_MS: u64 = 3_600_000;

/// How a fleet is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Not at all.
    None,
    /// By the standard deviation of host load, down to this much, ppm of a host: the measure most balancers use.
    Deviation {
        /// Where it stops.
        target_ppm: u64,
    },
    /// By pain.
    Pain {
        /// How eager.
        level: Eagerness,
    },
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// CPU time that was wanted, s.
    pub demand_cpu_s: u64,
    /// CPU time that was wanted and not there, the price of moves included, s.
    pub unmet_cpu_s: u64,
    /// The part of it that fell into the first slot, before any rule had seen anything, s.
    pub unseen_cpu_s: u64,
    /// The part of it that was the price of moves: blackouts and slow-downs, s.
    pub moving_cpu_s: u64,
    /// VMs that were moved, each time counted.
    pub moves: u64,
    /// What they sent, MiB.
    pub sent_mib: u64,
    /// Times a VM came back to a host it had left within the hour.
    pub circles: u64,
    /// The most of its CPUs that was wanted of any host in any minute, percent.
    pub hottest_percent: u64,
    /// Hosts that had VMs, on average, thousandths.
    pub hosts_milli: u64,
}

impl Report {
    /// Demand that went unserved, ppm.
    #[must_use]
    pub fn unmet_ppm(&self) -> u64 {
        crate::balance::pain::share_ppm(self.unmet_cpu_s, self.demand_cpu_s)
    }
}

/// CPU that one VM wants in each slot, thousandths of a CPU.
pub type Series = BTreeMap<VmIdx, Vec<u32>>;

/// Plays `series` over a fleet whose VMs are seated. What VMs without a series want is not known, and counts nothing.
#[must_use]
pub fn replay(fleet: &Snapshot, series: &Series, rule: Rule, budgets: &Budgets) -> Report {
    let slots = series.values().map(Vec::len).max().unwrap_or(0);
    let mut play = Play::new(fleet, budgets);
    for slot in 0..slots {
        play.want(series, slot);
        play.run();
        if slot == 0 {
            play.unseen = play.unmet;
        }
        play.read();
        if slot + 1 < slots {
            play.decide(rule);
        }
    }
    play.report()
}

/// A move of the coming slot.
#[derive(Clone, Copy, Debug)]
struct Flight {
    vm: VmIdx,
    seat: Seat,
    cost: Cost,
    /// Minutes of the slot at whose beginning it starts and at whose end it is done.
    minutes: (u64, u64),
    promised_milli: u64,
}

struct Play {
    fleet: Snapshot,
    budgets: Budgets,
    history: History,
    meters: Vec<Meter>,
    counters: Vec<Reading>,
    /// What each VM wants in this slot.
    wanted: Vec<u64>,
    flights: Vec<Flight>,
    /// Where each VM was before, and until when.
    before: BTreeMap<VmIdx, Vec<(HostIdx, u64)>>,
    /// In thousandths of CPU-milliseconds.
    demand: u128,
    unmet: u128,
    unseen: u128,
    moving: u128,
    hosts: u128,
    minutes: u128,
    report: Report,
}

impl Play {
    fn new(fleet: &Snapshot, budgets: &Budgets) -> Self {
        let vms = fleet.vm_slots();
        let mut fleet = fleet.clone();
        fleet.now_ms = 0;
        Self {
            fleet,
            budgets: *budgets,
            history: History::default(),
            meters: vec![Meter::default(); vms],
            counters: vec![Reading::default(); vms],
            wanted: vec![0; vms],
            flights: Vec::new(),
            before: BTreeMap::new(),
            demand: 0,
            unmet: 0,
            unseen: 0,
            moving: 0,
            hosts: 0,
            minutes: 0,
            report: Report::default(),
        }
    }

    fn want(&mut self, series: &Series, slot: usize) {
        for (vm, wanted) in series {
            let now = wanted.get(slot).copied().unwrap_or(0);
            self.wanted[vm.at()] = now.into();
        }
    }

    /// One slot, minute by minute.
    fn run(&mut self) {
        for minute in 0..MINUTES {
            let mut extra: BTreeMap<HostIdx, u64> = BTreeMap::new();
            for flight in self.flights.clone() {
                self.fly(&flight, minute, &mut extra);
            }
            for (host, row) in self.fleet.hosts() {
                let vms = &self.fleet.room(host).vms;
                let here = |vm: &&VmIdx| self.fleet.vm(**vm).at.is_some_and(|at| at.host == host);
                let wanted: u64 = vms.iter().filter(here).map(|vm| self.wanted[vm.at()]).sum();
                let all = wanted + extra.get(&host).copied().unwrap_or(0);
                let unmet = all.saturating_sub(row.physical.cpu_milli);
                self.demand += u128::from(wanted) * u128::from(MINUTE_MS);
                self.unmet += u128::from(unmet) * u128::from(MINUTE_MS);
                self.hosts += u128::from(!vms.is_empty());
                let percent = all * 100 / row.physical.cpu_milli.max(1);
                self.report.hottest_percent = self.report.hottest_percent.max(percent);
            }
            self.minutes += 1;
            self.land(minute);
        }
        self.flights.clear();
        self.fleet.now_ms += SLOT_MS;
    }

    /// What a move takes while it lasts: CPU of both hosts, and what its guest loses.
    fn fly(&mut self, flight: &Flight, minute: u64, extra: &mut BTreeMap<HostIdx, u64>) {
        let (first, last) = flight.minutes;
        if !(first..=last).contains(&minute) {
            return;
        }
        let link = self.budgets.link();
        let minutes = last - first + 1;
        let copying_ms = flight.cost.sent_mib * link.cpu_ms_per_gib / 1_024 / minutes;
        let from = self.fleet.vm(flight.vm).at.map(|at| at.host);
        for host in [from, Some(flight.seat.host)].into_iter().flatten() {
            *extra.entry(host).or_default() += copying_ms * 1_000 / MINUTE_MS / 2;
        }
        let wanted = u128::from(self.wanted[flight.vm.at()]);
        let slowed = u128::from(flight.cost.took_ms) * wanted * u128::from(link.slowdown_percent) / 100;
        let still = u128::from(link.blackout_ms) * wanted;
        let lost = (slowed + still) / u128::from(minutes);
        self.moving += lost;
        self.unmet += lost;
    }

    /// Moves that end with this minute.
    fn land(&mut self, minute: u64) {
        let now_ms = self.fleet.now_ms + (minute + 1) * MINUTE_MS;
        for flight in self.flights.clone().iter().filter(|flight| flight.minutes.1 == minute) {
            let Some(from) = self.fleet.vm(flight.vm).at else { continue };
            let to = flight.seat.host;
            let before = self.before.entry(flight.vm).or_default();
            let circle = before.iter().any(|(host, left_ms)| *host == to && now_ms - left_ms <= CIRCLE_MS);
            before.push((from.host, now_ms));
            self.report.circles += u64::from(circle);
            self.report.moves += 1;
            self.report.sent_mib += flight.cost.sent_mib;
            self.fleet.move_to(flight.vm, flight.seat);
            self.fleet.set_moved(flight.vm, Some(now_ms));
            self.history.record(Made {
                vm: self.fleet.vm(flight.vm).uid,
                from: self.fleet.host(from.host).uid,
                to: self.fleet.host(to).uid,
                at_ms: now_ms,
                promised_milli: flight.promised_milli,
                observed_milli: None,
            });
        }
    }

    /// What the hosts tell at the end of a slot.
    fn read(&mut self) {
        let vms: Vec<VmIdx> = self.fleet.vms().map(|(vm, _)| vm).collect();
        for vm in vms {
            let row = self.fleet.vm(vm);
            let amounts = self.fleet.profile(row.profile).amounts;
            let counter = &mut self.counters[vm.at()];
            if counter.at_ms == 0 {
                // The first reading only says where the counters begin.
                let _ = self.meters[vm.at()].read(*counter, amounts.cpu_milli);
            }
            counter.at_ms = self.fleet.now_ms;
            counter.cpu_ms += self.wanted[vm.at()] * SLOT_MS / 1_000;
            counter.mem_mib = amounts.mem_mib;
            if let Ok(load) = self.meters[vm.at()].read(*counter, amounts.cpu_milli) {
                self.fleet.observe_vm(vm, Some(load));
            }
        }
    }

    fn decide(&mut self, rule: Rule) {
        let (planned, promised) = match rule {
            Rule::None => return,
            Rule::Deviation { target_ppm } => {
                let steps = rival::plan(&self.fleet, target_ppm, &self.wanted);
                (waves(&self.fleet, &steps, &self.budgets).waves, BTreeMap::new())
            }
            Rule::Pain { level } => {
                let mut history = std::mem::take(&mut self.history);
                let ask = |history| Ask { level, budgets: self.budgets, ..Ask::new(history) };
                let known = history.clone();
                settle(&self.fleet, &ask(&known), &mut history);
                let plan = balance(&self.fleet, &ask(&history));
                self.history = history;
                let index = |uid| self.fleet.find_vm(uid);
                let promised: BTreeMap<VmIdx, u64> = plan
                    .moves()
                    .filter_map(|planned| Some((index(planned.vm)?, planned.gain_milli)))
                    .collect();
                let waves = plan.waves.iter().map(|wave| {
                    let step = |planned: &crate::balance::PlannedMove| {
                        Some((Step { vm: index(planned.vm)?, to: planned.seat.host }, planned.seat))
                    };
                    wave.moves.iter().filter_map(step).collect()
                });
                (waves.collect(), promised)
            }
        };
        self.schedule(&planned, &promised);
    }

    /// Waves one after the other; what does not end within the slot is planned anew after it.
    fn schedule(&mut self, planned: &[Vec<(Step, Seat)>], promised: &BTreeMap<VmIdx, u64>) {
        let link = self.budgets.link();
        let mut start_ms = 0;
        for wave in planned {
            let mut end_ms = start_ms;
            let mut flights = Vec::new();
            for (step, seat) in wave {
                let load = self.fleet.vm(step.vm).load.unwrap_or_default();
                let Some(cost) = cost(&self.fleet, step.vm, &load, &link) else { continue };
                let done_ms = start_ms + cost.took_ms;
                end_ms = end_ms.max(done_ms);
                let minutes = (start_ms / MINUTE_MS, (done_ms - 1) / MINUTE_MS);
                let promised_milli = promised.get(&step.vm).copied().unwrap_or(0);
                flights.push(Flight { vm: step.vm, seat: *seat, cost, minutes, promised_milli });
            }
            if end_ms > SLOT_MS {
                break;
            }
            self.flights.extend(flights);
            start_ms = end_ms;
        }
    }

    fn report(mut self) -> Report {
        let seconds = |sum: u128| u64::try_from(sum / 1_000_000).unwrap_or(u64::MAX);
        self.report.demand_cpu_s = seconds(self.demand);
        self.report.unmet_cpu_s = seconds(self.unmet);
        self.report.unseen_cpu_s = seconds(self.unseen);
        self.report.moving_cpu_s = seconds(self.moving);
        let hosts = self.hosts * 1_000 / self.minutes.max(1);
        self.report.hosts_milli = u64::try_from(hosts).unwrap_or(u64::MAX);
        self.report
    }
}
