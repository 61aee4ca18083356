//! The sending side of a migration.
//!
//! ```text
//!  Mirroring --all ready--> Moving --pre-switchover--> Finishing --disks equal--> AtSwitchover --told--> Switching
//!      |                      |                           |                           |                   |     |
//!      +----------------------+---------------------------+---------------------------+              completed failed
//!                             | cancelled, failed                                                         v     v
//!                             v                                                                         Sent  Holding
//!                          Undoing --nothing left--> Cancelled                                  (both: resume after hand-back)
//! ```
//! Every step forward is a look at QEMU's jobs and its migration ([`Owner::advance_sending`]), caused by an event, by
//! the clock, or by a new agent that takes over. Finished mirrors stay listed until they are dismissed, so that one
//! that failed while nobody looked is not taken for one that was completed.

use std::time::Duration;

use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationLimits};
use dunlin_model::observed::SendProgress;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::command::view;
use super::incoming::set_capabilities;
use super::owner::{Answer, Fault, Owner, RETRY_EVERY, Reply};
use super::record::Outgoing;
use super::{COMMAND_DEADLINE, passes};
use crate::hypervisor::Send;

/// A destination that does not take a connection within this is not there. Tried before QEMU does, because QEMU
/// stands still while it connects a disk.
const REACH_DEADLINE: Duration = Duration::from_secs(3);

/// From "completed" to the end of QEMU's migration thread it takes microseconds, unless the host is overloaded.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// A sending, as far as it is not in the record.
#[derive(Debug)]
pub(super) struct Sending {
    phase: Phase,
    progress: SendProgress,
    cancelling: Vec<Reply>,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Mirroring,
    Moving,
    Finishing,
    AtSwitchover,
    Switching,
    /// Without the time of the stop, which the record has.
    Sent(MigrationFigures),
    Holding(String),
    Undoing(String),
    Cancelled(String),
}

impl Sending {
    fn new(phase: Phase) -> Self {
        Self { phase, progress: SendProgress::default(), cancelling: Vec::new() }
    }

    /// Can it still go forward by itself, or back?
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Sent(_) | Phase::Holding(_) | Phase::Cancelled(_))
    }

    /// It was told to switch, and has come to an end: only a hand-back lets the guest run again.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.phase, Phase::Sent(_) | Phase::Holding(_))
    }

    /// As the agent sees it; the vCPUs stopped at `stopped_at_ms`.
    pub(super) fn shown(&self, stopped_at_ms: u64) -> Send {
        match &self.phase {
            Phase::Mirroring | Phase::Moving | Phase::Finishing | Phase::Undoing(_) => {
                Send::Copying(self.progress)
            }
            Phase::AtSwitchover | Phase::Switching => Send::AtSwitchover(self.progress),
            Phase::Sent(figures) => Send::Sent(MigrationFigures { stopped_at_ms, ..*figures }),
            Phase::Holding(why) => Send::Holding(why.clone()),
            Phase::Cancelled(why) => Send::Cancelled(why.clone()),
        }
    }
}

/// A mirror as QEMU lists it.
#[derive(Debug)]
struct Job {
    id: String,
    is_ready: bool,
    /// It is over: its error, or nothing when it made the disks equal.
    end: Option<Option<String>>,
}

/// A migration as QEMU tells it.
#[derive(Debug)]
struct Moved {
    /// Empty before the first.
    status: String,
    error: String,
    answer: Value,
}

impl Moved {
    fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "" | "none" | "completed" | "failed" | "cancelled")
    }

    fn words(&self) -> String {
        if self.error.is_empty() {
            format!("QEMU's migration is {}", self.status)
        } else {
            self.error.clone()
        }
    }
}

