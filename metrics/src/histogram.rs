//! Durations, counted by how long they took.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Metric;

/// Upper ends of the buckets, us: from what memory takes to what a person no longer waits for.
const ENDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
/// The newest durations, kept one by one: a 99th percentile of these is told by the five slowest of them.
const RECENT: usize = 512;

/// Durations, in seconds when they are shown.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    pub(crate) counts: Counts,
    recent: [AtomicU32; RECENT],
    next: AtomicUsize,
}

/// The buckets alone.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    buckets: [AtomicU64; ENDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; ENDS_US.len()],
            count: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, took_us: u64) {
        if let Some(bucket) = ENDS_US.iter().position(|end| took_us <= *end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// `labels` is empty, or ends with a comma.
    pub(crate) fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut below = 0;
        for (bucket, end) in self.buckets.iter().zip(ENDS_US) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{}\"}} {below}", seconds(end));
        }
        let count = self.count.load(Ordering::Relaxed).max(below);
        let _ = writeln!(out, "{name}_bucket{{{labels}le=\"+Inf\"}} {count}");
        let braced = labels.trim_end_matches(',');
        let braced = if braced.is_empty() { String::new() } else { format!("{{{braced}}}") };
        let _ = writeln!(out, "{name}_sum{braced} {}", seconds(self.sum_us.load(Ordering::Relaxed)));
        let _ = writeln!(out, "{name}_count{braced} {count}");
    }
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(crate) fn us(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        let recent = [const { AtomicU32::new(0) }; RECENT];
        Self { name, help, counts: Counts::new(), recent, next: AtomicUsize::new(0) }
    }

    /// Takes one in.
    pub fn observe(&self, took: Duration) {
        let took_us = us(took);
        self.counts.observe(took_us);
        let place = self.next.fetch_add(1, Ordering::Relaxed) % RECENT;
        self.recent[place].store(u32::try_from(took_us).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Times something from now until the answer is dropped.
    pub fn time(&'static self) -> Timing {
        Timing { histogram: self, began: Instant::now() }
    }

    /// How long `per_mille` of the newest took at most, us, and how many those are. None before the first.
    #[must_use]
    pub fn recent_us(&self, per_mille: usize) -> Option<(u32, usize)> {
        let taken = self.next.load(Ordering::Relaxed).min(RECENT);
        let mut newest: Vec<u32> =
            self.recent[..taken].iter().map(|took| took.load(Ordering::Relaxed)).collect();
        newest.sort_unstable();
        let place = (taken * per_mille).div_ceil(1_000).clamp(1, taken.max(1)) - 1;
        newest.get(place).map(|took| (*took, taken))
    }
}

impl Metric for Histogram {
    fn name(&self) -> &'static str {
        self.name
    }
    fn help(&self) -> &'static str {
        self.help
    }
    fn kind(&self) -> &'static str {
        "histogram"
    }
    fn write(&self, out: &mut String) {
        self.counts.write(self.name, "", out);
    }
}

/// Something that is being timed.
#[derive(Debug)]
pub struct Timing {
    histogram: &'static Histogram,
    began: Instant,
}

impl Drop for Timing {
    fn drop(&mut self) {
        self.histogram.observe(self.began.elapsed());
    }
}
