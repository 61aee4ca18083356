//! Moves that make way for moves: a VM leaves a host that is full for one that is, once somebody there has left, and so on.
//!
//! A search backwards from the VM that wants in. A goal is somebody and a host. Where the host does not take him, somebody
//! there has to go first, and that is the next goal; where it does, he moves, and the goal before it is looked at again.
//!
//! ```text
//! goals: [new -> h1]                            h1 is full: a goes first
//!        [new -> h1, a -> h2]                   h2 is full: b goes first
//!        [new -> h1, a -> h2, b -> h3]          h3 takes b, then h2 takes a, then h1 takes the new one
//! ```
//!
//! Every way is tried, each VM moving once, the cheaper VMs first, as long as it is cheaper than the best found. Within its
//! bounds nothing is missed where only amounts are short; where rules between VMs or NUMA nodes stand in the way, what is
//! found is sound all the same.

use super::{RoomMove, RoomPlan, move_cost_mib};
use crate::filter::{ASKED, CLASS, STATE, refuse, refuse_by};
use crate::request::Request;
use crate::score::seat;
use crate::snapshot::{Amounts, HostIdx, Snapshot, VmIdx};

/// Moves of a chain: each has to wait for the one before, and a plan of many such waits is stale before it is done.
pub const CHAIN_MOVES_MAX: u32 = 3;

/// Hosts asked whether they take somebody, over the whole search: some milliseconds.
pub const CHAIN_STEPS_MAX: u32 = 30_000;

pub(super) struct Chain<'a> {
    pub(super) snapshot: &'a mut Snapshot,
    pub(super) request: &'a Request,
    pub(super) overhead_mib: u64,
    pub(super) moves_max: u32,
    /// What a plan has to cost less than.
    pub(super) below_mib: u64,
    pub(super) steps: u32,
    pub(super) best: Option<RoomPlan>,
}

/// Somebody wants to be on a host.
struct Goal {
    request: Request,
    host: HostIdx,
}

/// What has been done and is to be done.
#[derive(Default)]
struct Path {
    goals: Vec<Goal>,
    moves: Vec<RoomMove>,
    cost_mib: u64,
}

