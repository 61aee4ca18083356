//! The test hypervisor: guests that are nothing but records and the clock, under the same contract as real ones.
//!
//! Owns a folder with one record per guest, so that guests outlive the process that plays them: a running guest needs no
//! thread and no task, and thousands fit into one process. Migration is a real TCP stream between two drivers, but the
//! process that sends or receives is the agent's: when it dies, so does the stream ([`record`] says what then becomes of
//! the guest). Disks and displays are noted, never made.
//!
//! Entry point: [`SimDriver::open`].

mod console;
mod device;
mod fault;
mod launch;
mod receive;
mod record;
mod send;
#[cfg(test)]
mod storm_tests;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::{EndCause, Sample, SendProgress};
use dunlin_model::{Incarnation, VmId};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, oneshot};

use crate::error::{DriverError, DriverErrorKind};
use crate::hypervisor::{Device, DeviceName, DriverResult, Guest, Hypervisor, Launch, Notice};
pub use record::Memory;
use record::{Record, Saving, Sending, Stage, State};
use table::{Host, failed, now_ms};

/// How long a guest takes to switch itself off once it was asked, ms.
const POWER_OFF_MS: u64 = 50;
/// A destination that does not answer the connection within this is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// One simulated host.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Where its guests are kept. Made when it is not there; one driver at a time.
    pub dir: PathBuf,
    /// vCPUs it has, for the agent to report.
    pub cpus: u32,
    /// Memory for guests, MiB: a start beyond it is refused.
    pub mem_mib: u64,
    /// Listens here for migrations when a launch names no address.
    pub listen: String,
    /// Speed of copies and saves, MiB/s.
    pub bandwidth_mib_s: u64,
    /// What it can do; verbs of a missing power are Unsupported.
    pub powers: BTreeSet<DriverPower>,
}

impl SimConfig {
    /// A host of 16 CPUs and 64 GiB that can do everything, on loopback.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        use DriverPower::{Console, HotPlug, Migrate, MigrateStorage, Pause, Reset, Save, Shutdown, Vnc};
        Self {
            dir: dir.into(),
            cpus: 16,
            mem_mib: 64 << 10,
            listen: "127.0.0.1".to_owned(),
            bandwidth_mib_s: 1024,
            powers: [Pause, Shutdown, Reset, Save, Migrate, MigrateStorage, Console, Vnc, HotPlug].into(),
        }
    }
}

/// Something that happens to a guest without anybody having told the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// The guest switches itself off. It has to run for that.
    PowerOff,
    /// The guest's kernel gives up, and the process with it. It has to run for that.
    Panic,
    /// The process is killed from outside.
    Die,
    /// From now on the guest does, or does not, ignore its power button.
    Deaf(bool),
}

/// The driver of one simulated host. Dropping it is what kill -9 is to an agent: guests stay as they are on disk.
#[derive(Debug)]
pub struct SimDriver {
    host: Arc<Host>,
    /// Keeps a second driver away from the folder.
    _lock: File,
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        self.host.close();
    }
}

impl SimDriver {
    /// Takes over the guests in `config.dir`. Fails when another driver has the folder, or a record is not readable.
    pub async fn open(config: SimConfig) -> DriverResult<Self> {
        let lock = lock(&config)?;
        let host = Host::load(config).map_err(|e| failed("open", DriverErrorKind::Refused, e.to_string()))?;
        launch::adopt(&host)?;
        Ok(Self { host, _lock: lock })
    }

    /// Makes something happen to a guest.
    pub fn inject(&self, vm: VmId, injection: Injection) -> DriverResult<()> {
        inject(&self.host, vm, injection)
    }

    /// The guest's memory as it is now, by which a test knows that it is the same guest. None when there is no process.
    #[must_use]
    pub fn memory(&self, vm: VmId) -> Option<Memory> {
        let table = self.host.table();
        let record = &table.guests.get(&vm)?.record;
        let ran_ms = record.ran_ms(now_ms());
        record.live().then_some(Memory { ran_ms, ..record.memory })
    }

