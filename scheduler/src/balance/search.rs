//! The search: the most painful host first, its busiest useful VM, the place where it helps most.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::VmId;

use super::board::Board;
use super::cost::{Cost, cost};
use super::level::{RADIUS_MIN, Thresholds, WINDOW_MS};
use super::{Ask, BalancePlan, Left, PlannedMove, Wave, Why, cpus};
use crate::filter;
use crate::history::{History, Rest};
use crate::request::Request;
use crate::snapshot::{HostIdx, Seat, Snapshot, VmIdx};
use crate::waves::{Step, seat, waves};

/// VMs of one host that are looked at, the busiest first: the idle ones after them cannot take much pain away.
const CANDIDATES_MAX: usize = 32;

/// Hosts that are asked to take a VM, those with most to spare first.
const TARGETS_MAX: usize = 16;

/// Hosts whose filters are asked before a VM is given up: rules may close many of those with most to spare.
const ASKED_MAX: usize = 256;

/// Things left alone that are told.
const LEFT_MAX: usize = 16;

/// A move that pays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) vm: VmIdx,
    pub(crate) from: HostIdx,
    pub(crate) seat: Seat,
    pub(crate) gain_milli: u64,
    pub(crate) gain_cpu_ms: u64,
    pub(crate) cost: Cost,
}

/// Plans moves that take pain away. The same snapshot and question give the same plan.
#[must_use]
pub fn balance(snapshot: &Snapshot, ask: &Ask<'_>) -> BalancePlan {
    let mut search = Search::new(snapshot, ask);
    let before = search.board.pain();
    let mut chosen: Vec<(Choice, String)> = Vec::new();
    while chosen.len() < search.moves_left {
        let Some(hot) = search.hottest() else { break };
        match search.relieve(hot) {
            Ok(choice) => {
                let reason = search.reason(&choice);
                search.carry(&choice);
                chosen.push((choice, reason));
            }
            Err(left) => search.give_up(hot, left),
        }
    }
    if chosen.len() == search.moves_left && search.hottest().is_some() {
        let text = format!(
            "{} VMs may be moved within an hour at level {}, and were",
            search.radius,
            u8::from(ask.level)
        );
        search.left.insert(0, Left { host: None, why: Why::Radius, text });
    }
    if chosen.is_empty() && search.left.is_empty() {
        search.left.push(search.calm());
    }
    let after = search.board.pain();
    let mut left = search.left;
    left.truncate(LEFT_MAX);
    let waves = in_waves(snapshot, &chosen, ask);
    BalancePlan { revision: snapshot.revision, before, after, waves, left, emptied: Vec::new() }
}

/// Judges the moves that have had time to work: what would it cost now to have the VM back where it was? Promises that
/// were not kept bar their VMs for a while.
pub fn settle(snapshot: &Snapshot, ask: &Ask<'_>, history: &mut History) {
    let now_ms = snapshot.now_ms;
    history.forget(now_ms);
    let due: Vec<_> = history.to_judge(now_ms).collect();
    if due.is_empty() {
        return;
    }
    let mut board = Board::new(snapshot, ask.level.thresholds());
    for made in due {
        let places = (snapshot.find_vm(made.vm), snapshot.find_host(made.from), snapshot.find_host(made.to));
        let (Some(vm), Some(from), Some(to)) = places else { continue };
        let Some(at) = snapshot.vm(vm).at.filter(|at| at.host == to) else { continue };
        // What cannot be measured now is judged later, or forgotten.
        if board.vms[vm.at()].load.is_none() {
            continue;
        }
        board.carry(vm, Seat { host: from, ..at });
        let observed = board.gain_milli(vm, from, to).unwrap_or(0);
        board.carry(vm, at);
        history.judge(&made, observed, now_ms);
    }
}

pub(crate) struct Search {
    pub(crate) board: Board,
    thresholds: &'static Thresholds,
    link: super::cost::Link,
    resting: BTreeMap<VmId, Rest>,
    /// Where VMs have been lately.
    banned: BTreeSet<(VmIdx, HostIdx)>,
    carried: BTreeSet<VmIdx>,
    /// Hosts given up in this plan.
    done: Vec<bool>,
    /// Hosts that VMs have been taken from in this plan.
    begun: Vec<bool>,
    left: Vec<Left>,
    radius: u64,
    moves_left: usize,
    now_ms: u64,
}

