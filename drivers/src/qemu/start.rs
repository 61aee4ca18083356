//! How a guest comes to have an owner: brought up from nothing, or found again after the agent was gone.
//!
//! What is written before what: the record of the intent, then the fork, then the process's identity, then that its
//! vCPUs may have run, then `cont`. A process whose record does not say `started` has never run a guest, so
//! whoever finds it kills it and the start is repeated.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dunlin_model::capabilities::Accel;
use dunlin_model::observed::EndCause;
use dunlin_model::vm::AccelChoice;
use dunlin_model::{Incarnation, VmId};
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::command::{self, Surroundings};
use super::owner::{Fault, Owner, State, chain, ending};
use super::process::Process;
use super::qmp::{Event, Qmp, QmpError};
use super::record::{RECORD_VERSION, Record, STALE};
use super::seats::Seats;
use super::{ASKS_MAX, DEATH_DEADLINE, GREETING_DEADLINE, Handle, START_DEADLINE, Site};
use super::{incoming, owner, probe, save};
use crate::DriverError;
use crate::hypervisor::{Launch, LaunchMode};
use crate::run_dir::{RecordError, RunDir};

/// How long a found process may take to answer; a second agent that still holds the monitor would take for ever.
const ADOPT_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between looks for a process that was forked but has not yet got its command line.
const FIND_EVERY: Duration = Duration::from_millis(5);
/// How long a process that failed may take to be gone and to have its last words in its log.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// The owner's end of one guest, before there is an owner.
#[derive(Debug)]
pub(super) struct Seat {
    site: Arc<Site>,
    dir: RunDir,
    anchor: Arc<File>,
    asks: mpsc::Receiver<super::owner::Ask>,
    state: watch::Sender<State>,
    process: Arc<OnceLock<Arc<Process>>>,
}

/// Both ends of a guest to be.
pub(super) fn seat(
    site: &Arc<Site>,
    vm: VmId,
    incarnation: Incarnation,
) -> Result<(Handle, Seat), RecordError> {
    let dir = RunDir::new(&site.config.dir, vm);
    dir.prepare(STALE)?;
    seat_in(site, dir, incarnation)
}

fn seat_in(site: &Arc<Site>, dir: RunDir, incarnation: Incarnation) -> Result<(Handle, Seat), RecordError> {
    let (to_owner, asks) = mpsc::channel(ASKS_MAX);
    let (state, seen) = watch::channel(State::Coming);
    let anchor = Arc::new(dir.anchor()?);
    let process = Arc::<OnceLock<Arc<Process>>>::default();
    let handle = Handle {
        incarnation,
        dir: dir.clone(),
        anchor: Arc::clone(&anchor),
        asks: to_owner,
        state: seen,
        process: Arc::clone(&process),
    };
    Ok((handle, Seat { site: Arc::clone(site), dir, anchor, asks, state, process }))
}

impl Seat {
    fn monitor(&self) -> PathBuf {
        self.dir.socket("qmp.sock", &self.anchor)
    }

    fn taken_by(
        self,
        record: Record,
        process: Arc<Process>,
        wire: (Qmp, broadcast::Receiver<Event>),
    ) -> Owner {
        let monitor = self.monitor();
        let Self { site, dir, asks, state, anchor, .. } = self;
        let (qmp, events) = wire;
        Owner {
            site,
            dir,
            monitor,
            _anchor: anchor,
            record,
            process,
            qmp,
            events,
            asks,
            state,
            running: false,
            arrived: false,
            resumed_at_ms: None,
            sending: None,
            save: None,
            at_end: Vec::new(),
        }
    }
}

/// Brings a guest up and then owns it. On failure nothing is left of it.
pub(super) async fn bring_up(seat: Seat, launch: Launch) {
    let begun = std::time::Instant::now();
    let (dir, state, slot) = (seat.dir.clone(), seat.state.clone(), Arc::clone(&seat.process));
    match timeout(START_DEADLINE, come_up(seat, &launch)).await {
        Ok(Ok(owner)) => {
            let took_ms = begun.elapsed().as_millis();
            tracing::info!(vm = %launch.vm, incarnation = %launch.incarnation, took_ms, "guest is up");
            owner.publish();
            // After the fact: a boot that a host's crash makes forgotten is a boot that crash has ended.
            if let Err(e) = owner.store(true).await {
                tracing::warn!(vm = %launch.vm, error = %chain(&e), "a started guest is not on disk");
            }
            owner.run().await;
        }
        failed => {
            let fault = match failed {
                Ok(Err(fault)) => fault,
                _ => Fault::Refused("it did not come up in time".to_owned()),
            };
            let error = unmake(&dir, slot.get(), fault).await;
            state.send_replace(State::Failed(error));
        }
    }
}

