//! The contract every backend honours, and that the conformance suite checks.
//!
//! A guest's process, as the driver sees it:
//!
//! ```text
//!            start(Boot|Restore)                    pause / resume
//!   (none) ---------------------> Running <-----------------------------> Paused
//!     |                             |  ^                                    |
//!     | start(Incoming)             |  | cancelled, failed before hand-over |
//!     v                             v  |                                    v
//!   Incoming --arrived, resume--> Running --migrate_out--> Outgoing --> (destroyed by the agent)
//!                                   |
//!                                   +--> Ended: the guest powered off, or the process died
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use dunlin_model::capabilities::{DriverCapabilities, DriverName};
use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationLimits};
use dunlin_model::observed::{EndCause, SendProgress};
use dunlin_model::vm::{DiskBus, DiskFormat, Nic, VmSpec};
use dunlin_model::{Incarnation, Name, VmId};
use tokio::sync::{broadcast, watch};

use crate::DriverError;

/// Result of a verb.
pub type DriverResult<T> = Result<T, DriverError>;

/// Everything needed to bring up one process. Images are fetched and paths are real before a driver sees it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which VM.
    pub vm: VmId,
    /// Its name, for the process title.
    pub name: Name,
    /// The incarnation the process will carry. A driver refuses one that is lower than a process it has.
    pub incarnation: Incarnation,
    /// What was asked for. Disks and boot files stand below, resolved.
    pub spec: VmSpec,
    /// Disks in the order of the spec.
    pub disks: Vec<LaunchDisk>,
    /// Kernel file, when the spec boots one.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk file.
    pub initrd: Option<PathBuf>,
    /// NICs in the order of the spec.
    pub nics: Vec<LaunchNic>,
    /// Where its devices have to sit, in the words of [`Guest::layout`]; none: where the driver puts them.
    pub layout: Option<String>,
    /// How its memory comes about.
    pub mode: LaunchMode,
    /// Come up with vCPUs standing still. Always true in effect for `Incoming`.
    pub paused: bool,
}

/// A disk with a file behind it.
#[derive(Clone, Debug)]
pub struct LaunchDisk {
    /// Node name in the hypervisor and export name in a migration.
    pub name: Name,
    /// The file.
    pub path: PathBuf,
    /// Its layout.
    pub format: DiskFormat,
    /// How it is attached.
    pub bus: DiskBus,
    /// The guest may not write.
    pub read_only: bool,
    /// Every host reaches the same bytes: a migration does not mirror it.
    pub shared: bool,
}

/// A NIC with something behind it.
#[derive(Clone, Debug)]
pub enum LaunchNic {
    /// The hypervisor's own NAT.
    User,
    /// A tap interface that exists.
    Tap(String),
    /// A pair of interfaces that the driver makes and that goes with the guest: a container has no card to back.
    Veth {
        /// The host's end.
        interface: String,
        /// What the host's end is plugged into.
        bridge: Option<String>,
    },
}

/// Something a running guest can be given.
#[derive(Clone, Debug)]
pub enum Device {
    /// A disk, with a file behind it.
    Disk(LaunchDisk),
    /// A NIC.
    Nic {
        /// Its place among the guest's NICs.
        index: usize,
        /// What the guest sees.
        card: Nic,
        /// What stands behind it.
        end: LaunchNic,
    },
}

impl Device {
    /// What it is known by.
    #[must_use]
    pub fn name(&self) -> DeviceName {
        match self {
            Self::Disk(disk) => DeviceName::Disk(disk.name.clone()),
            Self::Nic { index, .. } => DeviceName::Nic(*index),
        }
    }
}

/// What a device is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// A disk, by its name.
    Disk(Name),
    /// A NIC, by its place among the guest's NICs.
    Nic(usize),
}

/// How a process gets its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchMode {
    /// From power-on.
    Boot,
    /// From a saved file.
    Restore(PathBuf),
    /// From another host: listen on this address. Disk files that are not shared exist with the right size.
    Incoming {
        /// Address of this host to listen on.
        listen: String,
        /// Bounds, some of which the receiving side sets too.
        limits: MigrationLimits,
    },
}

