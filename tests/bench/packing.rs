//! P3: how many equal hosts a real trace needs so that nobody is turned away, against first-fit, best-fit and the linear
//! programme's lower bound at the worst moment.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use dunlin_scheduler::simulate::fleet::host_uid;
use dunlin_scheduler::simulate::{Options, Trace, azure, replay};
use dunlin_scheduler::snapshot::{Amounts, HostEntry};
use dunlin_scheduler::{Policy, Snapshot};

use crate::cutting_stock::{Shape, bound};
use crate::traces;

/// A policy of ours: its name, how it is made, and how many VMs it may move a day.
type Ours = (&'static str, fn() -> Policy, u32);

/// Lifetimes are known to their bins and drawn from them by this.
const SEED: u64 = 2017;
/// Moments of the greatest volume for which the bound is computed.
const PEAKS: usize = 8;
/// Moves allowed in a day, per mille of the VMs that live.
const MOVES_PERMILLE: u32 = 30;

pub(crate) fn run() -> anyhow::Result<()> {
    let Some(bytes) = traces::read("azure2017/azure2017-dev.csv.gz")? else { return Ok(()) };
    let trace = azure::read("azure2017-dev.csv", &bytes, SEED)?;
    println!("| host | who | hosts for 0 rejects | over the bound | moves | rejects at the bound |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (cpus, gib) in [(64, 128), (48, 192)] {
        let least = lower_bound(&trace, (cpus, gib * 4));
        println!("| {cpus}c/{gib}G | LP bound | {least:.1} | | | |");
        let floor = least.ceil() as usize;
        let tell = |who: &str, run: &dyn Fn(usize) -> (u64, u64)| {
            let (mut low, mut high) = (floor, floor + floor / 5);
            while low < high {
                let middle = usize::midpoint(low, high);
                if run(middle).0 == 0 { high = middle } else { low = middle + 1 }
            }
            let over = (high as f64 / least - 1.0) * 100.0;
            println!(
                "| {cpus}c/{gib}G | {who} | {high} | +{over:.2} % | {} | {} |",
                run(high).1,
                run(floor).0
            );
        };
        tell("first-fit", &|hosts| (greedy(&trace, hosts, (cpus, gib * 4), |_, _| 0), 0));
        tell("best-fit", &|hosts| {
            (greedy(&trace, hosts, (cpus, gib * 4), |left, host| left.0 * host.1 + left.1 * host.0), 0)
        });
        let ours: [Ours; 4] = [
            ("dunlin pack", Policy::pack, 0),
            ("dunlin pack, <= 3 % of VMs moved a day", Policy::pack, MOVES_PERMILLE),
            ("dunlin pack-slots", Policy::pack_slots, 0),
            ("dunlin pack-slots, <= 3 % of VMs moved a day", Policy::pack_slots, MOVES_PERMILLE),
        ];
        for (who, policy, moves) in ours {
            tell(who, &|hosts| {
                let options = Options { moves_per_day_permille: moves, batches: false, ..Options::default() };
                let report =
                    replay(equal_hosts(policy(), hosts, cpus as u64, gib as u64), &trace, &options).0;
                assert_eq!(report.violations, 0, "no rule is broken");
                (report.rejected, report.moves)
            });
        }
    }
    println!("\nGoals: at most half of best-fit's excess without moves; at most +1 % with them.");
    Ok(())
}

fn equal_hosts(policy: Policy, count: usize, cpus: u64, gib: u64) -> Snapshot {
    let mut snapshot = Snapshot::empty(policy);
    for number in 0..count {
        let name = format!("h{number}").parse().expect("a letter and a number are a name");
        snapshot.add_host(&HostEntry::new(host_uid(number), name, Amounts::new(cpus * 1_000, gib * 1_024)));
    }
    snapshot
}

/// CPUs and quarters of a GiB: every size of the trace is whole in these.
fn shape(amounts: Amounts) -> Shape {
    ((amounts.cpu_milli / 1_000) as usize, (amounts.mem_mib / 256) as usize)
}

/// Comings and goings in order; at one moment goings first. +1 or -1 of a demand.
fn steps(trace: &Trace) -> Vec<(u64, bool, usize)> {
    let mut steps: Vec<(u64, bool, usize)> = Vec::new();
    for (at, arrival) in trace.arrivals.iter().enumerate() {
        steps.push((arrival.at_s, true, at));
        steps.extend(arrival.leaves_s.map(|leaves_s| (leaves_s, false, at)));
    }
    steps.sort_unstable();
    steps
}

fn lower_bound(trace: &Trace, host: Shape) -> f64 {
    let shapes: Vec<Shape> = trace.demands.iter().map(|demand| shape(demand.amounts)).collect();
    let mut counts = vec![0.0; shapes.len()];
    let mut peaks: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let mut sum = (0, 0);
    for (_, comes, at) in steps(trace) {
        let demand = trace.arrivals[at].demand;
        let (cpus, quarters) = shapes[demand];
        if comes {
            counts[demand] += 1.0;
            sum = (sum.0 + cpus, sum.1 + quarters);
        } else {
            counts[demand] -= 1.0;
            sum = (sum.0 - cpus, sum.1 - quarters);
        }
        let volume = (sum.0 * host.1).max(sum.1 * host.0) as u64;
        if peaks.len() < PEAKS || peaks.first_key_value().is_some_and(|(least, _)| volume > *least) {
            peaks.insert(volume, counts.clone());
            if peaks.len() > PEAKS {
                peaks.pop_first();
            }
        }
    }
    peaks.values().map(|counts| bound(&shapes, counts, host)).fold(0.0, f64::max)
}

/// Rejects of a plain greedy rule: the fitting host with the least, the first among equals.
fn greedy(trace: &Trace, hosts: usize, host: Shape, measure: fn(Shape, Shape) -> usize) -> u64 {
    let mut free = vec![host; hosts];
    let mut leaving: BinaryHeap<Reverse<(u64, usize, Shape)>> = BinaryHeap::new();
    let mut rejected = 0;
    for arrival in &trace.arrivals {
        while let Some(Reverse((leaves_s, at, shape))) = leaving.peek().copied() {
            if leaves_s > arrival.at_s {
                break;
            }
            leaving.pop();
            free[at] = (free[at].0 + shape.0, free[at].1 + shape.1);
        }
        let need = shape(trace.demands[arrival.demand].amounts);
        let fitting = free.iter().enumerate().filter(|(_, free)| free.0 >= need.0 && free.1 >= need.1);
        let best = fitting.map(|(at, free)| (measure((free.0 - need.0, free.1 - need.1), host), at)).min();
        let Some((_, at)) = best else {
            rejected += 1;
            continue;
        };
        free[at] = (free[at].0 - need.0, free[at].1 - need.1);
        leaving.extend(arrival.leaves_s.map(|leaves_s| Reverse((leaves_s, at, need))));
    }
    rejected
}
