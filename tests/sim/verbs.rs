//! The verbs of the hypervisors that are played, as the trait's contract has them: each may be cut off anywhere, and
//! called again.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use dunlin_agent::ground::Timer as _;
use dunlin_drivers::error::DriverErrorKind;
use dunlin_drivers::hypervisor::{DriverResult, Guest, Launch, LaunchMode};
use dunlin_drivers::{DriverError, Hypervisor, Notice};
use dunlin_model::capabilities::{DriverCapabilities, DriverName};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::{EndCause, Sample};
use dunlin_model::{Incarnation, VmId};
use tokio::sync::broadcast;

use crate::hypervisor::{Driver, Inner, Process, Sending, Stage};

/// A verb's usual time, ms, and that of a host that is slow.
const VERB_MS: u64 = 120;
const SLOW_VERB_MS: u64 = 3_000;

fn error(verb: &'static str, kind: DriverErrorKind, words: &str) -> DriverError {
    DriverError::new(DriverName::Test, verb, kind, words)
}

impl Driver {
    /// Time passes, in which the caller may die.
    async fn pause_for(&self) {
        let ms = {
            let mut inner = self.plane.lock();
            let longest = if inner.breaks && inner.rng.chance(4) { SLOW_VERB_MS } else { VERB_MS };
            inner.rng.below(longest)
        };
        self.plane.time.sleep(Duration::from_millis(ms)).await;
    }

    /// Does it, before or after some time, and sometimes says that it failed, whether it did or not.
    async fn verb<T>(
        &self,
        verb: &'static str,
        act: impl FnOnce(&mut Inner) -> DriverResult<T>,
    ) -> DriverResult<T> {
        self.pause_for().await;
        let (before, after) = {
            let mut inner = self.plane.lock();
            let breaks = inner.breaks;
            (breaks && inner.rng.chance(3), breaks && inner.rng.chance(3))
        };
        if before {
            return Err(error(verb, DriverErrorKind::Transient, "not now"));
        }
        let done = act(&mut self.plane.lock());
        self.pause_for().await;
        if after {
            return Err(error(verb, DriverErrorKind::Deadline, "no answer"));
        }
        done
    }

    fn alive<'a>(&self, inner: &'a Inner, vm: VmId, verb: &'static str) -> DriverResult<&'a Process> {
        let found = inner.process(self.host, vm).filter(|process| process.is_alive());
        found.ok_or_else(|| error(verb, DriverErrorKind::NotFound, "no such process"))
    }

    /// Changes a process that must be there, and says what it is then.
    fn with(
        &self,
        inner: &mut Inner,
        vm: VmId,
        verb: &'static str,
        change: impl FnOnce(&mut Process),
    ) -> DriverResult<Guest> {
        self.alive(inner, vm, verb)?;
        inner.change(self.host, vm, change);
        Ok(self.alive(inner, vm, verb)?.guest())
    }

    fn bring_up(&self, inner: &mut Inner, launch: &Launch) -> DriverResult<Guest> {
        if let Some(process) = inner.process(self.host, launch.vm) {
            if process.incarnation == launch.incarnation && process.is_alive() {
                return Ok(process.guest());
            }
            return Err(error("start", DriverErrorKind::Refused, "a process of it is left"));
        }
        if inner.breaks && inner.rng.chance(3) {
            return Err(error("start", DriverErrorKind::Refused, "bad disk"));
        }
        let (mut endpoint, mut stage) = (None, Stage::Running);
        match &launch.mode {
            LaunchMode::Restore(file) if !file.exists() => {
                return Err(error("start", DriverErrorKind::Refused, "the saved memory is not there"));
            }
            LaunchMode::Boot | LaunchMode::Restore(_) if launch.paused => stage = Stage::Paused,
            LaunchMode::Boot | LaunchMode::Restore(_) => {}
            LaunchMode::Incoming { .. } => {
                stage = Stage::Incoming { arrived: false };
                let memory = format!("tcp:{}:{}", self.host, inner.rng.below(1 << 40));
                endpoint = Some(Endpoint { memory, disks: String::new() });
            }
        }
        let process = Process {
            vm: launch.vm,
            name: launch.name.clone(),
            incarnation: launch.incarnation,
            ever_ran: stage == Stage::Running,
            before: stage.clone(),
            stage,
            sending: None,
            reboots: 0,
            reboots_on_shutdown: false,
            off_at: None,
            endpoint,
            resumed_at_ms: None,
        };
        let guest = process.guest();
        let machine = inner.machines.get_mut(&self.host).expect("a driver has a machine");
        machine.processes.insert(launch.vm, process);
        let _ = machine.notices.send(Notice { guest: guest.clone() });
        Ok(guest)
    }
}