/// A guest as its driver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Which VM.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// The incarnation its process carries.
    pub incarnation: Incarnation,
    /// What it does.
    pub run: Run,
    /// Process id; none for a simulated one.
    pub pid: Option<u32>,
    /// Where its display listens.
    pub vnc: Option<String>,
    /// Where it takes a migration, when it is Incoming and ready.
    pub endpoint: Option<Endpoint>,
    /// How its sending stands, when it sends or has sent.
    pub send: Option<Send>,
    /// Virtual size of each disk that is not shared, bytes, when the hypervisor tells: what a migration's destination
    /// has to make room for.
    pub disk_bytes: BTreeMap<Name, u64>,
    /// Where its devices sit, in the driver's own words, when that is not where a fresh start would put them. A process that
    /// is to take over its memory needs it.
    pub layout: Option<String>,
    /// Did vCPUs ever run in this process?
    pub ever_ran: bool,
    /// How often its machine was restarted in this process: by `reset`, or in place of a power-off. Only grows.
    pub reboots: u32,
    /// When its vCPUs last began to run, ms since 1970 by this host's clock. With the source's `stopped_at_ms` it
    /// gives a migration's stand-still, as far as the two clocks agree.
    pub resumed_at_ms: Option<u64>,
}

/// A guest that somebody else made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its UUID, which becomes the VM's when it is adopted.
    pub vm: VmId,
    /// Its name, as it is there.
    pub name: String,
    /// It has a process.
    pub running: bool,
    /// How it is built, as far as that can be said; or why it cannot.
    pub spec: Result<VmSpec, String>,
    /// What the spec has no word for, in document order. It stays as it is.
    pub left_out: Vec<String>,
}

/// What a guest's process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// vCPUs run.
    Running,
    /// vCPUs stand still because somebody said so.
    Paused,
    /// Waiting for a migration, or receiving one.
    Incoming,
    /// A migration has arrived whole; vCPUs wait for `resume`.
    Arrived,
    /// Stands still at or after the switch-over of a sending.
    Outgoing,
    /// The process is gone, or its guest powered off.
    Ended(EndCause, String),
}

/// How a sending stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Send {
    /// Disks and memory flow; the guest runs.
    Copying(SendProgress),
    /// The guest stands still, its disks are equal on both sides, and `migrate_switch` may be called.
    AtSwitchover(SendProgress),
    /// All is sent; the process must never run again unless `resume` is called after a hand-back.
    Sent(MigrationFigures),
    /// It failed before `migrate_switch`, or was cancelled: the guest goes on as it was.
    Cancelled(String),
    /// It failed after `migrate_switch`: the guest stands still here, whole.
    Holding(String),
}

/// News of a guest, sent as it happens. A receiver that lags must call [`Hypervisor::list`] instead of guessing.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The guest as it is now.
    pub guest: Guest,
}

/// Can a driver's hypervisor be asked now?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Yes.
    Here,
    /// No, and why not. Its guests may well be running; nothing is known of them.
    Away(String),
}

/// One kind of hypervisor on this host.
///
/// Every verb may be called again after a crash of the caller, at any point, with the same arguments: the second call
/// completes what the first began, or finds it done. Every verb ends by a deadline of its own.
#[async_trait]
pub trait Hypervisor: Sync + std::marker::Send + std::fmt::Debug {
    /// Which.
    fn name(&self) -> DriverName;

    /// Finds out what works here by trying it. Never an error: a hypervisor that is missing has no usable accelerator.
    async fn probe(&self) -> DriverCapabilities;

    /// Whether it can be asked, for as long as it lives. A driver that needs nobody else is always there. After it was away
    /// its guests are to be listed again.
    fn presence(&self) -> watch::Receiver<Presence> {
        watch::Sender::new(Presence::Here).subscribe()
    }

    /// Every guest of this driver on this host, including those started by an earlier process of the agent, which it
    /// takes over again. Ended guests are listed until [`Hypervisor::forget`].
    async fn list(&self) -> DriverResult<Vec<Guest>>;

    /// News of all guests.
    fn notices(&self) -> broadcast::Receiver<Notice>;

    /// Guests on this host that run or are defined and that nobody here manages. None where a driver knows only its own.
    async fn foreign(&self) -> DriverResult<Vec<Foreign>> {
        Ok(Vec::new())
    }

