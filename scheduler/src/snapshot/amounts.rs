//! Amounts of what every host has, added and compared as one.

use serde::{Deserialize, Serialize};

/// What every host has some of. Everything else countable is a named resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amounts {
    /// CPU, thousandths of one.
    pub cpu_milli: u64,
    /// Ordinary memory, MiB.
    pub mem_mib: u64,
    /// Memory in the pool of huge pages, MiB; not counted in `mem_mib`.
    pub huge_mib: u64,
    /// Network bandwidth, Mbit/s.
    pub net_mbps: u64,
}

/// One of the amounts, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Thousandths of a CPU.
    Cpu,
    /// MiB.
    Memory,
    /// MiB.
    HugePages,
    /// Mbit/s.
    Network,
}

impl Amounts {
    /// CPUs and memory, nothing else.
    #[must_use]
    pub const fn new(cpu_milli: u64, mem_mib: u64) -> Self {
        Self { cpu_milli, mem_mib, huge_mib: 0, net_mbps: 0 }
    }

    /// Every amount with its name.
    #[must_use]
    pub const fn each(&self) -> [(Kind, u64); 4] {
        [
            (Kind::Cpu, self.cpu_milli),
            (Kind::Memory, self.mem_mib),
            (Kind::HugePages, self.huge_mib),
            (Kind::Network, self.net_mbps),
        ]
    }

    fn with(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_milli: op(self.cpu_milli, other.cpu_milli),
            mem_mib: op(self.mem_mib, other.mem_mib),
            huge_mib: op(self.huge_mib, other.huge_mib),
            net_mbps: op(self.net_mbps, other.net_mbps),
        }
    }

    /// The sum, stopping at the largest number.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// The greater of each.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        self.with(other, u64::max)
    }

    /// The difference, stopping at zero: what is left of `self`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// The larger of both, amount by amount.
    #[must_use]
    pub fn max_with(self, other: Self) -> Self {
        self.with(other, u64::max)
    }

    /// Half of it, rounded down.
    #[must_use]
    pub fn half(self) -> Self {
        self.with(Self::default(), |amount, _| amount / 2)
    }

    /// One of `parts` equal parts, rounded up, so that the parts hold the whole. No parts count as one.
    #[must_use]
    pub fn part(self, parts: u64) -> Self {
        self.with(Self::default(), |amount, _| amount.div_ceil(parts.max(1)))
    }

    /// So many of it, stopping at the largest number.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        self.with(Self::default(), |amount, _| amount.saturating_mul(count))
    }

    /// Does `self` fit into `room`, amount by amount?
    #[must_use]
    pub const fn fits(&self, room: &Self) -> bool {
        self.cpu_milli <= room.cpu_milli
            && self.mem_mib <= room.mem_mib
            && self.huge_mib <= room.huge_mib
            && self.net_mbps <= room.net_mbps
    }

    /// How many times it fits into `room`; no end of times, `u64::MAX`, when it is nothing.
    #[must_use]
    pub fn times_in(&self, room: &Self) -> u64 {
        let pairs = self.each().into_iter().zip(room.each()).filter(|((_, need), _)| *need > 0);
        pairs.map(|((_, need), (_, left))| left / need).min().unwrap_or(u64::MAX)
    }

    /// The first amount of which `room` has too little: its kind, what is needed, what is left.
    #[must_use]
    pub fn short_of(&self, room: &Self) -> Option<(Kind, u64, u64)> {
        let pairs = self.each().into_iter().zip(room.each());
        pairs
            .filter(|((_, need), (_, left))| need > left)
            .map(|((kind, need), (_, left))| (kind, need, left))
            .next()
    }
}