#[async_trait]
impl Hypervisor for Driver {
    fn name(&self) -> DriverName {
        DriverName::Test
    }

    async fn probe(&self) -> DriverCapabilities {
        DriverCapabilities { name: DriverName::Test, ..DriverCapabilities::default() }
    }

    async fn list(&self) -> DriverResult<Vec<Guest>> {
        self.verb("list", |inner| {
            let machine = inner.machines.get(&self.host).expect("a driver has a machine");
            Ok(machine.processes.values().map(Process::guest).collect())
        })
        .await
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.plane.lock().machines[&self.host].notices.subscribe()
    }

    async fn start(&self, launch: Launch) -> DriverResult<Guest> {
        self.verb("start", |inner| self.bring_up(inner, &launch)).await
    }

    async fn shutdown(&self, vm: VmId) -> DriverResult<()> {
        let now = self.plane.time.now_ms();
        self.verb("shutdown", |inner| {
            let (heeds, after) = (inner.rng.chance(80), inner.rng.below(3_000));
            let off_at = heeds.then_some(now + after);
            self.with(inner, vm, "shutdown", |process| process.off_at = process.off_at.or(off_at)).map(drop)
        })
        .await
    }

    async fn reboot_on_shutdown(&self, vm: VmId, reboot: bool) -> DriverResult<()> {
        self.verb("reboot_on_shutdown", |inner| {
            self.with(inner, vm, "reboot_on_shutdown", |process| process.reboots_on_shutdown = reboot)
                .map(drop)
        })
        .await
    }

    async fn reset(&self, vm: VmId) -> DriverResult<()> {
        self.verb("reset", |inner| self.with(inner, vm, "reset", |process| process.reboots += 1).map(drop))
            .await
    }

    async fn destroy(&self, vm: VmId) -> DriverResult<()> {
        self.verb("destroy", |inner| {
            if self.alive(inner, vm, "destroy").is_ok() {
                inner.change(self.host, vm, |process| process.end(EndCause::Told, "destroyed"));
            }
            Ok(())
        })
        .await
    }

    async fn forget(&self, vm: VmId) -> DriverResult<()> {
        self.verb("forget", |inner| {
            if self.alive(inner, vm, "forget").is_ok() {
                return Err(error("forget", DriverErrorKind::Busy, "it runs"));
            }
            inner.machines.get_mut(&self.host).expect("a driver has a machine").processes.remove(&vm);
            Ok(())
        })
        .await
    }

    async fn erase_log(&self, _: VmId) -> DriverResult<()> {
        Ok(())
    }

    async fn pause(&self, vm: VmId) -> DriverResult<Guest> {
        self.verb("pause", |inner| {
            self.with(inner, vm, "pause", |process| match process.stage {
                Stage::Running => process.stage = Stage::Paused,
                Stage::Still | Stage::Incoming { arrived: true } => {
                    (process.stage, process.sending) = (Stage::Paused, None);
                }
                _ => {}
            })
        })
        .await
    }

