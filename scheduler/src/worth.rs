//! What free room is worth to the VMs in use: whole slots for each of their shapes are kept, room is kept in the proportion
//! in which it is asked for, and what large VMs run out of first is kept together.
//!
//! DECISION: two measures, each a term of the policy. **Slots**: a placement costs, for each shape in use, the slots of it
//! that the host loses, each worth its size times the share the shape has of all that is taken. A small VM then goes where
//! it breaks no slot of a large one. **Mix**: how much of the fleet's present mix, taken as one, the room could still hold:
//! the least of its amounts. Tightest-fit alone does neither: it lets one amount run out beside the other, and cuts large
//! holes small. Learnt from the VMs that have a seat, never from a file; docs/PERFORMANCE.md has what else was tried.

use std::collections::BTreeMap;

use crate::score::TERM_MAX;
use crate::snapshot::Amounts;

/// Learnt anew after so many placements for each VM there is: one in so many.
const LEARN_SHARE: u64 = 4;

/// Placements after which it is learnt at the earliest.
const LEARN_MIN: u64 = 64;

/// Shares are in millionths, so that a thousandth of a small VM on a large fleet is not lost.
const SHARE: u64 = 1_000_000;

/// A shape counts when its VMs take one in so many of what all take: room is not kept for what hardly ever comes.
const SHAPE_SHARE: u64 = 100;

/// Shapes that count at most, those that take most: every host that changes is judged by each of them.
const SHAPES_MAX: usize = 8;

/// Where the point stands in [`Slot::per`]: amounts below 2^31 are divided exactly.
const POINT: u32 = 63;

/// One shape in use.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// 2^63 over each amount, rounded up; 0 for what it does not ask for.
    per: [u64; 4],
    amounts: Amounts,
    /// Its size, in thousandths of the largest host, times its share, in thousandths.
    weight: u64,
}

impl Slot {
    fn new(amounts: Amounts, weight: u64) -> Self {
        let per =
            amounts.each().map(|(_, amount)| (1_u64 << POINT).checked_div(amount).map_or(0, |per| per + 1));
        Self { per, amounts, weight }
    }

    fn count(per: u64, amount: u64) -> u64 {
        u64::try_from((u128::from(amount) * u128::from(per)) >> POINT).unwrap_or(u64::MAX)
    }

    /// How many there are in that much room.
    fn in_room(&self, room: [u64; 4]) -> u64 {
        let pairs = self.per.into_iter().zip(room).filter(|(per, _)| *per > 0);
        pairs.map(|(per, room)| Self::count(per, room)).min().unwrap_or(0)
    }

    /// How many a VM of that shape can break at most.
    fn broken_max(&self, shape: [u64; 4]) -> u64 {
        let pairs = self.per.into_iter().zip(shape).zip(self.amounts.each());
        let asked = pairs.filter(|((per, _), _)| *per > 0);
        asked.map(|((per, part), (_, amount))| Self::count(per, part + amount - 1)).max().unwrap_or(0)
    }
}

/// As last learnt. Until then every amount counts alike.
#[derive(Clone, Debug, Default)]
pub struct Worths {
    version: u64,
    /// 2^64 over what the VMs of the fleet ask for in all; 0 for what nobody asks for.
    per_mix: [u64; 4],
    /// How scarce each amount is, in millionths that sum up to about one.
    scarcity: [u64; 4],
    /// How much of a host the largest shape takes of each amount, in millionths that sum up to about one.
    draw: [u64; 4],
    /// The shapes in use.
    slots: Vec<Slot>,
    /// Placements since.
    placed: u64,
}

impl Worths {
    /// Counts how often it was learnt anew.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Counts a placement. Is it time to learn anew, with so many VMs in the fleet?
    pub(crate) const fn count(&mut self, vms: u64) -> bool {
        self.placed += 1;
        self.placed >= LEARN_MIN && self.placed * LEARN_SHARE >= vms
    }

