//! Hard filters: each looks at one host and says no, or nothing. The first that refuses is the one told, so what an
//! admin can change least stands first.
//!
//! They come in five groups, by what they look at; an index asks each group no more often than it must:
//!
//! ```text
//! asked   this request: pins, the source, hosts left out          a few hosts per request
//! state   the host's own state                                    once per delta of the host
//! class   facts and taints against a profile                      once per (class, profile)
//! fit     amounts, named resources, NUMA nodes                    once per delta of the host and profile
//! ties    other VMs: affinity, anti-affinity, fault domains       for the hosts that are looked at
//! ```
//!
//! Room kept for hosts that fail is the last filter of all, asked of the best few: `spare`.

use serde::{Deserialize, Serialize};

use crate::request::Request;
use crate::snapshot::{
    FactIdx, FactKind, HostIdx, HostState, Kind, LabelIdx, Level, NODES_MAX, Need, NodeSet, Place,
    ProfileIdx, Role, Rule, Snapshot, Ties, TiesIdx, VmIdx, Want, own_value, roles,
};

/// Why a host was refused: the name of the filter. Closed: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The VM runs there already.
    IsSource,
    /// Another host was asked for.
    OtherHostAsked,
    /// Its saved memory is on another host.
    SavedElsewhere,
    /// Its disks are on another host.
    VolumesElsewhere,
    /// Left out for now: its migration budget is spent, or it is being emptied.
    Closed,
    /// Its agent holds no session.
    HostDown,
    /// It is switched off to save power.
    Asleep,
    /// The host is cordoned.
    Cordoned,
    /// The host lacks labels the VM asks for.
    HostLabels,
    /// The host carries a taint the VM does not tolerate.
    Tainted,
    /// The hypervisor driver was not found there.
    DriverMissing,
    /// Guests of that architecture do not run there.
    Arch,
    /// No vCPU has been seen to run there in the way asked for.
    AccelUnusable,
    /// The hypervisor there does not offer the machine type.
    MachineType,
    /// The hypervisor there does not offer the CPU model.
    CpuModel,
    /// The CPU there lacks a feature the guest may have seen.
    CpuFeature,
    /// A network is not known there.
    NetworkMissing,
    /// Storage does not reach there.
    StorageMissing,
    /// The driver there cannot take a live migration.
    CannotMigrate,
    /// Not enough vCPUs are left.
    Cpus,
    /// Not enough memory is left.
    Memory,
    /// Not enough huge pages are left.
    HugePages,
    /// Not enough network bandwidth is left.
    Bandwidth,
    /// Not enough space is left in a disk pool.
    DiskSpace,
    /// Not enough devices of a kind are left.
    Devices,
    /// Not enough licences are left.
    Licences,
    /// It fits the host, but not its NUMA nodes.
    Numa,
    /// VMs it must stay with are elsewhere.
    AffinityElsewhere,
    /// A VM it must stay apart from is there, or one that must stay apart from it.
    ApartFrom,
    /// A VM of another fault domain of its group is there.
    FaultDomain,
    /// It would use up the room that is kept for hosts that fail: see [`spare`](crate::spare).
    SpareHosts,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 31] = [
        Self::IsSource,
        Self::OtherHostAsked,
        Self::SavedElsewhere,
        Self::VolumesElsewhere,
        Self::Closed,
        Self::HostDown,
        Self::Asleep,
        Self::Cordoned,
        Self::HostLabels,
        Self::Tainted,
        Self::DriverMissing,
        Self::Arch,
        Self::AccelUnusable,
        Self::MachineType,
        Self::CpuModel,
        Self::CpuFeature,
        Self::NetworkMissing,
        Self::StorageMissing,
        Self::CannotMigrate,
        Self::Cpus,
        Self::Memory,
        Self::HugePages,
        Self::Bandwidth,
        Self::DiskSpace,
        Self::Devices,
        Self::Licences,
        Self::Numa,
        Self::AffinityElsewhere,
        Self::ApartFrom,
        Self::FaultDomain,
        Self::SpareHosts,
    ];

    /// Can a policy do without it? What cannot run, or would break the machine, is refused under every policy.
    #[must_use]
    pub const fn is_optional(self) -> bool {
        matches!(
            self,
            Self::Cordoned
                | Self::HostLabels
                | Self::Tainted
                | Self::CpuFeature
                | Self::Bandwidth
                | Self::Licences
                | Self::Numa
                | Self::AffinityElsewhere
                | Self::ApartFrom
                | Self::FaultDomain
                | Self::SpareHosts
        )
    }
}

