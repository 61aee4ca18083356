//! How a guest comes up, comes back after the agent did, is saved and restored, and switches itself off.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::capabilities::{Accel, DriverPower};
use dunlin_model::observed::EndCause;
use dunlin_model::vm::{DiskSource, Vnc, VncPort};
use dunlin_model::{Incarnation, VmId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::record::{Memory, RECORD_VERSION, Record, Saving, SimDisk, State, content};
use super::table::{Entry, Host, Table, failed, now_ms};
use super::{SimDriver, console, free, receive, refused};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Launch, LaunchMode};

/// Ports of automatic displays: from RFB's display 0 to the last one there is.
const VNC_PORTS: std::ops::RangeInclusive<u16> = 5900..=65_535;
/// A guest that would take longer to boot is refused: every verb has to end, ms.
const BOOT_MS_MAX: u64 = 600_000;
/// Version of a saved file.
const SAVED_VERSION: u32 = 1;

/// What is in a saved file.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    vm: VmId,
    mem_mib: u64,
    memory: Memory,
}

impl SimDriver {
    /// Refuses a launch that needs a power this host has not.
    pub(super) fn powers_for(&self, launch: &Launch) -> DriverResult<()> {
        match launch.mode {
            LaunchMode::Boot => Ok(()),
            LaunchMode::Restore(_) => self.power(DriverPower::Save, "start"),
            LaunchMode::Incoming { .. } => self.power(DriverPower::Migrate, "start"),
        }
    }

    /// Writes the guest's record, or finds it there. Returns when it will have booted, if it has not.
    pub(super) fn launch(&self, launch: Launch) -> DriverResult<Option<u64>> {
        let host = &self.host;
        let mut table = host.table();
        if let Some(entry) = table.guests.get(&launch.vm)
            && let Some(done) = repeated(&entry.record, launch.incarnation)?
        {
            return Ok(done);
        }
        let sim = launch.spec.sim.clone().unwrap_or_default();
        if table.draw(&sim, launch.vm, launch.incarnation, "start") {
            return Err(failed("start", DriverErrorKind::Transient, "a simulated fault"));
        }
        let record = fresh(host, &table, launch)?;
        let ready_ms = match record.state {
            State::Booting { ready_ms, .. } => Some(ready_ms),
            _ => None,
        };
        let mut entry = Entry::new(record);
        let incoming = match &entry.record.state {
            State::Incoming { listen, .. } => Some(receive::bind(host, listen)?),
            _ => None,
        };
        if let Some((listener, bound)) = incoming {
            receive::attend(host, &mut entry, listener, bound);
        }
        let (vm, incarnation) = (entry.record.vm, entry.record.incarnation);
        host.insert(&mut table, entry)
            .map_err(|e| failed("start", DriverErrorKind::Transient, e.to_string()))?;
        drop(table);
        if let Some(ready_ms) = ready_ms {
            attend_boot(host, vm, incarnation, ready_ms);
        }
        Ok(ready_ms)
    }

    /// Stops the guest, lets the time pass that its memory takes to write, and writes the file.
    pub(super) async fn save_to(&self, vm: VmId, file: PathBuf) -> DriverResult<u64> {
        self.host.fault(vm, "save")?;
        let begun = self.host.change(vm, "save", |record, now| {
            if matches!(&record.state, State::Ended { cause: EndCause::Told, .. }) && file.is_file() {
                return Ok(None);
            }
            if !record.live() {
                return Err(failed("save", DriverErrorKind::NotFound, "its process is gone"));
            }
            free(record, "save")?;
            let sending = record.sending.as_ref().is_some_and(|sending| sending.stage.under_way());
            if sending || !matches!(record.state, State::Running | State::Paused) {
                return Err(refused("save", record));
            }
            // An older file under this name would pass for this one after a crash.
            remove(&file).map_err(|e| failed("save", DriverErrorKind::Refused, e.to_string()))?;
            let paused = record.state == State::Paused;
            record.halt(now, State::Paused);
            record.saving = Some(Saving { file: file.clone(), paused });
            Ok(Some(record.clone()))
        })?;
        let (Some(record), _) = begun else {
            return length(&file).map_err(|e| failed("save", DriverErrorKind::Transient, e.to_string()));
        };
        let (report, done) = oneshot::channel();
        let task = finish_save(Arc::clone(&self.host), record, file, report);
        let link = self.host.spawn(task);
        if let Some(entry) =
            self.host.table().guests.get_mut(&vm).filter(|entry| entry.record.saving.is_some())
        {
            entry.link = Some(link);
        }
        done.await.unwrap_or_else(|_| {
            Err(failed("save", DriverErrorKind::Refused, "it was destroyed while it was saved"))
        })
    }
}

