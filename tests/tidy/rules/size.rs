//! How long things may get, and where a doc comment is owed.

use super::Subject;
use crate::Finding;
use crate::facts::{Facts, Kind};

pub(crate) const FILE: &str = "file-length";
pub(crate) const FUNCTION: &str = "function-length";
pub(crate) const MODULE_DOC: &str = "module-doc";
pub(crate) const BOUND_DOC: &str = "bound-doc";

/// One file is one thought; in the Rust code we admire, 95 of 100 files stay under 500 lines.
const FILE_LINES_MAX: usize = 700;

/// TigerBeetle's number: a function fits on a screen. Blank lines and comments are free.
const FUNCTION_LINES_MAX: usize = 70;

/// How the name of a bound ends (or begins, with MAX or MIN).
const BOUND_ENDINGS: &[&str] = &[
    "MAX", "MIN", "MS", "S", "SECS", "US", "LIMIT", "TIMEOUT", "INTERVAL", "RETRIES", "ATTEMPTS", "BYTES",
    "KIB", "MIB", "GIB", "DEPTH", "CAPACITY", "BUDGET", "BATCH", "QUEUE", "WINDOW", "DEADLINE", "GRACE",
];

pub(super) fn check(subject: &Subject<'_>, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.lines > FILE_LINES_MAX && !subject.is_test() {
        let what = format!("{} lines outside of tests, {FILE_LINES_MAX} at most", facts.lines);
        findings.push(subject.finding(1, FILE, what));
    }
    if !facts.has_module_doc && !subject.is_test() {
        findings.push(subject.finding(
            1,
            MODULE_DOC,
            "no `//!`: what does this file own, what does it refuse?",
        ));
    }
    for long in facts.facts.iter().filter(|f| f.kind == Kind::Function && f.lines > FUNCTION_LINES_MAX) {
        let what = format!("fn {} has {} lines, {FUNCTION_LINES_MAX} at most", long.name, long.lines);
        findings.push(subject.finding(long.line, FUNCTION, what));
    }
    for bare in subject.shipped(facts).filter(|f| f.kind == Kind::BareConst && is_bound(&f.name)) {
        let what = format!("{} is a bound without a doc comment that gives its reason", bare.name);
        findings.push(subject.finding(bare.line, BOUND_DOC, what));
    }
    findings
}

fn is_bound(name: &str) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    // One word alone is a unit or a kind (`MIB`), not a bound on something.
    let [first, .., last] = words.as_slice() else { return false };
    matches!(*first, "MAX" | "MIN") || BOUND_ENDINGS.contains(last)
}