/// Filters that a policy can do without.
pub const OPTIONAL: &[Reason] = &[
    Reason::Cordoned,
    Reason::HostLabels,
    Reason::Tainted,
    Reason::CpuFeature,
    Reason::Bandwidth,
    Reason::Licences,
    Reason::Numa,
    Reason::AffinityElsewhere,
    Reason::ApartFrom,
    Reason::FaultDomain,
    Reason::SpareHosts,
];

/// One filter.
pub type Filter = fn(&Snapshot, &Request, HostIdx) -> Option<Reason>;

/// What this request asks for. In the order they are asked.
pub const ASKED: &[Filter] = &[is_source, elsewhere_asked, left_out];
/// The host's own state.
pub const STATE: &[Filter] = &[host_up, awake, not_cordoned];
/// Facts and taints.
pub const CLASS: &[Filter] = &[has_facts, taints_tolerated];
/// What is left.
pub const FIT: &[Filter] = &[amounts_fit, named_fit, nodes_fit];
/// Of those, what [`FIT`] says of a VM's nodes where the rest is known.
pub(crate) const NODES: &[Filter] = &[nodes_fit];
/// Other VMs.
pub const TIES: &[Filter] = &[beside_its_own, apart_from_others, in_its_fault_domain];

/// Every group, in the order they are asked.
pub const GROUPS: &[&[Filter]] = &[ASKED, STATE, CLASS, FIT, TIES];

/// The first filter of a group that refuses the host.
#[must_use]
pub fn refuse_by(group: &[Filter], snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let dropped = |reason: &Reason| reason.is_optional() && snapshot.policy.without.contains(reason);
    group.iter().find_map(|filter| filter(snapshot, request, host).filter(|reason| !dropped(reason)))
}

/// The first filter of all that refuses the host.
#[must_use]
pub fn refuse(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    GROUPS.iter().find_map(|group| refuse_by(group, snapshot, request, host))
}

/// Would a host of that class take a VM of that profile, as far as facts and taints go?
pub(crate) fn class_takes(snapshot: &Snapshot, profile: ProfileIdx, host: HostIdx) -> bool {
    refuse_by(CLASS, snapshot, &Request::imagined(profile, TiesIdx(0)), host).is_none()
}

/// Does a hard rule of some VM that is there name a label of these?
pub(crate) fn is_named(snapshot: &Snapshot, ties: &Ties) -> bool {
    let roles = [Role::Shunner, Role::Binder, Role::Keeper];
    ties.labels.iter().any(|label| roles.iter().any(|role| snapshot.presence().of(*role, *label).all() > 0))
}

/// Does a hard rule of its own that looks at whole racks keep it out of this one?
pub(crate) fn rack_refused(snapshot: &Snapshot, request: &Request, rack: u32) -> bool {
    let counts = |reason: Reason| !snapshot.policy.without.contains(&reason);
    let at_rack = |want| hard(snapshot, request, want).filter(|rule| rule.level == Level::Rack);
    let place = (Level::Rack, rack);
    let apart = |rule: &Rule| others(snapshot, request.vm, Role::Carrier, rule, place).0 > 0;
    let values = &snapshot.ties(request.ties).values;
    let mixed =
        |rule: &Rule| is_mixed(snapshot, request, place, Role::Carrier, rule, own_value(values, rule));
    at_rack(Want::Apart).any(apart) && counts(Reason::ApartFrom)
        || at_rack(Want::OtherValuesApart).any(mixed) && counts(Reason::FaultDomain)
}

