//! What every plan promises, on small fleets drawn by lot and judged by a checker that knows nothing of the planners.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::{HostId, VmId};
use proptest::prelude::*;

use crate::admit::{Answer, Proof, admit, slots_suffice};
use crate::balance::{Ask, BalancePlan, Eagerness, Why, balance, settle};
use crate::budget::Budgets;
use crate::consolidate::{Frugality, consolidate};
use crate::dice::Dice;
use crate::evacuate::{Certainty, depart, evacuate};
use crate::history::{self, History, Made};
use crate::policy::Policy;
use crate::replay::{Rule, Series, replay};
use crate::snapshot::{
    Amounts, Demand, HostEntry, HostIdx, Level, Load, NodeSet, RuleEntry, Seat, Snapshot, VmEntry, VmIdx,
    Want,
};

const NOW_MS: u64 = 1_000_000_000;

fn host_id(number: usize) -> HostId {
    HostId(format!("{number:032x}").parse::<VmId>().unwrap().0)
}

/// A host of so many CPUs and GiB; VMs may be promised four times the CPUs.
fn add_host(fleet: &mut Snapshot, cpus: u64, gib: u64) -> HostIdx {
    let number = fleet.host_slots() + 1;
    let physical = Amounts::new(cpus * 1_000, gib * 1_024);
    let total = Amounts::new(cpus * 4_000, gib * 1_024);
    let entry = HostEntry {
        physical,
        labels: [("rack".to_owned(), format!("r{}", number % 3))].into(),
        ..HostEntry::new(host_id(number), format!("h{number}").parse().unwrap(), total)
    };
    fleet.add_host(&entry)
}

/// A VM on a host, with its mean and peak in thousandths of a CPU. `group` stays apart within the level.
fn add_vm(
    fleet: &mut Snapshot,
    host: HostIdx,
    (cpus, gib): (u64, u64),
    (mean, peak): (u64, u64),
    group: Option<(usize, Level)>,
) -> VmIdx {
    let number = fleet.vm_slots() + 1;
    let (labels, rules) = group.map_or((Vec::new(), Vec::new()), |(group, level)| {
        let label = format!("app=g{group}");
        (vec![label.clone()], vec![RuleEntry { label, level, want: Want::Apart, soft: None }])
    });
    let demand =
        Demand { amounts: Amounts::new(cpus * 1_000, gib * 1_024), labels, rules, ..Demand::default() };
    let uid = VmId(host_id(100_000 + number).0);
    let vm = fleet.add_vm(&VmEntry::new(uid, format!("v{number}").parse().unwrap(), demand));
    fleet.put(vm, Seat { host, nodes: NodeSet::default() });
    let load = Load {
        cpu_mean_milli: mean,
        cpu_peak_milli: peak,
        mem_mib: gib * 512,
        sampled_ms: NOW_MS,
        ..Load::default()
    };
    fleet.observe_vm(vm, Some(load));
    vm
}

fn empty_fleet() -> Snapshot {
    let mut fleet = Snapshot::empty(Policy::spread());
    fleet.now_ms = NOW_MS;
    fleet
}

