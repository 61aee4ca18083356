//! The feature level: what may be written, so that everybody who has to read it can.
//!
//! Every release reads all levels up to its own [`Level::NEWEST`], and writes what the cluster's level allows. The cluster's
//! is raised by a command of its own once every controller and agent reads the next one; it never falls. So a release can be
//! rolled out one process at a time, and rolled back until the level is raised.
//!
//! | level | adds |
//! | --- | --- |
//! | 1 | everything that the store of release 0.1 has: the one that is kept for the tests |
//! | 2 | the level itself; resources of hosts, and what VMs take of them; specs that change while the VM runs, and how its machine is built meanwhile; drivers that are away, or plug, and images that hosts have; what a VM's cloud-init is told; guests of others, adopted |
//!
//! A level is closed by the release that has it: what comes later takes the next one. Whoever adds a command, a field or a rule of
//! `apply` gives it a name here, says in `level()` of what carries it that it needs it, and lets `apply` do below it what it did
//! before: controllers of two releases apply the same log, and must come to the same state.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A feature level. Whoever says none reads [`Level::OLDEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Level(pub u32);

impl Level {
    /// That of a cluster that was never raised.
    pub const OLDEST: Self = Self(1);
    /// The highest this release reads.
    pub const NEWEST: Self = Self(2);

    /// Hosts have resources besides CPUs and memory, and VMs take of them.
    pub const RESOURCES: Self = Self(2);
    /// Disks, NICs, vCPUs and memory may change while a VM runs; how it is built meanwhile is known.
    pub const REBUILDING: Self = Self(2);
    /// Hosts say more of themselves: drivers that are away, or can plug devices, and the images that are there.
    pub const MORE_OF_HOSTS: Self = Self(2);

    /// VMs say what their cloud-init is told.
    pub const CLOUD_INIT: Self = Self(2);
    /// Guests that somebody else started are taken over, and handed back.
    pub const ADOPTION: Self = Self(2);

    /// Nothing is written where this is left out.
    #[must_use]
    pub fn is_oldest(&self) -> bool {
        *self == Self::OLDEST
    }
}

impl Default for Level {
    fn default() -> Self {
        Self::OLDEST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