/// Removes what a failed start has made; the error gets QEMU's own words when it died of it.
async fn unmake(dir: &RunDir, process: Option<&Arc<Process>>, fault: Fault) -> DriverError {
    let mut error = fault.of("start");
    if let Some(process) = process {
        let closed = matches!(fault, Fault::Qmp(QmpError::Closed(_)));
        let end = if closed { timeout(LAST_WORDS_DEADLINE, process.gone()).await.ok() } else { None };
        process.kill();
        // Killed and gone, or unkillable and on its own: the lock in its folder still says so.
        let _ = timeout(DEATH_DEADLINE, process.gone()).await;
        if closed {
            let words = dir.words("qemu.log");
            error.kind = crate::error::DriverErrorKind::Refused;
            error.message =
                if words.is_empty() { format!("QEMU ended: {}", end.unwrap_or_default()) } else { words };
        }
    }
    if let Err(e) = dir.remove() {
        tracing::warn!(error = %chain(&e), "a failed start leaves its folder behind");
    }
    error
}

async fn come_up(seat: Seat, launch: &Launch) -> Result<Owner, Fault> {
    let accel = choose_accel(&seat.site, launch.spec.accel).await?;
    let mut record = intent(launch)?;
    let (process, stream) = {
        let (dir, anchor, record) = (seat.dir.clone(), Arc::clone(&seat.anchor), record.clone());
        let (binary, launch) = (seat.site.config.binary.clone(), launch.clone());
        let fork = move || fork(&dir, &anchor, &binary, &launch, accel, &record);
        tokio::task::spawn_blocking(fork).await.expect("fork does not panic")?
    };
    let process = Arc::new(process);
    let _ = seat.process.set(Arc::clone(&process));
    record.process = Some(process.id.clone());
    // Not flushed: what may come after this is the agent's death, not the host's, which would end the process too.
    seat.dir.store(&record, false)?;
    stream.set_nonblocking(true).map_err(|e| QmpError::Closed(e.to_string()))?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|e| QmpError::Closed(e.to_string()))?;
    let wire = Qmp::over(stream, Instant::now() + GREETING_DEADLINE).await?;
    let mut owner = seat.taken_by(record, process, wire);
    owner.furnish(launch).await?;
    Ok(owner)
}

fn intent(launch: &Launch) -> Result<Record, Fault> {
    Ok(Record {
        version: RECORD_VERSION,
        vm: launch.vm,
        name: launch.name.clone(),
        incarnation: launch.incarnation,
        token: command::token(launch),
        process: None,
        incoming: matches!(launch.mode, LaunchMode::Incoming { .. }),
        started: false,
        ever_ran: false,
        vnc: None,
        endpoint: None,
        machine: launch.spec.machine,
        seats: Seats::of(launch).map_err(Fault::Refused)?,
        local_disks: command::local_disks(launch),
        viewed: command::viewed(launch),
        disk_bytes: std::collections::BTreeMap::new(),
        reboot_on_shutdown: false,
        outgoing: None,
        saving: None,
        ending: None,
        reboots: 0,
        ended: None,
    })
}

async fn choose_accel(site: &Site, choice: AccelChoice) -> Result<Accel, Fault> {
    if choice == AccelChoice::Tcg {
        return Ok(Accel::Tcg);
    }
    let kvm = probe::kvm(site).await;
    match (kvm.usable, choice) {
        (true, _) => Ok(Accel::Kvm),
        (false, AccelChoice::Kvm) => Err(Fault::Refused(format!("KVM does not work here: {}", kvm.evidence))),
        (false, _) => Ok(Accel::Tcg),
    }
}

