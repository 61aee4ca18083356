//! How eager the balancer is: five levels, as data.

use dunlin_model::Invalid;
use serde::{Deserialize, Serialize};

/// What a level means. All five are in [`LEVELS`]; nothing else in the balancer depends on the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// For people.
    pub name: &'static str,
    /// A host is looked at once its pain exceeds this share of its CPUs, ppm.
    pub start_ppm: u64,
    /// And is left alone again once its pain is below this share. The distance between the two is the hysteresis.
    pub stop_ppm: u64,
    /// What a move gains over [`horizon_s`](Self::horizon_s), as a multiple of what it costs, percent.
    pub gain_percent: u64,
    /// How long a gain is believed to last, s. A cautious balancer trusts the near future only.
    pub horizon_s: u64,
    /// How much CPU above a fair share counts as pain, ppm of it. 0: only demand that may go unserved counts.
    pub unfair_ppm: u64,
    /// How far above the fleet's utilisation a host may be before that counts, percent points.
    pub band_percent: u64,
    /// Most VMs that may be moved within one [`WINDOW_MS`], ppm of all: the blast radius.
    pub radius_ppm: u64,
}

/// The time over which the blast radius is counted, ms: an hour, about as long as people need to notice and to say no.
pub const WINDOW_MS: u64 = 3_600_000;

/// At least this many VMs may move within a window, so that small fleets can be balanced at all.
pub const RADIUS_MIN: u64 = 4;

/// The levels, from 1 to 5.
///
/// | level | acts on | gain over cost | gain lasts | moves an hour |
/// | --- | --- | --- | --- | --- |
/// | 1 | lasting overload: 8 % of a host's CPUs unserved | 16 x | 5 min | 0.5 % |
/// | 2 | overload: 4 % | 8 x | 10 min | 1 % |
/// | 3 | overload to be expected: 1 %, and gross unfairness | 4 x | 15 min | 3 % |
/// | 4 | 0.5 %, and unfairness | 2 x | 30 min | 10 % |
/// | 5 | anything that pays | 1 x | 60 min | 30 % |
pub const LEVELS: [Thresholds; 5] = [
    Thresholds {
        name: "emergencies",
        start_ppm: 80_000,
        stop_ppm: 40_000,
        gain_percent: 1_600,
        horizon_s: 300,
        unfair_ppm: 0,
        band_percent: 100,
        radius_ppm: 5_000,
    },
    Thresholds {
        name: "overload",
        start_ppm: 40_000,
        stop_ppm: 15_000,
        gain_percent: 800,
        horizon_s: 600,
        unfair_ppm: 0,
        band_percent: 100,
        radius_ppm: 10_000,
    },
    Thresholds {
        name: "foresight",
        start_ppm: 6_000,
        stop_ppm: 3_000,
        gain_percent: 400,
        horizon_s: 900,
        unfair_ppm: 50_000,
        band_percent: 25,
        radius_ppm: 30_000,
    },
    Thresholds {
        name: "fairness",
        start_ppm: 5_000,
        stop_ppm: 1_500,
        gain_percent: 200,
        horizon_s: 1_800,
        unfair_ppm: 100_000,
        band_percent: 15,
        radius_ppm: 100_000,
    },
    Thresholds {
        name: "level",
        start_ppm: 1_000,
        stop_ppm: 300,
        gain_percent: 100,
        horizon_s: 3_600,
        unfair_ppm: 200_000,
        band_percent: 5,
        radius_ppm: 300_000,
    },
];

/// How eager the balancer is, 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Eagerness(u8);

impl Default for Eagerness {
    fn default() -> Self {
        Self(3)
    }
}

impl TryFrom<u8> for Eagerness {
    type Error = Invalid;

    fn try_from(level: u8) -> Result<Self, Invalid> {
        dunlin_model::invalid::in_range("level", level.into(), 1..=5)?;
        Ok(Self(level))
    }
}

impl From<Eagerness> for u8 {
    fn from(level: Eagerness) -> Self {
        level.0
    }
}

impl Eagerness {
    /// What it means.
    #[must_use]
    pub fn thresholds(self) -> &'static Thresholds {
        &LEVELS[usize::from(self.0) - 1]
    }
}
