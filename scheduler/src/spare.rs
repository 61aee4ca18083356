//! Room that is kept for failures, as a hard filter: a VM is let in only where, once it is there, so many hosts may still
//! fail at once and everything they carry be started elsewhere.
//!
//! It stands last, after every other filter and the scores: each host costs an answer of [`admit`], so the best are asked
//! first and only so many. Only what is proven keeps a VM out. Refuses to guess: an answer that is not known lets it in.

use std::collections::BTreeMap;

use crate::admit::{Answer, admit};
use crate::decision::{Decision, Refusal, place};
use crate::filter::Reason;
use crate::request::Request;
use crate::snapshot::{HostIdx, Seat, Snapshot};

/// Hosts asked for one VM, the best by the policy first: when each of so many would use up the room, the others, which are
/// worse by the policy but not emptier on the whole, mostly would as well, and a decision must end.
pub const TRIES_MAX: usize = 8;

/// As [`place`], and with what the request asks to be kept spare kept. The snapshot is as before afterwards.
pub fn place_with_spare(snapshot: &mut Snapshot, request: &Request) -> Decision {
    let mut decision = place(snapshot, request);
    if !is_kept(snapshot, request) {
        return decision;
    }
    let mut open = request.clone();
    let mut spoilt: BTreeMap<String, u32> = BTreeMap::new();
    let mut tries = 0;
    while let Some(seat) = decision.seat() {
        let Some(text) = spoils(snapshot, request, seat) else { break };
        *spoilt.entry(text).or_default() += 1;
        tries += 1;
        if tries == TRIES_MAX {
            (decision.winner, decision.runner_up) = (None, None);
            break;
        }
        let at = open.closed.partition_point(|closed| *closed < seat.host);
        open.closed.insert(at, seat.host);
        decision = place(snapshot, &open);
    }
    tell(&mut decision, spoilt, request);
    decision
}

/// Why this host may not take it: the room kept for failures would be gone.
pub fn why_not_spare(snapshot: &mut Snapshot, request: &Request, host: HostIdx) -> Option<String> {
    if !is_kept(snapshot, request) {
        return None;
    }
    let seat = crate::score::seat(snapshot, request.profile, host)?;
    spoils(snapshot, request, seat)
}

fn is_kept(snapshot: &Snapshot, request: &Request) -> bool {
    let waits = request.vm.is_some_and(|vm| snapshot.vm(vm).at.is_none());
    request.spare > 0 && waits && !snapshot.policy.without.contains(&Reason::SpareHosts)
}

fn spoils(snapshot: &mut Snapshot, request: &Request, seat: Seat) -> Option<String> {
    snapshot.accept(request, seat);
    let admission = admit(snapshot, request.spare);
    let told = admission.gaps.first().filter(|_| admission.answer == Answer::No).map(|gap| {
        let found = gap.hosts.iter().filter_map(|host| snapshot.find_host(*host));
        let names: Vec<&str> = found.map(|host| snapshot.host_name(host).as_str()).collect();
        let noun = if request.spare == 1 { "host" } else { "hosts" };
        let first = gap.misfits.first().map_or(String::new(), |first| {
            format!(", VM {} would find no place ({})", first.vm_name, first.reason)
        });
        format!("{} {noun} must be able to fail: without {}{first}", request.spare, names.join(" and "))
    });
    if let Some(vm) = request.vm {
        snapshot.take(vm);
    }
    told
}

