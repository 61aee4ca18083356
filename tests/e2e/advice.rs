//! What the scheduler answers when asked, on record. Simulated guests.

use std::time::Duration;

use anyhow::{Context, ensure};
use dunlin_model::vm::VmPhase;
use dunlin_tests::{Fleet, FleetOptions, eventually};

use crate::input::normal;

/// Two samples and two looks of the balancer, on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Explanations, plans, capacity and policy read as recorded; a recommendation is approved, dismissed, and not made again.
#[test]
fn the_scheduler_answers_as_recorded() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 3, drivers: "test" })?;
    make(&fleet)?;
    let sim = ["--driver", "test", "--mem-mib", "1024"];
    let mut said = String::new();
    for words in [
        &["cluster", "policy"][..],
        &[
            &[
                "vm",
                "create",
                "db-2",
                "--dry-run",
                "--label",
                "app=db",
                "--rule",
                "apart,with=app=db,over=rack",
            ],
            &sim[..],
        ]
        .concat(),
        &[
            &["vm", "create", "odd", "--dry-run", "--tolerate", "gpu=yes", "--prefer", "disk=ssd:90"],
            &sim[..],
        ]
        .concat(),
        &["vm", "create", "huge", "--dry-run", "--driver", "test", "--mem-mib", "60000"],
        &["explain", "vm", "db-1"],
        &["explain", "host", "host-1"],
        &["host", "drain", "host-1", "--dry-run"],
        &["host", "drain", "host-1", "host-2", "--dry-run", "-o", "yaml"],
        &["cluster", "capacity", "--driver", "test", "--mem-mib", "8192", "--cpus", "8", "--failures", "2"],
        &[
            "simulate",
            "--fleet",
            &file(&fleet, "fleet", FLEET)?,
            "--trace",
            &file(&fleet, "trace", TRACE)?,
            "--policy",
            "spread",
            "--versus",
            "pack",
        ],
    ] {
        said.push_str(&format!(
            "$ dunlin {}\n{}\n",
            words.join(" "),
            steady(&normal(&fleet, &fleet.ok(words)?))
        ));
    }
    let plan = fleet.json(&["balance", "plan", "--consolidate"])?;
    let emptied: Vec<_> =
        plan["emptied"].as_array().context("emptied")?.iter().filter_map(|name| name.as_str()).collect();
    ensure!(emptied == ["host-2", "host-3"] && plan["moves"] == serde_json::json!([]), "{plan}");
    licences(&fleet)?;
    said = said.replace(&fleet.scratch().display().to_string(), "SCRATCH");
    insta::assert_snapshot!("advice", said);
    recommendations(&fleet)
}

/// A host that has one licence takes one VM that needs it; the next hears why not, and goes in when there is another.
fn licences(fleet: &Fleet) -> anyhow::Result<()> {
    let resource =
        |count: &str| fleet.ok(&["host", "set", "host-2", "--resource", &format!("licence/db={count}")]);
    let create = |name: &str| {
        let words = ["--driver", "test", "--mem-mib", "64", "--resource", "licence/db=1", "--start"];
        fleet.ok(&[&["vm", "create", name], &words[..]].concat())
    };
    resource("1")?;
    create("first")?;
    fleet.wait_phase("first", VmPhase::Running, LIMIT)?;
    ensure!(fleet.vm("first")?.status.host_name.is_some_and(|host| host.as_str() == "host-2"));
    create("second")?;
    let told = eventually("a reason", LIMIT, || {
        let vm = fleet.vm("second").map_err(|e| e.to_string())?;
        if vm.status.reason.is_empty() { Err("none yet".to_owned()) } else { Ok(vm.status) }
    })?;
    ensure!(
        told.message.contains("not enough licence/db (need 1, most free 0)"),
        "{}: {}",
        told.reason,
        told.message
    );
    let host = fleet.ok(&["explain", "host", "host-2"])?;
    ensure!(host.contains("has 1 of licence/db, of which 1 are taken"), "{host}");
    resource("2")?;
    fleet.wait_phase("second", VmPhase::Running, LIMIT)?;
    for name in ["first", "second"] {
        fleet.ok(&["vm", "delete", name, "--wait"])?;
    }
    Ok(())
}

