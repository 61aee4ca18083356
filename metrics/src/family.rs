//! One metric for each of several things, told apart by labels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Metric;
use crate::histogram::{Counts, us};

/// Things told apart by one family. Labels are words of ours and not of whoever calls; this is the bound should one slip
/// through: what comes beyond it is counted together, under [`OTHERS`].
const SERIES_MAX: usize = 512;
/// The label of what there was no place for.
const OTHERS: &str = "others";

/// What a family counts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Only grows.
    Counter,
    /// Is set anew each time it is looked at.
    Gauge,
    /// Durations.
    Histogram,
}

/// A metric with labels.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    cell: Cell,
    series: Mutex<BTreeMap<String, Arc<Series>>>,
}

#[derive(Debug, Default)]
struct Series {
    value: AtomicU64,
    counts: Option<Counts>,
}

impl Family {
    /// An empty one.
    #[must_use]
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        cell: Cell,
    ) -> Self {
        Self { name, help, labels, cell, series: Mutex::new(BTreeMap::new()) }
    }

    /// So many more with these values of the labels, in their order.
    pub fn add(&self, values: &[&str], count: u64) {
        self.of(values).value.fetch_add(count, Ordering::Relaxed);
    }

    /// One more.
    pub fn inc(&self, values: &[&str]) {
        self.add(values, 1);
    }

    /// How many, or where it stands.
    #[must_use]
    pub fn get(&self, values: &[&str]) -> u64 {
        self.of(values).value.load(Ordering::Relaxed)
    }

    /// One that took so long.
    pub fn observe(&self, values: &[&str], took: Duration) {
        if let Some(counts) = &self.of(values).counts {
            counts.observe(us(took));
        }
    }

    /// Replaces all there is: a thing that is gone has no line any more.
    pub fn set_all<'a>(&self, all: impl IntoIterator<Item = (Vec<&'a str>, u64)>) {
        let fresh = all.into_iter().take(SERIES_MAX).map(|(values, value)| {
            (self.key(&values), Arc::new(Series { value: AtomicU64::new(value), counts: None }))
        });
        let fresh = fresh.collect();
        *self.series.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    fn key(&self, values: &[&str]) -> String {
        let mut key = String::with_capacity(48);
        for (label, value) in self.labels.iter().zip(values) {
            key.push_str(label);
            key.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => key.push_str("\\\\"),
                    '"' => key.push_str("\\\""),
                    '\n' => key.push_str("\\n"),
                    c => key.push(c),
                }
            }
            key.push_str("\",");
        }
        key
    }

    fn of(&self, values: &[&str]) -> Arc<Series> {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let key = self.key(values);
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = series.get(&key) {
            return Arc::clone(known);
        }
        let key = if series.len() < SERIES_MAX { key } else { self.key(&vec![OTHERS; self.labels.len()]) };
        let fresh = || {
            let counts = (self.cell == Cell::Histogram).then(Counts::default);
            Arc::new(Series { value: AtomicU64::new(0), counts })
        };
        Arc::clone(series.entry(key).or_insert_with(fresh))
    }
}

impl Metric for Family {
    fn name(&self) -> &'static str {
        self.name
    }
    fn help(&self) -> &'static str {
        self.help
    }
    fn kind(&self) -> &'static str {
        match self.cell {
            Cell::Counter => "counter",
            Cell::Gauge => "gauge",
            Cell::Histogram => "histogram",
        }
    }
    fn labels(&self) -> &'static [&'static str] {
        self.labels
    }
    fn write(&self, out: &mut String) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (labels, series) in series {
            match &series.counts {
                Some(counts) => counts.write(self.name, &labels, out),
                None => {
                    let value = series.value.load(Ordering::Relaxed);
                    let _ = writeln!(out, "{}{{{}}} {value}", self.name, labels.trim_end_matches(','));
                }
            }
        }
    }
}