    /// Learns from how many VMs of each shape there are, what the hosts offer in all, and the largest of them.
    pub(crate) fn learn(&mut self, mix: &BTreeMap<Amounts, u64>, offered: Amounts, largest: Amounts) {
        let asked = mix.iter().fold(Amounts::default(), |sum, (shape, vms)| sum.plus(shape.times(*vms)));
        self.per_mix = asked.each().map(|(_, amount)| u64::MAX.checked_div(amount).unwrap_or(0));
        self.scarcity = scarcity(asked, offered);
        let parts = |shape: Amounts| -> [u64; 4] {
            let pairs = shape.each().into_iter().zip(largest.each());
            let mut parts = [0; 4];
            for (part, ((_, amount), (_, whole))) in parts.iter_mut().zip(pairs) {
                *part = amount.saturating_mul(SHARE).checked_div(whole).unwrap_or(0);
            }
            parts
        };
        let size = |shape: Amounts| parts(shape).into_iter().max().unwrap_or(0).max(1);
        // What is taken by all VMs of a shape, its size, then the shape itself.
        let mut taken: Vec<(u64, u64, Amounts)> =
            mix.iter().map(|(shape, vms)| (vms * size(*shape), size(*shape), *shape)).collect();
        let all: u64 = taken.iter().map(|(taken, _, _)| taken).sum();
        taken.retain(|(taken, _, _)| taken * SHAPE_SHARE >= all);
        taken.sort_unstable_by(|a, b| b.cmp(a));
        taken.truncate(SHAPES_MAX);
        let weight = |size: u64, taken: u64| (size * (taken * 1_000 / all.max(1)) / 1_000).max(1);
        self.slots =
            taken.iter().map(|(taken, size, shape)| Slot::new(*shape, weight(*size, *taken))).collect();
        let widest = taken.iter().max_by_key(|(_, size, shape)| (*size, *shape));
        let widest = widest.map_or([0; 4], |(_, _, shape)| parts(*shape));
        let sum: u64 = widest.iter().sum();
        self.draw = widest.map(|part| part * SHARE / sum.max(1));
        self.version += 1;
        self.placed = 0;
    }

    /// 0 to [`TERM_MAX`]: how few slots of the shapes in use this shape breaks, against the most that it could.
    #[must_use]
    pub fn slots_kept(&self, shape: Amounts, free: Amounts) -> u64 {
        let only = |amounts: Amounts| amounts.each().map(|(_, amount)| amount);
        let (part, room, left) = (only(shape), only(free), only(free.minus(shape)));
        let (mut lost, mut most) = (0, 0);
        for slot in &self.slots {
            lost += slot.weight * (slot.in_room(room) - slot.in_room(left));
            most += slot.weight * slot.broken_max(part);
        }
        TERM_MAX - (lost.saturating_mul(TERM_MAX).checked_div(most).unwrap_or(0)).min(TERM_MAX)
    }

    /// How much of the mix, in parts of 2^40, room like this could hold: the least of its amounts.
    fn holds(&self, room: Amounts) -> u64 {
        let pairs = room.each().into_iter().zip(self.per_mix).filter(|(_, per_mix)| *per_mix > 0);
        pairs.map(|((_, room), per_mix)| scaled(room, per_mix)).min().unwrap_or(0)
    }

    /// 0 to [`TERM_MAX`]: how little of the room's worth this shape takes, against the most that it could.
    #[must_use]
    pub fn kept_whole(&self, shape: Amounts, free: Amounts) -> u64 {
        let lost = self.holds(free) - self.holds(free.minus(shape)).min(self.holds(free));
        let pairs = shape.each().into_iter().zip(self.per_mix).filter(|(_, per_mix)| *per_mix > 0);
        let most = pairs.map(|((_, part), per_mix)| scaled(part, per_mix)).max().unwrap_or(0);
        TERM_MAX - (lost.min(most) / (most / TERM_MAX).max(1)).min(TERM_MAX)
    }

    /// 0 to [`TERM_MAX`]: how little is left, what is scarce counting most.
    #[must_use]
    pub fn tight(&self, left: Amounts, total: Amounts) -> u64 {
        self.fullness(left, total, self.scarcity)
    }

    /// 0 to [`TERM_MAX`]: how little is left, what the largest shape in use takes most of counting most.
    #[must_use]
    pub fn snug(&self, left: Amounts, total: Amounts) -> u64 {
        self.fullness(left, total, self.draw)
    }

    fn fullness(&self, left: Amounts, total: Amounts, learnt: [u64; 4]) -> u64 {
        let weights = if self.version == 0 { [SHARE / 2, SHARE / 2, 0, 0] } else { learnt };
        let parts = left.each().into_iter().zip(total.each()).zip(weights);
        let parts = parts.filter(|(_, weight)| *weight > 0);
        let loose =
            parts.map(|(((_, left), (_, total)), weight)| left * SHARE / total.max(1) * weight / SHARE);
        TERM_MAX - (loose.sum::<u64>() / (SHARE / TERM_MAX)).min(TERM_MAX)
    }
}

/// A multiplication stands for the division by the mix: this is asked for every host that changes.
fn scaled(amount: u64, per_mix: u64) -> u64 {
    u64::try_from((u128::from(amount) * u128::from(per_mix)) >> 24).unwrap_or(u64::MAX)
}

/// The less is left of an amount, the dearer it is.
fn scarcity(asked: Amounts, offered: Amounts) -> [u64; 4] {
    let mut dear = [0; 4];
    let pairs = asked.each().into_iter().zip(offered.each());
    for (dear, ((_, asked), (_, offered))) in
        dear.iter_mut().zip(pairs).filter(|(_, ((_, asked), _))| *asked > 0)
    {
        *dear = SHARE / (offered.saturating_sub(asked).saturating_mul(1_000) / offered.max(1)).max(1);
    }
    let sum: u64 = dear.iter().sum();
    dear.map(|dear| dear * SHARE / sum.max(1))
}
