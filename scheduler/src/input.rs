//! Text from outside, line by line: what is wrong with it is told by file, line, field and reason.
//!
//! Owns the refusal and the small parsers that every reader shares. Refuses to open files: a reader gets the text and the
//! name it goes by.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A file that was not understood. The first bad line is told; nothing of the file is used.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{file}:{line}: {field}: {reason}")]
pub struct BadInput {
    /// The name the caller gave the text.
    pub file: String,
    /// Line, 1 and up; 0 when the file as a whole is meant.
    pub line: usize,
    /// Field, as the format names it.
    pub field: String,
    /// What is wrong, with the value, and what would have been accepted.
    pub reason: String,
}

/// One line, with what is needed to tell where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'t> {
    pub(crate) file: &'t str,
    pub(crate) number: usize,
    pub(crate) text: &'t str,
}

impl<'t> Line<'t> {
    /// Every line of `text`, numbered from 1, without its line end.
    pub(crate) fn all(file: &'t str, text: &'t str) -> impl Iterator<Item = Self> {
        text.lines().zip(1..).map(move |(text, number)| Self { file, number, text })
    }

    pub(crate) fn refuse(&self, field: &str, reason: impl Into<String>) -> BadInput {
        let (file, field) = (self.file.to_owned(), field.to_owned());
        BadInput { file, line: self.number, field, reason: reason.into() }
    }

    /// A whole number within `range`.
    pub(crate) fn whole(&self, field: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, BadInput> {
        let allowed = format!("allowed: {} to {}", range.start(), range.end());
        match text.trim().parse::<u64>() {
            Ok(value) if range.contains(&value) => Ok(value),
            Ok(value) => Err(self.refuse(field, format!("{value} is out of range; {allowed}"))),
            Err(_) => Err(self.refuse(field, format!("{} is not a whole number; {allowed}", shown(text)))),
        }
    }

    /// A decimal number such as `2893.5`, in thousandths, rounded down: `2893500`. No sign, no exponent.
    pub(crate) fn milli(&self, field: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, BadInput> {
        let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err(self.refuse(field, format!("{} is not a decimal number", shown(text))));
        }
        let value = format!("{whole}{:0<3.3}", fraction).parse::<u64>();
        match value {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => {
                let (low, high) = (range.start() / 1_000, range.end() / 1_000);
                Err(self.refuse(field, format!("{} is out of range; allowed: {low} to {high}", shown(text))))
            }
        }
    }
}

/// At most this much of a bad value is repeated, so that a message stays a line.
const SHOWN_BYTES_MAX: usize = 40;

/// The value as it stands in a message.
pub(crate) fn shown(text: &str) -> String {
    let cut = (0..=SHOWN_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    if cut == text.len() { format!("{text:?}") } else { format!("{:?}...", &text[..cut]) }
}
