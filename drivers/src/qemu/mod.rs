//! QEMU, driven natively over its machine protocol.
//!
//! A guest's process leads a session of its own and outlives the agent. Per guest one task, its [`owner`](owner),
//! makes every change of state and hears every event; the verbs of [`Hypervisor`] are messages to it. What cannot be
//! seen again by asking QEMU is in the guest's folder ([`record`]); everything else is asked.
//!
//! ```text
//!  start -> [coming up] -> owner runs -> process gone -> ended record -> forget
//!               |              ^  |
//!               v              |  v driver dropped, agent killed: the process goes on
//!            failed:        adopted by the next agent, from its folder, at the first verb
//!          nothing is left
//! ```
//! Versions of QEMU are told apart by what they answer, never by number.

mod command;
mod incoming;
pub(crate) mod kvm;
#[cfg(test)]
mod live;
mod outgoing;
mod owner;
mod passes;
mod plug;
mod probe;
mod qmp;
mod record;
mod save;
mod seats;
mod start;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::{AccelProbe, DriverCapabilities, DriverName};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::{EndCause, Sample};
use dunlin_model::{Incarnation, VmId};
use tokio::sync::{OnceCell, broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use self::owner::{Answer, Ask, State, Verb};
use self::process::{Process, Stat, waited_ms};
use crate::hypervisor::{Device, DeviceName, DriverResult, Guest, Hypervisor, Launch, Notice, Run};
use crate::run_dir::RunDir;
use crate::{DriverError, error::DriverErrorKind};
use crate::{logs, process};

/// QEMU answers a command within milliseconds. On a host that swaps it may take long; beyond this it counts as hung.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// A verb is a few commands, and may wait for the one before it.
const VERB_DEADLINE: Duration = Duration::from_secs(60);
/// From fork to the monitor's greeting: 0.1 s on an idle host, seconds when hundreds start at once.
const GREETING_DEADLINE: Duration = Duration::from_secs(60);
/// A start with everything in it; a restore reads all memory from disk.
const START_DEADLINE: Duration = Duration::from_secs(900);
/// A save writes all memory to disk.
const SAVE_DEADLINE: Duration = Duration::from_secs(3600);
/// How long a guest's owner may take to kill its process before the driver does it without asking.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone; one that waits for a dead disk cannot be killed at all.
const DEATH_DEADLINE: Duration = Duration::from_secs(30);
/// Verbs waiting for one guest. The agent has one or two under way.
const ASKS_MAX: usize = 16;
/// Notices kept for a slow receiver, which then lists all guests instead.
const NOTICES_MAX: usize = 1024;

/// Where things are on this host.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// Folder of the driver's own files; guests' folders are in `guests` below it.
    pub dir: PathBuf,
    /// The program, found in PATH when it has no slash.
    pub binary: PathBuf,
    /// The kernel's virtual machine monitor.
    pub kvm: PathBuf,
}

impl QemuConfig {
    /// The usual program and device, with the driver's files in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), binary: "qemu-system-x86_64".into(), kvm: "/dev/kvm".into() }
    }
}

/// The driver. Dropping it leaves the guests running, to be found by the next one with the same `dir`.
#[derive(Debug)]
pub struct Qemu {
    site: Arc<Site>,
    guests: Mutex<BTreeMap<VmId, Handle>>,
    adopted: OnceCell<()>,
}

/// What all guests share.
#[derive(Debug)]
struct Site {
    config: QemuConfig,
    notices: broadcast::Sender<Notice>,
    kvm: OnceCell<AccelProbe>,
}