    /// What the driver was opened with.
    #[must_use]
    pub fn config(&self) -> &SimConfig {
        &self.host.config
    }

    fn power(&self, power: DriverPower, verb: &'static str) -> DriverResult<()> {
        if self.host.config.powers.contains(&power) {
            return Ok(());
        }
        Err(DriverError::unsupported(DriverName::Test, verb))
    }

    /// A change of a guest that has a process.
    fn change<T>(
        &self,
        vm: VmId,
        verb: &'static str,
        step: impl FnOnce(&mut Record, u64) -> DriverResult<T>,
    ) -> DriverResult<(T, Guest)> {
        self.host.fault(vm, verb)?;
        self.host.change(vm, verb, |record, now| {
            if !record.live() {
                return Err(failed(verb, DriverErrorKind::NotFound, "its process is gone"));
            }
            step(record, now)
        })
    }

    /// The connection of a new sending; none when the guest is being sent there already.
    async fn connect(&self, vm: VmId, endpoint: &Endpoint) -> DriverResult<Option<TcpStream>> {
        let underway = {
            let table = self.host.table();
            table.guests.get(&vm).and_then(|entry| sending_to(&entry.record, endpoint))
        };
        if let Some(verdict) = underway {
            return verdict.map(|()| None);
        }
        let address = send::address(&endpoint.memory)?;
        let refused = |e: std::io::Error| {
            failed("migrate_out", DriverErrorKind::Transient, format!("cannot reach {address}: {e}"))
        };
        match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
            Ok(connected) => connected.map(Some).map_err(refused),
            Err(_) => {
                Err(failed("migrate_out", DriverErrorKind::Deadline, format!("no answer from {address}")))
            }
        }
    }

    fn begin_sending(
        &self,
        vm: VmId,
        endpoint: Endpoint,
        limits: MigrationLimits,
        stream: TcpStream,
    ) -> DriverResult<()> {
        let ((attempt, started_ms), _) = self.change(vm, "migrate_out", |record, now| {
            if let Some(verdict) = sending_to(record, &endpoint) {
                return verdict.map(|()| (None, now));
            }
            free(record, "migrate_out")?;
            if !matches!(record.state, State::Running | State::Paused) {
                return Err(refused("migrate_out", record));
            }
            let attempt = record.sending.as_ref().map_or(1, |sending| sending.attempt + 1);
            let (incarnation, stage) = (record.incarnation, Stage::Copying);
            record.sending = Some(Sending { endpoint, attempt, incarnation, started_ms: now, stage });
            Ok((Some(attempt), now))
        })?;
        // Somebody else began the same sending meanwhile.
        let Some(attempt) = attempt else { return Ok(()) };
        let mut table = self.host.table();
        let Some(entry) = table.guests.get_mut(&vm) else { return Ok(()) };
        if entry.record.sending.as_ref().is_none_or(|sending| sending.attempt != attempt) {
            return Ok(());
        }
        let total_bytes = entry.record.mem_mib << 20;
        let disk_total_bytes = entry.record.disk_bytes();
        let dirty_mib_s = entry.record.sim.dirty_mib_s;
        let remaining_bytes = total_bytes;
        entry.progress = SendProgress {
            remaining_bytes,
            total_bytes,
            disk_total_bytes,
            dirty_mib_s,
            ..SendProgress::default()
        };
        let (word, switch) = oneshot::channel();
        let host = Arc::clone(&self.host);
        let sender = send::Sender { host, vm, stream, limits, switch, started_ms, attempt };
        entry.switch = Some(word);
        entry.link = Some(self.host.spawn(sender.run()));
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for SimDriver {
    fn name(&self) -> DriverName {
        DriverName::Test
    }

    async fn probe(&self) -> DriverCapabilities {
        let evidence = "guests are records; nothing has to run".to_owned();
        DriverCapabilities {
            name: DriverName::Test,
            version: format!("simulated {}", env!("CARGO_PKG_VERSION")),
            accels: vec![AccelProbe { accel: Accel::Simulated, usable: true, evidence }],
            machines: ["q35", "pc", "microvm"].map(str::to_owned).into(),
            cpu_models: BTreeSet::new(),
            powers: self.host.config.powers.clone(),
            away: String::new(),
        }
    }

    async fn list(&self) -> DriverResult<Vec<Guest>> {
        Ok(self.host.table().guests.values().map(table::Entry::guest).collect())
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.host.notices.subscribe()
    }

    async fn start(&self, launch: Launch) -> DriverResult<Guest> {
        self.powers_for(&launch)?;
        let (vm, incarnation) = (launch.vm, launch.incarnation);
        if let Some(ready_ms) = self.launch(launch)? {
            tokio::time::sleep(Duration::from_millis(ready_ms.saturating_sub(now_ms()))).await;
            launch::boot(&self.host, vm, incarnation)?;
        }
        let table = self.host.table();
        let entry = table.guests.get(&vm).filter(|entry| entry.record.live());
        entry
            .map(table::Entry::guest)
            .ok_or_else(|| failed("start", DriverErrorKind::Refused, "it was destroyed while it started"))
    }

    async fn shutdown(&self, vm: VmId) -> DriverResult<()> {
        self.power(DriverPower::Shutdown, "shutdown")?;
        let (_, guest) = self.change(vm, "shutdown", |record, now| {
            if !matches!(record.state, State::Running | State::Paused) {
                return Err(refused("shutdown", record));
            }
            if !record.deaf {
                record.power_off_at_ms.get_or_insert(now + POWER_OFF_MS);
            }
            Ok(())
        })?;
        launch::attend_power_off(&self.host, guest.vm);
        Ok(())
    }

    async fn reboot_on_shutdown(&self, vm: VmId, reboot: bool) -> DriverResult<()> {
        self.power(DriverPower::Shutdown, "reboot_on_shutdown")?;
        let set = self.change(vm, "reboot_on_shutdown", |record, _| {
            record.reboot_on_shutdown = reboot;
            Ok(())
        });
        set.map(drop)
    }

    async fn reset(&self, vm: VmId) -> DriverResult<()> {
        self.power(DriverPower::Reset, "reset")?;
        self.change(vm, "reset", |record, _| {
            free(record, "reset")?;
            if !matches!(record.state, State::Running | State::Paused) {
                return Err(refused("reset", record));
            }
            record.reboot();
            Ok(())
        })?;
        console::say(&self.host, vm, "reset");
        Ok(())
    }

    async fn destroy(&self, vm: VmId) -> DriverResult<()> {
        self.host.fault(vm, "destroy")?;
        let ended = self.host.change(vm, "destroy", |record, now| {
            if record.live() {
                record.end(now, EndCause::Told, "destroyed");
            }
            Ok(())
        });
        match ended {
            Err(error) if error.kind == DriverErrorKind::NotFound => Ok(()),
            ended => ended.map(drop),
        }
    }

    async fn forget(&self, vm: VmId) -> DriverResult<()> {
        let mut table = self.host.table();
        let Some(entry) = table.guests.get(&vm) else { return Ok(()) };
        if entry.record.live() {
            return Err(refused("forget", &entry.record));
        }
        // The record goes last: as long as it is there, forgetting can be taken up again.
        for kind in ["console", "guest"] {
            match std::fs::remove_file(self.host.file(vm, kind)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("forget", DriverErrorKind::Transient, error.to_string()));
                }
                _ => {}
            }
        }
        table.guests.remove(&vm);
        Ok(())
    }

    async fn erase_log(&self, vm: VmId) -> DriverResult<()> {
        match std::fs::remove_file(self.host.file(vm, "log")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("erase_log", DriverErrorKind::Transient, error.to_string()))
            }
            _ => Ok(()),
        }
    }

    async fn pause(&self, vm: VmId) -> DriverResult<Guest> {
        self.power(DriverPower::Pause, "pause")?;
        let paused = self.change(vm, "pause", |record, now| {
            free(record, "pause")?;
            let handed_back = record.handed_back();
            match &mut record.state {
                State::Booting { paused, .. } => *paused = true,
                State::Paused => {}
                State::Running | State::Arrived => record.halt(now, State::Paused),
                State::Outgoing { .. } if handed_back => {
                    record.sending = None;
                    record.state = State::Paused;
                }
                _ => return Err(refused("pause", record)),
            }
            Ok(())
        });
        paused.map(|(_, guest)| guest)
    }

    async fn resume(&self, vm: VmId) -> DriverResult<Guest> {
        let resumed = self.change(vm, "resume", |record, now| {
            free(record, "resume")?;
            let handed_back = record.handed_back();
            match &mut record.state {
                State::Booting { paused, .. } => *paused = false,
                State::Running => {}
                State::Paused | State::Arrived => record.run(now),
                State::Outgoing { .. } if handed_back => {
                    record.sending = None;
                    record.run(now);
                }
                _ => return Err(refused("resume", record)),
            }
            Ok(())
        });
        let (_, guest) = resumed?;
        launch::attend_power_off(&self.host, vm);
        Ok(guest)
    }

    async fn plug(&self, vm: VmId, device: Device) -> DriverResult<()> {
        self.power(DriverPower::HotPlug, "plug")?;
        let plugged = self.change(vm, "plug", |record, _| {
            free(record, "plug")?;
            device::plug(record, &device).then_some(()).ok_or_else(|| refused("plug", record))
        });
        plugged.map(drop)
    }

    async fn unplug(&self, vm: VmId, device: DeviceName) -> DriverResult<()> {
        self.power(DriverPower::HotPlug, "unplug")?;
        let unplugged = self.change(vm, "unplug", |record, _| {
            free(record, "unplug")?;
            device::unplug(record, &device).then_some(()).ok_or_else(|| refused("unplug", record))
        });
        unplugged.map(drop)
    }

    async fn adopt_incarnation(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
        let adopted = self.change(vm, "adopt_incarnation", |record, _| {
            if incarnation < record.incarnation {
                let problem = format!("its process carries {}, which is higher", record.incarnation);
                return Err(failed("adopt_incarnation", DriverErrorKind::Refused, problem));
            }
            record.incarnation = incarnation;
            Ok(())
        });
        adopted.map(drop)
    }

    async fn save(&self, vm: VmId, file: PathBuf) -> DriverResult<u64> {
        self.power(DriverPower::Save, "save")?;
        self.save_to(vm, file).await
    }

    async fn migrate_out(&self, vm: VmId, endpoint: Endpoint, limits: MigrationLimits) -> DriverResult<()> {
        self.power(DriverPower::Migrate, "migrate_out")?;
        if !endpoint.disks.is_empty() {
            self.power(DriverPower::MigrateStorage, "migrate_out")?;
        }
        match self.connect(vm, &endpoint).await? {
            Some(stream) => self.begin_sending(vm, endpoint, limits, stream),
            None => Ok(()),
        }
    }

    async fn migrate_switch(&self, vm: VmId) -> DriverResult<()> {
        self.power(DriverPower::Migrate, "migrate_switch")?;
        self.change(vm, "migrate_switch", |record, _| match record.sending.as_mut() {
            Some(sending) => match sending.stage {
                Stage::AtSwitchover => {
                    sending.stage = Stage::Switching;
                    Ok(())
                }
                Stage::Switching | Stage::Sent(_) => Ok(()),
                _ => Err(refused("migrate_switch", record)),
            },
            None => Err(refused("migrate_switch", record)),
        })?;
        // Only now that the record says so may the first of the last bytes go.
        let word = self.host.table().guests.get_mut(&vm).and_then(|entry| entry.switch.take());
        if let Some(word) = word {
            // The task that listens is gone only if the guest is.
            let _ = word.send(());
        }
        Ok(())
    }

    async fn migrate_cancel(&self, vm: VmId) -> DriverResult<()> {
        self.power(DriverPower::Migrate, "migrate_cancel")?;
        self.change(vm, "migrate_cancel", |record, now| {
            match record.sending.as_ref().map(|sending| &sending.stage) {
                None | Some(Stage::Cancelled(_)) => Ok(()),
                Some(Stage::Copying | Stage::AtSwitchover) => {
                    record.call_off(now, "cancelled");
                    Ok(())
                }
                Some(_) => Err(refused("migrate_cancel", record)),
            }
        })?;
        launch::attend_power_off(&self.host, vm);
        Ok(())
    }

    fn serial_log(&self, vm: VmId) -> PathBuf {
        self.host.file(vm, "log")
    }

    fn console(&self, vm: VmId) -> DriverResult<(PathBuf, PathBuf)> {
        self.power(DriverPower::Console, "console")?;
        if !self.host.table().guests.contains_key(&vm) {
            return Err(failed("console", DriverErrorKind::NotFound, format!("no guest {vm}")));
        }
        console::open(&self.host, vm)
            .map_err(|e| failed("console", DriverErrorKind::Transient, e.to_string()))?;
        Ok((self.host.file(vm, "console"), self.host.file(vm, "log")))
    }

    async fn sample(&self) -> DriverResult<Vec<Sample>> {
        let now = now_ms();
        let table = self.host.table();
        let live = table.guests.values().map(|entry| &entry.record).filter(|record| record.live());
        let sample = |record: &Record| Sample {
            vm: record.vm,
            cpu_ms: record.ran_ms(now).saturating_mul(record.sim.cpu_percent.into()) / 100,
            wait_ms: 0,
            rss_mib: record.mem_mib,
            dirty_mib_s: Some(record.sim.dirty_mib_s),
        };
        Ok(live.map(sample).collect())
    }
}

