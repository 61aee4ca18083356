//! What is asked of a VM.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CloudInit, Disk, Nic, Placement, Vnc};
use crate::capabilities::{Accel, DriverName};
use crate::invalid::in_range;
use crate::project::{default_project, is_default};
use crate::{Invalid, Name, Secret};

/// Fewest and most vCPUs of a VM; the upper end is q35's limit in QEMU 7.2.
pub const CPUS: std::ops::RangeInclusive<u64> = 1..=288;
/// Least and most memory of a VM, MiB; the upper end is 4 TiB.
pub const MEM_MIB: std::ops::RangeInclusive<u64> = 16..=4 << 20;
/// Most disks or NICs of a VM: each takes a PCI slot of the root bus.
pub const DEVICES_MAX: usize = 16;
/// Longest kernel command line, bytes: the x86 boot protocol's.
pub const CMDLINE_MAX: usize = 2047;

/// What somebody asked for. While the VM runs, `power`, restart, placement, disks, NICs, vCPUs and memory may change; what the
/// running machine cannot follow waits for its next start. The rest changes while the VM is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The project it belongs to.
    #[serde(default = "default_project", skip_serializing_if = "is_default")]
    pub project: Name,
    /// Should it run?
    #[serde(default)]
    pub power: Power,
    /// vCPUs, 1 to 288.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Memory, MiB, 16 to 4 Mi.
    pub mem_mib: u64,
    /// Which hypervisor driver runs it.
    #[serde(default)]
    pub driver: DriverName,
    /// How its vCPUs may be run.
    #[serde(default)]
    pub accel: AccelChoice,
    /// The guest's architecture.
    #[serde(default)]
    pub arch: Arch,
    /// The board it sees.
    #[serde(default)]
    pub machine: MachineType,
    /// CPU model by QEMU's name; empty: the driver's default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cpu_model: String,
    /// Where it boots from.
    #[serde(default)]
    pub boot: Boot,
    /// Its disks, in boot order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Its network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Its display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc: Option<Vnc>,
    /// What happens when its process dies.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Where it may run.
    #[serde(default, skip_serializing_if = "Placement::is_any")]
    pub placement: Placement,
    /// What its cloud-init is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// How the test driver is to play it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sim: Option<SimSpec>,
}

const fn default_cpus() -> u32 {
    1
}

impl VmSpec {
    /// A stopped VM with one vCPU and nothing attached.
    #[must_use]
    pub fn new(mem_mib: u64) -> Self {
        Self {
            project: default_project(),
            power: Power::default(),
            cpus: default_cpus(),
            mem_mib,
            driver: DriverName::default(),
            accel: AccelChoice::default(),
            arch: Arch::default(),
            machine: MachineType::default(),
            cpu_model: String::new(),
            boot: Boot::default(),
            disks: Vec::new(),
            nics: Vec::new(),
            vnc: None,
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            cloud_init: None,
            sim: None,
        }
    }

    /// Refuses the first field that is out of range or clashes with another.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.cpus", self.cpus.into(), CPUS)?;
        in_range("spec.mem_mib", self.mem_mib, MEM_MIB)?;
        self.validate_cpu_model()?;
        self.boot.validate().map_err(|e| e.under("spec.boot"))?;
        in_range("spec.disks", self.disks.len() as u64, 0..=DEVICES_MAX as u64)?;
        in_range("spec.nics", self.nics.len() as u64, 0..=DEVICES_MAX as u64)?;
        let mut names = BTreeSet::new();
        for (index, disk) in self.disks.iter().enumerate() {
            disk.validate(self.machine).map_err(|e| e.under(&format!("spec.disks[{index}]")))?;
            if self.cloud_init.as_ref().is_some_and(|seed| !seed.allows(&disk.name)) {
                let field = format!("spec.disks[{index}].name");
                return Err(Invalid::new(field, "is that of the seed of cloud-init", "another name"));
            }
            if !names.insert(&disk.name) {
                let field = format!("spec.disks[{index}].name");
                return Err(Invalid::new(field, format!("{} is used twice", disk.name), "a name per disk"));
            }
        }
        for (index, nic) in self.nics.iter().enumerate() {
            nic.validate(self.machine).map_err(|e| e.under(&format!("spec.nics[{index}]")))?;
        }
        if let Some(vnc) = &self.vnc {
            vnc.validate().map_err(|e| e.under("spec.vnc"))?;
        }
        if let Some(seed) = &self.cloud_init {
            seed.validate().map_err(|e| e.under("spec.cloud_init"))?;
        }
        self.placement.validate().map_err(|e| e.under("spec.placement"))?;
        if let (Boot::Disk, MachineType::Microvm) = (&self.boot, self.machine) {
            return Err(Invalid::new("spec.boot", "microvm has no firmware disk boot", "a kernel"));
        }
        self.suits(self.driver)
    }

    fn validate_cpu_model(&self) -> Result<(), Invalid> {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | ',' | '=');
        if self.cpu_model.len() <= 255 && self.cpu_model.chars().all(ok) {
            return Ok(());
        }
        let problem = format!("{:?} is no CPU model", self.cpu_model);
        Err(Invalid::new("spec.cpu_model", problem, "QEMU's model name and flags, as in qemu64,+ssse3"))
    }

    /// Replaces every secret by [`Secret::REDACTED`]: what the API edge does before it answers.
    pub fn redact(&mut self) {
        self.secrets_mut().for_each(|(_, secret)| *secret = Secret::new(Secret::REDACTED));
    }

    /// Every secret it has, by its field.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Secret)> {
        let password = self.vnc.as_mut().and_then(|vnc| vnc.password.as_mut());
        let user_data = self.cloud_init.as_mut().and_then(|seed| seed.user_data.as_mut());
        let password = password.map(|secret| ("spec.vnc.password", secret));
        password.into_iter().chain(user_data.map(|secret| ("spec.cloud_init.user_data", secret)))
    }

    /// Has it a disk that only its host can reach?
    #[must_use]
    pub fn has_local_disks(&self) -> bool {
        self.disks.iter().any(|disk| !disk.shared)
    }

    /// Every image the spec names, once.
    #[must_use]
    pub fn images(&self) -> BTreeSet<&Name> {
        let kernel = match &self.boot {
            Boot::Kernel { kernel, initrd, .. } => [kernel.image(), initrd.as_ref().and_then(FileRef::image)],
            Boot::Disk => [None, None],
        };
        self.disks.iter().map(|disk| disk.source.image()).chain(kernel).flatten().collect()
    }
}

