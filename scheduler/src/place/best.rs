//! Hosts in the order of their standing, found as they are asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::standing::{FAN, FITS, Standing, slice};
use crate::snapshot::HostIdx;

/// Best first, the lower index among equals. A block is opened only when its best is next.
#[derive(Debug)]
pub(super) struct BestFirst<'a> {
    standing: &'a Standing,
    /// Value, then what opens first among equals: the one that may hold the lowest host.
    heap: BinaryHeap<(u32, Reverse<usize>, Rank)>,
}

/// What an entry is; those that are wider open before the hosts they may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Host,
    Block,
    Top,
}

impl<'a> BestFirst<'a> {
    pub(super) fn new(standing: &'a Standing) -> Self {
        let mut all = Self { standing, heap: BinaryHeap::new() };
        all.push(&standing.tops, 0, FAN * FAN, Rank::Top);
        all
    }

    /// Entries are keyed by the first host they may hold.
    fn push(&mut self, values: &[u32], first: usize, width: usize, rank: Rank) {
        let fitting = values.iter().enumerate().filter(|(_, value)| **value >= FITS);
        self.heap.extend(fitting.map(|(at, value)| (*value, Reverse(first + at * width), rank)));
    }
}

impl Iterator for BestFirst<'_> {
    type Item = (u64, HostIdx);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (value, Reverse(first), rank) = self.heap.pop()?;
            match rank {
                Rank::Host => return Some((u64::from(value - FITS), HostIdx::of(first))),
                Rank::Block => self.push(slice(&self.standing.cells, first / FAN), first, 1, Rank::Host),
                Rank::Top => {
                    self.push(slice(&self.standing.blocks, first / (FAN * FAN)), first, FAN, Rank::Block);
                }
            }
        }
    }
}
