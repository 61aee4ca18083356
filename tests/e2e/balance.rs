//! The scheduler on real guests: a skewed fleet becomes level, and a host is emptied under load.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use dunlin_model::Name;
use dunlin_model::migration::{MigrationCause, MigrationOutcome};
use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions, Ring, eventually};

/// Guests that want a CPU each: more than their host has.
const BUSY: [&str; 3] = ["busy-1", "busy-2", "busy-3"];
/// Two samples, the balancer's period, and migrations beside guests that leave no CPU idle.
const LEVEL_LIMIT: Duration = Duration::from_secs(180);

/// Under `auto` three busy guests on one of three hosts end up on three, without one being stopped or rebooted; then a
/// drain empties a host under that load; and what explains all this names numbers that were measured.
#[test]
fn real_qemu_a_skewed_fleet_becomes_level_and_a_host_is_emptied() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 3, drivers: "qemu" })?;
    fleet.import_guest()?;
    for host in ["host-2", "host-3"] {
        fleet.ok(&["host", "cordon", host])?;
    }
    for name in BUSY {
        fleet.create_guest(name, "image=disk,format=raw", "tick.burn=1", &[])?;
    }
    for name in BUSY {
        fleet.wait_phase(name, VmPhase::Running, BOOT_LIMIT)?;
    }
    for host in ["host-2", "host-3"] {
        fleet.ok(&["host", "uncordon", host])?;
    }
    let before = ticks(&fleet, &BUSY)?;
    let hosts = BTreeMap::from([("host-1".parse()?, 3)]);
    ensure!(guests_per_host(&fleet)? == hosts, "they are not all on host-1: {:?}", guests_per_host(&fleet)?);

    fleet.ok(&["cluster", "set", "--balance", "auto", "--balance-level", "5"])?;
    eventually("a guest on each host", LEVEL_LIMIT, || {
        let hosts = guests_per_host(&fleet).map_err(|e| e.to_string())?;
        let moving = fleet.json(&["migration", "list"]).map_err(|e| e.to_string())?;
        if hosts.len() == 3 && hosts.values().all(|count| *count == 1) {
            Ok(())
        } else {
            Err(format!("{hosts:?} {moving}"))
        }
    })?;
    fleet.ok(&["cluster", "set", "--balance", "off"])?;
    nobody_was_stopped(&fleet, &before)?;
    every_move_has_its_grounds(&fleet)?;

    let plan = fleet.json(&["host", "drain", "host-1", "--dry-run"])?;
    ensure!(plan["vms"] == 1 && plan["moves"][0]["from"] == "host-1", "{plan}");
    let before = ticks(&fleet, &BUSY)?;
    fleet.ok(&["host", "drain", "host-1", "--wait", "--wait-s", "180"])?;
    let hosts = guests_per_host(&fleet)?;
    ensure!(!hosts.contains_key(&"host-1".parse::<Name>()?), "{hosts:?}");
    nobody_was_stopped(&fleet, &before)?;
    explanations_name_numbers(&fleet)
}

/// Guests of the host that is emptied; two of them leave it no CPU idle.
const LEAVING: [(&str, &str); 5] =
    [("a", "tick.burn=1"), ("b", ""), ("c", "tick.burn=1"), ("d", ""), ("e", "")];
