//! Checks of one guest on one host: it starts, stands still, ends, is found again.

use dunlin_model::capabilities::DriverPower;
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::EndCause;
use dunlin_model::vm::{Nic, NicModel, NicNetwork};

use super::world::{FIRST, World, refused};
use super::{Check, Checked, Failed, check, ensure};
use crate::error::DriverErrorKind::{Busy, NotFound, Refused, Unsupported};
use crate::hypervisor::{Device, DeviceName, Guest, LaunchMode, LaunchNic, Run};

pub(super) const CHECKS: &[Check] = &[
    check!(probes, "probe", "it has seen a vCPU run", &[]),
    check!(starts_once, "start list", "a repeated start is done, an older incarnation refused", &[]),
    check!(starts_paused, "start resume", "started paused it has never run, resumed it has", &[]),
    check!(ends_once, "destroy forget", "destroy and forget may be repeated", &[]),
    check!(unknown, "all", "a guest that is not there is NotFound, and destroyed already", &[]),
    check!(pauses, "pause resume", "pause and resume are told and may be repeated", &[DriverPower::Pause]),
    check!(powers_off, "-", "a guest that switches itself off is told as such", &[]),
    check!(dies, "-", "a process that dies is told as such", &[]),
    check!(shuts_down, "shutdown", "the power button ends it as by itself", &[DriverPower::Shutdown]),
    check!(
        reboots,
        "reboot_on_shutdown",
        "power-off starts it again, under its incarnation",
        &[DriverPower::Shutdown]
    ),
    check!(resets, "reset", "reset restarts it, under its incarnation", &[DriverPower::Reset]),
    check!(is_adopted, "list", "a new driver finds guests as they are and commands them", &[]),
    check!(end_is_adopted, "list forget", "a new driver still knows how a guest ended", &[]),
    check!(saves, "save start", "save ends it, restore brings it back", &[DriverPower::Save]),
    check!(save_fails, "save", "a save that fails leaves it running and no file", &[DriverPower::Save]),
    check!(start_fails, "start", "a start that fails leaves nothing", &[DriverPower::Save]),
    check!(
        is_refitted,
        "plug unplug",
        "a running guest is given a NIC and lets go of it, each once",
        &[DriverPower::HotPlug]
    ),
    check!(console_answers, "console", "its console can be connected", &[DriverPower::Console]),
    check!(is_sampled, "sample", "a guest with a process is measured", &[]),
    check!(lacks, "all", "verbs of a lacking power are Unsupported", &[]),
];

fn ended(guest: &Guest, cause: EndCause) -> bool {
    matches!(&guest.run, Run::Ended(found, _) if *found == cause)
}

async fn probes(world: &mut World<'_>) -> Checked {
    let found = world.host(0).probe().await;
    ensure!(found.name == world.host(0).name(), "probe is of {}", found.name);
    ensure!(found.accels.iter().any(|accel| accel.usable), "no usable accelerator: {:?}", found.accels);
    Ok(())
}

async fn starts_once(world: &mut World<'_>) -> Checked {
    let mut ear = world.ear(0);
    let first = world.start().await?;
    ensure!(first.run == Run::Running && first.ever_ran, "started as {first:?}");
    ear.hear("Running after start", |guest| guest.run == Run::Running && guest.incarnation == FIRST).await?;
    let again = world.start().await?;
    ensure!(again.pid == first.pid && again.run == Run::Running, "started again as {again:?}, was {first:?}");
    let older = dunlin_model::Incarnation(FIRST.0 - 1);
    refused("an older incarnation", world.host(0).start(world.launch(0, older)).await, &[Refused])?;
    let newer = world.host(0).start(world.launch(0, FIRST.next())).await;
    refused("a newer incarnation beside a process", newer, &[Busy, Refused])?;
    let listed = world.guest(0).await?;
    ensure!(listed.incarnation == FIRST && listed.run == Run::Running, "listed as {listed:?}");
    Ok(())
}

