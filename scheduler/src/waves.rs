//! Puts moves into waves: everything in one wave runs at the same time, and the next begins when all of it is done.
//!
//! Owns the order. A move joins a wave only if every filter lets it in while those before it in the wave hold room on both
//! sides: nothing is sold twice at any step, and no rule between VMs is broken in passing. What never fits is given back.

use std::collections::BTreeMap;

use crate::budget::Budgets;
use crate::filter::{self, choose_nodes};
use crate::request::Request;
use crate::snapshot::{DomainIdx, HostIdx, NodeSet, Seat, Snapshot, VmIdx};

/// One VM to one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which VM.
    pub vm: VmIdx,
    /// Where to.
    pub to: HostIdx,
}

/// Moves in waves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waves {
    /// Each step with the seat it takes. No wave is empty.
    pub waves: Vec<Vec<(Step, Seat)>>,
    /// Steps that fit at no time, in the order given.
    pub stuck: Vec<Step>,
}

/// Puts the steps into waves. Those that come first go first. A VM stands in at most one step.
#[must_use]
pub fn waves(snapshot: &Snapshot, steps: &[Step], budgets: &Budgets) -> Waves {
    let mut fleet = snapshot.clone();
    let mut left: Vec<Step> = steps.to_vec();
    let mut waves = Vec::new();
    while !left.is_empty() {
        let mut spent = Spent::default();
        let mut wave: Vec<(Step, Seat)> = Vec::new();
        left.retain(|step| {
            let Some(seat) = spent.admit(&fleet, *step, budgets) else { return true };
            fleet.hold(step.vm, seat);
            wave.push((*step, seat));
            false
        });
        if wave.is_empty() {
            break;
        }
        for (step, seat) in &wave {
            fleet.move_to(step.vm, *seat);
        }
        waves.push(wave);
    }
    Waves { waves, stuck: left }
}

/// What a wave has used of the budgets.
#[derive(Debug, Default)]
struct Spent {
    fleet: u32,
    hosts: BTreeMap<HostIdx, u32>,
    links: BTreeMap<DomainIdx, u32>,
}

impl Spent {
    /// The seat, if the step may run now.
    fn admit(&mut self, fleet: &Snapshot, step: Step, budgets: &Budgets) -> Option<Seat> {
        let from = fleet.vm(step.vm).at?.host;
        let racks = [fleet.host(from).rack, fleet.host(step.to).rack];
        let crosses = racks[0] != racks[1];
        let hosts = [from, step.to];
        let used = |host: &HostIdx| self.hosts.get(host).copied().unwrap_or(0) >= budgets.per_host.max(1);
        let full = |rack: &DomainIdx| self.links.get(rack).copied().unwrap_or(0) >= budgets.per_link.max(1);
        if self.fleet >= budgets.fleet.max(1)
            || hosts.iter().any(used)
            || (crosses && racks.iter().any(full))
            || filter::refuse(fleet, &Request::to_move(fleet, step.vm), step.to).is_some()
        {
            return None;
        }
        let seat = seat(fleet, step)?;
        self.fleet += 1;
        for host in hosts {
            *self.hosts.entry(host).or_default() += 1;
        }
        for rack in racks.into_iter().filter(|_| crosses) {
            *self.links.entry(rack).or_default() += 1;
        }
        Some(seat)
    }
}

/// The seat a VM would take on a host. None when it does not fit the NUMA nodes.
#[must_use]
pub fn seat(fleet: &Snapshot, step: Step) -> Option<Seat> {
    let nodes: NodeSet = choose_nodes(fleet, fleet.vm(step.vm).profile, step.to)?;
    Some(Seat { host: step.to, nodes })
}
