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
mod sites;
mod vm;
mod wishes;

pub use amounts::{Amounts, Kind};
pub use host::{Fact, FactKind, HostClass, HostEntry, HostRow, HostState, NODES_MAX, NodeSet, Room};
pub use index::{
    ClassIdx, DomainIdx, FactIdx, GateIdx, HostIdx, ImageIdx, Interner, LabelIdx, ProfileIdx, ResourceIdx,
    TiesIdx, VmIdx,
};
pub use load::Load;
pub use model::demand;
pub use presence::{Count, Place, Presence, Role};
pub(crate) use presence::{own_value, roles};
pub use sites::{Change, Mark, Site};
pub use vm::{Demand, Gate, Level, Need, Numa, Profile, Rule, RuleEntry, Seat, Ties, VmEntry, VmRow, Want};

use std::collections::BTreeMap;
use std::ops::Range;

use dunlin_model::{HostId, Name, VmId};

use crate::policy::Policy;
use crate::score::Weights;
use crate::worth::Worths;
use sites::Changes;

/// The fleet at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the cluster has decided about placement. Change it with [`Snapshot::set_policy`].
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
    /// What the seated VMs ask for in all, and how many they are.
    asked: Amounts,
    seated: u64,
    worths: Worths,
    weights: Weights,
    /// Counts the changes of the policy, and of what else every score depends on.
    rules: u64,
    /// Of the changes, those to what hosts are.
    host_changes: Changes,
    /// Hosts with VMs that others must share them with.
    gatherings: u32,
    largest: Amounts,
    in_use: InUse,
    /// Hosts of each rack, then of each zone, sorted.
    members: [Vec<Vec<HostIdx>>; 2],
    /// For each rack: its first host and how many follow it without a gap; none when there are gaps.
    spans: Vec<[u32; 2]>,
    /// The rack and the zone of each host, close together: rules ask for them of one host after another.
    places: Vec<[u32; 2]>,
    /// Every host index: what a host has for members is a slice of it.
    all: Vec<HostIdx>,
}

/// Sums over the hosts that have VMs.
#[derive(Clone, Copy, Debug, Default)]
struct InUse {
    hosts: u64,
    promised: Amounts,
    offered: Amounts,
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
    /// For each profile: the one that asks for the same room and no facts; and the same, however it lies on NUMA nodes.
    shapes: Vec<[ProfileIdx; 2]>,
    gates: Interner<Gate>,
    /// For each profile.
    gate_of: Vec<GateIdx>,
    ties: Interner<Ties>,
}

impl Snapshot {
    /// An empty fleet.
    #[must_use]
    pub fn empty(policy: Policy) -> Self {
        Self { weights: Weights::from(&policy), policy, ..Self::default() }
    }

    /// Places by another policy from now on. What may be promised of each host stays as it is.
    pub fn set_policy(&mut self, policy: Policy) {
        self.weights = Weights::from(&policy);
        self.policy = policy;
        self.rules += 1;
    }

    /// The policy's weights, read once.
    #[must_use]
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Hosts with a VM on them, or on its way.
    #[must_use]
    pub const fn hosts_used(&self) -> u64 {
        self.in_use.hosts
    }

    /// What is promised on the hosts with VMs, and what these hosts offer in all.
    #[must_use]
    pub const fn in_use(&self) -> (Amounts, Amounts) {
        (self.in_use.promised, self.in_use.offered)
    }

    /// The most of each amount that any host has ever offered.
    #[must_use]
    pub const fn largest(&self) -> Amounts {
        self.largest
    }

    /// Hosts with VMs that others must share them with.
    #[must_use]
    pub const fn gatherings(&self) -> u32 {
        self.gatherings
    }

    /// Counts the changes of what every score depends on: what was computed under another count is stale.
    #[must_use]
    pub const fn rules_version(&self) -> u64 {
        self.rules
    }

    /// What a profile asks of the facts and taints of any host. Many profiles share one.
    #[must_use]
    pub fn gate(&self, profile: ProfileIdx) -> GateIdx {
        self.words.gate_of[profile.at()]
    }

    /// The profile that asks for the same room and no facts: what hosts have left is worth the same to both. Then the same
    /// of a VM that floats, where it does not matter how nodes are filled: nodes are then asked of the hosts looked at.
    #[must_use]
    pub fn shapes(&self, profile: ProfileIdx) -> [ProfileIdx; 2] {
        let [own, floating] = self.words.shapes[profile.at()];
        [own, if self.weights.counts_nodes() { own } else { floating }]
    }

    /// The hosts of a host, rack or zone, sorted.
    #[must_use]
    pub fn members(&self, level: Level, place: u32) -> &[HostIdx] {
        if level == Level::Host {
            return self.all.get(place as usize).map_or(&[], std::slice::from_ref);
        }
        self.members[usize::from(level == Level::Zone)].get(place as usize).map_or(&[], Vec::as_slice)
    }

    /// The hosts of a rack as a range of indexes, when no host of another rack lies between them.
    #[must_use]
    pub fn rack_span(&self, rack: u32) -> Option<Range<usize>> {
        let [first, hosts] = *self.spans.get(rack as usize)?;
        (hosts > 0).then(|| first as usize..(first + hosts) as usize)
    }

    /// Every host, in the order of index.
    pub fn hosts(&self) -> impl Iterator<Item = (HostIdx, &HostRow)> {
        self.hosts.iter().enumerate().filter_map(|(at, row)| Some((HostIdx::of(at), row.as_ref()?)))
    }

    /// Every VM, in the order of index.
    pub fn vms(&self) -> impl Iterator<Item = (VmIdx, &VmRow)> {
        self.vms.iter().enumerate().filter_map(|(at, row)| Some((VmIdx::of(at), row.as_ref()?)))
    }

    /// How many hosts there are.
    #[must_use]
    pub fn host_count(&self) -> usize {
        self.host_of.len()
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
        let [rack, zone] = self.places[host.at()];
        (
            level,
            match level {
                Level::Host => host.0,
                Level::Rack => rack,
                Level::Zone => zone,
            },
        )
    }

    /// Profiles of the VMs that are placed, and how many of each.
    pub fn mix(&self) -> impl Iterator<Item = (ProfileIdx, u32)> {
        self.shapes.iter().map(|(profile, count)| (*profile, *count))
    }

    /// What the VMs that have a seat ask for in all, and how many they are.
    #[must_use]
    pub const fn asked(&self) -> (Amounts, u64) {
        (self.asked, self.seated)
    }

    /// What free room is worth, given the shapes in use.
    #[must_use]
    pub const fn worths(&self) -> &Worths {
        &self.worths
    }
}
