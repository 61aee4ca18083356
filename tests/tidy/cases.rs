//! A rule that cannot fail holds nothing: for each one, a snippet it catches and a neighbour it lets pass.

use crate::layering::{self, Edge};
use crate::rules;

/// `bad` at `path` breaks exactly `rule`; `good` at the same path breaks nothing.
struct Case {
    rule: &'static str,
    path: &'static str,
    bad: String,
    good: String,
}

fn case(rule: &'static str, path: &'static str, bad: impl Into<String>, good: impl Into<String>) -> Case {
    Case { rule, path, bad: bad.into(), good: good.into() }
}

/// A Rust case: both get a module doc and a last newline.
fn rust(rule: &'static str, path: &'static str, bad: &str, good: &str) -> Case {
    case(rule, path, format!("//! Doc.\n{bad}\n"), format!("//! Doc.\n{good}\n"))
}

fn function_of(lines: usize) -> String {
    format!("fn long() {{\n{}}}", "    call();\n    // Why.\n\n".repeat(lines - 2))
}

fn text_cases() -> Vec<Case> {
    let unfinished = concat!("a TO", "DO here\n");
    vec![
        case("trailing-space", "docs/a.md", "word \n", "word\n"),
        case("trailing-space", "docs/a.md", "word\r\n", "word\n"),
        case("last-line", "Makefile", "all:", "all:\n"),
        case("machine-path", "docs/a.md", concat!("see `/wo", "rk/x`\n"), "see `frame/work/x`\n"),
        case("machine-path", "tests/x.sh", concat!("PATH=/ro", "ot/.cargo/bin\n"), "PATH=$HOME/.cargo/bin\n"),
        case("unfinished", "agent/src/a.proto", unfinished, "a TODOs here\n"),
        rust("unfinished", "agent/src/a.rs", concat!("// FIX", "ME: later"), "// FIXMEs are gone."),
    ]
}

fn size_cases() -> Vec<Case> {
    vec![
        rust("file-length", "agent/src/a.rs", &"fn f() {}\n".repeat(700), &"fn f() {}\n".repeat(698)),
        rust(
            "file-length",
            "agent/src/a.rs",
            &"fn f() {}\n".repeat(701),
            &format!("{}#[cfg(test)]\nmod t {{\n{}}}", "fn f() {}\n".repeat(600), "fn f() {}\n".repeat(600)),
        ),
        rust("function-length", "agent/src/a.rs", &function_of(71), &function_of(70)),
        rust("function-length", "tests/sim/a.rs", &function_of(71), &function_of(70)),
        case("module-doc", "agent/src/a.rs", "fn f() {}\n", "//! Doc.\nfn f() {}\n"),
        rust(
            "bound-doc",
            "agent/src/a.rs",
            "pub const QUEUE_MAX: u8 = 1;",
            "/// Why.\npub const QUEUE_MAX: u8 = 1;",
        ),
        rust("bound-doc", "agent/src/a.rs", "const WAIT_MS: u8 = 1;", "pub const MIB: u8 = 1;"),
        rust(
            "bound-doc",
            "agent/src/a.rs",
            "impl A { const MAX_AGE: u8 = 1; }",
            "#[cfg(test)]\nconst WAIT_S: u8 = 1;",
        ),
    ]
}

fn name_cases() -> Vec<Case> {
    vec![
        rust("empty-name", "agent/src/vm_manager.rs", "", ""),
        rust("empty-name", "agent/src/a.rs", "struct VmManager;", "struct Managed;"),
        rust("empty-name", "agent/src/a.rs", "mod utils;", "mod utilisation;"),
        rust("empty-name", "agent/src/a.rs", "enum ErrorHandler {}", "enum Handle {}"),
        rust("empty-name", "agent/src/a.rs", "trait Common {}", "trait Commons {}"),
        rust("unfinished-macro", "agent/src/a.rs", "fn f() { todo!() }", "fn f() { unreachable!() }"),
        rust("unfinished-macro", "tests/e2e/a.rs", "fn f() { g(dbg!(1)) }", "fn f() { g(1) }"),
        rust("ignored-test", "agent/src/a.rs", "#[test]\n#[ignore]\nfn t() {}", "#[test]\nfn t() {}"),
        rust("ignored-test", "tests/e2e/a.rs", "#[ignore = \"slow\"]\nfn t() {}", "#[must_use]\nfn t() {}"),
        rust("parse", "agent/src/a.rs", "fn f( {}", "fn f() {}"),
    ]
}