/// Unequal hosts, VMs crowded onto the first of them, some of which must stay apart and some of which are not to be believed.
fn drawn(hosts: usize, vms: usize, seed: u64) -> Snapshot {
    let mut dice = Dice::new(seed);
    let mut fleet = empty_fleet();
    for _ in 0..hosts {
        let size = [8, 16, 32][dice.below(3)];
        add_host(&mut fleet, size, size * 4);
    }
    for _ in 0..vms {
        let host = HostIdx::of(dice.below(hosts) * dice.below(hosts) / hosts);
        let cpus = 1 << dice.below(4);
        let shape = (cpus, 1 << dice.below(5));
        let peak = dice.below(usize::try_from(cpus).unwrap() * 1_000 + 1) as u64;
        let mean = dice.below(usize::try_from(peak).unwrap() + 1) as u64;
        let levels = [Level::Host, Level::Rack];
        let group = (dice.below(4) == 0).then(|| (dice.below(3), levels[dice.below(2)]));
        let vm = add_vm(&mut fleet, host, shape, (mean, peak), group);
        let room = fleet.room(host);
        let clash = group.is_some_and(|_| !keeps_rules(&places(&fleet), &fleet));
        if clash
            || room.used.mem_mib > fleet.host(host).total.mem_mib
            || room.used.cpu_milli > fleet.host(host).total.cpu_milli
        {
            fleet.remove_vm(vm);
            continue;
        }
        match dice.below(12) {
            0 => fleet.observe_vm(vm, None),
            1 => {
                let load = fleet.vm(vm).load.map(|load| Load { sampled_ms: 1, ..load });
                fleet.observe_vm(vm, load);
            }
            2 => {
                let load = fleet.vm(vm).load.map(|load| Load { cpu_mean_milli: 1 << 50, ..load });
                fleet.observe_vm(vm, load);
            }
            _ => {}
        }
    }
    fleet
}

type Places = BTreeMap<VmIdx, Vec<HostIdx>>;

fn places(fleet: &Snapshot) -> Places {
    fleet.vms().filter_map(|(vm, row)| Some((vm, vec![row.at?.host]))).collect()
}

/// Nothing is sold twice: what the VMs of a host need, counting those on their way out and in, is there.
fn fits(places: &Places, fleet: &Snapshot) -> bool {
    fleet.hosts().all(|(host, row)| {
        let here = places.iter().filter(|(_, hosts)| hosts.contains(&host));
        let needs = here.map(|(vm, _)| fleet.profile(fleet.vm(*vm).profile).amounts);
        let used = needs.fold(Amounts::default(), Amounts::plus);
        used.cpu_milli <= row.total.cpu_milli && used.mem_mib <= row.total.mem_mib
    })
}

/// No two VMs of a group share a host or rack that either wants for itself.
fn keeps_rules(places: &Places, fleet: &Snapshot) -> bool {
    let ties = |vm: &VmIdx| fleet.ties(fleet.vm(*vm).ties);
    places.iter().all(|(vm, hosts)| {
        ties(vm).rules.iter().all(|rule| {
            places.iter().filter(|(other, _)| *other != vm).all(|(other, others)| {
                let near =
                    |a: &HostIdx, b: &HostIdx| fleet.place(rule.level, *a) == fleet.place(rule.level, *b);
                let meet = hosts.iter().any(|a| others.iter().any(|b| near(a, b)));
                !(meet && ties(other).labels.contains(&rule.label))
            })
        })
    })
}

/// Plays a plan wave by wave. At every step everything fits and every rule holds, and the budgets are kept.
fn play(fleet: &Snapshot, waves: &[Vec<(VmId, HostId)>], budgets: &Budgets) -> Result<Places, TestCaseError> {
    let mut places = places(fleet);
    let mut moved = BTreeSet::new();
    for wave in waves {
        prop_assert!(!wave.is_empty() && wave.len() <= budgets.fleet as usize);
        let mut busy: BTreeMap<HostIdx, u32> = BTreeMap::new();
        for (vm, to) in wave {
            let (vm, to) = (fleet.find_vm(*vm).unwrap(), fleet.find_host(*to).unwrap());
            prop_assert!(moved.insert(vm), "a VM moves once");
            let hosts = places.get_mut(&vm).unwrap();
            prop_assert_ne!(hosts[0], to);
            for host in [hosts[0], to] {
                *busy.entry(host).or_default() += 1;
            }
            hosts.push(to);
        }
        prop_assert!(busy.values().all(|count| *count <= budgets.per_host));
        prop_assert!(fits(&places, fleet), "sold twice while moving");
        prop_assert!(keeps_rules(&places, fleet), "a rule broken while moving");
        for (vm, _) in wave {
            let hosts = places.get_mut(&fleet.find_vm(*vm).unwrap()).unwrap();
            hosts.remove(0);
        }
    }
    Ok(places)
}

