//! A definition that somebody else wrote, with the fleet's changes in it.
//!
//! Three documents meet: theirs as libvirt keeps it, what it says in our words, and ours as it is wanted now. Where the second
//! and the third say the same, theirs stays to the letter, devices we have no word for and addresses included; where they
//! differ, ours is put in its place. The mark that says whose it is is not in here: libvirt puts it in and takes it out
//! without a trace.

use std::ops::Range;

use dunlin_model::Name;
use dunlin_model::vm::{Disk, Mac, VmSpec, Vnc};
use roxmltree::{Document, Node};

use crate::domain_xml::{Options, parse};
use crate::hypervisor::Launch;

/// What libvirt keeps is not ours to refuse.
const IGNORE: Options = Options { ignore_unsupported: true };

/// Their definition as it is to be now. `now`: the spec with the files and interfaces of this host in it; `ours`: the
/// document that would be written for it if there were none.
///
/// # Errors
/// Why it cannot be done, in words.
pub(super) fn graft(theirs: &str, ours: &str, now: &VmSpec, launch: &Launch) -> Result<String, String> {
    let unread = |why: String| format!("its definition in libvirt cannot be followed: {why}");
    let was = parse(theirs.as_bytes(), IGNORE).map_err(|e| unread(e.to_string()))?.spec;
    let read = |xml| Document::parse(xml).map_err(|e| unread(e.to_string()));
    let (old, new) = (read(theirs)?, read(ours)?);
    let mut graft = Graft {
        theirs,
        ours,
        old: old.root_element(),
        new: new.root_element(),
        cuts: Vec::new(),
        nowhere: false,
    };
    graft.machine(&was, now, &launch.spec);
    if was.boot != now.boot {
        for name in ["kernel", "initrd", "cmdline"] {
            graft.one("os", name);
        }
    }
    graft.disks(&was, now, launch);
    graft.nics(&was, &launch.spec);
    if !same_display(was.vnc.as_ref(), now.vnc.as_ref()) {
        let vnc =
            |node: &Node<'_, '_>| node.has_tag_name("graphics") && node.attribute("type") == Some("vnc");
        let (old, new) = (device(graft.old, vnc), device(graft.new, vnc));
        graft.put("devices", old, new);
    }
    if graft.nowhere {
        return Err(unread("an element that needs another in it is empty".to_owned()));
    }
    Ok(cut(theirs, graft.cuts))
}

/// Makes the cuts, the last one first.
pub(super) fn cut(text: &str, mut cuts: Vec<(Range<usize>, String)>) -> String {
    // What is put in at one place stays in its order.
    cuts.sort_by_key(|(range, _)| range.start);
    let mut done = text.to_owned();
    for (range, text) in cuts.into_iter().rev() {
        done.replace_range(range, &text);
    }
    done
}

/// A spec has no password where nobody set one: then theirs holds.
fn same_display(was: Option<&Vnc>, now: Option<&Vnc>) -> bool {
    match (was, now) {
        (Some(was), Some(now)) => {
            let password = now.password.is_none() || now.password == was.password;
            password && was.listen == now.listen && was.port == now.port
        }
        (was, now) => was.is_none() && now.is_none(),
    }
}

fn child<'a, 'd>(node: Node<'a, 'd>, name: &str) -> Option<Node<'a, 'd>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The device of that description.
fn device<'a, 'd>(domain: Node<'a, 'd>, is: impl Fn(&Node<'_, '_>) -> bool) -> Option<Node<'a, 'd>> {
    child(domain, "devices")?.children().find(|node| is(node))
}

/// The disk with that name of libvirt's.
fn disk<'a, 'd>(domain: Node<'a, 'd>, dev: &Name) -> Option<Node<'a, 'd>> {
    let named = |target: Node<'_, '_>| target.attribute("dev") == Some(dev.as_str());
    device(domain, |node| node.has_tag_name("disk") && child(*node, "target").is_some_and(named))
}

/// The NIC with that address.
fn nic<'a, 'd>(domain: Node<'a, 'd>, address: Mac) -> Option<Node<'a, 'd>> {
    let has = |mac: Node<'_, '_>| mac.attribute("address").and_then(|mac| mac.parse().ok()) == Some(address);
    device(domain, |node| node.has_tag_name("interface") && child(*node, "mac").is_some_and(has))
}

struct Graft<'a, 'd> {
    theirs: &'a str,
    ours: &'a str,
    old: Node<'a, 'd>,
    new: Node<'a, 'd>,
    cuts: Vec<(Range<usize>, String)>,
    /// Something was to be put into an element that has no end tag.
    nowhere: bool,
}

