//! Bringing a guest up: record, definition, process; and clearing away what did not come up.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::capabilities::{DriverName, DriverPower};
use dunlin_model::migration::Endpoint;
use dunlin_model::vm::DiskBus;
use dunlin_model::{Name, VmId};

use super::client::Client;
use super::foreign::Mark;
use super::landing::Landing;
use super::link::{Site, domain};
use super::offers::Offers;
use super::record::Record;
use super::wire::Fault;
use super::wire::calls::{
    DomainCreate, DomainCreateWithFlags, DomainDefineXml, DomainDestroy, DomainGetBlockInfo, DomainGetXml,
    DomainIsActive, DomainRestore, DomainRestoreFlags, DomainResume, DomainUndefineFlags,
};
use super::wire::fault::NO_DOMAIN;
use super::{console, fail, fail_io, failed, foreign, launch, moves};
use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Guest, Launch, LaunchMode};

/// A start with everything in it; a restore reads all memory from disk.
const START_DEADLINE: Duration = Duration::from_secs(900);
/// Come up with vCPUs standing still.
const CREATE_PAUSED: u32 = 1;
/// What a restored guest does, whatever it did when it was saved.
const RESTORE_RUNNING: u32 = 2;
const RESTORE_PAUSED: u32 = 4;
/// A definition with passwords in it, whatever runs.
pub(super) const XML_SECURE_INACTIVE: u32 = 1 | XML_INACTIVE;
pub(super) const XML_INACTIVE: u32 = 2;
/// Undefine with everything kept of it: managed save, snapshots' and checkpoints' metadata, firmware variables.
const UNDEFINE_ALL: u32 = 1 | 2 | 4 | 16;

/// See [`crate::Hypervisor::start`].
pub(super) async fn start(site: &Arc<Site>, launch: Launch) -> DriverResult<Guest> {
    let vm = launch.vm;
    let _claim = site.guests.claim(vm, "start")?;
    let (client, offers) = site.connected("start").await?;
    let landing = landing(site, &launch, &offers)?;
    if let Some(record) = site.guests.record(vm).filter(|record| record.started) {
        site.look(&client, vm, "start").await?;
        if let Some(guest) = stands_for(site, &record, &launch)? {
            return Ok(guest);
        }
    }
    let log = site.guests.shelf.log(vm);
    let log = log
        .to_str()
        .ok_or_else(|| fail("start", DriverErrorKind::Refused, "the agent's folder is not text"))?;
    let theirs = theirs(site, &client, vm).await?;
    let xml = launch::domain_of(&launch, &offers, log, theirs.as_deref())?;
    let record = Record {
        ever_ran: !launch.paused && landing.is_none(),
        incoming: landing,
        has_display: launch.spec.vnc.is_some(),
        adopted: theirs.is_some(),
        ..Record::new(vm, launch.name.clone(), launch.incarnation)
    };
    site.guests.place(record).await?;
    match bring_up(site, &client, &launch, xml).await {
        Ok(()) => {}
        Err(error) => {
            if theirs.is_some() {
                // It was off before, so what came up is this start's.
                let _ = client.call(&DomainDestroy { domain: domain(vm) }).await;
            }
            clear(site, &client, vm, "start").await?;
            return Err(error);
        }
    }
    if !launch.paused && !matches!(launch.mode, LaunchMode::Incoming { .. }) {
        site.guests.note(vm, |seen| seen.resumed_at_ms = Some(super::verbs::now_ms()));
    }
    console::serve(site, vm, &offers);
    let disks = launch.disks.iter().map(|disk| (&disk.name, disk.bus, disk.shared || disk.read_only));
    note_disks(site, &client, vm, disks).await?;
    site.guests.came_up(vm, "start").await?;
    site.look(&client, vm, "start").await?;
    let gone = || fail("start", DriverErrorKind::Refused, "it was gone as soon as it had come up");
    site.guests.guest(vm).ok_or_else(gone)
}

