//! Placement at a cost that does not grow with the fleet: the same host that asking every host would give.
//!
//! Owns, per profile in use, what every host is worth to it: refused and why, or its standing score. A delta of the
//! snapshot costs one evaluation per profile, when that profile is next asked for. What depends on other VMs (ties) is
//! asked of the few hosts that are looked at. Refuses to change the snapshot.
//!
//! Profiles that ask for the same room share that (`Snapshot::shapes`); what they ask of facts is a bit for each host (the
//! sieve), shared by those that ask the same.
//!
//! ```text
//! place(request)
//!   pinned, or bound to a place  -> ask those hosts
//!   else: standing of the profile (built once, then caught up from the snapshot's changes)
//!         hosts that soft rules speak for   -> asked one by one
//!         all others, best standing first   -> until no later one can win
//! ```

mod best;
mod field;
mod sieve;
mod standing;

use crate::decision::{Decision, Refusal, place as ask_all, scored};
use crate::filter::{ASKED, NODES, Reason, TIES, rack_refused, refuse, refuse_by};
use crate::request::Request;
use crate::score::{passing, passing_in_rack, passing_rest_max, seat, standing as standing_of};
use crate::snapshot::{GateIdx, HostIdx, Level, Place, ProfileIdx, Role, Seat, Snapshot, Want};
use best::BestFirst;
use sieve::Sieve;
use standing::Standing;

/// Cells of all profiles together, 4 bytes each: 64 MiB. Past that the profile unused for longest is forgotten.
const CELLS_MAX: usize = 16 << 20;

/// Profiles kept however large the fleet is: fewer would be rebuilt at every turn of a small mix.
const PROFILES_MIN: usize = 16;

/// Bits of all sieves together: 32 MiB. After so many new ones all are worked out anew.
const SIEVE_BITS_MAX: usize = 1 << 28;

/// Sieves kept however large the fleet is.
const SIEVES_MIN: usize = 64;

/// Finds the best host. Keeps what it has learnt of one snapshot; given another, it learns anew.
#[derive(Clone, Debug, Default)]
pub struct Placer {
    standings: Vec<Standing>,
    /// By profile, then whether facts are left to sieves: one past the place in `standings`, 0 for none.
    places: Vec<[u32; 2]>,
    /// By gate.
    sieves: Vec<Sieve>,
    clock: u64,
}

/// A profile, and whether facts are left to sieves.
type Key = (ProfileIdx, bool);

/// The best host of those that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Where.
    pub seat: Seat,
    /// As [`score::score`](crate::score::score) counts.
    pub score: u64,
}

/// The two best so far: score, then the lower index.
#[derive(Clone, Copy, Debug, Default)]
struct Podium([Option<(u64, HostIdx)>; 2]);

impl Podium {
    fn enter(&mut self, score: u64, host: HostIdx) {
        let beats = |other: Option<(u64, HostIdx)>| {
            other.is_none_or(|(best, at)| score > best || (score == best && host < at))
        };
        // A host that stands in two of the places looked at enters once.
        if self.0.iter().flatten().any(|(_, at)| *at == host) {
            return;
        }
        if beats(self.0[0]) {
            self.0 = [Some((score, host)), self.0[0]];
        } else if beats(self.0[1]) {
            self.0[1] = Some((score, host));
        }
    }

    /// The score that has to be reached to matter.
    fn bar(&self, wanted: usize) -> Option<(u64, HostIdx)> {
        self.0[wanted - 1]
    }
}

impl Placer {
    /// One that has learnt nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The best host, or None when no host fits.
    pub fn place(&mut self, snapshot: &Snapshot, request: &Request) -> Option<Pick> {
        let (score, host) = self.find(snapshot, request, 1).0[0]?;
        Some(Pick { seat: seat(snapshot, request.profile, host)?, score })
    }

