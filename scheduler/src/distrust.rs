//! Which measurements to believe. What is stale, missing or cannot be never moves a VM.
//!
//! Owns the meter, which turns raw readings into a [`Load`], and the last judgement before a load is used. Refuses to
//! repair: a reading that cannot be is put aside and counted, and the VM keeps the load it had until that is too old.
//!
//! ```text
//! Reading -> Meter: plausible? --yes--> mean and peak --> Load in the snapshot -> judge: fresh? possible? -> balance
//!                       \--no--> quarantine, until readings agree with each other again
//! ```

use serde::{Deserialize, Serialize};

use crate::snapshot::Load;

/// A load older than this moves nothing, ms: three periods of the slowest sampling we know (5 minutes).
pub const AGE_MS_MAX: u64 = 15 * 60_000;

/// A VM may use a little more than its vCPUs: its I/O threads run beside them. Percent of what it was promised.
pub const OVER_PERCENT_MAX: u64 = 130;

/// One CPU more than promised is always believed: small VMs have I/O threads, too. Thousandths.
pub const OVER_MILLI: u64 = 1_000;

/// A rise by this factor within one reading is not believed at once.
pub const JUMP_FACTOR: u64 = 100;

/// A rise is only a jump when it ends above this, thousandths of a CPU: from nothing to a little is no jump.
pub const JUMP_MILLI_MIN: u64 = 1_000;

/// So many readings in a row have to tell the same before a jump is believed.
pub const CONFIRMATIONS: u32 = 2;

/// The window of one reading: shorter ones are noise, longer ones hide what happened in them, ms.
pub const WINDOW_MS_RANGE: std::ops::RangeInclusive<u64> = 200..=AGE_MS_MAX;

/// Why a load or a reading is not believed. Closed: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Doubt {
    /// Nothing was measured.
    Missing,
    /// It was measured too long ago.
    Stale,
    /// It was measured in the future: somebody's clock is wrong.
    Future,
    /// The VM has no CPUs.
    NoCpus,
    /// It uses far more CPU than it has.
    Impossible,
    /// Its mean is above its peak.
    Inconsistent,
    /// A counter ran backwards: the process was replaced, or the number is negative.
    Backwards,
    /// The window is too short or too long to say anything.
    Window,
    /// A sudden jump that no second reading has confirmed.
    Jump,
}

/// May this load be used now, for a VM that was promised so much CPU?
///
/// # Errors
/// Why not.
pub fn judge(load: Option<&Load>, promised_milli: u64, now_ms: u64) -> Result<&Load, Doubt> {
    let load = load.ok_or(Doubt::Missing)?;
    if load.sampled_ms > now_ms.saturating_add(AGE_MS_MAX) {
        return Err(Doubt::Future);
    }
    if load.age_ms(now_ms) > AGE_MS_MAX {
        return Err(Doubt::Stale);
    }
    if promised_milli == 0 {
        return Err(Doubt::NoCpus);
    }
    let most = most_milli(promised_milli);
    let wanted = load.cpu_mean_milli.checked_add(load.cpu_unmet_milli).ok_or(Doubt::Impossible)?;
    if load.cpu_peak_milli > most || wanted > most {
        return Err(Doubt::Impossible);
    }
    if load.cpu_mean_milli > load.cpu_peak_milli {
        return Err(Doubt::Inconsistent);
    }
    Ok(load)
}

fn most_milli(promised_milli: u64) -> u64 {
    promised_milli.saturating_mul(OVER_PERCENT_MAX) / 100 + OVER_MILLI
}

/// Counters of one VM at one moment, as its host tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// When, ms on the clock of the reader.
    pub at_ms: u64,
    /// CPU time used since the VM started, ms.
    pub cpu_ms: u64,
    /// Time its vCPUs were ready to run and had to wait, ms, since it started; 0 when not known.
    pub wait_ms: u64,
    /// Memory in use, MiB.
    pub mem_mib: u64,
    /// Memory written over, MiB/s; 0 when not known.
    pub dirty_mib_s: u64,
    /// Network traffic, Mbit/s.
    pub net_mbps: u64,
}

/// The load of one VM over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    last: Option<Reading>,
    load: Option<Load>,
    /// Readings in a row that were put aside, and what the last of them told.
    odd: u32,
    odd_milli: u64,
    /// Means over the long and the short time, thousandths of a CPU times 2^16.
    slow: u64,
    fast: u64,
    peak: u64,
    /// Readings put aside since it began.
    quarantined: u64,
}

