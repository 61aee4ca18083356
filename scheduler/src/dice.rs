//! Randomness from a seed: the same seed throws the same numbers, everywhere and for ever.

/// `SplitMix64` (Steele, Lea, Flood 2014): one addition and a mix per number.
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice for that seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `sides - 1`; 0 for no sides.
    pub fn below(&mut self, sides: usize) -> usize {
        let product = u128::from(self.throw()) * sides as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }
}
