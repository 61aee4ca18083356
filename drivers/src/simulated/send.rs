//! The source's side of a simulated migration.
//!
//! ```text
//! Copying --(copied)--> AtSwitchover --(migrate_switch)--> Switching --(all written)--> Sent
//!    |                       |                                 +-------(write failed)--> Holding
//!    +---(failed, cancelled)-+---> Cancelled: the guest runs on
//! ```
//! Only numbers cross the wire. Time passes as if the bytes did: rounds of pre-copy at the given bandwidth, during each
//! of which the guest writes over memory at its dirty rate.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::VmId;
use dunlin_model::migration::{MigrationFigures, MigrationLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::launch;
use super::record::{Record, Stage, State};
use super::table::{Host, failed, now_ms};
use super::wire::{Frame, WIRE_VERSION};
use crate::error::DriverErrorKind;

/// Progress is told, and a dead destination noticed, this often.
const SLICE_MS: u64 = 200;
const MIB: u64 = 1 << 20;

/// One sending under way.
pub(super) struct Sender {
    pub(super) host: Arc<Host>,
    pub(super) vm: VmId,
    pub(super) stream: TcpStream,
    pub(super) limits: MigrationLimits,
    pub(super) switch: oneshot::Receiver<()>,
    pub(super) started_ms: u64,
    pub(super) attempt: u64,
}

impl Sender {
    /// Sends the guest; every way out is written into its record.
    pub(super) async fn run(mut self) {
        match self.copy().await {
            Ok(remaining_bytes) => self.finish(remaining_bytes).await,
            Err(why) => {
                self.record(&Stage::Copying, |record, now| record.call_off(now, &why));
                launch::attend_power_off(&self.host, self.vm);
            }
        }
    }

    /// Changes the record if this sending is still the one, and at `stage`. A record that cannot be written leaves the
    /// sending where it is: the leader's timeout then calls it off.
    fn record(&self, stage: &Stage, step: impl FnOnce(&mut Record, u64)) -> bool {
        let changed = self.host.change(self.vm, "migrate_out", |record, now| {
            let mine = record.sending.as_ref();
            if mine.is_some_and(|sending| sending.attempt == self.attempt && sending.stage == *stage) {
                step(record, now);
                return Ok(());
            }
            Err(failed("migrate_out", DriverErrorKind::Refused, "the sending was called off"))
        });
        changed.inspect_err(|error| tracing::warn!(vm = %self.vm, %error, "sending stands still")).is_ok()
    }

    /// Copies while the guest runs, then stops it. Returns the memory left to send, bytes.
    async fn copy(&mut self) -> Result<u64, String> {
        let (hello, mem_bytes, disk_bytes, sim) = {
            let table = self.host.table();
            let record = &table.guests.get(&self.vm).ok_or("the guest is gone")?.record;
            let (vm, incarnation, mem_mib) = (record.vm, record.incarnation, record.mem_mib);
            let hello = Frame::Hello { version: WIRE_VERSION, vm, incarnation, mem_mib };
            (hello, record.mem_mib * MIB, record.disk_bytes(), record.sim.clone())
        };
        self.write(&hello).await?;
        self.host.fault(self.vm, "copy").map_err(|e| e.message)?;
        self.pass(disk_bytes, |progress, sent| progress.disk_bytes += sent).await?;
        let mut remaining_bytes = mem_bytes;
        loop {
            self.progress(|progress| progress.remaining_bytes = remaining_bytes);
            let round_ms = self.pass(remaining_bytes, |progress, sent| {
                progress.transferred_bytes += sent;
                progress.remaining_bytes = progress.remaining_bytes.saturating_sub(sent);
            });
            let round_ms = round_ms.await?;
            let running = matches!(self.state()?, State::Running);
            let dirtied = sim.dirty_mib_s.saturating_mul(MIB).saturating_mul(round_ms) / 1000;
            remaining_bytes = if running { dirtied.min(mem_bytes) } else { 0 };
            self.host.fault(self.vm, "copy").map_err(|e| e.message)?;
            if self.time_ms(remaining_bytes) <= self.limits.downtime_ms {
                break;
            }
        }
        self.progress(|progress| progress.remaining_bytes = remaining_bytes);
        let stopped = self.record(&Stage::Copying, |record, now| {
            let paused = record.state == State::Paused;
            record.halt(now, State::Outgoing { paused });
            record.sending.iter_mut().for_each(|sending| sending.stage = Stage::AtSwitchover);
        });
        if stopped {
            Ok(remaining_bytes)
        } else {
            Err("it was called off, or its record could not be written".to_owned())
        }
    }

    /// Waits for the word, then sends the rest.
    async fn finish(mut self, remaining_bytes: u64) {
        let stopped_ms = now_ms();
        // The other end lives as long as the sending can be switched.
        if (&mut self.switch).await.is_err() {
            return;
        }
        let sent = self.send_rest(remaining_bytes).await;
        let ended_ms = now_ms();
        self.progress(|progress| {
            progress.transferred_bytes += remaining_bytes;
            progress.remaining_bytes = 0;
        });
        let progress = {
            let table = self.host.table();
            table.guests.get(&self.vm).map(|entry| entry.progress).unwrap_or_default()
        };
        let stage = match sent {
            Ok(()) => Stage::Sent(MigrationFigures {
                stopped_at_ms: stopped_ms,
                downtime_ms: ended_ms.saturating_sub(stopped_ms),
                total_ms: ended_ms.saturating_sub(self.started_ms),
                transferred_bytes: progress.transferred_bytes,
                disk_bytes: progress.disk_bytes,
            }),
            Err(why) => Stage::Holding(why),
        };
        self.record(&Stage::Switching, |record, _| {
            if let Some(sending) = &mut record.sending {
                sending.stage = stage;
            }
        });
    }

    async fn send_rest(&mut self, remaining_bytes: u64) -> Result<(), String> {
        self.pause_ms(self.time_ms(remaining_bytes)).await?;
        let (memory, powering_off) = {
            let table = self.host.table();
            let record = &table.guests.get(&self.vm).ok_or("the guest is gone")?.record;
            (record.memory, record.power_off_at_ms.is_some())
        };
        let fault = self.host.fault(self.vm, "switch");
        let bytes = Frame::Switch { memory, powering_off }.encode().map_err(|e| e.to_string())?;
        if let Err(fault) = fault {
            // Half of the frame: the destination sees a stream that broke off.
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            self.stream.write_all(half).await.map_err(|e| e.to_string())?;
            return Err(fault.message);
        }
        self.stream.write_all(&bytes).await.map_err(|e| e.to_string())
    }

    /// Lets so many bytes pass, slice by slice. Returns how long that took, ms.
    async fn pass(
        &mut self,
        bytes: u64,
        count: impl Fn(&mut dunlin_model::observed::SendProgress, u64),
    ) -> Result<u64, String> {
        let slice_bytes = (self.bandwidth_mib_s() * MIB * SLICE_MS / 1000).max(1);
        let (mut left, mut passed_ms) = (bytes, 0);
        while left > 0 {
            let sent = left.min(slice_bytes);
            let slice_ms = self.time_ms(sent);
            self.pause_ms(slice_ms).await?;
            left -= sent;
            passed_ms += slice_ms;
            let progress = self.progress(|progress| count(progress, sent));
            let memory_bytes = progress.transferred_bytes;
            self.write(&Frame::Progress { memory_bytes, disk_bytes: progress.disk_bytes }).await?;
            if now_ms().saturating_sub(self.started_ms) > self.limits.timeout_s * 1000 {
                return Err(format!(
                    "given up after {} s: the guest writes memory too fast",
                    self.limits.timeout_s
                ));
            }
        }
        Ok(passed_ms)
    }

    /// Sleeps, unless the destination hangs up first. It never says anything.
    async fn pause_ms(&mut self, ms: u64) -> Result<(), String> {
        let mut byte = [0];
        tokio::select! {
            biased;
            read = self.stream.read(&mut byte) => Err(match read {
                Ok(0) => "the destination closed the stream".to_owned(),
                Ok(_) => "the destination spoke out of turn".to_owned(),
                Err(error) => error.to_string(),
            }),
            () = tokio::time::sleep(Duration::from_millis(ms)) => Ok(()),
        }
    }

    async fn write(&mut self, frame: &Frame) -> Result<(), String> {
        let bytes = frame.encode().map_err(|e| e.to_string())?;
        self.stream.write_all(&bytes).await.map_err(|e| e.to_string())
    }

    fn progress(
        &self,
        step: impl FnOnce(&mut dunlin_model::observed::SendProgress),
    ) -> dunlin_model::observed::SendProgress {
        let mut table = self.host.table();
        let Some(entry) = table.guests.get_mut(&self.vm) else { return Default::default() };
        step(&mut entry.progress);
        self.host.tell(entry);
        entry.progress
    }

    fn state(&self) -> Result<State, String> {
        let table = self.host.table();
        Ok(table.guests.get(&self.vm).ok_or("the guest is gone")?.record.state.clone())
    }

    fn bandwidth_mib_s(&self) -> u64 {
        let host_mib_s = self.host.config.bandwidth_mib_s.max(1);
        if self.limits.bandwidth_mib_s == 0 {
            host_mib_s
        } else {
            host_mib_s.min(self.limits.bandwidth_mib_s)
        }
    }

    fn time_ms(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(1000).div_ceil(self.bandwidth_mib_s() * MIB)
    }
}

/// Splits `tcp:ADDRESS:PORT`.
pub(super) fn address(memory: &str) -> Result<&str, crate::DriverError> {
    memory.strip_prefix("tcp:").ok_or_else(|| {
        failed(
            "migrate_out",
            DriverErrorKind::Refused,
            format!("endpoint {memory:?} is not tcp:ADDRESS:PORT"),
        )
    })
}
