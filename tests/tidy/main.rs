//! The house rules that no compiler checks: who may depend on whom, what the pure crates may not name, how long a
//! file or a function may get, which names mean nothing, what text may not hold.
//!
//! ```text
//! cargo metadata --> layering ---------------------------\
//! git ls-files --> text of each file --> rules::text -----+--> findings `file:line: rule: what`
//!                  \--> syn --> facts --> rules::* -------/
//! ```
//!
//! It reads the tree as it stands, new files included, and knows nothing of what the code does. A rule that must
//! bend is bent in its own table, with the reason beside it, and not at the place that breaks it. Every rule has a
//! case in `cases` that it catches.

mod cases;
mod facts;
mod layering;
mod rules;
mod tree;

use std::fmt;

/// One breach of one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) rule: &'static str,
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.rule, self.what)
    }
}

fn assert_none(mut findings: Vec<Finding>) {
    findings.sort();
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} findings\n{}", lines.len(), lines.join("\n"));
}

/// Every source file of the house keeps the rules of its place.
#[test]
fn sources_keep_the_rules() {
    assert_none(tree::files().iter().flat_map(|file| rules::check(&file.path, &file.text)).collect());
}

/// Crates depend only on what their layer allows, and take every version from the one table.
#[test]
fn crates_keep_their_layer() {
    assert_none(layering::check_workspace(&tree::root()));
}