/// Everything that refuses the host, each thing once: what would all have to change.
#[must_use]
pub fn refusals(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Vec<Reason> {
    let dropped = |reason: &Reason| reason.is_optional() && snapshot.policy.without.contains(reason);
    let filters = GROUPS.iter().copied().flatten();
    let mut reasons: Vec<Reason> = filters.filter_map(|filter| filter(snapshot, request, host)).collect();
    let class = snapshot.class(snapshot.host(host).class);
    let profile = snapshot.profile(request.profile);
    let unmet = profile.needs.iter().filter(|need| !is_met(need, &class.facts));
    reasons.extend(unmet.skip(1).map(|need| lacks(need.kind)));
    let short = profile.amounts.each().into_iter().zip(snapshot.room(host).free.each());
    let short = short.filter(|((_, need), (_, left))| need > left);
    reasons.extend(short.skip(1).map(|((kind, _), _)| too_little(kind)));
    reasons.retain(|reason| !dropped(reason));
    reasons
}

fn is_source(_: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    (request.from == Some(host)).then_some(Reason::IsSource)
}

fn elsewhere_asked(_: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    request.pins.iter().find(|pin| pin.host != Some(host)).map(|pin| pin.reason)
}

fn left_out(_: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    request.closed.binary_search(&host).is_ok().then_some(Reason::Closed)
}

fn host_up(snapshot: &Snapshot, _: &Request, host: HostIdx) -> Option<Reason> {
    (snapshot.host(host).state == HostState::Down).then_some(Reason::HostDown)
}

fn awake(snapshot: &Snapshot, _: &Request, host: HostIdx) -> Option<Reason> {
    (snapshot.host(host).state == HostState::Asleep).then_some(Reason::Asleep)
}

fn not_cordoned(snapshot: &Snapshot, _: &Request, host: HostIdx) -> Option<Reason> {
    snapshot.host(host).cordoned.then_some(Reason::Cordoned)
}

fn has_facts(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let class = snapshot.class(snapshot.host(host).class);
    let needs = &snapshot.profile(request.profile).needs;
    needs.iter().find(|need| !is_met(need, &class.facts)).map(|need| lacks(need.kind))
}

fn is_met(need: &Need, facts: &[FactIdx]) -> bool {
    need.any_of.iter().any(|fact| facts.binary_search(fact).is_ok())
}

const fn lacks(kind: FactKind) -> Reason {
    match kind {
        FactKind::Label => Reason::HostLabels,
        FactKind::Driver => Reason::DriverMissing,
        FactKind::Arch => Reason::Arch,
        FactKind::Accel => Reason::AccelUnusable,
        FactKind::Machine => Reason::MachineType,
        FactKind::CpuModel => Reason::CpuModel,
        FactKind::CpuFeature => Reason::CpuFeature,
        FactKind::Network => Reason::NetworkMissing,
        FactKind::Storage => Reason::StorageMissing,
        FactKind::Power => Reason::CannotMigrate,
    }
}

fn taints_tolerated(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let tolerates = &snapshot.profile(request.profile).tolerates;
    let taints = &snapshot.class(snapshot.host(host).class).taints;
    taints.iter().any(|taint| tolerates.binary_search(taint).is_err()).then_some(Reason::Tainted)
}

fn amounts_fit(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let short = snapshot.profile(request.profile).amounts.short_of(&snapshot.room(host).free)?;
    Some(too_little(short.0))
}

const fn too_little(kind: Kind) -> Reason {
    match kind {
        Kind::Cpu => Reason::Cpus,
        Kind::Memory => Reason::Memory,
        Kind::HugePages => Reason::HugePages,
        Kind::Network => Reason::Bandwidth,
    }
}

fn named_fit(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let (row, room) = (snapshot.host(host), snapshot.room(host));
    let left = |resource| {
        let at = row.named.binary_search_by_key(&resource, |(resource, _)| *resource).ok()?;
        room.named_free.get(at).copied()
    };
    let named = &snapshot.profile(request.profile).named;
    let (short, _) = named.iter().find(|(resource, need)| left(*resource).unwrap_or(0) < *need)?;
    let name = snapshot.resource(*short);
    Some(match name.split('/').next() {
        Some("disk") => Reason::DiskSpace,
        Some("licence") => Reason::Licences,
        _ => Reason::Devices,
    })
}

fn nodes_fit(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    choose_nodes(snapshot, request.profile, host).is_none().then_some(Reason::Numa)
}

/// The NUMA nodes a VM of that profile would lie on: the fullest that take it, so that the emptier stay whole. An empty
/// set when it floats, or the host's nodes are not known; None when it does not fit.
#[must_use]
pub fn choose_nodes(snapshot: &Snapshot, profile: ProfileIdx, host: HostIdx) -> Option<NodeSet> {
    let profile = snapshot.profile(profile);
    let Some(count) = profile.node_count() else { return Some(NodeSet::default()) };
    let free = &snapshot.room(host).nodes_free;
    if free.is_empty() {
        return Some(NodeSet::default());
    }
    let part = profile.node_part(count);
    let mut fitting = [(0_u64, 0_u64, 0_usize); NODES_MAX];
    let mut found = 0;
    for (node, left) in free.iter().enumerate().filter(|(_, left)| part.fits(left)) {
        fitting[found] = (left.cpu_milli, left.mem_mib, node);
        found += 1;
    }
    let count = count as usize;
    if found < count {
        return None;
    }
    fitting[..found].sort_unstable();
    Some(NodeSet(fitting[..count].iter().fold(0, |set, (_, _, node)| set | 1 << node)))
}

/// How many VMs of a role there are in a place, and anywhere, without the one that is to be placed.
pub(crate) fn others(
    snapshot: &Snapshot,
    me: Option<VmIdx>,
    role: Role,
    rule: &Rule,
    place: Place,
) -> (u32, u32) {
    let count = snapshot.presence().of(role, rule.label);
    let mut sums = (count.at(place), count.all());
    let Some(row) = me.map(|vm| snapshot.vm(vm)) else { return sums };
    if row.at.is_none() && row.held.is_none() {
        return sums;
    }
    let ties = snapshot.ties(row.ties);
    let mine = roles(ties).filter(|(mine, label, level)| {
        *mine == role && *label == rule.label && level.is_none_or(|level| level == place.0)
    });
    let times = u32::try_from(mine.count()).unwrap_or(u32::MAX);
    for seat in [row.at, row.held].into_iter().flatten() {
        sums.1 -= times;
        if snapshot.place(place.0, seat.host) == place {
            sums.0 -= times;
        }
    }
    sums
}

fn hard<'a>(snapshot: &'a Snapshot, request: &Request, want: Want) -> impl Iterator<Item = &'a Rule> {
    snapshot.ties(request.ties).rules.iter().filter(move |rule| rule.is_hard() && rule.wants(want))
}