    /// Takes a foreign guest that runs under management, where it is and as it is; it carries this incarnation from now
    /// on. Done when it is managed under this very incarnation.
    async fn adopt(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<Guest> {
        let _ = (vm, incarnation);
        Err(DriverError::unsupported(self.name(), "adopt"))
    }

    /// Gives an adopted guest back as it is: it goes on, and nobody here manages it. Done when nobody does.
    async fn release(&self, vm: VmId) -> DriverResult<()> {
        let _ = vm;
        Err(DriverError::unsupported(self.name(), "release"))
    }

    /// Brings up a process. Pre: no process of this VM is left, or it is of this very incarnation (then: done).
    /// Post: Running or Paused; for `Incoming`, listening with `endpoint` set. On failure nothing is left behind but
    /// the disks, and the error has the hypervisor's words.
    async fn start(&self, launch: Launch) -> DriverResult<Guest>;

    /// Presses the power button. Post: the guest has been asked; it ends by itself, or not.
    async fn shutdown(&self, vm: VmId) -> DriverResult<()>;

    /// Makes the next power-off of the guest a restart in the same process instead of the end. Idempotent.
    async fn reboot_on_shutdown(&self, vm: VmId, reboot: bool) -> DriverResult<()>;

    /// Restarts the machine at once, as its reset button would.
    async fn reset(&self, vm: VmId) -> DriverResult<()>;

    /// Kills the process and waits until it is gone. Done when there is none.
    async fn destroy(&self, vm: VmId) -> DriverResult<()>;

    /// Forgets an ended guest and removes what the driver kept for it but the serial log. Done when there is none.
    async fn forget(&self, vm: VmId) -> DriverResult<()>;

    /// Removes the kept output of the serial console, which outlives every process of the VM and `forget`. Done when
    /// there is none. Only for a VM that is discarded: no process is left.
    async fn erase_log(&self, vm: VmId) -> DriverResult<()>;

    /// Stops the vCPUs.
    async fn pause(&self, vm: VmId) -> DriverResult<Guest>;

    /// Lets the vCPUs run: after `pause`, after a migration arrived, or on the source after a hand-back.
    /// Before it lets a received guest run for the first time, it makes that fact durable (`ever_ran`).
    async fn resume(&self, vm: VmId) -> DriverResult<Guest>;

    /// Gives a device to a guest that runs or is paused. Done when it has one of that name. On failure it has none, and the
    /// error has the hypervisor's words; its files are the caller's.
    async fn plug(&self, vm: VmId, device: Device) -> DriverResult<()> {
        let _ = (vm, device);
        Err(DriverError::unsupported(self.name(), "plug"))
    }

    /// Takes a device from a running guest and waits until its kernel has let go of it. Done when it has none of that name.
    /// Busy: it has not let go yet, and may still.
    async fn unplug(&self, vm: VmId, device: DeviceName) -> DriverResult<()> {
        let _ = (vm, device);
        Err(DriverError::unsupported(self.name(), "unplug"))
    }

    /// The process carries on under a higher incarnation (hand-back). Durable before it returns.
    async fn adopt_incarnation(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<()>;

    /// Stops the vCPUs and writes memory to `file` (made durable), then ends the process with `EndCause::Told`.
    /// On failure the guest runs on and the file is removed. Returns the file's length in bytes.
    async fn save(&self, vm: VmId, file: PathBuf) -> DriverResult<u64>;

    /// Begins to send the guest to `endpoint`: disks that are not shared are mirrored first, then memory. Returns once
    /// it is under way; progress comes as notices. It stops at `AtSwitchover` by itself. Done when already sending there.
    async fn migrate_out(&self, vm: VmId, endpoint: Endpoint, limits: MigrationLimits) -> DriverResult<()>;

    /// Passes the switch-over: sends the rest. Only after the hand-over is committed.
    async fn migrate_switch(&self, vm: VmId) -> DriverResult<()>;

    /// Calls a sending off. Only before `migrate_switch`. Post: the guest goes on as it was before.
    async fn migrate_cancel(&self, vm: VmId) -> DriverResult<()>;

    /// The file with the kept output of the serial console, whether or not there is a guest or anything was kept. Its
    /// bytes keep their places while it is bounded: what is cut off at its head becomes a hole.
    fn serial_log(&self, vm: VmId) -> PathBuf;

    /// Cuts what guests have said down to a bound of the driver's own. To be called again and again: every few seconds.
    async fn trim_logs(&self) -> DriverResult<()> {
        Ok(())
    }

    /// The unix socket of the serial console, and the file with its kept output.
    fn console(&self, vm: VmId) -> DriverResult<(PathBuf, PathBuf)>;

    /// CPU milliseconds used and resident MiB of each guest with a process.
    async fn sample(&self) -> DriverResult<Vec<dunlin_model::observed::Sample>>;
}