/// Bits behind the point of the running means: a mean may creep by less than a thousandth per reading.
const FRACTION: u32 = 16;

/// How long the fast mean remembers, ms: long enough that a moment's burst moves nothing.
const FAST_MS: u64 = 4 * 60_000;

/// How long the slow mean remembers, ms: a working day, so that what is idle now is known to have been busy.
const SLOW_MS: u64 = 8 * 3_600_000;

/// How long a peak is remembered, ms: a day, so that yesterday's busy hour is expected today.
const PEAK_MS: u64 = 24 * 3_600_000;

impl Meter {
    /// What is known; None before the second reading that could be believed.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        self.load
    }

    /// Readings put aside so far.
    #[must_use]
    pub fn quarantined(&self) -> u64 {
        self.quarantined
    }

    /// Takes in a reading of a VM that was promised so much CPU.
    ///
    /// # Errors
    /// Why the reading was put aside. The load stays what it was.
    pub fn read(&mut self, reading: Reading, promised_milli: u64) -> Result<Load, Doubt> {
        let Some(last) = self.last.replace(reading) else { return Err(Doubt::Missing) };
        let used = self.rate(&last, &reading, promised_milli);
        let (used, waited) = used.inspect_err(|_| self.quarantined += 1)?;
        let wanted = used + waited;
        if self.is_jump(wanted) {
            self.quarantined += 1;
            return Err(Doubt::Jump);
        }
        self.odd = 0;
        self.learn(wanted, reading.at_ms - last.at_ms);
        let mean = self.mean().min(self.peak >> FRACTION);
        let load = Load {
            cpu_mean_milli: mean,
            cpu_peak_milli: self.peak >> FRACTION,
            cpu_unmet_milli: 0,
            mem_mib: reading.mem_mib,
            dirty_mib_s: reading.dirty_mib_s,
            net_mbps: reading.net_mbps,
            sampled_ms: reading.at_ms,
        };
        self.load = Some(load);
        Ok(load)
    }

    /// CPU used and waited for since the last reading, thousandths of a CPU.
    fn rate(&self, last: &Reading, now: &Reading, promised_milli: u64) -> Result<(u64, u64), Doubt> {
        if promised_milli == 0 {
            return Err(Doubt::NoCpus);
        }
        let window = now.at_ms.checked_sub(last.at_ms).ok_or(Doubt::Backwards)?;
        if !WINDOW_MS_RANGE.contains(&window) {
            return Err(Doubt::Window);
        }
        let since = |now: u64, last: u64| now.checked_sub(last).ok_or(Doubt::Backwards);
        let most = most_milli(promised_milli);
        let rate = |ms: u64| ms.checked_mul(1_000).map(|ms| ms / window).ok_or(Doubt::Impossible);
        let used = rate(since(now.cpu_ms, last.cpu_ms)?)?;
        let waited = rate(since(now.wait_ms, last.wait_ms)?)?;
        // A vCPU runs or waits; it cannot do more than one of them at a time.
        if used > most || waited > most || used + waited > most {
            return Err(Doubt::Impossible);
        }
        Ok((used, waited))
    }

    /// A rise out of proportion is believed when the next readings agree with it.
    fn is_jump(&mut self, wanted: u64) -> bool {
        if self.load.is_none() || wanted < JUMP_MILLI_MIN {
            return false;
        }
        let known = (self.fast >> FRACTION).max(self.mean()).max(1);
        if wanted < known.saturating_mul(JUMP_FACTOR) {
            return false;
        }
        let agrees = self.odd > 0 && wanted.abs_diff(self.odd_milli) <= self.odd_milli / 2;
        self.odd = if agrees { self.odd + 1 } else { 1 };
        self.odd_milli = wanted;
        self.odd < CONFIRMATIONS
    }

    fn learn(&mut self, wanted: u64, window_ms: u64) {
        let value = wanted << FRACTION;
        if self.load.is_none() {
            (self.fast, self.slow, self.peak) = (value, value, value);
            return;
        }
        self.fast = toward(self.fast, value, window_ms, FAST_MS);
        self.slow = toward(self.slow, value, window_ms, SLOW_MS);
        self.peak = value.max(toward(self.peak, value, window_ms, PEAK_MS));
    }

    /// What it is expected to use: as it does now, and not much less than it does in the long run.
    fn mean(&self) -> u64 {
        self.fast.max((self.fast + self.slow) / 2) >> FRACTION
    }
}