/// The driver's end of one guest.
#[derive(Clone, Debug)]
struct Handle {
    /// What it was started as; a hand-back raises the guest's own.
    incarnation: Incarnation,
    dir: RunDir,
    /// Keeps [`RunDir::socket`] usable.
    anchor: Arc<File>,
    asks: mpsc::Sender<Ask>,
    state: watch::Receiver<State>,
    process: Arc<OnceLock<Arc<Process>>>,
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

fn fail(verb: &'static str, kind: DriverErrorKind, message: impl Into<String>) -> DriverError {
    DriverError::new(DriverName::Qemu, verb, kind, message)
}

impl Qemu {
    /// A driver that has not looked at anything yet. Guests of an earlier one are taken over by the first verb.
    #[must_use]
    pub fn new(config: QemuConfig) -> Self {
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        let site = Arc::new(Site { config, notices, kvm: OnceCell::new() });
        Self { site, guests: Mutex::default(), adopted: OnceCell::new() }
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, Handle>> {
        self.guests.lock().expect("no code panics while it holds this lock")
    }

    /// Takes over what an earlier agent left, once.
    async fn adopt(&self, verb: &'static str) -> DriverResult<()> {
        let adopt = || async {
            let handles = start::adopt_all(&self.site).await?;
            self.guests().extend(handles);
            Ok(())
        };
        let failed =
            |e: crate::run_dir::RecordError| fail(verb, DriverErrorKind::Transient, owner::chain(&e));
        self.adopted.get_or_try_init(adopt).await.map_err(failed).map(drop)
    }

    async fn handle(&self, vm: VmId, verb: &'static str) -> DriverResult<Handle> {
        self.adopt(verb).await?;
        let found = self.guests().get(&vm).cloned();
        found.ok_or_else(|| fail(verb, DriverErrorKind::NotFound, format!("there is no guest of VM {vm}")))
    }

    /// Sends a verb to the guest's owner and waits for its answer.
    async fn ask(&self, vm: VmId, verb: Verb, limit: Duration) -> DriverResult<Answer> {
        let name = verb.name();
        let handle = self.handle(vm, name).await?;
        let (reply, answer) = oneshot::channel();
        let gone = || fail(name, DriverErrorKind::NotFound, "the guest's process is gone");
        let told = timeout(limit, async {
            handle.asks.send(Ask { verb, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        });
        let late = || fail(name, DriverErrorKind::Deadline, format!("not done within {} s", limit.as_secs()));
        told.await.map_err(|_| late())?
    }

    async fn ask_guest(&self, vm: VmId, verb: Verb) -> DriverResult<Guest> {
        let name = verb.name();
        match self.ask(vm, verb, VERB_DEADLINE).await? {
            Answer::Guest(guest) => Ok(*guest),
            Answer::Done | Answer::Bytes(_) => {
                Err(fail(name, DriverErrorKind::Refused, "the guest's owner gave another answer"))
            }
        }
    }

    /// Begins a start, or finds the one of this very incarnation, under way or done.
    fn claim(&self, launch: Launch) -> DriverResult<Handle> {
        let mut guests = self.guests();
        if let Some(handle) = guests.get(&launch.vm)
            && stands_for(handle, launch.incarnation)?
        {
            return Ok(handle.clone());
        }
        let (handle, seat) = start::seat(&self.site, launch.vm, launch.incarnation)
            .map_err(|e| fail("start", DriverErrorKind::Transient, owner::chain(&e)))?;
        guests.insert(launch.vm, handle.clone());
        tokio::spawn(start::bring_up(seat, launch));
        Ok(handle)
    }
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
            Err(fail("start", DriverErrorKind::Busy, message))
        }
        Ordering::Less => {
            let message = format!("incarnation {wanted} is older than {has}, which was started here");
            Err(fail("start", DriverErrorKind::Refused, message))
        }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> DriverName {
        DriverName::Qemu
    }

    async fn probe(&self) -> DriverCapabilities {
        probe::probe(&self.site).await
    }

    async fn list(&self) -> DriverResult<Vec<Guest>> {
        self.adopt("list").await?;
        Ok(self.guests().values().filter_map(Handle::guest).collect())
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.site.notices.subscribe()
    }

    async fn start(&self, launch: Launch) -> DriverResult<Guest> {
        self.adopt("start").await?;
        let mut state = self.claim(launch)?.state;
        let up = async { state.wait_for(|state| !matches!(state, State::Coming)).await.map(|s| s.clone()) };
        match timeout(START_DEADLINE, up).await {
            Ok(Ok(State::Up(guest))) => Ok(*guest),
            Ok(Ok(State::Failed(e))) => Err(e),
            Ok(Ok(State::Coming) | Err(_)) => {
                Err(fail("start", DriverErrorKind::Transient, "the start was broken off"))
            }
            Err(_) => Err(fail("start", DriverErrorKind::Deadline, "the guest is still coming up")),
        }
    }

    async fn shutdown(&self, vm: VmId) -> DriverResult<()> {
        self.ask(vm, Verb::Shutdown, VERB_DEADLINE).await.map(drop)
    }

    async fn reboot_on_shutdown(&self, vm: VmId, reboot: bool) -> DriverResult<()> {
        self.ask(vm, Verb::RebootOnShutdown(reboot), VERB_DEADLINE).await.map(drop)
    }

    async fn reset(&self, vm: VmId) -> DriverResult<()> {
        self.ask(vm, Verb::Reset, VERB_DEADLINE).await.map(drop)
    }

    async fn destroy(&self, vm: VmId) -> DriverResult<()> {
        self.adopt("destroy").await?;
        let Some(handle) = self.guests().get(&vm).cloned() else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        // The owner notes that it was told, then kills. When it is busy with a QEMU that hangs, we kill for it.
        let owner = async {
            handle.asks.send(Ask { verb: Verb::Destroy, reply }).await.ok()?;
            answer.await.ok()
        };
        if timeout(KILL_PATIENCE, owner).await.is_err()
            && let Some(process) = handle.process.get()
        {
            process.kill();
        }
        let mut state = handle.state.clone();
        let ended = state.wait_for(State::has_ended);
        match timeout(DEATH_DEADLINE, ended).await {
            // The owner is gone without a word only when the runtime is going down.
            Ok(_) => Ok(()),
            Err(_) => Err(fail("destroy", DriverErrorKind::Deadline, "the killed process is still there")),
        }
    }

    async fn forget(&self, vm: VmId) -> DriverResult<()> {
        self.adopt("forget").await?;
        let Some(handle) = self.guests().get(&vm).cloned() else { return Ok(()) };
        if !handle.has_ended() {
            return Err(fail("forget", DriverErrorKind::Busy, "its process is still there"));
        }
        handle.dir.remove().map_err(|e| fail("forget", DriverErrorKind::Transient, owner::chain(&e)))?;
        let mut guests = self.guests();
        if guests.get(&vm).is_some_and(|now| now.state.same_channel(&handle.state)) {
            guests.remove(&vm);
        }
        Ok(())
    }

    async fn erase_log(&self, vm: VmId) -> DriverResult<()> {
        match std::fs::remove_file(RunDir::new(&self.site.config.dir, vm).serial_log()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(fail("erase_log", DriverErrorKind::Transient, e.to_string()))
            }
            _ => Ok(()),
        }
    }

    async fn pause(&self, vm: VmId) -> DriverResult<Guest> {
        self.ask_guest(vm, Verb::Pause).await
    }

    async fn resume(&self, vm: VmId) -> DriverResult<Guest> {
        self.ask_guest(vm, Verb::Resume).await
    }

    async fn plug(&self, vm: VmId, device: Device) -> DriverResult<()> {
        self.ask(vm, Verb::Plug(Box::new(device)), VERB_DEADLINE).await.map(drop)
    }

    async fn unplug(&self, vm: VmId, device: DeviceName) -> DriverResult<()> {
        self.ask(vm, Verb::Unplug(device), VERB_DEADLINE).await.map(drop)
    }

    async fn adopt_incarnation(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
        self.ask(vm, Verb::AdoptIncarnation(incarnation), VERB_DEADLINE).await.map(drop)
    }

    async fn save(&self, vm: VmId, file: PathBuf) -> DriverResult<u64> {
        let handle = self.handle(vm, "save").await?;
        // Done by an earlier call, or by the owner of a guest that was just taken over.
        let done = || match handle.guest() {
            Some(Guest { run: Run::Ended(EndCause::Told, _), .. }) => {
                Some(std::fs::metadata(&file).ok()?.len())
            }
            _ => None,
        };
        if let Some(bytes) = done() {
            return Ok(bytes);
        }
        match self.ask(vm, Verb::Save(file.clone()), SAVE_DEADLINE).await {
            Ok(Answer::Bytes(bytes)) => Ok(bytes),
            Ok(Answer::Done | Answer::Guest(_)) => {
                Err(fail("save", DriverErrorKind::Refused, "the guest's owner gave another answer"))
            }
            Err(e) => done().ok_or(e),
        }
    }

    async fn migrate_out(&self, vm: VmId, endpoint: Endpoint, limits: MigrationLimits) -> DriverResult<()> {
        self.ask(vm, Verb::MigrateOut(endpoint, limits), VERB_DEADLINE).await.map(drop)
    }

    async fn migrate_switch(&self, vm: VmId) -> DriverResult<()> {
        self.ask(vm, Verb::MigrateSwitch, VERB_DEADLINE).await.map(drop)
    }

    async fn migrate_cancel(&self, vm: VmId) -> DriverResult<()> {
        self.ask(vm, Verb::MigrateCancel, VERB_DEADLINE).await.map(drop)
    }

    fn serial_log(&self, vm: VmId) -> PathBuf {
        RunDir::new(&self.site.config.dir, vm).serial_log()
    }

    async fn trim_logs(&self) -> DriverResult<()> {
        let dir = self.site.config.dir.clone();
        let trimmed = tokio::task::spawn_blocking(move || logs::trim_all(&dir, &["qemu.log"])).await;
        let trimmed = trimmed.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        trimmed.map_err(|e| fail("trim_logs", DriverErrorKind::Transient, e.to_string()))
    }

    fn console(&self, vm: VmId) -> DriverResult<(PathBuf, PathBuf)> {
        let found = self.guests().get(&vm).cloned();
        let handle =
            found.ok_or_else(|| fail("console", DriverErrorKind::NotFound, "there is no such guest"))?;
        Ok((handle.dir.socket("console.sock", &handle.anchor), handle.dir.serial_log()))
    }

    async fn sample(&self) -> DriverResult<Vec<Sample>> {
        self.adopt("sample").await?;
        let alive = self.guests().values().filter_map(Handle::guest).collect::<Vec<_>>();
        let measure = |guest: Guest| {
            let pid = guest.pid?;
            let (cpu_ms, rss_mib) = Stat::read(pid).ok()?.usage();
            Some(Sample { vm: guest.vm, cpu_ms, wait_ms: waited_ms(pid), rss_mib, dirty_mib_s: None })
        };
        Ok(alive.into_iter().filter_map(measure).collect())
    }
}
