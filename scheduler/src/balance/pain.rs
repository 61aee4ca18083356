//! How much the fleet hurts: a measure that reads alike for 5 hosts and for 500.
//!
//! Pain is CPU. For one host it is the demand it cannot be expected to serve, plus, above a band, a share of what it
//! carries beyond its fair part. The fleet's pain is the sum; two halves of a fleet hurt as much as the whole, a host hurts
//! however many others are idle, and a host twice as large may carry twice as much. Nothing is divided by the number of
//! hosts, which is what blinds standard deviations.
//!
//! ```text
//! demand of a VM      mean m, peak p: at most m (p - m) of variance, whatever its shape (Bhatia and Davis, 2000)
//! demand of a host    the sum of independent VMs: mean M, variance V
//! expected unserved   E max(0, demand - capacity) = s * L((capacity - M) / s), s = sqrt V, L the normal loss function
//! ```
//!
//! So a host full of steady VMs may be run hotter than one whose VMs burst, before anything has gone wrong. Integers only.

use serde::{Deserialize, Serialize};

use super::level::Thresholds;

/// The unit normal loss L(z) = phi(z) - z (1 - Phi(z)) in millionths, for z = 0, 1/8, 2/8, ... 4. Beyond, it is less than
/// 8 millionths, which no decision depends on.
const LOSS_PPM: [u64; 33] = [
    398_942, 339_555, 286_345, 239_169, 197_797, 161_920, 131_167, 105_116, 83_315, 65_295, 50_587, 38_734,
    29_307, 21_906, 16_174, 11_793, 8_491, 6_035, 4_235, 2_933, 2_004, 1_352, 899, 590, 382, 244, 154, 95,
    58, 35, 21, 12, 7,
];

/// CPU demand of some VMs together, thousandths of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Mean.
    pub mean_milli: u64,
    /// Variance, in thousandths squared.
    pub variance: u128,
}

impl Demand {
    /// Of one VM, by its mean and peak.
    #[must_use]
    pub fn of(mean_milli: u64, peak_milli: u64) -> Self {
        let above = peak_milli.saturating_sub(mean_milli);
        Self { mean_milli, variance: u128::from(mean_milli) * u128::from(above) }
    }

    /// Of both, taken to be independent.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            mean_milli: self.mean_milli.saturating_add(other.mean_milli),
            variance: self.variance.saturating_add(other.variance),
        }
    }

    /// Without `other`, which is a part of it.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            mean_milli: self.mean_milli.saturating_sub(other.mean_milli),
            variance: self.variance.saturating_sub(other.variance),
        }
    }

    /// What a host of that capacity is expected not to serve, thousandths of a CPU.
    #[must_use]
    pub fn unserved_milli(&self, capacity_milli: u64) -> u64 {
        let over = self.mean_milli.saturating_sub(capacity_milli);
        let spread = u64::try_from(self.variance.isqrt()).unwrap_or(u64::MAX);
        if spread == 0 {
            return over;
        }
        // L(-z) = z + L(z): what is over by the mean, and the same loss again.
        let distance = capacity_milli.abs_diff(self.mean_milli);
        let steps_ppm = u128::from(distance) * 8_000_000 / u128::from(spread);
        let step = usize::try_from(steps_ppm / 1_000_000).unwrap_or(usize::MAX);
        let (Some(here), Some(next)) = (LOSS_PPM.get(step), LOSS_PPM.get(step.saturating_add(1))) else {
            return over;
        };
        let part = u64::try_from(steps_ppm % 1_000_000).unwrap_or(0);
        let loss_ppm = here - (here - next) * part / 1_000_000;
        let loss = u128::from(spread) * u128::from(loss_ppm) / 1_000_000;
        over.saturating_add(u64::try_from(loss).unwrap_or(u64::MAX))
    }
}

/// What a host may carry before it hurts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fairness {
    /// Utilisation of the fleet, ppm: its whole demand over its whole capacity.
    pub fleet_ppm: u64,
    /// CPU beyond this part of the capacity is more than fair, ppm.
    pub from_ppm: u64,
    /// What a CPU beyond counts, ppm of it.
    pub weight_ppm: u64,
}

impl Fairness {
    /// For a fleet with that demand and that capacity.
    #[must_use]
    pub fn new(demand_milli: u64, capacity_milli: u64, thresholds: &Thresholds) -> Self {
        let fleet_ppm = share_ppm(demand_milli, capacity_milli);
        let from_ppm = fleet_ppm + thresholds.band_percent * 10_000;
        Self { fleet_ppm, from_ppm, weight_ppm: thresholds.unfair_ppm }
    }

    /// The pain of a host, thousandths of a CPU.
    #[must_use]
    pub fn pain(&self, demand: &Demand, capacity_milli: u64) -> HostPain {
        let fair = u128::from(capacity_milli) * u128::from(self.from_ppm) / 1_000_000;
        let beyond = u128::from(demand.mean_milli).saturating_sub(fair);
        let unfair = beyond * u128::from(self.weight_ppm) / 1_000_000;
        HostPain {
            unserved_milli: demand.unserved_milli(capacity_milli),
            unfair_milli: u64::try_from(unfair).unwrap_or(u64::MAX),
        }
    }
}

/// The pain of one host, thousandths of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostPain {
    /// Demand it is expected not to serve.
    pub unserved_milli: u64,
    /// What its unfair load counts.
    pub unfair_milli: u64,
}

impl HostPain {
    /// Both.
    #[must_use]
    pub fn all_milli(&self) -> u64 {
        self.unserved_milli.saturating_add(self.unfair_milli)
    }
}

/// The pain of a fleet. The shares are of its whole demand, so that fleets of any size compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pain {
    /// CPU demand, thousandths of a CPU.
    pub demand_milli: u64,
    /// CPU there is, thousandths of a CPU.
    pub capacity_milli: u64,
    /// Demand expected to go unserved.
    pub unserved_milli: u64,
    /// What unfair load counts.
    pub unfair_milli: u64,
}

impl Pain {
    /// Pain of all kinds per demand, ppm.
    #[must_use]
    pub fn share_ppm(&self) -> u64 {
        share_ppm(self.unserved_milli.saturating_add(self.unfair_milli), self.demand_milli)
    }

    /// Counts one host in.
    pub fn add(&mut self, demand: &Demand, capacity_milli: u64, pain: HostPain) {
        self.demand_milli += demand.mean_milli;
        self.capacity_milli += capacity_milli;
        self.unserved_milli += pain.unserved_milli;
        self.unfair_milli += pain.unfair_milli;
    }
}

/// `part` of `whole` in ppm; 0 of nothing.
#[must_use]
pub fn share_ppm(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
    if whole == 0 { 0 } else { u64::try_from(share).unwrap_or(u64::MAX) }
}
