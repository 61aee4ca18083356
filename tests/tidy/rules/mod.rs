//! The rules over files: each module is one subject, and each rule in it a function from facts to findings.

mod names;
mod places;
mod purity;
mod size;
mod text;

use crate::Finding;
use crate::facts::{self, Fact, Facts};

/// Every rule over files. `cases` has to break each one.
pub(crate) const RULES: &[&str] = &[
    "parse",
    text::SPACE,
    text::LAST_LINE,
    text::MACHINE_PATH,
    text::UNFINISHED,
    size::FILE,
    size::FUNCTION,
    size::MODULE_DOC,
    size::BOUND_DOC,
    names::EMPTY_NAME,
    names::UNFINISHED_MACRO,
    names::IGNORED_TEST,
    purity::PURE,
    purity::ASYNC,
    purity::FLOAT,
    places::PLACE,
    places::UNSAFE,
];

/// A file under the eyes of the rules.
pub(crate) struct Subject<'s> {
    pub(crate) path: &'s str,
    pub(crate) text: &'s str,
}

impl Subject<'_> {
    pub(crate) fn finding(&self, line: usize, rule: &'static str, what: impl Into<String>) -> Finding {
        Finding { file: self.path.to_owned(), line, rule, what: what.into() }
    }

    /// `place` names a file without its `.rs`, a folder, or a module that may be either.
    pub(crate) fn is_in(&self, place: &str) -> bool {
        let rest = self.path.strip_prefix(place.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
    }

    fn stem(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(self.path).split('.').next().unwrap_or_default()
    }

    /// A file that is compiled only for tests: `tests.rs`, `x_tests.rs`, and what lies in `tests/` or `testing/`.
    pub(crate) fn is_test(&self) -> bool {
        let stem = self.stem();
        let folders = ["/tests/", "/testing/"];
        self.is_in("tests")
            || folders.iter().any(|folder| self.path.contains(folder))
            || stem == "tests"
            || stem.ends_with("_tests")
    }

    /// The facts of `facts` that end up in the product.
    pub(crate) fn shipped<'f>(&self, facts: &'f Facts) -> impl Iterator<Item = &'f Fact> {
        let is_test = self.is_test();
        facts.facts.iter().filter(move |fact| !is_test && !fact.in_test)
    }
}

/// True when `pattern` (`a` or `a::b`) stands somewhere in `path`, segment for segment.
pub(crate) fn path_names(path: &str, pattern: &str) -> bool {
    let path: Vec<&str> = path.split("::").collect();
    let pattern: Vec<&str> = pattern.split("::").collect();
    path.windows(pattern.len()).any(|window| window == pattern)
}

/// Everything the rules have to say about one file.
pub(crate) fn check(path: &str, text: &str) -> Vec<Finding> {
    let subject = Subject { path, text };
    let mut findings = text::check(&subject);
    if !path.ends_with(".rs") {
        return findings;
    }
    match facts::read(text) {
        Ok(facts) => {
            findings.extend(size::check(&subject, &facts));
            findings.extend(names::check(&subject, &facts));
            findings.extend(purity::check(&subject, &facts));
            findings.extend(places::check(&subject, &facts));
        }
        Err((line, message)) => findings.push(subject.finding(line, "parse", message)),
    }
    findings.sort();
    findings.dedup();
    findings
}
