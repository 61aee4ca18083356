//! Replays what happened, or might, with the code that decides in earnest.
//!
//! Owns the readers of arrival traces and fleets, and the replay. Refuses to open files and to read clocks: bytes come in,
//! a report goes out, and the same bytes, policy and seed give the same report.
//!
//! ```text
//! bytes --azure / huawei--> Trace --+
//! bytes --fleet-----------> hosts --+-- replay(policy) --> Report   (twice for two policies side by side)
//! ```

pub mod azure;
pub mod check;
pub mod fleet;
pub mod huawei;
mod lines;
mod replay;

pub use lines::BadLine;
pub use replay::{Options, Report, replay};

use crate::snapshot::Demand;

/// VMs that come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Every demand that occurs, once.
    pub demands: Vec<Demand>,
    /// In the order of time; those of one moment in the order of the file.
    pub arrivals: Vec<Arrival>,
}

/// One VM comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, seconds on the trace's clock.
    pub at_s: u64,
    /// When it leaves; None when it stays.
    pub leaves_s: Option<u64>,
    /// What it asks for: an index into [`Trace::demands`].
    pub demand: usize,
    /// Arrivals in a row with the same number were asked for as one.
    pub batch: u32,
}

/// Draws numbers from a seed: SplitMix64, which passes BigCrush and fits in a line.
#[derive(Clone, Copy, Debug)]
pub struct Draw(pub u64);

impl Draw {
    /// The next number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `least` to `most`, both included.
    pub const fn within(&mut self, least: u64, most: u64) -> u64 {
        let span = most.saturating_sub(least).saturating_add(1);
        least + self.number() % span
    }
}
