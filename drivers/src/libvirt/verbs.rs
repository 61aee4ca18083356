//! The verbs of one guest that is there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dunlin_model::capabilities::DriverName;
use dunlin_model::observed::{EndCause, Sample};
use dunlin_model::{Incarnation, VmId};
use uuid::Uuid;

use super::client::Client;
use super::foreign::Mark;
use super::landing::is_adopted;
use super::link::{Site, domain};
use super::record::{Record, Stage};
use super::wire::calls::{
    ConnectGetAllDomainStats, DomainDestroy, DomainGetInfo, DomainGetXml, DomainReset, DomainResume,
    DomainSave, DomainSetLifecycleAction, DomainShutdown, DomainSuspend,
};
use super::wire::fault::{NO_DOMAIN, OPERATION_INVALID};
use super::wire::types::{DomainStats, Param};
use super::wire::xdr::List;
use super::{fail, failed, foreign, moves, start};
use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Guest, Run};

/// A save writes all memory to disk.
const SAVE_DEADLINE: Duration = Duration::from_secs(3600);
/// libvirt asks the process to end, waits ten seconds, kills it, and waits again.
const DESTROY_DEADLINE: Duration = Duration::from_secs(60);
/// Changes that are for the process, and for its definition.
pub(super) const AFFECT_LIVE: u32 = 1;
pub(super) const AFFECT_CONFIG: u32 = 2;
/// What a power-off is followed by.
const ON_POWEROFF: u32 = 0;
const ACTION_DESTROY: u32 = 0;
const ACTION_RESTART: u32 = 1;
/// An element of somebody's own in a domain's metadata.
pub(super) const METADATA_ELEMENT: i32 = 2;
/// Figures wanted of each domain: CPU time, memory, vCPUs.
const STATS: u32 = 2 | 4 | 8;
/// Only of domains that run.
const STATS_ACTIVE: u32 = 1;

/// This host's clock, ms since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The guest after a verb.
async fn seen(site: &Site, client: &Client, vm: VmId, verb: &'static str) -> DriverResult<Guest> {
    site.look(client, vm, verb).await?;
    let none = || fail(verb, DriverErrorKind::NotFound, format!("there is no guest of VM {vm}"));
    site.guests.guest(vm).ok_or_else(none)
}

pub(super) async fn shutdown(site: &Site, vm: VmId) -> DriverResult<()> {
    site.guests.living(vm, "shutdown")?;
    let client = site.client("shutdown").await?;
    client.call(&DomainShutdown { domain: domain(vm) }).await.map_err(|e| failed("shutdown", &e))
}

pub(super) async fn reboot_on_shutdown(site: &Site, vm: VmId, reboot: bool) -> DriverResult<()> {
    let verb = "reboot_on_shutdown";
    let record = site.guests.living(vm, verb)?;
    let (client, offers) = site.connected(verb).await?;
    if !offers.reboots {
        return Err(DriverError::unsupported(DriverName::Libvirt, verb));
    }
    let _claim = site.guests.claim(vm, verb)?;
    let action = if reboot { ACTION_RESTART } else { ACTION_DESTROY };
    let call = DomainSetLifecycleAction { domain: domain(vm), kind: ON_POWEROFF, action, flags: AFFECT_LIVE };
    client.call(&call).await.map_err(|e| failed(verb, &e))?;
    if record.reboot_on_shutdown != reboot {
        site.guests.amend(vm, verb, |record| record.reboot_on_shutdown = reboot).await?;
    }
    Ok(())
}

pub(super) async fn reset(site: &Site, vm: VmId) -> DriverResult<()> {
    site.guests.living(vm, "reset")?;
    let client = site.client("reset").await?;
    let reset = DomainReset { domain: domain(vm), flags: 0 };
    client.call(&reset).await.map_err(|e| failed("reset", &e))
}

pub(super) async fn destroy(site: &Site, vm: VmId) -> DriverResult<()> {
    let verb = "destroy";
    let Some(record) = site.guests.record(vm).filter(|record| record.ended.is_none()) else { return Ok(()) };
    let client = site.client(verb).await?;
    if !record.started {
        let _claim = site.guests.claim(vm, verb)?;
        return start::clear(site, &client, vm, verb).await;
    }
    // No claim: it also ends a guest that another verb is stuck with.
    site.guests.amend(vm, verb, |record| record.ending = record.ending.or(Some(EndCause::Told))).await?;
    match client.call_long(&DomainDestroy { domain: domain(vm) }, DESTROY_DEADLINE).await {
        Err(error) if !error.is(NO_DOMAIN) && !error.is(OPERATION_INVALID) => {
            return Err(failed(verb, &error));
        }
        _ => {}
    }
    site.moves.drop_of(vm);
    if record.incoming.is_some() {
        // By its definition the source sees that it is still waited for.
        start::undefine(&client, vm, verb).await?;
    }
    match seen(site, &client, vm, verb).await?.run {
        Run::Ended(..) => Ok(()),
        run => {
            Err(fail(verb, DriverErrorKind::Transient, format!("libvirt says it is gone, and it is {run:?}")))
        }
    }
}

