//! From a VM to a document that [`parse`](super::parse) reads back to the same VM.

use std::fmt::Write;

use dunlin_model::capabilities::DriverName;
use dunlin_model::project::is_default;
use dunlin_model::vm::{
    AccelChoice, Arch, Boot, Disk, DiskSource, FileRef, Nic, NicModel, NicNetwork, Power, Vm, VmSpec, Vnc,
    VncPort,
};
use dunlin_model::{Name, Secret, VmId};

use super::{Fleet, NAMESPACE, OnHost, XmlError, on_crash};

/// Writes the domain. A VNC password is written as it stands in `vm`, and left out when it is redacted.
///
/// # Errors
/// [`XmlError::Unwritable`] when a text of the VM has a character that XML 1.0 cannot hold, as most control characters.
pub fn write(vm: &Vm) -> Result<String, XmlError> {
    let mut out = Text::default();
    let kind = match (vm.spec.driver, vm.spec.accel) {
        (DriverName::Test, _) => "test",
        (DriverName::Lxc, _) => "lxc",
        (DriverName::Uml, _) => "uml",
        (_, AccelChoice::Kvm) => "kvm",
        _ => "qemu",
    };
    out.domain(kind, &vm.metadata.name, vm.metadata.uid, &vm.spec)?;
    Ok(out.text)
}

/// Writes the domain as one host's libvirt is to run it: with the files, devices and marks that are only there. Every
/// image in `spec` stands as the path of its file already.
///
/// # Errors
/// As [`write`].
pub fn write_for_host(name: &Name, vm: VmId, spec: &VmSpec, host: &OnHost<'_>) -> Result<String, XmlError> {
    let mut out = Text { host: Some(host), ..Text::default() };
    out.domain(host.kind, name, vm, spec)?;
    Ok(out.text)
}

#[derive(Default)]
struct Text<'a> {
    text: String,
    host: Option<&'a OnHost<'a>>,
}

