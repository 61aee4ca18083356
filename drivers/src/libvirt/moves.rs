//! Sending a guest to another host's libvirt.
//!
//! The agent that sends leads libvirt's own migration, version 3, step by step, with one connection to either daemon:
//!
//! ```text
//!            source daemon                destination daemon
//!   Begin        | document, cookie            |
//!   Prepare      |                             | QEMU waits
//!   Perform      | disks and memory flow; then the source stands still, whole       -> AtSwitchover
//!   Finish       |                             | it may run: it stands paused, told as Arrived     (migrate_switch)
//!   (destroy)    | the source's process ends   |                                      (the agent, once it runs there)
//! ```
//! DECISION: not the one peer-to-peer call. That call goes through to the end by itself: the guest would run at the
//! destination before the hand-over is committed. Led from here, the destination cannot run the guest before Finish, and
//! even then it is left paused for its own agent; and the source is kept whole until the agent destroys it. Never do two
//! run: up to Finish only the source can, after it only what the destination's agent resumes.
//!
//! When this agent dies, both daemons see its connections close: the destination's throws away what waits without having
//! been finished, and the source's lets go of its job and leaves a guest that was stopped standing still. What comes after
//! decides by the record: before the switch it goes on here, after it it is held.
//! Needs: the agent's machine reaches the other daemon (TLS by default, [`super::LibvirtConfig::peer`]), and QEMU the
//! other's QEMU. libvirt cannot be told to wait before it stops the guest, so the stand-still begins with the last pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dunlin_model::VmId;
use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationLimits};
use dunlin_model::observed::SendProgress;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Client, ClientError, Uri};
use super::landing::{Landing, incarnation_of, is_adopted, name_of, renamed};
use super::link::{Site, domain};
use super::record::{Outgoing, Record, Stage};
use super::start::XML_SECURE_INACTIVE;
use super::verbs::now_ms;
use super::wire::calls::{
    DomainAbortJob, DomainDefineXml, DomainGetJobStats, DomainGetXml, DomainMigrateBegin,
    DomainMigrateConfirm, DomainMigrateFinish, DomainMigratePerform, DomainMigratePrepare,
    DomainMigrateSetMaxDowntime, DomainResume, number_param, text_param,
};
use super::wire::types::{Cookie, JobParams, Param};
use super::{fail, failed};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Run};

/// How libvirt numbers what is asked of a migration.
mod flag {
    pub(super) const LIVE: u32 = 1;
    pub(super) const PAUSED: u32 = 1 << 5;
    pub(super) const NON_SHARED_DISK: u32 = 1 << 6;
    /// The job lasts from Begin to Confirm, and ends with our connection.
    pub(super) const CHANGE_PROTECTION: u32 = 1 << 8;
    /// Which disks are shared is known here, and how they are cached is not libvirt's to judge.
    pub(super) const UNSAFE: u32 = 1 << 9;
}

/// Documents with passwords in them, and without what only this host has.
const XML_SECURE_MIGRATABLE: u32 = 1 | XML_MIGRATABLE;
const XML_MIGRATABLE: u32 = 8;
/// Between two looks at how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Starting a QEMU that waits: a second; four when that daemon sees this QEMU for the first time.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
/// Giving the word, or taking everything back.
const FINISH_DEADLINE: Duration = Duration::from_secs(60);
/// How long a sending may take to end once it is called off.
const CANCEL_DEADLINE: Duration = Duration::from_secs(45);

/// The sendings under way.
#[derive(Debug, Default)]
pub(super) struct Moves(Mutex<BTreeMap<VmId, Arc<Move>>>);

/// One of them.
#[derive(Debug)]
struct Move {
    task: OnceLock<AbortHandle>,
    finished: watch::Sender<bool>,
    /// Once the source stands still.
    ways: OnceLock<Ways>,
    begun: Instant,
}

/// The two connections, and what the daemons have said to each other.
#[derive(Clone, Debug)]
struct Ways {
    near: Client,
    far: Client,
    params: JobParams,
    cookie: Cookie,
    flags: u32,
}

impl Moves {
    fn get(&self, vm: VmId) -> Option<Arc<Move>> {
        self.0.lock().expect("no code panics while it holds this lock").get(&vm).cloned()
    }