fn in_words(plan: &BalancePlan) -> Vec<Vec<(VmId, HostId)>> {
    plan.waves.iter().map(|wave| wave.moves.iter().map(|one| (one.vm, one.to)).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the level: every step is feasible, every rule holds, pain falls, what is not trusted stays, what is gained
    /// exceeds its price, and the same question gives the same plan.
    #[test]
    fn a_balance_plan_keeps_every_promise(hosts in 1_usize..9, vms in 0_usize..60, level in 1_u8..=5, seed: u64) {
        let fleet = drawn(hosts, vms, seed);
        let history = History::default();
        let ask = Ask { level: Eagerness::try_from(level).unwrap(), ..Ask::new(&history) };
        let plan = balance(&fleet, &ask);
        play(&fleet, &in_words(&plan), &ask.budgets)?;
        let all = |pain: &crate::balance::Pain| pain.unserved_milli + pain.unfair_milli;
        let count = plan.moves().count() as u64;
        if count == 0 {
            prop_assert_eq!(&plan.before, &plan.after);
            prop_assert!(!plan.left.is_empty() && plan.verdict().starts_with("no beneficial move, because "));
        } else {
            prop_assert!(all(&plan.after) < all(&plan.before));
        }
        let thresholds = ask.level.thresholds();
        prop_assert!(count <= (fleet.vms().count() as u64 * thresholds.radius_ppm / 1_000_000).max(4));
        for one in plan.moves() {
            let load = fleet.vm(fleet.find_vm(one.vm).unwrap()).load;
            prop_assert!(load.is_some_and(|load| load.sampled_ms == NOW_MS && load.cpu_mean_milli < 1 << 40));
            prop_assert!(one.gain_cpu_ms * 100 >= one.cost_cpu_ms * thresholds.gain_percent);
        }
        prop_assert_eq!(plan, balance(&fleet, &ask));
    }

    /// Consolidation keeps the same promises, and what it says is empty is empty.
    #[test]
    fn a_consolidation_empties_what_it_names(hosts in 2_usize..8, vms in 0_usize..24, failover in 0_u32..2, seed: u64) {
        let mut fleet = drawn(hosts, vms, seed);
        fleet.policy.failover_hosts = failover;
        let history = History::default();
        let ask = Ask { level: Eagerness::try_from(5).unwrap(), ..Ask::new(&history) };
        let plan = consolidate(&fleet, &ask, &Frugality { awake: 0, ..Frugality::default() });
        let end = play(&fleet, &in_words(&plan), &ask.budgets)?;
        for host in &plan.emptied {
            let host = fleet.find_host(*host).unwrap();
            prop_assert!(end.values().all(|hosts| hosts[0] != host));
        }
        prop_assert!(plan.after.unserved_milli <= plan.before.unserved_milli + plan.before.demand_milli / 20);
    }

    /// A proof is an assignment that fits; a claim that something does not fit holds against every assignment there is. By
    /// the policy as many leave as by the tightest assignment.
    #[test]
    fn an_evacuation_is_proven_either_way(hosts in 2_usize..5, vms in 1_usize..9, gone in 1_usize..3, seed: u64) {
        let fleet = drawn(hosts, vms * 3, seed);
        let gone: Vec<HostIdx> = (0..gone.min(hosts - 1)).map(HostIdx::of).collect();
        let leaving: Vec<VmIdx> = gone.iter().flat_map(|host| fleet.room(*host).vms.clone()).collect();
        prop_assume!(leaving.len() <= 7);
        let budgets = Budgets::default();
        for plan in [evacuate(&fleet, &gone, &budgets), depart(&fleet, &gone, &budgets)] {
            let end = play(&fleet, &in_waves(&plan), &budgets)?;
            let left = end.values().filter(|hosts| gone.contains(&hosts[0])).count();
            prop_assert_eq!(left, plan.misfits.len());
            let least = fewest_left(&fleet, &gone, &leaving);
            match plan.certainty {
                Certainty::Fits => prop_assert_eq!(left, 0),
                Certainty::DoesNotFit => prop_assert_eq!(left, least),
                Certainty::NotFound => prop_assert!(left >= least),
            }
            for misfit in plan.misfits.iter().filter(|misfit| misfit.alone) {
                let vm = fleet.find_vm(misfit.vm).unwrap();
                let mut alone = places(&fleet);
                for vm in &leaving {
                    alone.remove(vm);
                }
                for host in fleet.hosts().map(|(host, _)| host).filter(|host| !gone.contains(host)) {
                    alone.insert(vm, vec![host]);
                    prop_assert!(!(fits(&alone, &fleet) && keeps_rules(&alone, &fleet)));
                }
            }
        }
    }

    /// Whoever begins the first moves of a plan and asks again is told the rest of it, however far the first are.
    #[test]
    fn a_departure_goes_on_as_planned(hosts in 3_usize..6, vms in 1_usize..24, per_host in 1_u32..4, seed: u64) {
        let mut fleet = drawn(hosts, vms, seed);
        let budgets = Budgets { per_host, ..Budgets::default() };
        let gone = [HostIdx::of(0)];
        let whole = depart(&fleet, &gone, &budgets);
        let to: BTreeMap<VmId, HostId> = whole.waves.iter().flat_map(|wave| &wave.moves).map(|one| (one.vm, one.to)).collect();
        prop_assume!(whole.certainty == Certainty::Fits);
        let mut dice = Dice::new(seed);
        loop {
            let plan = depart(&fleet, &gone, &budgets);
            let Some(first) = plan.waves.first().and_then(|wave| wave.moves.first()) else { break };
            for one in plan.waves.iter().flat_map(|wave| &wave.moves) {
                prop_assert_eq!(one.to, to[&one.vm]);
            }
            let vm = fleet.find_vm(first.vm).unwrap();
            if dice.below(2) == 0 { fleet.move_to(vm, first.seat) } else { fleet.hold(vm, first.seat) }
        }
    }

    /// Yes and no are both true, whichever way they were found; slots never say yes where some set of hosts must not fail.
    #[test]
    fn admission_tells_the_truth(hosts in 2_usize..5, vms in 1_usize..8, failures in 1_u32..3, ruled: bool, seed: u64) {
        let mut fleet = drawn(hosts, vms * 2, seed);
        if !ruled {
            let bound: Vec<VmIdx> = fleet
                .vms()
                .filter(|(_, row)| !fleet.ties(row.ties).rules.is_empty())
                .map(|(vm, _)| vm)
                .collect();
            bound.into_iter().for_each(|vm| fleet.remove_vm(vm));
        }
        let all: Vec<HostIdx> = fleet.hosts().map(|(host, _)| host).collect();
        let mut worst = 0;
        for a in &all {
            for b in &all {
                let set: Vec<HostIdx> = if failures == 1 { vec![*a] } else { vec![*a, *b] };
                let leaving: Vec<VmIdx> =
                    set.iter().collect::<BTreeSet<_>>().into_iter().flat_map(|host| fleet.room(*host).vms.clone()).collect();
                if leaving.len() > 7 {
                    return Err(TestCaseError::reject("too many to try all"));
                }
                worst = worst.max(fewest_left(&fleet, &set, &leaving));
            }
        }
        let admission = admit(&fleet, failures);
        prop_assert_eq!(admission.proof, Proof::Exact);
        prop_assert_eq!(admission.answer, if worst == 0 { Answer::Yes } else { Answer::No });
        if slots_suffice(&fleet, failures as usize) {
            prop_assert_eq!(worst, 0);
        }
    }

    /// The same day under the same rule ends the same, and no VM goes in a circle.
    #[test]
    fn a_replay_repeats_itself(hosts in 2_usize..6, vms in 1_usize..30, seed: u64) {
        let fleet = drawn(hosts, vms, seed);
        let mut dice = Dice::new(seed);
        let mut wanted = |vm: VmIdx| -> Vec<u32> {
            let most = usize::try_from(fleet.profile(fleet.vm(vm).profile).amounts.cpu_milli).unwrap();
            (0..60).map(|_| u32::try_from(dice.below(most) * dice.below(2)).unwrap()).collect()
        };
        let series: Series = fleet.vms().map(|(vm, _)| (vm, wanted(vm))).collect();
        let rule = Rule::Pain { level: Eagerness::try_from(5).unwrap() };
        let report = replay(&fleet, &series, rule, &Budgets::default());
        prop_assert_eq!(report.circles, 0);
        prop_assert_eq!(report, replay(&fleet, &series, rule, &Budgets::default()));
    }
}

fn in_waves(plan: &crate::evacuate::Evacuation) -> Vec<Vec<(VmId, HostId)>> {
    plan.waves.iter().map(|wave| wave.moves.iter().map(|one| (one.vm, one.to)).collect()).collect()
}

/// Tries every assignment of the VMs to the other hosts, or to none.
fn fewest_left(fleet: &Snapshot, gone: &[HostIdx], leaving: &[VmIdx]) -> usize {
    let hosts: Vec<HostIdx> =
        fleet.hosts().map(|(host, _)| host).filter(|host| !gone.contains(host)).collect();
    let mut places = places(fleet);
    for vm in leaving {
        places.remove(vm);
    }
    fn go(
        fleet: &Snapshot,
        hosts: &[HostIdx],
        places: &mut Places,
        leaving: &[VmIdx],
        left: usize,
        best: &mut usize,
    ) {
        if left >= *best {
            return;
        }
        let Some((vm, rest)) = leaving.split_first() else {
            *best = left;
            return;
        };
        for host in hosts {
            places.insert(*vm, vec![*host]);
            if fits(places, fleet) && keeps_rules(places, fleet) {
                go(fleet, hosts, places, rest, left, best);
            }
            places.remove(vm);
        }
        go(fleet, hosts, places, rest, left + 1, best);
    }
    let mut best = leaving.len() + 1;
    go(fleet, &hosts, &mut places, leaving, 0, &mut best);
    best
}

/// One overloaded host, one idle one: the busiest VM that helps goes, not the idlest, and the reason names the numbers.
#[test]
fn the_busiest_useful_vm_goes() {
    let mut fleet = empty_fleet();
    let (hot, cool) = (add_host(&mut fleet, 8, 64), add_host(&mut fleet, 8, 64));
    for mean in [4_000, 3_000, 2_000, 500, 100, 10] {
        add_vm(&mut fleet, hot, (4, 8), (mean, mean), None);
    }
    let history = History::default();
    let plan = balance(&fleet, &Ask::new(&history));
    let told: Vec<String> =
        plan.moves().map(|one| format!("{} {} {}", one.vm_name, one.to_name, one.reason)).collect();
    assert_eq!(
        told,
        [
            "v2 h2 h1 is expected to leave 1.61 CPUs of demand unserved; v2 takes 3.00 of its 9.61 CPUs of demand to h2, \
          which has 8.00 of 8.00 to spare: 1575 CPU-s gained in 15 min, 11 CPU-s spent"
        ]
    );
    assert_eq!(plan.verdict(), "1 move in 1 wave: pain falls from 1.75 to 0.00 CPUs");
    let _ = cool;
}

/// A fleet has as much pain as a hundred fleets like it have together, and its hosts are relieved alike.
#[test]
fn pain_does_not_depend_on_the_size_of_the_fleet() {
    let fleet = |times: usize| {
        let mut fleet = empty_fleet();
        for _ in 0..times {
            let (hot, _) = (add_host(&mut fleet, 8, 64), add_host(&mut fleet, 16, 64));
            for _ in 0..20 {
                add_vm(&mut fleet, hot, (1, 2), (500, 1_000), None);
            }
        }
        fleet
    };
    let history = History::default();
    let ask = Ask { level: Eagerness::try_from(5).unwrap(), ..Ask::new(&history) };
    let (one, many) = (balance(&fleet(1), &ask), balance(&fleet(100), &ask));
    assert_eq!(one.before.share_ppm(), many.before.share_ppm());
    assert_eq!(one.moves().count() * 100, many.moves().count());
    assert_eq!(one.after.share_ppm(), many.after.share_ppm());
}

/// Nothing to do, nothing that may be done, nothing that pays: each says so.
#[test]
fn no_move_has_its_reason() {
    let history = History::default();
    let check = |fleet: &Snapshot, history: &History, why: Why, text: &str| {
        let plan = balance(fleet, &Ask::new(history));
        assert_eq!(plan.left.first().map(|left| left.why), Some(why));
        assert_eq!(plan.verdict(), format!("no beneficial move, because {text}"));
    };
    check(&empty_fleet(), &history, Why::Calm, "no host is up and has CPUs");
    let mut fleet = empty_fleet();
    let hot = add_host(&mut fleet, 8, 64);
    let small = add_host(&mut fleet, 8, 4);
    let vm = add_vm(&mut fleet, hot, (4, 8), (2_000, 2_000), None);
    check(
        &fleet,
        &history,
        Why::Calm,
        "no host hurts enough: the worst, h1, carries 2.00 on 8.00 CPUs, a pain of 0.00 where 0.04 would be acted on",
    );
    for _ in 0..3 {
        add_vm(&mut fleet, hot, (4, 8), (3_000, 3_000), None);
    }
    let hurts = "h1 is expected to leave 3.00 CPUs of demand unserved, but of its VMs";
    check(&fleet, &history, Why::NoRoom, &format!("{hurts} 4 fit on no host that hurts less"));
    for (vm, _) in fleet.clone().vms() {
        fleet.observe_vm(vm, None);
    }
    let busy = add_vm(&mut fleet, hot, (8, 8), (8_000, 8_000), None);
    let mut moved = History::default();
    moved.record(Made {
        vm: fleet.vm(busy).uid,
        from: fleet.host(small).uid,
        to: fleet.host(hot).uid,
        at_ms: NOW_MS - 1,
        promised_milli: 0,
        observed_milli: None,
    });
    let plan = balance(&fleet, &Ask::new(&moved));
    assert_eq!(plan.left.first().map(|left| left.why), Some(Why::Resting), "{}", plan.verdict());
    let _ = vm;
}

/// A move that did not help is not made again until its bar is over; one that helped rests for its cool-down only.
#[test]
fn a_promise_not_kept_is_not_repeated() {
    let mut fleet = empty_fleet();
    let (a, b) = (add_host(&mut fleet, 8, 64), add_host(&mut fleet, 8, 64));
    let vm = add_vm(&mut fleet, b, (4, 8), (100, 100), None);
    let uid = fleet.vm(vm).uid;
    let made = |promised_milli| Made {
        vm: uid,
        from: fleet.host(a).uid,
        to: fleet.host(b).uid,
        at_ms: NOW_MS - history::SETTLE_MS,
        promised_milli,
        observed_milli: None,
    };
    let known = History::default();
    let judged = |promised| {
        let mut history = History::default();
        history.record(made(promised));
        settle(&fleet, &Ask::new(&known), &mut history);
        let after_rest = NOW_MS + history::COOL_DOWN_MS;
        (history.made().next().unwrap().observed_milli, history.resting(after_rest).contains_key(&uid))
    };
    // It left a host that would not hurt with it: nothing was gained.
    assert_eq!(judged(2_000), (Some(0), true));
    // A move that promised nothing, as those of an evacuation, is not judged.
    assert_eq!(judged(0), (None, false));
}