/// In a task of its own, so that it is finished even when nobody waits for it any more.
async fn finish_save(
    host: Arc<Host>,
    record: Record,
    file: PathBuf,
    report: oneshot::Sender<DriverResult<u64>>,
) {
    let write_ms = record.mem_mib.saturating_mul(1000) / host.config.bandwidth_mib_s.max(1);
    tokio::time::sleep(Duration::from_millis(write_ms)).await;
    let (vm, mem_mib, memory) = (record.vm, record.mem_mib, record.memory);
    let written = write_saved(&file, &Saved { version: SAVED_VERSION, vm, mem_mib, memory });
    let ended = host.change(vm, "save", |record, now| {
        let Some(saving) = record.saving.take() else {
            return Err(failed("save", DriverErrorKind::Refused, "it is not being saved any more"));
        };
        match &written {
            Ok(_) => record.end(now, EndCause::Told, "saved"),
            Err(_) if !saving.paused => record.run(now),
            Err(_) => {}
        }
        Ok(())
    });
    let result = ended.and_then(|_| {
        written.map_err(|e| failed("save", DriverErrorKind::Refused, format!("{}: {e}", file.display())))
    });
    if result.is_err() {
        // Better no file than one that no process has let go of.
        let _ = remove(&file);
    }
    // Nobody may be waiting.
    let _ = report.send(result);
}

/// Is there a process, or was there one, that a start with `incarnation` clashes with or finds done?
fn repeated(record: &Record, incarnation: Incarnation) -> DriverResult<Option<Option<u64>>> {
    let refuse = |kind, problem: String| Err(failed("start", kind, problem));
    if incarnation < record.incarnation {
        let problem = format!("incarnation {incarnation} is older than {} seen here", record.incarnation);
        return refuse(DriverErrorKind::Refused, problem);
    }
    match &record.state {
        State::Ended { .. } if incarnation > record.incarnation => Ok(None),
        State::Ended { .. } => {
            refuse(DriverErrorKind::Refused, format!("incarnation {incarnation} has ended here"))
        }
        _ if incarnation > record.incarnation => {
            refuse(DriverErrorKind::Busy, format!("incarnation {} still has a process", record.incarnation))
        }
        State::Booting { ready_ms, .. } => Ok(Some(Some(*ready_ms))),
        _ => Ok(Some(None)),
    }
}