/// Is it being sent, or was it sent, already? Done when to there, Busy when to elsewhere.
fn sending_to(record: &Record, endpoint: &Endpoint) -> Option<DriverResult<()>> {
    let sending = record.sending.as_ref()?;
    match &sending.stage {
        Stage::Cancelled(_) => None,
        Stage::Holding(_) => Some(Err(refused("migrate_out", record))),
        _ if sending.endpoint == *endpoint => Some(Ok(())),
        _ => {
            let problem = format!("it is being sent to {}", sending.endpoint.memory);
            Some(Err(failed("migrate_out", DriverErrorKind::Busy, problem)))
        }
    }
}

/// Refuses a guest that is being saved.
fn free(record: &Record, verb: &'static str) -> DriverResult<()> {
    match &record.saving {
        Some(Saving { file, .. }) => {
            Err(failed(verb, DriverErrorKind::Busy, format!("it is being saved to {}", file.display())))
        }
        None => Ok(()),
    }
}

fn refused(verb: &'static str, record: &Record) -> DriverError {
    let stage = record.sending.as_ref().map(|sending| format!(", sending {:?}", sending.stage));
    let problem = format!("not while it is {:?}{}", record.state, stage.unwrap_or_default());
    failed(verb, DriverErrorKind::Refused, problem)
}

fn inject(host: &Host, vm: VmId, injection: Injection) -> DriverResult<()> {
    let happened = host.change(vm, "inject", |record, now| {
        let running = record.state == State::Running;
        match injection {
            Injection::PowerOff if running => record.power_off(now),
            Injection::Panic if running => record.end(now, EndCause::Died, "the guest's kernel panicked"),
            Injection::Die if record.live() => record.end(now, EndCause::Died, "the process was killed"),
            Injection::Deaf(deaf) if record.live() => record.deaf = deaf,
            _ => return Err(refused("inject", record)),
        }
        Ok(())
    });
    happened.map(drop)
}

/// Locks the folder, which it makes when it is not there.
fn lock(config: &SimConfig) -> DriverResult<File> {
    use rustix::fs::{FlockOperation, flock};
    let failed = |kind, e: std::io::Error| failed("open", kind, format!("{}: {e}", config.dir.display()));
    std::fs::create_dir_all(&config.dir).map_err(|e| failed(DriverErrorKind::Refused, e))?;
    let file = File::create(config.dir.join("lock")).map_err(|e| failed(DriverErrorKind::Refused, e))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| failed(DriverErrorKind::Busy, e.into()))?;
    Ok(file)
}
