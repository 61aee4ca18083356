//! What any text file of the clone may not hold.

use super::Subject;
use crate::Finding;

pub(crate) const SPACE: &str = "trailing-space";
pub(crate) const LAST_LINE: &str = "last-line";
pub(crate) const MACHINE_PATH: &str = "machine-path";
pub(crate) const UNFINISHED: &str = "unfinished";

/// Folders that exist on one machine only. Split, so that this file does not break its own rule.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/.cargo"), concat!("/ro", "ot/.rustup")];

const UNFINISHED_WORDS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Recorded output is kept as it was printed, padding included.
    let recorded = subject.path.ends_with(".snap") || subject.path.ends_with(".proptest-regressions");
    for (at, line) in subject.text.split('\n').enumerate() {
        let mut found = |rule, what: String| findings.push(subject.finding(at + 1, rule, what));
        if !recorded && line.ends_with([' ', '\t', '\r']) {
            found(SPACE, "space at the end of the line".to_owned());
        }
        for path in MACHINE_PATHS.iter().filter(|path| starts_a_path(line, path)) {
            found(MACHINE_PATH, format!("{path} exists on one machine only"));
        }
        for word in UNFINISHED_WORDS.iter().filter(|word| has_word(line, word)) {
            found(UNFINISHED, format!("{word}: finish it, or say in the issue tracker what is open"));
        }
    }
    if !subject.text.is_empty() && !subject.text.ends_with('\n') {
        findings.push(subject.finding(
            subject.text.lines().count(),
            LAST_LINE,
            "no newline at the end of the file",
        ));
    }
    findings
}

/// `needle` where it begins an absolute path, and is not the middle of a longer one.
fn starts_a_path(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "._-*/}".contains(c)))
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let outside = |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_'));
        outside(line[..at].chars().next_back()) && outside(line[at + word.len()..].chars().next())
    })
}
