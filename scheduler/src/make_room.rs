//! Make room: the cheapest set of moves found that lets a VM in which fits nowhere as things are.
//!
//! Two searches, and the cheaper answer. The first looks at hosts where only room is short, those that lack least first; on
//! each takes out the VMs that give most of what is short for what their move costs, to places that are free now, so that
//! every move can start at once. The second looks for few moves, of which one makes way for the next (`chain`), and misses
//! nothing within its bounds.

mod chain;

use serde::{Deserialize, Serialize};

pub use chain::{CHAIN_MOVES_MAX, CHAIN_STEPS_MAX};
use chain::{Chain, into_waves};

use crate::filter::{ASKED, CLASS, Filter, STATE, TIES, refuse, refuse_by};
use crate::place::Placer;
use crate::request::Request;
use crate::score::seat;
use crate::snapshot::{Amounts, HostIdx, Numa, Seat, Snapshot, VmIdx};

/// What a move costs beside the bytes it sends, as MiB, unless it is said: the blackout, and the work of two hosts to set
/// it up, take about as long as sending a GiB.
pub const MOVE_OVERHEAD_MIB: u64 = 1_024;

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Most moves of a plan.
    pub moves_max: u32,
    /// Most hosts tried.
    pub hosts_max: u32,
    /// Most that the moves of a plan may cost, MiB.
    pub cost_max_mib: u64,
    /// What a move costs beside the bytes it sends, as MiB. Much of it makes for few moves, none for few bytes.
    pub overhead_mib: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        // More moves than this for one VM are a rebuild of the fleet, and nobody waits for it.
        Self { moves_max: 16, hosts_max: 64, cost_max_mib: u64::MAX, overhead_mib: MOVE_OVERHEAD_MIB }
    }
}

/// Moves in waves, and the seat they make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomPlan {
    /// In an order in which each finds its place free.
    pub moves: Vec<RoomMove>,
    /// Where the VM then sits.
    pub seat: Seat,
    /// What all moves cost, MiB to send and the overhead of each.
    pub cost_mib: u64,
}

/// One VM makes way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomMove {
    /// Which.
    pub vm: VmIdx,
    /// Where it was.
    pub from: Seat,
    /// Where it goes.
    pub to: Seat,
    /// Moves of one wave start at once; a wave begins when the one before is done. From 1.
    pub wave: u32,
}

/// What moving a VM sends, MiB: its memory, and the disks it takes along.
#[must_use]
pub fn move_bytes_mib(snapshot: &Snapshot, vm: VmIdx) -> u64 {
    let row = snapshot.vm(vm);
    let amounts = snapshot.profile(row.profile).amounts;
    let memory = row.load.map_or(amounts.mem_mib, |load| load.mem_mib.min(amounts.mem_mib));
    memory + amounts.huge_mib + row.local_disk_mib
}

/// What a move counts, MiB.
fn move_cost_mib(snapshot: &Snapshot, vm: VmIdx, overhead_mib: u64) -> u64 {
    (move_bytes_mib(snapshot, vm) + overhead_mib).max(1)
}

/// The cheapest plan found. The snapshot is as before afterwards. None when none was found within the bounds.
pub fn make_room(
    snapshot: &mut Snapshot,
    placer: &mut Placer,
    request: &Request,
    bounds: &Bounds,
) -> Option<RoomPlan> {
    let best = at_once(snapshot, placer, request, bounds);
    in_turn(snapshot, request, bounds, best.as_ref().map(|best| best.cost_mib)).or(best)
}

/// A plan of few moves, some of which wait for others, that costs less than this.
fn in_turn(
    snapshot: &mut Snapshot,
    request: &Request,
    bounds: &Bounds,
    below_mib: Option<u64>,
) -> Option<RoomPlan> {
    let hosts = could_take(snapshot, request, &[ASKED, STATE, CLASS]);
    let mut search = Chain {
        snapshot,
        request,
        overhead_mib: bounds.overhead_mib,
        moves_max: bounds.moves_max.min(CHAIN_MOVES_MAX),
        below_mib: below_mib.unwrap_or_else(|| bounds.cost_max_mib.saturating_add(1)),
        steps: 0,
        best: None,
    };
    for (_, host) in hosts.into_iter().take(bounds.hosts_max as usize) {
        search.toward(host);
    }
    let mut plan = search.best?;
    into_waves(snapshot, &mut plan.moves);
    Some(plan)
}

/// A plan of moves that all start at once.
fn at_once(
    snapshot: &mut Snapshot,
    placer: &mut Placer,
    request: &Request,
    bounds: &Bounds,
) -> Option<RoomPlan> {
    let mut best: Option<RoomPlan> = None;
    let hosts = could_take(snapshot, request, &[ASKED, STATE, CLASS, TIES]);
    for (_, host) in hosts.into_iter().take(bounds.hosts_max as usize) {
        let cost_max_mib = best.as_ref().map_or(bounds.cost_max_mib, |best| best.cost_mib - 1);
        let mut trial = Trial { snapshot, placer, request, host, bounds, moves: Vec::new(), cost_mib: 0 };
        for nodes in trial.aims() {
            if let Some(plan) = trial.plan(nodes, cost_max_mib)
                && best.as_ref().is_none_or(|best| plan.cost_mib < best.cost_mib)
            {
                best = Some(plan);
            }
            trial.undo();
        }
    }
    best
}

