//! Was a history of calls linearizable? A search for one order of them that a single register could have answered.
//!
//! Each call takes effect at one moment between its invocation and its answer; a call without an answer may have taken
//! effect at any later moment, or never. Values are unique, so a value stands for the write that made it. Source: Wing and
//! Gong, "Testing and Verifying Concurrent Objects" (1993), with Lowe's memory of what was tried (2017). Registers are
//! independent, and linearizability is compositional, so each is checked alone.

use std::collections::HashSet;

/// What a call did to the register, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It read this value.
    Read(u64),
    /// It put `new` in the place of `expect`.
    Swapped {
        /// What was there.
        expect: u64,
        /// What is there now.
        new: u64,
    },
    /// It was refused, because `expect` was no longer there.
    Refused {
        /// What should have been there.
        expect: u64,
    },
    /// No answer came: it may have put `new` in the place of `expect`.
    Unknown {
        /// What was there, if it did.
        expect: u64,
        /// What is there then.
        new: u64,
    },
}

/// One call. Times are of one clock, in any unit, and only their order counts.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When it was sent.
    pub sent: u64,
    /// When its answer came, or the client gave up.
    pub ended: u64,
    /// What it did.
    pub act: Act,
}

impl Call {
    /// The moment by which it had taken effect.
    fn answered(&self) -> u64 {
        if matches!(self.act, Act::Unknown { .. }) { u64::MAX } else { self.ended }
    }

    /// The register after it, when it can have held `value` before.
    fn after(&self, value: u64) -> Option<u64> {
        match self.act {
            Act::Read(read) => (read == value).then_some(value),
            Act::Swapped { expect, new } | Act::Unknown { expect, new } => (expect == value).then_some(new),
            Act::Refused { expect } => (expect != value).then_some(value),
        }
    }
}

/// One order in which a register that begins with `first` could have answered them all, as indexes into `calls`; or none.
/// Calls without an answer that had no effect are not in it.
#[must_use]
pub fn order(first: u64, calls: &[Call]) -> Option<Vec<usize>> {
    let mut search =
        Search { calls, done: vec![false; calls.len()], order: Vec::new(), tried: HashSet::new() };
    // An answer that cannot come first is tried from every state but the one that fits: bounded by what was tried.
    search.from(first).then_some(search.order)
}

struct Search<'a> {
    calls: &'a [Call],
    done: Vec<bool>,
    order: Vec<usize>,
    tried: HashSet<(Vec<bool>, u64)>,
}

impl Search<'_> {
    fn from(&mut self, value: u64) -> bool {
        let open = |index: &usize| !self.done[*index];
        let Some(limit) = (0..self.calls.len()).filter(open).map(|index| self.calls[index].answered()).min()
        else {
            return true;
        };
        if limit == u64::MAX {
            return true;
        }
        if !self.tried.insert((self.done.clone(), value)) {
            return false;
        }
        // Whatever was sent before the first answer that is still owed may come next.
        for index in 0..self.calls.len() {
            let call = self.calls[index];
            if self.done[index] || call.sent > limit {
                continue;
            }
            if let Some(next) = call.after(value) {
                self.done[index] = true;
                self.order.push(index);
                if self.from(next) {
                    return true;
                }
                self.order.pop();
                self.done[index] = false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(sent: u64, ended: u64, act: Act) -> Call {
        Call { sent, ended, act }
    }

    /// Histories whose answer is known: the good are ordered, the bad are not.
    #[test]
    fn known_histories_are_told_apart() {
        use Act::{Read, Refused, Swapped, Unknown};
        let check = |calls: &[Call], good: bool| assert_eq!(order(0, calls).is_some(), good, "{calls:?}");
        let write = |sent, ended| call(sent, ended, Swapped { expect: 0, new: 1 });
        check(&[], true);
        // While a write is under way both values may be read, in this order only.
        check(&[write(0, 10), call(1, 2, Read(0)), call(3, 4, Read(1))], true);
        check(&[write(0, 10), call(1, 2, Read(1)), call(3, 4, Read(0))], false);
        // A stale read: the write had been answered.
        check(&[write(0, 1), call(2, 3, Read(0))], false);
        // A lost write: answered, then gone.
        check(&[write(0, 1), call(2, 3, Swapped { expect: 0, new: 2 })], false);
        // Two who both took the place of the same value.
        check(&[write(0, 5), call(0, 5, Swapped { expect: 0, new: 2 })], false);
        // Who was refused must have had a reason at the time.
        check(&[call(0, 1, Refused { expect: 0 }), write(2, 3)], false);
        check(&[call(0, 5, Refused { expect: 0 }), write(2, 3)], true);
        // Without an answer: it happened late, or never, but not before it was asked and not twice.
        let lost = call(0, 1, Unknown { expect: 0, new: 7 });
        check(&[lost, call(2, 3, Read(0)), call(4, 5, Read(7))], true);
        check(&[lost, call(2, 3, Read(0)), call(4, 5, Swapped { expect: 0, new: 8 })], true);
        check(&[lost, call(2, 3, Read(7)), call(4, 5, Read(0))], false);
        check(&[call(0, 1, Read(7)), call(2, 3, Unknown { expect: 0, new: 7 })], false);
    }

    /// The order found is one that the register could have answered, and respects who had ended before whom began.
    #[test]
    fn the_order_found_is_a_proof() {
        let mut calls = Vec::new();
        for step in 0..200 {
            let at = step * 4;
            calls.push(call(at, at + 7, Act::Swapped { expect: step, new: step + 1 }));
            calls.push(call(at, at + 7, Act::Refused { expect: step + 1_000 }));
        }
        let found = order(0, &calls).expect("a chain");
        let mut value = 0;
        for (place, index) in found.iter().enumerate() {
            value = calls[*index].after(value).expect("it can be next");
            assert!(found[place..].iter().all(|later| calls[*later].ended >= calls[*index].sent));
        }
        assert_eq!(value, 200);
    }
}
