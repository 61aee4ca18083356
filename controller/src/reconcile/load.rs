//! What guests use of their hosts, from the hosts' samples: rates over a window. In the leader's memory only; a new
//! leader begins with nothing and knows something after two samples.
//!
//! Owns the arithmetic between samples and a [`Load`]. Refuses to judge what it computes: whether a load is to be
//! believed is the scheduler's.

use std::collections::{BTreeMap, VecDeque};

use dunlin_model::observed::Sample;
use dunlin_model::{HostId, Timestamp, VmId};
use dunlin_scheduler::snapshot::Load;

/// Rates kept of each VM: a minute's worth at a sample every 5 s. Long enough to smooth a burst, short enough to follow
/// a change.
pub(crate) const WINDOW: usize = 12;
/// A VM that nobody has measured for so long is forgotten, ms.
pub(crate) const FORGET_AFTER_MS: u64 = 600_000;
/// Two samples closer than this say nothing of a rate: they came together after a pause of the line.
const APART_MIN_MS: u64 = 500;

/// What every guest uses, as far as it has been measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads {
    /// By VM and by the host that measured it: while a VM moves both do.
    tracks: BTreeMap<(VmId, HostId), Track>,
    /// When it was last looked for what nobody measures any more.
    swept: Timestamp,
}

/// One guest's measurements on one host.
#[derive(Clone, Debug)]
struct Track {
    /// The host's clock, and the counters at that time.
    at_ms: u64,
    last: Sample,
    /// CPU used and CPU waited for, thousandths of a CPU, the newest last.
    rates: VecDeque<(u64, u64)>,
    /// When the newest came in, by the leader's clock.
    heard: Timestamp,
}

impl Loads {
    /// Takes in what a host measured at `at_ms` of its own steady clock. Returns whether a rate came of it.
    pub(crate) fn take_in(&mut self, host: HostId, at_ms: u64, samples: &[Sample], now: Timestamp) -> bool {
        let mut news = false;
        for sample in samples {
            let fresh = Track { at_ms, last: *sample, rates: VecDeque::new(), heard: now };
            let track = self.tracks.entry((sample.vm, host)).or_insert_with(|| fresh.clone());
            // The host's session, or the guest's process, is another one: counters begin anew.
            if at_ms < track.at_ms || sample.cpu_ms < track.last.cpu_ms {
                *track = fresh;
                continue;
            }
            let apart_ms = at_ms - track.at_ms;
            if apart_ms < APART_MIN_MS {
                continue;
            }
            let rate =
                |after: u64, before: u64| after.saturating_sub(before).saturating_mul(1_000) / apart_ms;
            let used = rate(sample.cpu_ms, track.last.cpu_ms);
            let waited = rate(sample.wait_ms, track.last.wait_ms);
            track.rates.push_back((used, waited));
            while track.rates.len() > WINDOW {
                track.rates.pop_front();
            }
            (track.at_ms, track.last, track.heard) = (at_ms, *sample, now);
            news = true;
        }
        news
    }

    /// What one guest uses on the host it is on. None before two samples of it came from there.
    pub(crate) fn of(&self, vm: VmId, host: HostId) -> Option<Load> {
        let track = self.tracks.get(&(vm, host)).filter(|track| !track.rates.is_empty())?;
        let count = track.rates.len() as u64;
        let mean = |sum: u64| sum / count;
        Some(Load {
            cpu_mean_milli: mean(track.rates.iter().map(|(used, _)| used).sum()),
            cpu_peak_milli: track.rates.iter().map(|(used, _)| *used).max().unwrap_or(0),
            cpu_unmet_milli: mean(track.rates.iter().map(|(_, waited)| waited).sum()),
            mem_mib: track.last.rss_mib,
            dirty_mib_s: track.last.dirty_mib_s.unwrap_or(0),
            net_mbps: 0,
            sampled_ms: track.heard.0,
        })
    }

    /// Forgets guests that nobody measures any more, when that may have come about.
    pub(crate) fn forget(&mut self, now: Timestamp) {
        if now.millis_since(self.swept) < FORGET_AFTER_MS / 10 {
            return;
        }
        self.swept = now;
        self.tracks.retain(|_, track| now.millis_since(track.heard) < FORGET_AFTER_MS);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const VM: VmId = VmId(Uuid::from_u128(1));
    const A: HostId = HostId(Uuid::from_u128(2));
    const B: HostId = HostId(Uuid::from_u128(3));

    fn sample(cpu_ms: u64, wait_ms: u64) -> [Sample; 1] {
        [Sample { vm: VM, cpu_ms, wait_ms, rss_mib: 64, dirty_mib_s: None }]
    }

    /// Two samples make a rate by the host's own clock, however late they arrive; a counter that went back, another host
    /// or another boot of the clock begins anew, and what the old host says no longer counts.
    #[test]
    fn rates_come_from_the_hosts_clock() {
        let mut loads = Loads::default();
        let at = |ms| Timestamp(1_000_000 + ms);
        assert!(!loads.take_in(A, 10_000, &sample(500, 0), at(0)));
        assert_eq!(loads.of(VM, A), None, "one sample is no rate");
        assert!(loads.take_in(A, 15_000, &sample(3_000, 1_000), at(9_000)));
        let load = loads.of(VM, A).expect("a rate");
        assert_eq!((load.cpu_mean_milli, load.cpu_unmet_milli, load.sampled_ms), (500, 200, 1_009_000));
        assert!(loads.take_in(A, 20_000, &sample(8_000, 1_000), at(10_000)));
        let load = loads.of(VM, A).expect("a rate");
        assert_eq!((load.cpu_mean_milli, load.cpu_peak_milli), (750, 1_000));
        assert!(!loads.take_in(A, 20_100, &sample(8_100, 0), at(10_100)), "too close to say anything");

        loads.take_in(B, 400, &sample(20, 0), at(11_000));
        assert_eq!(loads.of(VM, B), None, "the other host has measured once");
        assert!(loads.take_in(B, 5_400, &sample(1_020, 0), at(16_000)));
        assert_eq!(loads.of(VM, B).map(|load| load.cpu_mean_milli), Some(200));
        loads.take_in(B, 300, &sample(2_000, 0), at(17_000));
        assert_eq!(loads.of(VM, B), None, "the host was started anew");
        loads.forget(at(17_000 + FORGET_AFTER_MS));
        assert!(loads.tracks.is_empty());
    }
}
