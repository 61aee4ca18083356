//! The pure crates decide and replicate: the same input gives the same output, on every machine, for ever.

use super::{Subject, path_names};
use crate::Finding;
use crate::facts::{Facts, Kind};

pub(crate) const PURE: &str = "pure";
pub(crate) const ASYNC: &str = "async-in-pure";
pub(crate) const FLOAT: &str = "float-in-state";

const PURE_PLACES: &[&str] = &["proto/model/src", "scheduler/src", "controller/state/src"];

/// Floats round differently between compilers and processors; replicas must not.
const FLOATLESS_PLACES: &[&str] = &["controller/state/src"];

/// What no pure crate names, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("Instant", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("Timestamp::now", "time comes in as an argument"),
    ("Zoned::now", "time comes in as an argument"),
    ("HashMap", "its order changes from run to run; BTreeMap or imbl::OrdMap"),
    ("HashSet", "its order changes from run to run; BTreeSet or imbl::OrdSet"),
    ("RandomState", "it is seeded by the machine"),
    ("std::fs", "the shell does the I/O"),
    ("io::stdin", "the shell does the I/O; a reader comes in as an argument"),
    ("io::stdout", "the shell does the I/O; a writer comes in as an argument"),
    ("io::stderr", "the shell does the I/O; a writer comes in as an argument"),
    ("std::net", "the shell does the I/O; plain address types are in core::net"),
    ("std::env", "settings come in as arguments"),
    ("std::process", "the shell does the I/O"),
    ("std::thread", "one thread, one order"),
    ("tokio", "the shell waits"),
    ("rand", "randomness comes in as a seed"),
    ("fastrand", "randomness comes in as a seed"),
    ("getrandom", "randomness comes in as a seed"),
    ("new_v4", "ids are drawn by the proposer and come in with the command"),
    ("now_v7", "ids are drawn by the proposer and come in with the command"),
];

pub(super) fn check(subject: &Subject<'_>, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !PURE_PLACES.iter().any(|place| subject.is_in(place)) {
        return findings;
    }
    let floatless = FLOATLESS_PLACES.iter().any(|place| subject.is_in(place));
    for fact in subject.shipped(facts) {
        let mut found = |rule, what| findings.push(subject.finding(fact.line, rule, what));
        match fact.kind {
            Kind::Path => {
                for (name, instead) in IMPURE.iter().filter(|(name, _)| path_names(&fact.name, name)) {
                    found(PURE, format!("{name} in a pure crate: {instead}"));
                }
                if floatless && ["f32", "f64"].iter().any(|float| path_names(&fact.name, float)) {
                    found(FLOAT, format!("{}: replicas must agree to the bit", fact.name));
                }
            }
            Kind::Float if floatless => {
                found(FLOAT, format!("{}: replicas must agree to the bit", fact.name));
            }
            Kind::Async => found(ASYNC, format!("{}: a pure function never waits", fact.name)),
            _ => {}
        }
    }
    findings
}
