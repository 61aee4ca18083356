//! Checks of a guest that moves from host 0 to host 1: never two may run it, and it is never lost.

use dunlin_model::Incarnation;
use dunlin_model::capabilities::DriverPower;
use dunlin_model::migration::MigrationLimits;

use super::world::{FIRST, World, refused};
use super::{Check, Checked, check, ensure};
use crate::error::DriverErrorKind::{Busy, Refused};
use crate::hypervisor::{Guest, Run, Send};

const MOVES: &[DriverPower] = &[DriverPower::Migrate];
const MOVES_PAUSED: &[DriverPower] = &[DriverPower::Migrate, DriverPower::Pause];

pub(super) const CHECKS: &[Check] = &[
    check!(
        moves,
        "migrate_out migrate_switch resume",
        "a guest moves; the source stops first, for good",
        MOVES
    ),
    check!(waits, "start(Incoming)", "a destination waits, and cannot be made to run", MOVES),
    check!(
        cancelled_early,
        "migrate_cancel",
        "cancelled while it copies, it runs on and can be sent again",
        MOVES
    ),
    check!(cancelled_late, "migrate_cancel", "cancelled at the switch-over, it runs on", MOVES),
    check!(paused, "pause migrate_out migrate_cancel", "a paused guest stays paused", MOVES_PAUSED),
    check!(destination_dies, "migrate_out", "the destination dies while it copies: it runs on", MOVES),
    check!(back_at_switchover, "adopt_incarnation resume", "handed back at the switch-over", MOVES),
    check!(
        back_after_switch,
        "migrate_switch resume",
        "destination gone when told to switch: handed back",
        MOVES
    ),
    check!(
        back_after_arrival,
        "adopt_incarnation resume",
        "destination gone after all arrived: handed back",
        MOVES
    ),
    check!(
        parked_there,
        "pause resume",
        "a received guest can stand still before it ever runs",
        MOVES_PAUSED
    ),
    check!(parked_back, "adopt_incarnation pause resume", "handed back, it can stand still", MOVES_PAUSED),
    check!(ever_ran, "resume list", "that a received guest ran outlives agent and process", MOVES),
    check!(sent_is_adopted, "list resume", "a new driver of the source does not run what was sent", MOVES),
];

fn copying(guest: &Guest) -> bool {
    matches!(guest.send, Some(Send::Copying(_))) && guest.run == Run::Running
}

fn at_switchover(guest: &Guest) -> bool {
    matches!(guest.send, Some(Send::AtSwitchover(_))) && guest.run == Run::Outgoing
}

fn cancelled(guest: &Guest) -> bool {
    matches!(guest.send, Some(Send::Cancelled(_))) && guest.run == Run::Running
}

/// Brings the guest of this check to the switch-over.
async fn to_switchover(world: &World<'_>) -> Checked {
    let limits = MigrationLimits::default();
    let endpoint = world.pair(&limits).await?;
    let mut ear = world.ear(0);
    world.host(0).migrate_out(world.vm(), endpoint, limits).await?;
    ear.hear("AtSwitchover", at_switchover).await?;
    Ok(())
}

/// Brings the guest of this check to where it has arrived and nobody runs it.
async fn to_arrival(world: &World<'_>) -> Checked {
    to_switchover(world).await?;
    let (mut source, mut destination) = (world.ear(0), world.ear(1));
    world.host(0).migrate_switch(world.vm()).await?;
    source.hear("Sent", |guest| matches!(guest.send, Some(Send::Sent(_)))).await?;
    destination.hear("Arrived", |guest| guest.run == Run::Arrived).await?;
    Ok(())
}

/// The source's process carries on.
async fn hand_back(world: &World<'_>) -> Checked {
    let (host, vm) = (world.host(0), world.vm());
    let back = Incarnation(FIRST.0 + 2);
    refused("resume on the source without a hand-back", host.resume(vm).await, &[Refused])?;
    host.adopt_incarnation(vm, back).await?;
    host.adopt_incarnation(vm, back).await?;
    refused("an older incarnation", host.adopt_incarnation(vm, FIRST).await, &[Refused])?;
    let mut ear = world.ear(0);
    for _ in 0..2 {
        let guest = host.resume(vm).await?;
        ensure!(guest.run == Run::Running && guest.incarnation == back, "handed back as {guest:?}");
    }
    ear.hear("Running after the hand-back", |guest| guest.run == Run::Running).await?;
    Ok(())
}

