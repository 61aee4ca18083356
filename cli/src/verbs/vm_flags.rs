//! A VM's spec from command line flags.

use clap::Args;
use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::{
    AccelChoice, Arch, Boot, Disk, DiskBus, DiskFormat, DiskSource, FileRef, MachineType, Nic, NicModel,
    NicNetwork, RestartPolicy, SimSpec, VmSpec, Vnc, VncPort,
};
use dunlin_model::{Invalid, Name, Secret};

use super::rule_flag::{preference, rule};
use crate::args::key_value;

/// Memory of a VM when nobody says, MiB.
const MEM_MIB_DEFAULT: u64 = 512;

#[derive(Debug, Default, Args)]
pub(crate) struct VmFlags {
    /// Memory, MiB [default: 512]
    #[arg(long)]
    mem_mib: Option<u64>,
    /// vCPUs [default: 1]
    #[arg(long)]
    cpus: Option<u32>,
    /// Hypervisor driver: qemu or test
    #[arg(long)]
    driver: Option<String>,
    /// How vCPUs may be run: any, kvm or tcg
    #[arg(long)]
    accel: Option<String>,
    /// Board: q35, pc or microvm
    #[arg(long)]
    machine: Option<String>,
    /// x86_64 or i686
    #[arg(long)]
    arch: Option<String>,
    /// CPU model, by QEMU's name
    #[arg(long)]
    cpu_model: Option<String>,
    /// Kernel to boot: an image's name, or an absolute path on the host
    #[arg(long)]
    kernel: Option<String>,
    /// Initial RAM disk: an image's name, or an absolute path on the host
    #[arg(long, requires = "kernel")]
    initrd: Option<String>,
    /// Kernel command line
    #[arg(long, requires = "kernel")]
    cmdline: Option<String>,
    /// image=NAME, path=/ON/HOST or empty=MIB; then name=, bus=virtio|sata|ide, format=qcow2|raw|vmdk, shared, ro
    #[arg(long = "disk", value_name = "SOURCE[,KEY=VALUE]")]
    disks: Vec<String>,
    /// user, network=NAME or tap=INTERFACE; then model=virtio|e1000|rtl8139, mac=
    #[arg(long = "nic", value_name = "KIND[,KEY=VALUE]")]
    nics: Vec<String>,
    /// A VNC display on this port, or auto
    #[arg(long, value_name = "PORT")]
    vnc: Option<String>,
    /// Address the display listens on, on the host
    #[arg(long, requires = "vnc")]
    vnc_listen: Option<String>,
    /// Password of the display, 1 to 8 bytes
    #[arg(long, requires = "vnc", env = "DUNLIN_VNC_PASSWORD", hide_env_values = true)]
    vnc_password: Option<String>,
    /// When its process dies: never or on_crash
    #[arg(long)]
    restart: Option<String>,
    /// Run only on this host
    #[arg(long)]
    host: Option<Name>,
    /// Run only on hosts with this label
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = key_value)]
    host_labels: Vec<(String, String)>,
    /// Never share a host with another VM that has this label
    #[arg(long = "apart-from", value_name = "KEY=VALUE", value_parser = key_value)]
    apart_from: Vec<(String, String)>,
    /// Towards other VMs: apart or together, then with=KEY=VALUE, over=host|rack|zone, weight=1 to 100 (else required)
    #[arg(long = "rule", value_name = "WISH[,KEY=VALUE]")]
    rules: Vec<String>,
    /// Put up with hosts that have this taint
    #[arg(long = "tolerate", value_name = "KEY=VALUE", value_parser = key_value)]
    tolerates: Vec<(String, String)>,
    /// Prefer hosts with this label
    #[arg(long = "prefer", value_name = "KEY=VALUE:WEIGHT", value_parser = preference)]
    prefers: Vec<(String, u32)>,
    /// Label of the VM
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// Test driver: from start to running, ms
    #[arg(long)]
    sim_boot_ms: Option<u64>,
    /// Test driver: memory written over, MiB/s
    #[arg(long)]
    sim_dirty_mib_s: Option<u64>,
    /// Test driver: CPU asked for, percent of one vCPU
    #[arg(long)]
    sim_cpu_percent: Option<u32>,
}

