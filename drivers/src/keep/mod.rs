//! Guests whose hypervisor is a tree of processes with a small control channel: User Mode Linux, containers.
//!
//! Owns what they have in common: one folder and one record for each guest, one task that owns it, sessions that outlive
//! the agent, taking over after a restart, notices, ends that are told for good, the console's socket. What a guest is,
//! and how it is told to stand still, is the [`Backend`]'s.
//!
//! ```text
//!  start -> fork -> up -> Running <--> Paused        start paused: no process until it is resumed
//!              |            |  process gone: powered off, restarts itself, died
//!              v            v
//!       nothing is left   ended record -> forget
//! ```
//! DECISION: a guest that is started paused has no process yet. Neither hypervisor can hold one before its first
//! instruction, and a guest that has never run must not have.

mod backend;
mod console;
mod fork;
#[cfg(test)]
pub(crate) mod live;
mod owner;
mod record;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::{DriverCapabilities, DriverName, DriverPower};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::Sample;
use dunlin_model::{Incarnation, VmId};
use tokio::sync::{OnceCell, broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

pub(crate) use self::backend::{Backend, ConsoleInput, Fault, How, Live, News, Place, Reset};
use self::owner::{Answer, Ask, State, Verb};
use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Guest, Hypervisor, Launch, LaunchMode, Notice};
use crate::logs;
use crate::run_dir::RunDir;

/// A verb is one or two commands, and may wait for the one before it.
const VERB_DEADLINE: Duration = Duration::from_secs(60);
/// From fork to a guest that says it is up: 0.5 s on an idle host, tens of seconds when hundreds start at once.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Verbs waiting for one guest. The agent has one or two under way.
const ASKS_MAX: usize = 16;
/// Notices kept for a slow receiver, which then lists all guests instead.
const NOTICES_MAX: usize = 1024;

/// The driver of one backend. Dropping it leaves the guests running, to be found by the next one with the same folder.
#[derive(Debug)]
pub(crate) struct Keep<B: Backend> {
    site: Arc<Site<B>>,
    guests: Mutex<BTreeMap<VmId, Handle>>,
    adopted: OnceCell<()>,
}

/// What all guests share.
#[derive(Debug)]
struct Site<B> {
    backend: B,
    notices: broadcast::Sender<Notice>,
}

/// The driver's end of one guest.
#[derive(Clone, Debug)]
struct Handle {
    incarnation: Incarnation,
    place: Place,
    asks: mpsc::Sender<Ask>,
    state: watch::Receiver<State>,
}

impl Handle {
    fn guest(&self) -> Option<Guest> {
        match &*self.state.borrow() {
            State::Up(guest) => Some((**guest).clone()),
            State::Coming | State::Failed(_) => None,
        }
    }

    fn has_ended(&self) -> bool {
        self.state.borrow().has_ended()
    }
}

impl<B: Backend> Keep<B> {
    pub(crate) fn new(backend: B) -> Self {
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        let site = Arc::new(Site { backend, notices });
        Self { site, guests: Mutex::default(), adopted: OnceCell::new() }
    }

    /// Something that lives as long as any task of this driver does.
    #[cfg(test)]
    pub(crate) fn life(&self) -> std::sync::Weak<dyn std::any::Any + Send + Sync> {
        let site: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(&self.site) as _;
        Arc::downgrade(&site)
    }