/// A drain of that many emulated guests one after the other, the loss of a leader included.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// A drain of a busy host ends as its dry run said, although the leader is killed while it goes on, and whoever waits is told
/// how far it is; a drain that is cancelled half-way gives the host back as it was. No guest misses a tick.
#[test]
fn real_qemu_a_drain_outlives_its_leader_and_can_be_called_back() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 3, drivers: "qemu" })?;
    fleet.import_guest()?;
    // One at a time, and scores that no measurement changes between the plan and its end.
    fleet.ok(&["cluster", "set", "--migrations-per-host", "1", "--weight", "load=0"])?;
    for host in ["host-2", "host-3"] {
        fleet.ok(&["host", "cordon", host])?;
    }
    for (name, knobs) in LEAVING {
        fleet.create_guest(name, "image=disk,format=raw", knobs, &[])?;
    }
    for (name, _) in LEAVING {
        fleet.wait_phase(name, VmPhase::Running, BOOT_LIMIT)?;
    }
    for host in ["host-2", "host-3"] {
        fleet.ok(&["host", "uncordon", host])?;
    }
    let names = LEAVING.map(|(name, _)| name);
    let before = ticks(&fleet, &names)?;

    let plan = fleet.json(&["host", "drain", "host-1", "--dry-run"])?;
    let mut foretold = BTreeMap::new();
    for planned in plan["moves"].as_array().context("moves")? {
        foretold.insert(planned["vm"].as_str().context("vm")?.to_owned(), planned["to"].clone());
    }
    ensure!(foretold.len() == LEAVING.len(), "{plan}");
    fleet.ok(&["host", "drain", "host-1"])?;
    moved_off(&fleet, "host-1", 1)?;
    let leader = fleet.leader()?;
    fleet.controller(leader)?.kill()?;
    fleet.up()?;
    eventually("host-1 is empty", DRAIN_LIMIT, || {
        let task = drain_of(&fleet, "host-1").map_err(|e| e.to_string())?;
        if task["status"]["phase"] == "Succeeded" { Ok(()) } else { Err(task.to_string()) }
    })?;
    for name in names {
        let vm = fleet.vm(name)?;
        let (host, wanted) = (vm.status.host_name.context("it runs")?, &foretold[name]);
        ensure!(wanted == host.as_str(), "{name} went to {host}, and was to go to {wanted}: {plan}");
    }
    nobody_was_stopped(&fleet, &before)?;
    a_drain_is_called_back(&fleet)?;
    nobody_was_stopped(&fleet, &before)
}

/// host-2 is drained and called back after the first move: what is left stays, and the host takes VMs again; host-1 was
/// cordoned before its drain, and stays so.
fn a_drain_is_called_back(fleet: &Fleet) -> anyhow::Result<()> {
    let crowded = if on(fleet, "host-2")? >= on(fleet, "host-3")? { "host-2" } else { "host-3" };
    let before = on(fleet, crowded)?;
    ensure!(before >= 3, "only {before} guests are on {crowded}");
    fleet.ok(&["host", "drain", crowded])?;
    moved_off(fleet, crowded, 1)?;
    let task = drain_of(fleet, crowded)?;
    fleet.ok(&["task", "cancel", task["metadata"]["name"].as_str().context("a name")?])?;
    let task = eventually("the drain is over", DRAIN_LIMIT, || {
        let task = drain_of(fleet, crowded).map_err(|e| e.to_string())?;
        let moving = fleet.json(&["migration", "list"]).map_err(|e| e.to_string())?;
        let over =
            |m: &serde_json::Value| m["status"]["phase"] == "Done" || m["status"]["phase"] == "Aborted";
        let still = moving["items"].as_array().is_some_and(|all| all.iter().all(over));
        if task["status"]["phase"] == "Cancelled" && still {
            Ok(task)
        } else {
            Err(format!("{task} {moving}"))
        }
    })?;
    let left = on(fleet, crowded)?;
    ensure!(left > 0 && left < before, "{left} of {before} guests are left after {task}");
    let host = fleet.json(&["host", "show", crowded])?;
    ensure!(host["spec"]["cordoned"] == false, "{host}");

    let told = fleet.run(&["host", "drain", "host-1", "--wait"])?;
    ensure!(told.status == 0, "an empty host is drained at once: {told:?}");
    let host = fleet.json(&["host", "show", "host-1"])?;
    ensure!(host["spec"]["cordoned"] == true, "{host}");
    Ok(())
}

/// VMs that run on a host.
fn on(fleet: &Fleet, host: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for (name, _) in LEAVING {
        count += usize::from(fleet.vm(name)?.status.host_name.is_some_and(|on| on.as_str() == host));
    }
    Ok(count)
}

/// The newest drain of that host.
fn drain_of(fleet: &Fleet, host: &str) -> anyhow::Result<serde_json::Value> {
    let list = fleet.json(&["task", "list"])?;
    let tasks = list["items"].as_array().context("items")?.iter();
    let drains = tasks.filter(|task| task["spec"]["name"] == host && task["status"]["drain"].is_object());
    let newest = drains.max_by_key(|task| task["metadata"]["revision"].as_u64());
    newest.cloned().context("it is not drained")
}

