//! Lowers Ganeti's score with few moves.
//!
//! ```text
//! descend   the steepest move first, until no single move helps: what hbal would reach, and how far it is
//! refine    other targets, other instances: a lower score with as many moves
//! thrift    take moves back, the least useful first, as long as the score stays where `descend` ended
//! polish    trade moves drawn by lot for fewer or better ones, for a bounded effort: small fleets come out best
//! order     the moves one by one, each into room that is free when it runs
//! ```
//!
//! A move is judged exactly, by the score after it. Which targets are worth that is decided by the second-order expansion
//! of the score, a few multiplications a node: over a thousand nodes the search looks closely at a handful.
//! Refuses to move what has its disk on the node, what is not to be moved, and instances of other groups.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::dice::Dice;
use crate::ganeti::score::{COLUMNS, Measured, Score, real};
use crate::ganeti::text::TextFleet;

/// Targets of one instance that are judged exactly, best expansion first. The expansion ranks well, so few suffice.
const TARGETS_MAX: usize = 3;

/// The first step takes back one in so many moves, and the finest one in the square of it: finer ones save too little.
const THRIFT_STEPS: usize = 8;

/// Polishing trades so many moves at once.
const TRADED_MAX: usize = 6;

/// Polishing saves moves down to this part of what `descend` made, percent.
const ENOUGH_PERCENT: usize = 75;

/// Draws what is traded: the same plan for the same fleet.
const POLISH_SEED: u64 = 1;

/// What is looked at by default: some 100 ms.
const EFFORT: usize = 2_500_000;

/// Rounds of taking back and refining. Each ends sooner when a round saves no move.
const THRIFT_ROUNDS_MAX: usize = 12;

/// Passes of one refinement. Each ends sooner when a pass finds nothing.
const REFINE_PASSES_MAX: usize = 4;

/// The part of what refinement gains that stays in the score; the rest buys fewer moves.
const SCORE_SHARE: f64 = 0.6;

/// A pass that lowers the score by less than this share of it is the last.
const REFINE_GAIN_MIN: f64 = 0.005;

/// Partners that are looked at for an exchange, out of all that move: in turn another part of them.
const PARTNERS_MAX: usize = 128;

/// A gain below this is rounding, not balance.
const NOISE: f64 = 1e-9;

/// When to stop, as hbal's `-g` and `-G`, and after how many moves, as its `-l`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Once the score is at most `enough`, a move has to gain this much.
    pub min_gain: f64,
    /// See `min_gain`.
    pub enough: f64,
    /// No more moves than that.
    pub moves_max: usize,
    /// Places and exchanges that are looked at before polishing ends. What large fleets take anyway is beyond it.
    pub effort: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { min_gain: 0.01, enough: 0.1, moves_max: usize::MAX, effort: EFFORT }
    }
}

/// One move of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GanetiMove {
    /// Index of the instance in the file.
    pub instance: usize,
    /// Index of the node it leaves.
    pub from: usize,
    /// Index of the node it goes to.
    pub to: usize,
    /// The score once it is there.
    pub score: f64,
}

/// Moves in an order in which each one fits when it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct GanetiPlan {
    /// The score of the group now.
    pub before: f64,
    /// And after all moves.
    pub after: f64,
    /// The moves.
    pub moves: Vec<GanetiMove>,
}

/// Plans moves within one node group.
#[must_use]
pub fn balance(fleet: &TextFleet, group: usize, measured: Measured<'_>, limits: Limits) -> GanetiPlan {
    let score = Score::new(fleet, group, measured);
    let before = score.value();
    let start = score.clone();
    let mut search = Search::new(score, limits);
    search.descend();
    let (reached, length) = (search.score.value(), search.moved().len());
    search.refine();
    // Who wants only so many moves wants the best of them.
    if length < limits.moves_max {
        // What refinement has gained is spent on both: a lower score, and fewer moves.
        let limit = reached - (reached - search.score.value()) * SCORE_SHARE;
        search.thrift(limit);
        search.polish(limit, length * ENOUGH_PERCENT / 100);
    }
    let moves = order(start, &search, limits.moves_max);
    GanetiPlan { before, after: moves.last().map_or(before, |last| last.score), moves }
}