    /// The same with its record: how many hosts each filter removed, the terms of the winner and of the runner-up.
    /// Rules between VMs are counted for the hosts that were looked at. When no host fits every host is asked.
    pub fn decide(&mut self, snapshot: &Snapshot, request: &Request) -> Decision {
        let found = self.find(snapshot, request, 2).0;
        if found[0].is_none() || !request.pins.is_empty() {
            return ask_all(snapshot, request);
        }
        let at = self.follow(snapshot, (request.profile, false));
        let standing = &self.standings[at];
        let mut removed = standing.removed();
        for host in request.from.iter().chain(&request.closed) {
            let Some(reason) = refuse_by(ASKED, snapshot, request, *host) else { continue };
            if let Some(before) = standing.reason(*host) {
                *removed.entry(before).or_default() -= 1;
            }
            *removed.entry(reason).or_default() += 1;
        }
        removed.retain(|_, hosts| *hosts > 0);
        let out: u32 = removed.values().sum();
        let all = u32::try_from(snapshot.host_count()).unwrap_or(u32::MAX);
        let mut refused: Vec<Refusal> = removed
            .into_iter()
            .map(|(reason, hosts)| Refusal { reason, hosts, text: reason.to_string() })
            .collect();
        refused.sort_by_key(|group| std::cmp::Reverse(group.hosts));
        let [winner, runner_up] = found.map(|found| scored(snapshot, request, found?));
        let policy = snapshot.policy.name.clone();
        Decision { winner, runner_up, fitting: all - out, refused, revision: snapshot.revision, policy }
    }

    fn find(&mut self, snapshot: &Snapshot, request: &Request, wanted: usize) -> Podium {
        if let Some(hosts) = few(snapshot, request) {
            return ask_each(snapshot, request, &hosts);
        }
        let gate = snapshot.gate(request.profile);
        self.sift(snapshot, request.profile, gate);
        // A shape that floats is shared where there is one; its own is quicker where all are tied to nodes.
        let [own, floating] = snapshot.shapes(request.profile);
        let shape = if self.at((floating, true)).is_some() { floating } else { own };
        let broad = self.sieves[gate.at()].is_broad();
        let key = (if broad { shape } else { request.profile }, broad);
        let at = self.follow(snapshot, key);
        let (sieve, standing) = (&self.sieves[gate.at()], &mut self.standings[at]);
        let view = standing.view(gate, sieve);
        let first = standing.field.best(view);
        let search = Search {
            snapshot,
            request,
            view,
            standing,
            sieve,
            tied: !snapshot.ties(request.ties).is_empty(),
            floats: snapshot.profile(key.0).numa != snapshot.profile(request.profile).numa,
            special: spoken_for(snapshot, request),
            first,
            opened: Vec::new(),
        };
        let (podium, opened) = search.run(wanted);
        for rack in opened {
            standing.tighten(snapshot, rack);
        }
        podium
    }

    fn at(&self, (profile, shared): Key) -> Option<usize> {
        let place = self.places.get(profile.at()).map_or(0, |places| places[usize::from(shared)]);
        (place as usize).checked_sub(1)
    }

    fn put_at(&mut self, (profile, shared): Key, at: Option<usize>) {
        if self.places.len() <= profile.at() {
            self.places.resize(profile.at() + 1, [0; 2]);
        }
        let place = at.map_or(0, |at| u32::try_from(at + 1).unwrap_or(u32::MAX));
        self.places[profile.at()][usize::from(shared)] = place;
    }

    /// Brings up to now which hosts a gate lets through.
    fn sift(&mut self, snapshot: &Snapshot, profile: ProfileIdx, gate: GateIdx) {
        if self.sieves.len() <= gate.at() {
            let sieves_max = (SIEVE_BITS_MAX / snapshot.host_slots().max(1)).max(SIEVES_MIN);
            if gate.at().is_multiple_of(sieves_max) {
                self.sieves.iter_mut().for_each(|sieve| *sieve = Sieve::default());
            }
            self.sieves.resize_with(gate.at() + 1, Sieve::default);
        }
        self.sieves[gate.at()].follow(snapshot, profile);
    }

    /// Brings what every host is worth to a profile up to now.
    fn follow(&mut self, snapshot: &Snapshot, key: Key) -> usize {
        self.clock += 1;
        let at = self.at(key).unwrap_or_else(|| {
            self.forget(snapshot.host_slots());
            self.standings.push(Standing::new(key.0, key.1));
            self.put_at(key, Some(self.standings.len() - 1));
            self.standings.len() - 1
        });
        self.standings[at].catch_up(snapshot, self.clock);
        at
    }