/// The record of a new process.
fn fresh(host: &Host, table: &Table, launch: Launch) -> DriverResult<Record> {
    let refuse = |problem: String| failed("start", DriverErrorKind::Refused, problem);
    let spec = &launch.spec;
    let sim = spec.sim.clone().unwrap_or_default();
    if !spec.accel.allows(Accel::Simulated) {
        return Err(refuse(format!("accelerator {:?} is not available", spec.accel)));
    }
    if sim.boot_ms > BOOT_MS_MAX {
        return Err(refuse(format!("boot_ms is {}; at most {BOOT_MS_MAX}", sim.boot_ms)));
    }
    let used_mib: u64 = live(table).map(|record| record.mem_mib).sum();
    if used_mib + spec.mem_mib > host.config.mem_mib {
        let free_mib = host.config.mem_mib.saturating_sub(used_mib);
        return Err(refuse(format!(
            "cannot allocate {} MiB of memory: {free_mib} MiB are free",
            spec.mem_mib
        )));
    }
    let vnc = spec.vnc.as_ref().map(|vnc| display(table, vnc)).transpose()?;
    let first = Memory { content: content(launch.vm, launch.incarnation, 1), boots: 1, ran_ms: 0 };
    let booting = State::Booting { ready_ms: now_ms() + sim.boot_ms, paused: launch.paused };
    let (memory, state) = match launch.mode {
        LaunchMode::Boot => (first, booting),
        LaunchMode::Restore(file) => {
            let memory = read_saved(&file, launch.vm, spec.mem_mib);
            (memory.map_err(|e| refuse(format!("{}: {e}", file.display())))?, booting)
        }
        LaunchMode::Incoming { listen, .. } => {
            let listen = if listen.is_empty() { host.config.listen.clone() } else { listen };
            (first, State::Incoming { listen, receiving: false })
        }
    };
    let nics = (0..launch.nics.len()).collect();
    let disks = launch.disks.iter().enumerate().map(|(index, disk)| SimDisk {
        name: disk.name.clone(),
        path: disk.path.clone(),
        bytes: disk_bytes(&disk.path, spec.disks.get(index).map(|disk| &disk.source)),
        shared: disk.shared,
    });
    Ok(Record {
        version: RECORD_VERSION,
        vm: launch.vm,
        name: launch.name,
        incarnation: launch.incarnation,
        mem_mib: spec.mem_mib,
        disks: disks.collect(),
        nics,
        refitted: launch.layout.is_some(),
        sim,
        vnc,
        state,
        ever_ran: false,
        memory,
        reboots: 0,
        running_since_ms: None,
        power_off_at_ms: None,
        reboot_on_shutdown: false,
        deaf: false,
        saving: None,
        sending: None,
    })
}

fn live(table: &Table) -> impl Iterator<Item = &Record> {
    table.guests.values().map(|entry| &entry.record).filter(|record| record.live())
}

/// The address of a display that no other guest here has.
fn display(table: &Table, vnc: &Vnc) -> DriverResult<String> {
    let listen = if vnc.listen.is_empty() { "127.0.0.1" } else { &vnc.listen };
    let ports = match vnc.port {
        VncPort::Auto => VNC_PORTS,
        VncPort::Fixed(port) => port..=port,
    };
    let address = |port| match listen.contains(':') {
        true => format!("[{listen}]:{port}"),
        false => format!("{listen}:{port}"),
    };
    let taken = |address: &String| live(table).any(|record| record.vnc.as_ref() == Some(address));
    let busy = || failed("start", DriverErrorKind::Busy, "the port of its display is taken");
    ports.map(address).find(|address| !taken(address)).ok_or_else(busy)
}

/// The file's length; when the agent made none, what the spec asks for.
fn disk_bytes(path: &Path, source: Option<&DiskSource>) -> u64 {
    match (length(path), source) {
        (Ok(bytes), _) => bytes,
        (Err(_), Some(DiskSource::EmptyMib(mib))) => mib << 20,
        (Err(_), _) => 0,
    }
}

/// The end of a boot: done once, by whoever comes first.
pub(super) fn boot(host: &Host, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
    host.change(vm, "start", |record, now| {
        match record.state {
            State::Booting { paused: true, .. } if record.incarnation == incarnation => {
                record.state = State::Paused;
            }
            State::Booting { ready_ms, .. } if record.incarnation == incarnation => {
                // It began to run when it was due, even if nobody was there to see it.
                record.run(ready_ms.min(now));
            }
            _ => return Ok(()),
        }
        console::say(host, vm, &format!("boot {} of {}", record.memory.boots, record.name));
        Ok(())
    })?;
    Ok(())
}