/// Waits until a drain has moved so many VMs.
fn moved_off(fleet: &Fleet, host: &str, count: u64) -> anyhow::Result<()> {
    eventually("the drain is under way", DRAIN_LIMIT, || {
        let task = drain_of(fleet, host).map_err(|e| e.to_string())?;
        let moved = task["status"]["drain"]["moved"].as_u64().unwrap_or(0);
        if moved >= count { Ok(()) } else { Err(task.to_string()) }
    })
}

fn guests_per_host(fleet: &Fleet) -> anyhow::Result<BTreeMap<Name, u32>> {
    let mut hosts = BTreeMap::new();
    for name in BUSY {
        let vm = fleet.vm(name)?;
        ensure!(vm.status.phase == VmPhase::Running, "{name} is {}", vm.status.phase);
        if vm.status.migration.is_none() {
            *hosts.entry(vm.status.host_name.context("a running VM has a host")?).or_default() += 1;
        }
    }
    Ok(hosts)
}

fn ticks(fleet: &Fleet, names: &[&'static str]) -> anyhow::Result<BTreeMap<&'static str, Ring>> {
    let ring = |name: &&'static str| {
        let name = *name;
        let disk = fleet.disk_file(&fleet.vm(name)?)?;
        Ok((name, fleet.ticks_beyond(&disk, None, BOOT_LIMIT)?))
    };
    names.iter().map(ring).collect()
}

/// Every guest ticks on, from its first tick and in its first boot.
fn nobody_was_stopped(fleet: &Fleet, before: &BTreeMap<&'static str, Ring>) -> anyhow::Result<()> {
    for (name, ring) in before {
        let disk = fleet.disk_file(&fleet.vm(name)?)?;
        let after = fleet.ticks_beyond(&disk, Some(ring.last_seq), BOOT_LIMIT)?;
        ensure!((after.first_seq, after.boots) == (0, 1), "{name} was started anew: {after:?}");
    }
    Ok(())
}

fn every_move_has_its_grounds(fleet: &Fleet) -> anyhow::Result<()> {
    let moves = fleet.migrations()?;
    ensure!(moves.len() >= 2, "only {} moves", moves.len());
    for migration in &moves {
        let name = &migration.metadata.name;
        ensure!(migration.spec.cause == MigrationCause::Balance, "{name} was not the balancer's");
        ensure!(migration.status.outcome == Some(MigrationOutcome::Moved), "{name} has not moved its VM");
        let grounds = migration.spec.grounds.as_ref().context("a move without grounds")?;
        let effect = &grounds.predicted;
        ensure!(effect.pain_after_milli < effect.pain_before_milli, "{name}: {effect:?}");
        ensure!(effect.from_percent_before > effect.to_percent_before, "{name}: {effect:?}");
        ensure!(migration.status.chosen.is_some(), "{name} does not say why its destination was chosen");
    }
    let told = fleet.ok(&["balance", "history"])?;
    ensure!(told.lines().count() > moves.len(), "{told}");
    Ok(())
}

fn explanations_name_numbers(fleet: &Fleet) -> anyhow::Result<()> {
    let told = fleet.json(&["explain", "vm", "busy-1"])?;
    let facts = told["facts"].to_string();
    ensure!(facts.contains("asks for 1 vCPU and 128 MiB"), "{facts}");
    ensure!(facts.contains("CPUs on average") && !facts.contains("0.00 CPUs on average"), "{facts}");
    ensure!(told["decided"]["winner"]["score"].as_i64().is_some_and(|score| score > 0), "{told}");
    ensure!(told["hosts"].as_array().is_some_and(|hosts| hosts.len() == 3), "{told}");
    let told = fleet.ok(&["explain", "host", "host-1"])?;
    ensure!(told.contains("cordoned") && told.contains("carries 0 VMs"), "{told}");
    let told = fleet.json(&["cluster", "capacity", "--mem-mib", "128"])?;
    ensure!(told["fits"].as_u64().is_some_and(|fits| fits > 0) && told["survives"] == true, "{told}");
    Ok(())
}
