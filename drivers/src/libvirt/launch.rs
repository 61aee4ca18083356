//! From a launch to the domain a daemon is given.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dunlin_model::Name;
use dunlin_model::vm::{AccelChoice, Arch, Boot, Disk, DiskBus, DiskSource, FileRef, NicNetwork, VmSpec};
use roxmltree::Document;

use super::offers::{Kind, Offers};
use super::{fail, graft};
use crate::domain_xml::{OnHost, write_for_host};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Launch, LaunchNic};

/// The domain of a launch. `log`: where the guest's serial port is kept. `theirs`: a definition that is its owner's, which
/// stays but for what is asked otherwise.
pub(super) fn domain_of(
    launch: &Launch,
    offers: &Offers,
    log: &str,
    theirs: Option<&str>,
) -> DriverResult<String> {
    let kind = kind(&launch.spec, offers)?;
    let emulated = matches!(kind.domain.as_str(), "qemu" | "kvm");
    let host = OnHost {
        kind: &kind.domain,
        os_type: &kind.os_type,
        incarnation: launch.incarnation,
        serial_log: emulated.then_some(log),
        spare: emulated,
    };
    let refused = |words: String| fail("start", DriverErrorKind::Refused, words);
    let now = resolved(launch)?;
    let ours = write_for_host(&launch.name, launch.vm, &now, &host).map_err(|e| refused(e.to_string()))?;
    match theirs {
        Some(theirs) => graft::graft(theirs, &ours, &now, launch).map_err(refused),
        None => Ok(ours),
    }
}

/// Which of the offered kinds of guests it is to be.
fn kind<'a>(spec: &VmSpec, offers: &'a Offers) -> DriverResult<&'a Kind> {
    let kvm = offers.kvm.as_ref().is_some_and(|kvm| kvm.usable);
    let fits = |kind: &&Kind| {
        let wanted = match (spec.accel, kind.domain.as_str()) {
            (AccelChoice::Kvm, domain) => domain == "kvm" && kvm,
            (AccelChoice::Tcg, domain) => domain == "qemu",
            (_, "kvm") => kvm,
            (_, "qemu") => !kvm,
            (_, _) => true,
        };
        // A Xen guest without firmware boots a kernel that knows Xen.
        let boots =
            kind.os_type == "hvm" || kind.os_type == "xen" && matches!(spec.boot, Boot::Kernel { .. });
        wanted && boots && kind.arch == arch(spec.arch)
    };
    let none = || {
        let all: BTreeSet<&str> = offers.kinds.iter().map(|kind| kind.domain.as_str()).collect();
        let offered: Vec<&str> = all.into_iter().collect();
        let words = format!("no such guest can be run here; libvirt offers {}", offered.join(", "));
        fail("start", DriverErrorKind::Unsupported, words)
    };
    offers.kinds.iter().find(fits).ok_or_else(none)
}

/// As libvirt names it.
fn arch(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64",
        Arch::I686 => "i686",
    }
}

/// The spec with the files and interfaces of this host in it, and disks under names that libvirt takes.
fn resolved(launch: &Launch) -> DriverResult<VmSpec> {
    let refused = |words: String| fail("start", DriverErrorKind::Refused, words);
    let path = |path: &std::path::Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| refused(format!("libvirt takes no path that is not text: {}", path.display())))
    };
    let mut spec = launch.spec.clone();
    if let Boot::Kernel { kernel, initrd, .. } = &mut spec.boot {
        if let Some(file) = &launch.kernel {
            *kernel = FileRef::Path(path(file)?);
        }
        *initrd = launch.initrd.as_deref().map(path).transpose()?.map(FileRef::Path);
    }
    let names = targets(launch.disks.iter().map(|disk| (&disk.name, disk.bus)));
    spec.disks = Vec::new();
    for (disk, name) in launch.disks.iter().zip(names) {
        let source = DiskSource::Path(path(&disk.path)?);
        let (bus, format, shared, read_only) = (disk.bus, disk.format, disk.shared, disk.read_only);
        spec.disks.push(Disk { name, bus, format, source, shared, read_only });
    }
    for (nic, launch) in spec.nics.iter_mut().zip(&launch.nics) {
        nic.network = match launch {
            LaunchNic::User => NicNetwork::User,
            LaunchNic::Tap(tap) | LaunchNic::Veth { interface: tap, .. } => NicNetwork::Tap(tap.clone()),
        };
    }
    Ok(spec)
}

/// Names as libvirt wants them: `vda`, `sdb`, by bus. A disk that has such a name keeps it.
pub(super) fn targets<'a>(disks: impl Iterator<Item = (&'a Name, DiskBus)> + Clone) -> Vec<Name> {
    let prefix = |bus| match bus {
        DiskBus::Virtio => "vd",
        DiskBus::Sata => "sd",
        DiskBus::Ide => "hd",
    };
    let fits = |name: &Name, bus| {
        let rest = name.as_str().strip_prefix(prefix(bus)).unwrap_or_default();
        rest.len() == 1 && rest.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    let mut taken: BTreeSet<Name> =
        disks.clone().filter(|(name, bus)| fits(name, *bus)).map(|(name, _)| name.clone()).collect();
    let named = |(name, bus): (&Name, DiskBus)| {
        if fits(name, bus) {
            return name.clone();
        }
        let letters = ('a'..='z').map(|letter| format!("{}{letter}", prefix(bus)));
        let mut names = letters.filter_map(|name| name.parse().ok());
        // There are fewer disks than letters; a seventeenth is refused long before.
        let free = names.find(|free| !taken.contains(free)).unwrap_or_else(|| name.clone());
        taken.insert(free.clone());
        free
    };
    disks.map(named).collect()
}

/// Where a running domain's display listens.
pub(super) fn display_of(xml: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let vnc = |node: &roxmltree::Node<'_, '_>| {
        node.has_tag_name("graphics") && node.attribute("type") == Some("vnc")
    };
    let graphics = document.descendants().find(vnc)?;
    let port: u16 = graphics.attribute("port")?.parse().ok()?;
    let listen = graphics.attribute("listen").unwrap_or("127.0.0.1");
    match listen.parse() {
        Ok(IpAddr::V6(address)) => Some(format!("[{address}]:{port}")),
        _ => Some(format!("{listen}:{port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Disks get names of their bus, keep one they have, and no two share one.
    #[test]
    fn disks_have_names_libvirt_takes() {
        let names = ["root", "vda", "data", "sdb", "vdaa"].map(|name| name.parse::<Name>().expect("name"));
        let buses = [DiskBus::Virtio, DiskBus::Virtio, DiskBus::Sata, DiskBus::Ide, DiskBus::Virtio];
        let found = targets(names.iter().zip(buses));
        assert_eq!(found.iter().map(Name::as_str).collect::<Vec<_>>(), ["vdb", "vda", "sda", "hda", "vdc"]);
    }

    /// The display of a running domain is found in its document.
    #[test]
    fn displays() {
        let xml =
            |graphics: &str| format!("<domain><devices><graphics type='vnc' {graphics}/></devices></domain>");
        assert_eq!(display_of(&xml("port='5901' listen='0.0.0.0'")).as_deref(), Some("0.0.0.0:5901"));
        assert_eq!(display_of(&xml("port='5901' listen='::1'")).as_deref(), Some("[::1]:5901"));
        assert_eq!(display_of(&xml("port='-1'")), None);
        assert_eq!(display_of("<"), None);
    }
}