fn mirror(node: &str) -> String {
    format!("mirror-{node}")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

impl Owner {
    /// Begins to send, or finds that it was begun.
    pub(super) async fn migrate(&mut self, endpoint: Endpoint, limits: MigrationLimits) -> Result<(), Fault> {
        if let (Some(sending), Some(outgoing)) = (&self.sending, &self.record.outgoing)
            && (sending.is_under_way() || sending.has_left())
        {
            let same = outgoing.endpoint == endpoint;
            let to = &outgoing.endpoint.memory;
            return if same { Ok(()) } else { Err(Fault::Busy(format!("it is being sent to {to}"))) };
        }
        if self.save.is_some() {
            return Err(Fault::Busy("its memory is being saved".to_owned()));
        }
        if self.record.incoming && !self.record.ever_ran {
            return Err(Fault::Refused("it has not run here yet".to_owned()));
        }
        if !self.record.local_disks.is_empty() {
            reach(&endpoint.disks).await?;
        }
        self.status().await?;
        self.record.outgoing = Some(Outgoing {
            endpoint,
            limits,
            incarnation: self.record.incarnation,
            was_running: self.running,
            mirrored: false,
            switched: false,
            stopped_at_ms: 0,
            cancelled: None,
        });
        self.store(false).await?;
        self.sending = Some(Sending::new(Phase::Mirroring));
        match self.mirror_all().await {
            Ok(()) => self.advance_sending().await,
            Err(fault) => {
                self.undo(super::owner::chain(&fault)).await?;
                Err(fault)
            }
        }
    }

    async fn mirror_all(&mut self) -> Result<(), Fault> {
        let Some(outgoing) = self.record.outgoing.clone() else { return Ok(()) };
        // An agent that died within a hand-back may have left the mirrors of the sending before.
        self.clear_mirrors().await;
        set_capabilities(&self.qmp, true).await?;
        let speed = outgoing.limits.bandwidth_mib_s << 20;
        let downtime_ms = passes::first_downtime_ms(&self.qmp, outgoing.limits.downtime_ms).await?;
        let parameters = json!({ "max-bandwidth": speed, "downtime-limit": downtime_ms });
        self.qmp.run("migrate-set-parameters", parameters).await?;
        for (node, export) in self.record.local_disks.clone() {
            let (host, port) = split(&outgoing.endpoint.disks)?;
            let target = json!({
                "driver": "nbd", "node-name": mirror(&node), "export": export,
                "server": { "type": "inet", "host": host, "port": port },
                "discard": "unmap", "detect-zeroes": "unmap",
            });
            self.qmp.run("blockdev-add", target).await?;
            let source = if self.record.viewed.contains(&node) { view(&node) } else { node.clone() };
            let job = json!({
                "job-id": mirror(&node), "device": source, "target": mirror(&node), "sync": "full", "speed": speed,
                "copy-mode": "background", "auto-dismiss": false,
            });
            self.qmp.run("blockdev-mirror", job).await?;
        }
        if let Some(outgoing) = &mut self.record.outgoing {
            outgoing.mirrored = true;
        }
        Ok(self.store(false).await?)
    }

    /// After a restart of the agent: takes up the sending the record knows of. Where it stands, QEMU says.
    pub(super) fn look_at_sending(&mut self) {
        let Some(outgoing) = &self.record.outgoing else { return };
        if self.sending.is_some() {
            return;
        }
        let phase = match outgoing {
            Outgoing { switched: true, .. } => Phase::Switching,
            Outgoing { cancelled: Some(why), .. } => Phase::Undoing(why.clone()),
            Outgoing { mirrored: false, .. } => {
                Phase::Undoing("the agent ended while it began the copy".to_owned())
            }
            Outgoing { .. } => Phase::Mirroring,
        };
        self.sending = Some(Sending::new(phase));
    }

    /// Goes as far as QEMU has come.
    pub(super) async fn advance_sending(&mut self) -> Result<(), Fault> {
        while let Some(phase) = self.sending.as_ref().filter(|s| s.is_under_way()).map(|s| s.phase.clone()) {
            let moved = self.moved().await?;
            let jobs = self.jobs().await?;
            let next = match &phase {
                Phase::Mirroring => self.step_mirroring(&moved, &jobs).await?,
                Phase::Moving => self.step_moving(&moved, &jobs),
                Phase::Finishing => self.step_finishing(&moved, &jobs).await?,
                Phase::AtSwitchover if moved.is_over() => {
                    self.undo(moved.words()).await?;
                    continue;
                }
                Phase::Switching => self.step_switching(&moved).await?,
                Phase::Undoing(why) => self.step_undoing(why, &moved, &jobs).await?,
                _ => phase.clone(),
            };
            let now = self.sending.as_mut().expect("steps never clear the sending");
            if now.phase != phase {
                // A step has called `undo`: go on from there.
                continue;
            }
            if next == phase {
                return Ok(());
            }
            tracing::debug!(vm = %self.record.vm, ?next, "sending");
            // Told by the caller: a new agent that catches up must not show the steps in between as news.
            now.phase = next;
        }
        Ok(())
    }

    async fn step_mirroring(&mut self, moved: &Moved, jobs: &[Job]) -> Result<Phase, Fault> {
        if !moved.is_over() {
            // Found by a new agent: the old one went further.
            return Ok(Phase::Moving);
        }
        if let Some(why) = self.broken(jobs) {
            self.undo(why).await?;
            return Ok(Phase::Mirroring);
        }
        if !jobs.iter().all(|job| job.is_ready) {
            return Ok(Phase::Mirroring);
        }
        let uri = self.record.outgoing.as_ref().map(|outgoing| outgoing.endpoint.memory.clone());
        match self.qmp.run("migrate", json!({ "uri": uri })).await {
            Ok(_) => Ok(Phase::Moving),
            Err(e) => {
                self.undo(e.to_string()).await?;
                Ok(Phase::Mirroring)
            }
        }
    }

    fn step_moving(&mut self, moved: &Moved, jobs: &[Job]) -> Phase {
        match self.broken(jobs) {
            _ if moved.status == "pre-switchover" => Phase::Finishing,
            Some(why) => Phase::Undoing(why),
            None if moved.is_over() => Phase::Undoing(moved.words()),
            None => Phase::Moving,
        }
    }

    /// vCPUs stand still: what the mirrors still have to copy is all there will ever be.
    async fn step_finishing(&mut self, moved: &Moved, jobs: &[Job]) -> Result<Phase, Fault> {
        let failed = jobs.iter().find_map(|job| job.end.clone().flatten());
        let lost = (jobs.len() < self.record.local_disks.len()).then(|| "a disk's mirror is gone".to_owned());
        let over = (moved.status != "pre-switchover").then(|| moved.words());
        if let Some(why) = failed.or(lost).or(over) {
            self.undo(why).await?;
            return Ok(Phase::Finishing);
        }
        for job in jobs.iter().filter(|job| job.is_ready) {
            // For a mirror that is ready this is its completion: the target stays equal, the guest stays here. A refusal
            // says that it was completed since the look: the next look sees that, or that it failed.
            let _ = self.qmp.run("block-job-cancel", json!({ "device": job.id })).await;
        }
        if jobs.iter().any(|job| job.end.is_none()) { Ok(Phase::Finishing) } else { Ok(Phase::AtSwitchover) }
    }

    async fn step_switching(&mut self, moved: &Moved) -> Result<Phase, Fault> {
        match moved.status.as_str() {
            "completed" => {
                self.settled().await?;
                let moved = self.moved().await?;
                Ok(Phase::Sent(self.figures(&moved.answer)))
            }
            "failed" | "cancelled" | "none" | "" => {
                self.hold_still().await?;
                Ok(Phase::Holding(moved.words()))
            }
            // The agent died between its note and the command.
            "pre-switchover" => {
                self.qmp.run("migrate-continue", json!({ "state": "pre-switchover" })).await?;
                Ok(Phase::Switching)
            }
            _ => Ok(Phase::Switching),
        }
    }

    /// QEMU says "completed" a moment before it has done its sums and may be resumed; no event tells when.
    async fn settled(&mut self) -> Result<(), Fault> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        while self.status().await? != "postmigrate" && Instant::now() < deadline {
            sleep(RETRY_EVERY).await;
        }
        Ok(())
    }

    async fn step_undoing(&mut self, why: &str, moved: &Moved, jobs: &[Job]) -> Result<Phase, Fault> {
        let is_noted = self.record.outgoing.as_ref().is_some_and(|outgoing| outgoing.cancelled.is_some());
        if !is_noted {
            self.undo(why.to_owned()).await?;
        }
        if !moved.is_over() || jobs.iter().any(|job| job.end.is_none()) {
            return Ok(Phase::Undoing(why.to_owned()));
        }
        self.clear_mirrors().await;
        let was_running = self.record.outgoing.as_ref().is_some_and(|outgoing| outgoing.was_running);
        self.status().await?;
        if was_running && !self.running {
            self.qmp.run("cont", json!({})).await?;
            self.running = true;
        }
        let waiting = self.sending.as_mut().map(|s| std::mem::take(&mut s.cancelling)).unwrap_or_default();
        if let Some(sending) = &mut self.sending {
            sending.phase = Phase::Cancelled(why.to_owned());
        }
        self.publish();
        for reply in waiting {
            // The one who asked may have given up.
            let _ = reply.send(Ok(Answer::Done));
        }
        Ok(Phase::Cancelled(why.to_owned()))
    }

    /// A mirror that ended before it should, or is not there.
    fn broken(&self, jobs: &[Job]) -> Option<String> {
        if jobs.len() < self.record.local_disks.len() {
            return Some("a disk's mirror is gone".to_owned());
        }
        let end = jobs.iter().find_map(|job| job.end.clone())?;
        Some(end.unwrap_or_else(|| "a disk's mirror ended by itself".to_owned()))
    }

    /// Calls everything off that is under way. What takes time is waited for in `step_undoing`.
    async fn undo(&mut self, why: String) -> Result<(), Fault> {
        tracing::info!(vm = %self.record.vm, why, "a sending is undone");
        if let Some(outgoing) = &mut self.record.outgoing {
            outgoing.cancelled = Some(why.clone());
        }
        if let Some(sending) = &mut self.sending {
            sending.phase = Phase::Undoing(why);
        }
        let stored = self.store(false).await;
        // Without one under way it does nothing.
        let _ = self.qmp.run("migrate_cancel", json!({})).await;
        for job in self.jobs().await?.iter().filter(|job| job.end.is_none()) {
            // A destination that is gone silently would keep the mirror waiting: its connection is cut.
            let connection = json!({ "instances": [{ "type": "block-node", "node-name": job.id }] });
            let _ = self.qmp.run("yank", connection).await;
            let _ = self.qmp.run("block-job-cancel", json!({ "device": job.id, "force": true })).await;
        }
        Ok(stored?)
    }

    /// Passes the switch-over.
    pub(super) async fn switch(&mut self) -> Result<(), Fault> {
        match self.sending.as_ref().map(|sending| &sending.phase) {
            Some(Phase::Switching | Phase::Sent(_) | Phase::Holding(_)) => return Ok(()),
            Some(Phase::AtSwitchover) => {}
            _ => return Err(Fault::Refused("it does not stand at the switch-over".to_owned())),
        }
        if let Some(outgoing) = &mut self.record.outgoing {
            outgoing.switched = true;
        }
        // Needed only by a later agent: when the host dies, so does what it would be about.
        self.store(false).await?;
        if let Some(sending) = &mut self.sending {
            sending.phase = Phase::Switching;
        }
        self.advance_sending().await
    }

    /// Calls a sending off, and answers when the guest goes on as before.
    pub(super) async fn cancel(&mut self, reply: Reply) {
        let result = match &mut self.sending {
            None => Ok(None),
            Some(sending) => match &sending.phase {
                Phase::Cancelled(_) => Ok(None),
                Phase::Switching | Phase::Sent(_) | Phase::Holding(_) => {
                    Err(Fault::Refused("it has passed the switch-over".to_owned()))
                }
                phase => Ok(Some(matches!(phase, Phase::Undoing(_)))),
            },
        };
        match (result, &mut self.sending) {
            (Ok(Some(is_undoing)), Some(sending)) => {
                sending.cancelling.push(reply);
                let undone = if is_undoing { Ok(()) } else { self.undo("cancelled".to_owned()).await };
                let advanced = self.advance_sending().await;
                for fault in [undone, advanced].into_iter().filter_map(Result::err) {
                    tracing::warn!(vm = %self.record.vm, error = %super::owner::chain(&fault), "cancelling");
                }
            }
            // The one who asked may have given up.
            (Ok(_), _) => drop(reply.send(Ok(Answer::Done))),
            (Err(fault), _) => drop(reply.send(Err(fault.of("migrate_cancel")))),
        }
    }

    /// Before the guest is paused or resumed here. One that was sent, or stands at the switch-over, needs a hand-back
    /// for that: an incarnation above the one it was sent under.
    pub(super) async fn take_back(&mut self) -> Result<(), Fault> {
        let Some(sending) = &self.sending else { return Ok(()) };
        match &sending.phase {
            Phase::Cancelled(_) => return Ok(()),
            Phase::AtSwitchover | Phase::Sent(_) | Phase::Holding(_) => {}
            _ => return Err(Fault::Busy("it is being sent to another host".to_owned())),
        }
        let sent_as = self.record.outgoing.as_ref().map(|outgoing| outgoing.incarnation);
        if sent_as.is_some_and(|sent_as| self.record.incarnation <= sent_as) {
            return Err(Fault::Refused("it was given to another host and not handed back".to_owned()));
        }
        if sending.phase == Phase::AtSwitchover {
            self.undo("handed back".to_owned()).await?;
            let deadline = Instant::now() + COMMAND_DEADLINE;
            while self.sending.as_ref().is_some_and(Sending::is_under_way) {
                if Instant::now() > deadline {
                    return Err(Fault::Busy("its sending is still being undone".to_owned()));
                }
                sleep(RETRY_EVERY).await;
                self.advance_sending().await?;
            }
        }
        self.record.outgoing = None;
        self.store(true).await?;
        self.clear_mirrors().await;
        self.sending = None;
        Ok(())
    }

    async fn clear_mirrors(&self) {
        for (node, _) in &self.record.local_disks {
            let id = mirror(node);
            // Either may be gone already.
            let _ = self.qmp.run("job-dismiss", json!({ "id": id })).await;
            let _ = self.qmp.run("blockdev-del", json!({ "node-name": id })).await;
        }
    }

    /// vCPUs stopped. During a sending this is the beginning of the stand-still.
    pub(super) fn stopped(&mut self, at_ms: u64) {
        // The phase may be ahead of the event: a look at QEMU needs no event. The first stop is the one.
        let is_sending = self.sending.as_ref().is_some_and(|s| !matches!(s.phase, Phase::Cancelled(_)));
        if let (true, Some(outgoing)) = (is_sending, &mut self.record.outgoing)
            && outgoing.was_running
            && outgoing.stopped_at_ms == 0
        {
            outgoing.stopped_at_ms = at_ms;
        }
    }

    /// QEMU lets the guest run when a sending fails after its stop. After the switch-over that must not be.
    pub(super) async fn resumed_by_itself(&mut self) -> Result<(), Fault> {
        let phase = self.sending.as_ref().map(|sending| &sending.phase);
        if matches!(phase, Some(Phase::Switching | Phase::Holding(_))) {
            self.hold_still().await?;
            self.advance_sending().await?;
        }
        Ok(())
    }

    async fn hold_still(&mut self) -> Result<(), Fault> {
        self.qmp.run("stop", json!({})).await?;
        self.running = false;
        Ok(())
    }

    async fn moved(&mut self) -> Result<Moved, Fault> {
        let answer = self.qmp.run("query-migrate", json!({})).await?;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let moved = Moved { status: text("status"), error: text("error-desc"), answer: answer.clone() };
        let ram = &answer["ram"];
        if let Some(Sending { progress, .. }) = &mut self.sending
            && ram.is_object()
        {
            progress.remaining_bytes = number(&ram["remaining"]);
            progress.total_bytes = number(&ram["total"]);
            progress.transferred_bytes = number(&ram["transferred"]);
            let page_bytes = number(&ram["page-size"]).max(1);
            progress.dirty_mib_s = number(&ram["dirty-pages-rate"]).saturating_mul(page_bytes) >> 20;
        }
        Ok(moved)
    }

    async fn jobs(&mut self) -> Result<Vec<Job>, Fault> {
        if self.record.local_disks.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.qmp.run("query-jobs", json!({})).await?;
        let mirrors: Vec<String> = self.record.local_disks.iter().map(|(node, _)| mirror(node)).collect();
        let listed = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        let ours = listed.iter().filter(|job| mirrors.iter().any(|id| job["id"] == id.as_str()));
        let (mut jobs, mut done, mut total) = (Vec::new(), 0, 0);
        for job in ours {
            done += number(&job["current-progress"]);
            total += number(&job["total-progress"]);
            let status = job["status"].as_str().unwrap_or_default();
            jobs.push(Job {
                id: job["id"].as_str().unwrap_or_default().to_owned(),
                is_ready: matches!(status, "ready" | "standby"),
                end: (status == "concluded").then(|| job["error"].as_str().map(str::to_owned)),
            });
        }
        if let Some(Sending { progress, .. }) = &mut self.sending {
            progress.disk_bytes = done;
            progress.disk_total_bytes = total;
        }
        Ok(jobs)
    }

    fn figures(&self, answer: &Value) -> MigrationFigures {
        let progress = self.sending.as_ref().map(|sending| sending.progress).unwrap_or_default();
        MigrationFigures {
            downtime_ms: number(&answer["downtime"]),
            total_ms: number(&answer["total-time"]),
            transferred_bytes: number(&answer["ram"]["transferred"]),
            disk_bytes: progress.disk_bytes,
            stopped_at_ms: 0,
        }
    }
}

/// `ADDRESS:PORT` or `[ADDRESS]:PORT`, as QEMU wants it: without brackets.
fn split(endpoint: &str) -> Result<(&str, &str), Fault> {
    let parts =
        endpoint.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let refused =
        || Fault::Refused(format!("the destination offers its disks at {endpoint:?}, which is no address"));
    let (host, port) = parts.ok_or_else(refused)?;
    Ok((host.trim_start_matches('[').trim_end_matches(']'), port))
}

/// Is anybody there?
async fn reach(endpoint: &str) -> Result<(), Fault> {
    let (host, port) = split(endpoint)?;
    let port = port.parse::<u16>().expect("split has parsed it");
    let refused = |why: String| Fault::Refused(format!("the destination's disks at {endpoint}: {why}"));
    match timeout(REACH_DEADLINE, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(refused(e.to_string())),
        Err(_) => Err(refused("no answer".to_owned())),
    }
}