impl Text<'_> {
    fn line(&mut self, depth: usize, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{:indent$}{line}", "", indent = 2 * depth).expect("a String takes any text");
    }

    fn domain(&mut self, kind: &str, name: &Name, vm: VmId, spec: &VmSpec) -> Result<(), XmlError> {
        self.line(0, format_args!("<domain type='{kind}'>"));
        self.line(1, format_args!("<name>{name}</name>"));
        self.line(1, format_args!("<uuid>{vm}</uuid>"));
        match self.host {
            Some(host) => self.mark(host),
            None => self.fleet(spec)?,
        }
        self.line(1, format_args!("<memory unit='MiB'>{}</memory>", spec.mem_mib));
        self.line(1, format_args!("<vcpu>{}</vcpu>", spec.cpus));
        self.os(spec)?;
        if self.host.is_some_and(|host| host.os_type == "hvm") {
            // Without it libvirt 9 starts QEMU with an option that QEMU 9 no longer has; and no guest hears its button.
            self.line(1, format_args!("<features><acpi/><apic/></features>"));
        }
        self.cpu(&spec.cpu_model)?;
        self.line(1, format_args!("<on_poweroff>destroy</on_poweroff>"));
        self.line(1, format_args!("<on_reboot>restart</on_reboot>"));
        // On a host it is the fleet that restarts.
        let crash = if self.host.is_some() { "destroy" } else { on_crash(spec.restart) };
        self.line(1, format_args!("<on_crash>{crash}</on_crash>"));
        self.line(1, format_args!("<devices>"));
        spec.disks.iter().try_for_each(|disk| self.disk(disk))?;
        spec.nics.iter().try_for_each(|nic| self.nic(nic))?;
        spec.vnc.iter().try_for_each(|vnc| self.display(vnc))?;
        self.serial()?;
        self.line(1, format_args!("</devices>"));
        self.line(0, format_args!("</domain>"));
        Ok(())
    }

    /// Whose domain it is.
    fn mark(&mut self, host: &OnHost<'_>) {
        self.line(1, format_args!("<metadata>"));
        self.line(
            2,
            format_args!("<dunlin:guest xmlns:dunlin='{NAMESPACE}' incarnation='{}'/>", host.incarnation.0),
        );
        self.line(1, format_args!("</metadata>"));
    }

    fn serial(&mut self) -> Result<(), XmlError> {
        self.line(2, format_args!("<serial type='pty'>"));
        if let Some(log) = self.host.and_then(|host| host.serial_log) {
            let log = escaped("the path of the serial log", log)?;
            self.line(3, format_args!("<log file='{log}' append='on'/>"));
        }
        self.line(3, format_args!("<target port='0'/>"));
        self.line(2, format_args!("</serial>"));
        self.line(2, format_args!("<console type='pty'>"));
        self.line(3, format_args!("<target type='serial' port='0'/>"));
        self.line(2, format_args!("</console>"));
        if self.host.is_some_and(|host| host.spare) {
            // What libvirt adds to every PC unasked, and no spec has.
            self.line(2, format_args!("<controller type='usb' index='0' model='none'/>"));
            self.line(2, format_args!("<memballoon model='none'/>"));
        }
        Ok(())
    }

    fn fleet(&mut self, spec: &VmSpec) -> Result<(), XmlError> {
        let implied = match (spec.driver, spec.accel) {
            (DriverName::Qemu, AccelChoice::Kvm) | (_, AccelChoice::Any) => None,
            (_, accel) => Some(accel),
        };
        let power = Some(spec.power).filter(|power| *power != Power::default());
        let driver = Some(spec.driver).filter(|driver| *driver == DriverName::Libvirt);
        let (placement, sim) = (spec.placement.clone(), spec.sim.clone());
        let project = Some(spec.project.clone()).filter(|project| !is_default(project));
        let fleet = Fleet { power, driver, accel: implied, placement, sim, project };
        if fleet == Fleet::default() {
            return Ok(());
        }
        let json = serde_json::to_string(&fleet).expect("plain fields and maps of texts serialise");
        self.line(1, format_args!("<metadata>"));
        let json = escaped("spec.placement", &json)?;
        self.line(2, format_args!("<dunlin:vm xmlns:dunlin='{NAMESPACE}'>{json}</dunlin:vm>"));
        self.line(1, format_args!("</metadata>"));
        Ok(())
    }

    fn os(&mut self, spec: &VmSpec) -> Result<(), XmlError> {
        let arch = match spec.arch {
            Arch::X86_64 => "x86_64",
            Arch::I686 => "i686",
        };
        self.line(1, format_args!("<os>"));
        let machine = spec.machine.as_str();
        match self.host {
            Some(host) if host.os_type != "hvm" => {
                self.line(2, format_args!("<type arch='{arch}'>{}</type>", host.os_type));
            }
            _ => self.line(2, format_args!("<type arch='{arch}' machine='{machine}'>hvm</type>")),
        }
        match &spec.boot {
            Boot::Disk => self.line(2, format_args!("<boot dev='hd'/>")),
            Boot::Kernel { kernel, initrd, cmdline } => {
                let kernel = file("spec.boot.kernel", kernel)?;
                self.line(2, format_args!("<kernel>{kernel}</kernel>"));
                if let Some(initrd) = initrd {
                    let initrd = file("spec.boot.initrd", initrd)?;
                    self.line(2, format_args!("<initrd>{initrd}</initrd>"));
                }
                if !cmdline.is_empty() {
                    let cmdline = escaped("spec.boot.cmdline", cmdline)?;
                    self.line(2, format_args!("<cmdline>{cmdline}</cmdline>"));
                }
            }
        }
        self.line(1, format_args!("</os>"));
        Ok(())
    }

    fn cpu(&mut self, model: &str) -> Result<(), XmlError> {
        let model = escaped("spec.cpu_model", model)?;
        match model.as_str() {
            "" => {}
            "host" => self.line(1, format_args!("<cpu mode='host-passthrough'/>")),
            "max" => self.line(1, format_args!("<cpu mode='maximum'/>")),
            model => {
                let (model, features) = features(model);
                self.line(1, format_args!("<cpu mode='custom' match='exact'>"));
                self.line(2, format_args!("<model fallback='forbid'>{model}</model>"));
                for (policy, feature) in features {
                    self.line(2, format_args!("<feature policy='{policy}' name='{feature}'/>"));
                }
                self.line(1, format_args!("</cpu>"));
            }
        }
        Ok(())
    }

    fn disk(&mut self, disk: &Disk) -> Result<(), XmlError> {
        let (kind, source) = match &disk.source {
            DiskSource::Path(path) => ("file", format!("file='{}'", escaped("spec.disks.source", path)?)),
            DiskSource::Image(name) => ("volume", format!("pool='image' volume='{name}'")),
            DiskSource::EmptyMib(mib) => ("volume", format!("pool='empty' volume='{mib}MiB'")),
        };
        self.line(2, format_args!("<disk type='{kind}' device='disk'>"));
        self.line(3, format_args!("<driver name='qemu' type='{}'/>", disk.format.as_str()));
        self.line(3, format_args!("<source {source}/>"));
        self.line(3, format_args!("<target dev='{}' bus='{}'/>", disk.name, disk.bus));
        if disk.read_only {
            self.line(3, format_args!("<readonly/>"));
        }
        if disk.shared {
            self.line(3, format_args!("<shareable/>"));
        }
        self.line(2, format_args!("</disk>"));
        Ok(())
    }

    fn nic(&mut self, nic: &Nic) -> Result<(), XmlError> {
        let (kind, plug) = match &nic.network {
            NicNetwork::User => ("user", String::new()),
            NicNetwork::Network(name) => ("network", format!("<source network='{name}'/>")),
            NicNetwork::Tap(tap) => {
                // On a host it is there already, and libvirt is not to make or remove it.
                let ours = if self.host.is_some() { " managed='no'" } else { "" };
                ("ethernet", format!("<target dev='{}'{ours}/>", escaped("spec.nics.network.tap", tap)?))
            }
        };
        self.line(2, format_args!("<interface type='{kind}'>"));
        if let Some(mac) = &nic.mac {
            self.line(3, format_args!("<mac address='{mac}'/>"));
        }
        if !plug.is_empty() {
            self.line(3, format_args!("{plug}"));
        }
        let model = match nic.model {
            NicModel::Virtio => "virtio",
            NicModel::E1000 => "e1000",
            NicModel::Rtl8139 => "rtl8139",
        };
        self.line(3, format_args!("<model type='{model}'/>"));
        self.line(2, format_args!("</interface>"));
        Ok(())
    }

    fn display(&mut self, vnc: &Vnc) -> Result<(), XmlError> {
        let mut attributes = match vnc.port {
            VncPort::Auto => "port='-1' autoport='yes'".to_owned(),
            VncPort::Fixed(port) => format!("port='{port}' autoport='no'"),
        };
        if !vnc.listen.is_empty() {
            attributes += &format!(" listen='{}'", escaped("spec.vnc.listen", &vnc.listen)?);
        }
        if let Some(password) = vnc.password.as_ref().filter(|password| password.expose() != Secret::REDACTED)
        {
            attributes += &format!(" passwd='{}'", escaped("spec.vnc.password", password.expose())?);
        }
        self.line(2, format_args!("<graphics type='vnc' {attributes}/>"));
        Ok(())
    }
}

fn file(field: &'static str, file: &FileRef) -> Result<String, XmlError> {
    match file {
        FileRef::Image(name) => Ok(format!("image:{name}")),
        FileRef::Path(path) => escaped(field, path),
    }
}

/// A model and its flags, when all of them are ones libvirt has a word for; else the model with everything in it.
fn features(model: &str) -> (&str, Vec<(&'static str, &str)>) {
    let mut parts = model.split(',');
    let first = parts.next().unwrap_or_default();
    let feature = |part| match str::split_at_checked(part, 1)? {
        (_, "") => None,
        ("+", name) => Some(("require", name)),
        ("-", name) => Some(("disable", name)),
        _ => None,
    };
    match parts.map(feature).collect::<Option<Vec<_>>>() {
        Some(features) if !first.is_empty() => (first, features),
        _ => (model, Vec::new()),
    }
}

/// The text as it may stand in content and in attributes. White space that a reader would fold is written by number.
fn escaped(field: &'static str, text: &str) -> Result<String, XmlError> {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => {
                write!(out, "&#{};", u32::from(character)).expect("a String takes any text");
            }
            // XML 1.0, production 2.
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(XmlError::Unwritable { field, character });
            }
            _ => out.push(character),
        }
    }
    Ok(out)
}