/// The definition of a guest that is not the fleet's own: of one that was adopted, and has ended. It is never written anew.
async fn theirs(site: &Site, client: &Client, vm: VmId) -> DriverResult<Option<String>> {
    let verb = "start";
    if site.guests.record(vm).is_some_and(|record| !record.adopted) {
        return Ok(None);
    }
    let xml = match client.call(&DomainGetXml { domain: domain(vm), flags: XML_SECURE_INACTIVE }).await {
        Ok(xml) => xml,
        Err(error) if error.is(NO_DOMAIN) => return Ok(None),
        Err(error) => return Err(failed(verb, &error)),
    };
    if client.call(&DomainIsActive { domain: domain(vm) }).await.map_err(|e| failed(verb, &e))? != 0 {
        return Err(fail(
            verb,
            DriverErrorKind::Busy,
            "libvirt runs a domain with this UUID that is not ours",
        ));
    }
    Ok(Some(xml))
}

/// Where a guest that comes from another host is waited for.
fn landing(site: &Site, launch: &Launch, offers: &Offers) -> DriverResult<Option<Endpoint>> {
    let LaunchMode::Incoming { listen, .. } = &launch.mode else { return Ok(None) };
    if !offers.powers.contains(&DriverPower::Migrate) {
        return Err(DriverError::unsupported(DriverName::Libvirt, "start"));
    }
    let log = site.guests.shelf.log(launch.vm);
    let landing = Landing::of(launch, listen, &log.to_string_lossy());
    Ok(Some(landing.endpoint(&site.config.peer_at(listen))))
}

/// Notes the disks that only this host has, and how large they look to the guest. Of each its name, its bus, and whether
/// others reach it or nobody writes to it.
pub(super) async fn note_disks<'a>(
    site: &Arc<Site>,
    client: &Client,
    vm: VmId,
    disks: impl Iterator<Item = (&'a Name, DiskBus, bool)> + Clone,
) -> DriverResult<()> {
    let names = launch::targets(disks.clone().map(|(name, bus, _)| (name, bus)));
    let mut local = Vec::new();
    for (target, (name, ..)) in names.iter().zip(disks).filter(|(_, (.., common))| !common) {
        let ask = DomainGetBlockInfo { domain: domain(vm), path: target.to_string(), flags: 0 };
        // Not every hypervisor knows; then the destination asks the file.
        let bytes = client.call(&ask).await.map_or(0, |info| info.capacity);
        local.push((target.to_string(), name.clone(), bytes));
    }
    site.guests.amend(vm, "start", |record| record.local_disks = local).await
}

/// The guest that is there already, when it is the one that is wanted.
fn stands_for(site: &Site, record: &Record, launch: &Launch) -> DriverResult<Option<Guest>> {
    let words =
        format!("a guest of {} is there, {} was to be started", record.incarnation, launch.incarnation);
    let guest = site.guests.guest(launch.vm);
    let ended = site.guests.record(launch.vm).is_none_or(|record| record.ended.is_some());
    match launch.incarnation.cmp(&record.incarnation) {
        std::cmp::Ordering::Less => Err(fail("start", DriverErrorKind::Refused, words)),
        std::cmp::Ordering::Equal => Ok(guest),
        std::cmp::Ordering::Greater if ended => Ok(None),
        std::cmp::Ordering::Greater => Err(fail("start", DriverErrorKind::Busy, words)),
    }
}

async fn bring_up(site: &Site, client: &Client, launch: &Launch, xml: String) -> DriverResult<()> {
    let verb = "start";
    let vm = launch.vm;
    let say = |error: &super::ClientError| failed(verb, error);
    let active = client.call(&DomainIsActive { domain: domain(vm) }).await;
    if active.is_ok_and(|active| active != 0) {
        return Err(fail(
            verb,
            DriverErrorKind::Busy,
            "libvirt runs a domain with this UUID that is not ours",
        ));
    }
    client.call(&DomainDefineXml { xml: xml.clone(), flags: 0 }).await.map_err(|e| say(&e))?;
    if site.guests.record(vm).is_some_and(|record| record.adopted) {
        foreign::mark(client, vm, Some(Mark { incarnation: launch.incarnation, adopted: true })).await?;
    }
    match &launch.mode {
        LaunchMode::Restore(file) => {
            let (_, offers) = site.connected(verb).await?;
            if !offers.powers.contains(&DriverPower::Save) {
                return Err(DriverError::unsupported(DriverName::Libvirt, verb));
            }
            // A missing file would be libvirt's to complain about, in words of its own machine.
            std::fs::metadata(file)
                .map_err(|e| fail(verb, DriverErrorKind::Refused, format!("{}: {e}", file.display())))?;
            restore(client, launch, file.to_string_lossy().into_owned()).await
        }
        // Defined is all: the source's agent has the daemon start it when it comes.
        LaunchMode::Incoming { .. } => Ok(()),
        LaunchMode::Boot if launch.paused => {
            let create = DomainCreateWithFlags { domain: domain(vm), flags: CREATE_PAUSED };
            match client.call_long(&create, START_DEADLINE).await {
                // It must not run for an instant, so it cannot be started and then stopped.
                Err(error) if error.fault().is_some_and(Fault::is_about_flags) => Err(fail(
                    verb,
                    DriverErrorKind::Unsupported,
                    "this hypervisor cannot start a guest paused",
                )),
                done => done.map(drop).map_err(|e| say(&e)),
            }
        }
        LaunchMode::Boot => {
            client.call_long(&DomainCreate { domain: domain(vm) }, START_DEADLINE).await.map_err(|e| say(&e))
        }
    }
}

