//! All guests of one simulated host: their files, the one path by which a record changes, and the tasks under way.
//!
//! A change is made on a copy, written to disk (tmp + rename), and only then seen by anybody. The files are small and the
//! calls short, so they are made in place: a detour over a blocking pool would cost more and stop a paused clock.
//! Files are not fsynced: guests outlive the agent, not the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dunlin_model::VmId;
use dunlin_model::capabilities::DriverName;
use dunlin_model::migration::Endpoint;
use dunlin_model::observed::SendProgress;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::SimConfig;
use super::device;
use super::fault::Draw;
use super::record::{RECORD_VERSION, Record, Stage, State};
use crate::error::{DriverError, DriverErrorKind};
use crate::hypervisor::{DriverResult, Guest, Notice, Run, Send as SendReport};

/// Notices kept for a slow receiver; one that lags further lists again. Small, because one process may hold hundreds
/// of simulated hosts.
const NOTICES_MAX: usize = 256;

/// One guest: its record, and what only this process has of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// The task that sends, receives or saves it.
    pub(super) link: Option<AbortHandle>,
    /// Tells the sending task to pass the switch-over.
    pub(super) switch: Option<oneshot::Sender<()>>,
    pub(super) console: Option<AbortHandle>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) progress: SendProgress,
}

impl Entry {
    pub(super) fn new(record: Record) -> Self {
        let progress = SendProgress::default();
        Self { record, link: None, switch: None, console: None, endpoint: None, progress }
    }

    /// Lets go of what the guest has no use for in the state it is in.
    fn settle(&mut self) {
        if !self.record.needs_link() {
            self.endpoint = None;
            self.switch = None;
            self.link.take().iter().for_each(AbortHandle::abort);
        }
        if !self.record.live() {
            self.console.take().iter().for_each(AbortHandle::abort);
        }
    }

    pub(super) fn guest(&self) -> Guest {
        let record = &self.record;
        Guest {
            vm: record.vm,
            name: record.name.clone(),
            incarnation: record.incarnation,
            run: match &record.state {
                State::Booting { .. } | State::Paused => Run::Paused,
                State::Running => Run::Running,
                State::Incoming { .. } => Run::Incoming,
                State::Arrived => Run::Arrived,
                State::Outgoing { .. } => Run::Outgoing,
                State::Ended { cause, message } => Run::Ended(*cause, message.clone()),
            },
            pid: None,
            vnc: record.vnc.clone().filter(|_| record.live()),
            endpoint: self.endpoint.clone(),
            send: record.sending.as_ref().map(|sending| match &sending.stage {
                Stage::Copying => SendReport::Copying(self.progress),
                Stage::AtSwitchover | Stage::Switching => SendReport::AtSwitchover(self.progress),
                Stage::Sent(figures) => SendReport::Sent(*figures),
                Stage::Holding(why) => SendReport::Holding(why.clone()),
                Stage::Cancelled(why) => SendReport::Cancelled(why.clone()),
            }),
            // Nothing reads or writes the disks of a simulated guest.
            disk_bytes: std::collections::BTreeMap::new(),
            layout: record.refitted.then(|| device::layout(record)),
            ever_ran: record.ever_ran,
            reboots: record.reboots,
            resumed_at_ms: record.running_since_ms,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) guests: BTreeMap<VmId, Entry>,
    /// The driver was dropped: nothing may change any more, another process may have taken over.
    closed: bool,
    draws: BTreeMap<VmId, u64>,
}

/// One simulated host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) config: SimConfig,
    pub(super) runtime: Handle,
    pub(super) notices: broadcast::Sender<Notice>,
    table: Mutex<Table>,
    tasks: Mutex<JoinSet<()>>,
}

pub(super) fn failed(verb: &'static str, kind: DriverErrorKind, message: impl Into<String>) -> DriverError {
    DriverError::new(DriverName::Test, verb, kind, message)
}

/// The wall clock, ms, as tokio's clock moves it, so that a paused clock stops simulated guests too.
pub(super) fn now_ms() -> u64 {
    static BASE: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (started, epoch) = BASE
        .get_or_init(|| (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()));
    u64::try_from((*epoch + started.elapsed()).as_millis()).unwrap_or(u64::MAX)
}