/// The fleet with the plan carried out.
#[must_use]
pub fn apply(fleet: &TextFleet, plan: &GanetiPlan) -> TextFleet {
    let mut fleet = fleet.clone();
    for step in &plan.moves {
        let instance = &mut fleet.instances[step.instance];
        instance.primary = step.to;
        if instance.is_on() {
            let mem = instance.mem_mib;
            fleet.nodes[step.from].free_mem_mib += mem;
            let to = &mut fleet.nodes[step.to].free_mem_mib;
            *to = to.saturating_sub(mem);
        }
    }
    fleet
}

/// An instance and what its best move was worth when it was last looked at.
#[derive(Clone, Copy, Debug)]
struct Hope {
    gain: f64,
    vm: usize,
}

impl PartialEq for Hope {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Hope {}

impl PartialOrd for Hope {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Hope {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then(other.vm.cmp(&self.vm))
    }
}

/// The best move found for one instance.
#[derive(Clone, Copy, Debug)]
struct Best {
    to: usize,
    value: f64,
}

struct Search {
    score: Score,
    limits: Limits,
    /// Where each instance was.
    origin: Vec<usize>,
    /// Instances on each node.
    residents: Vec<Vec<usize>>,
    /// The slope of the score along each column of each node: column times nodes plus node.
    slope: Vec<f64>,
    /// One over scale, squared, laid out as `slope`.
    bend: Vec<f64>,
    /// How the slope itself changes, per column.
    curve: [f64; COLUMNS],
    /// Room for the expansion of one instance over all nodes.
    expansion: Vec<f64>,
    /// Places and exchanges looked at so far.
    spent: usize,
    /// Moves made by `descend`.
    made: usize,
}

impl Search {
    fn new(score: Score, limits: Limits) -> Self {
        let nodes = score.nodes.len();
        let mut residents = vec![Vec::new(); nodes];
        for (index, vm) in score.vms.iter().enumerate().filter(|(_, vm)| vm.movable) {
            residents[vm.at].push(index);
        }
        let mut bend = vec![0.0; COLUMNS * nodes];
        for (at, node) in score.nodes.iter().enumerate() {
            for column in 0..score.columns {
                bend[column * nodes + at] = node.inverse[column] * node.inverse[column];
            }
        }
        let origin = score.vms.iter().map(|vm| vm.at).collect();
        let (slope, expansion) = (vec![0.0; COLUMNS * nodes], vec![0.0; nodes]);
        let mut search = Self {
            score,
            limits,
            origin,
            residents,
            slope,
            bend,
            curve: [0.0; COLUMNS],
            expansion,
            spent: 0,
            made: 0,
        };
        search.expand();
        search
    }

    /// Renews the slopes after a move.
    fn expand(&mut self) {
        let nodes = self.score.nodes.len();
        for column in 0..self.score.columns {
            let mean = self.score.sum[column] * self.score.share;
            let deviation = self.score.deviation(self.score.sum[column], self.score.squares[column]);
            let factor = self.score.weight[column] * self.score.share / deviation.max(NOISE);
            self.curve[column] = factor / 2.0;
            let slopes = &mut self.slope[column * nodes..(column + 1) * nodes];
            for (slope, node) in slopes.iter_mut().zip(&self.score.nodes) {
                *slope = factor * (node.x[column] - mean) * node.inverse[column];
            }
        }
    }

