//! The feature level: what may be written, so that everybody who has to read it can.
//!
//! Every release reads all levels up to its own [`Level::NEWEST`], and writes what the cluster's level allows. The cluster's
//! is raised by a command of its own once every controller and agent reads the next one; it never falls. So a release can be
//! rolled out one process at a time, and rolled back until the level is raised.
//!
//! | level | since | adds |
//! | --- | --- | --- |
//! | 1 | 0.1 | everything there was |
//! | 2 | 0.1 | that the level itself is in the log |

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