/// Hosts that were large enough, and that these filters let it into; those that lack least first.
fn could_take(snapshot: &Snapshot, request: &Request, groups: &[&[Filter]]) -> Vec<(u64, HostIdx)> {
    let need = snapshot.profile(request.profile).amounts;
    let open = |host| groups.iter().all(|group| refuse_by(group, snapshot, request, host).is_none());
    let could = snapshot.hosts().filter(|(host, row)| need.fits(&row.total) && open(*host));
    let mut hosts: Vec<(u64, HostIdx)> =
        could.map(|(host, row)| (lack(need.minus(snapshot.room(host).free), row.total), host)).collect();
    hosts.sort_unstable();
    hosts
}

/// What is short, in millionths of the host, summed.
fn lack(short: Amounts, total: Amounts) -> u64 {
    let parts = short.each().into_iter().zip(total.each());
    parts.map(|((_, part), (_, whole))| part.saturating_mul(1_000_000) / whole.max(1)).sum()
}

struct Trial<'a> {
    snapshot: &'a mut Snapshot,
    placer: &'a mut Placer,
    request: &'a Request,
    host: HostIdx,
    bounds: &'a Bounds,
    moves: Vec<RoomMove>,
    cost_mib: u64,
}

impl Trial<'_> {
    /// The parts of the host to clear: the whole, or each NUMA node for a VM that lies in one.
    fn aims(&self) -> Vec<Option<usize>> {
        let nodes = self.snapshot.host(self.host).nodes.len();
        if self.snapshot.profile(self.request.profile).numa == Numa::One && nodes > 0 {
            return (0..nodes).map(Some).collect();
        }
        vec![None]
    }

    fn cost(&self, vm: VmIdx) -> u64 {
        move_cost_mib(self.snapshot, vm, self.bounds.overhead_mib)
    }

    fn plan(&mut self, node: Option<usize>, cost_max_mib: u64) -> Option<RoomPlan> {
        let mut stuck: Vec<VmIdx> = Vec::new();
        while refuse(self.snapshot, self.request, self.host).is_some() {
            if self.moves.len() >= self.bounds.moves_max as usize {
                return None;
            }
            let victim = self.victim(node, &stuck)?;
            let cost = self.cost(victim);
            if self.cost_mib + cost > cost_max_mib || !self.send_away(victim) {
                stuck.push(victim);
                continue;
            }
            self.cost_mib += cost;
        }
        self.prune();
        let seat = seat(self.snapshot, self.request.profile, self.host)?;
        Some(RoomPlan { moves: self.moves.clone(), seat, cost_mib: self.cost_mib })
    }

    /// What is still short on the part that is to be cleared.
    fn short(&self, node: Option<usize>) -> Amounts {
        let profile = self.snapshot.profile(self.request.profile);
        let room = self.snapshot.room(self.host);
        let whole = profile.amounts.minus(room.free);
        match node {
            Some(node) => profile.node_part(1).minus(room.nodes_free[node]).most(whole),
            None => whole,
        }
    }

    /// Who gives most of what is short for what the move costs; one that gives all of it before any other.
    fn victim(&self, node: Option<usize>, stuck: &[VmIdx]) -> Option<VmIdx> {
        let short = self.short(node);
        let total = self.snapshot.host(self.host).total;
        let wanted = lack(short, total).max(1);
        let mut best: Option<(bool, u64, VmIdx)> = None;
        for vm in self.snapshot.room(self.host).vms.iter().copied().filter(|vm| !stuck.contains(vm)) {
            let row = self.snapshot.vm(vm);
            let Some(at) = row.at.filter(|at| at.host == self.host) else { continue };
            let apart =
                node.is_some_and(|node| !at.nodes.is_empty() && !at.nodes.nodes().any(|other| other == node));
            if !row.movable || row.held.is_some() || apart || Some(vm) == self.request.vm {
                continue;
            }
            let left = lack(short.minus(self.snapshot.profile(row.profile).amounts), total);
            let gain = wanted.saturating_sub(left).max(u64::from(short == Amounts::default()));
            if gain == 0 {
                continue;
            }
            let cost = self.cost(vm);
            let all = left == 0;
            // What covers everything is judged by its cost alone, the rest by gain for cost.
            let merit = if all { u64::MAX - cost } else { gain.saturating_mul(1_000) / cost };
            if best.is_none_or(|(best_all, most, _)| (all, merit) > (best_all, most)) {
                best = Some((all, merit, vm));
            }
        }
        best.map(|(_, _, vm)| vm)
    }

    fn send_away(&mut self, vm: VmIdx) -> bool {
        let request = Request::to_move(self.snapshot, vm);
        let Some(from) = self.snapshot.vm(vm).at else { return false };
        let Some(pick) = self.placer.place(self.snapshot, &request) else { return false };
        self.snapshot.put(vm, pick.seat);
        self.moves.push(RoomMove { vm, from, to: pick.seat, wave: 1 });
        true
    }

    /// Takes back moves that turned out not to be needed, the dearest first.
    fn prune(&mut self) {
        let mut dear: Vec<RoomMove> = self.moves.clone();
        dear.sort_by_key(|step| std::cmp::Reverse(self.cost(step.vm)));
        for step in dear {
            self.snapshot.put(step.vm, step.from);
            let needed = refuse(self.snapshot, self.request, self.host).is_some();
            if needed {
                self.snapshot.put(step.vm, step.to);
            } else {
                self.cost_mib -= self.cost(step.vm);
                self.moves.retain(|kept| kept.vm != step.vm);
            }
        }
    }

    fn undo(&mut self) {
        for step in std::mem::take(&mut self.moves).into_iter().rev() {
            self.snapshot.put(step.vm, step.from);
        }
        self.cost_mib = 0;
    }
}

#[cfg(test)]
mod tests;
