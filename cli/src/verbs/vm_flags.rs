//! A VM's spec from command line flags.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::cloud_init::{NETWORK_CONFIG_MAX, USER_DATA_MAX};
use dunlin_model::vm::{
    AccelChoice, Arch, Boot, Disk, DiskBus, DiskFormat, DiskSource, FileRef, MachineType, Nic, NicModel,
    NicNetwork, RestartPolicy, SimSpec, VmSpec, Vnc, VncPort,
};
use dunlin_model::{Invalid, Name, Secret};

use super::rule_flag::{preference, resource, rule};
use crate::args::{key_value, whole};

/// Memory of a VM when nobody says, MiB.
const MEM_MIB_DEFAULT: u64 = 512;

#[derive(Debug, Default, Args)]
pub(crate) struct VmFlags {
    /// Memory, MiB [default: 512]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>("16 to 4194304"))]
    mem_mib: Option<u64>,
    /// vCPUs [default: 1]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 288"))]
    cpus: Option<u32>,
    /// Hypervisor driver: qemu, lxc, uml, libvirt or test
    #[arg(long)]
    driver: Option<String>,
    /// Project it belongs to
    #[arg(long)]
    project: Option<dunlin_model::Name>,
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
    /// What its cloud-init is to do: a cloud-config or a script, from this file
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Its cloud-init's network configuration, from this file
    #[arg(long, value_name = "FILE")]
    network_config: Option<PathBuf>,
    /// A VNC display on this port, or auto
    #[arg(long, value_name = "PORT")]
    vnc: Option<String>,
    /// Address the display listens on, on the host
    #[arg(long, requires = "vnc")]
    vnc_listen: Option<String>,
    /// Password of the display, 1 to 8 bytes [env: DUNLIN_VNC_PASSWORD]
    #[arg(long, requires = "vnc")]
    vnc_password: Option<String>,
    /// The same, from where other users of this machine cannot read it; without a display it is not needed
    #[arg(long, hide = true, env = "DUNLIN_VNC_PASSWORD", hide_env_values = true)]
    vnc_password_told: Option<String>,
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
    /// Take so many of what its host has: device/NAME or licence/NAME
    #[arg(long = "resource", value_name = "KIND/NAME=COUNT", value_parser = resource)]
    resources: Vec<(String, u64)>,
    /// Label of the VM
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// Test driver: from start to running, ms
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>("0 and up"))]
    sim_boot_ms: Option<u64>,
    /// Test driver: memory written over, MiB/s
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>("0 and up"))]
    sim_dirty_mib_s: Option<u64>,
    /// Test driver: CPU asked for, percent of one vCPU
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("0 and up"))]
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
        set(&mut spec.project, self.project.clone());
        set(
            &mut spec.driver,
            word::<DriverName>("--driver", self.driver.as_deref(), "qemu, lxc, uml, libvirt or test")?,
        );
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
                kernel: file_ref("--kernel", kernel)?,
                initrd: self.initrd.as_deref().map(|text| file_ref("--initrd", text)).transpose()?,
                cmdline: self.cmdline.clone().unwrap_or_default(),
            };
        }
        if let Some(file) = &self.user_data {
            let told = Secret::new(text_of("--user-data", file, USER_DATA_MAX)?);
            spec.cloud_init.get_or_insert_default().user_data = Some(told);
        }
        if let Some(file) = &self.network_config {
            spec.cloud_init.get_or_insert_default().network_config =
                text_of("--network-config", file, NETWORK_CONFIG_MAX)?;
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
                password: self.vnc_password.as_ref().or(self.vnc_password_told.as_ref()).map(Secret::new),
            });
        }
        if self.host.is_some() {
            spec.placement.host.clone_from(&self.host);
        }
        spec.placement.host_labels.extend(once("--host-label", &self.host_labels)?);
        spec.placement.apart_from.extend(once("--apart-from", &self.apart_from)?);
        for text in &self.rules {
            spec.placement.rules.push(rule(text)?);
        }
        spec.placement.tolerates.extend(once("--tolerate", &self.tolerates)?);
        spec.placement.prefers.extend(once("--prefer", &self.prefers)?);
        spec.placement.resources.extend(once("--resource", &self.resources)?);
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

/// Pairs of which each key is said once: of two values for one key it is not known which was meant.
pub(crate) fn once<V: Clone + std::fmt::Debug>(
    flag: &str,
    pairs: &[(String, V)],
) -> Result<BTreeMap<String, V>, Invalid> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if let Some(before) = map.insert(key.clone(), value.clone()) {
            let problem = format!("{key:?} is given twice, as {before:?} and as {value:?}");
            return Err(Invalid::new(flag, problem, "each key once"));
        }
    }
    Ok(map)
}

/// The parts of `KEY=VALUE,KEY,...`, each key once. A key that is a mark takes no value, the others need one.
fn parts<'a>(flag: &str, text: &'a str, marks: &[&str]) -> Result<Vec<(&'a str, &'a str)>, Invalid> {
    let refuse =
        |problem: String| Invalid::new(flag, problem, "KEY=VALUE, each key once, with commas between");
    let mut found: Vec<(&str, &str)> = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if found.iter().any(|(before, _)| *before == key) {
            return Err(refuse(format!("{key:?} is given twice in {text:?}")));
        }
        match marks.contains(&key) {
            true if part.contains('=') => return Err(refuse(format!("{key:?} takes no value in {text:?}"))),
            false if part.contains('=') && value.is_empty() => {
                return Err(refuse(format!("{key:?} has no value in {text:?}")));
            }
            _ => found.push((key, value)),
        }
    }
    Ok(found)
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