fn attend_boot(host: &Arc<Host>, vm: VmId, incarnation: Incarnation, ready_ms: u64) {
    let host_of_task = Arc::clone(host);
    host.spawn(async move {
        tokio::time::sleep(Duration::from_millis(ready_ms.saturating_sub(now_ms()))).await;
        if let Err(error) = boot(&host_of_task, vm, incarnation) {
            tracing::debug!(%vm, %error, "nothing to boot any more");
        }
    });
}

/// Waits until a guest whose power button was pressed is off. A guest that stands still then is off when it next runs.
pub(super) fn attend_power_off(host: &Arc<Host>, vm: VmId) {
    let due = |host: &Host| {
        let table = host.table();
        let record = &table.guests.get(&vm)?.record;
        record.power_off_at_ms.filter(|_| record.state == State::Running)
    };
    let Some(due_ms) = due(host) else { return };
    let host_of_task = Arc::clone(host);
    host.spawn(async move {
        tokio::time::sleep(Duration::from_millis(due_ms.saturating_sub(now_ms()))).await;
        let off = host_of_task.change(vm, "shutdown", |record, now| {
            if record.state == State::Running && record.power_off_at_ms == Some(due_ms) {
                record.power_off(now);
            }
            Ok(())
        });
        if let Err(error) = off {
            tracing::debug!(%vm, %error, "nothing to switch off any more");
        }
    });
}

/// Takes over the guests of an earlier process.
pub(super) fn adopt(host: &Arc<Host>) -> DriverResult<()> {
    let vms: Vec<VmId> = host.table().guests.keys().copied().collect();
    for vm in vms {
        host.change(vm, "open", |record, now| {
            let saved = record.saving.as_ref().is_some_and(|saving| saving.file.is_file());
            record.adopt(now, saved);
            Ok(())
        })?;
        let (state, incarnation) = {
            let table = host.table();
            let Some(entry) = table.guests.get(&vm) else { continue };
            (entry.record.state.clone(), entry.record.incarnation)
        };
        match state {
            State::Booting { ready_ms, .. } if ready_ms <= now_ms() => boot(host, vm, incarnation)?,
            State::Booting { ready_ms, .. } => attend_boot(host, vm, incarnation, ready_ms),
            State::Running => attend_power_off(host, vm),
            State::Incoming { listen, .. } => listen_again(host, vm, &listen)?,
            _ => {}
        }
    }
    Ok(())
}

/// No source had come yet; the port is a new one.
fn listen_again(host: &Arc<Host>, vm: VmId, listen: &str) -> DriverResult<()> {
    match receive::bind(host, listen) {
        Ok((listener, bound)) => {
            if let Some(entry) = host.table().guests.get_mut(&vm) {
                receive::attend(host, entry, listener, bound);
            }
            Ok(())
        }
        Err(error) => {
            let ended = host.change(vm, "open", |record, now| {
                record.end(now, EndCause::Died, &error.message);
                Ok(())
            });
            ended.map(drop)
        }
    }
}

fn write_saved(file: &Path, saved: &Saved) -> io::Result<u64> {
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".tmp");
    let bytes = serde_json::to_vec(saved)?;
    let mut written = File::create(&fresh)?;
    written.write_all(&bytes)?;
    written.sync_all()?;
    fs::rename(&fresh, file)?;
    if let Some(folder) = file.parent() {
        File::open(folder)?.sync_all()?;
    }
    length(file)
}

fn read_saved(file: &Path, vm: VmId, mem_mib: u64) -> io::Result<Memory> {
    let bad = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let saved: Saved = serde_json::from_slice(&fs::read(file)?)?;
    if saved.version != SAVED_VERSION {
        return Err(bad("not a version this driver reads"));
    }
    if saved.vm != vm || saved.mem_mib != mem_mib {
        return Err(bad("saved from another guest, or one with other memory"));
    }
    Ok(saved.memory)
}

fn length(file: &Path) -> io::Result<u64> {
    fs::metadata(file).map(|metadata| metadata.len())
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