impl Search {
    pub(crate) fn new(snapshot: &Snapshot, ask: &Ask<'_>) -> Self {
        let thresholds = ask.level.thresholds();
        let board = Board::new(snapshot, thresholds);
        let vms = snapshot.vms().count() as u64;
        let radius = (vms * thresholds.radius_ppm / 1_000_000).max(RADIUS_MIN);
        let left = radius.saturating_sub(ask.history.moves_within(snapshot.now_ms, WINDOW_MS));
        let moves_left = ask.moves_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        let banned = ask
            .history
            .left_since(snapshot.now_ms)
            .filter_map(|(vm, host)| Some((snapshot.find_vm(vm)?, snapshot.find_host(host)?)));
        Self {
            thresholds,
            link: ask.budgets.link(),
            resting: ask.history.resting(snapshot.now_ms),
            banned: banned.collect(),
            carried: BTreeSet::new(),
            done: vec![false; snapshot.host_slots()],
            begun: vec![false; snapshot.host_slots()],
            left: Vec::new(),
            radius,
            moves_left,
            now_ms: snapshot.now_ms,
            board,
        }
    }

    /// The host that hurts most, of those that hurt enough and are not given up. Once begun, a host is relieved further:
    /// down to where it would not have been begun with.
    fn hottest(&self) -> Option<HostIdx> {
        let hurts = self.board.open().filter(|(host, cell)| {
            let least =
                if self.begun[host.at()] { self.thresholds.stop_ppm } else { self.thresholds.start_ppm };
            let pain = u128::from(cell.pain.all_milli()) * 1_000_000;
            !self.done[host.at()] && pain > u128::from(cell.capacity_milli) * u128::from(least)
        });
        hurts
            .max_by_key(|(host, cell)| (cell.pain.all_milli(), std::cmp::Reverse(*host)))
            .map(|(host, _)| host)
    }

    /// The best move off a host, or why there is none.
    fn relieve(&mut self, hot: HostIdx) -> Result<Choice, Left> {
        let mut tally = Tally::default();
        let mut candidates: Vec<VmIdx> = Vec::new();
        for vm in &self.board.fleet.room(hot).vms {
            match self.rests(*vm, hot) {
                None => candidates.push(*vm),
                Some(why) => tally.count(why),
            }
        }
        let busy = |vm: &VmIdx| self.board.vms[vm.at()].demand;
        candidates.sort_by_key(|vm| (std::cmp::Reverse((busy(vm).mean_milli, busy(vm).variance)), *vm));
        candidates.truncate(CANDIDATES_MAX);
        let coolest = self.coolest(hot);
        let mut best: Option<Choice> = None;
        for vm in candidates {
            let Some(found) = self.best_place(vm, hot, &coolest, &mut tally) else { continue };
            let net = |choice: &Choice| choice.gain_cpu_ms.saturating_sub(choice.cost.cpu_ms);
            if best.as_ref().is_none_or(|best| net(&found) > net(best)) {
                best = Some(found);
            }
        }
        best.ok_or_else(|| self.explain(hot, &tally))
    }

    pub(crate) fn moves_left(&self) -> usize {
        self.moves_left
    }

    pub(crate) fn horizon_s(&self) -> u64 {
        self.thresholds.horizon_s
    }

    pub(crate) fn is_banned(&self, vm: VmIdx, host: HostIdx) -> bool {
        self.banned.contains(&(vm, host))
    }

    /// What moving the VM costs. None when its load is not trusted, or the move would not end.
    pub(crate) fn cost(&self, vm: VmIdx) -> Option<Cost> {
        cost(&self.board.fleet, vm, &self.board.vms[vm.at()].load?, &self.link)
    }

    /// Is that gain worth that cost at this level?
    pub(crate) fn pays(&self, gain_cpu_ms: u64, cost_cpu_ms: u64) -> bool {
        u128::from(gain_cpu_ms) * 100 >= u128::from(cost_cpu_ms) * u128::from(self.thresholds.gain_percent)
    }

    /// Why a VM is not even looked at.
    pub(crate) fn rests(&self, vm: VmIdx, host: HostIdx) -> Option<Why> {
        let row = self.board.fleet.vm(vm);
        if !row.movable || row.held.is_some() || row.at.is_none_or(|seat| seat.host != host) {
            return Some(Why::NothingMovable);
        }
        let moved_lately =
            row.moved_ms.is_some_and(|at| self.now_ms.saturating_sub(at) < crate::history::COOL_DOWN_MS);
        if self.carried.contains(&vm) || moved_lately || self.resting.contains_key(&row.uid) {
            return Some(Why::Resting);
        }
        self.board.vms[vm.at()].load.is_none().then_some(Why::Distrusted)
    }

