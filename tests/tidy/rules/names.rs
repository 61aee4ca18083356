//! Names that say nothing, code that is not there yet, tests that do not run.

use super::Subject;
use crate::Finding;
use crate::facts::{Facts, Kind};

pub(crate) const EMPTY_NAME: &str = "empty-name";
pub(crate) const UNFINISHED_MACRO: &str = "unfinished-macro";
pub(crate) const IGNORED_TEST: &str = "ignored-test";

/// A thing so named holds whatever nobody found a place for.
const EMPTY_WORDS: &[&str] = &[
    "manager", "managers", "util", "utils", "utility", "helper", "helpers", "common", "handler", "handlers",
    "misc", "stuff",
];

const UNFINISHED_MACROS: &[&str] = &["dbg", "todo", "unimplemented"];

pub(super) fn check(subject: &Subject<'_>, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in subject.path.split('/').filter_map(|part| part.split('.').next()) {
        if let Some(word) = empty_word(part) {
            findings.push(subject.finding(1, EMPTY_NAME, format!("a path with `{word}` in it")));
        }
    }
    for fact in &facts.facts {
        let mut found = |rule, what| findings.push(subject.finding(fact.line, rule, what));
        match fact.kind {
            Kind::Type | Kind::Module => {
                if let Some(word) = empty_word(&fact.name) {
                    found(EMPTY_NAME, format!("`{}`: what does this {word} do?", fact.name));
                }
            }
            Kind::Macro if UNFINISHED_MACROS.contains(&fact.name.as_str()) => {
                found(UNFINISHED_MACRO, format!("{}!", fact.name));
            }
            Kind::Attribute if fact.name == "ignore" => {
                found(IGNORED_TEST, "a test that does not run holds nothing".to_owned());
            }
            _ => {}
        }
    }
    findings
}

/// The first empty word of a `snake_case` or `CamelCase` name.
fn empty_word(name: &str) -> Option<&'static str> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        let last = words.last_mut().expect("it starts with one word");
        match c {
            '_' | '-' => words.push(String::new()),
            c if c.is_uppercase() && !last.is_empty() => words.push(c.to_lowercase().collect()),
            c => last.extend(c.to_lowercase()),
        }
    }
    words.iter().find_map(|word| EMPTY_WORDS.iter().copied().find(|empty| empty == word))
}
