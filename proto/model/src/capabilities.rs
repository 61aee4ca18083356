//! What a host has been seen to do. Probed, never assumed: each claim says how it was found.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Level;

/// What an agent reports of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostCapabilities {
    /// The kernel's node name.
    #[serde(default)]
    pub hostname: String,
    /// `x86_64` and so on, as `uname -m` says.
    #[serde(default)]
    pub arch: String,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
    /// Model name of the first CPU.
    #[serde(default)]
    pub cpu_model: String,
    /// Feature flags of the first CPU.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cpu_features: BTreeSet<String>,
    /// Online CPUs.
    pub cpus: u32,
    /// Total memory, MiB.
    pub mem_mib: u64,
    /// Free space of the volume folder when last reported, MiB.
    pub disk_free_mib: u64,
    /// Address at which other hosts reach this one for migration.
    #[serde(default)]
    pub address: String,
    /// Networks a NIC may name here, and what stands behind each.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
    /// SHA-256 of the images whose bytes are here whole, at most [`IMAGES_TOLD_MAX`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub images: BTreeSet<String>,
    /// Hypervisors that answered.
    pub drivers: Vec<DriverCapabilities>,
}

/// Images a host tells of: those used last. A host that has more scores a little lower than it might, and no more comes of it.
pub const IMAGES_TOLD_MAX: usize = 64;

impl HostCapabilities {
    /// The driver of that name, when it was found.
    #[must_use]
    pub fn driver(&self, name: DriverName) -> Option<&DriverCapabilities> {
        self.drivers.iter().find(|driver| driver.name == name)
    }

    /// The level from which on everybody reads this.
    #[must_use]
    pub fn level(&self) -> Level {
        let newer = |driver: &DriverCapabilities| {
            !driver.away.is_empty() || driver.powers.contains(&DriverPower::HotPlug)
        };
        let more = !self.images.is_empty() || self.drivers.iter().any(newer);
        if more { Level::MORE_OF_HOSTS } else { Level::OLDEST }
    }

    /// The same, as everybody reads it at that level: a driver that is away has nothing that works.
    #[must_use]
    pub fn at(mut self, level: Level) -> Self {
        if level >= Level::MORE_OF_HOSTS {
            return self;
        }
        self.images.clear();
        for driver in &mut self.drivers {
            driver.powers.remove(&DriverPower::HotPlug);
            let away = std::mem::take(&mut driver.away);
            for accel in driver.accels.iter_mut().filter(|_| !away.is_empty()) {
                (accel.usable, accel.evidence) = (false, away.clone());
            }
        }
        self
    }
}

/// Which hypervisor driver.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DriverName {
    /// QEMU, with KVM or TCG.
    #[default]
    Qemu,
    /// The simulated hypervisor.
    Test,
    /// Whatever hypervisor a libvirt daemon drives.
    Libvirt,
    /// Containers, with liblxc's tools.
    Lxc,
    /// User Mode Linux.
    Uml,
}

impl std::fmt::Display for DriverName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Qemu => "qemu",
            Self::Test => "test",
            Self::Libvirt => "libvirt",
            Self::Lxc => "lxc",
            Self::Uml => "uml",
        })
    }
}

/// The one sentence for a verb that a driver has not, wherever it is refused.
#[must_use]
pub fn unsupported(driver: DriverName, verb: &str) -> String {
    format!("{driver} {verb}: {NOT_SUPPORTED}")
}

/// The end of that sentence.
pub const NOT_SUPPORTED: &str = "not supported by this driver";

/// What one driver has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DriverCapabilities {
    /// Which.
    pub name: DriverName,
    /// The hypervisor's own version text.
    pub version: String,
    /// Ways to run a vCPU, usable or not, with the evidence.
    pub accels: Vec<AccelProbe>,
    /// Machine types it offers among those Dunlin knows.
    pub machines: BTreeSet<String>,
    /// CPU models it offers.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cpu_models: BTreeSet<String>,
    /// Optional powers it has here.
    pub powers: BTreeSet<DriverPower>,
    /// Why it cannot be reached now; empty: it can. What else stands here is then as it was last seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub away: String,
}

impl DriverCapabilities {
    /// Has a vCPU been seen to run this way?
    #[must_use]
    pub fn can_run(&self, accel: Accel) -> bool {
        self.accels.iter().any(|probe| probe.accel == accel && probe.usable)
    }

    /// Is it known not to have this power? Of a driver that was never reached nothing is known.
    #[must_use]
    pub fn lacks(&self, power: DriverPower) -> bool {
        let known = self.away.is_empty() || !self.powers.is_empty();
        known && !self.powers.contains(&power)
    }
}

/// How vCPUs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// The kernel's virtual machine monitor.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// Nothing runs: the test driver.
    Simulated,
    /// The host's own kernel, in a container.
    Container,
    /// A kernel that is a program of its host.
    Uml,
}

impl Accel {
    /// Is it its driver's only way, so that nobody has to choose it?
    #[must_use]
    pub const fn is_only_way(self) -> bool {
        matches!(self, Self::Simulated | Self::Container | Self::Uml)
    }
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Simulated => "simulated",
            Self::Container => "container",
            Self::Uml => "uml",
        })
    }
}

/// What came of trying to run a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccelProbe {
    /// What was tried.
    pub accel: Accel,
    /// Whether a vCPU ran.
    pub usable: bool,
    /// What was seen, in a sentence.
    pub evidence: String,
}

/// What a driver may or may not be able to do, beyond start and stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriverPower {
    /// Pause and resume.
    Pause,
    /// Press the guest's power button.
    Shutdown,
    /// Restart the guest's machine at once.
    Reset,
    /// Save to a file and restore from it.
    Save,
    /// Move a running guest to another host.
    Migrate,
    /// Move a running guest together with disks that only its host has.
    MigrateStorage,
    /// A serial console.
    Console,
    /// A VNC display.
    Vnc,
    /// Give disks and NICs to a running guest, and take them away.
    HotPlug,
}
