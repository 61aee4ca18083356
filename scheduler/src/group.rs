//! Several VMs at once: a batch, of which each finds its own place if it can, and a gang, which goes in whole or not at all.
//!
//! Both know all members beforehand: those that must share a host are placed as one, the largest first. A gang that does
//! not fit that way is searched for; within [`SEARCH_STEPS_MAX`] steps the search is exact, so that a refusal is final and
//! one more host can only help.

use std::collections::BTreeMap;

use crate::filter::refuse;
use crate::place::Placer;
use crate::request::Request;
use crate::score::{score, seat, standing};
use crate::snapshot::{Amounts, HostIdx, LabelIdx, Level, Seat, Snapshot, Want};

/// Seats tried in the search for a gang: a few milliseconds on one core.
pub const SEARCH_STEPS_MAX: u32 = 20_000;

/// Hosts tried for VMs that must share one, best first: further down the sum fits or the nodes do not.
const SHARED_HOSTS_MAX: usize = 32;

/// Gives each its place; those that got one sit there. In the order asked.
pub fn batch(snapshot: &mut Snapshot, placer: &mut Placer, requests: &[Request]) -> Vec<Option<Seat>> {
    let mut seats = vec![None; requests.len()];
    if let [request] = requests {
        seats[0] = place_one(snapshot, placer, request);
        return seats;
    }
    for bundle in bundles(snapshot, requests) {
        let together = bundle.len() > 1 && share_host(snapshot, requests, &bundle, &mut seats);
        if !together {
            for at in bundle {
                seats[at] = place_one(snapshot, placer, &requests[at]);
            }
        }
    }
    seats
}

/// Gives all a place or none. Those who got one sit there.
pub fn gang(snapshot: &mut Snapshot, placer: &mut Placer, requests: &[Request]) -> Option<Vec<Seat>> {
    let seats = batch(snapshot, placer, requests);
    if seats.iter().all(Option::is_some) {
        return Some(seats.into_iter().flatten().collect());
    }
    for (request, _) in requests.iter().zip(&seats).filter(|(_, seat)| seat.is_some()) {
        leave(snapshot, request);
    }
    let mut order: Vec<usize> = bundles(snapshot, requests).concat();
    let mut search = Search { requests, seats: vec![None; requests.len()], steps: 0 };
    order.reverse();
    search.run(snapshot, &mut order).then(|| search.seats.into_iter().flatten().collect())
}

fn place_one(snapshot: &mut Snapshot, placer: &mut Placer, request: &Request) -> Option<Seat> {
    let seat = placer.place(snapshot, request)?.seat;
    snapshot.accept(request, seat);
    Some(seat)
}

fn leave(snapshot: &mut Snapshot, request: &Request) {
    match (request.vm, request.from) {
        (Some(vm), Some(_)) => snapshot.release(vm),
        (Some(vm), None) => snapshot.take(vm),
        (None, _) => {}
    }
}

/// Those that must share a host, as one; the largest bundle first, then the order asked.
fn bundles(snapshot: &Snapshot, requests: &[Request]) -> Vec<Vec<usize>> {
    let mut by_label: BTreeMap<LabelIdx, usize> = BTreeMap::new();
    let mut bundles: Vec<Vec<usize>> = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        let mut rules = snapshot.ties(request.ties).rules.iter();
        let shared =
            rules.find(|rule| rule.is_hard() && rule.wants(Want::Together) && rule.level == Level::Host);
        match shared.map(|rule| by_label.entry(rule.label)) {
            Some(std::collections::btree_map::Entry::Occupied(bundle)) => bundles[*bundle.get()].push(at),
            entry => {
                if let Some(std::collections::btree_map::Entry::Vacant(bundle)) = entry {
                    bundle.insert(bundles.len());
                }
                bundles.push(vec![at]);
            }
        }
    }
    let size = |bundle: &Vec<usize>| std::cmp::Reverse(weight(snapshot, sum(snapshot, requests, bundle)));
    bundles.sort_by_cached_key(size);
    for bundle in &mut bundles {
        bundle.sort_by_cached_key(|at| size(&vec![*at]));
    }
    bundles
}

fn sum(snapshot: &Snapshot, requests: &[Request], bundle: &[usize]) -> Amounts {
    let amounts = bundle.iter().map(|at| snapshot.profile(requests[*at].profile).amounts);
    amounts.fold(Amounts::default(), Amounts::plus)
}

