//! `apply`, `diff`, `delete` and `get`: a fleet as files say, on record. Simulated guests.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use dunlin_model::vm::VmPhase;
use dunlin_tests::{Fleet, FleetOptions, eventually};

use crate::input::normal;

/// Simulated guests start at once; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// The VM stands before the image it boots from, and the folder holds what the file does not.
const SITE: &str = "\
kind: Vm
metadata: {name: web, labels: {app: web}}
spec:
  power: running
  mem_mib: 256
  driver: test
  sim: {boot_ms: 1}
  disks: [{name: vda, source: {image: base}}]
---
kind: Image
metadata: {name: base}
spec: {source: base.img}
";
const HOST: &str = "kind: Host\nmetadata: {name: host-2}\nspec: {rack: r2}\n";
const CLUSTER: &str = "{\"kind\": \"Cluster\", \"spec\": {\"balance\": {\"level\": 4}}}\n";

/// What files say is made in the order of need, and nothing else is touched. Twice is once: no revision moves. What a hand
/// or another manager changed is shown, put right, or refused; where a guest runs is no difference.
#[test]
fn a_fleet_is_as_its_files_say() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 2, drivers: "test" })?;
    let folder = files(&fleet)?;
    let folder = folder.display().to_string();
    let mut said = String::new();
    let mut run = |words: &[&str], input: &str, status: i32| -> anyhow::Result<()> {
        let output = fleet.run_with_input(words, input)?;
        ensure!(output.status == status, "{words:?}: {} {}{}", output.status, output.stdout, output.stderr);
        let told = normal(&fleet, &format!("{}{}", output.stdout, quiet(&output.stderr)));
        // What is tells of placements, which are not what this is about.
        let told = told.split_once("\nstatus:").map_or(told.as_str(), |(asked, _)| asked);
        said.push_str(&format!(
            "$ dunlin {}  # {status}\n{told}\n",
            words.join(" ").replace(&folder, "FOLDER")
        ));
        Ok(())
    };
    run(&["diff", "-f", &folder], "", 13)?;
    run(&["apply", "-f", &folder, "--dry-run"], "", 0)?;
    run(&["apply", "-f", &folder], "", 0)?;
    fleet.wait_phase("web", VmPhase::Running, LIMIT)?;
    let revision = || -> anyhow::Result<_> { Ok(fleet.json(&["vm", "list"])?["revision"].clone()) };
    let before = revision()?;
    run(&["apply", "-f", &folder], "", 0)?;
    run(&["diff", "-f", &folder], "", 0)?;
    ensure!(revision()? == before, "a second apply moved the revision from {before} to {}", revision()?);

    // Where it runs is status.
    fleet.ok(&["vm", "migrate", "web", "--wait"])?;
    run(&["diff", "-f", &folder], "", 0)?;

    // A hand is drift: shown, and put right.
    fleet.ok(&["vm", "destroy", "web", "--wait"])?;
    run(&["diff", "-f", &folder], "", 13)?;
    run(&["apply", "-f", &folder, "--dry-run"], "", 0)?;
    fleet.ok(&["host", "set", "host-2", "--zone", "z9"])?;
    run(&["diff", "-f", &format!("{folder}/2-host.yml")], "", 0)?;

    // Another manager is refused what is not his, unless forced; what he adds is his, and goes when he no longer says it.
    let other = "kind: Vm\nmetadata: {name: web, labels: {tier: front}}\nspec: {cpus: 2}\n";
    let greedy = "kind: Vm\nmetadata: {name: web}\nspec: {mem_mib: 512}\n";
    run(&["apply", "-f", "-", "--field-manager", "ci"], other, 0)?;
    run(&["apply", "-f", "-", "--field-manager", "ci"], greedy, 4)?;
    run(&["apply", "-f", "-", "--field-manager", "ci", "--force"], greedy, 0)?;
    run(&["apply", "-f", &folder], "", 4)?;
    run(&["get", "vms", "web", "-o", "yaml"], "", 0)?;
    run(&["get", "vm", "-l", "app in (web,db)", "--field-selector", "status.phase=Stopped"], "", 0)?;
    run(&["get", "vm", "-l", "app!=web"], "", 0)?;
    run(&["get", "vm", "--field-selector", "status.fase=x"], "", 2)?;
    run(&["get", "pod"], "", 2)?;

    // What is wrong is said by file and field, and what is refused as a whole leaves nothing.
    let misspelt = "kind: Vm\nmetadata: {name: new}\nspec: {mem_mib: 64, cpsu: 1}\n";
    run(&["apply", "-f", "-"], misspelt, 2)?;
    run(&["apply", "-f", "-"], "kind: Vm\nmetadata: {name: new}\nspec: {mem_mib: 1}\n", 2)?;
    run(&["apply", "-f", "-"], "kind: Host\nmetadata: {name: host-3}\nspec: {}\n", 3)?;

    std::fs::remove_file(format!("{folder}/2-host.yml"))?;
    run(&["delete", "-f", &folder], "", 2)?;
    std::fs::remove_file(format!("{folder}/3-cluster.json"))?;
    run(&["delete", "-f", &folder], "", 0)?;
    eventually("everything is gone", LIMIT, || {
        let left = fleet.json(&["get", "vm"]).map_err(|e| e.to_string())?;
        if left["items"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(left.to_string()) }
    })?;
    run(&["delete", "-f", &folder], "", 0)?;
    insta::assert_snapshot!("declare", said);
    Ok(())
}

fn files(fleet: &Fleet) -> anyhow::Result<PathBuf> {
    let folder = fleet.scratch().join("site");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("base.img"), vec![7; 4096])?;
    std::fs::write(folder.join("1-site.yaml"), SITE)?;
    std::fs::write(folder.join("2-host.yml"), HOST)?;
    std::fs::write(folder.join("3-cluster.json"), CLUSTER)?;
    Ok(folder)
}

/// Without how far something was.
fn quiet(text: &str) -> String {
    let told = text.lines().filter(|line| !["reading", "sending"].contains(line));
    told.map(|line| format!("{line}\n")).collect()
}
