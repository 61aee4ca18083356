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
    let before = ticks(&fleet)?;
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
    let before = ticks(&fleet)?;
    fleet.ok(&["host", "drain", "host-1", "--wait", "--wait-s", "180"])?;
    let hosts = guests_per_host(&fleet)?;
    ensure!(!hosts.contains_key(&"host-1".parse::<Name>()?), "{hosts:?}");
    nobody_was_stopped(&fleet, &before)?;
    explanations_name_numbers(&fleet)
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

fn ticks(fleet: &Fleet) -> anyhow::Result<BTreeMap<&'static str, Ring>> {
    let ring = |name: &'static str| {
        let disk = fleet.disk_file(&fleet.vm(name)?)?;
        Ok((name, fleet.ticks_beyond(&disk, None, BOOT_LIMIT)?))
    };
    BUSY.into_iter().map(ring).collect()
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
