//! Placement at a cost that does not grow with the fleet: the same host that asking every host would give.
//!
//! Owns, per profile in use, what every host is worth to it: refused and why, or its standing score. A delta of the
//! snapshot costs one evaluation per profile, when that profile is next asked for. What depends on other VMs (ties) is
//! asked of the few hosts that are looked at. Refuses to change the snapshot.
//!
//! ```text
//! place(request)
//!   pinned, or bound to a place  -> ask those hosts
//!   else: standing of the profile (built once, then caught up from the snapshot's changes)
//!         hosts that soft rules speak for   -> asked one by one
//!         all others, best standing first   -> until no later one can win
//! ```

mod best;
mod standing;

use std::collections::BTreeMap;

use crate::decision::{Decision, Refusal, place as ask_all, scored};
use crate::filter::{ASKED, Reason, TIES, refuse, refuse_by};
use crate::request::Request;
use crate::score::{passing, passing_rest_max, seat, standing as standing_of};
use crate::snapshot::{HostIdx, Level, ProfileIdx, Role, Seat, Snapshot, Want};
use best::BestFirst;
use standing::Standing;

/// Cells of all profiles together, 4 bytes each: 64 MiB. Past that the profile unused for longest is forgotten.
const CELLS_MAX: usize = 16 << 20;

/// Profiles kept however large the fleet is: fewer would be rebuilt at every turn of a small mix.
const PROFILES_MIN: usize = 16;

/// Finds the best host. Keeps what it has learnt of one snapshot; given another, it learns anew.
#[derive(Clone, Debug, Default)]
pub struct Placer {
    standings: BTreeMap<ProfileIdx, Standing>,
    clock: u64,
}

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
        let standing = self.standing(snapshot, request.profile);
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
        let all = u32::try_from(snapshot.hosts().count()).unwrap_or(u32::MAX);
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
        let mut podium = Podium::default();
        if let Some(hosts) = few(snapshot, request) {
            for host in hosts {
                if refuse(snapshot, request, host).is_none() {
                    let standing = standing_of(snapshot, snapshot.weights(), request.profile, host);
                    podium.enter(standing + passing(snapshot, request, host), host);
                }
            }
            return podium;
        }
        let standing = self.standing(snapshot, request.profile);
        let lonely =
            snapshot.ties(request.ties).labels.is_empty() && snapshot.ties(request.ties).rules.is_empty();
        let free = lonely && request.from.is_none() && request.closed.is_empty();
        if free && wanted == 1 {
            podium.0[0] = standing.best();
            return podium;
        }
        let allowed = |host: HostIdx| {
            refuse_by(ASKED, snapshot, request, host).is_none()
                && (lonely || refuse_by(TIES, snapshot, request, host).is_none())
        };
        let special = spoken_for(snapshot, request);
        for host in &special {
            if let Some(score) = standing.score(*host).filter(|_| allowed(*host)) {
                podium.enter(score + passing(snapshot, request, *host), *host);
            }
        }
        let rest_max = passing_rest_max(snapshot, request);
        for (score, host) in BestFirst::new(standing) {
            if podium.bar(wanted).is_some_and(|(bar, _)| score + rest_max < bar) {
                break;
            }
            if special.binary_search(&host).is_ok() || !allowed(host) {
                continue;
            }
            let extra = passing(snapshot, request, host);
            podium.enter(score + extra, host);
            let reached = |(bar, at): (u64, HostIdx)| bar >= score + rest_max && at <= host;
            if extra == rest_max && podium.bar(wanted).is_some_and(reached) {
                break;
            }
        }
        podium
    }

    /// What every host is worth to a profile, as of now.
    fn standing(&mut self, snapshot: &Snapshot, profile: ProfileIdx) -> &Standing {
        self.clock += 1;
        if !self.standings.contains_key(&profile) {
            self.forget(snapshot.host_slots());
        }
        let standing = self.standings.entry(profile).or_insert_with(|| Standing::new(profile));
        standing.catch_up(snapshot, self.clock);
        standing
    }

    fn forget(&mut self, slots: usize) {
        let room = (CELLS_MAX / slots.max(1)).max(PROFILES_MIN);
        while self.standings.len() >= room {
            let oldest =
                self.standings.values().min_by_key(|standing| standing.used()).map(Standing::profile);
            if let Some(oldest) = oldest {
                self.standings.remove(&oldest);
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

/// Hosts that soft rules single out, sorted: in the host or rack of a VM one of them names, and in the rack of the source.
fn spoken_for(snapshot: &Snapshot, request: &Request) -> Vec<HostIdx> {
    let mut hosts = Vec::new();
    let mut add = |level, place| hosts.extend_from_slice(snapshot.members(level, place));
    for rule in
        snapshot.ties(request.ties).rules.iter().filter(|rule| !rule.is_hard() && rule.level != Level::Zone)
    {
        let carriers = snapshot.presence().of(Role::Carrier, rule.label);
        carriers.places(rule.level).for_each(|(place, _)| add(rule.level, place));
    }
    if let Some(from) = request.from {
        add(Level::Rack, snapshot.place(Level::Rack, from).1);
    }
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

/// Why a group of hosts was removed, without the figures.
impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(crate::explain::phrase(*self))
    }
}
