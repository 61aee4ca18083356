//! Placement over random fleets, and golden fleets in a few words.

#![allow(clippy::cast_possible_truncation)] // Draws are small.

use proptest::prelude::*;

use crate::group::{batch, gang};
use crate::make_room::{Bounds, make_room};
use crate::simulate::check::violations;
use crate::simulate::{Draw, fleet};
use crate::snapshot::{HostEntry, Numa, Seat};
use crate::{Placer, Policy, Request, Snapshot, VmIdx, place, why_not};

/// A fleet line by line, everything drawn: sizes, nodes, racks, labels, taints, states.
fn random_fleet(draw: &mut Draw, hosts: u64) -> String {
    let mut text = String::new();
    let side_by_side = draw.within(0, 1) == 1;
    for host in 0..hosts {
        let (cpus, gib) = (draw.within(1, 4) * 8, draw.within(1, 4) * 16);
        text += &format!("host h{host} cpus={cpus} mem={gib}G has=device/gpu:{}", draw.within(0, 2));
        if draw.within(0, 2) > 0 {
            text += &format!(" node={0}:{1}G node={0}:{1}G", cpus / 2, gib / 2);
        }
        let rack = if side_by_side { host / 4 } else { draw.within(0, hosts / 3) };
        text += &format!(" rack=r{rack} zone=z{}", draw.within(0, 1));
        text += &format!(" label=disk={}", ["ssd", "hdd"][draw.within(0, 1) as usize]);
        text += ["", "", "", " taint=gpu=yes", " cordoned", " down", " load=3"][draw.within(0, 6) as usize];
        text += "\n";
    }
    text
}

/// What a VM might ask for, rules of every kind included.
fn random_demand(draw: &mut Draw) -> String {
    let cpus = [1, 1, 2, 4, 8][draw.within(0, 4) as usize];
    let mut text = format!("cpus={cpus} mem={}G", cpus * draw.within(1, 4));
    let group = draw.within(0, 3);
    let value = draw.within(0, 2);
    text += &match draw.within(0, 11) {
        0 => " numa=one".to_owned(),
        1 => " numa=split:2".to_owned(),
        2 => " needs=label:disk=ssd".to_owned(),
        3 => " tolerates=gpu=yes prefers=disk=hdd:30".to_owned(),
        4 => format!(" label=app=a{group} rule=apart:app=a{group}@host"),
        5 => format!(" label=app=a{group} rule=apart:app=a{group}@rack~20"),
        6 => format!(" label=set=s{group} rule=together:set=s{group}@host"),
        7 => format!(" label=set=s{group} rule=together:set=s{group}@rack~40"),
        8 => format!(" label=shard{group}=v{value} rule=domain:shard{group}@rack"),
        9 => " has=device/gpu:1".to_owned(),
        10 => format!(" rule=apart:app=a{group}@zone"),
        _ => String::new(),
    };
    text
}

fn ask(snapshot: &mut Snapshot, text: &str) -> Request {
    let demand = fleet::read_demand("test", text).unwrap();
    let (profile, ties) = snapshot.intern(&demand);
    let vm = snapshot.add_interned(profile, ties);
    Request::start(snapshot, vm)
}

fn policy(number: u64) -> Policy {
    let mut nodes = Policy::pack();
    nodes.weights.insert(crate::Term::WholeNodes, 5);
    let all = [Policy::spread(), Policy::pack(), Policy::power_saving(), nodes, Policy::pack_slots()];
    all[number as usize % all.len()].clone()
}