    /// Lets go of a sending; its connections close.
    pub(super) fn drop_of(&self, vm: VmId) {
        let dropped = self.0.lock().expect("no code panics while it holds this lock").remove(&vm);
        if let Some(task) = dropped.as_ref().and_then(|dropped| dropped.task.get()) {
            task.abort();
        }
    }

    /// Lets go of all, as the death of the agent would.
    pub(super) fn clear(&self) {
        let all: Vec<VmId> =
            self.0.lock().expect("no code panics while it holds this lock").keys().copied().collect();
        all.into_iter().for_each(|vm| self.drop_of(vm));
    }
}

pub(super) async fn migrate_out(
    site: &Arc<Site>,
    vm: VmId,
    endpoint: Endpoint,
    limits: MigrationLimits,
) -> DriverResult<()> {
    let verb = "migrate_out";
    let record = site.guests.living(vm, verb)?;
    let refused = |words: &str| fail(verb, DriverErrorKind::Refused, words);
    match record.outgoing.as_ref().map(|outgoing| (&outgoing.stage, &outgoing.endpoint)) {
        None | Some((Stage::Cancelled(_), _)) => {}
        Some((_, there)) if *there == endpoint => return Ok(()),
        Some(_) => return Err(refused("it is being sent elsewhere")),
    }
    let _claim = site.guests.claim(vm, verb)?;
    let client = site.client(verb).await?;
    site.look(&client, vm, verb).await?;
    let was_running = match site.guests.guest(vm).map(|guest| guest.run) {
        Some(Run::Running) => true,
        Some(Run::Paused) => false,
        other => return Err(refused(&format!("it cannot be sent as it is: {other:?}"))),
    };
    let (uri, landing) = Landing::read(&endpoint).map_err(|words| refused(&words))?;
    let incarnation = record.incarnation;
    let outgoing =
        Outgoing { endpoint, limits: limits.clone(), incarnation, was_running, stage: Stage::Copying };
    let begin = |record: &mut Record| record.outgoing = Some(outgoing);
    site.guests.amend(vm, verb, begin).await?;
    site.guests.note(vm, |seen| (seen.progress, seen.stopped_at_ms) = (SendProgress::default(), None));
    site.guests.tell(vm);
    let (finished, _) = watch::channel(false);
    let moving =
        Arc::new(Move { task: OnceLock::new(), finished, ways: OnceLock::new(), begun: Instant::now() });
    site.moves.0.lock().expect("no code panics while it holds this lock").insert(vm, Arc::clone(&moving));
    let plan = Plan { vm, uri, landing, limits, record };
    let task = tokio::spawn(run(Arc::clone(site), Arc::clone(&moving), plan));
    moving.task.get_or_init(|| task.abort_handle());
    Ok(())
}

struct Plan {
    vm: VmId,
    uri: Uri,
    landing: Landing,
    limits: MigrationLimits,
    record: Record,
}

/// Copies until the source stands still, or it has failed and goes on.
async fn run(site: Arc<Site>, moving: Arc<Move>, plan: Plan) {
    let vm = plan.vm;
    let stage = match copy(&site, &plan).await {
        Ok(ways) => {
            moving.ways.get_or_init(|| ways);
            site.guests.note(vm, |seen| seen.stopped_at_ms = seen.stopped_at_ms.or(Some(now_ms())));
            Stage::AtSwitchover
        }
        Err(words) => Stage::Cancelled(words),
    };
    if let Stage::Cancelled(_) = stage
        && let Ok(client) = site.client("migrate_out").await
    {
        // Told once it is seen to go on.
        let _ = site.look(&client, vm, "migrate_out").await;
    }
    if let Err(error) = set(&site, vm, stage).await {
        tracing::warn!(%vm, %error, "how far a sending is was not written down");
    }
    moving.finished.send_replace(true);
}

async fn set(site: &Arc<Site>, vm: VmId, stage: Stage) -> DriverResult<()> {
    let change = |record: &mut Record| {
        if let Some(outgoing) = &mut record.outgoing {
            outgoing.stage = stage;
        }
    };
    let changed = site.guests.amend(vm, "migrate_out", change).await;
    site.guests.tell(vm);
    changed
}