/// A running mean that remembers for `memory_ms`, after `window_ms` at `value`.
fn toward(mean: u64, value: u64, window_ms: u64, memory_ms: u64) -> u64 {
    let part = |gap: u64| {
        let part = u128::from(gap) * u128::from(window_ms) / u128::from(window_ms + memory_ms);
        u64::try_from(part).unwrap_or(u64::MAX)
    };
    if value >= mean { mean + part(value - mean) } else { mean - part(mean - value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(mean: u64, peak: u64, sampled_ms: u64) -> Load {
        Load { cpu_mean_milli: mean, cpu_peak_milli: peak, sampled_ms, ..Load::default() }
    }

    /// Stale, missing and impossible loads are refused, each for its reason.
    #[test]
    fn each_doubt_has_its_name() {
        let now = 10 * AGE_MS_MAX;
        let check = |load: Option<Load>, promised, expected: Result<(), Doubt>| {
            assert_eq!(judge(load.as_ref(), promised, now).map(|_| ()), expected);
        };
        check(Some(load(1_000, 2_000, now)), 2_000, Ok(()));
        check(None, 2_000, Err(Doubt::Missing));
        check(Some(load(1_000, 2_000, now - AGE_MS_MAX - 1)), 2_000, Err(Doubt::Stale));
        check(Some(load(1_000, 2_000, now + AGE_MS_MAX + 1)), 2_000, Err(Doubt::Future));
        check(Some(load(0, 0, now)), 0, Err(Doubt::NoCpus));
        check(Some(load(2_000, 9_000, now)), 2_000, Err(Doubt::Impossible));
        check(Some(load(u64::MAX, u64::MAX, now)), 2_000, Err(Doubt::Impossible));
        check(Some(load(1_500, 1_000, now)), 2_000, Err(Doubt::Inconsistent));
        let unmet = Load { cpu_unmet_milli: u64::MAX, ..load(1, 1, now) };
        check(Some(unmet), 2_000, Err(Doubt::Impossible));
    }

    /// A meter learns what is steady, quarantines what cannot be, and believes a jump only when it is told again.
    #[test]
    fn a_meter_believes_a_jump_the_second_time() {
        let mut meter = Meter::default();
        let mut reading = Reading::default();
        let mut tell = |meter: &mut Meter, milli: u64| {
            reading.at_ms += 60_000;
            reading.cpu_ms += milli * 60;
            meter.read(reading, 64_000)
        };
        assert_eq!(tell(&mut meter, 10), Err(Doubt::Missing));
        for _ in 0..5 {
            assert_eq!(tell(&mut meter, 10).unwrap().cpu_mean_milli, 10);
        }
        assert_eq!(tell(&mut meter, 32_000), Err(Doubt::Jump));
        assert_eq!(meter.load().unwrap().cpu_mean_milli, 10);
        let load = tell(&mut meter, 32_000).unwrap();
        assert_eq!((load.cpu_peak_milli, load.cpu_mean_milli > 1_000), (32_000, true));
        assert_eq!(tell(&mut meter, 900_000), Err(Doubt::Impossible));
        assert_eq!(meter.quarantined(), 2);
        // The counter ran backwards: the process was replaced.
        reading.at_ms += 60_000;
        reading.cpu_ms = 0;
        assert_eq!(meter.read(reading, 64_000), Err(Doubt::Backwards));
        assert_eq!(meter.read(reading, 64_000), Err(Doubt::Window));
    }

    proptest::proptest! {
        /// No reading breaks a meter, and whatever it says could be.
        #[test]
        fn no_reading_breaks_a_meter(readings: Vec<(u64, u64, u64)>, promised in 0_u64..1 << 40) {
            let mut meter = Meter::default();
            for (at_ms, cpu_ms, wait_ms) in readings {
                let reading = Reading { at_ms, cpu_ms, wait_ms, ..Reading::default() };
                if let Ok(load) = meter.read(reading, promised) {
                    proptest::prop_assert!(load.cpu_mean_milli <= load.cpu_peak_milli);
                    proptest::prop_assert!(judge(Some(&load), promised, at_ms).is_ok());
                }
            }
        }
    }
}
