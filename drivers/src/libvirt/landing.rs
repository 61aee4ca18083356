//! Where a guest is to arrive, in an [`Endpoint`]: which daemon takes it, on which address, and under which paths its
//! files stand there.
//!
//! `memory` is the URI at which the sending agent reaches the destination's daemon; `disks` is the rest as JSON. The guest
//! keeps its own domain document, addresses of devices included; only what is the destination's is put into it.

use std::collections::BTreeMap;
use std::ops::Range;

use dunlin_model::Incarnation;
use dunlin_model::migration::Endpoint;
use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};

use super::client::Uri;
use super::{graft, launch};
use crate::domain_xml::NAMESPACE;
use crate::hypervisor::{Launch, LaunchNic};

/// What the destination has made ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Landing {
    /// Address on which memory and disks are received.
    pub(super) address: String,
    pub(super) incarnation: Incarnation,
    /// Files of disks, by libvirt's name.
    pub(super) disks: BTreeMap<String, String>,
    pub(super) kernel: Option<String>,
    pub(super) initrd: Option<String>,
    pub(super) log: String,
    /// Interfaces of its NICs, in order; none for the hypervisor's own network.
    pub(super) taps: Vec<Option<String>>,
}

impl Landing {
    /// For a launch that waits.
    pub(super) fn of(launch: &Launch, address: &str, log: &str) -> Self {
        let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        let names = launch::targets(launch.disks.iter().map(|disk| (&disk.name, disk.bus)));
        let disks = names.iter().zip(&launch.disks).map(|(name, disk)| (name.to_string(), text(&disk.path)));
        let tap = |nic: &LaunchNic| match nic {
            LaunchNic::Tap(tap) | LaunchNic::Veth { interface: tap, .. } => Some(tap.clone()),
            LaunchNic::User => None,
        };
        Self {
            address: address.to_owned(),
            incarnation: launch.incarnation,
            disks: disks.collect(),
            kernel: launch.kernel.as_ref().map(text),
            initrd: launch.initrd.as_ref().map(text),
            log: log.to_owned(),
            taps: launch.nics.iter().map(tap).collect(),
        }
    }

    /// As others are told.
    pub(super) fn endpoint(&self, peer: &str) -> Endpoint {
        let disks = serde_json::to_string(self).expect("texts and maps of texts serialise");
        Endpoint { memory: peer.to_owned(), disks }
    }

    /// As one was told.
    pub(super) fn read(endpoint: &Endpoint) -> Result<(Uri, Self), String> {
        let uri = endpoint.memory.parse().map_err(|e: dunlin_model::Invalid| e.to_string())?;
        let landing = serde_json::from_str(&endpoint.disks).map_err(|e| format!("no landing place: {e}"))?;
        Ok((uri, landing))
    }

    /// The domain as it is to be there.
    pub(super) fn transplant(&self, xml: &str) -> Result<String, String> {
        let document = Document::parse(xml).map_err(|e| format!("libvirt's own domain is not read: {e}"))?;
        let mut cuts: Vec<(Range<usize>, String)> = Vec::new();
        let domain = document.root_element();
        let child = |node: Node<'_, '_>, name: &str| {
            node.children().find(|child| child.has_tag_name(name)).map(|child| child.id())
        };
        let node = |id| document.get_node(id).expect("the id is of this document");
        for (name, path) in [("kernel", &self.kernel), ("initrd", &self.initrd)] {
            let found = child(domain, "os").and_then(|os| child(node(os), name)).map(node);
            if let (Some(text), Some(path)) = (found.and_then(|file| file.first_child()), path) {
                cuts.push((text.range(), escaped(path)));
            }
        }
        if let Some(mark) = domain.descendants().find(|node| node.has_tag_name((NAMESPACE, "guest"))) {
            cuts.extend(attribute(mark, "incarnation", &self.incarnation.0.to_string()));
        }
        let mut taps = self.taps.iter();
        for device in child(domain, "devices").map(node).iter().flat_map(Node::children) {
            let part = |name: &str| child(device, name).map(node);
            match device.tag_name().name() {
                "disk" => {
                    let dev = part("target").and_then(|target| target.attribute("dev")).unwrap_or_default();
                    if let (Some(path), Some(source)) = (self.disks.get(dev), part("source")) {
                        cuts.extend(attribute(source, "file", path));
                    }
                    // What it is built upon may stand elsewhere there; libvirt looks by itself.
                    cuts.extend(part("backingStore").map(|chain| (chain.range(), String::new())));
                }
                "serial" | "console" => {
                    cuts.extend(part("log").and_then(|log| attribute(log, "file", &self.log)));
                }
                "interface" => {
                    if let (Some(Some(tap)), Some(target)) = (taps.next(), part("target")) {
                        cuts.extend(attribute(target, "dev", tap));
                    }
                }
                _ => {}
            }
        }
        Ok(graft::cut(xml, cuts))
    }
}