impl<'a, 'd> Graft<'a, 'd> {
    /// Puts an element of ours where one of theirs stands, or last in `parent`; none of ours takes theirs away.
    fn put(&mut self, parent: &str, old: Option<Node<'a, 'd>>, new: Option<Node<'a, 'd>>) {
        let text = new.and_then(|new| self.ours.get(new.range())).unwrap_or_default().to_owned();
        match old {
            Some(old) => self.cuts.push((old.range(), text)),
            None if text.is_empty() => {}
            None => {
                let parent = if parent.is_empty() { Some(self.old) } else { child(self.old, parent) };
                self.append(parent, &text);
            }
        }
    }

    /// Puts a text last in an element.
    fn append(&mut self, parent: Option<Node<'a, 'd>>, text: &str) {
        let end = parent.and_then(|parent| {
            let range = parent.range();
            Some(range.start + self.theirs.get(range)?.rfind("</")?)
        });
        match end {
            Some(end) => self.cuts.push((end..end, format!("{text}\n"))),
            None => self.nowhere = true,
        }
    }

    /// The one element of that name in `parent`; in the domain itself when that is empty.
    fn one(&mut self, parent: &str, name: &str) {
        let within = |domain| if parent.is_empty() { Some(domain) } else { child(domain, parent) };
        let old = within(self.old).and_then(|parent| child(parent, name));
        let new = within(self.new).and_then(|parent| child(parent, name));
        self.put(parent, old, new);
    }

    fn machine(&mut self, was: &VmSpec, now: &VmSpec, asked: &VmSpec) {
        if was.mem_mib != now.mem_mib {
            self.one("", "memory");
            // Ours has none: all of it from the start.
            self.one("", "currentMemory");
        }
        if was.cpus != now.cpus {
            self.one("", "vcpu");
        }
        if was.cpu_model != now.cpu_model {
            self.one("", "cpu");
        } else if was.cpus != now.cpus {
            // It would be that of another number.
            let topology = child(self.old, "cpu").and_then(|cpu| child(cpu, "topology"));
            self.put("cpu", topology, None);
        }
        if (was.arch, was.machine) != (now.arch, now.machine) {
            self.one("os", "type");
        }
        if was.restart != now.restart {
            self.one("", "on_crash");
        }
        // What was adopted runs by what it ran by until somebody says otherwise.
        if was.accel != asked.accel {
            let kind = self.new.attribute("type").unwrap_or_default().to_owned();
            self.cuts.extend(self.old.attribute_node("type").map(|node| (node.range_value(), kind)));
        }
    }

    fn disks(&mut self, was: &VmSpec, now: &VmSpec, launch: &Launch) {
        for (asked, now) in launch.disks.iter().zip(&now.disks) {
            let before = was.disks.iter().find(|disk| disk.name == asked.name);
            if before.is_some_and(|before| *before == Disk { name: asked.name.clone(), ..now.clone() }) {
                continue;
            }
            let old = before.and_then(|before| disk(self.old, &before.name));
            self.put("devices", old, disk(self.new, &now.name));
        }
        for gone in &was.disks {
            if !launch.disks.iter().any(|disk| disk.name == gone.name) {
                self.put("devices", disk(self.old, &gone.name), None);
            }
        }
    }