async fn restore(client: &Client, launch: &Launch, from: String) -> DriverResult<()> {
    let say = |error: &super::ClientError| failed("start", error);
    let flags = if launch.paused { RESTORE_PAUSED } else { RESTORE_RUNNING };
    let restore = DomainRestoreFlags { from: from.clone(), xml: None, flags };
    match client.call_long(&restore, START_DEADLINE).await {
        Err(error) if error.fault().is_some_and(Fault::is_about_flags) => {}
        done => return done.map_err(|e| say(&e)),
    }
    // A driver that brings it back as it was saved, whatever one says. It may run now, and may not have to.
    if launch.paused {
        return Err(DriverError::unsupported(DriverName::Libvirt, "start"));
    }
    client.call_long(&DomainRestore { from }, START_DEADLINE).await.map_err(|e| say(&e))?;
    match client.call(&DomainResume { domain: domain(launch.vm) }).await {
        Err(error) if error.fault().is_none() => Err(say(&error)),
        // It runs already.
        _ => Ok(()),
    }
}

/// Removes a guest that did not come up, and all that was made for it but its log.
pub(super) async fn clear(site: &Site, client: &Client, vm: VmId, verb: &'static str) -> DriverResult<()> {
    if site.guests.record(vm).is_some_and(|record| record.adopted) {
        // It is somebody else's: only our part in it is cleared away.
        return site.guests.remove(vm, verb);
    }
    // It may not be running, or not even defined: that is what is wanted.
    let _ = client.call(&DomainDestroy { domain: domain(vm) }).await;
    undefine(client, vm, verb).await?;
    site.guests.remove(vm, verb)
}

/// Takes a domain's definition away. Done when there is none.
pub(super) async fn undefine(client: &Client, vm: VmId, verb: &'static str) -> DriverResult<()> {
    for flags in [UNDEFINE_ALL, 0] {
        match client.call(&DomainUndefineFlags { domain: domain(vm), flags }).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is(NO_DOMAIN) => return Ok(()),
            // Not every driver knows every flag.
            Err(error) if error.fault().is_some() && flags != 0 => {}
            Err(error) => return Err(failed(verb, &error)),
        }
    }
    Ok(())
}

/// Clears away starts that an earlier agent did not finish; one that libvirt did finish is taken over.
pub(super) async fn sweep(site: &Arc<Site>, client: &Client) -> DriverResult<()> {
    for vm in site.guests.all() {
        let unfinished = site.guests.record(vm).is_some_and(|record| !record.started);
        // Somebody who starts it just now has it.
        let Ok(_claim) = site.guests.claim(vm, "list") else { continue };
        moves::take_over(site, client, vm).await?;
        if !unfinished || site.guests.record(vm).is_none_or(|record| record.started) {
            continue;
        }
        let active = client.call(&DomainIsActive { domain: domain(vm) }).await;
        if active.is_ok_and(|active| active != 0) {
            site.guests.came_up(vm, "list").await?;
        } else {
            clear(site, client, vm, "list").await?;
        }
    }
    site.guests.shelf.prepare().map_err(|e| fail_io("list", &e))
}