    /// Open hosts, those with most to spare first.
    fn coolest(&self, hot: HostIdx) -> Vec<HostIdx> {
        let mut hosts: Vec<(i128, HostIdx)> = self
            .board
            .open()
            .filter(|(host, cell)| {
                *host != hot && !self.board.fleet.host(*host).cordoned && cell.spare_milli > 0
            })
            .map(|(host, cell)| (-cell.spare_milli, host))
            .collect();
        if hosts.len() > ASKED_MAX {
            hosts.select_nth_unstable(ASKED_MAX);
            hosts.truncate(ASKED_MAX);
        }
        hosts.sort_unstable();
        hosts.into_iter().map(|(_, host)| host).collect()
    }

    fn best_place(&self, vm: VmIdx, hot: HostIdx, coolest: &[HostIdx], tally: &mut Tally) -> Option<Choice> {
        let fleet = &self.board.fleet;
        let Some(cost) = self.cost(vm) else {
            tally.count(Why::NotWorthIt);
            return None;
        };
        let request = Request::to_move(fleet, vm);
        let fits = |host: &&HostIdx| {
            !self.banned.contains(&(vm, **host)) && filter::refuse(fleet, &request, **host).is_none()
        };
        let mut best: Option<Choice> = None;
        let mut fitting = 0;
        for to in coolest.iter().filter(fits).take(TARGETS_MAX) {
            fitting += 1;
            let Some(gain_milli) = self.board.gain_milli(vm, hot, *to) else { continue };
            if best.as_ref().is_some_and(|best| best.gain_milli >= gain_milli) {
                continue;
            }
            let Some(seat) = seat(fleet, Step { vm, to: *to }) else { continue };
            let gain_cpu_ms = gain_milli.saturating_mul(self.thresholds.horizon_s);
            best = Some(Choice { vm, from: hot, seat, gain_milli, gain_cpu_ms, cost });
        }
        let Some(choice) = best.filter(|choice| self.pays(choice.gain_cpu_ms, cost.cpu_ms)) else {
            tally.count(if fitting == 0 { Why::NoRoom } else { Why::NotWorthIt });
            tally.better(best);
            return None;
        };
        Some(choice)
    }

    pub(crate) fn carry(&mut self, choice: &Choice) {
        self.begun[choice.from.at()] = true;
        self.board.carry(choice.vm, choice.seat);
        self.carried.insert(choice.vm);
    }

    /// Takes a choice back.
    pub(crate) fn carry_back(&mut self, vm: VmIdx, seat: Seat) {
        self.board.carry(vm, seat);
        self.carried.remove(&vm);
    }

    fn give_up(&mut self, host: HostIdx, left: Left) {
        self.done[host.at()] = true;
        self.left.push(left);
    }

    /// For people: what hurt, what helps, at what price.
    fn reason(&self, choice: &Choice) -> String {
        let (from, to) = (&self.board.hosts[choice.from.at()], &self.board.hosts[choice.seat.host.at()]);
        let fleet = &self.board.fleet;
        let (from_name, to_name) = (&fleet.host(choice.from).name, &fleet.host(choice.seat.host).name);
        let name = &fleet.vm(choice.vm).name;
        let load = self.board.vms[choice.vm.at()].demand;
        let hurt = self.hurt(choice.from);
        format!(
            "{from_name} {hurt}; {name} takes {} of its {} CPUs of demand to {to_name}, which has {} of {} to spare: {} \
             CPU-s gained in {} min, {} CPU-s spent",
            cpus(load.mean_milli),
            cpus(from.demand.mean_milli),
            cpus(u64::try_from(to.spare_milli).unwrap_or(0)),
            cpus(to.capacity_milli),
            choice.gain_cpu_ms / 1_000,
            self.thresholds.horizon_s / 60,
            choice.cost.cpu_ms / 1_000,
        )
    }

    fn hurt(&self, host: HostIdx) -> String {
        let cell = &self.board.hosts[host.at()];
        let unserved = cpus(cell.pain.unserved_milli);
        if cell.pain.unserved_milli >= cell.pain.unfair_milli {
            return format!("is expected to leave {unserved} CPUs of demand unserved");
        }
        let percent = super::pain::share_ppm(cell.demand.mean_milli, cell.capacity_milli) / 10_000;
        let fleet = self.board.fairness.fleet_ppm / 10_000;
        format!("is {percent} % busy while the fleet is {fleet} % busy")
    }