async fn starts_paused(world: &mut World<'_>) -> Checked {
    let launch = crate::Launch { paused: true, ..world.launch(0, FIRST) };
    let guest = world.host(0).start(launch).await?;
    ensure!(guest.run == Run::Paused && !guest.ever_ran, "started as {guest:?}");
    let guest = world.host(0).resume(world.vm()).await?;
    ensure!(guest.run == Run::Running && guest.ever_ran, "resumed as {guest:?}");
    Ok(())
}

async fn ends_once(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let (host, vm) = (world.host(0), world.vm());
    refused("forgetting a guest that lives", host.forget(vm).await, &[Refused, Busy])?;
    let mut ear = world.ear(0);
    host.destroy(vm).await?;
    let guest = ear.hear("Ended(Told) after destroy", |guest| ended(guest, EndCause::Told)).await?;
    ensure!(guest.ever_ran, "it ran, and its end says it never did");
    host.destroy(vm).await?;
    ensure!(ended(&world.guest(0).await?, EndCause::Told), "an ended guest is listed until it is forgotten");
    refused("resume after the end", host.resume(vm).await, &[NotFound, Refused])?;
    host.forget(vm).await?;
    host.forget(vm).await?;
    ensure!(world.find(0).await?.is_none(), "a forgotten guest is listed");
    let next = host.start(world.launch(0, FIRST.next())).await?;
    ensure!(next.run == Run::Running, "started after its end as {next:?}");
    Ok(())
}

async fn unknown(world: &mut World<'_>) -> Checked {
    let (host, vm) = (world.host(0), world.vm());
    let powers = host.probe().await.powers;
    host.destroy(vm).await?;
    host.forget(vm).await?;
    refused("resume of nothing", host.resume(vm).await, &[NotFound])?;
    refused("adopt_incarnation of nothing", host.adopt_incarnation(vm, FIRST).await, &[NotFound])?;
    if powers.contains(&DriverPower::Pause) {
        refused("pause of nothing", host.pause(vm).await, &[NotFound])?;
    }
    if powers.contains(&DriverPower::Shutdown) {
        refused("shutdown of nothing", host.shutdown(vm).await, &[NotFound])?;
    }
    if powers.contains(&DriverPower::Reset) {
        refused("reset of nothing", host.reset(vm).await, &[NotFound])?;
    }
    if powers.contains(&DriverPower::Migrate) {
        refused("migrate_switch of nothing", host.migrate_switch(vm).await, &[NotFound])?;
    }
    Ok(())
}

async fn pauses(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let (host, vm) = (world.host(0), world.vm());
    let mut ear = world.ear(0);
    for _ in 0..2 {
        let guest = host.pause(vm).await?;
        ensure!(guest.run == Run::Paused, "paused as {guest:?}");
    }
    ear.hear("Paused", |guest| guest.run == Run::Paused).await?;
    for _ in 0..2 {
        let guest = host.resume(vm).await?;
        ensure!(guest.run == Run::Running, "resumed as {guest:?}");
    }
    ear.hear("Running after Paused", |guest| guest.run == Run::Running).await?;
    Ok(())
}

async fn powers_off(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let mut ear = world.ear(0);
    world.fixture.power_off(0, world.vm()).await;
    ear.hear("Ended(GuestShutdown)", |guest| ended(guest, EndCause::GuestShutdown)).await?;
    Ok(())
}

async fn dies(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let mut ear = world.ear(0);
    world.fixture.kill(0, world.vm()).await;
    let guest = ear.hear("Ended(Died)", |guest| ended(guest, EndCause::Died)).await?;
    ensure!(guest.ever_ran, "it ran, and its end says it never did");
    Ok(())
}

async fn shuts_down(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let mut ear = world.ear(0);
    world.host(0).shutdown(world.vm()).await?;
    if world.fixture.hears_power_button() {
        ear.hear("Ended(GuestShutdown)", |guest| ended(guest, EndCause::GuestShutdown)).await?;
    }
    Ok(())
}

