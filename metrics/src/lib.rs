//! What a process counts and times, and how that reads in the text format of Prometheus (version 0.0.4).
//!
//! Metrics are statics of the crate that counts: one process is one controller or one agent, so there is nothing to carry
//! around, and what is counted deep inside (a sync of the log) needs no way out. Each crate lists its own in one table, which
//! is all that is served and all that docs/observing.md may name.
//!
//! DECISION: a registry of our own, three hundred lines of atomics. The `prometheus` crate takes a lock and a heap of labels
//! for each vector, and brings protobuf along; an agent is to stay below 10 MiB. Knows no clock but the steady one, no I/O but
//! what it reads of its own process.

mod family;
mod histogram;
mod process;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

pub use family::{Cell, Family};
pub use histogram::{Histogram, Timing};
pub use process::process;

/// The content type of [`render`].
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric of a table.
pub trait Metric: Sync + std::fmt::Debug {
    /// Its name, with its unit at the end: `_seconds`, `_bytes`, `_total` of a counter.
    fn name(&self) -> &'static str;
    /// One sentence.
    fn help(&self) -> &'static str;
    /// `counter`, `gauge` or `histogram`.
    fn kind(&self) -> &'static str;
    /// Names of its labels.
    fn labels(&self) -> &'static [&'static str] {
        &[]
    }
    /// Its samples, a line each.
    fn write(&self, out: &mut String);
}

/// Everything of these tables as text.
#[must_use]
pub fn render(tables: &[&[&dyn Metric]]) -> String {
    let mut out = String::new();
    for metric in tables.iter().copied().flatten() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {} {}", metric.name(), metric.help());
        let _ = writeln!(out, "# TYPE {} {}", metric.name(), metric.kind());
        metric.write(&mut out);
    }
    out
}

/// A table of metrics as docs/observing.md has it.
#[must_use]
pub fn page(table: &[&dyn Metric]) -> String {
    let mut out = "| metric | kind | labels | what |\n| --- | --- | --- | --- |\n".to_owned();
    for metric in table {
        let (name, kind, help) = (metric.name(), metric.kind(), metric.help());
        let _ = writeln!(out, "| `{name}` | {kind} | {} | {help} |", metric.labels().join(", "));
    }
    out
}

/// Only grows.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    count: AtomicU64,
}

impl Counter {
    /// One that stands at 0.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, count: AtomicU64::new(0) }
    }

    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
    }

    /// How many.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Metric for Counter {
    fn name(&self) -> &'static str {
        self.name
    }
    fn help(&self) -> &'static str {
        self.help
    }
    fn kind(&self) -> &'static str {
        "counter"
    }
    fn write(&self, out: &mut String) {
        let _ = writeln!(out, "{} {}", self.name, self.get());
    }
}

/// Goes up and down.
#[derive(Debug)]
pub struct Gauge {
    name: &'static str,
    help: &'static str,
    value: AtomicI64,
}

impl Gauge {
    /// One that stands at 0.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, value: AtomicI64::new(0) }
    }

    /// Sets it; what is larger than an `i64` stays at the largest.
    pub fn set(&self, value: u64) {
        self.value.store(i64::try_from(value).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Where it stands.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }

    /// One more for as long as the answer is held.
    #[must_use]
    pub fn held(&'static self) -> Held {
        self.value.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }
}

impl Metric for Gauge {
    fn name(&self) -> &'static str {
        self.name
    }
    fn help(&self) -> &'static str {
        self.help
    }
    fn kind(&self) -> &'static str {
        "gauge"
    }
    fn write(&self, out: &mut String) {
        let _ = writeln!(out, "{} {}", self.name, self.get());
    }
}

/// One of a [`Gauge`], until it is dropped.
#[derive(Debug)]
pub struct Held(&'static Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.value.fetch_sub(1, Ordering::Relaxed);
    }
}