fn purity_cases() -> Vec<Case> {
    let model = "proto/model/src/a.rs";
    let state = "controller/state/src/a.rs";
    let scheduler = "scheduler/src/a/b.rs";
    vec![
        rust("pure", state, "use std::time::Instant;", "use std::time::Duration;"),
        rust("pure", state, "fn f() { std::time::SystemTime::now(); }", "fn f(now_ms: u64) {}"),
        rust("pure", state, "fn f() { io::stdout(); }", "fn f(to: &mut impl std::io::Write) {}"),
        rust("pure", model, "use std::{fmt, fs};", "use std::{fmt, ops};"),
        rust("pure", model, "fn f(a: std::net::IpAddr) {}", "fn f(a: core::net::IpAddr) {}"),
        rust(
            "pure",
            scheduler,
            "use std::collections::{BTreeMap, HashMap};",
            "use std::collections::BTreeMap;",
        ),
        rust("pure", scheduler, "use rand::Rng;", "use crate::rank::Rank;"),
        rust("pure", scheduler, "fn f() { std::env::temp_dir(); }", "fn f() { env!(\"A\"); }"),
        rust("pure", model, "fn f() { Uuid::new_v4(); }", "fn f() { Uuid::from_u128(1); }"),
        rust("pure", model, "fn f() { vec![HashSet::new()]; }", "fn f() { vec![BTreeSet::new()]; }"),
        rust(
            "pure",
            model,
            "#[cfg(not(test))]\nuse std::fs;",
            "#[cfg(test)]\nmod t { use std::fs; #[test] fn t() { std::env::args(); } }",
        ),
        rust("async-in-pure", scheduler, "async fn f() {}", "fn f() {}"),
        rust("async-in-pure", state, "fn f() { async { 1 }; }", "fn f() { 1; }"),
        rust("float-in-state", state, "struct A { a: f64 }", "struct A { a: u64 }"),
        rust("float-in-state", state, "fn f() { 1.5; }", "fn f() { 15; }"),
        rust("float-in-state", state, "fn f(a: u8) { a as f32; }", "fn f(a: u8) { a as u32; }"),
    ]
}

fn place_cases() -> Vec<Case> {
    vec![
        rust("place", "controller/src/api/a.rs", "use openraft::Raft;", "use crate::raft::Handle;"),
        rust("place", "controller/src/raft_view.rs", "fn f(d: sled::Db) {}", "fn f(d: sledge::Db) {}"),
        rust(
            "place",
            "controller/src/reconcile.rs",
            "use dunlin_proto::{Fault, v1};",
            "use dunlin_proto::Fault;",
        ),
        rust(
            "place",
            "drivers/src/a.rs",
            "use std::env;\nfn f() { env::var(\"A\"); }",
            "fn f() { env::temp_dir(); }",
        ),
        rust("place", "agent/src/a.rs", "use std::env::args;", "#[cfg(test)]\nmod t { use std::env::args; }"),
        rust(
            "place",
            "agent/src/a.rs",
            "fn f() -> anyhow::Result<()> { g() }",
            "fn f() -> Result<(), E> { g() }",
        ),
        rust("unsafe-outside-drivers", "agent/src/a.rs", "fn f() { unsafe { g() } }", "fn f() { g() }"),
        rust("unsafe-outside-drivers", "cli/src/a.rs", "unsafe impl Send for A {}", "impl Sent for A {}"),
    ]
}