/// Should it run?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// No.
    #[default]
    Stopped,
    /// Yes.
    Running,
    /// Yes, with its vCPUs standing still.
    Paused,
}

/// How vCPUs may be run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccelChoice {
    /// KVM where a probe has seen it work, else TCG.
    #[default]
    Any,
    /// Only KVM.
    Kvm,
    /// Only TCG.
    Tcg,
}

impl AccelChoice {
    /// May it be run this way?
    #[must_use]
    pub fn allows(self, accel: Accel) -> bool {
        match self {
            Self::Any => true,
            Self::Kvm => accel == Accel::Kvm,
            Self::Tcg => accel == Accel::Tcg,
        }
    }
}

/// The guest's architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit PC.
    #[default]
    X86_64,
    /// 32-bit PC.
    I686,
}

/// The board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineType {
    /// PCI Express PC.
    #[default]
    Q35,
    /// The PC of 1996 (i440FX).
    Pc,
    /// Minimal board without PCI. Not reliable under TCG.
    Microvm,
}

impl MachineType {
    /// QEMU's alias of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
            Self::Microvm => "microvm",
        }
    }
}

/// Where it boots from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Boot {
    /// The firmware tries the disks in order.
    #[default]
    Disk,
    /// The hypervisor loads this kernel.
    Kernel {
        /// bzImage, or an ELF with a PVH note.
        kernel: FileRef,
        /// Initial RAM disk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<FileRef>,
        /// Kernel command line.
        #[serde(default)]
        cmdline: String,
    },
}

impl Boot {
    fn validate(&self) -> Result<(), Invalid> {
        let Self::Kernel { kernel, initrd, cmdline } = self else { return Ok(()) };
        kernel.validate().map_err(|e| e.under("kernel"))?;
        initrd.iter().try_for_each(|initrd| initrd.validate().map_err(|e| e.under("initrd")))?;
        if cmdline.contains('\0') {
            return Err(Invalid::new("cmdline", "contains a NUL byte", "text"));
        }
        in_range("cmdline (bytes)", cmdline.len() as u64, 0..=CMDLINE_MAX as u64)
    }
}

/// A file a guest is started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileRef {
    /// An imported image, by name.
    Image(Name),
    /// An absolute path on the host.
    Path(String),
}

impl FileRef {
    /// The image, when it is one.
    #[must_use]
    pub fn image(&self) -> Option<&Name> {
        match self {
            Self::Image(name) => Some(name),
            Self::Path(_) => None,
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        match self {
            Self::Image(_) => Ok(()),
            Self::Path(path) => super::device::validate_path("path", path),
        }
    }
}

/// What happens when its process dies without having been told to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It stays down, as Failed.
    Never,
    /// It is started again on its host. A guest that powers itself off stays off.
    #[default]
    OnCrash,
}

/// How the test driver plays a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimSpec {
    /// From start to running, ms.
    pub boot_ms: u64,
    /// Memory written over, MiB/s.
    pub dirty_mib_s: u64,
    /// CPU asked for, percent of one vCPU.
    pub cpu_percent: u32,
    /// Chance that any one verb fails, in parts per million.
    pub fault_ppm: u32,
    /// What the faults are drawn from.
    pub seed: u64,
}

impl Default for SimSpec {
    fn default() -> Self {
        Self { boot_ms: 20, dirty_mib_s: 0, cpu_percent: 5, fault_ppm: 0, seed: 0 }
    }
}
