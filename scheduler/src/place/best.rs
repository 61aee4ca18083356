//! Hosts in the order of their standing, found as they are asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::field::{At, FAN, FITS, Field};
use crate::snapshot::HostIdx;

/// Best first, the lower index among equals. Each host costs a look at one node of each level it opens.
#[derive(Debug)]
pub(super) struct BestFirst<'a> {
    field: &'a Field,
    view: usize,
    /// The value; the lowest host index it may stand at; the level, where 0 is a host; its position there.
    heap: BinaryHeap<(u32, Reverse<usize>, usize, usize)>,
}

impl<'a> BestFirst<'a> {
    pub(super) fn new(field: &'a Field, view: usize) -> Self {
        let mut all = Self { field, view, heap: BinaryHeap::with_capacity(4 * (field.top() + 1)) };
        all.push(field.top(), 0, None);
        all
    }

    /// Pushes what is next of a node of this level, after that.
    fn push(&mut self, level: usize, node: usize, after: Option<At>) {
        if let Some((value, at)) = self.field.following(self.view, level, node, after) {
            let first = at * FAN.pow(u32::try_from(level).unwrap_or(0));
            self.heap.push((value, Reverse(first), level, at));
        }
    }
}

impl Iterator for BestFirst<'_> {
    type Item = (u64, HostIdx);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (value, _, level, at) = self.heap.pop()?;
            self.push(level, at / FAN, Some((value, at)));
            match level.checked_sub(1) {
                Some(below) => self.push(below, at, None),
                None => return Some((u64::from(value - FITS), HostIdx::of(at))),
            }
        }
    }
}
