//! The fleet as the scheduler sees it: dense rows, small integers, updated by deltas.
//!
//! Owns who is where, what is left, and the counts that rules are judged by. Refuses to judge: filters, scores and plans
//! read it. Everything is an integer and nothing depends on the order of deltas beyond the numbers they hand out.
//!
//! ```text
//! words                 interned                      rows, by index
//! HostEntry --add-->    HostClass (facts, taints) --> HostRow + Room   snapshot.host(h), snapshot.room(h)
//! VmEntry   --add-->    Profile (static demand)   --> VmRow            snapshot.vm(v), .profile(p), .ties(t)
//!                       Ties (labels, rules)
//! deltas: add_host update_host remove_host | add_vm update_vm remove_vm | put take move_to hold release | observe_*
//! ```
//!
//! - **Profile**: what a VM asks of *any* host. VMs with equal demands share one [`ProfileIdx`], hosts with equal facts
//!   one [`ClassIdx`]: what depends on both alone is computed once for each pair. **Ties**: what depends on *other VMs*.
//! - A VM has a seat (`at`) and, while it is on its way, a second one it holds (`held`): both count against their hosts.
//! - `put`, `hold` and `move_to` never refuse: reality may be oversold. Ask `filter::refuse` first, which says why not.
//! - `total` is what may be promised (after reserve and overcommit), `physical` what there is: balance against that.
//! - A removed host or VM leaves a free slot; iterate with [`Snapshot::hosts`] and [`Snapshot::vms`].
//! - Undo a trial by the opposite delta (`put`/`take`, `move_to` back); or clone the snapshot, which costs its size.
//! - Each delta moves the [`Mark`]; an index built for one mark catches up from [`Snapshot::changed_since`].

mod amounts;
mod change;
mod host;
mod index;
mod load;
mod model;
mod presence;
mod vm;
mod wishes;

pub use amounts::{Amounts, Kind};
pub use change::Mark;
pub use host::{Fact, FactKind, HostClass, HostEntry, HostRow, HostState, NODES_MAX, NodeSet, Room};
pub use index::{
    ClassIdx, DomainIdx, FactIdx, HostIdx, ImageIdx, Interner, LabelIdx, ProfileIdx, ResourceIdx, TiesIdx,
    VmIdx,
};
pub use load::Load;
pub use model::demand;
pub use presence::{Count, Place, Presence, Role};
pub(crate) use presence::{own_value, roles};
pub use vm::{Demand, Level, Need, Numa, Profile, Rule, RuleEntry, Seat, Ties, VmEntry, VmRow, Want};

use std::collections::BTreeMap;

use dunlin_model::{HostId, Name, VmId};

use crate::policy::Policy;
use crate::worth::Worths;
use change::Changes;

/// The fleet at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the cluster has decided about placement.
    pub policy: Policy,
    /// Which state it was taken of: for the record of a decision.
    pub revision: u64,
    /// The caller's clock, ms: what ages of samples are counted to.
    pub now_ms: u64,
    hosts: Vec<Option<HostRow>>,
    rooms: Vec<Room>,
    vms: Vec<Option<VmRow>>,
    free_vms: Vec<VmIdx>,
    host_of: BTreeMap<HostId, HostIdx>,
    vm_of: BTreeMap<VmId, VmIdx>,
    words: Words,
    presence: Presence,
    changes: Changes,
    shapes: BTreeMap<ProfileIdx, u32>,
    worths: Worths,
}

/// Everything interned.
#[derive(Clone, Debug, Default)]
struct Words {
    facts: Interner<Fact>,
    labels: Interner<String>,
    resources: Interner<String>,
    images: Interner<String>,
    domains: Interner<String>,
    classes: Interner<HostClass>,
    profiles: Interner<Profile>,
    ties: Interner<Ties>,
}