/// Makes the sockets and the process. We connect to the monitor before there is one: the kernel keeps us in the
/// queue of the listening socket, so nothing has to be polled, and if QEMU dies early the queue dies with it.
fn fork(
    dir: &RunDir,
    anchor: &File,
    binary: &std::path::Path,
    launch: &Launch,
    accel: Accel,
    record: &Record,
) -> Result<(Process, UnixStream), Fault> {
    let failed = |verb, name: &str| {
        let path = dir.file(name);
        move |source| Fault::File { verb, path, source }
    };
    let held =
        dir.lock()?.ok_or_else(|| Fault::Busy("an earlier process of this VM is still there".to_owned()))?;
    dir.store(record, false)?;
    let monitor_path = dir.socket("qmp.sock", anchor);
    let monitor = UnixListener::bind(&monitor_path).map_err(failed("cannot listen on", "qmp.sock"))?;
    let console = dir.socket("console.sock", anchor);
    let console = UnixListener::bind(console).map_err(failed("cannot listen on", "console.sock"))?;
    let stream = UnixStream::connect(&monitor_path).map_err(failed("cannot connect to", "qmp.sock"))?;
    // Made here, because QEMU would wait for whatever the file system is writing back just then.
    let serial_log = dir.serial_log();
    File::options()
        .create(true)
        .append(true)
        .open(&serial_log)
        .map_err(failed("cannot create", "serial.log"))?;
    let log = File::create(dir.file("qemu.log")).map_err(failed("cannot create", "qemu.log"))?;
    let around = Surroundings {
        accel,
        qmp_fd: monitor.as_raw_fd(),
        console_fd: console.as_raw_fd(),
        token: &record.token,
        serial_log: &serial_log,
        direct: &command::direct(&launch.disks),
        seats: &record.seats,
    };
    let mut qemu = Command::new(binary);
    qemu.args(command::arguments(launch, &around));
    let inherit = vec![monitor.as_raw_fd(), console.as_raw_fd(), held.as_raw_fd()];
    let process = Process::spawn(qemu, log, inherit);
    let process =
        process.map_err(|source| Fault::File { verb: "cannot start", path: binary.to_owned(), source })?;
    Ok((process, stream))
}

impl Owner {
    /// From a QEMU that answers to a guest as it was asked for.
    async fn furnish(&mut self, launch: &Launch) -> Result<(), Fault> {
        if let Some(vnc) = &launch.spec.vnc {
            if let Some(password) = &vnc.password {
                let secret = json!({ "protocol": "vnc", "password": password.expose() });
                self.qmp.run("set_password", secret).await?;
            }
            let answer = self.qmp.run("query-vnc", json!({})).await?;
            let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
            let (host, port) = (text("host"), text("service"));
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            self.record.vnc = Some(format!("{host}:{port}"));
        }
        self.measure_disks().await?;
        match &launch.mode {
            LaunchMode::Boot => self.arrived = true,
            LaunchMode::Restore(file) => {
                save::restore(&self.qmp, file).await?;
                self.restored().await?;
            }
            LaunchMode::Incoming { listen, .. } => {
                let disks = self.record.local_disks.clone();
                self.record.endpoint = Some(incoming::listen(&self.qmp, listen, &disks).await?);
            }
        }
        let runs = !self.record.incoming && !launch.paused;
        (self.record.started, self.record.ever_ran) = (true, runs);
        self.store(false).await?;
        if runs {
            self.let_run().await?;
        }
        Ok(())
    }

    /// Asks how large the disks are that a migration has to mirror.
    pub(super) async fn measure_disks(&mut self) -> Result<(), Fault> {
        if self.record.local_disks.is_empty() {
            return Ok(());
        }
        let nodes = self.qmp.run("query-named-block-nodes", json!({ "flat": true })).await?;
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        let size = |node: &String| {
            let found = nodes.iter().find(|one| one["node-name"] == node.as_str())?;
            found["image"]["virtual-size"].as_u64()
        };
        let sizes =
            self.record.local_disks.iter().filter_map(|(node, name)| Some((name.clone(), size(node)?)));
        self.record.disk_bytes = sizes.collect();
        Ok(())
    }

    /// Waits until all memory is back from the file.
    async fn restored(&mut self) -> Result<(), Fault> {
        loop {
            let event = tokio::select! {
                _ = self.process.gone() => return Err(QmpError::Closed("QEMU ended".to_owned()).into()),
                event = self.events.recv() => event,
            };
            match event {
                Ok(event) if event.name == "MIGRATION" && event.data["status"] == "completed" => {
                    return Ok(());
                }
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(QmpError::Closed("QEMU ended".to_owned()).into());
                }
                _ => {}
            }
            if self.status().await? != "inmigrate" {
                return Ok(());
            }
        }
    }
}