async fn reboots(world: &mut World<'_>) -> Checked {
    let started = world.start().await?;
    let (host, vm) = (world.host(0), world.vm());
    host.reboot_on_shutdown(vm, true).await?;
    host.reboot_on_shutdown(vm, true).await?;
    let mut ear = world.ear(0);
    world.fixture.power_off(0, vm).await;
    let guest = ear.hear("a reboot", |guest| guest.reboots == 1 && guest.run == Run::Running).await?;
    let same = guest.pid == started.pid || !world.fixture.keeps_process();
    ensure!(same && guest.incarnation == FIRST, "rebooted as {guest:?}, was {started:?}");
    host.reboot_on_shutdown(vm, false).await?;
    world.fixture.power_off(0, vm).await;
    ear.hear("Ended(GuestShutdown)", |guest| ended(guest, EndCause::GuestShutdown)).await?;
    Ok(())
}

async fn resets(world: &mut World<'_>) -> Checked {
    let started = world.start().await?;
    let mut ear = world.ear(0);
    world.host(0).reset(world.vm()).await?;
    let guest = ear.hear("a reboot", |guest| guest.reboots == 1).await?;
    let same = guest.pid == started.pid || !world.fixture.keeps_process();
    ensure!(same && guest.run == Run::Running, "reset to {guest:?}, was {started:?}");
    Ok(())
}

async fn is_adopted(world: &mut World<'_>) -> Checked {
    let started = world.start().await?;
    let host = world.reopen(0).await?;
    let found = world.guest(0).await?;
    // When it began to run may be forgotten.
    let known = |guest: &Guest| Guest { resumed_at_ms: None, ..guest.clone() };
    ensure!(known(&found) == known(&started), "found as {found:?}, was {started:?}");
    let mut ear = world.ear(0);
    world.fixture.kill(0, world.vm()).await;
    ear.hear("Ended(Died) of an adopted guest", |guest| ended(guest, EndCause::Died)).await?;
    host.forget(world.vm()).await?;
    Ok(())
}

async fn end_is_adopted(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let mut ear = world.ear(0);
    world.fixture.power_off(0, world.vm()).await;
    ear.hear("Ended(GuestShutdown)", |guest| ended(guest, EndCause::GuestShutdown)).await?;
    drop(ear);
    let host = world.reopen(0).await?;
    let found = world.guest(0).await?;
    ensure!(ended(&found, EndCause::GuestShutdown) && found.ever_ran, "found as {found:?}");
    host.forget(world.vm()).await?;
    Ok(())
}

async fn saves(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let (host, vm) = (world.host(0), world.vm());
    let file = world.fixture.scratch(0).join("saved");
    let mut ear = world.ear(0);
    let bytes = host.save(vm, file.clone()).await?;
    ear.hear("Ended(Told) after save", |guest| ended(guest, EndCause::Told)).await?;
    let length = std::fs::metadata(&file).map_err(|e| Failed(format!("no saved file: {e}")))?.len();
    ensure!(bytes == length && length > 0, "save says {bytes} bytes, the file has {length}");
    let again = host.save(vm, file.clone()).await?;
    ensure!(again == bytes, "saved again: {again} bytes, was {bytes}");
    host.forget(vm).await?;
    let launch = crate::Launch { mode: LaunchMode::Restore(file), ..world.launch(0, FIRST.next()) };
    let guest = host.start(launch).await?;
    ensure!(guest.run == Run::Running && guest.ever_ran, "restored as {guest:?}");
    Ok(())
}

async fn save_fails(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let file = world.fixture.scratch(0).join("no-such-folder").join("saved");
    let saved = world.host(0).save(world.vm(), file.clone()).await;
    ensure!(saved.is_err(), "saved into a folder that is not there");
    let guest = world.guest(0).await?;
    ensure!(guest.run == Run::Running && !file.exists(), "after a failed save: {guest:?}");
    Ok(())
}

async fn start_fails(world: &mut World<'_>) -> Checked {
    let mode = LaunchMode::Restore(world.fixture.scratch(0).join("no-such-file"));
    let launch = crate::Launch { mode, ..world.launch(0, FIRST) };
    let started = world.host(0).start(launch).await;
    ensure!(started.is_err(), "restored from a file that is not there");
    let found = world.find(0).await?;
    ensure!(found.is_none(), "a failed start left {found:?}");
    world.start().await?;
    Ok(())
}