/// A name, refused by the flag it stands in.
fn named(flag: &str, text: &str) -> Result<Name, Invalid> {
    text.parse().map_err(|e: Invalid| Invalid { field: flag.to_owned(), ..e })
}

fn file_ref(flag: &str, text: &str) -> Result<FileRef, Invalid> {
    if text.starts_with('/') {
        return Ok(FileRef::Path(text.to_owned()));
    }
    named(flag, text).map(FileRef::Image).map_err(|e| Invalid {
        allowed: format!("an absolute path on the host, or an image's name: {}", e.allowed),
        ..e
    })
}

fn vnc_port(text: &str) -> Result<VncPort, Invalid> {
    if text == "auto" {
        return Ok(VncPort::Auto);
    }
    let wrong = |_| Invalid::new("--vnc", format!("{text:?} is no port"), "auto, or 5900 to 65535");
    text.parse().map(VncPort::Fixed).map_err(wrong)
}

/// `image=NAME|path=PATH|empty=MIB` and what follows, with names vda, vdb... when none is given.
pub(super) fn disk(text: &str, index: usize) -> Result<Disk, Invalid> {
    let refuse = |problem: String| {
        Invalid::new(
            "--disk",
            problem,
            "image=NAME, path=/ON/HOST or empty=MIB; then name=, bus=, format=, shared, ro",
        )
    };
    let (mut source, mut name, mut format) = (None, None, None);
    let (mut bus, mut shared, mut read_only) = (DiskBus::Virtio, false, false);
    let parts = parts("--disk", text, &["shared", "ro"])?;
    if parts.iter().filter(|(key, _)| ["image", "path", "empty"].contains(key)).count() > 1 {
        return Err(refuse(format!("{text:?} says twice where its bytes come from")));
    }
    for (key, value) in parts {
        match key {
            "image" => source = Some(DiskSource::Image(named("--disk image", value)?)),
            "path" => source = Some(DiskSource::Path(value.to_owned())),
            "empty" => {
                let size = value.parse().map_err(|_| refuse(format!("{value:?} is no size in MiB")))?;
                source = Some(DiskSource::EmptyMib(size));
            }
            "name" => name = Some(named("--disk name", value)?),
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

pub(super) fn nic(text: &str) -> Result<Nic, Invalid> {
    let mut nic = Nic { mac: None, model: NicModel::Virtio, network: NicNetwork::User };
    let parts = parts("--nic", text, &["user"])?;
    if parts.iter().filter(|(key, _)| ["user", "network", "tap"].contains(key)).count() > 1 {
        let problem = format!("{text:?} says twice what it is plugged into");
        return Err(Invalid::new("--nic", problem, "one of user, network=NAME and tap=INTERFACE"));
    }
    for (key, value) in parts {
        match key {
            "user" => nic.network = NicNetwork::User,
            "network" => nic.network = NicNetwork::Network(named("--nic network", value)?),
            "tap" => nic.network = NicNetwork::Tap(value.to_owned()),
            "model" => set(&mut nic.model, word("--nic model", Some(value), "virtio, e1000 or rtl8139")?),
            "mac" => {
                nic.mac =
                    Some(value.parse().map_err(|e: Invalid| Invalid { field: "--nic mac".into(), ..e })?);
            }
            other => {
                let allowed = "user, network=NAME or tap=INTERFACE; then model=, mac=";
                return Err(Invalid::new("--nic", format!("{other:?} is not known in {text:?}"), allowed));
            }
        }
    }
    Ok(nic)
}

/// The text of a file, no longer than that.
fn text_of(flag: &str, file: &Path, bytes_max: usize) -> Result<String, Invalid> {
    let wrong =
        |problem: String| Invalid::new(flag, problem, format!("a text file of at most {bytes_max} bytes"));
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|e| wrong(format!("{}: {e}", file.display())))?;
    let read = opened.take(bytes_max as u64 + 1).read_to_string(&mut text);
    read.map_err(|e| wrong(format!("{}: {e}", file.display())))?;
    if text.len() > bytes_max {
        return Err(wrong(format!("{} is too long", file.display())));
    }
    Ok(text)
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
        for (text, part) in [
            ("empty=x", "\"x\" is no size"),
            ("bus=ide", "does not say"),
            ("image=a,foo=1", "\"foo\""),
            ("image=a,path=/b", "says twice"),
            ("image=a,name=b,name=c", "\"name\" is given twice"),
            ("image=a,shared=no", "takes no value"),
            ("image=", "\"image\" has no value"),
            ("image=-a", "--disk image: \"-a\" is not a name"),
            ("", "is not known"),
        ] {
            let error = disk(text, 0).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(nic("network=default,model=e1000").unwrap().model, NicModel::E1000);
        for (text, part) in [
            ("wifi", "wifi"),
            ("user,tap=t0", "says twice"),
            ("user,mac=1", "--nic mac"),
            ("user=a", "no value"),
        ] {
            let error = nic(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let pair = |value: &str| ("a".to_owned(), value.to_owned());
        assert!(once("--label", &[pair("1"), pair("2")]).unwrap_err().to_string().contains("given twice"));
        assert_eq!(vnc_port("5901").unwrap(), VncPort::Fixed(5901));
    }
}