    /// The best place for an instance, if any fits.
    fn best(&mut self, vm: usize) -> Option<Best> {
        let nodes = self.score.nodes.len();
        self.spent += nodes;
        let unit = self.score.vms[vm].unit;
        self.expansion.fill(0.0);
        for (column, (first, curve)) in unit.iter().zip(&self.curve).enumerate().take(self.score.columns) {
            let second = curve * first * first;
            let slopes = &self.slope[column * nodes..(column + 1) * nodes];
            let bends = &self.bend[column * nodes..(column + 1) * nodes];
            for ((sum, slope), bend) in self.expansion.iter_mut().zip(slopes).zip(bends) {
                *sum += first * slope + second * bend;
            }
        }
        let mut near = [(f64::INFINITY, usize::MAX); TARGETS_MAX];
        for (at, value) in self.expansion.iter().enumerate() {
            if *value < near[TARGETS_MAX - 1].0 && self.score.fits(vm, at) {
                let slot = near.iter().position(|(known, _)| value < known).unwrap_or(TARGETS_MAX - 1);
                near[slot..].rotate_right(1);
                near[slot] = (*value, at);
            }
        }
        let judged = near
            .iter()
            .filter(|(_, to)| *to != usize::MAX)
            .map(|(_, to)| Best { to: *to, value: self.score.after(vm, *to) });
        judged.min_by(|a, b| a.value.total_cmp(&b.value))
    }

    fn carry(&mut self, vm: usize, to: usize) {
        self.seat(vm, to);
        self.expand();
    }

    fn hope(&mut self, vm: usize) -> Option<Hope> {
        let value = self.score.value();
        let best = self.best(vm)?;
        let gain = value - best.value;
        (gain > NOISE).then_some(Hope { gain, vm })
    }

    /// The steepest move first. Hopes grow old while others move; the one on top is looked at again before it is believed,
    /// and all of them before the search gives up.
    fn descend(&mut self) {
        let movable: Vec<usize> =
            (0..self.score.vms.len()).filter(|vm| self.score.vms[*vm].movable).collect();
        loop {
            let mut hopes: BinaryHeap<Hope> = BinaryHeap::new();
            let mut known = vec![0.0; self.score.vms.len()];
            for vm in &movable {
                if let Some(hope) = self.hope(*vm) {
                    known[*vm] = hope.gain;
                    hopes.push(hope);
                }
            }
            if !self.descend_by(&mut hopes, &mut known) {
                break;
            }
            self.score.recount();
        }
    }

    /// Did anything move?
    fn descend_by(&mut self, hopes: &mut BinaryHeap<Hope>, known: &mut [f64]) -> bool {
        let mut moved = false;
        while self.made < self.limits.moves_max {
            let Some(top) = hopes.pop() else { break };
            if top.gain.to_bits() != known[top.vm].to_bits() {
                continue;
            }
            let value = self.score.value();
            let Some(best) = self.best(top.vm) else { continue };
            let gain = value - best.value;
            let least = if value > self.limits.enough { NOISE } else { self.limits.min_gain };
            known[top.vm] = gain;
            if gain < least {
                continue;
            }
            if hopes.peek().is_some_and(|next| next.gain > gain) {
                hopes.push(Hope { gain, vm: top.vm });
                continue;
            }
            let from = self.score.vms[top.vm].at;
            self.carry(top.vm, best.to);
            self.made += 1;
            moved = true;
            // Those left behind have lost most of their reason to move; all others are looked at when their turn comes.
            for vm in self.residents[from].clone() {
                let hope = self.hope(vm);
                known[vm] = hope.map_or(0.0, |hope| hope.gain);
                hopes.extend(hope);
            }
        }
        moved
    }

    fn moved(&self) -> Vec<usize> {
        (0..self.origin.len()).filter(|vm| self.score.vms[*vm].at != self.origin[*vm]).collect()
    }

    /// A lower score with no more moves: other targets, and exchanges.
    fn refine(&mut self) {
        for _ in 0..REFINE_PASSES_MAX {
            let before = self.score.value();
            let moved = self.moved();
            let stride = moved.len().div_ceil(PARTNERS_MAX).max(1);
            for (turn, vm) in moved.iter().copied().enumerate() {
                self.retarget(vm);
                let others = moved.iter().copied().skip(turn % stride).step_by(stride);
                self.exchange(vm, others);
            }
            self.score.recount();
            if before - self.score.value() < REFINE_GAIN_MIN * before {
                break;
            }
        }
    }