    fn fail(verb: &'static str, kind: DriverErrorKind, message: impl Into<String>) -> DriverError {
        DriverError::new(B::NAME, verb, kind, message)
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, Handle>> {
        self.guests.lock().expect("no code panics while it holds this lock")
    }

    /// Takes over what an earlier agent left, once.
    async fn adopt(&self, verb: &'static str) -> DriverResult<()> {
        let adopt = || async {
            let handles = fork::adopt_all(&self.site).await?;
            self.guests().extend(handles);
            Ok(())
        };
        let adopted: Result<_, Fault> = self.adopted.get_or_try_init(adopt).await;
        adopted.map(drop).map_err(|fault| fault.of(B::NAME, verb))
    }

    /// Sends a verb to the guest's owner and waits for its answer.
    async fn ask(&self, vm: VmId, verb: Verb) -> DriverResult<Answer> {
        let name = verb.name();
        self.adopt(name).await?;
        let found = self.guests().get(&vm).cloned();
        let absent = || Self::fail(name, DriverErrorKind::NotFound, format!("there is no guest of VM {vm}"));
        let handle = found.ok_or_else(absent)?;
        let (reply, answer) = oneshot::channel();
        let gone = || Self::fail(name, DriverErrorKind::NotFound, "the guest's process is gone");
        let told = timeout(VERB_DEADLINE, async {
            handle.asks.send(Ask { verb, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        });
        let late = || {
            let limit_s = VERB_DEADLINE.as_secs();
            Self::fail(name, DriverErrorKind::Deadline, format!("not done within {limit_s} s"))
        };
        told.await.map_err(|_| late())?
    }

    async fn ask_guest(&self, vm: VmId, verb: Verb) -> DriverResult<Guest> {
        let name = verb.name();
        match self.ask(vm, verb).await? {
            Answer::Guest(guest) => Ok(*guest),
            Answer::Done => Err(Self::fail(name, DriverErrorKind::Refused, "the owner gave another answer")),
        }
    }

    /// Begins a start, or finds the one of this very incarnation, under way or done.
    fn claim(&self, launch: Launch) -> DriverResult<Handle> {
        let mut guests = self.guests();
        if let Some(handle) = guests.get(&launch.vm)
            && Self::stands_for(handle, launch.incarnation)?
        {
            return Ok(handle.clone());
        }
        let (handle, seat) = fork::seat(&self.site, &launch).map_err(|fault| fault.of(B::NAME, "start"))?;
        guests.insert(launch.vm, handle.clone());
        tokio::spawn(fork::bring_up(seat, launch));
        Ok(handle)
    }

    /// Is this guest of the wanted incarnation? No: its place is free. An error: it is not.
    fn stands_for(handle: &Handle, wanted: Incarnation) -> DriverResult<bool> {
        if matches!(&*handle.state.borrow(), State::Failed(_)) {
            return Ok(false);
        }
        let has = handle.guest().map_or(handle.incarnation, |guest| guest.incarnation);
        match wanted.cmp(&has) {
            Ordering::Equal => Ok(true),
            Ordering::Greater if handle.has_ended() => Ok(false),
            Ordering::Greater => {
                let message = format!("a process of incarnation {has} is still there");
                Err(Self::fail("start", DriverErrorKind::Busy, message))
            }
            Ordering::Less => {
                let message = format!("incarnation {wanted} is older than {has}, which was started here");
                Err(Self::fail("start", DriverErrorKind::Refused, message))
            }
        }
    }

    /// Refuses a verb whose power the hypervisor has not.
    fn need(power: DriverPower, verb: &'static str) -> DriverResult<()> {
        if B::POWERS.contains(&power) { Ok(()) } else { Err(DriverError::unsupported(B::NAME, verb)) }
    }
}

#[async_trait]
impl<B: Backend> Hypervisor for Keep<B> {
    fn name(&self) -> DriverName {
        B::NAME
    }

    async fn probe(&self) -> DriverCapabilities {
        self.site.backend.probe().await
    }

    async fn list(&self) -> DriverResult<Vec<Guest>> {
        self.adopt("list").await?;
        Ok(self.guests().values().filter_map(Handle::guest).collect())
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.site.notices.subscribe()
    }

    async fn start(&self, launch: Launch) -> DriverResult<Guest> {
        match launch.mode {
            LaunchMode::Boot => {}
            LaunchMode::Restore(_) => Self::need(DriverPower::Save, "restore")?,
            LaunchMode::Incoming { .. } => Self::need(DriverPower::Migrate, "migrate_in")?,
        }
        self.adopt("start").await?;
        let mut state = self.claim(launch)?.state;
        let up = async { state.wait_for(|state| !matches!(state, State::Coming)).await.map(|s| s.clone()) };
        match timeout(START_DEADLINE + VERB_DEADLINE, up).await {
            Ok(Ok(State::Up(guest))) => Ok(*guest),
            Ok(Ok(State::Failed(e))) => Err(e),
            Ok(Ok(State::Coming) | Err(_)) => {
                Err(Self::fail("start", DriverErrorKind::Transient, "the start was broken off"))
            }
            Err(_) => Err(Self::fail("start", DriverErrorKind::Deadline, "the guest is still coming up")),
        }
    }

    async fn shutdown(&self, vm: VmId) -> DriverResult<()> {
        Self::need(DriverPower::Shutdown, "shutdown")?;
        self.ask(vm, Verb::Shutdown).await.map(drop)
    }

    async fn reboot_on_shutdown(&self, vm: VmId, reboot: bool) -> DriverResult<()> {
        Self::need(DriverPower::Shutdown, "reboot_on_shutdown")?;
        self.ask(vm, Verb::RebootOnShutdown(reboot)).await.map(drop)
    }

    async fn reset(&self, vm: VmId) -> DriverResult<()> {
        Self::need(DriverPower::Reset, "reset")?;
        self.ask(vm, Verb::Reset).await.map(drop)
    }

    async fn destroy(&self, vm: VmId) -> DriverResult<()> {
        self.adopt("destroy").await?;
        match self.guests().get(&vm) {
            Some(handle) if !handle.has_ended() => {}
            _ => return Ok(()),
        }
        match self.ask(vm, Verb::Destroy).await {
            // It ended by itself before it was told to.
            Err(e) if e.kind == DriverErrorKind::NotFound => Ok(()),
            done => done.map(drop),
        }
    }

    async fn forget(&self, vm: VmId) -> DriverResult<()> {
        self.adopt("forget").await?;
        let Some(handle) = self.guests().get(&vm).cloned() else { return Ok(()) };
        if !handle.has_ended() {
            return Err(Self::fail("forget", DriverErrorKind::Busy, "its process is still there"));
        }
        handle.place.dir.remove().map_err(|e| Fault::from(e).of(B::NAME, "forget"))?;
        let mut guests = self.guests();
        if guests.get(&vm).is_some_and(|now| now.state.same_channel(&handle.state)) {
            guests.remove(&vm);
        }
        Ok(())
    }

    async fn erase_log(&self, vm: VmId) -> DriverResult<()> {
        match std::fs::remove_file(self.serial_log(vm)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Self::fail("erase_log", DriverErrorKind::Transient, e.to_string()))
            }
            _ => Ok(()),
        }
    }

    async fn pause(&self, vm: VmId) -> DriverResult<Guest> {
        Self::need(DriverPower::Pause, "pause")?;
        self.ask_guest(vm, Verb::Pause).await
    }

    async fn resume(&self, vm: VmId) -> DriverResult<Guest> {
        self.ask_guest(vm, Verb::Resume).await
    }

    async fn adopt_incarnation(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
        self.ask(vm, Verb::AdoptIncarnation(incarnation)).await.map(drop)
    }

    async fn save(&self, _vm: VmId, _file: PathBuf) -> DriverResult<u64> {
        Err(DriverError::unsupported(B::NAME, "save"))
    }

    async fn migrate_out(&self, _: VmId, _: Endpoint, _: MigrationLimits) -> DriverResult<()> {
        Err(DriverError::unsupported(B::NAME, "migrate_out"))
    }

    async fn migrate_switch(&self, _vm: VmId) -> DriverResult<()> {
        Err(DriverError::unsupported(B::NAME, "migrate_switch"))
    }

    async fn migrate_cancel(&self, _vm: VmId) -> DriverResult<()> {
        Err(DriverError::unsupported(B::NAME, "migrate_cancel"))
    }

    fn serial_log(&self, vm: VmId) -> PathBuf {
        RunDir::new(self.site.backend.dir(), vm).serial_log()
    }

    async fn trim_logs(&self) -> DriverResult<()> {
        let dir = self.site.backend.dir().to_owned();
        let trimmed = tokio::task::spawn_blocking(move || logs::trim_all(&dir, B::LOGS)).await;
        let trimmed = trimmed.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        trimmed.map_err(|e| Self::fail("trim_logs", DriverErrorKind::Transient, e.to_string()))
    }

    fn console(&self, vm: VmId) -> DriverResult<(PathBuf, PathBuf)> {
        Self::need(DriverPower::Console, "console")?;
        let found = self.guests().get(&vm).cloned();
        let absent = || Self::fail("console", DriverErrorKind::NotFound, "there is no such guest");
        let handle = found.ok_or_else(absent)?;
        Ok((handle.place.socket(console::SOCKET), handle.place.dir.serial_log()))
    }

    async fn sample(&self) -> DriverResult<Vec<Sample>> {
        self.adopt("sample").await?;
        let alive: Vec<_> = self
            .guests()
            .values()
            .filter_map(|handle| Some((handle.place.clone(), handle.guest()?)))
            .collect();
        let mut samples = Vec::with_capacity(alive.len());
        for (place, guest) in alive {
            let Some(pid) = guest.pid else { continue };
            if let Some((cpu_ms, rss_mib)) = self.site.backend.usage(&place, pid) {
                samples.push(Sample { vm: guest.vm, cpu_ms, wait_ms: 0, rss_mib, dirty_mib_s: None });
            }
        }
        Ok(samples)
    }
}