pub(super) async fn forget(site: &Site, vm: VmId) -> DriverResult<()> {
    let verb = "forget";
    let _claim = site.guests.claim(vm, verb)?;
    let Some(record) = site.guests.record(vm) else { return Ok(()) };
    if record.ended.is_none() {
        return Err(fail(verb, DriverErrorKind::Refused, "its process is there"));
    }
    // An adopted one's definition is its owner's, unless it lives on elsewhere.
    let sent = record.outgoing.as_ref().is_some_and(|outgoing| matches!(outgoing.stage, Stage::Sent(_)));
    let client = site.client(verb).await?;
    if !sent && (record.adopted || came_adopted(&client, vm).await) {
        foreign::mark(&client, vm, None).await?;
    } else {
        start::undefine(&client, vm, verb).await?;
    }
    site.guests.remove(vm, verb)
}

/// Did it come from a host that had adopted it? Then its definition came with it.
async fn came_adopted(client: &Client, vm: VmId) -> bool {
    let ask = DomainGetXml { domain: domain(vm), flags: start::XML_SECURE_INACTIVE };
    client.call(&ask).await.is_ok_and(|xml| is_adopted(&xml))
}

pub(super) async fn pause(site: &Arc<Site>, vm: VmId) -> DriverResult<Guest> {
    let verb = "pause";
    site.guests.living(vm, verb)?;
    let _claim = site.guests.claim(vm, verb)?;
    let client = site.client(verb).await?;
    moves::hand_back(site, vm, verb).await?;
    let guest = seen(site, &client, vm, verb).await?;
    match guest.run {
        Run::Running => {}
        Run::Arrived => {
            site.guests.amend(vm, verb, |record| record.incoming = None).await?;
            return standing(seen(site, &client, vm, verb).await?, verb);
        }
        _ => return standing(guest, verb),
    }
    client.call(&DomainSuspend { domain: domain(vm) }).await.map_err(|e| failed(verb, &e))?;
    standing(seen(site, &client, vm, verb).await?, verb)
}

/// It stands still, or it has ended meanwhile.
fn standing(guest: Guest, verb: &'static str) -> DriverResult<Guest> {
    match &guest.run {
        Run::Ended(_, words) => {
            Err(fail(verb, DriverErrorKind::NotFound, format!("the guest has ended: {words}")))
        }
        Run::Incoming => Err(fail(verb, DriverErrorKind::Refused, "nothing has arrived yet")),
        _ => Ok(guest),
    }
}

pub(super) async fn resume(site: &Arc<Site>, vm: VmId) -> DriverResult<Guest> {
    let verb = "resume";
    let record = site.guests.living(vm, verb)?;
    let _claim = site.guests.claim(vm, verb)?;
    let client = site.client(verb).await?;
    moves::hand_back(site, vm, verb).await?;
    let guest = seen(site, &client, vm, verb).await?;
    if !matches!(guest.run, Run::Paused | Run::Arrived) {
        return standing(guest, verb);
    }
    if !record.ever_ran || record.incoming.is_some() {
        let runs = |record: &mut Record| (record.ever_ran, record.incoming) = (true, None);
        site.guests.amend(vm, verb, runs).await?;
    }
    client.call(&DomainResume { domain: domain(vm) }).await.map_err(|e| failed(verb, &e))?;
    site.guests.note(vm, |seen| seen.resumed_at_ms = Some(now_ms()));
    standing(seen(site, &client, vm, verb).await?, verb)
}

pub(super) async fn adopt_incarnation(site: &Site, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
    let verb = "adopt_incarnation";
    if !site.guests.may_adopt(vm, incarnation)? {
        return Ok(());
    }
    let _claim = site.guests.claim(vm, verb)?;
    site.guests.amend(vm, verb, |record| record.incarnation = incarnation).await?;
    // The record counts; the mark is for people, and for the host that it moves to.
    let Ok(client) = site.client(verb).await else { return Ok(()) };
    let adopted = site.guests.record(vm).is_some_and(|record| record.adopted);
    let adopted = adopted || came_adopted(&client, vm).await;
    let mark = Mark { incarnation, adopted };
    if let Err(error) = foreign::mark(&client, vm, Some(mark)).await {
        tracing::debug!(%vm, %error, "the incarnation is not in the domain's metadata");
    }
    Ok(())
}

