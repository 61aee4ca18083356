//! Which of the hosts that fit is best. Integers only, so that every replica and every rerun agrees.
//!
//! A score is the sum of named terms, each 0 to [`TERM_MAX`] (more is better), each times its weight in the policy. The
//! terms of [`standing`] depend on the profile and the host alone, so an index may keep them; those of [`passing`] depend
//! on the request and on other VMs too.

use serde::{Deserialize, Serialize};

use crate::filter::choose_nodes;
use crate::policy::{Policy, Term};
use crate::request::Request;
use crate::snapshot::{
    Amounts, HostIdx, Level, Place, Profile, ProfileIdx, Role, Seat, Site, Snapshot, Want,
};

/// The best of one term.
pub const TERM_MAX: u64 = 1_000;

/// One term of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermScore {
    /// Which.
    pub term: Term,
    /// 0 to [`TERM_MAX`].
    pub value: u64,
    /// What it counts.
    pub weight: u16,
}

const STANDING: [Term; 10] = [
    Term::Spread,
    Term::Pack,
    Term::PowerSaving,
    Term::Load,
    Term::Slots,
    Term::Snug,
    Term::WholeShapes,
    Term::WholeNodes,
    Term::RoomToGrow,
    Term::Images,
];

/// The weights of the terms that depend on profile and host alone, read once from the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    standing: [u64; STANDING.len()],
    prefers: u64,
    affinity: u64,
    near_source: u64,
}

impl Weights {
    /// Does it matter how NUMA nodes are filled?
    #[must_use]
    pub fn counts_nodes(&self) -> bool {
        STANDING.iter().zip(self.standing).any(|(term, weight)| *term == Term::WholeNodes && weight > 0)
    }

    /// Does what free room is worth count at all?
    #[must_use]
    pub fn counts_worth(&self) -> bool {
        STANDING.iter().zip(self.standing).any(|(term, weight)| {
            matches!(term, Term::Slots | Term::Snug | Term::WholeShapes | Term::Pack) && weight > 0
        })
    }
}

impl From<&Policy> for Weights {
    fn from(policy: &Policy) -> Self {
        Self {
            standing: STANDING.map(|term| policy.weight(term).into()),
            prefers: policy.weight(Term::Prefers).into(),
            affinity: policy.weight(Term::Affinity).into(),
            near_source: policy.weight(Term::NearSource).into(),
        }
    }
}

/// Everything about a host that depends on the profile and the host alone. The host must fit.
#[must_use]
pub fn standing(snapshot: &Snapshot, weights: &Weights, profile: ProfileIdx, host: HostIdx) -> u64 {
    standing_at(snapshot, weights, profile, host, &snapshot.site(host))
}

/// The same where the site of the host is at hand: most policies then read nothing else of it.
#[must_use]
pub fn standing_at(
    snapshot: &Snapshot,
    weights: &Weights,
    profile: ProfileIdx,
    host: HostIdx,
    site: &Site,
) -> u64 {
    let shape = snapshot.profile(profile);
    let counted = STANDING.iter().zip(weights.standing).filter(|(_, weight)| *weight > 0);
    let sum: u64 =
        counted.map(|(term, weight)| weight * term_of(snapshot, *term, profile, shape, (host, site))).sum();
    if weights.prefers == 0 || shape.prefers.is_empty() {
        return sum;
    }
    sum + weights.prefers * prefers(snapshot, shape, host)
}

fn term_of(
    snapshot: &Snapshot,
    term: Term,
    profile: ProfileIdx,
    shape: &Profile,
    (host, site): (HostIdx, &Site),
) -> u64 {
    let left = || site.free.minus(shape.amounts);
    match term {
        Term::Spread => left_free(left(), site.total),
        Term::Pack => snapshot.worths().tight(left(), site.total),
        Term::PowerSaving => TERM_MAX * u64::from(site.busy),
        Term::Load => idle(snapshot, host),
        Term::Slots => snapshot.worths().slots_kept(shape.amounts, site.free),
        Term::Snug => snapshot.worths().snug(left(), site.total),
        Term::WholeShapes => snapshot.worths().kept_whole(shape.amounts, site.free),
        Term::WholeNodes => whole_nodes(snapshot, profile, host),
        Term::RoomToGrow if shape.grows => room_to_grow(snapshot, shape, host),
        Term::RoomToGrow if snapshot.gatherings() == 0 => 0,
        Term::RoomToGrow => TERM_MAX * u64::from(!site.gathers || is_half_free(left(), site.total)),
        Term::Images => images(snapshot, shape, host),
        Term::Prefers => prefers(snapshot, shape, host),
        Term::Affinity | Term::NearSource => 0,
    }
}

