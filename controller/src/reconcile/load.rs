//! What guests use of their hosts, from the hosts' samples. In the leader's memory only; a new leader begins with nothing
//! and knows something after two samples.
//!
//! Owns whose samples count and on which clock. Refuses to judge numbers: a scheduler's [`Meter`] smooths them, and puts
//! aside what cannot be.

use std::collections::BTreeMap;

use dunlin_model::observed::Sample;
use dunlin_model::{HostId, Timestamp, VmId};
use dunlin_scheduler::distrust::{Doubt, Meter, Reading};
use dunlin_scheduler::snapshot::Load;

/// A VM that nobody has measured for so long is forgotten, ms: its load is long too old to be used.
pub(crate) const FORGET_AFTER_MS: u64 = 3_600_000;

/// What every guest uses, as far as it has been measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads {
    tracks: BTreeMap<VmId, Track>,
    /// When it was last looked for what nobody measures any more.
    swept: Timestamp,
}

/// One guest's measurements.
#[derive(Clone, Debug)]
struct Track {
    meter: Meter,
    /// The host that measures it: on another one its counters begin anew.
    host: HostId,
    /// What the leader's clock is ahead of the host's: differences between samples are the host's own.
    ahead_ms: u64,
    /// The host's clock at the last sample.
    at_ms: u64,
    heard: Timestamp,
    /// Why the last sample was put aside.
    doubt: Option<Doubt>,
}

/// A sample of a guest, and the CPU it was promised, thousandths.
pub(crate) type Measured = (Sample, u64);

impl Loads {
    /// Takes in what a host measured of guests that are its own, at `at_ms` of its own steady clock. Returns whether
    /// something came of it.
    pub(crate) fn take_in(&mut self, host: HostId, at_ms: u64, taken: &[Measured], now: Timestamp) -> bool {
        let mut news = false;
        for (sample, promised_milli) in taken {
            let track = self.tracks.entry(sample.vm).or_insert_with(|| Track {
                meter: Meter::default(),
                host,
                ahead_ms: now.0.saturating_sub(at_ms),
                at_ms,
                heard: now,
                doubt: None,
            });
            if track.host != host || at_ms < track.at_ms {
                // Another process, or another session with a clock of its own: what was used before does not count on.
                let begin = Reading { at_ms: now.0, ..Reading::default() };
                let _ = track.meter.read(begin, *promised_milli);
                (track.host, track.ahead_ms) = (host, now.0.saturating_sub(at_ms));
            }
            (track.at_ms, track.heard) = (at_ms, now);
            let reading = Reading {
                at_ms: at_ms + track.ahead_ms,
                cpu_ms: sample.cpu_ms,
                wait_ms: sample.wait_ms,
                mem_mib: sample.rss_mib,
                dirty_mib_s: sample.dirty_mib_s.unwrap_or(0),
                net_mbps: 0,
            };
            let read = track.meter.read(reading, *promised_milli);
            news |= read.is_ok();
            track.doubt = read.err();
        }
        news
    }

    /// What one guest uses. None before two samples that could be believed.
    pub(crate) fn of(&self, vm: VmId) -> Option<Load> {
        self.tracks.get(&vm)?.meter.load()
    }

    /// Why the last sample of a guest was put aside, when it was.
    pub(crate) fn doubt(&self, vm: VmId) -> Option<Doubt> {
        self.tracks.get(&vm)?.doubt
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

    fn sample(cpu_ms: u64, wait_ms: u64) -> [Measured; 1] {
        [(Sample { vm: VM, cpu_ms, wait_ms, rss_mib: 64, dirty_mib_s: None }, 1_000)]
    }

    /// Two samples make a load by the host's own clock, however late they arrive; on another host, or after another boot
    /// of it, counters begin anew while what is known of the guest stays.
    #[test]
    fn loads_come_from_the_hosts_clock() {
        let mut loads = Loads::default();
        let at = |ms| Timestamp(1_000_000 + ms);
        assert!(!loads.take_in(A, 10_000, &sample(500, 0), at(0)));
        assert_eq!(loads.of(VM), None, "one sample is no rate");
        assert!(loads.take_in(A, 15_000, &sample(3_000, 1_000), at(9_000)));
        let load = loads.of(VM).expect("a load");
        assert_eq!((load.cpu_mean_milli, load.sampled_ms), (700, 1_005_000), "used and waited for");

        assert!(!loads.take_in(B, 400, &sample(20_000, 0), at(11_000)), "another process");
        assert!(loads.doubt(VM).is_some());
        assert!(loads.take_in(B, 5_400, &sample(23_500, 0), at(16_000)));
        assert_eq!((loads.of(VM).map(|load| load.cpu_mean_milli), loads.doubt(VM)), (Some(700), None));
        assert!(!loads.take_in(B, 300, &sample(900_000, 0), at(17_000)), "the host was started anew");
        assert_eq!(loads.of(VM).map(|load| load.cpu_mean_milli), Some(700));
        loads.forget(at(17_000 + FORGET_AFTER_MS));
        assert!(loads.tracks.is_empty());
    }
}