    fn nics(&mut self, was: &VmSpec, asked: &VmSpec) {
        for (number, now) in asked.nics.iter().enumerate() {
            let before = was.nics.iter().find(|nic| nic.mac.is_some() && nic.mac == now.mac);
            if before == Some(now) {
                continue;
            }
            let old = before.and_then(|before| nic(self.old, before.mac?));
            let devices = child(self.new, "devices").into_iter().flat_map(|devices| devices.children());
            let new = devices.filter(|node| node.has_tag_name("interface")).nth(number);
            self.put("devices", old, new);
        }
        for gone in &was.nics {
            if !asked.nics.iter().any(|nic| nic.mac == gone.mac) {
                self.put("devices", gone.mac.and_then(|mac| nic(self.old, mac)), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::vm::{DiskBus, DiskFormat, DiskSource, Nic, NicModel, NicNetwork};
    use dunlin_model::{Incarnation, VmId};

    use super::*;
    use crate::domain_xml::{OnHost, write_for_host};
    use crate::hypervisor::{LaunchDisk, LaunchMode};

    const THEIRS: &str = "<domain type='qemu'>\n  <name>old-2</name>\n  <title>theirs</title>\n  \
        <uuid>00000000-0000-4000-9300-000000000001</uuid>\n  <memory unit='KiB'>131072</memory>\n  \
        <currentMemory unit='KiB'>131072</currentMemory>\n  <vcpu placement='static'>2</vcpu>\n  \
        <cputune><shares>99</shares></cputune>\n  <os>\n    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>\n    \
        <kernel>/k</kernel>\n    <boot dev='hd'/>\n  </os>\n  <cpu><topology sockets='1' cores='2' threads='1'/></cpu>\n  \
        <devices>\n    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe'/>\
        <source file='/a.raw'/><target dev='vda' bus='virtio'/><serial>AB</serial></disk>\n    \
        <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>\n    \
        <interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/><rom bar='off'/></interface>\n    \
        <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n  </devices>\n</domain>\n";

    /// What is asked for: their spec as it is read, changed.
    fn grafted(change: impl Fn(&mut VmSpec)) -> String {
        let mut spec = parse(THEIRS.as_bytes(), IGNORE).expect("read").spec;
        change(&mut spec);
        let vm: VmId = "00000000-0000-4000-9300-000000000001".parse().expect("uid");
        let path = |disk: &Disk| match &disk.source {
            DiskSource::Path(path) => path.into(),
            other => panic!("{other:?}"),
        };
        let disk = |disk: &Disk| LaunchDisk {
            name: disk.name.clone(),
            path: path(disk),
            format: disk.format,
            bus: disk.bus,
            read_only: disk.read_only,
            shared: disk.shared,
        };
        let disks = spec.disks.iter().map(disk).collect();
        let launch = Launch { vm, incarnation: Incarnation(7), disks, ..launch_of(&spec) };
        let (incarnation, os_type) = (launch.incarnation, "hvm");
        let host = OnHost { kind: "qemu", os_type, incarnation, serial_log: None, spare: true };
        let ours = write_for_host(&launch.name, vm, &launch.spec, &host).expect("written");
        graft(THEIRS, &ours, &launch.spec, &launch).expect("grafted")
    }

    /// A definition whose spec is as it was stays to the letter, and what is changed in the spec changes there and nowhere
    /// else; what is no definition is refused.
    #[test]
    fn theirs_stays_but_for_what_was_asked() {
        assert_eq!(grafted(|_| {}), THEIRS);

        let larger = grafted(|spec| (spec.mem_mib, spec.cpus) = (256, 4));
        let expected = THEIRS
            .replace("<memory unit='KiB'>131072</memory>", "<memory unit='MiB'>256</memory>")
            .replace("<currentMemory unit='KiB'>131072</currentMemory>", "")
            .replace("<vcpu placement='static'>2</vcpu>", "<vcpu>4</vcpu>")
            .replace("<topology sockets='1' cores='2' threads='1'/>", "");
        assert_eq!(larger, expected);

        let other = grafted(|spec| {
            spec.disks[0].source = DiskSource::Path("/b.raw".into());
            spec.disks.push(Disk {
                name: "vdb".parse().expect("name"),
                bus: DiskBus::Virtio,
                format: DiskFormat::Raw,
                source: DiskSource::Path("/c.raw".into()),
                shared: false,
                read_only: false,
            });
            let mac = Some("52:54:00:00:00:02".parse().expect("mac"));
            spec.nics = vec![Nic { mac, model: NicModel::Virtio, network: NicNetwork::User }];
        });
        for gone in ["/a.raw", "AB", "00:01", "<rom"] {
            assert!(!other.contains(gone), "{gone} in {other}");
        }
        for there in
            ["'/b.raw'", "'/c.raw'", "00:02", "device='cdrom'", "/dev/urandom", "<title>", "<shares>99"]
        {
            assert!(other.contains(there), "no {there} in {other}");
        }
        let read = parse(other.as_bytes(), IGNORE).expect("read").spec;
        assert_eq!((read.disks.len(), read.nics.len()), (2, 1));
        assert!(graft("<domain", "<domain/>", &read, &launch_of(&read)).is_err());
    }

    fn launch_of(spec: &VmSpec) -> Launch {
        Launch {
            vm: VmId(uuid::Uuid::nil()),
            name: "older".parse().expect("name"),
            incarnation: Incarnation(1),
            spec: spec.clone(),
            disks: Vec::new(),
            kernel: None,
            initrd: None,
            nics: Vec::new(),
            layout: None,
            mode: LaunchMode::Boot,
            paused: false,
        }
    }
}
