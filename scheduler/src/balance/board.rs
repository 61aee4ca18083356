//! The fleet on the balancer's table: demand, capacity and pain per host, kept up to date while VMs are tried elsewhere.

use super::level::Thresholds;
use super::pain::{Demand, Fairness, HostPain, Pain};
use crate::distrust::{self, Doubt};
use crate::snapshot::{HostIdx, HostState, Load, Seat, Snapshot, VmIdx};

/// What a VM without a trusted load is taken to use, percent of what it was promised: it is there, and it may do something.
const UNKNOWN_PERCENT: u64 = 10;

/// How far above its mean a host's demand is taken to go when hosts are ranked by what they have to spare, in standard
/// deviations.
const SPARE_DEVIATIONS: u64 = 2;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostCell {
    /// Takes part: it is up and has CPUs.
    pub(crate) open: bool,
    pub(crate) capacity_milli: u64,
    pub(crate) demand: Demand,
    pub(crate) pain: HostPain,
    /// VMs there whose load is not trusted.
    pub(crate) doubted: u32,
    /// What it can take on, thousandths of a CPU.
    pub(crate) spare_milli: i128,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VmCell {
    pub(crate) demand: Demand,
    /// Set when it may be judged by what was measured.
    pub(crate) load: Option<Load>,
}

/// The table. Its copy of the fleet is the only one that changes.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    pub(crate) fleet: Snapshot,
    pub(crate) hosts: Vec<HostCell>,
    pub(crate) vms: Vec<VmCell>,
    pub(crate) fairness: Fairness,
}

impl Board {
    pub(crate) fn new(snapshot: &Snapshot, thresholds: &Thresholds) -> Self {
        let fleet = snapshot.clone();
        let mut hosts = vec![HostCell::default(); fleet.host_slots()];
        let mut vms = vec![VmCell::default(); fleet.vm_slots()];
        for (host, row) in fleet.hosts() {
            let cell = &mut hosts[host.at()];
            cell.capacity_milli = row.physical.cpu_milli;
            cell.open = row.state == HostState::Up && row.physical.cpu_milli > 0;
        }
        for (vm, row) in fleet.vms() {
            let promised = fleet.profile(row.profile).amounts.cpu_milli;
            let (cell, doubt) = vm_cell(row.load, promised, fleet.now_ms);
            vms[vm.at()] = cell;
            // On its way, it is counted where it is going: the decision has been taken.
            if let Some(seat) = row.held.or(row.at) {
                let host = &mut hosts[seat.host.at()];
                host.demand = host.demand.plus(cell.demand);
                host.doubted += u32::from(doubt.is_some());
            }
        }
        let open = || hosts.iter().filter(|host| host.open);
        let demand = open().map(|host| host.demand.mean_milli).sum();
        let capacity = open().map(|host| host.capacity_milli).sum();
        let fairness = Fairness::new(demand, capacity, thresholds);
        for host in &mut hosts {
            host.refresh(&fairness);
        }
        Self { fleet, hosts, vms, fairness }
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = (HostIdx, &HostCell)> {
        self.hosts.iter().enumerate().filter(|(_, cell)| cell.open).map(|(at, cell)| (HostIdx::of(at), cell))
    }

    pub(crate) fn pain(&self) -> Pain {
        let mut pain = Pain::default();
        for (_, cell) in self.open() {
            pain.add(&cell.demand, cell.capacity_milli, cell.pain);
        }
        pain
    }

    /// The pain a move takes away, thousandths of a CPU. None when it adds some, or leaves all.
    pub(crate) fn gain_milli(&self, vm: VmIdx, from: HostIdx, to: HostIdx) -> Option<u64> {
        let demand = self.vms[vm.at()].demand;
        let (a, b) = (&self.hosts[from.at()], &self.hosts[to.at()]);
        let left = self.fairness.pain(&a.demand.minus(demand), a.capacity_milli);
        let taken = self.fairness.pain(&b.demand.plus(demand), b.capacity_milli);
        let before = a.pain.all_milli() + b.pain.all_milli();
        before.checked_sub(left.all_milli() + taken.all_milli()).filter(|gain| *gain > 0)
    }

    pub(crate) fn demand(&self, vm: VmIdx) -> Demand {
        self.vms[vm.at()].demand
    }

    /// What a host would have to spare with that VM, thousandths of a CPU.
    pub(crate) fn spare_with(&self, vm: VmIdx, host: HostIdx) -> i128 {
        let cell = &self.hosts[host.at()];
        spare_milli(&cell.demand.plus(self.demand(vm)), cell.capacity_milli)
    }

    /// Carries a VM over.
    pub(crate) fn carry(&mut self, vm: VmIdx, seat: Seat) {
        let demand = self.vms[vm.at()].demand;
        if let Some(from) = self.fleet.vm(vm).at {
            let cell = &mut self.hosts[from.host.at()];
            cell.demand = cell.demand.minus(demand);
            cell.refresh(&self.fairness);
        }
        self.fleet.put(vm, seat);
        let cell = &mut self.hosts[seat.host.at()];
        cell.demand = cell.demand.plus(demand);
        cell.refresh(&self.fairness);
    }
}

impl HostCell {
    fn refresh(&mut self, fairness: &Fairness) {
        self.pain = fairness.pain(&self.demand, self.capacity_milli);
        self.spare_milli = spare_milli(&self.demand, self.capacity_milli);
    }
}

fn spare_milli(demand: &Demand, capacity_milli: u64) -> i128 {
    let spread = i128::from(u64::try_from(demand.variance.isqrt()).unwrap_or(u64::MAX));
    i128::from(capacity_milli) - i128::from(demand.mean_milli) - i128::from(SPARE_DEVIATIONS) * spread
}

fn vm_cell(load: Option<Load>, promised_milli: u64, now_ms: u64) -> (VmCell, Option<Doubt>) {
    match distrust::judge(load.as_ref(), promised_milli, now_ms) {
        Ok(load) => {
            let mean = load.cpu_mean_milli + load.cpu_unmet_milli;
            let demand = Demand::of(mean, load.cpu_peak_milli.max(mean));
            (VmCell { demand, load: Some(*load) }, None)
        }
        Err(doubt) => {
            let demand = Demand::of(promised_milli * UNKNOWN_PERCENT / 100, promised_milli);
            (VmCell { demand, load: None }, Some(doubt))
        }
    }
}
