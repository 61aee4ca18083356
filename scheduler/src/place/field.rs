//! What every host is worth, and who is best: of all hosts, and of those each gate in use lets through. A tree of nodes of
//! sixteen, so that the best is found, and one host changed, by looking at a few cache lines whatever the size of the fleet.
//!
//! ```text
//! levels  ... 25 nodes of 16            100,000 hosts: 391 nodes, for each view, stay in the nearest cache
//! leaves  16 cells, and for each view its best cell and who passes: two cache lines, which is all a change touches
//! ```
//!
//! What is kept of all hosts is exact. What is kept of a gate's hosts are bounds: a gain is followed at once, a loss when
//! somebody looks there; until then what all hosts are worth there bounds it, too.

use crate::snapshot::{GateIdx, HostIdx};

use super::sieve::Bits;

/// Cells of a leaf, and values of a node above.
pub(super) const FAN: usize = 16;

/// Cells below this are refusals; every [`Reason`](crate::Reason) has a number below it.
pub(super) const FITS: u32 = 64;

/// Views of a field, that of all hosts among them. Past that the one unused for longest is forgotten.
const VIEWS_MAX: usize = 8;

/// The view of all hosts.
const ALL: usize = 0;

/// Sixteen hosts.
#[derive(Clone, Debug, Default)]
#[repr(align(128))]
struct Leaf {
    cells: [u32; FAN],
    /// By view: at least the greatest cell of those that pass.
    best: [u32; VIEWS_MAX],
    /// By view: which cells pass, a bit for each.
    open: [u16; VIEWS_MAX],
}

/// The hosts that pass one gate, or all.
#[derive(Clone, Debug, Default)]
struct View {
    gate: Option<(GateIdx, Bits)>,
    used: u64,
    /// From the maxima of sixteen leaves up to a level of one node; the leaves themselves are the level below.
    levels: Vec<Vec<u32>>,
}

/// Cells, 0 at first.
#[derive(Clone, Debug, Default)]
pub(super) struct Field {
    leaves: Vec<Leaf>,
    /// The first is of all hosts.
    views: Vec<View>,
}

/// A value and where it stands.
pub(super) type At = (u32, usize);

impl Field {
    pub(super) fn of(cells: &[u32]) -> Self {
        let mut leaves: Vec<Leaf> = Vec::with_capacity(cells.len().div_ceil(FAN));
        for cells in cells.chunks(FAN) {
            let mut leaf = Leaf::default();
            leaf.cells[..cells.len()].copy_from_slice(cells);
            leaves.push(leaf);
        }
        let mut field = Self { leaves, views: vec![View::default()] };
        field.survey(0);
        field
    }

    /// Works out a view from the cells.
    fn survey(&mut self, view: usize) {
        let bits = self.views[view].gate.as_ref().map(|(_, bits)| bits);
        for (at, leaf) in self.leaves.iter_mut().enumerate() {
            leaf.open[view] = bits.map_or(u16::MAX, |bits| bits.get(at).copied().unwrap_or(0));
            leaf.best[view] = leaf.following(view, None).map_or(0, |(value, _)| value);
        }
        let mut levels = Vec::new();
        let mut below: Vec<u32> = self.leaves.iter().map(|leaf| leaf.best[view]).collect();
        while below.len() > 1 {
            below = below.chunks(FAN).map(max).collect();
            levels.push(below.clone());
        }
        self.views[view].levels = levels;
    }

    /// So many cells there are at least.
    pub(super) fn grow(&mut self, cells: usize) {
        if self.leaves.len() * FAN < cells {
            let all: Vec<u32> = self.leaves.iter().flat_map(|leaf| leaf.cells).collect();
            *self = Self::of(&[all.as_slice(), &vec![0; cells - all.len()]].concat());
        }
    }

    pub(super) fn get(&self, host: HostIdx) -> u32 {
        self.leaves.get(host.at() / FAN).map_or(0, |leaf| leaf.cells[host.at() % FAN])
    }

    /// A host is now worth this. What was it before?
    pub(super) fn set(&mut self, host: HostIdx, new: u32) -> u32 {
        let at = host.at() / FAN;
        let leaf = &mut self.leaves[at];
        let old = std::mem::replace(&mut leaf.cells[host.at() % FAN], new);
        if old == new {
            return old;
        }
        for view in 1..self.views.len() {
            if leaf.open[view] >> (host.at() % FAN) & 1 == 1 {
                leaf.best[view] = new.max(leaf.best[view]);
                self.views[view].rise(at, new);
            }
        }
        let before = leaf.best[ALL];
        if new >= before || old == before {
            let after = new.max(max(&leaf.cells));
            leaf.best[ALL] = after;
            self.settle(at, before, after);
        }
        old
    }

    /// The best of a leaf of all hosts went from `old` to `new`.
    fn settle(&mut self, leaf: usize, mut old: u32, mut new: u32) {
        let mut node = leaf;
        for level in 0..self.views[ALL].levels.len() {
            node /= FAN;
            let before = self.views[ALL].levels[level][node];
            if old == new || new < before && old < before {
                return;
            }
            let after = if new >= before { new } else { self.bound(ALL, level + 1, node) };
            self.views[ALL].levels[level][node] = after;
            (old, new) = (before, after);
        }
    }