impl Host {
    /// Reads every record of `config.dir`, each as the last process left it.
    pub(super) fn load(config: SimConfig) -> io::Result<Arc<Self>> {
        let mut table = Table::default();
        for file in fs::read_dir(&config.dir)? {
            let path = file?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                // Never renamed, so never believed.
                Some("tmp") => fs::remove_file(&path)?,
                Some("guest") => {
                    let record = read_record(&path)?;
                    table.guests.insert(record.vm, Entry::new(record));
                }
                _ => {}
            }
        }
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        let (table, tasks) = (Mutex::new(table), Mutex::default());
        Ok(Arc::new(Self { config, runtime: Handle::current(), notices, table, tasks }))
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics while it holds the table")
    }

    /// Stops everything that goes on by itself, as the end of the process would.
    pub(super) fn close(&self) {
        self.table().closed = true;
        self.tasks.lock().expect("nothing panics while it holds the tasks").abort_all();
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.tasks.lock().expect("nothing panics while it holds the tasks");
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime)
    }

    /// The one path by which a guest changes. A step that fails changes nothing.
    pub(super) fn change<T>(
        &self,
        vm: VmId,
        verb: &'static str,
        step: impl FnOnce(&mut Record, u64) -> DriverResult<T>,
    ) -> DriverResult<(T, Guest)> {
        let mut table = self.table();
        let closed = table.closed;
        let entry = table
            .guests
            .get_mut(&vm)
            .ok_or_else(|| failed(verb, DriverErrorKind::NotFound, format!("no guest {vm}")))?;
        let mut next = entry.record.clone();
        let out = step(&mut next, now_ms())?;
        if next != entry.record {
            if closed {
                return Err(failed(verb, DriverErrorKind::Transient, "the driver is closed"));
            }
            self.write(&next).map_err(|e| failed(verb, DriverErrorKind::Transient, e.to_string()))?;
            entry.record = next;
            entry.settle();
            self.tell(entry);
        }
        Ok((out, entry.guest()))
    }

    /// Adds a new guest, whose id is free or of an ended one.
    pub(super) fn insert(&self, table: &mut Table, entry: Entry) -> io::Result<Guest> {
        if table.closed {
            return Err(io::Error::other("the driver is closed"));
        }
        self.write(&entry.record)?;
        self.tell(&entry);
        let guest = entry.guest();
        table.guests.insert(guest.vm, entry);
        Ok(guest)
    }

    pub(super) fn tell(&self, entry: &Entry) {
        // Nobody may be listening.
        let _ = self.notices.send(Notice { guest: entry.guest() });
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.file(record.vm, "guest");
        let fresh = self.file(record.vm, "tmp");
        fs::write(&fresh, serde_json::to_vec(record)?)?;
        fs::rename(&fresh, &path)
    }

    /// A file of the guest: `guest` its record, `log` what its console said, `console` the socket.
    pub(super) fn file(&self, vm: VmId, kind: &str) -> PathBuf {
        self.config.dir.join(format!("{vm}.{kind}"))
    }

    /// Draws whether `verb` fails for this guest, now.
    pub(super) fn fault(&self, vm: VmId, verb: &'static str) -> DriverResult<()> {
        let mut table = self.table();
        let Some(entry) = table.guests.get(&vm) else { return Ok(()) };
        let (sim, incarnation) = (entry.record.sim.clone(), entry.record.incarnation);
        if table.draw(&sim, vm, incarnation, verb) {
            return Err(failed(verb, DriverErrorKind::Transient, "a simulated fault"));
        }
        Ok(())
    }
}

impl Table {
    /// Draws once.
    pub(super) fn draw(
        &mut self,
        sim: &dunlin_model::vm::SimSpec,
        vm: VmId,
        incarnation: dunlin_model::Incarnation,
        verb: &'static str,
    ) -> bool {
        let count = self.draws.entry(vm).or_default();
        *count += 1;
        Draw { seed: sim.seed, vm, incarnation, verb, count: *count }.fails(sim.fault_ppm)
    }
}

fn read_record(path: &Path) -> io::Result<Record> {
    let bad = |problem: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {problem}", path.display()))
    };
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bytes = fs::read(path)?;
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if version != RECORD_VERSION {
        return Err(bad(format!(
            "a record of version {version}; this driver reads version {RECORD_VERSION}"
        )));
    }
    serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
}