    fn forget(&mut self, slots: usize) {
        let room = (CELLS_MAX / slots.max(1)).max(PROFILES_MIN);
        while self.standings.len() >= room {
            let by_use = |at: &usize| self.standings[*at].used();
            let Some(oldest) = (0..self.standings.len()).min_by_key(by_use) else { return };
            let gone = self.standings.swap_remove(oldest).key();
            self.put_at(gone, None);
            if let Some(moved) = self.standings.get(oldest).map(Standing::key) {
                self.put_at(moved, Some(oldest));
            }
        }
    }
}

/// The only hosts that can take the request, when they are few: pinned, or bound to the place of other VMs.
fn few(snapshot: &Snapshot, request: &Request) -> Option<Vec<HostIdx>> {
    if let Some(pin) = request.pins.first() {
        return Some(pin.host.into_iter().collect());
    }
    let ties = snapshot.ties(request.ties);
    let bound = ties.rules.iter().filter(|rule| rule.is_hard() && rule.want == Want::Together);
    for rule in bound {
        let carriers = snapshot.presence().of(Role::Carrier, rule.label);
        // Its own seat says nothing about where the others are.
        let own =
            request.vm.and_then(|vm| snapshot.vm(vm).at).map(|seat| snapshot.place(rule.level, seat.host).1);
        let mut places =
            carriers.places(rule.level).filter(|(place, count)| own != Some(*place) || *count > 1);
        if let Some((place, _)) = places.next()
            && rule.level != Level::Zone
        {
            return Some(snapshot.members(rule.level, place).to_vec());
        }
    }
    None
}

/// Places that soft rules single out, sorted: the host or rack of each VM that one of them names, the rack of the source.
fn spoken_for(snapshot: &Snapshot, request: &Request) -> Vec<Place> {
    let mut places = Vec::new();
    let soft = snapshot.ties(request.ties).rules.iter().filter(|rule| !rule.is_hard());
    for rule in soft.filter(|rule| rule.level != Level::Zone) {
        let carriers = snapshot.presence().of(Role::Carrier, rule.label);
        places.extend(carriers.places(rule.level).map(|(place, _)| (rule.level, place)));
    }
    places.extend(request.from.map(|from| snapshot.place(Level::Rack, from)));
    places.sort_unstable();
    places.dedup();
    places
}

/// Asks these hosts, and no other.
fn ask_each(snapshot: &Snapshot, request: &Request, hosts: &[HostIdx]) -> Podium {
    let mut podium = Podium::default();
    for host in hosts.iter().copied().filter(|host| refuse(snapshot, request, *host).is_none()) {
        let standing = standing_of(snapshot, snapshot.weights(), request.profile, host);
        podium.enter(standing + passing(snapshot, request, host), host);
    }
    podium
}

/// The search for one request, over what is known of its profile.
struct Search<'a> {
    snapshot: &'a Snapshot,
    request: &'a Request,
    standing: &'a Standing,
    /// Of those that pass the sieve.
    view: usize,
    sieve: &'a Sieve,
    tied: bool,
    /// Its nodes are not in the standing.
    floats: bool,
    special: Vec<Place>,
    first: Option<(u64, HostIdx)>,
    /// Racks that were looked into.
    opened: Vec<u32>,
}

