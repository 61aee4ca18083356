//! libvirt domain XML in and out: what a VM is, in the words people with libvirt habits write.
//!
//! Owns the mapping between the elements of a domain and a [`VmSpec`]. Knows no hypervisor and no cluster. Everything
//! that a document says is either understood, or refused by its path with line and column; nothing is silently dropped.
//!
//! DECISION: `type='qemu'` means "QEMU, by whatever accelerator works" ([`AccelChoice::Any`]), not "never KVM" as in
//! libvirt: the guest sees the same machine, and nobody who writes `qemu` wants to be slow. `kvm` insists on KVM.
//!
//! Words beyond libvirt's own: `<disk type='volume'>` names an image (`<source pool='image' volume='NAME'/>`) or an empty
//! disk (`<source pool='empty' volume='512MiB'/>`), `<kernel>` and `<initrd>` may say `image:NAME`, and what only a fleet
//! has (power, restart, placement, simulation) stands as JSON in `<metadata><dunlin:vm>`.
//!
//! [`VmSpec`]: dunlin_model::vm::VmSpec
//! [`AccelChoice::Any`]: dunlin_model::vm::AccelChoice::Any

mod device;
mod domain;
mod element;
mod scan;
#[cfg(test)]
mod tests;
mod unit;
mod write;

use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::{AccelChoice, Placement, Power, RestartPolicy, SimSpec, VmSpec};
use dunlin_model::{Incarnation, Invalid, Name, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use domain::parse;
pub use write::{write, write_for_host};

/// Longest document, bytes: libvirt's longest string in a call is 4 MiB, and a domain with 16 disks and 16 NICs has
/// some 10 KiB.
pub const XML_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of elements; libvirt's own documents reach 8.
pub const XML_DEPTH_MAX: usize = 32;
/// Most nodes: elements and texts. A thousand times what a domain needs would still be half of it.
pub const XML_NODES_MAX: u32 = 1 << 16;
/// Namespace of what only Dunlin knows.
pub const NAMESPACE: &str = "https://dunlin.dev/xmlns/vm/1";

/// How strict to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave out what is not modelled, and list it, instead of refusing the document.
    pub ignore_unsupported: bool,
}

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The domain's name.
    pub name: Name,
    /// Its UUID, when it has one.
    pub uuid: Option<VmId>,
    /// How it is built. Validated.
    pub spec: VmSpec,
    /// What was left out, in document order: `/domain/devices/hostdev at 12:5`.
    pub ignored: Vec<String>,
}

/// Where in a document: line and column, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a document was refused, or cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum XmlError {
    /// It is longer than [`XML_BYTES_MAX`].
    #[error("the document has {bytes} bytes; at most {XML_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Its elements are nested deeper than [`XML_DEPTH_MAX`].
    #[error("elements are nested deeper than {XML_DEPTH_MAX} at {at}")]
    TooDeep {
        /// The element that is too deep.
        at: At,
    },
    /// It is not UTF-8 text.
    #[error("not UTF-8 at {at}")]
    NotUtf8 {
        /// The first byte that is not.
        at: At,
    },
    /// It is not well-formed XML, or has a document type definition.
    #[error("not well-formed XML at {at}: {reason}")]
    Syntax {
        /// Where the reader stopped.
        at: At,
        /// Why, in a sentence.
        reason: String,
    },
    /// It asks for something that is not modelled.
    #[error("not supported: {path} at {at}")]
    Unsupported {
        /// Path of the element or attribute, its value where that is what is not supported.
        path: String,
        /// Where.
        at: At,
    },
    /// An element has a value that is no value for it, or is missing.
    #[error("{path} at {at}: {problem}; allowed: {allowed}")]
    Value {
        /// Path of the element or attribute.
        path: String,
        /// Where.
        at: At,
        /// What is wrong, the value included.
        problem: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// The VM it describes is not one that can be.
    #[error("the domain is not a valid VM: {0}")]
    Spec(#[source] Invalid),
    /// The VM has a text with a character that XML cannot hold.
    #[error("{field} has the character {character:?}, which XML cannot hold")]
    Unwritable {
        /// Which field.
        field: &'static str,
        /// Which character.
        character: char,
    },
}

/// What only a fleet knows of a VM; stands as JSON in the metadata. Fields that are as by default are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fleet {
    #[serde(skip_serializing_if = "Option::is_none")]
    power: Option<Power>,
    /// Only when the type of the domain does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<DriverName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accel: Option<AccelChoice>,
    #[serde(skip_serializing_if = "Placement::is_any")]
    placement: Placement,
    #[serde(skip_serializing_if = "Option::is_none")]
    sim: Option<SimSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<dunlin_model::Name>,
}

/// What a host adds to a domain that it runs.
#[derive(Clone, Copy, Debug)]
pub struct OnHost<'a> {
    /// Type of the domain: `qemu`, `kvm`, `xen`.
    pub kind: &'a str,
    /// What kind of machine it is to the guest: `hvm`, `xen`.
    pub os_type: &'a str,
    /// Stands in the domain's metadata.
    pub incarnation: Incarnation,
    /// File that keeps what the guest says on its serial port.
    pub serial_log: Option<&'a str>,
    /// Leave out the devices that libvirt gives a PC unasked.
    pub spare: bool,
}

/// `on_crash` as libvirt says it.
const fn on_crash(restart: RestartPolicy) -> &'static str {
    match restart {
        RestartPolicy::Never => "destroy",
        RestartPolicy::OnCrash => "restart",
    }
}
