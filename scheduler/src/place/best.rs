//! Hosts in the order of their standing, found as they are asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::standing::{FAN, FITS, Standing, slice};
use crate::snapshot::HostIdx;

/// Best first, the lower index among equals. Each host costs a look at one block, and at one top when it opens the block.
#[derive(Debug)]
pub(super) struct BestFirst<'a> {
    standing: &'a Standing,
    /// The value, then the lowest host index it may stand at, then what it is.
    heap: BinaryHeap<(u32, Reverse<usize>, Next)>,
}

/// What is next of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// This host, of a block that is open.
    Host,
    /// The block that begins with this host.
    Block,
}

impl<'a> BestFirst<'a> {
    pub(super) fn new(standing: &'a Standing) -> Self {
        let mut all = Self { standing, heap: BinaryHeap::with_capacity(standing.tops.len() + 16) };
        for top in 0..standing.tops.len() {
            all.push(slice(&standing.blocks, top), None, top * FAN * FAN, Next::Block);
        }
        all
    }

    /// Pushes what follows `after` in a group of values that begins with host `start`.
    fn push(&mut self, values: &[u32], after: Option<(u32, usize)>, start: usize, what: Next) {
        let width = if what == Next::Host { 1 } else { FAN };
        if let Some((value, at)) = following(values, after) {
            self.heap.push((value, Reverse(start + at * width), what));
        }
    }
}

/// The greatest value that fits and its first position; or those next in order after `(value, position)`.
fn following(values: &[u32], after: Option<(u32, usize)>) -> Option<(u32, usize)> {
    let below = match after {
        None => u32::MAX,
        Some((value, at)) => {
            if let Some(equal) = values[at + 1..].iter().position(|other| *other == value) {
                return Some((value, at + 1 + equal));
            }
            value
        }
    };
    let max = values
        .iter()
        .map(|value| if *value < below { *value } else { 0 })
        .max()
        .filter(|max| *max >= FITS)?;
    values.iter().position(|value| *value == max).map(|at| (max, at))
}

impl Iterator for BestFirst<'_> {
    type Item = (u64, HostIdx);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (value, Reverse(first), next) = self.heap.pop()?;
            let block = first / FAN;
            match next {
                Next::Host => {
                    let cells = slice(&self.standing.cells, block);
                    self.push(cells, Some((value, first % FAN)), block * FAN, Next::Host);
                    return Some((u64::from(value - FITS), HostIdx::of(first)));
                }
                Next::Block => {
                    let top = block / FAN;
                    let blocks = slice(&self.standing.blocks, top);
                    self.push(blocks, Some((value, block % FAN)), top * FAN * FAN, Next::Block);
                    self.push(slice(&self.standing.cells, block), None, block * FAN, Next::Host);
                }
            }
        }
    }
}