    async fn resume(&self, vm: VmId) -> DriverResult<Guest> {
        let now = self.plane.time.now_ms();
        self.verb("resume", |inner| {
            let process = self.alive(inner, vm, "resume")?;
            let sends = matches!(
                process.sending,
                Some((_, Sending::Copying { .. } | Sending::AtSwitchover | Sending::Passing { .. }))
            );
            if sends || process.stage == (Stage::Incoming { arrived: false }) {
                return Err(error("resume", DriverErrorKind::Refused, "it is on its way"));
            }
            self.with(inner, vm, "resume", |process| {
                process.stage = Stage::Running;
                process.ever_ran = true;
                process.sending = None;
                process.resumed_at_ms = Some(now);
            })
        })
        .await
    }

    async fn adopt_incarnation(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
        self.verb("adopt_incarnation", |inner| {
            self.with(inner, vm, "adopt_incarnation", |process| {
                process.incarnation = process.incarnation.max(incarnation);
            })
            .map(drop)
        })
        .await
    }

    async fn save(&self, vm: VmId, file: PathBuf) -> DriverResult<u64> {
        self.verb("save", |inner| {
            let process = self.alive(inner, vm, "save")?;
            if !matches!(process.stage, Stage::Running | Stage::Paused) || inner.rng.chance(5) {
                return Err(error("save", DriverErrorKind::Refused, "not as it stands"));
            }
            let memory = b"memory";
            std::fs::write(&file, memory)
                .map_err(|e| error("save", DriverErrorKind::Refused, &e.to_string()))?;
            inner.change(self.host, vm, |process| process.end(EndCause::Told, "saved"));
            Ok(memory.len() as u64)
        })
        .await
    }

    async fn migrate_out(&self, vm: VmId, endpoint: Endpoint, _: MigrationLimits) -> DriverResult<()> {
        let now = self.plane.time.now_ms();
        self.verb("migrate_out", |inner| {
            let process = self.alive(inner, vm, "migrate_out")?;
            match &process.sending {
                Some((to, _)) if *to == endpoint => return Ok(()),
                Some((_, Sending::Cancelled(_))) | None => {}
                Some(_) => return Err(error("migrate_out", DriverErrorKind::Busy, "it is being sent")),
            }
            if !matches!(process.stage, Stage::Running | Stage::Paused) {
                return Err(error("migrate_out", DriverErrorKind::Refused, "it stands still"));
            }
            let until = now + inner.rng.below(3_000);
            self.with(inner, vm, "migrate_out", |process| {
                process.sending = Some((endpoint, Sending::Copying { until }));
            })
            .map(drop)
        })
        .await
    }

    async fn migrate_switch(&self, vm: VmId) -> DriverResult<()> {
        let now = self.plane.time.now_ms();
        self.verb("migrate_switch", |inner| {
            let until = now + inner.rng.below(600);
            match self.alive(inner, vm, "migrate_switch")?.sending.clone() {
                Some((to, Sending::AtSwitchover)) => self
                    .with(inner, vm, "migrate_switch", |process| {
                        process.sending = Some((to, Sending::Passing { until }));
                    })
                    .map(drop),
                Some((_, Sending::Passing { .. } | Sending::Sent | Sending::Holding)) => Ok(()),
                _ => Err(error("migrate_switch", DriverErrorKind::Refused, "it is not that far")),
            }
        })
        .await
    }

    async fn migrate_cancel(&self, vm: VmId) -> DriverResult<()> {
        self.verb("migrate_cancel", |inner| match self.alive(inner, vm, "migrate_cancel")?.sending {
            Some((_, Sending::Copying { .. } | Sending::AtSwitchover)) => {
                inner.call_off(self.host, vm, "cancelled");
                Ok(())
            }
            Some((_, Sending::Passing { .. } | Sending::Sent | Sending::Holding)) => {
                Err(error("migrate_cancel", DriverErrorKind::Refused, "it is past the switch"))
            }
            _ => Ok(()),
        })
        .await
    }

    fn serial_log(&self, vm: VmId) -> PathBuf {
        self.data_dir.join(format!("{vm}.log"))
    }

    fn console(&self, _: VmId) -> DriverResult<(PathBuf, PathBuf)> {
        Err(DriverError::unsupported(DriverName::Test, "console"))
    }

    async fn sample(&self) -> DriverResult<Vec<Sample>> {
        Ok(Vec::new())
    }
}