    fn explain(&self, host: HostIdx, tally: &Tally) -> Left {
        let name = &self.board.fleet.host(host).name;
        let count = |why| tally.counts.get(&why).copied().unwrap_or(0);
        let order = [Why::NotWorthIt, Why::NoRoom, Why::Resting, Why::Distrusted, Why::NothingMovable];
        let why = order.into_iter().find(|why| count(*why) > 0).unwrap_or(Why::NothingMovable);
        let what: Vec<String> = order
            .into_iter()
            .filter(|why| count(*why) > 0)
            .map(|why| {
                let what = match why {
                    Why::NotWorthIt => "would gain less than a move costs",
                    Why::NoRoom => "fit on no host that hurts less",
                    Why::Resting => "were moved lately, or moved in vain",
                    Why::Distrusted => "have no load that can be trusted",
                    _ => "may not be moved",
                };
                format!("{} {what}", count(why))
            })
            .collect();
        let what = if what.is_empty() {
            "it has no VMs".to_owned()
        } else {
            format!("of its VMs {}", what.join(", "))
        };
        let best = tally.best.map_or(String::new(), |choice| {
            let vm = &self.board.fleet.vm(choice.vm).name;
            let (gain, cost) = (choice.gain_cpu_ms / 1_000, choice.cost.cpu_ms / 1_000);
            format!("; the best of them, {vm}, would gain {gain} CPU-s and cost {cost}")
        });
        Left {
            host: Some(self.board.fleet.host(host).uid),
            why,
            text: format!("{name} {}, but {what}{best}", self.hurt(host)),
        }
    }

    fn calm(&self) -> Left {
        let doubted: u32 = self.board.open().map(|(_, cell)| cell.doubted).sum();
        let busy = |cell: &super::board::HostCell| {
            super::pain::share_ppm(cell.demand.mean_milli, cell.capacity_milli)
        };
        let worst = self.board.open().max_by_key(|(_, cell)| (cell.pain.all_milli(), busy(cell)));
        let Some((host, cell)) = worst else {
            let text = "no host is up and has CPUs".to_owned();
            return Left { host: None, why: Why::Calm, text };
        };
        let doubt = if doubted == 0 {
            String::new()
        } else {
            format!(" ({} without a load that can be trusted)", super::plural(doubted as usize, "VM"))
        };
        let least = cpus(cell.capacity_milli * self.thresholds.start_ppm / 1_000_000);
        let text = format!(
            "no host hurts enough: the worst, {}, carries {} on {} CPUs, a pain of {} where {least} would be acted on{doubt}",
            self.board.fleet.host(host).name,
            cpus(cell.demand.mean_milli),
            cpus(cell.capacity_milli),
            cpus(cell.pain.all_milli()),
        );
        Left { host: None, why: Why::Calm, text }
    }
}

/// Why the VMs of a host stay, counted.
#[derive(Debug, Default)]
struct Tally {
    counts: BTreeMap<Why, u32>,
    best: Option<Choice>,
}

impl Tally {
    fn count(&mut self, why: Why) {
        *self.counts.entry(why).or_default() += 1;
    }

    fn better(&mut self, choice: Option<Choice>) {
        let Some(choice) = choice else { return };
        if self.best.is_none_or(|best| choice.gain_cpu_ms > best.gain_cpu_ms) {
            self.best = Some(choice);
        }
    }
}

/// The chosen moves, named, in waves.
pub(crate) fn in_waves(snapshot: &Snapshot, chosen: &[(Choice, String)], ask: &Ask<'_>) -> Vec<Wave> {
    let by_vm: BTreeMap<VmIdx, &(Choice, String)> = chosen.iter().map(|entry| (entry.0.vm, entry)).collect();
    let steps: Vec<Step> =
        chosen.iter().map(|(choice, _)| Step { vm: choice.vm, to: choice.seat.host }).collect();
    let named = |(step, seat): &(Step, Seat)| {
        let (choice, reason) = by_vm[&step.vm];
        let (vm, from, to) = (snapshot.vm(step.vm), snapshot.host(choice.from), snapshot.host(step.to));
        PlannedMove {
            vm: vm.uid,
            vm_name: vm.name.clone(),
            from: from.uid,
            from_name: from.name.clone(),
            to: to.uid,
            to_name: to.name.clone(),
            seat: *seat,
            gain_milli: choice.gain_milli,
            gain_cpu_ms: choice.gain_cpu_ms,
            cost_cpu_ms: choice.cost.cpu_ms,
            sent_mib: choice.cost.sent_mib,
            took_ms: choice.cost.took_ms,
            reason: reason.clone(),
        }
    };
    let waves = waves(snapshot, &steps, &ask.budgets).waves;
    let waves = waves.iter().map(|wave| wave.iter().map(named).collect::<Vec<_>>());
    waves
        .map(|moves| {
            let took_ms = moves.iter().map(|planned| planned.took_ms).max().unwrap_or(0);
            Wave { moves, took_ms }
        })
        .collect()
}