async fn copy(site: &Site, plan: &Plan) -> Result<Ways, String> {
    let say = |error: ClientError| error.to_string();
    let (near, _) = Client::open(&site.config.uri, site.config.login.as_ref()).await.map_err(say)?;
    let (far, _) = Client::open(&plan.uri, site.config.login.as_ref()).await.map_err(say)?;
    let domain = domain(plan.vm);
    // A destination that was told to let go has no definition any more, or another one's.
    let ask = DomainGetXml { domain: domain.clone(), flags: 0 };
    let waits = far.call(&ask).await.unwrap_or_default();
    if incarnation_of(&waits) != Some(plan.landing.incarnation) {
        return Err("the destination does not wait for it".to_owned());
    }
    // Not every hypervisor can be told.
    let downtime =
        DomainMigrateSetMaxDowntime { domain: domain.clone(), ms: plan.limits.downtime_ms, flags: 0 };
    let _ = near.call(&downtime).await;
    let ask = DomainGetXml { domain: domain.clone(), flags: XML_SECURE_MIGRATABLE };
    let runs = near.call(&ask).await.map_err(say)?;
    let xml = plan.landing.transplant(&runs)?;
    // It is waited for under the name it has in the fleet.
    let name = name_of(&waits).unwrap_or_else(|| plan.record.name.to_string());
    let local =
        plan.record.local_disks.iter().map(|(target, ..)| text_param("migrate_disks", target.as_str()));
    let mut common: Vec<Param> = local.collect();
    let mut flags = flag::LIVE | flag::PAUSED | flag::CHANGE_PROTECTION | flag::UNSAFE;
    if !common.is_empty() {
        flags |= flag::NON_SHARED_DISK;
    }
    common.push(text_param("destination_name", name.as_str()));
    common.push(text_param("listen_address", plan.landing.address.as_str()));
    if plan.limits.bandwidth_mib_s > 0 {
        common.push(number_param("bandwidth", plan.limits.bandwidth_mib_s));
    }
    if plan.record.adopted || is_adopted(&runs) {
        // Its definition is its owner's, and has more in it than the destination can know: it waits for it by that.
        let ask = DomainGetXml { domain: domain.clone(), flags: XML_SECURE_INACTIVE | XML_MIGRATABLE };
        let kept = plan.landing.transplant(&near.call(&ask).await.map_err(say)?)?;
        far.call(&DomainDefineXml { xml: renamed(&kept, &name), flags: 0 }).await.map_err(say)?;
    }
    let with = |more: &[(&str, &str)]| {
        let more = more.iter().map(|(field, text)| text_param(field, *text));
        xdr_list(common.iter().cloned().chain(more).collect())
    };
    let begin =
        DomainMigrateBegin { domain: domain.clone(), params: with(&[("destination_xml", &xml)]), flags };
    let begun = near.call(&begin).await.map_err(say)?;
    let address = tcp(&plan.landing.address);
    let params = with(&[("destination_xml", &begun.xml), ("migrate_uri", &address)]);
    let prepare = DomainMigratePrepare { params, cookie: begun.cookie, flags };
    let prepared = far.call_long(&prepare, PREPARE_DEADLINE).await.map_err(say)?;
    let there = prepared.uri.unwrap_or(address);
    let params = with(&[("destination_xml", &begun.xml), ("migrate_uri", &there)]);
    let ways = Ways { near, far, params, cookie: prepared.cookie, flags };
    match perform(site, plan, &ways).await {
        Ok(cookie) => Ok(Ways { cookie, ..ways }),
        Err(words) => {
            take_back(site, plan.vm, &ways, false).await;
            Err(words)
        }
    }
}

fn xdr_list(params: Vec<Param>) -> JobParams {
    super::wire::xdr::List(params)
}

fn tcp(address: &str) -> String {
    if address.contains(':') { format!("tcp://[{address}]") } else { format!("tcp://{address}") }
}

/// Lets everything flow, and tells how far it is.
async fn perform(site: &Site, plan: &Plan, ways: &Ways) -> Result<Cookie, String> {
    let perform = DomainMigratePerform {
        domain: domain(plan.vm),
        destination: None,
        params: ways.params.clone(),
        cookie: ways.cookie.clone(),
        flags: ways.flags,
    };
    let limit = Duration::from_secs(plan.limits.timeout_s);
    let performed = ways.near.call_long(&perform, limit);
    tokio::pin!(performed);
    loop {
        tokio::select! {
            done = &mut performed => return done.map_err(|error| error.to_string()),
            () = sleep(PROGRESS_EVERY) => {
                let stats = DomainGetJobStats { domain: domain(plan.vm), flags: 0 };
                if let Ok(stats) = ways.near.call(&stats).await {
                    site.guests.note(plan.vm, |seen| seen.progress = progress(&stats.params.0));
                    site.guests.tell(plan.vm);
                }
            }
        }
    }
}