fn rules_broken(path: &str, text: &str) -> Vec<&'static str> {
    let mut rules: Vec<&str> = rules::check(path, text).iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

/// Each rule over files catches what breaks it, names nothing else, and lets the neighbour pass.
#[test]
fn every_file_rule_can_fail() {
    let groups = [text_cases(), size_cases(), name_cases(), purity_cases(), place_cases()];
    let cases: Vec<Case> = groups.into_iter().flatten().collect();
    for case in &cases {
        assert_eq!(rules_broken(case.path, &case.bad), [case.rule], "at {}:\n{}", case.path, case.bad);
        let good_path = case.path.replace("vm_manager", "vm");
        assert!(rules_broken(&good_path, &case.good).is_empty(), "at {good_path}:\n{}", case.good);
    }
    for rule in rules::RULES {
        assert!(cases.iter().any(|case| case.rule == *rule), "no case breaks {rule}");
    }
}

/// What is fenced off elsewhere may be named where it belongs.
#[test]
fn names_pass_in_their_own_place() {
    let at = |path, text: &str| rules_broken(path, &format!("//! Doc.\n{text}\n"));
    assert!(at("controller/src/raft/store.rs", "use sled::Db;").is_empty());
    assert!(at("controller/src/raft.rs", "use openraft::Raft;").is_empty());
    assert!(at("controller/src/api/vm.rs", "use dunlin_proto::v1::Vm;").is_empty());
    assert!(at("cli/src/main.rs", "use anyhow::Context;\nfn f() { std::env::args(); }").is_empty());
    assert!(at("drivers/src/kvm.rs", "fn f() { unsafe { g() } }").is_empty());
    assert!(at("scheduler/src/a.rs", "fn f() -> f64 { 1.5 }").is_empty());
    assert!(at("controller/state/src/apply_tests.rs", "use std::collections::HashMap;").is_empty());
}

/// Each layering rule catches a crate that reaches too far up or too far out.
#[test]
fn every_layering_rule_can_fail() {
    let package = |name, to: &str, shipped| {
        let edges = [Edge { to: to.to_owned(), shipped }];
        let text = format!("[package]\nname = \"{name}\"\n[dependencies]\n{to}.workspace = true\n");
        layering::check_package("a/Cargo.toml", &text, name, &edges)
            .iter()
            .map(|f| (f.rule, f.line))
            .collect::<Vec<_>>()
    };
    assert_eq!(package("dunlin-state", "dunlin-scheduler", true), [("layer", 4)]);
    assert_eq!(package("dunlin-state", "dunlin-scheduler", false), [("layer", 4)]);
    assert_eq!(package("dunlin-drivers", "dunlin-proto", true), [("layer", 4)]);
    assert_eq!(package("dunlin-new", "serde", true), [("layer", 2)]);
    assert_eq!(package("dunlin-scheduler", "tokio", true), [("outside-dependency", 4)]);
    assert_eq!(package("dunlin-agent", "sled", true), [("outside-dependency", 4)]);
    assert_eq!(package("dunlin-scheduler", "proptest", false), []);
    assert_eq!(package("dunlin-controller", "dunlin-state", true), []);

    let manifest = |text: &str| {
        let findings = layering::check_manifest("a/Cargo.toml", text);
        findings.iter().map(|f| (f.rule, f.line)).collect::<Vec<_>>()
    };
    let lints = "[lints]\nworkspace = true\n";
    assert_eq!(manifest(&format!("{lints}[dependencies]\nserde = \"1\"\n")), [("one-table", 4)]);
    assert_eq!(manifest("[dependencies]\nserde.workspace = true\n"), [("one-table", 1)]);
    assert_eq!(manifest(&format!("{lints}[dependencies]\nserde.workspace = true\n# a = b\n")), []);
    assert_eq!(layering::RULES, ["layer", "outside-dependency", "one-table"]);
}