    /// Another target for an instance that moves anyway; back home is one of them.
    fn retarget(&mut self, vm: usize) {
        let value = self.score.value();
        if let Some(best) = self.best(vm).filter(|best| value - best.value > NOISE) {
            self.carry(vm, best.to);
        }
    }

    /// Changes places with another that moves, or lets a neighbour from home move in its stead.
    fn exchange(&mut self, vm: usize, moved: impl Iterator<Item = usize>) {
        let (home, at) = (self.origin[vm], self.score.vms[vm].at);
        if at == home {
            return;
        }
        let mut best = (self.score.value() - NOISE, usize::MAX);
        let neighbours = self.residents[home].iter().copied().filter(|other| self.origin[*other] == home);
        let mut looked = 0;
        for other in neighbours.chain(moved) {
            looked += 1;
            let there = self.score.vms[other].at;
            let moves = |vm: usize, to: usize| usize::from(self.origin[vm] != to);
            let more = moves(vm, there) + moves(other, at) > 1 + moves(other, there);
            if there == at || more || self.expected(vm, other) > 0.0 || !self.score.may_exchange(vm, other) {
                continue;
            }
            let value = self.score.exchanged(vm, other);
            if value < best.0 {
                best = (value, other);
            }
        }
        self.spent += looked;
        if best.1 != usize::MAX {
            let there = self.score.vms[best.1].at;
            self.seat(vm, there);
            self.seat(best.1, at);
            self.expand();
        }
    }

    /// What the expansion makes of an exchange.
    fn expected(&self, vm: usize, other: usize) -> f64 {
        let nodes = self.score.nodes.len();
        let (vm, other) = (&self.score.vms[vm], &self.score.vms[other]);
        let mut sum = 0.0;
        for column in 0..self.score.columns {
            let unit = vm.unit[column] - other.unit[column];
            let (to, from) = (column * nodes + other.at, column * nodes + vm.at);
            sum += unit * (self.slope[to] - self.slope[from])
                + self.curve[column] * unit * unit * (self.bend[to] + self.bend[from]);
        }
        sum
    }

    /// Takes the least useful moves back, refines what is left, and keeps the result when the score is `limit` or below. A
    /// bold step is tried first; when it fails, a smaller one.
    fn thrift(&mut self, limit: f64) {
        let mut step = self.moved().len() / THRIFT_STEPS;
        let finest = step / THRIFT_STEPS;
        for _ in 0..THRIFT_ROUNDS_MAX {
            if step == 0 || step < finest {
                break;
            }
            let kept: Vec<(usize, usize)> =
                self.moved().into_iter().map(|vm| (vm, self.score.vms[vm].at)).collect();
            self.take_back(step);
            self.refine();
            if self.score.value() > limit || self.moved().len() >= kept.len() {
                self.restore(&kept);
                step /= 2;
            }
        }
    }

    /// Trades moves while there is effort left: some drawn by lot are taken back, and the steepest of all moves made in their
    /// stead. First for fewer moves, down to `enough` and as long as the score stays at `limit` or below; then for a lower
    /// score with no more of them.
    fn polish(&mut self, limit: f64, enough: usize) {
        let mut dice = Dice::new(POLISH_SEED);
        while self.spent < self.limits.effort {
            let mut moved = self.moved();
            if moved.is_empty() {
                return;
            }
            // A round costs as much even when it finds nothing to look at, so that there is an end.
            self.spent += self.score.vms.len();
            let kept: Vec<(usize, usize)> = moved.iter().map(|vm| (*vm, self.score.vms[*vm].at)).collect();
            let value = self.score.value();
            let drop = (2 + dice.below(TRADED_MAX)).min(moved.len());
            for _ in 0..drop {
                let vm = moved.swap_remove(dice.below(moved.len()));
                if self.score.fits(vm, self.origin[vm]) {
                    self.seat(vm, self.origin[vm]);
                }
            }
            self.expand();
            let add = match kept.len().cmp(&enough) {
                Ordering::Less => drop + 1,
                Ordering::Equal => drop,
                Ordering::Greater => drop - 1,
            };
            self.steepest(add);
            self.refine();
            let (count, now) = (self.moved().len(), self.score.value());
            let fewer = count < kept.len() && now <= limit && kept.len() > enough;
            let better = count <= kept.len().max(enough) && now < value - NOISE;
            if !(fewer || better) {
                self.restore(&kept);
            }
        }
    }

