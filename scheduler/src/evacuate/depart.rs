//! Where everything on the hosts to be emptied goes: where the policy would place it, as long as all others still fit.
//!
//! ```text
//! one after the other, each where the policy wants it -> everything seated: that is the plan, and its own proof
//!                                                     -> something left over: the tightest assignment is the proof;
//!     one after the other: where the policy wants it, if the rest still fits after that; else its place in the proof
//! ```
//! The order is that in which the hosts' budgets let them go, the largest first, then the first of the snapshot. What comes
//! later depends on what went before and on nothing else, so the plan for what is left is the rest of the plan.

use std::collections::BTreeMap;

use super::{Assignment, Certainty, Evacuation, Table, Way, told};
use crate::budget::Budgets;
use crate::place::Placer;
use crate::snapshot::{HostIdx, Seat, Snapshot, VmIdx};

/// Of a plan in which not all can have their wish, so many are weighed against the rest; those after them have their places
/// in the proof. Each costs an assignment, and whoever begins moves asks again after a few.
const WEIGHED_MAX: usize = 64;

/// Plans to empty those hosts, all of them at the same time. Nothing goes from one of them to another. What is on its way
/// elsewhere counts as there.
#[must_use]
pub fn depart(snapshot: &Snapshot, hosts: &[HostIdx], budgets: &Budgets) -> Evacuation {
    let mut fleet = snapshot.clone();
    let under_way: Vec<(VmIdx, Seat)> = hosts
        .iter()
        .flat_map(|host| &snapshot.room(*host).vms)
        .filter_map(|vm| Some((*vm, snapshot.vm(*vm).held?)))
        .filter(|(_, seat)| !hosts.contains(&seat.host))
        .collect();
    for (vm, seat) in under_way {
        fleet.move_to(vm, seat);
    }
    let mut closed = hosts.to_vec();
    closed.sort_unstable();
    let table = Table::new(fleet.clone(), hosts, Way::Alive);
    let units = in_order(&table, budgets);
    let mut wishes = Wishes { table, placer: Placer::new(), closed };
    let found = if units.iter().all(|unit| wishes.grant(unit)) {
        wishes.table.answer(&units, Certainty::Fits)
    } else {
        wishes.weigh(&units)
    };
    told(&fleet, hosts, budgets, &found)
}

/// The largest first, as many of each host as may leave it at once; then the next of each host.
fn in_order(table: &Table, budgets: &Budgets) -> Vec<Vec<VmIdx>> {
    let homes: BTreeMap<VmIdx, HostIdx> = table.evacuees.iter().map(|(vm, seat)| (*vm, seat.host)).collect();
    let mut gone: BTreeMap<HostIdx, u32> = BTreeMap::new();
    let mut units: Vec<(u32, Vec<VmIdx>)> = Vec::new();
    for unit in table.units() {
        let Some(home) = unit.first().and_then(|vm| homes.get(vm)) else { continue };
        let before = gone.entry(*home).or_default();
        let turn = *before / budgets.per_host.max(1);
        *before += u32::try_from(unit.len()).unwrap_or(u32::MAX);
        units.push((turn, unit));
    }
    units.sort_by_key(|(turn, _)| *turn);
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// A table at which the policy is asked.
struct Wishes {
    table: Table,
    placer: Placer,
    /// The hosts to be emptied, sorted.
    closed: Vec<HostIdx>,
}

impl Wishes {
    /// Seats a unit where the policy wants the first of it, or not at all.
    fn grant(&mut self, unit: &[VmIdx]) -> bool {
        let Some(first) = unit.first() else { return true };
        let mut request = self.table.request(*first);
        request.closed.clone_from(&self.closed);
        let pick = self.placer.place(&self.table.fleet, &request);
        pick.is_some_and(|pick| self.table.try_unit(unit, pick.seat.host))
    }

    /// Not all can go where the policy wants them.
    fn weigh(mut self, units: &[Vec<VmIdx>]) -> Assignment {
        self.table.clear();
        let proof = self.table.assign();
        let (certainty, fewest) = (proof.certainty, proof.left.len());
        let mut seats: BTreeMap<VmIdx, Seat> = proof.seats.into_iter().collect();
        self.table.clear();
        for (at, unit) in units.iter().enumerate() {
            if at < WEIGHED_MAX && self.grant(unit) {
                if let Some(better) = self.with_rest(units, &units[at + 1..], fewest) {
                    seats = better;
                    continue;
                }
                self.table.undo(unit);
            }
            if let Some(seat) = unit.first().and_then(|vm| seats.get(vm)) {
                self.table.try_unit(unit, seat.host);
            }
        }
        self.table.answer(units, certainty)
    }

    /// The seats of all, when the rest can be seated with no more than so many left over.
    fn with_rest(
        &mut self,
        units: &[Vec<VmIdx>],
        rest: &[Vec<VmIdx>],
        fewest: usize,
    ) -> Option<BTreeMap<VmIdx, Seat>> {
        let before = self.table.order.len();
        for unit in rest {
            self.grant(unit);
        }
        self.seated(units, before, fewest).or_else(|| {
            self.table.fill(rest);
            self.seated(units, before, fewest)
        })
    }

    /// What is seated, if no more than so many are left over; afterwards the table is as it was before.
    fn seated(
        &mut self,
        units: &[Vec<VmIdx>],
        before: usize,
        fewest: usize,
    ) -> Option<BTreeMap<VmIdx, Seat>> {
        let found = (self.table.left(units).len() <= fewest).then(|| self.table.seats.clone());
        let after = self.table.order[before..].to_vec();
        self.table.undo(&after);
        found
    }
}