    /// The best of a node; 0 when nothing there fits.
    fn bound(&self, view: usize, level: usize, node: usize) -> u32 {
        self.following(view, level, node, None).map_or(0, |(value, _)| value)
    }

    /// The view of the hosts that pass a gate, seen to; that of all for no gate.
    pub(super) fn view(&mut self, gate: Option<(GateIdx, &Bits)>, now: u64) -> usize {
        let Some((gate, bits)) = gate else { return 0 };
        let is_of = |view: &View| view.gate.as_ref().is_some_and(|(own, _)| *own == gate);
        let view = self.views.iter().position(is_of).unwrap_or_else(|| {
            if self.views.len() < VIEWS_MAX {
                self.views.push(View::default());
                return self.views.len() - 1;
            }
            (1..VIEWS_MAX).min_by_key(|view| self.views[*view].used).unwrap_or(1)
        });
        self.views[view].used = now;
        let known = self.views[view].gate.as_ref();
        if !known.is_some_and(|(own, known)| *own == gate && Bits::ptr_eq(known, bits)) {
            self.views[view].gate = Some((gate, Bits::clone(bits)));
            self.survey(view);
        }
        view
    }

    /// The level above all, of one node.
    pub(super) fn top(&self) -> usize {
        self.views[0].levels.len()
    }

    /// The best that fits; the lowest index among equals.
    pub(super) fn best(&mut self, view: usize) -> Option<(u64, HostIdx)> {
        'again: loop {
            let (mut bound, mut at) = self.following(view, self.top(), 0, None)?;
            for level in (0..self.top()).rev() {
                let found = self.following(view, level, at, None);
                let Some(next) = found.filter(|(value, _)| *value == bound) else {
                    // What is kept of this node was too much.
                    let kept = match level.checked_sub(1) {
                        None => &mut self.leaves[at].best[view],
                        Some(level) => &mut self.views[view].levels[level][at],
                    };
                    *kept = found.map_or(0, |(value, _)| value);
                    continue 'again;
                };
                (bound, at) = next;
            }
            return Some((u64::from(bound - FITS), HostIdx::of(at)));
        }
    }

    /// What is best of a node, of the cells at level 0, of the nodes below at others; or what is next in order after that.
    pub(super) fn following(&self, view: usize, level: usize, node: usize, after: Option<At>) -> Option<At> {
        let after = after.map(|(value, at)| (value, at % FAN));
        let (from, to) = (node * FAN, (node + 1) * FAN);
        let (value, at) = match level {
            0 => self.leaves.get(node)?.following(view, after),
            1 => {
                let mut values = [0; FAN];
                let leaves = &self.leaves[from..to.min(self.leaves.len())];
                let bound = |leaf: &Leaf| leaf.best[view].min(leaf.best[ALL]);
                values.iter_mut().zip(leaves).for_each(|(value, leaf)| *value = bound(leaf));
                following(&values, after)
            }
            _ => {
                let below = |view: usize| {
                    let below = &self.views[view].levels[level - 2];
                    &below[from..to.min(below.len())]
                };
                if view == ALL {
                    return following(below(ALL), after).map(|(value, at)| (value, from + at));
                }
                let mut values = [0; FAN];
                let bounds = below(view).iter().zip(below(ALL)).map(|(own, all)| *own.min(all));
                values.iter_mut().zip(bounds).for_each(|(value, bound)| *value = bound);
                following(&values, after)
            }
        }?;
        Some((value, from + at))
    }
}

impl View {
    /// A cell of a leaf is now worth this. A node may be bound more tightly than one below it, so all are looked at.
    fn rise(&mut self, leaf: usize, new: u32) {
        let mut node = leaf;
        for level in &mut self.levels {
            node /= FAN;
            level[node] = new.max(level[node]);
        }
    }
}

impl Leaf {
    fn following(&self, view: usize, after: Option<At>) -> Option<At> {
        let open = self.open[view];
        if open == u16::MAX {
            return following(&self.cells, after);
        }
        let mut cells = self.cells;
        for (at, cell) in cells.iter_mut().enumerate() {
            *cell &= u32::from(open >> at & 1).wrapping_neg();
        }
        following(&cells, after)
    }
}

fn max(values: &[u32]) -> u32 {
    values.iter().copied().max().unwrap_or(0)
}

/// The greatest value that fits and its first position; or those next in order after `(value, position)`.
fn following(values: &[u32], after: Option<At>) -> Option<At> {
    let place = |max: u32| values.iter().position(|value| *value == max).map(|at| (max, at));
    let Some((value, at)) = after else {
        return Some(max(values)).filter(|max| *max >= FITS).and_then(place);
    };
    if let Some(equal) = values[at + 1..].iter().position(|other| *other == value) {
        return Some((value, at + 1 + equal));
    }
    let below = values.iter().map(|other| if *other < value { *other } else { 0 });
    below.max().filter(|max| *max >= FITS).and_then(place)
}