const FLEET: &str = "host a cpus=8 mem=16G\nhost b cpus=8 mem=16G\nhost c cpus=8 mem=16G\n";
const TRACE: &str = "vm,arrival_s,tenant_batch,vcpus,mem_gib,life_lo_s,life_hi_s,censored\n\
    0,10,0,4,8,100,199,0\n1,20,1,4,8,100,199,0\n2,30,2,8,16,100,199,0\n3,40,3,2,4,0,0,1\n4,41,4,8,16,0,0,1\n";

fn file(fleet: &Fleet, name: &str, text: &str) -> anyhow::Result<String> {
    let path = fleet.scratch().join(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// Six busy guests and a database on host-1; host-3 is tainted, and in the same rack as host-1.
fn make(fleet: &Fleet) -> anyhow::Result<()> {
    // What was measured by the time of a question must not show in its answer.
    fleet.ok(&["cluster", "set", "--weight", "load=0"])?;
    fleet.ok(&["host", "set", "host-1", "--rack", "r1"])?;
    fleet.ok(&["host", "set", "host-2", "--rack", "r2", "--zone", "z1", "--label", "disk=ssd"])?;
    fleet.ok(&["host", "set", "host-3", "--rack", "r1", "--taint", "gpu=yes"])?;
    fleet.ok(&["host", "cordon", "host-2"])?;
    let sim = ["--driver", "test", "--sim-boot-ms", "1", "--start"];
    fleet.ok(&[&["vm", "create", "db-1", "--mem-mib", "1024", "--label", "app=db"], &sim[..]].concat())?;
    for number in 1..=6 {
        let name = format!("busy-{number}");
        let size = ["--mem-mib", "2048", "--cpus", "4", "--sim-cpu-percent", "300"];
        fleet.ok(&[&["vm", "create", &name], &size[..], &sim[..]].concat())?;
    }
    for name in ["db-1", "busy-6"] {
        fleet.wait_phase(name, VmPhase::Running, LIMIT)?;
    }
    fleet.ok(&["host", "uncordon", "host-2"])?;
    Ok(())
}

/// The text without what was measured by then, and without which of the busy six, who are alike, comes first.
fn steady(text: &str) -> String {
    let alike =
        (1..=6).fold(text.to_owned(), |text, number| text.replace(&format!("busy-{number}"), "busy-N"));
    let text = alike.as_str();
    let measured =
        |line: &str| ["measured", "percent", "% of", "at revision "].iter().any(|word| line.contains(word));
    let line = |line: &str| {
        if measured(line) {
            line.chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }).collect()
        } else {
            line.to_owned()
        }
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

fn recommendations(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.ok(&["cluster", "set", "--balance", "recommend", "--balance-level", "5"])?;
    let open = eventually("two recommendations", LIMIT, || {
        let open = names(fleet, "Open").map_err(|e| e.to_string())?;
        if open.len() >= 2 { Ok(open) } else { Err(format!("{open:?}")) }
    })?;
    fleet.ok(&["balance", "dismiss", &open[0]])?;
    fleet.ok(&["balance", "apply", &open[1]])?;
    let refused = fleet.run(&["balance", "apply", &open[0]])?;
    ensure!(refused.status == 5 && refused.stderr.contains("Dismissed"), "{}", refused.stderr);
    eventually("the approved move is made", LIMIT, || {
        let moves = fleet.migrations().map_err(|e| e.to_string())?;
        let moved = moves.iter().filter(|m| m.spec.grounds.is_some() && m.status.outcome.is_some()).count();
        if moved == 1 { Ok(()) } else { Err(format!("{moved} of {} moves", moves.len())) }
    })?;
    let history = fleet.json(&["balance", "history"])?;
    let name = history["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let told = fleet.ok(&["explain", "migration", &name])?;
    ensure!(told.contains("predicted: pain of the fleet") && told.contains("CPUs of demand"), "{told}");
    fleet.ok(&["cluster", "set", "--balance", "off"])?;
    eventually("what is still open expires", LIMIT, || {
        let open = names(fleet, "Open").map_err(|e| e.to_string())?;
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
    })?;
    ensure!(names(fleet, "Dismissed")? == [open[0].clone()], "a dismissed one stays so");
    Ok(())
}

fn names(fleet: &Fleet, phase: &str) -> anyhow::Result<Vec<String>> {
    let list = fleet.json(&["balance", "list"])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let chosen = items.iter().filter(|item| item["status"]["phase"] == phase);
    Ok(chosen.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect::<Vec<_>>())
}