/// Takes over every guest that has a folder.
pub(super) async fn adopt_all(site: &Arc<Site>) -> Result<Vec<(VmId, Handle)>, RecordError> {
    let folders = RunDir::all(&site.config.dir)?;
    let adopted = join_all(folders.into_iter().map(|dir| adopt(site, dir))).await;
    let known = adopted.into_iter().filter_map(|adopted| match adopted {
        Ok(adopted) => adopted,
        Err(e) => {
            tracing::error!(error = %chain(&e), "a guest's folder cannot be read: it is left alone");
            None
        }
    });
    Ok(known.collect())
}

async fn adopt(site: &Arc<Site>, dir: RunDir) -> Result<Option<(VmId, Handle)>, RecordError> {
    let Some(mut record) = dir.load(RECORD_VERSION)? else {
        // Without a record nothing was forked.
        dir.remove()?;
        return Ok(None);
    };
    let process = find(&dir, &record).await?;
    if !record.started {
        if let Some(process) = process {
            process.kill();
            let _ = timeout(DEATH_DEADLINE, process.gone()).await;
        }
        tracing::info!(vm = %record.vm, "a start that was broken off is cleared away");
        dir.remove()?;
        return Ok(None);
    }
    let vm = record.vm;
    let (handle, seat) = seat_in(site, dir.clone(), record.incarnation)?;
    let Some(process) = process else {
        if record.ended.is_none() {
            let message = ending(&record, "it ended while no agent was there", &dir);
            record.ended = Some((record.ending.unwrap_or(EndCause::Died), message));
            dir.store(&record, true)?;
        }
        seat.state.send_replace(State::Up(Box::new(owner::ended(&record))));
        return Ok(Some((vm, handle)));
    };
    let process = Arc::new(process);
    let _ = seat.process.set(Arc::clone(&process));
    let (mut up, state) = (seat.state.subscribe(), seat.state.clone());
    let presumed = owner::presumed(&record, process.id.pid);
    tokio::spawn(take_over(seat, record, process));
    // What the guest does is known once QEMU has been asked.
    if timeout(ADOPT_DEADLINE, up.wait_for(|state| !matches!(state, State::Coming))).await.is_err() {
        state.send_if_modified(|state| {
            let is_unknown = matches!(state, State::Coming);
            if is_unknown {
                *state = State::Up(Box::new(presumed));
            }
            is_unknown
        });
    }
    Ok(Some((vm, handle)))
}

/// The record's process, if it lives. When the record does not name it yet, the lock in the folder tells whether one
/// was forked, and its command line which it is.
async fn find(dir: &RunDir, record: &Record) -> Result<Option<Process>, RecordError> {
    if let Some(id) = &record.process
        && let Some(process) = Process::adopt(id, &record.token)
    {
        return Ok(Some(process));
    }
    let deadline = Instant::now() + ADOPT_DEADLINE;
    while dir.lock()?.is_none() && Instant::now() < deadline {
        if let Some(process) = Process::find(&record.token) {
            return Ok(Some(process));
        }
        sleep(FIND_EVERY).await;
    }
    Ok(None)
}

/// Connects to a found process and owns it.
async fn take_over(seat: Seat, record: Record, process: Arc<Process>) {
    let monitor = seat.monitor();
    let wire = loop {
        let connected = tokio::select! {
            end = process.gone() => {
                let mut record = record;
                record.ended = Some((record.ending.unwrap_or(EndCause::Died), ending(&record, &end, &seat.dir)));
                if let Err(e) = seat.dir.store(&record, true) {
                    tracing::warn!(vm = %record.vm, error = %chain(&e), "an ended guest is not on record");
                }
                seat.state.send_replace(State::Up(Box::new(owner::ended(&record))));
                return;
            }
            connected = Qmp::connect(&monitor, Instant::now() + ADOPT_DEADLINE) => connected,
        };
        match connected {
            Ok(wire) => break wire,
            Err(e) => tracing::warn!(vm = %record.vm, error = %e, "a found guest does not answer"),
        }
        if seat.asks.is_closed() {
            return;
        }
        sleep(owner::RECONNECT_EVERY).await;
    };
    let mut owner = seat.taken_by(record, process, wire);
    if let Err(e) = owner.look().await {
        tracing::warn!(vm = %owner.record.vm, error = %chain(&e), "a found guest cannot be looked at");
    }
    owner.publish();
    owner.run().await;
}