impl Search<'_> {
    fn allowed(&self, host: HostIdx) -> bool {
        self.sieve.passes(host)
            && refuse_by(ASKED, self.snapshot, self.request, host).is_none()
            && (!self.floats || refuse_by(NODES, self.snapshot, self.request, host).is_none())
            && (!self.tied || refuse_by(TIES, self.snapshot, self.request, host).is_none())
    }

    fn is_special(&self, host: HostIdx) -> bool {
        let in_place = |level| self.special.binary_search(&self.snapshot.place(level, host)).is_ok();
        !self.special.is_empty() && (in_place(Level::Host) || in_place(Level::Rack))
    }

    fn run(mut self, wanted: usize) -> (Podium, Vec<u32>) {
        let mut podium = Podium::default();
        let plain = !self.tied && self.request.from.is_none() && self.request.closed.is_empty();
        if plain && wanted == 1 && self.first.is_none_or(|(_, host)| self.allowed(host)) {
            podium.0[0] = self.first;
            return (podium, self.opened);
        }
        self.enter_special(wanted, &mut podium);
        self.enter_others(wanted, &mut podium);
        (podium, self.opened)
    }

    fn enter_others(&self, wanted: usize, podium: &mut Podium) {
        let rest_max = passing_rest_max(self.snapshot, self.request);
        let Some((top, first)) = self.first else { return };
        if podium.bar(wanted).is_some_and(|(bar, _)| top + rest_max < bar) {
            return;
        }
        // Mostly the very first of the rest decides; only when it does not is their order worked out.
        let decides = || !self.is_special(first) && self.allowed(first);
        if wanted == 1 && decides() && passing(self.snapshot, self.request, first) == rest_max {
            podium.enter(top + rest_max, first);
            return;
        }
        self.enter_rest(rest_max, wanted, podium);
    }

    /// Enters those no soft rule singles out, best standing first, until no later one can matter.
    fn enter_rest(&self, rest_max: u64, wanted: usize, podium: &mut Podium) {
        for (score, host) in BestFirst::new(&self.standing.field, self.view) {
            if podium.bar(wanted).is_some_and(|(bar, _)| score + rest_max < bar) {
                break;
            }
            if self.is_special(host) || !self.allowed(host) {
                continue;
            }
            let extra = passing(self.snapshot, self.request, host);
            podium.enter(score + extra, host);
            let reached = |(bar, at): (u64, HostIdx)| bar >= score + rest_max && at <= host;
            if extra == rest_max && podium.bar(wanted).is_some_and(reached) {
                break;
            }
        }
    }

    /// Enters the hosts of the places that soft rules single out. Where all hosts of a rack have the same wishes met, racks
    /// are opened best first, until no later one can matter.
    fn enter_special(&mut self, wanted: usize, podium: &mut Podium) {
        let (snapshot, request) = (self.snapshot, self.request);
        let mut soft = snapshot.ties(request.ties).rules.iter().filter(|rule| !rule.is_hard());
        if request.from.is_some() || soft.any(|rule| rule.level != Level::Rack) {
            for (level, place) in &self.special {
                for host in snapshot.members(*level, *place) {
                    if let Some(score) = self.standing.score(*host).filter(|_| self.allowed(*host)) {
                        podium.enter(score + passing(snapshot, request, *host), *host);
                    }
                }
            }
            return;
        }
        let bound = |rack: u32| {
            let best = self.standing.bound_in_rack(rack)?;
            (!rack_refused(snapshot, request, rack)).then(|| {
                let extra = passing_in_rack(snapshot, request, rack);
                (best + extra, extra, rack)
            })
        };
        let mut racks: Vec<(u64, u64, u32)> =
            self.special.iter().filter_map(|(_, rack)| bound(*rack)).collect();
        racks.sort_unstable_by_key(|(bound, _, rack)| (std::cmp::Reverse(*bound), *rack));
        for (bound, extra, rack) in racks {
            if podium.bar(wanted).is_some_and(|(bar, _)| bound < bar) {
                return;
            }
            self.opened.push(rack);
            self.enter_rack(rack, extra, wanted, podium);
        }
    }

    /// Enters the best hosts of a rack, all of which have the same wishes met.
    fn enter_rack(&self, rack: u32, extra: u64, wanted: usize, podium: &mut Podium) {
        let span = self.snapshot.rack_span(rack);
        let members = if span.is_some() { &[] } else { self.snapshot.members(Level::Rack, rack) };
        let order = |(score, host): (u64, HostIdx)| (score, std::cmp::Reverse(host));
        let mut last = None;
        loop {
            let side_by_side = span.clone().into_iter().flatten().map(HostIdx::of);
            let open = side_by_side.chain(members.iter().copied()).filter(|host| self.sieve.passes(*host));
            let scored = open.filter_map(|host| Some((self.standing.score(host)?, host)));
            let after = scored.filter(|next| last.is_none_or(|last| order(*next) < order(last)));
            let Some(next) = after.max_by_key(|next| order(*next)) else { return };
            let lost = |bar: (u64, HostIdx)| order((next.0 + extra, next.1)) < order(bar);
            if podium.bar(wanted).is_some_and(lost) {
                return;
            }
            if self.allowed(next.1) {
                podium.enter(next.0 + extra, next.1);
            }
            last = Some(next);
        }
    }
}

/// Why a group of hosts was removed, without the figures.
impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(crate::explain::phrase(*self))
    }
}