impl Chain<'_> {
    /// Looks for a plan that lets the VM in on this host.
    pub(super) fn toward(&mut self, host: HostIdx) {
        let goals = vec![Goal { request: self.request.clone(), host }];
        self.pursue(&mut Path { goals, ..Path::default() });
    }

    /// All is spent: what was found by then is the answer.
    const fn is_over(&self) -> bool {
        self.steps >= CHAIN_STEPS_MAX
    }

    fn pursue(&mut self, path: &mut Path) {
        let Some(goal) = path.goals.last() else { return };
        self.steps += 1;
        if refuse(self.snapshot, &goal.request, goal.host).is_some() {
            self.clear(path);
            return;
        }
        let Some(to) = seat(self.snapshot, goal.request.profile, goal.host) else { return };
        if path.goals.len() == 1 {
            self.below_mib = path.cost_mib;
            self.best = Some(RoomPlan { moves: path.moves.clone(), seat: to, cost_mib: path.cost_mib });
            return;
        }
        let Some(goal) = path.goals.pop() else { return };
        let from = goal.request.vm.and_then(|vm| Some((vm, self.snapshot.vm(vm).at?)));
        if let Some((vm, from)) = from {
            self.snapshot.put(vm, to);
            path.moves.push(RoomMove { vm, from, to, wave: 1 });
            self.pursue(path);
            path.moves.pop();
            self.snapshot.put(vm, from);
        }
        path.goals.push(goal);
    }

    /// Somebody has to leave the host of the last goal first.
    fn clear(&mut self, path: &mut Path) {
        let planned = path.moves.len() + path.goals.len() - 1;
        let left = (self.moves_max as usize).saturating_sub(planned);
        let Some(goal) = path.goals.last().filter(|_| left > 0) else { return };
        let (profile, host) = (goal.request.profile, goal.host);
        let short = self.snapshot.profile(profile).amounts.minus(self.snapshot.room(host).free);
        for (cost, vm) in self.leavers(path, host, short, left) {
            if path.cost_mib + cost >= self.below_mib || self.is_over() {
                return;
            }
            path.cost_mib += cost;
            let request = Request::to_move(self.snapshot, vm);
            for to in self.havens(&request, left > 1) {
                path.goals.push(Goal { request: request.clone(), host: to });
                self.pursue(path);
                path.goals.pop();
                if path.cost_mib >= self.below_mib || self.is_over() {
                    break;
                }
            }
            path.cost_mib -= cost;
        }
    }

    /// Who may go and gives some of what is short, the cheapest first; all of it, where nobody else could go as well.
    fn leavers(&self, path: &Path, host: HostIdx, short: Amounts, left: usize) -> Vec<(u64, VmIdx)> {
        let snapshot = &*self.snapshot;
        let waits = |vm: VmIdx| path.goals.iter().any(|goal| goal.request.vm == Some(vm));
        let moved = |vm: VmIdx| path.moves.iter().any(|step| step.vm == vm);
        let useful = |vm: VmIdx| {
            let row = snapshot.vm(vm);
            let rest = short.minus(snapshot.profile(row.profile).amounts);
            let gives = short == Amounts::default()
                || if left == 1 { rest == Amounts::default() } else { rest != short };
            row.movable && row.held.is_none() && row.at.is_some_and(|at| at.host == host) && gives
        };
        let there = snapshot.room(host).vms.iter().copied();
        let who = there.filter(|vm| useful(*vm) && !waits(*vm) && !moved(*vm));
        let mut who: Vec<_> = who.map(|vm| (move_cost_mib(snapshot, vm, self.overhead_mib), vm)).collect();
        who.sort_unstable();
        who
    }

    /// Where it may go: hosts that take it as things are, then, if others may go first, those that lack room for it.
    fn havens(&mut self, request: &Request, more: bool) -> Vec<HostIdx> {
        let snapshot = &*self.snapshot;
        let need = snapshot.profile(request.profile).amounts;
        let mut havens: Vec<(bool, u64, HostIdx)> = Vec::new();
        for (host, row) in snapshot.hosts() {
            let open = need.fits(&row.total)
                && [ASKED, STATE, CLASS]
                    .iter()
                    .all(|group| refuse_by(group, snapshot, request, host).is_none());
            if !open {
                continue;
            }
            self.steps += 1;
            let full = refuse(snapshot, request, host).is_some();
            if !full || more {
                havens.push((full, super::lack(need.minus(snapshot.room(host).free), row.total), host));
            }
        }
        havens.sort_unstable();
        havens.into_iter().map(|(_, _, host)| host).collect()
    }
}

/// Says of each move in which wave it can run: with those before it in the wave under way, and earlier waves done. The
/// snapshot is as before afterwards.
pub(super) fn into_waves(snapshot: &mut Snapshot, moves: &mut [RoomMove]) {
    let (mut wave, mut first) = (1, 0);
    for at in 0..moves.len() {
        let step = moves[at];
        let takes = |snapshot: &Snapshot| {
            let request = Request::to_move(snapshot, step.vm);
            refuse(snapshot, &request, step.to.host).is_none()
                && seat(snapshot, request.profile, step.to.host) == Some(step.to)
        };
        if !takes(snapshot) {
            for done in &moves[first..at] {
                snapshot.release(done.vm);
                snapshot.put(done.vm, done.to);
            }
            (wave, first) = (wave + 1, at);
        }
        snapshot.hold(step.vm, step.to);
        moves[at].wave = wave;
    }
    for step in moves.iter().rev() {
        snapshot.release(step.vm);
        snapshot.put(step.vm, step.from);
    }
}
