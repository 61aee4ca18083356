//! What a host reports: everything it has seen of each VM. The leader keeps it in memory; only transitions reach the log.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capabilities::DriverName;
use crate::migration::{Endpoint, MigrationFigures};
use crate::task::TaskPhase;
use crate::vm::{Built, VmSpec};
use crate::{HostId, Incarnation, MigrationId, Name, TaskId, VmId};

/// One VM as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVm {
    /// Which VM.
    pub vm: VmId,
    /// Its name when it was started here.
    pub name: Name,
    /// The incarnation of the process, or of the last one there was.
    pub incarnation: Incarnation,
    /// Its process.
    pub process: Process,
    /// Files made for it are on this host.
    pub has_volumes: bool,
    /// Process id.
    pub pid: Option<u32>,
    /// Where its display listens: `address:port`.
    pub vnc: Option<String>,
    /// Its memory lies in a file.
    pub saved: Option<SavedFile>,
    /// Virtual size of each of its disks that is not shared, bytes, as its hypervisor says; empty while there is none.
    #[serde(default)]
    pub disk_bytes: BTreeMap<Name, u64>,
    /// How its process is built, where that is not as the spec last told says.
    #[serde(default)]
    pub built: Option<Built>,
    /// When its vCPUs last began to run, ms since 1970 by the host's clock.
    #[serde(default)]
    pub resumed_at_ms: Option<u64>,
    /// Its part as the destination of a migration.
    pub receive: Option<(MigrationId, ReceiveState)>,
    /// Its part as the source of a migration.
    pub send: Option<(MigrationId, SendState)>,
}

/// A guest that a host has and nobody in the fleet manages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnmanagedVm {
    /// Its UUID, which becomes the VM's when it is adopted.
    pub vm: VmId,
    /// Its name, as it is there.
    pub name: String,
    /// The driver that has it.
    pub driver: DriverName,
    /// It has a process.
    pub running: bool,
    /// How it is built; none when that cannot be said.
    pub spec: Option<VmSpec>,
    /// Why it cannot be said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// What the spec has no word for, in document order. It stays as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// The same, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unmanaged {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub host_name: Name,
    /// The guest.
    pub guest: UnmanagedVm,
}

/// Memory saved on the host that reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// Where.
    pub path: String,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// The incarnation that was saved.
    pub incarnation: Incarnation,
}

/// What its process does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// There is none, and none has ended here since the incarnation was told.
    None,
    /// Disks are being made, images fetched, or the process is coming up.
    Starting {
        /// What is under way, for people: "fetching image debian, 40 %".
        doing: String,
    },
    /// vCPUs run.
    Running,
    /// vCPUs stand still, because somebody said so.
    Paused,
    /// Waiting for, or receiving, a migration.
    Incoming,
    /// Its state has been sent away, or is about to be: it stands still and must not run.
    Outgoing,
    /// Nothing can be said of it now: its driver is away.
    Unknown {
        /// Why, in the driver's words.
        why: String,
    },
    /// It ended.
    Ended {
        /// How.
        cause: EndCause,
        /// The hypervisor's own words, or the guest's manner of death.
        message: String,
        /// Did vCPUs ever run in this incarnation on this host? Decides whether a hand-over can be taken back.
        ever_ran: bool,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The guest powered itself off.
    GuestShutdown,
    /// It was told to: power off, save or discard.
    Told,
    /// It never came up: refused by the hypervisor, or a disk or image was missing.
    Refused,
    /// It died.
    Died,
}

/// The destination's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiveState {
    /// Making disks and starting the process.
    Preparing,
    /// Listening.
    Ready(Endpoint),
    /// Everything has arrived; it waits for the hand-over.
    Arrived,
    /// It cannot: with the hypervisor's words.
    Failed(String),
}

/// The source's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendState {
    /// Disks and memory flow; the guest runs.
    Copying(SendProgress),
    /// The guest stands still, its disks are equal, and the rest of its memory is ready to go. Waiting for the hand-over.
    AtSwitchover(SendProgress),
    /// Everything is sent. It stands still for good.
    Sent(MigrationFigures),
    /// The sending failed after the hand-over; the process here holds the whole guest and stands still. QEMU without a
    /// return path fails only when the destination cannot have received everything.
    Holding(String),
    /// The sending failed or was cancelled before the hand-over; the guest runs here.
    Cancelled(String),
}

/// How far the copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendProgress {
    /// Memory still to send, bytes.
    pub remaining_bytes: u64,
    /// Memory of the guest, bytes.
    pub total_bytes: u64,
    /// Memory sent, bytes.
    pub transferred_bytes: u64,
    /// Disk bytes sent.
    pub disk_bytes: u64,
    /// Disk bytes to send.
    pub disk_total_bytes: u64,
    /// Memory the guest writes over, MiB/s.
    pub dirty_mib_s: u64,
}

/// How far a one-shot act is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActReport {
    /// Which.
    pub task: TaskId,
    /// Running, or how it ended.
    pub phase: TaskPhase,
    /// 0 to 100.
    pub progress_percent: u32,
    /// What it waits for, or how it ended.
    pub message: String,
}

/// One measurement of a VM. Never logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Which VM.
    pub vm: VmId,
    /// CPU time used since it started, ms.
    pub cpu_ms: u64,
    /// Time its threads were ready to run and no CPU was free, since it started, ms: what it wanted and did not get.
    #[serde(default)]
    pub wait_ms: u64,
    /// Resident memory, MiB.
    pub rss_mib: u64,
    /// Memory it writes over, MiB/s, where the hypervisor can tell that cheaply.
    #[serde(default)]
    pub dirty_mib_s: Option<u64>,
}