fn seated(snapshot: &Snapshot) -> Vec<VmIdx> {
    snapshot.vms().filter(|(_, row)| row.at.is_some()).map(|(vm, _)| vm).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// After any deltas the index names the host, the score and the runner-up that asking every host names; nothing is
    /// ever oversold and every hard rule holds.
    #[test]
    fn the_index_decides_as_a_full_scan(seed: u64, hosts in 1_u64..400, steps in 1_usize..100) {
        let mut draw = Draw(seed);
        let text = random_fleet(&mut draw, hosts);
        let mut snapshot = fleet::read("fleet", text.as_bytes(), policy(draw.number())).unwrap();
        let mut placer = Placer::new();
        for _ in 0..steps {
            let there = seated(&snapshot);
            let any = |draw: &mut Draw| there[draw.within(0, there.len() as u64 - 1) as usize];
            match draw.within(0, 9) {
                0 if !there.is_empty() => snapshot.remove_vm(any(&mut draw)),
                1 if !there.is_empty() => {
                    let vm = any(&mut draw);
                    let request = Request::to_move(&snapshot, vm);
                    let (full, fast) = (place(&snapshot, &request), placer.place(&snapshot, &request));
                    prop_assert_eq!(full.seat(), fast.map(|pick| pick.seat));
                    if let Some(pick) = fast {
                        snapshot.move_to(vm, pick.seat);
                    }
                }
                2 => {
                    let host = crate::HostIdx::of(draw.within(0, hosts - 1) as usize);
                    let row = snapshot.host(host).clone();
                    let entry = HostEntry { cordoned: !row.cordoned, state: row.state, nodes: row.nodes.clone(),
                        ..HostEntry::new(row.uid, row.name.clone(), row.total) };
                    if snapshot.room(host).vms.is_empty() {
                        snapshot.update_host(host, &entry);
                    }
                }
                3 => snapshot.set_policy(policy(draw.number())),
                _ => {
                    let request = ask(&mut snapshot, &random_demand(&mut draw));
                    let (full, fast) = (place(&snapshot, &request), placer.place(&snapshot, &request));
                    prop_assert_eq!(full.seat(), fast.map(|pick| pick.seat));
                    prop_assert_eq!(full.winner.as_ref().map(|winner| winner.score), fast.map(|pick| pick.score));
                    let told = placer.decide(&snapshot, &request);
                    prop_assert_eq!(&told.winner, &full.winner);
                    prop_assert_eq!(&told.runner_up, &full.runner_up);
                    match fast {
                        Some(pick) => snapshot.accept(&request, pick.seat),
                        None => snapshot.remove_vm(request.vm.unwrap()),
                    }
                }
            }
            let wrong: Vec<_> = violations(&snapshot)
                .into_iter()
                .filter(|wrong| !matches!(wrong, crate::simulate::check::Violation::Misfit(_)))
                .collect();
            prop_assert!(wrong.is_empty(), "{:?}", wrong);
        }
    }

    /// A gang goes in whole or leaves no trace; one more host never keeps a gang out that fitted without it.
    #[test]
    fn a_gang_goes_in_whole_and_a_host_more_only_helps(seed: u64, hosts in 1_u64..7, members in 1_usize..7) {
        let mut draw = Draw(seed);
        let text = random_fleet(&mut draw, hosts);
        let more = format!("{text}host extra cpus=16 mem=32G node=8:16G node=8:16G rack=r1 zone=z0\n");
        let number = draw.number();
        let demands: Vec<String> = (0..members).map(|_| random_demand(&mut draw)).collect();
        let go = |text: &str| {
            let mut snapshot = fleet::read("fleet", text.as_bytes(), policy(number)).unwrap();
            let requests: Vec<Request> = demands.iter().map(|demand| ask(&mut snapshot, demand)).collect();
            let seats: Option<Vec<Seat>> = gang(&mut snapshot, &mut Placer::new(), &requests);
            assert_eq!(seated(&snapshot).len(), seats.as_ref().map_or(0, Vec::len));
            assert_eq!(violations(&snapshot), []);
            seats
        };
        if go(&text).is_some() {
            prop_assert!(go(&more).is_some());
        }
    }

    /// Room is made only by moves that each have a place free when they start, and the snapshot is left as it was.
    #[test]
    fn made_room_is_real(seed: u64, hosts in 2_u64..12) {
        let mut draw = Draw(seed);
        let text = random_fleet(&mut draw, hosts);
        let mut snapshot = fleet::read("fleet", text.as_bytes(), Policy::spread()).unwrap();
        let mut placer = Placer::new();
        for _ in 0..60 {
            let request = ask(&mut snapshot, &random_demand(&mut draw));
            if let Some(pick) = placer.place(&snapshot, &request) {
                snapshot.accept(&request, pick.seat);
                continue;
            }
            let before: Vec<_> = snapshot.vms().map(|(vm, row)| (vm, row.at)).collect();
            let plan = make_room(&mut snapshot, &mut placer, &request, &Bounds::default());
            prop_assert_eq!(before, snapshot.vms().map(|(vm, row)| (vm, row.at)).collect::<Vec<_>>());
            let Some(plan) = plan else {
                snapshot.remove_vm(request.vm.unwrap());
                continue;
            };
            // The moves of a wave start at once: every destination is held before any source is left.
            for wave in plan.moves.chunk_by(|a, b| a.wave == b.wave) {
                for step in wave {
                    let to_move = Request::to_move(&snapshot, step.vm);
                    prop_assert_eq!(why_not(&snapshot, &to_move, step.to.host), None);
                    snapshot.hold(step.vm, step.to);
                }
                for step in wave {
                    snapshot.move_to(step.vm, step.to);
                }
            }
            prop_assert_eq!(why_not(&snapshot, &request, plan.seat.host), None);
            snapshot.accept(&request, plan.seat);
            prop_assert_eq!(violations(&snapshot), []);
        }
    }

    /// No bytes make a reader panic.
    #[test]
    fn readers_refuse_what_they_do_not_understand(bytes: Vec<u8>, words in "[ -~\\n]{0,300}", cut in 0_usize..400) {
        use crate::simulate::{azure, huawei};
        let header = "vm,arrival_s,tenant_batch,vcpus,mem_gib,life_lo_s,life_hi_s,censored\n";
        let good = format!("{header}0,1800000,0,8,14,300,599,0\n1,99999999999999999999,1,1,0.75,1200,1499,0\n");
        let requests = "flavor_vcpus,flavor_ram,numa,strategy,group,domain\n8,16,1,fault_domain,0.0,1.0\n";
        let shapes = [&bytes[..], words.as_bytes(), good.get(..cut).unwrap_or(&good).as_bytes()];
        for bytes in shapes {
            let _ = azure::read("trace", bytes, 1);
            let _ = azure::read("trace", &[header.as_bytes(), bytes].concat(), 1);
            let _ = huawei::read_requests("trace", &[requests.as_bytes(), bytes].concat());
            let _ = huawei::read_hosts(("sizes", bytes), ("racks", bytes));
            let _ = fleet::read("fleet", bytes, Policy::spread());
            let _ = fleet::read("fleet", &[b"host h1 cpus=4 mem=8G\nvm v1 ".as_slice(), bytes].concat(), Policy::spread());
        }
    }
}

