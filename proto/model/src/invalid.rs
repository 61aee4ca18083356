//! A refused input: which field, what is wrong with its value, and what would be right.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One bad field. The first one found is reported; nothing of the input is kept.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{field}: {problem}; allowed: {allowed}")]
pub struct Invalid {
    /// Path of the field, as it is written in YAML: `spec.disks[0].bus`.
    pub field: String,
    /// What is wrong, the value included.
    pub problem: String,
    /// What would have been accepted.
    pub allowed: String,
}

impl Invalid {
    /// A refusal of `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), allowed: allowed.into() }
    }

    /// The same refusal, seen from one level further out: `prefix.field`.
    #[must_use]
    pub fn under(mut self, prefix: &str) -> Self {
        let dot = if self.field.starts_with('[') || self.field.is_empty() { "" } else { "." };
        self.field = format!("{prefix}{dot}{}", self.field);
        self
    }
}

/// Refuses a number outside `range`, naming the field and the range.
pub fn in_range(field: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> Result<(), Invalid> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Invalid::new(
        field,
        format!("{value} is out of range"),
        format!("{} to {}", range.start(), range.end()),
    ))
}
