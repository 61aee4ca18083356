//! What free room is worth to the VMs in use: room is kept in the proportion in which it is asked for, and what is scarce in
//! the fleet is kept together.
//!
//! DECISION: the worth of a host's room is how much of the fleet's present mix, taken as one, it could still hold: the
//! least of its amounts, each against what the mix has of it. A placement that takes only of what the host has too much of
//! costs nothing. Tightest-fit alone lets one amount run out beside the other. Prices of a cutting-stock programme over
//! the present mix, the count of slots lost to each kind of VM, and fragments as Alibaba counts them were tried and did
//! not do better; docs/PERFORMANCE.md has the figures. There is no constant to tune.

use crate::score::TERM_MAX;
use crate::snapshot::Amounts;

/// Learnt anew after so many placements for each VM there is: one in so many.
const LEARN_SHARE: u64 = 4;

/// Placements after which it is learnt at the earliest.
const LEARN_MIN: u64 = 64;

/// Shares are in millionths, so that a thousandth of a small VM on a large fleet is not lost.
const SHARE: u64 = 1_000_000;

/// As last learnt. Until then every amount counts alike.
#[derive(Clone, Debug, Default)]
pub struct Worths {
    version: u64,
    /// 2^64 over what the VMs of the fleet ask for in all; 0 for what nobody asks for.
    per_mix: [u64; 4],
    /// How scarce each amount is, in millionths that sum up to about one.
    scarcity: [u64; 4],
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

    /// Learns from what is asked for in all, and what the hosts offer in all.
    pub(crate) fn learn(&mut self, asked: Amounts, offered: Amounts) {
        self.per_mix = asked.each().map(|(_, amount)| u64::MAX.checked_div(amount).unwrap_or(0));
        let pairs = asked.each().into_iter().zip(offered.each());
        // The less is left of an amount, the dearer it is.
        let dear: Vec<u64> = pairs
            .map(|((_, asked), (_, offered))| match asked {
                0 => 0,
                _ => SHARE / (offered.saturating_sub(asked).saturating_mul(1_000) / offered.max(1)).max(1),
            })
            .collect();
        let sum: u64 = dear.iter().sum();
        for (scarcity, dear) in self.scarcity.iter_mut().zip(dear) {
            *scarcity = dear * SHARE / sum.max(1);
        }
        self.version += 1;
        self.placed = 0;
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
        let parts = left.each().into_iter().zip(total.each()).zip(self.weights());
        let parts = parts.filter(|(_, weight)| *weight > 0);
        let loose =
            parts.map(|(((_, left), (_, total)), weight)| left * SHARE / total.max(1) * weight / SHARE);
        TERM_MAX - (loose.sum::<u64>() / (SHARE / TERM_MAX)).min(TERM_MAX)
    }

    fn weights(&self) -> [u64; 4] {
        if self.version == 0 { [SHARE / 2, SHARE / 2, 0, 0] } else { self.scarcity }
    }
}

/// A multiplication stands for the division by the mix: this is asked for every host that changes.
fn scaled(amount: u64, per_mix: u64) -> u64 {
    u64::try_from((u128::from(amount) * u128::from(per_mix)) >> 24).unwrap_or(u64::MAX)
}
