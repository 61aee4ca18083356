//! From a document to a VM: disks, NICs, the display, and the devices every VM has.

use dunlin_model::vm::{
    Disk, DiskBus, DiskFormat, DiskSource, MachineType, Nic, NicModel, NicNetwork, VmSpec, Vnc, VncPort,
};
use dunlin_model::{Invalid, Name, Secret};

use super::element::{Element, Sieve};
use super::{XmlError, unit};

pub(super) fn devices(
    mut devices: Element<'_>,
    sieve: &mut Sieve,
    spec: &mut VmSpec,
) -> Result<(), XmlError> {
    if let Some(mut emulator) = devices.child("emulator") {
        // Which binary is the host's business; that it is QEMU is ours.
        let path = emulator.text();
        let file = path.trim().rsplit('/').next().unwrap_or_default();
        if !file.starts_with("qemu-system-") && !matches!(file, "qemu-kvm" | "kvm" | "qemu") {
            emulator.drop(sieve)?;
        }
        emulator.finish(sieve)?;
    }
    for element in devices.all("disk") {
        spec.disks.extend(disk(element, sieve)?);
    }
    for element in devices.all("interface") {
        spec.nics.extend(nic(element, sieve, spec.machine)?);
    }
    if let Some(element) = devices.child("graphics") {
        spec.vnc = display(element, sieve)?;
    }
    usual(&mut devices, sieve)?;
    devices.finish(sieve)
}

/// Devices that every VM has one of anyway: a serial console, and a PC's keyboard and mouse. And the one none has.
fn usual(devices: &mut Element<'_>, sieve: &mut Sieve) -> Result<(), XmlError> {
    for name in ["serial", "console"] {
        let Some(mut element) = devices.child(name) else { continue };
        element.only(sieve, "type", &["pty"])?;
        if let Some(mut target) = element.child("target") {
            target.only(sieve, "port", &["0"])?;
            target.only(sieve, "type", &["serial", "isa-serial"])?;
            if let Some(mut model) = target.child("model") {
                model.only(sieve, "name", &["isa-serial"])?;
                model.finish(sieve)?;
            }
            target.finish(sieve)?;
        }
        element.finish(sieve)?;
    }
    for mut input in devices.all("input") {
        input.only(sieve, "type", &["mouse", "keyboard"])?;
        input.only(sieve, "bus", &["ps2"])?;
        input.finish(sieve)?;
    }
    if let Some(mut balloon) = devices.child("memballoon") {
        balloon.only(sieve, "model", &["none"])?;
        balloon.finish(sieve)?;
    }
    Ok(())
}

fn named(element: &Element<'_>, what: &str, text: &str) -> Result<Name, XmlError> {
    text.parse().map_err(|e: Invalid| element.value(what, e.problem, &e.allowed))
}

fn disk(mut element: Element<'_>, sieve: &mut Sieve) -> Result<Option<Disk>, XmlError> {
    let kind = element.attr("type").unwrap_or("file");
    let device = element.attr("device").unwrap_or("disk");
    if !matches!(kind, "file" | "volume") || device != "disk" {
        let (what, value) = if device == "disk" { ("@type", kind) } else { ("@device", device) };
        element.drop_where(sieve, what, value)?;
        return Ok(None);
    }
    let mut origin = element.child("source").ok_or_else(|| element.missing("source", "a <source>"))?;
    let source = match kind {
        "file" => DiskSource::Path(origin.required("file", "an absolute path")?.to_owned()),
        _ => volume(&mut origin)?,
    };
    origin.finish(sieve)?;
    let mut format = match &source {
        DiskSource::Path(path) => by_extension(path),
        _ => DiskFormat::Qcow2,
    };
    if let Some(mut driver) = element.child("driver") {
        driver.only(sieve, "name", &["qemu"])?;
        format = match driver.attr("type") {
            None => format,
            Some("raw") => DiskFormat::Raw,
            Some("qcow2") => DiskFormat::Qcow2,
            Some("vmdk") => DiskFormat::Vmdk,
            Some(other) => {
                let problem = format!("{other:?} is not read");
                return Err(driver.value("@type", problem, "raw, qcow2 or vmdk"));
            }
        };
        driver.finish(sieve)?;
    }
    let mut target =
        element.child("target").ok_or_else(|| element.missing("target", "a <target dev=.../>"))?;
    let dev = target.required("dev", "a name, as in vda")?;
    let Some(bus) = bus(&mut target, dev) else {
        let (what, value) = target.attr("bus").map_or(("target/@dev", dev), |bus| ("target/@bus", bus));
        element.drop_where(sieve, what, value)?;
        return Ok(None);
    };
    let name = named(&target, "@dev", dev)?;
    target.finish(sieve)?;
    let mut flag = |name: &str| -> Result<bool, XmlError> {
        let Some(flag) = element.child(name) else { return Ok(false) };
        flag.finish(sieve)?;
        Ok(true)
    };
    let (read_only, shared) = (flag("readonly")?, flag("shareable")?);
    element.finish(sieve)?;
    Ok(Some(Disk { name, bus, format, source, shared, read_only }))
}

