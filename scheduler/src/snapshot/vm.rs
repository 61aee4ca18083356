//! What is known of one VM: what it asks of any host (its profile), what ties it to other VMs, where it is.

use dunlin_model::{Name, VmId};
use serde::{Deserialize, Serialize};

use super::amounts::Amounts;
use super::host::{Fact, FactKind, NodeSet};
use super::index::{FactIdx, HostIdx, ImageIdx, LabelIdx, ProfileIdx, ResourceIdx, TiesIdx};
use super::load::Load;

/// How a VM lies on the NUMA nodes of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numa {
    /// The kernel decides; only the whole host is counted.
    #[default]
    Float,
    /// In one node.
    One,
    /// In equal parts over that many distinct nodes, 2 to 16.
    Split(u8),
}

/// Needs one of some facts of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Of which kind: the filter that refuses.
    pub kind: FactKind,
    /// Any of these will do. Sorted.
    pub any_of: Vec<FactIdx>,
}

/// What a profile asks of facts and taints alone: the classes of hosts that let it in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gate {
    /// Facts. Sorted by kind.
    pub needs: Vec<Need>,
    /// Taints tolerated. Sorted.
    pub tolerates: Vec<FactIdx>,
}

/// What a VM asks of any host, whoever it is. Interned: VMs with equal demands share one, and so does their placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// Of what every host has.
    pub amounts: Amounts,
    /// Of what only some have. Sorted.
    pub named: Vec<(ResourceIdx, u64)>,
    /// How it lies on NUMA nodes.
    pub numa: Numa,
    /// Facts it needs. Sorted by kind.
    pub needs: Vec<Need>,
    /// Taints it tolerates. Sorted.
    pub tolerates: Vec<FactIdx>,
    /// Host labels it would like, each with its weight of 1 to 100. Sorted.
    pub prefers: Vec<(FactIdx, u16)>,
    /// Images it starts from. Sorted.
    pub images: Vec<ImageIdx>,
    /// Others must share its host: the first of them looks for one with room for the rest.
    pub grows: bool,
}

/// How far a rule looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The host.
    Host,
    /// All hosts of its rack.
    Rack,
    /// All hosts of its zone.
    Zone,
}

/// What a rule wants of the VMs that carry its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// All of them where this VM is: affinity.
    Together,
    /// None of them where this VM is: anti-affinity.
    Apart,
    /// None where this VM is, unless it carries the same value of the label's key: fault domains. The label is the bare
    /// key; this VM carries `key=value`.
    OtherValuesApart,
}

/// One rule of a VM about others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// About VMs that carry this.
    pub label: LabelIdx,
    /// Within.
    pub level: Level,
    /// What it wants.
    pub want: Want,
    /// None: it must hold. Else how much it is wished for, 1 to 100.
    pub soft: Option<u16>,
}

/// Labels others' rules may name, and rules about others' labels. Interned.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ties {
    /// Both `key=value` and `key` of each. Sorted.
    pub labels: Vec<LabelIdx>,
    /// The same as pairs of key and `key=value`. Sorted.
    pub values: Vec<(LabelIdx, LabelIdx)>,
    /// Sorted.
    pub rules: Vec<Rule>,
}

impl Ties {
    /// Nothing ties it to any other VM?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.rules.is_empty()
    }
}

/// One rule in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEntry {
    /// `key=value`, or `key` for [`Want::OtherValuesApart`].
    pub label: String,
    /// Within.
    pub level: Level,
    /// What it wants.
    pub want: Want,
    /// None: it must hold. Else how much it is wished for, 1 to 100.
    #[serde(default)]
    pub soft: Option<u16>,
}

/// A VM's demands in words, as a constructor or a delta brings them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Of what every host has.
    pub amounts: Amounts,
    /// Of what only some have, by name.
    pub named: Vec<(String, u64)>,
    /// How it lies on NUMA nodes.
    pub numa: Numa,
    /// For each: one of these facts, which are of one kind.
    pub needs: Vec<Vec<Fact>>,
    /// Taints it tolerates, `key=value`.
    pub tolerates: Vec<String>,
    /// Host labels it would like, `key=value`, with a weight of 1 to 100.
    pub prefers: Vec<(String, u16)>,
    /// Images it starts from.
    pub images: Vec<String>,
    /// Its labels, `key=value`.
    pub labels: Vec<String>,
    /// Its rules about others.
    pub rules: Vec<RuleEntry>,
}

/// A VM in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmEntry {
    /// Which.
    pub uid: VmId,
    /// Its name.
    pub name: Name,
    /// What it asks for.
    pub demand: Demand,
    /// What a destination must offer besides, to take it alive; as in [`Demand::needs`].
    pub move_needs: Vec<Vec<Fact>>,
    /// May it be moved while it runs?
    pub movable: bool,
    /// Who goes first when not all can be served; higher is sooner.
    pub priority: u8,
    /// Bytes of disks that a move has to carry along, MiB.
    pub local_disk_mib: u64,
}

impl VmEntry {
    /// A VM that may be moved, of priority 100, with no disk of its own.
    #[must_use]
    pub fn new(uid: VmId, name: Name, demand: Demand) -> Self {
        Self { uid, name, demand, move_needs: Vec::new(), movable: true, priority: 100, local_disk_mib: 0 }
    }
}

/// A VM of the snapshot.
#[derive(Clone, Debug)]
pub struct VmRow {
    /// Which.
    pub uid: VmId,
    /// Its name.
    pub name: Name,
    /// What it asks of any host.
    pub profile: ProfileIdx,
    /// The same when it comes alive from elsewhere.
    pub moving: ProfileIdx,
    /// What ties it to other VMs.
    pub ties: TiesIdx,
    /// Where it is, with its nodes there. None while it waits.
    pub at: Option<Seat>,
    /// Where else it holds room: the destination of a move under way.
    pub held: Option<Seat>,
    /// What was last measured of it.
    pub load: Option<Load>,
    /// May it be moved while it runs?
    pub movable: bool,
    /// Who goes first; higher is sooner.
    pub priority: u8,
    /// Bytes of disks that a move has to carry along, MiB.
    pub local_disk_mib: u64,
    /// When it last moved, ms on the caller's clock.
    pub moved_ms: Option<u64>,
}

impl VmRow {
    /// One that waits, asks for the same when it moves, and has not been measured.
    pub(super) const fn new(uid: VmId, name: Name, profile: ProfileIdx, ties: TiesIdx) -> Self {
        Self {
            uid,
            name,
            profile,
            moving: profile,
            ties,
            at: None,
            held: None,
            load: None,
            movable: true,
            priority: 100,
            local_disk_mib: 0,
            moved_ms: None,
        }
    }
}

/// Room on a host, and on which of its NUMA nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seat {
    /// The host.
    pub host: HostIdx,
    /// Its nodes; none for a VM that floats, or a host without known nodes.
    pub nodes: NodeSet,
}