impl VmFlags {
    /// A spec from the flags alone.
    pub(crate) fn spec(&self) -> Result<VmSpec, Invalid> {
        let mut spec = VmSpec::new(self.mem_mib.unwrap_or(MEM_MIB_DEFAULT));
        self.apply(&mut spec)?;
        Ok(spec)
    }

    /// Lays the flags that were given over `spec`, which may come from a file.
    pub(crate) fn apply(&self, spec: &mut VmSpec) -> Result<(), Invalid> {
        set(&mut spec.mem_mib, self.mem_mib);
        set(&mut spec.cpus, self.cpus);
        set(&mut spec.driver, word::<DriverName>("--driver", self.driver.as_deref(), "qemu or test")?);
        set(&mut spec.accel, word::<AccelChoice>("--accel", self.accel.as_deref(), "any, kvm or tcg")?);
        set(
            &mut spec.machine,
            word::<MachineType>("--machine", self.machine.as_deref(), "q35, pc or microvm")?,
        );
        set(&mut spec.arch, word::<Arch>("--arch", self.arch.as_deref(), "x86_64 or i686")?);
        set(&mut spec.cpu_model, self.cpu_model.clone());
        set(
            &mut spec.restart,
            word::<RestartPolicy>("--restart", self.restart.as_deref(), "never or on_crash")?,
        );
        if let Some(kernel) = &self.kernel {
            spec.boot = Boot::Kernel {
                kernel: file_ref(kernel)?,
                initrd: self.initrd.as_deref().map(file_ref).transpose()?,
                cmdline: self.cmdline.clone().unwrap_or_default(),
            };
        }
        for text in &self.disks {
            spec.disks.push(disk(text, spec.disks.len())?);
        }
        for text in &self.nics {
            spec.nics.push(nic(text)?);
        }
        if let Some(port) = &self.vnc {
            spec.vnc = Some(Vnc {
                listen: self.vnc_listen.clone().unwrap_or_default(),
                port: vnc_port(port)?,
                password: self.vnc_password.as_ref().map(Secret::new),
            });
        }
        if self.host.is_some() {
            spec.placement.host.clone_from(&self.host);
        }
        spec.placement.host_labels.extend(self.host_labels.iter().cloned());
        spec.placement.apart_from.extend(self.apart_from.iter().cloned());
        for text in &self.rules {
            spec.placement.rules.push(rule(text)?);
        }
        spec.placement.tolerates.extend(self.tolerates.iter().cloned());
        spec.placement.prefers.extend(self.prefers.iter().cloned());
        if self.sim_cpu_percent.is_some() {
            set(&mut spec.sim.get_or_insert_with(SimSpec::default).cpu_percent, self.sim_cpu_percent);
        }
        if self.sim_boot_ms.is_some() || self.sim_dirty_mib_s.is_some() {
            let sim = spec.sim.get_or_insert_with(SimSpec::default);
            set(&mut sim.boot_ms, self.sim_boot_ms);
            set(&mut sim.dirty_mib_s, self.sim_dirty_mib_s);
        }
        Ok(())
    }
}

pub(crate) fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *field = value;
    }
}

/// One of the words by which the model's enums read in YAML.
pub(crate) fn word<T: serde::de::DeserializeOwned>(
    flag: &str,
    text: Option<&str>,
    allowed: &str,
) -> Result<Option<T>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let value = serde_json::from_value(serde_json::Value::String(text.to_owned()));
    value.map(Some).map_err(|_| Invalid::new(flag, format!("{text:?} is not one of them"), allowed))
}

fn file_ref(text: &str) -> Result<FileRef, Invalid> {
    if text.starts_with('/') { Ok(FileRef::Path(text.to_owned())) } else { Ok(FileRef::Image(text.parse()?)) }
}

fn vnc_port(text: &str) -> Result<VncPort, Invalid> {
    if text == "auto" {
        return Ok(VncPort::Auto);
    }
    let wrong = |_| Invalid::new("--vnc", format!("{text:?} is no port"), "auto, or 5900 to 65535");
    text.parse().map(VncPort::Fixed).map_err(wrong)
}