/// `pool='image' volume=NAME`, or `pool='empty' volume=SIZE`.
fn volume(origin: &mut Element<'_>) -> Result<DiskSource, XmlError> {
    let volume = origin.required("volume", "an image's name, or a size")?;
    match origin.required("pool", "image or empty")? {
        "image" => Ok(DiskSource::Image(named(origin, "@volume", volume)?)),
        "empty" => {
            let digits = volume.trim_end_matches(|c: char| !c.is_ascii_digit());
            let unit = volume.get(digits.len()..).unwrap_or_default().trim();
            let size = unit::mib(digits, if unit.is_empty() { "KiB" } else { unit });
            size.map(DiskSource::EmptyMib).map_err(|problem| origin.value("@volume", problem, unit::ALLOWED))
        }
        other => Err(origin.value("@pool", format!("{other:?} is no pool"), "image or empty")),
    }
}

/// What a disk is that says nothing of its format. libvirt takes raw; a `.vmdk` read as raw would show the guest garbage.
fn by_extension(path: &str) -> DiskFormat {
    match path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).as_deref() {
        Some("vmdk") => DiskFormat::Vmdk,
        Some("qcow2") => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    }
}

/// By the bus, or as libvirt does by how the name begins. There is no SCSI here: `sda` is on SATA.
fn bus(target: &mut Element<'_>, dev: &str) -> Option<DiskBus> {
    match (target.attr("bus"), dev.get(..2)) {
        (Some("virtio"), _) | (None, Some("vd")) => Some(DiskBus::Virtio),
        (Some("sata"), _) | (None, Some("sd")) => Some(DiskBus::Sata),
        (Some("ide"), _) | (None, Some("hd")) => Some(DiskBus::Ide),
        _ => None,
    }
}

fn nic(mut element: Element<'_>, sieve: &mut Sieve, machine: MachineType) -> Result<Option<Nic>, XmlError> {
    let network = match element.required("type", "user, network or ethernet")? {
        "user" => NicNetwork::User,
        "network" => {
            let mut source = element
                .child("source")
                .ok_or_else(|| element.missing("source", "a <source network=.../>"))?;
            let network = source.required("network", "a network's name")?;
            let network = NicNetwork::Network(named(&source, "@network", network)?);
            source.finish(sieve)?;
            network
        }
        "ethernet" => {
            let mut target =
                element.child("target").ok_or_else(|| element.missing("target", "a <target dev=.../>"))?;
            let tap = NicNetwork::Tap(target.required("dev", "a tap interface's name")?.to_owned());
            target.finish(sieve)?;
            tap
        }
        other => {
            element.drop_where(sieve, "@type", other)?;
            return Ok(None);
        }
    };
    let mac = match element.child("mac") {
        None => None,
        Some(mut mac) => {
            let address = mac.required("address", "52:54:00:12:34:56")?;
            let parsed =
                address.parse().map_err(|e: Invalid| mac.value("@address", e.problem, &e.allowed))?;
            mac.finish(sieve)?;
            Some(parsed)
        }
    };
    // libvirt's own choice for a PC; a guest of the article's time has a driver for it.
    let mut model = if machine == MachineType::Microvm { NicModel::Virtio } else { NicModel::Rtl8139 };
    if let Some(mut card) = element.child("model") {
        let allowed = "virtio, e1000 or rtl8139";
        model = match card.required("type", allowed)? {
            "virtio" => NicModel::Virtio,
            "e1000" => NicModel::E1000,
            "rtl8139" => NicModel::Rtl8139,
            other => return Err(card.value("@type", format!("{other:?} is not modelled"), allowed)),
        };
        card.finish(sieve)?;
    }
    element.finish(sieve)?;
    Ok(Some(Nic { mac, model, network }))
}

fn display(mut element: Element<'_>, sieve: &mut Sieve) -> Result<Option<Vnc>, XmlError> {
    let kind = element.required("type", "vnc")?;
    if kind != "vnc" {
        element.drop_where(sieve, "@type", kind)?;
        return Ok(None);
    }
    let auto = match element.attr("autoport") {
        None | Some("no") => false,
        Some("yes") => true,
        Some(other) => return Err(element.value("@autoport", format!("{other:?}"), "yes or no")),
    };
    let port = match element.attr("port") {
        None | Some("-1") => VncPort::Auto,
        Some(_) if auto => VncPort::Auto,
        Some(port) => {
            let problem = || element.value("@port", format!("{port:?} is no port"), "5900 to 65535, or -1");
            VncPort::Fixed(port.parse().map_err(|_| problem())?)
        }
    };
    let mut listen = element.attr("listen").unwrap_or_default();
    if let Some(mut inner) = element.child("listen") {
        inner.only(sieve, "type", &["address"])?;
        listen = inner.attr("address").unwrap_or(listen);
        inner.finish(sieve)?;
    }
    let password = element.attr("passwd").map(Secret::new);
    let listen = listen.to_owned();
    element.finish(sieve)?;
    Ok(Some(Vnc { listen, port, password }))
}
