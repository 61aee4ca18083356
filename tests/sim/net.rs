//! Who reaches whom. Each direction fails for itself.

use std::collections::BTreeSet;

/// Somebody on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Controller(usize),
    Host(usize),
}

/// The directions that are cut. What is sent along one of them waits, as TCP makes it wait.
#[derive(Debug, Default)]
pub(crate) struct Net {
    cut: BTreeSet<(Node, Node)>,
}

impl Net {
    pub(crate) fn cut(&mut self, from: Node, to: Node) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    pub(crate) fn heal_all(&mut self) {
        self.cut.clear();
    }

    /// Heals what belongs to that node.
    pub(crate) fn heal(&mut self, node: Node) {
        self.cut.retain(|(from, to)| *from != node && *to != node);
    }

    pub(crate) fn carries(&self, from: Node, to: Node) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub(crate) fn both_ways(&self, one: Node, other: Node) -> bool {
        self.carries(one, other) && self.carries(other, one)
    }
}