/// `image=NAME|path=PATH|empty=MIB` and what follows, with names vda, vdb... when none is given.
fn disk(text: &str, index: usize) -> Result<Disk, Invalid> {
    let refuse = |problem: String| {
        Invalid::new(
            "--disk",
            problem,
            "image=NAME, path=/ON/HOST or empty=MIB; then name=, bus=, format=, shared, ro",
        )
    };
    let (mut source, mut name, mut format) = (None, None, None);
    let (mut bus, mut shared, mut read_only) = (DiskBus::Virtio, false, false);
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "image" => source = Some(DiskSource::Image(value.parse()?)),
            "path" => source = Some(DiskSource::Path(value.to_owned())),
            "empty" => {
                let size = value.parse().map_err(|_| refuse(format!("{value:?} is no size in MiB")))?;
                source = Some(DiskSource::EmptyMib(size));
            }
            "name" => name = Some(value.parse()?),
            "bus" => set(&mut bus, word("--disk bus", Some(value), "virtio, sata or ide")?),
            "format" => format = word("--disk format", Some(value), "qcow2, raw or vmdk")?,
            "shared" => shared = true,
            "ro" => read_only = true,
            other => return Err(refuse(format!("{other:?} is not known in {text:?}"))),
        }
    }
    let source = source.ok_or_else(|| refuse(format!("{text:?} does not say where its bytes come from")))?;
    let format = format.unwrap_or_else(|| format_by_name(&source));
    let name = name.map_or_else(|| default_name(bus, index), Ok)?;
    Ok(Disk { name, bus, format, source, shared, read_only })
}

/// The layout that a path's ending tells; what we make ourselves is qcow2.
fn format_by_name(source: &DiskSource) -> DiskFormat {
    let ending = match source {
        DiskSource::Path(path) => path.rsplit('.').next().unwrap_or_default(),
        DiskSource::Image(_) | DiskSource::EmptyMib(_) => "qcow2",
    };
    match ending {
        "vmdk" => DiskFormat::Vmdk,
        "raw" | "img" => DiskFormat::Raw,
        _ => DiskFormat::Qcow2,
    }
}

fn default_name(bus: DiskBus, index: usize) -> Result<Name, Invalid> {
    let prefix = match bus {
        DiskBus::Virtio => "vd",
        DiskBus::Sata => "sd",
        DiskBus::Ide => "hd",
    };
    let letter = u8::try_from(index).ok().and_then(|index| b'a'.checked_add(index)).map_or('z', char::from);
    format!("{prefix}{letter}").parse()
}

fn nic(text: &str) -> Result<Nic, Invalid> {
    let mut nic = Nic { mac: None, model: NicModel::Virtio, network: NicNetwork::User };
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "user" => nic.network = NicNetwork::User,
            "network" => nic.network = NicNetwork::Network(value.parse()?),
            "tap" => nic.network = NicNetwork::Tap(value.to_owned()),
            "model" => set(&mut nic.model, word("--nic model", Some(value), "virtio, e1000 or rtl8139")?),
            "mac" => nic.mac = Some(value.parse()?),
            other => {
                let allowed = "user, network=NAME or tap=INTERFACE; then model=, mac=";
                return Err(Invalid::new("--nic", format!("{other:?} is not known in {text:?}"), allowed));
            }
        }
    }
    Ok(nic)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Disk and NIC flags become what they say, and a wrong one is refused by its part.
    #[test]
    fn flags_to_devices() {
        let root = disk("image=debian,bus=sata,ro", 0).unwrap();
        assert_eq!((root.name.as_str(), root.bus, root.read_only), ("sda", DiskBus::Sata, true));
        let data = disk("path=/srv/a.vmdk,shared", 1).unwrap();
        assert_eq!((data.name.as_str(), data.format, data.shared), ("vdb", DiskFormat::Vmdk, true));
        assert_eq!(disk("empty=64,name=scratch", 2).unwrap().source, DiskSource::EmptyMib(64));
        for (text, part) in
            [("empty=x", "\"x\" is no size"), ("bus=ide", "does not say"), ("image=a,foo=1", "\"foo\"")]
        {
            let error = disk(text, 0).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(nic("network=default,model=e1000").unwrap().model, NicModel::E1000);
        assert!(nic("wifi").unwrap_err().to_string().contains("wifi"));
        assert_eq!(vnc_port("5901").unwrap(), VncPort::Fixed(5901));
    }
}
