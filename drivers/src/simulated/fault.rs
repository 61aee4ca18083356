//! Seeded faults: the same seed, guest, incarnation and count of verbs always give the same verdict.

use dunlin_model::{Incarnation, VmId};

/// One step of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(super) const fn mix(seed: u64) -> u64 {
    let a = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ (c >> 31)
}

/// What a draw is drawn from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    pub(super) seed: u64,
    pub(super) vm: VmId,
    pub(super) incarnation: Incarnation,
    pub(super) verb: &'static str,
    /// How many draws this guest has had in this process.
    pub(super) count: u64,
}

impl Draw {
    /// Does the verb fail, when `ppm` of a million do?
    pub(super) fn fails(&self, ppm: u32) -> bool {
        let (high, low) = self.vm.0.as_u64_pair();
        let verb = self.verb.bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte)));
        let parts = [high, low, self.incarnation.0, verb, self.count];
        let drawn = parts.into_iter().fold(mix(self.seed), |sum, part| mix(sum ^ part));
        drawn % 1_000_000 < ppm.into()
    }
}