fn share(part: u64, whole: u64) -> u64 {
    part.min(whole).saturating_mul(TERM_MAX).checked_div(whole).unwrap_or(0)
}

/// Thousandths of CPU and memory left free once the VM is there, on average.
fn left_free(left: Amounts, total: Amounts) -> u64 {
    u64::midpoint(share(left.cpu_milli, total.cpu_milli), share(left.mem_mib, total.mem_mib))
}

/// Thousandths of the real CPU that were idle when last measured; half when nothing was.
fn idle(snapshot: &Snapshot, host: HostIdx) -> u64 {
    let row = snapshot.host(host);
    row.load.map_or(TERM_MAX / 2, |load| TERM_MAX - share(load.cpu_mean_milli, row.physical.cpu_milli))
}

/// How little is left on the NUMA nodes it would lie on: nodes are filled before new ones are begun.
fn whole_nodes(snapshot: &Snapshot, profile: ProfileIdx, host: HostIdx) -> u64 {
    let Some(nodes) = choose_nodes(snapshot, profile, host).filter(|nodes| !nodes.is_empty()) else {
        return 0;
    };
    let part = snapshot.profile(profile).node_part(nodes.len());
    let (row, room) = (snapshot.host(host), snapshot.room(host));
    let tight = |node: usize| {
        let left = room.nodes_free[node].minus(part);
        TERM_MAX - share(left.cpu_milli, row.nodes[node].cpu_milli)
    };
    nodes.nodes().map(tight).sum::<u64>() / u64::from(nodes.len())
}

/// Is half of it still there for VMs that must share the host, those yet to come among them? More is not kept for them: a
/// group may be whole already.
fn is_half_free(left: Amounts, total: Amounts) -> bool {
    share(left.cpu_milli, total.cpu_milli).min(share(left.mem_mib, total.mem_mib)) >= TERM_MAX / 2
}

/// How many of the same would fit, against the largest host of the fleet were it empty: room for those yet to come.
fn room_to_grow(snapshot: &Snapshot, shape: &Profile, host: HostIdx) -> u64 {
    let room = snapshot.room(host);
    let whole = shape.amounts.times_in(&room.free);
    let most = shape.amounts.times_in(&snapshot.largest());
    let Some(count) = shape.node_count().filter(|_| !room.nodes_free.is_empty()) else {
        return share(whole, most);
    };
    let part = shape.node_part(count);
    let by_node = room.nodes_free.iter().map(|left| part.times_in(left));
    // As many as the scarcest nodes of a full set allow.
    let slots = if count == 1 { by_node.sum() } else { by_node.min().unwrap_or(0) };
    share(whole.min(slots), most)
}

fn images(snapshot: &Snapshot, shape: &Profile, host: HostIdx) -> u64 {
    if shape.images.is_empty() {
        return 0;
    }
    let have = &snapshot.host(host).images;
    let there = shape.images.iter().filter(|image| have.binary_search(image).is_ok()).count();
    share(there as u64, shape.images.len() as u64)
}

/// The wishes for labels that came true, by weight.
fn prefers(snapshot: &Snapshot, shape: &Profile, host: HostIdx) -> u64 {
    let facts = &snapshot.class(snapshot.host(host).class).facts;
    let weight =
        |wishes: &mut dyn Iterator<Item = &(_, u16)>| wishes.map(|(_, weight)| u64::from(*weight)).sum();
    let met = weight(&mut shape.prefers.iter().filter(|(fact, _)| facts.binary_search(fact).is_ok()));
    share(met, weight(&mut shape.prefers.iter()))
}

