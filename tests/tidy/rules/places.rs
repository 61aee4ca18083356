//! Names that belong to one place of the house: what stays inside can be replaced from inside.

use super::{Subject, path_names};
use crate::Finding;
use crate::facts::{Facts, Kind};

pub(crate) const PLACE: &str = "place";
pub(crate) const UNSAFE: &str = "unsafe-outside-drivers";

/// The edges where generated types are met and turned into model types. A new edge is added here, knowingly.
const GENERATED_PLACES: &[&str] = &[
    "proto/src",
    "controller/src/api",
    "controller/src/session",
    // The transport of the log, and the version-stamped records it keeps on disk.
    "controller/src/raft",
    "agent/src/session",
    // What an agent does beside its session: joining, the bytes of an image, the bytes of a console.
    "agent/src/console",
    "agent/src/identity",
    "agent/src/images",
    // The CLI is a thin shell: a verb fills in one request.
    "cli/src/client",
    "cli/src/local",
    "cli/src/verbs",
    "tests",
];

/// Arguments and environment, whichever way they are imported.
const SURROUNDINGS: &[&str] = &[
    "env::args",
    "env::args_os",
    "env::var",
    "env::var_os",
    "env::vars",
    "env::vars_os",
    "env::set_var",
    "env::remove_var",
];

struct Fence {
    names: &'static [&'static str],
    places: &'static [&'static str],
    why: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        names: &["openraft", "sled"],
        places: &["controller/src/raft"],
        why: "consensus and its store stay inside controller/src/raft",
    },
    Fence {
        names: &["dunlin_proto::v1"],
        places: GENERATED_PLACES,
        why: "generated types are met only at the edges; behind them the model speaks",
    },
    Fence {
        names: SURROUNDINGS,
        places: &["cli/src/main.rs"],
        why: "only main.rs reads arguments and environment",
    },
    Fence {
        names: &["anyhow"],
        places: &["cli/src/main.rs", "tests"],
        why: "errors are typed; anyhow ends in main.rs",
    },
];

pub(super) fn check(subject: &Subject<'_>, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if subject.path.ends_with("build.rs") {
        return findings;
    }
    for fact in subject.shipped(facts) {
        if fact.kind == Kind::Unsafe && !subject.is_in("drivers/src") {
            findings.push(subject.finding(fact.line, UNSAFE, format!("{} outside of drivers", fact.name)));
        }
        if fact.kind != Kind::Path {
            continue;
        }
        for fence in FENCES.iter().filter(|fence| !fence.places.iter().any(|place| subject.is_in(place))) {
            for name in fence.names.iter().filter(|name| path_names(&fact.name, name)) {
                findings.push(subject.finding(fact.line, PLACE, format!("{name}: {}", fence.why)));
            }
        }
    }
    findings
}