async fn is_refitted(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let (host, vm) = (world.host(0), world.vm());
    let index = world.launch(0, FIRST).nics.len();
    let card = Nic { mac: None, model: NicModel::default(), network: NicNetwork::User };
    let nic = || Device::Nic { index, card: card.clone(), end: LaunchNic::User };
    host.plug(vm, nic()).await?;
    let with = world.guest(0).await?;
    ensure!(with.layout.is_some(), "it has one device more, and sits as before: {with:?}");
    host.plug(vm, nic()).await?;
    ensure!(world.guest(0).await? == with, "plugged again, it is {:?}", world.guest(0).await?);
    drop(host);
    let host = world.reopen(0).await?;
    host.plug(vm, nic()).await?;
    ensure!(world.guest(0).await?.layout == with.layout, "a new driver plugs it in again");
    let until = tokio::time::Instant::now() + world.fixture.deadline();
    // A guest that still boots does not hear that it is to let go.
    while let Err(error) = host.unplug(vm, DeviceName::Nic(index)).await {
        ensure!(error.kind == Busy && tokio::time::Instant::now() < until, "unplug: {error}");
    }
    host.unplug(vm, DeviceName::Nic(index)).await?;
    let without = world.guest(0).await?;
    ensure!(without.layout != with.layout && without.run == Run::Running, "unplugged it is {without:?}");
    Ok(())
}

async fn console_answers(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let (socket, _log) = world.host(0).console(world.vm())?;
    let connected = tokio::net::UnixStream::connect(&socket).await;
    connected.map(drop).map_err(|e| Failed(format!("{}: {e}", socket.display())))
}

async fn is_sampled(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let vm = world.vm();
    let sampled = world.host(0).sample().await?;
    ensure!(sampled.iter().any(|sample| sample.vm == vm && sample.rss_mib > 0), "sampled {sampled:?}");
    world.host(0).destroy(vm).await?;
    let sampled = world.host(0).sample().await?;
    ensure!(sampled.iter().all(|sample| sample.vm != vm), "sampled after its end");
    Ok(())
}

async fn lacks(world: &mut World<'_>) -> Checked {
    world.start().await?;
    let (host, vm) = (world.host(0), world.vm());
    let powers = host.probe().await.powers;
    let lacks = |power| !powers.contains(&power);
    if lacks(DriverPower::Pause) {
        refused("pause", host.pause(vm).await, &[Unsupported])?;
    }
    if lacks(DriverPower::Shutdown) {
        refused("shutdown", host.shutdown(vm).await, &[Unsupported])?;
        refused("reboot_on_shutdown", host.reboot_on_shutdown(vm, true).await, &[Unsupported])?;
    }
    if lacks(DriverPower::Reset) {
        refused("reset", host.reset(vm).await, &[Unsupported])?;
    }
    if lacks(DriverPower::Save) {
        let file = world.fixture.scratch(0).join("saved");
        refused("save", host.save(vm, file).await, &[Unsupported])?;
    }
    if lacks(DriverPower::Migrate) {
        let limits = MigrationLimits::default();
        let endpoint = Endpoint { memory: "tcp:127.0.0.1:1".to_owned(), disks: String::new() };
        refused("migrate_out", host.migrate_out(vm, endpoint, limits.clone()).await, &[Unsupported])?;
        refused("migrate_switch", host.migrate_switch(vm).await, &[Unsupported])?;
        refused("migrate_cancel", host.migrate_cancel(vm).await, &[Unsupported])?;
        refused("start Incoming", world.host(1).start(world.incoming(&limits)).await, &[Unsupported])?;
    }
    if lacks(DriverPower::HotPlug) {
        refused("unplug", host.unplug(vm, DeviceName::Nic(0)).await, &[Unsupported])?;
    }
    if lacks(DriverPower::Console) {
        refused("console", host.console(vm), &[Unsupported])?;
    }
    let guest = world.guest(0).await?;
    ensure!(guest.run == Run::Running, "after unsupported verbs: {guest:?}");
    Ok(())
}