/// A bad line is told by file, line, field and reason.
#[test]
fn a_bad_line_says_where_and_why() {
    let fleet =
        |text: &str| fleet::read("f.fleet", text.as_bytes(), Policy::spread()).unwrap_err().to_string();
    assert_eq!(
        fleet("host h1 cpus=4\n\nhost h2 cpus=x"),
        "f.fleet:3: cpus: \"x\" is not a decimal number from 0 to 1099511627.776"
    );
    assert_eq!(fleet("guest g1"), "f.fleet:1: line: begins with \"guest\", not with host or vm");
    assert_eq!(fleet("host h1\nvm v1 on=h2"), "f.fleet:2: on: no host h2 above this line");
    assert_eq!(fleet("host h1 disks=3"), "f.fleet:1: disks: no such property of a host");
    assert_eq!(
        fleet("vm v1 rule=near:app=db@host"),
        "f.fleet:1: rule: \"near\" is none of together, apart and domain"
    );
    let azure = |rows: &str| {
        let header = "vm,arrival_s,tenant_batch,vcpus,mem_gib,life_lo_s,life_hi_s,censored";
        crate::simulate::azure::read("a.csv", format!("{header}\n{rows}").as_bytes(), 1)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(azure("0,5,0,0,14,300,599,0"), "a.csv:2: vcpus: \"0\" is not a whole number from 1 to 4096");
    assert_eq!(azure("0,5,0,1,14,300,599"), "a.csv:2: line: 7 fields, 8 are due");
    assert_eq!(
        azure("0,5,0,1,14,600,599,0"),
        "a.csv:2: life_hi_s: \"599\" is not a whole number from 600 to 31622400000"
    );
}

struct Golden {
    fleet: &'static str,
    policy: Policy,
    asks: &'static str,
    answer: &'static str,
}

fn check(golden: &Golden) {
    let mut snapshot = fleet::read("fleet", golden.fleet.as_bytes(), golden.policy.clone()).unwrap();
    let request = ask(&mut snapshot, golden.asks);
    let decision = Placer::new().decide(&snapshot, &request);
    let name = decision.winner.as_ref().map_or("nowhere", |winner| winner.name.as_str());
    let answer = format!("{name} | {}", place(&snapshot, &request).explain());
    assert_eq!(answer, golden.answer, "asked: {} of\n{}", golden.asks, golden.fleet);
}

/// Given this fleet, why this host.
#[test]
fn golden_fleets() {
    let racks = "
        host a1 cpus=16 mem=64G rack=a
        host a2 cpus=16 mem=64G rack=a
        host b1 cpus=16 mem=64G rack=b label=disk=ssd
        host b2 cpus=16 mem=64G rack=b cordoned
        vm db1 cpus=4 mem=16G on=a1 label=app=db label=shard=1
        vm web1 cpus=4 mem=16G on=b1 label=app=web rule=apart:app=batch@rack";
    let nodes = "
        host n1 cpus=16 mem=64G node=8:32G node=8:32G
        host n2 cpus=16 mem=64G node=8:32G node=8:32G
        vm v1 cpus=4 mem=8G numa=one on=n1
        vm v2 cpus=6 mem=8G numa=one on=n1";
    let golden =
        |fleet, policy: fn() -> Policy, asks, answer| Golden { fleet, policy: policy(), asks, answer };
    for case in [
        golden(racks, Policy::spread, "cpus=4 mem=16G", "a2 | 1 host: cordoned"),
        golden(racks, Policy::pack, "cpus=4 mem=16G", "a1 | 1 host: cordoned"),
        golden(
            racks,
            Policy::pack,
            "cpus=4 mem=16G needs=label:disk=ssd",
            "b1 | 2 hosts: no label disk=ssd; 1 host: cordoned",
        ),
        golden(
            racks,
            Policy::pack,
            "cpus=4 mem=16G rule=apart:app=db@rack",
            "b1 | 2 hosts: a VM labelled app=db is there; 1 host: cordoned",
        ),
        golden(
            racks,
            Policy::spread,
            "cpus=4 mem=16G rule=together:app=db@host",
            "a1 | 2 hosts: VMs labelled app=db are elsewhere; 1 host: cordoned",
        ),
        golden(
            racks,
            Policy::pack,
            "cpus=4 mem=16G label=app=batch rule=together:app=web@rack~50",
            "a1 | 1 host: cordoned; 1 host: a VM that stays apart from it is there",
        ),
        golden(
            racks,
            Policy::pack,
            "cpus=4 mem=16G label=shard=2 rule=domain:shard@rack",
            "b1 | 2 hosts: a VM with another value of shard is there; 1 host: cordoned",
        ),
        golden(
            racks,
            Policy::spread,
            "cpus=4 mem=80G",
            "nowhere | 3 hosts: not enough memory (need 81920 MiB, most free 65536 MiB); 1 host: cordoned",
        ),
        golden(
            nodes,
            Policy::pack,
            "cpus=6 mem=8G numa=one",
            "n2 | 1 host: it fits the host, but not its NUMA nodes as they are filled",
        ),
        golden(nodes, Policy::pack, "cpus=6 mem=8G", "n1 | "),
        golden(nodes, Policy::pack, "cpus=4 mem=8G numa=split:2", "n1 | "),
    ] {
        check(&case);
    }
}

/// Others leave half of a host to VMs that must share it, however many of those are still to come.
#[test]
fn a_group_is_left_half_of_its_host() {
    let fleet = "
        host g1 cpus=16 mem=64G
        host g2 cpus=16 mem=64G
        vm a1 cpus=2 mem=8G on=g1 label=set=a rule=together:set=a@host";
    let together = "cpus=12 mem=8G label=set=a rule=together:set=a@host";
    for (asks, answer) in [
        ("cpus=4 mem=8G", "g1 | "),
        ("cpus=12 mem=8G", "g2 | "),
        (together, "g1 | 1 host: VMs labelled set=a are elsewhere"),
    ] {
        check(&Golden { fleet, policy: Policy::pack(), asks, answer });
    }
}

/// What would have to change is told for hosts where one thing is in the way, and changing it is enough.
#[test]
fn remedies_name_the_one_thing_in_the_way() {
    let text = "
        host h1 cpus=8 mem=16G
        host h2 cpus=8 mem=16G cordoned
        host h3 cpus=8 mem=16G cordoned down
        host h4 cpus=2 mem=4G
        vm v1 cpus=2 mem=10G on=h1";
    let mut snapshot = fleet::read("fleet", text.as_bytes(), Policy::spread()).unwrap();
    let request = ask(&mut snapshot, "cpus=4 mem=8G");
    let told: Vec<String> = crate::remedies(&snapshot, &request, 9)
        .into_iter()
        .map(|remedy| format!("{}: {}", snapshot.host(remedy.host).name, remedy.text))
        .collect();
    assert_eq!(told, ["h2: cordoned", "h1: not enough memory (need 8192 MiB, free 6144 MiB)"]);
}

/// The members of a batch know of each other: those that share a host open one that takes all of them.
#[test]
fn a_batch_that_shares_a_host_finds_one_for_all() {
    let text = "host small cpus=8 mem=16G\nhost large cpus=32 mem=64G\nvm v1 cpus=2 mem=2G on=small";
    let mut snapshot = fleet::read("fleet", text.as_bytes(), Policy::pack()).unwrap();
    let asks = "cpus=4 mem=4G numa=one label=set=s rule=together:set=s@host";
    let requests: Vec<Request> = (0..3).map(|_| ask(&mut snapshot, asks)).collect();
    let seats = batch(&mut snapshot, &mut Placer::new(), &requests);
    assert!(
        seats.iter().all(|seat| seat.is_some_and(|seat| snapshot.host(seat.host).name.as_str() == "large"))
    );
    assert_eq!(fleet::read_demand("test", asks).unwrap().numa, Numa::One);
}
