//! Room made by few moves, against every way there is.

use proptest::prelude::*;

use super::*;
use crate::Policy;
use crate::simulate::{Draw, fleet};

fn ask(snapshot: &mut Snapshot, text: &str) -> Request {
    let (profile, ties) = snapshot.intern(&fleet::read_demand("test", text).unwrap());
    let vm = snapshot.add_interned(profile, ties);
    Request::start(snapshot, vm)
}

/// The plan in words, wave by wave.
fn told(text: &str, asks: &str) -> String {
    let mut snapshot = fleet::read("fleet", text.as_bytes(), Policy::pack()).unwrap();
    let request = ask(&mut snapshot, asks);
    let Some(plan) = make_room(&mut snapshot, &mut Placer::new(), &request, &Bounds::default()) else {
        return "no way".to_owned();
    };
    let name = |seat: Seat| snapshot.host(seat.host).name.to_string();
    let step = |step: &RoomMove| format!("{}: {} to {}", step.wave, snapshot.vm(step.vm).name, name(step.to));
    let moves: Vec<String> = plan.moves.iter().map(step).collect();
    format!("{}; then {}, for {} MiB", moves.join(", "), name(plan.seat), plan.cost_mib)
}

/// A host that is full makes way for one that is; who stands in the way by a rule goes as well as who takes up room; of two
/// ways the one that sends less.
#[test]
fn a_move_makes_way_for_a_move() {
    let chain = "
        host h1 cpus=64 mem=16G label=disk=ssd
        host h2 cpus=64 mem=12G
        host h3 cpus=64 mem=4G
        vm fixed1 cpus=1 mem=8G on=h1 pinned
        vm fixed2 cpus=1 mem=4G on=h2 pinned
        vm a cpus=1 mem=8G on=h1
        vm b cpus=1 mem=4G on=h2";
    let ssd = "cpus=1 mem=8G needs=label:disk=ssd";
    assert_eq!(told(chain, ssd), "1: b to h3, 2: a to h2; then h1, for 14336 MiB");
    assert_eq!(told(&chain.replace("mem=4G\n", "mem=3G\n"), ssd), "no way");
    let apart = "
        host h1 cpus=8 mem=16G label=disk=ssd
        host h2 cpus=8 mem=16G
        vm db cpus=1 mem=1G on=h1 label=app=db";
    let rule = "cpus=1 mem=1G rule=apart:app=db@host needs=label:disk=ssd";
    assert_eq!(told(apart, rule), "1: db to h2; then h1, for 2048 MiB");
    let cheaper = format!("{chain}\nhost h4 cpus=64 mem=8G");
    assert_eq!(told(&cheaper, ssd), "1: a to h4; then h1, for 9216 MiB");
}

/// The least that any sequence of so many moves costs, each to a place that is free when it starts; a VM may move twice.
fn brute(snapshot: &mut Snapshot, request: &Request, left: u32, spent: u64, best: &mut Option<u64>) {
    if best.is_some_and(|best| spent >= best) {
        return;
    }
    let hosts: Vec<HostIdx> = snapshot.hosts().map(|(host, _)| host).collect();
    if hosts.iter().any(|host| refuse(snapshot, request, *host).is_none()) {
        *best = Some(spent);
        return;
    }
    if left == 0 {
        return;
    }
    let movable = snapshot.vms().filter_map(|(vm, row)| row.at.filter(|_| row.movable).map(|at| (vm, at)));
    for (vm, from) in movable.collect::<Vec<_>>() {
        let cost = move_cost_mib(snapshot, vm, MOVE_OVERHEAD_MIB);
        for host in &hosts {
            let to_move = Request::to_move(snapshot, vm);
            if refuse(snapshot, &to_move, *host).is_some() {
                continue;
            }
            let Some(to) = seat(snapshot, to_move.profile, *host) else { continue };
            snapshot.put(vm, to);
            brute(snapshot, request, left - 1, spent + cost, best);
            snapshot.put(vm, from);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever any moves of that many let the VM in, a plan is found, and none of that many moves costs less. It runs wave
    /// by wave, everything in a wave at once, and the snapshot is left as it was.
    #[test]
    fn what_brute_force_finds_is_found_as_cheap(seed: u64, hosts in 2_u64..5, vms in 2_usize..7) {
        let mut draw = Draw(seed);
        let label = |draw: &mut Draw| ["", " label=disk=ssd"][usize::try_from(draw.within(0, 1)).unwrap()];
        let mut text = String::new();
        for host in 0..hosts {
            let (cpus, gib) = (draw.within(3, 8), draw.within(3, 8));
            text += &format!("host h{host} cpus={cpus} mem={gib}G{}\n", label(&mut draw));
        }
        let mut snapshot = fleet::read("fleet", text.as_bytes(), Policy::spread()).unwrap();
        let mut placer = Placer::new();
        for _ in 0..vms {
            let request = ask(&mut snapshot, &format!("cpus={} mem={}G", draw.within(1, 3), draw.within(1, 4)));
            match placer.place(&snapshot, &request) {
                Some(pick) => snapshot.accept(&request, pick.seat),
                None => snapshot.remove_vm(request.vm.unwrap()),
            }
        }
        let needs = ["", " needs=label:disk=ssd"][usize::try_from(draw.within(0, 1)).unwrap()];
        let size = format!("cpus={} mem={}G{needs}", draw.within(1, 6), draw.within(2, 7));
        let request = ask(&mut snapshot, &size);
        if placer.place(&snapshot, &request).is_some() {
            return Ok(());
        }
        let mut best = None;
        brute(&mut snapshot.clone(), &request, CHAIN_MOVES_MAX, 0, &mut best);
        let before: Vec<_> = snapshot.vms().map(|(vm, row)| (vm, row.at, row.held)).collect();
        let plan = make_room(&mut snapshot, &mut placer, &request, &Bounds::default());
        prop_assert_eq!(before, snapshot.vms().map(|(vm, row)| (vm, row.at, row.held)).collect::<Vec<_>>());
        let long = plan.as_ref().is_some_and(|plan| plan.moves.len() > CHAIN_MOVES_MAX as usize);
        match (&plan, best) {
            (Some(plan), Some(best)) if long => prop_assert!(plan.cost_mib < best),
            _ if long => {}
            (plan, best) => prop_assert_eq!(plan.as_ref().map(|plan| plan.cost_mib), best),
        }
        let Some(plan) = plan else { return Ok(()) };
        for wave in plan.moves.chunk_by(|a, b| a.wave == b.wave) {
            for step in wave {
                let to_move = Request::to_move(&snapshot, step.vm);
                prop_assert_eq!(refuse(&snapshot, &to_move, step.to.host), None);
                snapshot.hold(step.vm, step.to);
            }
            wave.iter().for_each(|step| snapshot.move_to(step.vm, step.to));
        }
        prop_assert_eq!(refuse(&snapshot, &request, plan.seat.host), None);
    }
}