/// The incarnation a domain's document says it carries.
pub(super) fn incarnation_of(xml: &str) -> Option<Incarnation> {
    let document = Document::parse(xml).ok()?;
    let mark = document.descendants().find(|node| node.has_tag_name((NAMESPACE, "guest")))?;
    mark.attribute("incarnation")?.parse().ok().map(Incarnation)
}

/// Is it a domain that somebody else made, and the fleet manages?
pub(super) fn is_adopted(xml: &str) -> bool {
    let Ok(document) = Document::parse(xml) else { return false };
    let mark = document.descendants().find(|node| node.has_tag_name((NAMESPACE, "guest")));
    mark.is_some_and(|mark| mark.attribute("adopted") == Some("yes"))
}

/// The name in a domain's document, and where it stands.
fn name(xml: &str) -> Option<(Range<usize>, String)> {
    let document = Document::parse(xml).ok()?;
    let name = document.root_element().children().find(|child| child.has_tag_name("name"))?.first_child()?;
    Some((name.range(), name.text()?.trim().to_owned()))
}

/// The name in a domain's document.
pub(super) fn name_of(xml: &str) -> Option<String> {
    name(xml).map(|(_, name)| name)
}

/// The document with another name in it.
pub(super) fn renamed(xml: &str, to: &str) -> String {
    graft::cut(xml, name(xml).map(|(range, _)| (range, escaped(to))).into_iter().collect())
}

fn attribute(node: Node<'_, '_>, name: &str, value: &str) -> Option<(Range<usize>, String)> {
    let found = node.attribute_node(name)?;
    Some((found.range_value(), escaped(value)))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what is the destination's changes: files, interfaces, the log and the incarnation; and what says nothing of
    /// them stays as it is.
    #[test]
    fn a_domain_is_transplanted() {
        let xml = |[kernel, disk, tap, log, mark, chain]: [&str; 6]| {
            format!(
                "<domain type='qemu'><metadata><d:guest xmlns:d='{NAMESPACE}' incarnation='{mark}'/></metadata><os>\
                 <kernel>{kernel}</kernel><initrd>/i</initrd></os><devices><disk><source file='{disk}' index='1'/>{chain}\
                 <target dev='vda'/></disk><disk><source file='/cd'/><target dev='sda'/></disk><interface><target \
                 dev='{tap}'/><address slot='3'/></interface><serial type='pty'><log file='{log}'/></serial></devices>\
                 </domain>"
            )
        };
        let landing = Landing {
            address: "10.0.0.2".into(),
            incarnation: Incarnation(4),
            disks: BTreeMap::from([("vda".into(), "/b/it's".into())]),
            kernel: Some("/b/kernel".into()),
            initrd: None,
            log: "/b/log".into(),
            taps: vec![Some("tap9".into())],
        };
        assert_eq!(incarnation_of("<domain/>"), None);
        let adopted = format!(
            "<domain><name>a&amp;b</name><d:guest xmlns:d='{NAMESPACE}' incarnation='3' adopted='yes'/></domain>"
        );
        assert!(
            is_adopted(&adopted) && !is_adopted(&adopted.replace("yes", "no")) && !is_adopted("<domain/>")
        );
        assert_eq!(name_of(&adopted).as_deref(), Some("a&b"));
        assert_eq!(name_of(&renamed(&adopted, "c")).as_deref(), Some("c"));
        let here = xml([
            "/a/kernel",
            "/a/disk",
            "tap0",
            "/a/log",
            "3",
            "<backingStore><source file='/a/x'/></backingStore>",
        ]);
        let there = xml(["/b/kernel", "/b/it&apos;s", "tap9", "/b/log", "4", ""]);
        assert_eq!(incarnation_of(&here), Some(Incarnation(3)));
        assert_eq!(landing.transplant(&here), Ok(there));
        assert_eq!(landing.transplant("<domain/>"), Ok("<domain/>".to_owned()));
        assert!(landing.transplant("<domain").is_err());
        let endpoint = landing.endpoint("qemu+tls://b/system");
        assert_eq!(Landing::read(&endpoint).map(|(_, landing)| landing), Ok(landing));
        assert!(Landing::read(&Endpoint { memory: "tcp:1.2.3.4:5".into(), disks: String::new() }).is_err());
    }
}
