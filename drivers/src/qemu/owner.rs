//! The task that owns one guest: every verb and every event passes through it, one at a time.
//!
//! Level-triggered: [`Owner::look`] finds out everything from QEMU and the record, and is used after adoption, after a
//! lost connection, and when events were missed. Nothing is concluded from an event that `look` could not conclude.

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::Incarnation;
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::EndCause;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::outgoing::Sending;
use super::process::Process;
use super::qmp::{Event, Qmp, QmpError};
use super::record::{Outgoing, Record};
use super::save::Save;
use super::{COMMAND_DEADLINE, Site, fail};
use crate::error::DriverErrorKind;
use crate::hypervisor::{Device, DeviceName, DriverResult, Guest, Notice, Run};
use crate::run_dir::{RecordError, RunDir};
use crate::{DriverError, hypervisor};

/// How often a copy's progress is told, and looked at in case an event was lost.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long QEMU may take to write its caches back and leave.
const QUIT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a reset may take until the machine can run again: it is done within one turn of QEMU's main loop.
const RESET_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between attempts where QEMU gives no event to wait for.
pub(super) const RETRY_EVERY: Duration = Duration::from_millis(5);
/// Pause between attempts to reach the monitor of a process that lives.
pub(super) const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// How far a guest is, as the driver's handle sees it.
#[derive(Clone, Debug)]
pub(super) enum State {
    Coming,
    Up(Box<Guest>),
    Failed(DriverError),
}

impl State {
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::Coming => false,
            Self::Up(guest) => matches!(guest.run, Run::Ended(..)),
            Self::Failed(_) => true,
        }
    }
}

/// A verb for the owner.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) verb: Verb,
    pub(super) reply: Reply,
}

pub(super) type Reply = oneshot::Sender<DriverResult<Answer>>;

#[derive(Clone, Debug)]
pub(super) enum Verb {
    Shutdown,
    RebootOnShutdown(bool),
    Reset,
    Destroy,
    Pause,
    Resume,
    AdoptIncarnation(Incarnation),
    Save(PathBuf),
    MigrateOut(Endpoint, MigrationLimits),
    MigrateSwitch,
    MigrateCancel,
    Plug(Box<Device>),
    Unplug(DeviceName),
}

impl Verb {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::RebootOnShutdown(_) => "reboot_on_shutdown",
            Self::Reset => "reset",
            Self::Destroy => "destroy",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::AdoptIncarnation(_) => "adopt_incarnation",
            Self::Save(_) => "save",
            Self::MigrateOut(..) => "migrate_out",
            Self::MigrateSwitch => "migrate_switch",
            Self::MigrateCancel => "migrate_cancel",
            Self::Plug(_) => "plug",
            Self::Unplug(_) => "unplug",
        }
    }
}

#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Guest(Box<Guest>),
    Bytes(u64),
}

/// Why a verb cannot be carried out.
#[derive(Debug, Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Busy(String),
    #[error("{verb} {path}")]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Fault {
    pub(super) fn of(&self, verb: &'static str) -> DriverError {
        let kind = match self {
            Self::Qmp(QmpError::Refused { .. } | QmpError::Malformed(_)) | Self::Refused(_) => {
                DriverErrorKind::Refused
            }
            Self::Qmp(QmpError::Deadline { .. }) => DriverErrorKind::Deadline,
            Self::Qmp(QmpError::Closed(_)) | Self::Record(_) | Self::File { .. } => {
                DriverErrorKind::Transient
            }
            Self::Busy(_) => DriverErrorKind::Busy,
        };
        fail(verb, kind, chain(self))
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// One guest with a process.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) site: Arc<Site>,
    pub(super) dir: RunDir,
    pub(super) monitor: PathBuf,
    /// Keeps `monitor` usable.
    pub(super) _anchor: Arc<File>,
    pub(super) record: Record,
    pub(super) process: Arc<Process>,
    pub(super) qmp: Qmp,
    pub(super) events: broadcast::Receiver<Event>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) state: watch::Sender<State>,
    /// vCPUs run, as QEMU last said.
    pub(super) running: bool,
    /// All of an incoming migration is here.
    pub(super) arrived: bool,
    pub(super) resumed_at_ms: Option<u64>,
    pub(super) sending: Option<Sending>,
    pub(super) save: Option<Save>,
    /// Answers that are due when the process is gone.
    pub(super) at_end: Vec<(Reply, Answer)>,
}