fn progress(params: &[Param]) -> SendProgress {
    let number = |field: &str| {
        let found = params.iter().find(|param| param.field == field);
        found.and_then(|param| param.value.number()).unwrap_or_default()
    };
    SendProgress {
        remaining_bytes: number("memory_remaining"),
        total_bytes: number("memory_total"),
        transferred_bytes: number("memory_processed"),
        disk_bytes: number("disk_processed"),
        disk_total_bytes: number("disk_total"),
        dirty_mib_s: number("memory_dirty_rate").saturating_mul(number("memory_page_size")) >> 20,
    }
}

/// Calls a sending off on both sides: what waits there ends, and the guest goes on here as it was.
async fn take_back(site: &Site, vm: VmId, ways: &Ways, performed: bool) {
    // A job of its own that still runs after a deadline would hold the domain for ever.
    let _ = ways.near.call(&DomainAbortJob { domain: domain(vm) }).await;
    let cookie = if performed { ways.cookie.clone() } else { Cookie::default() };
    let finish = DomainMigrateFinish {
        params: ways.params.clone(),
        cookie: cookie.clone(),
        flags: ways.flags,
        cancelled: 1,
    };
    // The other daemon may be gone, and its guest with it; without Finish it never runs.
    if let Err(error) = ways.far.call_long(&finish, FINISH_DEADLINE).await {
        tracing::debug!(%vm, %error, "the destination was told that nothing comes");
    }
    let confirm = DomainMigrateConfirm {
        domain: domain(vm),
        params: ways.params.clone(),
        cookie: Cookie::default(),
        flags: ways.flags,
        cancelled: 1,
    };
    if let Err(error) = ways.near.call_long(&confirm, FINISH_DEADLINE).await {
        tracing::warn!(%vm, %error, uri = %site.config.uri_text, "the source was told that nothing went");
    }
}

pub(super) async fn migrate_switch(site: &Arc<Site>, vm: VmId) -> DriverResult<()> {
    let verb = "migrate_switch";
    let record = site.guests.living(vm, verb)?;
    let refused = |words: &str| Err(fail(verb, DriverErrorKind::Refused, words));
    let Some(outgoing) = record.outgoing else { return refused("it is not being sent") };
    match outgoing.stage {
        Stage::Sent(_) => return Ok(()),
        Stage::AtSwitchover => {}
        Stage::Copying => return refused("it is still being copied"),
        Stage::Switching => return refused("it is being switched"),
        Stage::Holding(words) | Stage::Cancelled(words) => return refused(&words),
    }
    let _claim = site.guests.claim(vm, verb)?;
    set(site, vm, Stage::Switching).await?;
    let moving = site.moves.get(vm);
    let stage = match moving.as_ref().and_then(|moving| Some((moving, moving.ways.get()?))) {
        None => Stage::Holding("the connection to the destination is gone".to_owned()),
        Some((moving, ways)) => {
            let (params, cookie) = (ways.params.clone(), ways.cookie.clone());
            let finish = DomainMigrateFinish { params, cookie, flags: ways.flags, cancelled: 0 };
            match ways.far.call_long(&finish, FINISH_DEADLINE).await {
                Ok(_) => Stage::Sent(figures(site, vm, moving)),
                Err(error) => Stage::Holding(error.to_string()),
            }
        }
    };
    set(site, vm, stage).await
}