async fn moves(world: &mut World<'_>) -> Checked {
    let vm = world.vm();
    let (a, b) = (world.host(0), world.host(1));
    let limits = MigrationLimits::default();
    let endpoint = world.pair(&limits).await?;
    let mut source = world.ear(0);
    a.migrate_out(vm, endpoint.clone(), limits.clone()).await?;
    a.migrate_out(vm, endpoint.clone(), limits.clone()).await?;
    source.hear("Copying", |guest| matches!(guest.send, Some(Send::Copying(_)))).await?;
    source.hear("AtSwitchover", at_switchover).await?;
    a.migrate_out(vm, endpoint, limits).await?;
    refused("resume at the switch-over", a.resume(vm).await, &[Refused])?;
    let waiting = world.guest(1).await?;
    ensure!(
        waiting.run == Run::Incoming && !waiting.ever_ran,
        "before the switch-over the destination is {waiting:?}"
    );
    let mut destination = world.ear(1);
    a.migrate_switch(vm).await?;
    a.migrate_switch(vm).await?;
    let sent = source.hear("Sent", |guest| matches!(guest.send, Some(Send::Sent(_)))).await?;
    ensure!(sent.run == Run::Outgoing, "sent, and {:?}", sent.run);
    let arrived = destination.hear("Arrived", |guest| guest.run == Run::Arrived).await?;
    ensure!(!arrived.ever_ran && arrived.incarnation == FIRST.next(), "arrived as {arrived:?}");
    refused("resume of what was sent", a.resume(vm).await, &[Refused])?;
    refused("cancel of what was sent", a.migrate_cancel(vm).await, &[Refused])?;
    for _ in 0..2 {
        let running = b.resume(vm).await?;
        ensure!(running.run == Run::Running && running.ever_ran, "resumed as {running:?}");
    }
    destination.hear("Running after Arrived", |guest| guest.run == Run::Running && guest.ever_ran).await?;
    let stopped_at_ms = match sent.send {
        Some(Send::Sent(figures)) => figures.stopped_at_ms,
        _ => 0,
    };
    let resumed_at_ms = world.guest(1).await?.resumed_at_ms;
    ensure!(
        stopped_at_ms > 0 && resumed_at_ms >= Some(stopped_at_ms),
        "stopped at {stopped_at_ms} ms and resumed at {resumed_at_ms:?}"
    );
    a.destroy(vm).await?;
    ensure!(world.guest(1).await?.run == Run::Running, "it stopped when the source was destroyed");
    Ok(())
}

async fn waits(world: &mut World<'_>) -> Checked {
    let limits = MigrationLimits::default();
    let first = world.host(1).start(world.incoming(&limits)).await?;
    let again = world.host(1).start(world.incoming(&limits)).await?;
    ensure!(first.run == Run::Incoming && first.endpoint.is_some(), "waits as {first:?}");
    ensure!(first == again, "started again as {again:?}, was {first:?}");
    refused("resume of nothing received", world.host(1).resume(world.vm()).await, &[Refused, Busy])?;
    let mut ear = world.ear(1);
    world.host(1).destroy(world.vm()).await?;
    let ended = ear.hear("Ended", |guest| matches!(guest.run, Run::Ended(..))).await?;
    ensure!(!ended.ever_ran && ended.endpoint.is_none(), "it never ran, and its end says {ended:?}");
    Ok(())
}

async fn cancelled_early(world: &mut World<'_>) -> Checked {
    let limits = world.fixture.slow();
    let endpoint = world.pair(&limits).await?;
    let mut ear = world.ear(0);
    world.host(0).migrate_out(world.vm(), endpoint, limits).await?;
    ear.hear("Copying", copying).await?;
    world.host(0).migrate_cancel(world.vm()).await?;
    world.host(0).migrate_cancel(world.vm()).await?;
    ear.hear("Cancelled, and Running", cancelled).await?;
    let (b, vm) = (world.host(1), world.vm());
    b.destroy(vm).await?;
    b.forget(vm).await?;
    to_arrival(world).await
}

async fn cancelled_late(world: &mut World<'_>) -> Checked {
    to_switchover(world).await?;
    let mut ear = world.ear(0);
    world.host(0).migrate_cancel(world.vm()).await?;
    ear.hear("Cancelled, and Running", cancelled).await?;
    refused("a switch of what was cancelled", world.host(0).migrate_switch(world.vm()).await, &[Refused])
}

