//! What is known of one host: what it is, what may be promised of it, what has been.

use dunlin_model::{HostId, Labels, Name};
use serde::{Deserialize, Serialize};

use super::amounts::Amounts;
use super::index::{ClassIdx, DomainIdx, FactIdx, ImageIdx, ResourceIdx, VmIdx};
use super::load::Load;

/// Most NUMA nodes of a host that are told apart: a set of nodes is one [`NodeSet`]. Hosts with more are taken as whole.
pub const NODES_MAX: usize = 16;

/// Some NUMA nodes of one host, one bit each, the lowest for node 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeSet(pub u16);

impl NodeSet {
    /// The nodes, in order.
    pub fn nodes(self) -> impl Iterator<Item = usize> {
        (0..NODES_MAX).filter(move |node| self.0 >> node & 1 == 1)
    }

    /// How many.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// None at all?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// May a host take VMs?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Its agent holds a session.
    #[default]
    Up,
    /// It does not, or never has.
    Down,
    /// Switched off by us to save power; it can be woken.
    Asleep,
}

/// A kind of fact about hosts. Each is a hard filter of its own; the order is that in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactKind {
    /// `key=value` of the host.
    Label,
    /// A hypervisor driver: `qemu`.
    Driver,
    /// An architecture guests may have: `x86_64`.
    Arch,
    /// A way a vCPU has been seen to run: `qemu kvm`.
    Accel,
    /// A machine type: `qemu q35`; `qemu *` when the driver does not care.
    Machine,
    /// A CPU model the hypervisor offers: `qemu EPYC`; `qemu *` when it does not care.
    CpuModel,
    /// A CPU feature: `avx2`. A guest that has seen it needs it wherever it moves.
    CpuFeature,
    /// A network that reaches the host.
    Network,
    /// Storage that the host reaches.
    Storage,
    /// A power of a driver: `qemu Migrate`.
    Power,
}

/// Something true of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fact {
    /// Of which kind.
    pub kind: FactKind,
    /// Which.
    pub text: String,
}

impl Fact {
    /// A fact of that kind.
    pub fn new(kind: FactKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// What hosts of one class have in common. Filters that look at nothing else are asked once per class.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostClass {
    /// Sorted.
    pub facts: Vec<FactIdx>,
    /// Sorted. A VM that does not tolerate one of them stays away.
    pub taints: Vec<FactIdx>,
}

/// A host in words, as a constructor or a delta brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// Which.
    pub uid: HostId,
    /// Its name.
    pub name: Name,
    /// May it take VMs?
    pub state: HostState,
    /// Takes no new VM; those it has stay.
    pub cordoned: bool,
    /// Its labels. `rack` and `zone` say where it stands.
    pub labels: Labels,
    /// Taints: what a VM must tolerate to be here, as `key=value`.
    pub taints: Vec<String>,
    /// What else is true of it; labels need not be repeated.
    pub facts: Vec<Fact>,
    /// What it really has.
    pub physical: Amounts,
    /// What may be promised in all: after reserves and overcommit.
    pub total: Amounts,
    /// Named resources, in all.
    pub named: Vec<(String, u64)>,
    /// What may be promised on each NUMA node; empty when not known.
    pub nodes: Vec<Amounts>,
    /// Names of the images it has.
    pub images: Vec<String>,
    /// Why it cannot run what it might be expected to, for people: "no /dev/kvm".
    pub notes: Vec<Fact>,
}

impl HostEntry {
    /// A host that is up, of which as much may be promised as it has.
    #[must_use]
    pub fn new(uid: HostId, name: Name, total: Amounts) -> Self {
        Self {
            uid,
            name,
            state: HostState::Up,
            cordoned: false,
            labels: Labels::new(),
            taints: Vec::new(),
            facts: Vec::new(),
            physical: total,
            total,
            named: Vec::new(),
            nodes: Vec::new(),
            images: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// A host of the snapshot: what does not change when a VM comes or goes.
#[derive(Clone, Debug)]
pub struct HostRow {
    /// Which.
    pub uid: HostId,
    /// Its name.
    pub name: Name,
    /// May it take VMs?
    pub state: HostState,
    /// Takes no new VM; those it has stay.
    pub cordoned: bool,
    /// What it has in common with others.
    pub class: ClassIdx,
    /// Its rack; a host that names none is a rack of its own.
    pub rack: DomainIdx,
    /// Its zone; a host that names none is in the one zone of all such hosts.
    pub zone: DomainIdx,
    /// What it really has.
    pub physical: Amounts,
    /// What may be promised in all.
    pub total: Amounts,
    /// Named resources in all, by index.
    pub named: Vec<(ResourceIdx, u64)>,
    /// What may be promised on each NUMA node; empty when not known.
    pub nodes: Vec<Amounts>,
    /// Images it has, sorted.
    pub images: Vec<ImageIdx>,
    /// For people.
    pub notes: Vec<Fact>,
    /// What was last measured of the whole host.
    pub load: Option<Load>,
}

/// What has been promised of a host. May exceed its total when the host shrank; then nothing is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Promised.
    pub used: Amounts,
    /// Left to promise: total less used.
    pub free: Amounts,
    /// Left of each named resource, in the order of [`HostRow::named`].
    pub named_free: Vec<u64>,
    /// Left on each NUMA node by VMs that are tied to nodes.
    pub nodes_free: Vec<Amounts>,
    /// VMs that are here or hold room here, sorted.
    pub vms: Vec<VmIdx>,
    /// How many of them others must share the host with.
    pub gathering: u32,
}