/// Thousandths of the largest host, by the amount there is least of.
fn weight(snapshot: &Snapshot, amounts: Amounts) -> u64 {
    let shares = amounts.each().into_iter().zip(snapshot.largest().each());
    shares.map(|((_, part), (_, whole))| part.saturating_mul(1_000) / whole.max(1)).max().unwrap_or(0)
}

/// Puts a bundle on one host. False, and nothing is changed, when none of those tried takes all of it.
fn share_host(
    snapshot: &mut Snapshot,
    requests: &[Request],
    bundle: &[usize],
    seats: &mut [Option<Seat>],
) -> bool {
    let first = &requests[bundle[0]];
    let whole = sum(snapshot, requests, bundle);
    let mut hosts: Vec<(u64, HostIdx)> = Vec::new();
    for (host, _) in snapshot.hosts() {
        if whole.fits(&snapshot.room(host).free) && refuse(snapshot, first, host).is_none() {
            hosts.push((standing(snapshot, snapshot.weights(), first.profile, host), host));
        }
    }
    hosts.sort_unstable_by_key(|(score, host)| (std::cmp::Reverse(*score), *host));
    hosts
        .iter()
        .take(SHARED_HOSTS_MAX)
        .any(|(_, host)| sit_together(snapshot, requests, bundle, *host, seats))
}

fn sit_together(
    snapshot: &mut Snapshot,
    requests: &[Request],
    bundle: &[usize],
    host: HostIdx,
    seats: &mut [Option<Seat>],
) -> bool {
    for (done, at) in bundle.iter().enumerate() {
        let request = &requests[*at];
        let fits = refuse(snapshot, request, host).is_none();
        if let Some(seat) = seat(snapshot, request.profile, host).filter(|_| fits) {
            snapshot.accept(request, seat);
            seats[*at] = Some(seat);
            continue;
        }
        for at in &bundle[..done] {
            leave(snapshot, &requests[*at]);
            seats[*at] = None;
        }
        return false;
    }
    true
}

/// Looks for places for all, one after another, and goes back when one finds none.
struct Search<'a> {
    requests: &'a [Request],
    seats: Vec<Option<Seat>>,
    steps: u32,
}

/// What two hosts must have in common to be the same to a gang without ties.
type Likeness = (crate::snapshot::ClassIdx, Amounts, Vec<u64>, Vec<Amounts>);

impl Search<'_> {
    fn run(&mut self, snapshot: &mut Snapshot, left: &mut Vec<usize>) -> bool {
        let Some(at) = left.pop() else { return true };
        let request = &self.requests[at];
        for host in self.hosts(snapshot, request) {
            self.steps += 1;
            if self.steps > SEARCH_STEPS_MAX {
                break;
            }
            let Some(seat) = seat(snapshot, request.profile, host) else { continue };
            snapshot.accept(request, seat);
            self.seats[at] = Some(seat);
            if self.run(snapshot, left) {
                return true;
            }
            leave(snapshot, request);
            self.seats[at] = None;
        }
        left.push(at);
        false
    }

    /// Hosts that take the request, best first. Of hosts that are alike to all members one is enough.
    fn hosts(&self, snapshot: &Snapshot, request: &Request) -> Vec<HostIdx> {
        let tied = self.requests.iter().any(|request| {
            let ties = snapshot.ties(request.ties);
            !ties.rules.is_empty() || !ties.labels.is_empty() || !request.pins.is_empty()
        });
        let mut seen: BTreeMap<Likeness, ()> = BTreeMap::new();
        let mut hosts: Vec<(u64, HostIdx)> = Vec::new();
        for (host, row) in snapshot.hosts() {
            let room = snapshot.room(host);
            let alike = || (row.class, room.free, room.named_free.clone(), room.nodes_free.clone());
            if refuse(snapshot, request, host).is_none() && (tied || seen.insert(alike(), ()).is_none()) {
                hosts.push((score(snapshot, snapshot.weights(), request, host), host));
            }
        }
        hosts.sort_unstable_by_key(|(score, host)| (std::cmp::Reverse(*score), *host));
        hosts.into_iter().map(|(_, host)| host).collect()
    }
}