async fn paused(world: &mut World<'_>) -> Checked {
    let limits = MigrationLimits::default();
    let endpoint = world.pair(&limits).await?;
    let (host, vm) = (world.host(0), world.vm());
    host.pause(vm).await?;
    let mut ear = world.ear(0);
    host.migrate_out(vm, endpoint, limits).await?;
    ear.hear("AtSwitchover", at_switchover).await?;
    host.migrate_cancel(vm).await?;
    let guest = ear.hear("Cancelled", |guest| matches!(guest.send, Some(Send::Cancelled(_)))).await?;
    ensure!(guest.run == Run::Paused, "it was paused, and is {:?} after the cancel", guest.run);
    Ok(())
}

async fn destination_dies(world: &mut World<'_>) -> Checked {
    let limits = world.fixture.slow();
    let endpoint = world.pair(&limits).await?;
    let mut ear = world.ear(0);
    world.host(0).migrate_out(world.vm(), endpoint, limits).await?;
    ear.hear("Copying", copying).await?;
    world.host(1).destroy(world.vm()).await?;
    ear.hear("Cancelled, and Running", cancelled).await?;
    Ok(())
}

async fn back_at_switchover(world: &mut World<'_>) -> Checked {
    to_switchover(world).await?;
    world.host(1).destroy(world.vm()).await?;
    hand_back(world).await
}

async fn back_after_switch(world: &mut World<'_>) -> Checked {
    to_switchover(world).await?;
    world.host(1).destroy(world.vm()).await?;
    let mut ear = world.ear(0);
    world.host(0).migrate_switch(world.vm()).await?;
    // Which of the two depends on when the kernel learns that the other end is gone; the guest stands still in both.
    let told = |guest: &Guest| matches!(guest.send, Some(Send::Holding(_) | Send::Sent(_)));
    let guest = ear.hear("Holding or Sent", told).await?;
    ensure!(guest.run == Run::Outgoing, "it is {:?} after a switch that failed", guest.run);
    hand_back(world).await
}

async fn back_after_arrival(world: &mut World<'_>) -> Checked {
    to_arrival(world).await?;
    let mut ear = world.ear(1);
    world.host(1).destroy(world.vm()).await?;
    let ended = ear.hear("Ended", |guest| matches!(guest.run, Run::Ended(..))).await?;
    ensure!(!ended.ever_ran, "it never ran, and its end says it did");
    hand_back(world).await
}

async fn parked_there(world: &mut World<'_>) -> Checked {
    to_arrival(world).await?;
    let (b, vm) = (world.host(1), world.vm());
    for _ in 0..2 {
        let guest = b.pause(vm).await?;
        ensure!(guest.run == Run::Paused && !guest.ever_ran, "parked as {guest:?}");
    }
    let guest = b.resume(vm).await?;
    ensure!(guest.run == Run::Running && guest.ever_ran, "resumed as {guest:?}");
    Ok(())
}

async fn parked_back(world: &mut World<'_>) -> Checked {
    to_arrival(world).await?;
    world.host(1).destroy(world.vm()).await?;
    let (a, vm) = (world.host(0), world.vm());
    a.adopt_incarnation(vm, Incarnation(FIRST.0 + 2)).await?;
    for _ in 0..2 {
        let guest = a.pause(vm).await?;
        ensure!(guest.run == Run::Paused, "handed back to stand still, and is {guest:?}");
    }
    let guest = a.resume(vm).await?;
    ensure!(guest.run == Run::Running, "resumed as {guest:?}");
    Ok(())
}

async fn ever_ran(world: &mut World<'_>) -> Checked {
    to_arrival(world).await?;
    let b = world.reopen(1).await?;
    let found = world.guest(1).await?;
    ensure!(found.run == Run::Arrived && !found.ever_ran, "found as {found:?}, had arrived");
    b.resume(world.vm()).await?;
    drop(b);
    world.reopen(1).await?;
    let found = world.guest(1).await?;
    ensure!(found.run == Run::Running && found.ever_ran, "found as {found:?}, had been resumed");
    let mut ear = world.ear(1);
    world.fixture.kill(1, world.vm()).await;
    let ended = ear.hear("Ended", |guest| matches!(guest.run, Run::Ended(..))).await?;
    ensure!(ended.ever_ran, "it ran, and its end says it never did");
    Ok(())
}

async fn sent_is_adopted(world: &mut World<'_>) -> Checked {
    to_arrival(world).await?;
    let a = world.reopen(0).await?;
    let found = world.guest(0).await?;
    let sent = matches!(found.send, Some(Send::Sent(_))) && found.run == Run::Outgoing;
    ensure!(sent, "found as {found:?}, had been sent");
    refused("resume of what was sent", a.resume(world.vm()).await, &[Refused])?;
    a.destroy(world.vm()).await?;
    Ok(())
}