/// Those hosts were closed for the search, or are still counted as fitting: they are refused, and this is why.
fn tell(decision: &mut Decision, spoilt: BTreeMap<String, u32>, request: &Request) {
    let all: u32 = spoilt.values().sum();
    let mut closed = 0;
    for group in decision.refused.iter_mut().filter(|group| group.reason == Reason::Closed) {
        let before = u32::try_from(request.closed.len()).unwrap_or(u32::MAX);
        closed = group.hosts.saturating_sub(before).min(all);
        group.hosts -= closed;
    }
    decision.fitting = decision.fitting.saturating_sub(all - closed);
    decision.refused.retain(|group| group.hosts > 0);
    let groups = spoilt.into_iter().map(|(text, hosts)| Refusal { reason: Reason::SpareHosts, hosts, text });
    // Room would have been there: this is what keeps it out, so it is told first.
    decision.refused.splice(0..0, groups);
    if decision.winner.is_some() {
        decision.refused.sort_by_key(|group| std::cmp::Reverse(group.hosts));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Policy;
    use crate::filter::refuse;
    use crate::simulate::{Draw, fleet};
    use crate::snapshot::VmIdx;

    fn ask(snapshot: &mut Snapshot, text: &str, spare: u32) -> Request {
        let demand = fleet::read_demand("test", text).unwrap();
        let (profile, ties) = snapshot.intern(&demand);
        let vm = snapshot.add_interned(profile, ties);
        Request { spare, ..Request::start(snapshot, vm) }
    }

    /// A VM that would use up the room kept for a failure is kept out with that reason, a smaller one is let in, and both
    /// are when nothing is kept or the policy does without the filter.
    #[test]
    fn room_for_a_failure_is_kept() {
        let text = "
            host h1 cpus=8 mem=16G
            host h2 cpus=8 mem=16G
            host h3 cpus=8 mem=16G
            vm v1 cpus=1 mem=10G on=h1
            vm v2 cpus=1 mem=10G on=h2";
        let decide = |size: &str, spare: u32, without: bool| {
            let mut policy = Policy::spread();
            policy.without.extend(without.then_some(Reason::SpareHosts));
            let mut snapshot = fleet::read("fleet", text.as_bytes(), policy).unwrap();
            let request = ask(&mut snapshot, size, spare);
            let decision = place_with_spare(&mut snapshot, &request);
            let name = decision.winner.as_ref().map_or("nowhere", |winner| winner.name.as_str());
            format!("{name} | {} | {} fit | {}", decision.reason(), decision.fitting, decision.explain())
        };
        let memory = "2 hosts: not enough memory (need 8192 MiB, most free 6144 MiB)";
        assert_eq!(decide("cpus=1 mem=8G", 0, false), format!("h3 | Memory | 1 fit | {memory}"));
        assert_eq!(decide("cpus=1 mem=8G", 1, true), format!("h3 | Memory | 1 fit | {memory}"));
        let why = "1 host must be able to fail: without h1, VM v1 would find no place \
                   (2 hosts: not enough memory (need 10240 MiB, most free 8192 MiB); 1 host: left out for now)";
        assert_eq!(
            decide("cpus=1 mem=8G", 1, false),
            format!("nowhere | SpareHosts | 0 fit | 1 host: {why}; {memory}")
        );
        assert_eq!(decide("cpus=1 mem=4G", 1, false), "h3 | NoHosts | 3 fit | ");
    }

    /// Every way of starting these VMs elsewhere, tried.
    fn restarts(snapshot: &Snapshot, free: &mut [u64], gone: HostIdx, vms: &[VmIdx]) -> bool {
        let Some((first, rest)) = vms.split_first() else { return true };
        let need = snapshot.profile(snapshot.vm(*first).profile).amounts.mem_mib;
        (0..free.len()).any(|host| {
            if HostIdx::of(host) == gone || free[host] < need {
                return false;
            }
            free[host] -= need;
            let fits = restarts(snapshot, free, gone, rest);
            free[host] += need;
            fits
        })
    }

    fn any_may_fail(snapshot: &Snapshot) -> bool {
        let free: Vec<u64> = snapshot.hosts().map(|(host, _)| snapshot.room(host).free.mem_mib).collect();
        snapshot
            .hosts()
            .all(|(host, _)| restarts(snapshot, &mut free.clone(), host, &snapshot.room(host).vms))
    }

    proptest! {
        /// Against every assignment there is: where it puts a VM any host may still fail, and hosts it refuses for that
        /// would have left one that must not. The snapshot is left as it was.
        #[test]
        fn what_is_kept_is_enough_and_no_more(seed: u64, hosts in 2_u64..6, vms in 0_usize..9) {
            let mut draw = Draw(seed);
            let lines = (0..hosts).map(|host| format!("host h{host} cpus=64 mem={}G\n", draw.within(2, 8) * 4));
            let text: String = lines.collect();
            let mut snapshot = fleet::read("fleet", text.as_bytes(), Policy::spread()).unwrap();
            for _ in 0..=vms {
                let request = ask(&mut snapshot, &format!("cpus=1 mem={}G", draw.within(1, 9)), 1);
                let fitting = snapshot.hosts().map(|(host, _)| host);
                let fitting: Vec<HostIdx> =
                    fitting.filter(|host| refuse(&snapshot, &request, *host).is_none()).collect();
                let seat = |host| Seat { host, nodes: crate::snapshot::NodeSet::default() };
                let mut spoil = Vec::new();
                for host in &fitting {
                    snapshot.accept(&request, seat(*host));
                    if !any_may_fail(&snapshot) {
                        spoil.push(*host);
                    }
                    snapshot.take(request.vm.unwrap());
                }
                let mark = snapshot.asked();
                let decision = place_with_spare(&mut snapshot, &request);
                prop_assert_eq!(mark, snapshot.asked());
                let refused = decision.refused.iter().filter(|group| group.reason == Reason::SpareHosts);
                let refused: u32 = refused.map(|group| group.hosts).sum();
                prop_assert!(refused as usize <= spoil.len());
                prop_assert_eq!(decision.fitting + refused, u32::try_from(fitting.len()).unwrap());
                if let Some(seat) = decision.seat() {
                    prop_assert!(!spoil.contains(&seat.host));
                    snapshot.accept(&request, seat);
                } else {
                    prop_assert_eq!(spoil.len(), fitting.len());
                    snapshot.remove_vm(request.vm.unwrap());
                }
            }
        }
    }
}