/// What depends on the request and on other VMs: soft rules, and how far it has to move.
#[must_use]
pub fn passing(snapshot: &Snapshot, request: &Request, host: HostIdx) -> u64 {
    let weights = snapshot.weights();
    weights.affinity * affinity(snapshot, request, host)
        + weights.near_source * near_source(snapshot, request, host)
}

/// Most that [`passing`] can give on a host that shares no host or rack with a VM a soft rule names, nor the rack of the
/// source.
#[must_use]
pub fn passing_rest_max(snapshot: &Snapshot, request: &Request) -> u64 {
    let (mut met, mut all) = (0, 0);
    for rule in &snapshot.ties(request.ties).rules {
        let Some(weight) = rule.soft.map(u64::from) else { continue };
        let nowhere = (rule.level, u32::MAX);
        let (_, anywhere) = crate::filter::others(snapshot, request.vm, Role::Carrier, rule, nowhere);
        let lost = rule.want == Want::Together && rule.level != Level::Zone && anywhere > 0;
        all += weight;
        met += weight * u64::from(!lost);
    }
    let near = if request.from.is_some() { TERM_MAX / 2 } else { 0 };
    snapshot.weights().affinity * share(met, all) + snapshot.weights().near_source * near
}

/// What [`passing`] gives on every host of a rack, to a VM that comes from nowhere and whose soft rules look at racks.
pub(crate) fn passing_in_rack(snapshot: &Snapshot, request: &Request, rack: u32) -> u64 {
    snapshot.weights().affinity * affinity_at(snapshot, request, |level| (level, rack))
}

/// Soft rules that hold there, by weight. With none to judge by, 0.
fn affinity(snapshot: &Snapshot, request: &Request, host: HostIdx) -> u64 {
    affinity_at(snapshot, request, |level| snapshot.place(level, host))
}

fn affinity_at(snapshot: &Snapshot, request: &Request, place: impl Fn(Level) -> Place) -> u64 {
    let (mut met, mut all) = (0, 0);
    for rule in &snapshot.ties(request.ties).rules {
        let Some(weight) = rule.soft.map(u64::from) else { continue };
        let (here, anywhere) =
            crate::filter::others(snapshot, request.vm, Role::Carrier, rule, place(rule.level));
        let holds = match rule.want {
            Want::Together => here > 0 || anywhere == 0,
            Want::Apart | Want::OtherValuesApart => here == 0,
        };
        all += weight;
        met += weight * u64::from(holds);
    }
    share(met, all)
}

fn near_source(snapshot: &Snapshot, request: &Request, host: HostIdx) -> u64 {
    let Some(from) = request.from else { return 0 };
    let same = |level| snapshot.place(level, from) == snapshot.place(level, host);
    match (same(Level::Rack), same(Level::Zone)) {
        (true, _) => TERM_MAX,
        (false, true) => TERM_MAX / 2,
        (false, false) => 0,
    }
}

/// The whole score. The host must fit.
#[must_use]
pub fn score(snapshot: &Snapshot, weights: &Weights, request: &Request, host: HostIdx) -> u64 {
    standing(snapshot, weights, request.profile, host) + passing(snapshot, request, host)
}

/// Every term that counts, for the record of a decision.
#[must_use]
pub fn terms(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Vec<TermScore> {
    let shape = snapshot.profile(request.profile);
    let site = snapshot.site(host);
    let value = |term| match term {
        Term::Affinity => affinity(snapshot, request, host),
        Term::NearSource => near_source(snapshot, request, host),
        _ => term_of(snapshot, term, request.profile, shape, (host, &site)),
    };
    let counted = snapshot.policy.weights.iter().filter(|(_, weight)| **weight > 0);
    let all = counted.map(|(term, weight)| TermScore { term: *term, value: value(*term), weight: *weight });
    all.filter(|term| term.value > 0).collect()
}

/// Where on the host it would sit. None when it does not fit the host's NUMA nodes.
#[must_use]
pub fn seat(snapshot: &Snapshot, profile: ProfileIdx, host: HostIdx) -> Option<Seat> {
    Some(Seat { host, nodes: choose_nodes(snapshot, profile, host)? })
}