impl Snapshot {
    /// An empty fleet.
    #[must_use]
    pub fn empty(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Every host, in the order of index.
    pub fn hosts(&self) -> impl Iterator<Item = (HostIdx, &HostRow)> {
        self.hosts.iter().enumerate().filter_map(|(at, row)| Some((HostIdx::of(at), row.as_ref()?)))
    }

    /// Every VM, in the order of index.
    pub fn vms(&self) -> impl Iterator<Item = (VmIdx, &VmRow)> {
        self.vms.iter().enumerate().filter_map(|(at, row)| Some((VmIdx::of(at), row.as_ref()?)))
    }

    /// One past the highest host index ever given: the length of a table by host.
    #[must_use]
    pub fn host_slots(&self) -> usize {
        self.hosts.len()
    }

    /// One past the highest VM index ever given: the length of a table by VM.
    #[must_use]
    pub fn vm_slots(&self) -> usize {
        self.vms.len()
    }

    /// A host.
    ///
    /// # Panics
    /// When it was removed, or belongs to another snapshot.
    #[must_use]
    pub fn host(&self, host: HostIdx) -> &HostRow {
        self.hosts[host.at()].as_ref().expect("the index of a host that is there")
    }

    /// A host, if it is there.
    #[must_use]
    pub fn get_host(&self, host: HostIdx) -> Option<&HostRow> {
        self.hosts.get(host.at())?.as_ref()
    }

    /// What has been promised of a host and what is left.
    #[must_use]
    pub fn room(&self, host: HostIdx) -> &Room {
        &self.rooms[host.at()]
    }

    /// A VM.
    ///
    /// # Panics
    /// When it was removed, or belongs to another snapshot.
    #[must_use]
    pub fn vm(&self, vm: VmIdx) -> &VmRow {
        self.vms[vm.at()].as_ref().expect("the index of a VM that is there")
    }

    /// A VM, if it is there.
    #[must_use]
    pub fn get_vm(&self, vm: VmIdx) -> Option<&VmRow> {
        self.vms.get(vm.at())?.as_ref()
    }

    /// The host with that uid.
    #[must_use]
    pub fn find_host(&self, uid: HostId) -> Option<HostIdx> {
        self.host_of.get(&uid).copied()
    }

    /// The VM with that uid.
    #[must_use]
    pub fn find_vm(&self, uid: VmId) -> Option<VmIdx> {
        self.vm_of.get(&uid).copied()
    }

    /// The host with that name, by looking at all.
    #[must_use]
    pub fn host_named(&self, name: &Name) -> Option<HostIdx> {
        self.hosts().find(|(_, row)| row.name == *name).map(|(host, _)| host)
    }

    /// The VM with that name, by looking at all.
    #[must_use]
    pub fn vm_named(&self, name: &Name) -> Option<VmIdx> {
        self.vms().find(|(_, row)| row.name == *name).map(|(vm, _)| vm)
    }

    /// What a VM asks of any host.
    #[must_use]
    pub fn profile(&self, profile: ProfileIdx) -> &Profile {
        self.words.profiles.get(profile.0)
    }

    /// Labels and rules.
    #[must_use]
    pub fn ties(&self, ties: TiesIdx) -> &Ties {
        self.words.ties.get(ties.0)
    }

    /// What hosts of a class have in common.
    #[must_use]
    pub fn class(&self, class: ClassIdx) -> &HostClass {
        self.words.classes.get(class.0)
    }

    /// Classes seen so far.
    #[must_use]
    pub fn class_count(&self) -> usize {
        self.words.classes.len()
    }

    /// A fact, for people.
    #[must_use]
    pub fn fact(&self, fact: FactIdx) -> &Fact {
        self.words.facts.get(fact.0)
    }

    /// A label of VMs, for people.
    #[must_use]
    pub fn label(&self, label: LabelIdx) -> &str {
        self.words.labels.get(label.0)
    }

    /// A named resource, for people.
    #[must_use]
    pub fn resource(&self, resource: ResourceIdx) -> &str {
        self.words.resources.get(resource.0)
    }

    /// A rack or zone, for people.
    #[must_use]
    pub fn domain(&self, domain: DomainIdx) -> &str {
        self.words.domains.get(domain.0)
    }

    /// Where the VMs of each label are.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The number of the host, rack or zone that a host stands in.
    #[must_use]
    pub fn place(&self, level: Level, host: HostIdx) -> Place {
        let row = self.host(host);
        (
            level,
            match level {
                Level::Host => host.0,
                Level::Rack => row.rack.0,
                Level::Zone => row.zone.0,
            },
        )
    }

    /// Profiles of the VMs that are placed, and how many of each: the mix that room is kept for.
    pub fn mix(&self) -> impl Iterator<Item = (ProfileIdx, u32)> {
        self.shapes.iter().map(|(profile, count)| (*profile, *count))
    }

    /// What free room is worth, given the shapes in use.
    #[must_use]
    pub const fn worths(&self) -> &Worths {
        &self.worths
    }
}