    /// The steepest of all moves, so many times.
    fn steepest(&mut self, count: usize) {
        for _ in 0..count {
            let value = self.score.value();
            let mut best: Option<(usize, Best)> = None;
            for vm in 0..self.score.vms.len() {
                if self.score.vms[vm].movable
                    && self.score.vms[vm].at == self.origin[vm]
                    && let Some(found) = self.best(vm)
                    && best.is_none_or(|(_, best)| found.value < best.value)
                {
                    best = Some((vm, found));
                }
            }
            let Some((vm, found)) = best.filter(|(_, best)| best.value < value - NOISE) else { break };
            self.carry(vm, found.to);
        }
    }

    /// Back to an earlier state. Every state the search passes through fits, so the order of its parts does not matter.
    fn restore(&mut self, kept: &[(usize, usize)]) {
        for vm in self.moved() {
            self.seat(vm, self.origin[vm]);
        }
        for (vm, to) in kept {
            self.seat(*vm, *to);
        }
        self.score.recount();
        self.expand();
    }

    fn seat(&mut self, vm: usize, to: usize) {
        let from = self.score.vms[vm].at;
        self.residents[from].retain(|resident| *resident != vm);
        self.residents[to].push(vm);
        self.score.apply(vm, to);
    }

    /// The moves whose loss raises the score least, each judged by itself.
    fn take_back(&mut self, count: usize) {
        let moved = self.moved();
        let mut losses: Vec<(f64, usize)> =
            moved.into_iter().map(|vm| (self.score.after(vm, self.origin[vm]), vm)).collect();
        losses.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, vm) in losses.into_iter().take(count) {
            if self.score.fits(vm, self.origin[vm]) {
                self.seat(vm, self.origin[vm]);
            }
        }
        self.expand();
    }
}

/// From where everything was: the most useful move that fits, again and again. What never fits stays where it is.
fn order(mut score: Score, found: &Search, moves_max: usize) -> Vec<GanetiMove> {
    let mut left: Vec<(usize, usize)> =
        found.moved().into_iter().map(|vm| (vm, found.score.vms[vm].at)).collect();
    let mut moves = Vec::new();
    let gain_of = |score: &Score, vm: usize, to: usize| score.value() - score.after(vm, to);
    left.sort_by(|a, b| gain_of(&score, b.0, b.1).total_cmp(&gain_of(&score, a.0, a.1)).then(a.0.cmp(&b.0)));
    loop {
        let before = left.len();
        left.retain(|(vm, to)| {
            let from = score.vms[*vm].at;
            if moves.len() >= moves_max || !score.fits(*vm, *to) {
                return true;
            }
            score.apply(*vm, *to);
            moves.push(GanetiMove {
                instance: score.vms[*vm].instance,
                from: score.places[from],
                to: score.places[*to],
                score: score.value(),
            });
            false
        });
        if left.is_empty() || left.len() == before {
            return moves;
        }
    }
}

impl GanetiPlan {
    /// How much lower the score is, percent of what it was.
    #[must_use]
    pub fn gain_percent(&self) -> f64 {
        if self.before > 0.0 { (self.before - self.after) / self.before * real(100) } else { 0.0 }
    }
}
