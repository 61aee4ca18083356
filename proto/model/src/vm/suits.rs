//! What a driver's guests cannot have: refused by the name of the field, before anything is placed.

use super::{AccelChoice, Arch, Boot, DiskBus, DiskFormat, FileRef, MachineType, NicNetwork, VmSpec};
use crate::Invalid;
use crate::capabilities::DriverName;

/// Words of a User Mode Linux's command line that name files or devices of its host.
const UML_WORDS: &[&str] = &[
    "con", "console", "daemon", "eth", "fakehd", "hostfs", "initrd", "mconsole", "mem", "ssl", "ubd", "umid",
    "uml_dir", "vec", "xterm",
];

impl VmSpec {
    /// Refuses the first field that a guest of that driver cannot have.
    ///
    /// # Errors
    /// The field, and what it may be.
    pub fn suits(&self, driver: DriverName) -> Result<(), Invalid> {
        match driver {
            DriverName::Lxc => self.has_no_machine("lxc").and_then(|()| self.suits_lxc()),
            DriverName::Uml => self.has_no_machine("uml").and_then(|()| self.suits_uml()),
            DriverName::Libvirt => self.has_no_seed("libvirt"),
            DriverName::Qemu | DriverName::Test => Ok(()),
        }
    }

    fn has_no_seed(&self, driver: &str) -> Result<(), Invalid> {
        if self.cloud_init.is_none() {
            return Ok(());
        }
        let problem = format!("a guest of {driver} is given no seed");
        Err(Invalid::new("spec.cloud_init", problem, "none; only qemu has it"))
    }

    /// What needs a machine that is played.
    fn has_no_machine(&self, driver: &str) -> Result<(), Invalid> {
        self.has_no_seed(driver)?;
        let no = |field: &str, problem: &str, allowed: &str| {
            Err(Invalid::new(format!("spec.{field}"), format!("a guest of {driver} {problem}"), allowed))
        };
        if self.accel != AccelChoice::Any {
            return no("accel", "runs on the host's CPUs as they are", "any");
        }
        if self.arch != Arch::X86_64 {
            return no("arch", "has the architecture of its host", "x86_64");
        }
        if self.machine != MachineType::default() {
            return no("machine", "has no board", "the default, which means nothing");
        }
        if !self.cpu_model.is_empty() {
            return no("cpu_model", "has the CPU of its host", "empty");
        }
        if self.vnc.is_some() {
            return no("vnc", "has no display", "none");
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.bus != DiskBus::Virtio {
                return no(
                    &format!("disks[{index}].bus"),
                    "has no buses",
                    "the default, which means nothing",
                );
            }
            if disk.format != DiskFormat::Raw {
                return no(&format!("disks[{index}].format"), "has disks byte for byte", "raw");
            }
        }
        match self.nics.iter().position(|nic| nic.network == NicNetwork::User) {
            Some(index) => no(
                &format!("nics[{index}].network"),
                "has no NAT of its own",
                "a network with a bridge, or a tap",
            ),
            None => Ok(()),
        }
    }

    fn suits_lxc(&self) -> Result<(), Invalid> {
        if self.boot != Boot::Disk {
            return Err(Invalid::new("spec.boot", "a container has the kernel of its host", "disk"));
        }
        if self.disks.len() != 1 {
            let problem =
                format!("{} disks, while a container has one: its root file system", self.disks.len());
            return Err(Invalid::new("spec.disks", problem, "1"));
        }
        Ok(())
    }

    fn suits_uml(&self) -> Result<(), Invalid> {
        if self.cpus != 1 {
            return Err(Invalid::new("spec.cpus", "a user mode kernel has one vCPU", "1"));
        }
        let Boot::Kernel { kernel, cmdline, .. } = &self.boot else {
            if self.disks.is_empty() {
                return Err(Invalid::new(
                    "spec.disks",
                    "nothing to boot from",
                    "a disk, or a kernel with an initrd",
                ));
            }
            return Ok(());
        };
        if matches!(kernel, FileRef::Image(_)) {
            let problem = "a user mode kernel is a program that its host runs";
            return Err(Invalid::new("spec.boot.kernel.kernel", problem, "a path on the host"));
        }
        let hostly = |word: &&str| {
            let key = word.split(['=', ':', '.']).next().unwrap_or_default();
            let key = key
                .trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, 'r' | 's' | 'd' | 'c' | 't'));
            UML_WORDS.iter().any(|own| *own == key || own.trim_end_matches(['r', 's', 'd', 'c', 't']) == key)
        };
        match cmdline.split_ascii_whitespace().find(hostly) {
            Some(word) => {
                let problem = format!("{word:?} is the driver's to say");
                Err(Invalid::new(
                    "spec.boot.kernel.cmdline",
                    problem,
                    "words for the kernel, not for its host",
                ))
            }
            None => Ok(()),
        }
    }
}