/// Every level, for labels whose rules may look at any.
const LEVELS: [Level; 3] = [Level::Host, Level::Rack, Level::Zone];

/// A rule of somebody else about a label this VM carries, as if it were its own.
fn mirrored<'a>(
    snapshot: &'a Snapshot,
    request: &Request,
    role: Role,
    want: Want,
) -> impl Iterator<Item = Rule> + 'a {
    let labels = &snapshot.ties(request.ties).labels;
    let named = labels.iter().filter(move |label| snapshot.presence().of(role, **label).all() > 0);
    named.flat_map(move |label| LEVELS.map(|level| Rule { label: *label, level, want, soft: None }))
}

fn beside_its_own(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let astray = |role: Role, rule: &Rule| {
        let (here, anywhere) = others(snapshot, request.vm, role, rule, snapshot.place(rule.level, host));
        here < anywhere
    };
    let own = hard(snapshot, request, Want::Together).any(|rule| astray(Role::Carrier, rule));
    // Whoever binds a label at this level binds it wherever he is: his place is the only one for its carriers.
    let bound = || {
        mirrored(snapshot, request, Role::Binder, Want::Together).any(|rule| {
            let count = snapshot.presence().of(Role::Binder, rule.label);
            let binders: u32 = count.places(rule.level).map(|(_, count)| count).sum();
            binders > 0 && others_bound_elsewhere(snapshot, request, &rule, host, binders)
        })
    };
    (own || bound()).then_some(Reason::AffinityElsewhere)
}

fn others_bound_elsewhere(
    snapshot: &Snapshot,
    request: &Request,
    rule: &Rule,
    host: HostIdx,
    binders: u32,
) -> bool {
    let place = snapshot.place(rule.level, host);
    let (here, _) = others(snapshot, request.vm, Role::Binder, rule, place);
    let mine = request.vm.map_or(0, |vm| {
        let row = snapshot.vm(vm);
        let seats = [row.at, row.held].into_iter().flatten().count();
        let binds = snapshot.ties(row.ties).rules.iter().filter(|own| {
            own.is_hard() && own.wants(Want::Together) && own.label == rule.label && own.level == rule.level
        });
        u32::try_from(seats * binds.count()).unwrap_or(u32::MAX)
    });
    binders - mine > here
}

fn apart_from_others(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let there = |role: Role, rule: &Rule| {
        others(snapshot, request.vm, role, rule, snapshot.place(rule.level, host)).0 > 0
    };
    let own = hard(snapshot, request, Want::Apart).any(|rule| there(Role::Carrier, rule));
    let shunned =
        || mirrored(snapshot, request, Role::Shunner, Want::Apart).any(|rule| there(Role::Shunner, &rule));
    (own || shunned()).then_some(Reason::ApartFrom)
}

/// Are VMs there that the rule speaks of, of another value than its own?
fn is_mixed(
    snapshot: &Snapshot,
    request: &Request,
    place: Place,
    role: Role,
    rule: &Rule,
    own: Option<LabelIdx>,
) -> bool {
    let (any, _) = others(snapshot, request.vm, role, rule, place);
    let same =
        || own.map_or(0, |own| others(snapshot, request.vm, role, &Rule { label: own, ..*rule }, place).0);
    any > 0 && any > same()
}

fn in_its_fault_domain(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<Reason> {
    let ties = snapshot.ties(request.ties);
    let mixed = |role, rule: &Rule, own| {
        is_mixed(snapshot, request, snapshot.place(rule.level, host), role, rule, own)
    };
    let own = hard(snapshot, request, Want::OtherValuesApart)
        .any(|rule| mixed(Role::Carrier, rule, own_value(&ties.values, rule)));
    let kept = || {
        mirrored(snapshot, request, Role::Keeper, Want::OtherValuesApart).any(|rule| {
            let own = own_value(&ties.values, &rule);
            own.is_some() && mixed(Role::Keeper, &rule, own)
        })
    };
    (own || kept()).then_some(Reason::FaultDomain)
}