fn figures(site: &Site, vm: VmId, moving: &Move) -> MigrationFigures {
    let seen = site.guests.seen(vm).unwrap_or_default();
    let stopped_at_ms = seen.stopped_at_ms.unwrap_or_default();
    MigrationFigures {
        downtime_ms: now_ms().saturating_sub(stopped_at_ms),
        total_ms: u64::try_from(moving.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        transferred_bytes: seen.progress.transferred_bytes,
        disk_bytes: seen.progress.disk_bytes,
        stopped_at_ms,
    }
}

pub(super) async fn migrate_cancel(site: &Arc<Site>, vm: VmId) -> DriverResult<()> {
    let verb = "migrate_cancel";
    let stage = |record: Record| record.outgoing.map(|outgoing| outgoing.stage);
    let refused = || Err(fail(verb, DriverErrorKind::Refused, "it has been switched over"));
    if let Some(Stage::Copying) = stage(site.guests.living(vm, verb)?) {
        stop_copy(site, vm).await?;
    }
    let _claim = site.guests.claim(vm, verb)?;
    match stage(site.guests.living(vm, verb)?) {
        None | Some(Stage::Cancelled(_)) => return Ok(()),
        Some(Stage::AtSwitchover) => {}
        Some(Stage::Copying) => return Err(fail(verb, DriverErrorKind::Deadline, "the copy does not end")),
        Some(Stage::Switching | Stage::Sent(_) | Stage::Holding(_)) => return refused(),
    }
    if let Some(ways) = site.moves.get(vm).as_ref().and_then(|moving| moving.ways.get()) {
        take_back(site, vm, ways, true).await;
    }
    site.moves.drop_of(vm);
    let client = site.client(verb).await?;
    go_on(site, &client, vm, verb).await?;
    set(site, vm, Stage::Cancelled("called off".to_owned())).await
}

/// Ends the copy, whatever it is at.
async fn stop_copy(site: &Site, vm: VmId) -> DriverResult<()> {
    let verb = "migrate_cancel";
    let Some(moving) = site.moves.get(vm) else { return Ok(()) };
    let client = site.client(verb).await?;
    let mut finished = moving.finished.subscribe();
    let ended = timeout(CANCEL_DEADLINE, async {
        loop {
            // There may be no job yet, or it has just ended.
            let _ = client.call(&DomainAbortJob { domain: domain(vm) }).await;
            if timeout(PROGRESS_EVERY, finished.wait_for(|finished| *finished)).await.is_ok() {
                return;
            }
        }
    });
    let late = |_| fail(verb, DriverErrorKind::Deadline, "libvirt does not end the copy");
    ended.await.map_err(late)
}

/// Sees to it that a guest that ran before it was sent runs again, once libvirt has let go of it.
async fn go_on(site: &Site, client: &Client, vm: VmId, verb: &'static str) -> DriverResult<()> {
    let was_running =
        site.guests.record(vm).and_then(|record| record.outgoing).is_some_and(|out| out.was_running);
    site.look(client, vm, verb).await?;
    let stands = site.guests.seen(vm).and_then(|seen| seen.state).is_some_and(|state| state.state == 3);
    if was_running && stands {
        client.call(&DomainResume { domain: domain(vm) }).await.map_err(|e| failed(verb, &e))?;
        site.look(client, vm, verb).await?;
    }
    Ok(())
}

/// May the source's process run or be stopped by hand? Lets go of a sending that was handed back.
pub(super) async fn hand_back(site: &Arc<Site>, vm: VmId, verb: &'static str) -> DriverResult<()> {
    let record = site.guests.living(vm, verb)?;
    let Some(outgoing) = &record.outgoing else { return Ok(()) };
    match outgoing.stage {
        Stage::Copying | Stage::Cancelled(_) => return Ok(()),
        Stage::AtSwitchover | Stage::Switching | Stage::Sent(_) | Stage::Holding(_) => {}
    }
    if record.incarnation <= outgoing.incarnation {
        return Err(fail(
            verb,
            DriverErrorKind::Refused,
            "it has been sent away; only a hand-back brings it back",
        ));
    }
    // The source's daemon lets go of its job when the connection closes, and leaves the guest standing still.
    site.moves.drop_of(vm);
    site.guests.amend(vm, verb, |record| record.outgoing = None).await
}

/// After the death of an agent that was sending: before the switch the guest goes on, after it it is held.
pub(super) async fn take_over(site: &Arc<Site>, client: &Client, vm: VmId) -> DriverResult<()> {
    let Some(record) = site.guests.record(vm).filter(|record| record.ended.is_none()) else { return Ok(()) };
    if site.moves.get(vm).is_some() {
        return Ok(());
    }
    let restarted = "the agent was restarted".to_owned();
    match record.outgoing.map(|outgoing| outgoing.stage) {
        Some(Stage::Copying | Stage::AtSwitchover) => {
            let _ = client.call(&DomainAbortJob { domain: domain(vm) }).await;
            go_on(site, client, vm, "list").await?;
            set(site, vm, Stage::Cancelled(restarted)).await
        }
        Some(Stage::Switching) => set(site, vm, Stage::Holding(restarted)).await,
        _ => Ok(()),
    }
}
