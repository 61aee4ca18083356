//! Who may depend on whom, as DESIGN draws it, checked against what cargo reads from the manifests.

use crate::Finding;
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::path::Path;

pub(crate) const LAYER: &str = "layer";
pub(crate) const OUTSIDE: &str = "outside-dependency";
pub(crate) const TABLE: &str = "one-table";

/// Every rule of this module.
pub(crate) const RULES: &[&str] = &[LAYER, OUTSIDE, TABLE];

/// The crates of the house below one crate, and what else it may link.
struct Layer {
    name: &'static str,
    below: &'static [&'static str],
    outside: Outside,
}

enum Outside {
    /// Nothing but these: the crate is pure.
    Only(&'static [&'static str]),
    /// Anything that is not kept for another crate.
    Any,
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "dunlin-model",
        below: &[],
        outside: Outside::Only(&["schemars", "serde", "serde_json", "uuid", "thiserror", "jiff"]),
    },
    Layer {
        name: "dunlin-scheduler",
        below: &["dunlin-model"],
        outside: Outside::Only(&["serde", "thiserror"]),
    },
    Layer {
        name: "dunlin-state",
        below: &["dunlin-model"],
        outside: Outside::Only(&["imbl", "serde", "serde_json", "thiserror", "uuid"]),
    },
    Layer { name: "dunlin-proto", below: &["dunlin-model"], outside: Outside::Any },
    Layer { name: "dunlin-metrics", below: &[], outside: Outside::Only(&[]) },
    Layer { name: "dunlin-pki", below: &["dunlin-model"], outside: Outside::Any },
    Layer { name: "dunlin-drivers", below: &["dunlin-model"], outside: Outside::Any },
    Layer {
        name: "dunlin-agent",
        below: &["dunlin-metrics", "dunlin-model", "dunlin-pki", "dunlin-proto", "dunlin-drivers"],
        outside: Outside::Any,
    },
    Layer {
        name: "dunlin-controller",
        below: &[
            "dunlin-metrics",
            "dunlin-model",
            "dunlin-pki",
            "dunlin-proto",
            "dunlin-state",
            "dunlin-scheduler",
        ],
        outside: Outside::Any,
    },
    Layer { name: "dunlin", below: EVERYTHING, outside: Outside::Any },
    Layer { name: "dunlin-tests", below: EVERYTHING, outside: Outside::Any },
];

const EVERYTHING: &[&str] = &[
    "dunlin-metrics",
    "dunlin-model",
    "dunlin-pki",
    "dunlin-scheduler",
    "dunlin-state",
    "dunlin-proto",
    "dunlin-drivers",
    "dunlin-agent",
    "dunlin-controller",
];

/// Dependencies that are kept for the crates named here; in tests anybody may use them.
const KEPT: &[(&str, &[&str])] = &[
    ("openraft", &["dunlin-controller"]),
    ("sled", &["dunlin-controller"]),
    ("tonic", &["dunlin-proto", "dunlin-controller", "dunlin-agent", "dunlin", "dunlin-tests"]),
    ("prost", &["dunlin-proto", "dunlin-controller", "dunlin-agent", "dunlin-tests"]),
    ("rcgen", &["dunlin-pki"]),
    ("rustls-webpki", &["dunlin-pki"]),
    ("reqwest", &["dunlin", "dunlin-controller", "dunlin-tests"]),
    ("clap", &["dunlin"]),
    ("comfy-table", &["dunlin"]),
    ("indicatif", &["dunlin"]),
    ("anyhow", &["dunlin", "dunlin-tests"]),
];

pub(crate) fn check_workspace(root: &Path) -> Vec<Finding> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo metadata reads the workspace");
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        let file = package.manifest_path.strip_prefix(root).unwrap_or(&package.manifest_path).to_string();
        let text = std::fs::read_to_string(&package.manifest_path).expect("cargo has just read it");
        findings.extend(check_manifest(&file, &text));
        findings.extend(check_package(&file, &text, &package.name, &edges(package)));
    }
    findings
}

/// A dependency as the layering sees it. `shipped`: it is linked into the product, or builds it.
pub(crate) struct Edge {
    pub(crate) to: String,
    pub(crate) shipped: bool,
}

fn edges(package: &Package) -> Vec<Edge> {
    let edge = |d: &cargo_metadata::Dependency| Edge {
        to: d.name.clone(),
        shipped: d.kind != DependencyKind::Development,
    };
    package.dependencies.iter().map(edge).collect()
}

pub(crate) fn check_package(file: &str, text: &str, name: &str, edges: &[Edge]) -> Vec<Finding> {
    let line = |needle: &str| 1 + text.lines().position(|l| l.starts_with(needle)).unwrap_or(0);
    let found = |rule, at: &str, what| Finding { file: file.to_owned(), line: line(at), rule, what };
    let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
        return vec![found(
            LAYER,
            "name",
            format!("{name} has no layer; give it one in tests/tidy/layering.rs"),
        )];
    };
    let mut findings = Vec::new();
    for edge in edges {
        let to = edge.to.as_str();
        if to == "dunlin" || to.starts_with("dunlin-") {
            if !layer.below.contains(&to) {
                let what = format!("{name} may not depend on {to}; below it: {:?}", layer.below);
                findings.push(found(LAYER, to, what));
            }
            continue;
        }
        if !edge.shipped {
            continue;
        }
        if let Outside::Only(only) = layer.outside
            && !only.contains(&to)
        {
            findings.push(found(
                OUTSIDE,
                to,
                format!("{name} is pure: of the world it knows {only:?}, not {to}"),
            ));
        }
        if let Some((_, owners)) = KEPT.iter().find(|(kept, owners)| *kept == to && !owners.contains(&name)) {
            findings.push(found(OUTSIDE, to, format!("{to} is kept for {owners:?}")));
        }
    }
    findings
}

/// A crate takes every version, and its lints, from the root manifest.
pub(crate) fn check_manifest(file: &str, text: &str) -> Vec<Finding> {
    let found = |line, what: String| Finding { file: file.to_owned(), line, rule: TABLE, what };
    let mut findings = Vec::new();
    let mut section = "";
    for (at, line) in text.lines().map(str::trim).enumerate() {
        if line.starts_with('[') {
            section = line;
        }
        let is_entry = line.contains('=') && !line.starts_with('#');
        let inherits = line.contains(".workspace = true") || line.contains("{ workspace = true");
        if section.contains("dependencies") && is_entry && !inherits {
            findings.push(found(at + 1, format!("`{line}` has its own version; say `.workspace = true`")));
        }
    }
    if !text.contains("[lints]\nworkspace = true") {
        findings.push(found(1, "no `[lints] workspace = true`".to_owned()));
    }
    findings
}