/// The file a guest was saved to, when it was this one.
fn is_saved(record: &Record, file: &PathBuf) -> bool {
    record.saved.as_ref() == Some(file) && matches!(record.ended, Some((EndCause::Told, _)))
}

pub(super) async fn save(site: &Site, vm: VmId, file: PathBuf) -> DriverResult<u64> {
    let verb = "save";
    let _claim = site.guests.claim(vm, verb)?;
    if site.guests.record(vm).is_some_and(|record| is_saved(&record, &file)) {
        return durable(file).await;
    }
    site.guests.living(vm, verb)?;
    let client = site.client(verb).await?;
    let to = file.to_str().map(str::to_owned);
    let to =
        to.ok_or_else(|| fail(verb, DriverErrorKind::Refused, "libvirt takes no path that is not text"))?;
    let begun = |record: &mut Record| {
        (record.saved, record.ending) = (Some(file.clone()), Some(EndCause::Told));
    };
    site.guests.amend(vm, verb, begun).await?;
    if let Err(error) = client.call_long(&DomainSave { domain: domain(vm), to }, SAVE_DEADLINE).await {
        // Whether it is still there is seen, not guessed.
        site.guests.amend(vm, verb, |record| (record.saved, record.ending) = (None, None)).await?;
        site.look(&client, vm, verb).await?;
        let _ = std::fs::remove_file(&file);
        return Err(failed(verb, &error));
    }
    site.look(&client, vm, verb).await?;
    durable(file).await
}

/// The file's length, once it is on disk.
async fn durable(file: PathBuf) -> DriverResult<u64> {
    let synced = tokio::task::spawn_blocking(move || {
        let open = std::fs::File::open(&file)?;
        open.sync_all()?;
        if let Some(folder) = file.parent() {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(open.metadata()?.len())
    });
    let synced: std::io::Result<u64> = synced.await.expect("reading a file's length does not panic");
    synced.map_err(|e| {
        fail("save", DriverErrorKind::Refused, format!("libvirt has saved it, but the file: {e}"))
    })
}

pub(super) async fn sample(site: &Site) -> DriverResult<Vec<Sample>> {
    let verb = "sample";
    let (client, offers) = site.connected(verb).await?;
    let running = |guest: &Guest| !matches!(guest.run, Run::Ended(..));
    let living = || site.guests.list().into_iter().filter(running).map(|guest| guest.vm);
    if !offers.stats {
        return one_by_one(&client, living().collect()).await;
    }
    let ask = ConnectGetAllDomainStats { domains: List(Vec::new()), stats: STATS, flags: STATS_ACTIVE };
    let List(all) = client.call(&ask).await.map_err(|e| failed(verb, &e))?;
    let ours = |stats: &DomainStats| {
        let vm = VmId(Uuid::from_bytes(stats.domain.uuid));
        site.guests.record(vm).filter(|record| record.started && record.ended.is_none())?;
        Some(measured(vm, &stats.params.0))
    };
    let mut samples: Vec<Sample> = all.iter().filter_map(ours).collect();
    // Not every hypervisor tells its memory there.
    samples.retain(|sample| sample.rss_mib > 0);
    let told: BTreeSet<VmId> = samples.iter().map(|sample| sample.vm).collect();
    samples.extend(one_by_one(&client, living().filter(|vm| !told.contains(vm)).collect()).await?);
    Ok(samples)
}

fn measured(vm: VmId, params: &[Param]) -> Sample {
    let number =
        |field: &str| params.iter().find(|param| param.field == field).and_then(|param| param.value.number());
    let is_delay = |field: &str| field.starts_with("vcpu.") && field.ends_with(".delay");
    let delays =
        params.iter().filter(|param| is_delay(&param.field)).filter_map(|param| param.value.number());
    let memory_kib = number("balloon.rss").or_else(|| number("balloon.current")).unwrap_or_default();
    Sample {
        vm,
        cpu_ms: number("cpu.time").unwrap_or_default() / 1_000_000,
        wait_ms: delays.fold(0, u64::saturating_add) / 1_000_000,
        rss_mib: memory_kib.div_ceil(1024),
        dirty_mib_s: None,
    }
}

async fn one_by_one(client: &Client, vms: Vec<VmId>) -> DriverResult<Vec<Sample>> {
    let mut samples = Vec::new();
    for vm in vms {
        match client.call(&DomainGetInfo { domain: domain(vm) }).await {
            Ok(info) => samples.push(Sample {
                vm,
                cpu_ms: info.cpu_time_ns / 1_000_000,
                wait_ms: 0,
                rss_mib: info.memory_kib.div_ceil(1024),
                dirty_mib_s: None,
            }),
            Err(error) if error.fault().is_some() => {}
            Err(error) => return Err(failed("sample", &error)),
        }
    }
    Ok(samples)
}