impl Owner {
    /// Serves until the process is gone or the driver is dropped.
    pub(super) async fn run(mut self) {
        let mut tick = interval(PROGRESS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_under_way =
                self.sending.as_ref().is_some_and(Sending::is_under_way) || self.save.is_some();
            tokio::select! {
                // Verbs first: a process that is gone because it was told to is told apart from one that died.
                biased;
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.take(ask).await,
                    None => return,
                },
                end = self.process.gone() => return self.finish(&end).await,
                event = self.events.recv() => {
                    let heard = match event {
                        Ok(event) => self.hear(event).await,
                        Err(RecvError::Lagged(_)) => self.look().await,
                        Err(RecvError::Closed) => self.reconnect().await,
                    };
                    self.note(heard);
                }
                _ = tick.tick(), if is_under_way => {
                    let advanced = self.advance().await;
                    self.note(advanced);
                    self.publish();
                }
            }
        }
    }

    /// What nobody waits for goes to the log when it fails: the next look finds the same again.
    pub(super) fn note(&self, result: Result<(), Fault>) {
        if let Err(e) = result {
            tracing::warn!(vm = %self.record.vm, error = %chain(&e), "guest");
        }
    }

    /// What the guest looks like from outside.
    pub(super) fn guest(&self) -> Guest {
        let record = &self.record;
        let stopped_at_ms = record.outgoing.as_ref().map_or(0, |outgoing| outgoing.stopped_at_ms);
        let send = self.sending.as_ref().map(|sending| sending.shown(stopped_at_ms));
        let holds = |send: &hypervisor::Send| {
            matches!(
                send,
                hypervisor::Send::AtSwitchover(_) | hypervisor::Send::Sent(_) | hypervisor::Send::Holding(_)
            )
        };
        let run = match &record.ended {
            Some((cause, message)) => Run::Ended(*cause, message.clone()),
            None if send.as_ref().is_some_and(holds) => Run::Outgoing,
            None if record.incoming && !record.ever_ran && self.arrived => Run::Arrived,
            None if record.incoming && !record.ever_ran => Run::Incoming,
            // The stop before the switch-over is not somebody's pause.
            None if self.sending.as_ref().is_some_and(Sending::is_under_way) => {
                let ran = record.outgoing.as_ref().is_some_and(|outgoing| outgoing.was_running);
                if ran { Run::Running } else { Run::Paused }
            }
            None if self.running => Run::Running,
            None => Run::Paused,
        };
        let endpoint = record.endpoint.clone().filter(|_| run == Run::Incoming);
        Guest {
            vm: record.vm,
            name: record.name.clone(),
            incarnation: record.incarnation,
            pid: record.ended.is_none().then_some(self.process.id.pid),
            vnc: record.vnc.clone().filter(|_| record.ended.is_none()),
            endpoint,
            send,
            disk_bytes: record.disk_bytes.clone(),
            layout: record.seats.layout(),
            ever_ran: record.ever_ran,
            reboots: record.reboots,
            resumed_at_ms: self.resumed_at_ms,
            run,
        }
    }

    /// Tells everybody what the guest looks like, when that has changed.
    pub(super) fn publish(&self) {
        let guest = self.guest();
        let changed = self.state.send_if_modified(|state| {
            let same = matches!(state, State::Up(known) if **known == guest);
            *state = State::Up(Box::new(guest.clone()));
            !same
        });
        if changed {
            // Nobody listens: list() has it.
            let _ = self.site.notices.send(Notice { guest });
        }
    }

    /// Writes the record without holding up the other guests.
    pub(super) async fn store(&self, durable: bool) -> Result<(), RecordError> {
        let (dir, record) = (self.dir.clone(), self.record.clone());
        if !durable {
            return dir.store(&record, false);
        }
        tokio::task::spawn_blocking(move || dir.store(&record, true)).await.expect("the store does not panic")
    }

    async fn take(&mut self, Ask { verb, reply }: Ask) {
        let name = verb.name();
        tracing::debug!(vm = %self.record.vm, verb = name, "asked");
        let result = match verb {
            Verb::Save(file) => return self.save(file, reply).await,
            Verb::MigrateCancel => return self.cancel(reply).await,
            Verb::Destroy => self.destroy().await.map(|()| Answer::Done),
            Verb::Shutdown => self.command("system_powerdown").await,
            Verb::Reset => self.command("system_reset").await,
            Verb::RebootOnShutdown(reboot) => self.set_reboot(reboot).await,
            Verb::Pause => self.pause().await.map(|()| self.answer()),
            Verb::Resume => self.resume().await.map(|()| self.answer()),
            Verb::AdoptIncarnation(incarnation) => self.adopt_incarnation(incarnation).await,
            Verb::MigrateOut(endpoint, limits) => self.migrate(endpoint, limits).await.map(|()| Answer::Done),
            Verb::MigrateSwitch => self.switch().await.map(|()| Answer::Done),
            Verb::Plug(device) => self.plug(&device).await,
            Verb::Unplug(name) => self.unplug(&name).await,
        };
        self.publish();
        // The one who asked may have given up.
        let _ = reply.send(result.map_err(|fault| fault.of(name)));
    }

    fn answer(&self) -> Answer {
        Answer::Guest(Box::new(self.guest()))
    }

    async fn command(&self, command: &str) -> Result<Answer, Fault> {
        if self.is_arriving() {
            return Err(Fault::Refused("the guest has not arrived yet".to_owned()));
        }
        self.qmp.run(command, json!({})).await?;
        Ok(Answer::Done)
    }

    async fn set_reboot(&mut self, reboot: bool) -> Result<Answer, Fault> {
        self.record.reboot_on_shutdown = reboot;
        self.store(true).await?;
        Ok(Answer::Done)
    }

    async fn destroy(&mut self) -> Result<(), Fault> {
        self.record.ending = Some(EndCause::Told);
        // Not worth a refusal when the disk is full: it would only be remembered as having died.
        let stored = self.store(false).await;
        self.process.kill();
        Ok(stored?)
    }

    async fn pause(&mut self) -> Result<(), Fault> {
        self.be_free_to_run().await?;
        if self.record.incoming && !self.record.ever_ran {
            // Received, and to stand still: from here on it is a paused guest like any other.
            self.ready_to_run().await?;
            self.record.incoming = false;
            self.store(true).await?;
        }
        if self.running {
            self.qmp.run("stop", json!({})).await?;
            self.running = false;
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Fault> {
        self.be_free_to_run().await?;
        if self.running {
            return Ok(());
        }
        if self.record.incoming && !self.record.ever_ran {
            self.ready_to_run().await?;
        }
        if !self.record.ever_ran {
            self.record.ever_ran = true;
            self.store(true).await?;
        }
        self.let_run().await
    }

    /// Lets the vCPUs run, and hears when they began: QEMU says so before it answers.
    pub(super) async fn let_run(&mut self) -> Result<(), Fault> {
        self.qmp.run("cont", json!({})).await?;
        self.running = true;
        while let Ok(event) = self.events.try_recv() {
            let heard = self.hear(event).await;
            self.note(heard);
        }
        Ok(())
    }

    /// Neither a save nor a sending has a claim on it.
    async fn be_free_to_run(&mut self) -> Result<(), Fault> {
        if self.save.is_some() {
            return Err(Fault::Busy("its memory is being saved".to_owned()));
        }
        self.take_back().await
    }

    async fn adopt_incarnation(&mut self, incarnation: Incarnation) -> Result<Answer, Fault> {
        if incarnation < self.record.incarnation {
            let has = self.record.incarnation;
            return Err(Fault::Refused(format!("it carries incarnation {has} already")));
        }
        self.record.incarnation = incarnation;
        self.store(true).await?;
        Ok(Answer::Done)
    }

    /// Finds out everything afresh.
    pub(super) async fn look(&mut self) -> Result<(), Fault> {
        if let Some(cause) = self.record.ending {
            return self.end(cause).await;
        }
        let status = self.status().await?;
        self.arrived = status != "inmigrate";
        match status.as_str() {
            "shutdown" => return self.powered_off().await,
            "guest-panicked" => return self.panicked().await,
            _ => {}
        }
        if self.record.disk_bytes.is_empty() {
            // Started by an agent that did not ask.
            self.measure_disks().await?;
        }
        self.look_at_sending();
        self.look_at_save();
        self.advance().await?;
        self.publish();
        Ok(())
    }

    /// QEMU's run state; notes whether vCPUs run.
    pub(super) async fn status(&mut self) -> Result<String, QmpError> {
        let answer = self.qmp.run("query-status", json!({})).await?;
        let status = answer["status"].as_str().unwrap_or_default().to_owned();
        // A guest in its own sleep wakes by itself: for us it runs.
        self.running = matches!(status.as_str(), "running" | "suspended");
        Ok(status)
    }

    pub(super) async fn hear(&mut self, event: Event) -> Result<(), Fault> {
        tracing::debug!(vm = %self.record.vm, name = event.name, data = %event.data, "QEMU says");
        match event.name.as_str() {
            "STOP" => {
                self.running = false;
                self.stopped(event.at_ms);
            }
            "RESUME" => {
                self.running = true;
                self.resumed_at_ms = Some(event.at_ms);
                self.resumed_by_itself().await?;
            }
            "RESET" => {
                // Durable: whoever waits for a restart may be another process by then.
                self.record.reboots += 1;
                self.store(false).await?;
            }
            // A look may have seen it already, and have restarted the guest since: what counts is whether it is off now.
            "SHUTDOWN" if is_power_off(&event.data) => {
                return if self.status().await? == "shutdown" { self.powered_off().await } else { Ok(()) };
            }
            "GUEST_PANICKED" => return self.panicked().await,
            "MIGRATION" if event.data["status"] == "completed" && self.is_arriving() => {
                self.arrived = true;
            }
            "MIGRATION_PASS" => return self.passed(event.data["pass"].as_u64().unwrap_or(0)).await,
            "MIGRATION" | "JOB_STATUS_CHANGE" | "BLOCK_JOB_READY" | "BLOCK_JOB_ERROR" => {
                self.advance().await?;
            }
            _ => return Ok(()),
        }
        if self.is_arriving() && self.arrived {
            self.close_exports().await;
        }
        self.publish();
        Ok(())
    }

    /// A guest that came by migration sends like any other once it has run here.
    fn is_arriving(&self) -> bool {
        self.record.incoming && !self.record.ever_ran
    }

    async fn advance(&mut self) -> Result<(), Fault> {
        if self.save.is_some() {
            return self.advance_save().await;
        }
        self.advance_sending().await
    }

    /// The guest has switched itself off: the end, or a restart in place when somebody wanted that.
    async fn powered_off(&mut self) -> Result<(), Fault> {
        if !self.record.reboot_on_shutdown {
            return self.end(EndCause::GuestShutdown).await;
        }
        self.record.reboot_on_shutdown = false;
        self.store(false).await?;
        self.qmp.run("system_reset", json!({})).await?;
        // The reset is done in a later turn of QEMU's main loop; until then it refuses to go on.
        let deadline = Instant::now() + RESET_DEADLINE;
        while let Err(e) = self.qmp.run("cont", json!({})).await {
            if Instant::now() > deadline {
                return Err(e.into());
            }
            sleep(RETRY_EVERY).await;
        }
        self.running = true;
        self.publish();
        Ok(())
    }

    async fn panicked(&mut self) -> Result<(), Fault> {
        self.end(EndCause::Died).await
    }

    /// Ends the process the gentle way: caches are written back.
    pub(super) async fn end(&mut self, cause: EndCause) -> Result<(), Fault> {
        self.record.ending = Some(cause);
        let stored = self.store(false).await;
        let quit = async {
            self.qmp.run("quit", json!({})).await.ok();
            self.process.gone().await
        };
        if timeout(QUIT_PATIENCE, quit).await.is_err() {
            self.process.kill();
        }
        Ok(stored?)
    }

    /// The process is gone: says how it ended, for good.
    async fn finish(mut self, end: &str) {
        let cause = self.record.ending.unwrap_or(EndCause::Died);
        let message = ending(&self.record, end, &self.dir);
        self.record.ended = Some((cause, message));
        if let Err(e) = self.store(true).await {
            tracing::warn!(vm = %self.record.vm, error = %chain(&e), "an ended guest is not on record");
        }
        self.publish();
        for (reply, answer) in self.at_end.drain(..) {
            // The one who asked may have given up.
            let _ = reply.send(Ok(answer));
        }
    }

    /// The monitor was closed although the process may live: comes back to it, or returns when it is gone.
    async fn reconnect(&mut self) -> Result<(), Fault> {
        loop {
            let connected = tokio::select! {
                _ = self.process.gone() => return Ok(()),
                connected = Qmp::connect(&self.monitor, Instant::now() + COMMAND_DEADLINE) => connected,
            };
            match connected {
                Ok((qmp, events)) => {
                    (self.qmp, self.events) = (qmp, events);
                    return self.look().await;
                }
                Err(e) => tracing::warn!(vm = %self.record.vm, error = %e, "cannot reach the monitor"),
            }
            if self.asks.is_closed() {
                return Ok(());
            }
            tokio::select! {
                _ = self.process.gone() => return Ok(()),
                () = sleep(RECONNECT_EVERY) => {}
            }
        }
    }
}

/// A guest whose process is gone, as its record has it.
pub(super) fn ended(record: &Record) -> Guest {
    let (cause, message) = record.ended.clone().unwrap_or((EndCause::Died, String::new()));
    from_record(record, Run::Ended(cause, message), None)
}

/// A guest whose process lives and does not answer. It must be taken for one that runs: only what is known to be
/// gone may be started elsewhere.
pub(super) fn presumed(record: &Record, pid: u32) -> Guest {
    let run = match record {
        Record { incoming: true, ever_ran: false, .. } => Run::Incoming,
        Record { outgoing: Some(Outgoing { switched: true, .. }), .. } => Run::Outgoing,
        _ => Run::Running,
    };
    from_record(record, run, Some(pid))
}

fn from_record(record: &Record, run: Run, pid: Option<u32>) -> Guest {
    Guest {
        vm: record.vm,
        name: record.name.clone(),
        incarnation: record.incarnation,
        pid,
        vnc: record.vnc.clone().filter(|_| pid.is_some()),
        endpoint: record.endpoint.clone().filter(|_| run == Run::Incoming),
        run,
        send: None,
        disk_bytes: record.disk_bytes.clone(),
        layout: record.seats.layout(),
        ever_ran: record.ever_ran,
        reboots: record.reboots,
        resumed_at_ms: None,
    }
}

/// How it ended, in a sentence: QEMU's own words when it died.
pub(super) fn ending(record: &Record, end: &str, dir: &RunDir) -> String {
    match record.ending {
        Some(EndCause::GuestShutdown) => "the guest powered itself off".to_owned(),
        Some(EndCause::Died) => "the guest's kernel panicked".to_owned(),
        Some(EndCause::Told) => String::new(),
        Some(EndCause::Refused) | None => match dir.words("qemu.log") {
            words if words.is_empty() => format!("QEMU is gone: {end}"),
            words => format!("{words} ({end})"),
        },
    }
}

/// Is it the guest's own power-off, and not the end of the process we asked for, or a reset?
fn is_power_off(data: &Value) -> bool {
    let reason = data["reason"].as_str().unwrap_or_default();
    reason != "host-qmp-quit" && reason != "host-signal" && !reason.ends_with("reset")
}
