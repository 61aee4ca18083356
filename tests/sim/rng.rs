//! The seed's dice.

use dunlin_scheduler::dice::Dice;
use uuid::Uuid;

/// Everything that is left to chance.
#[derive(Clone, Debug)]
pub(crate) struct Rng(Dice);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Dice::new(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.throw()
    }

    /// 0 to `bound - 1`; 0 for 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.next(), self.next())
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("it is below a usize")
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let index = self.index(from.len());
        from.get(index).cloned()
    }
}
