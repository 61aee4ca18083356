//! P6: a day of measured load (bitbrains, drawn by lot to a larger fleet) on unequal hosts: by pain, against no balancing and
//! against a balancer that lowers the standard deviation every five minutes.

use anyhow::Context;
use dunlin_model::{HostId, VmId};
use dunlin_scheduler::balance::Eagerness;
use dunlin_scheduler::budget::Budgets;
use dunlin_scheduler::dice::Dice;
use dunlin_scheduler::replay::trace::{DAY_SLOTS, LoadTrace};
use dunlin_scheduler::replay::{Report, Rule, Series, replay};
use dunlin_scheduler::snapshot::{Amounts, Demand, HostEntry, Snapshot, VmEntry};
use dunlin_scheduler::{Policy, Request, place};

use crate::traces;

/// VMs, utilisation of the hosts in percent, seed: loose and tight, small and large.
const DAYS: [(usize, u64, u64); 5] =
    [(600, 55, 1), (600, 55, 2), (1_000, 45, 3), (2_000, 55, 1), (2_000, 65, 2)];

/// Where the rival stops, ppm of a host: it is judged by the one of these that leaves least unmet.
const TARGETS_PPM: [u64; 3] = [200_000, 100_000, 50_000];

pub(crate) fn run() -> anyhow::Result<()> {
    let files = ["bitbrains/vms.csv", "bitbrains/cpu.csv.gz", "bitbrains/solvinity-topology.json"];
    let mut texts = Vec::new();
    for file in files {
        let Some(bytes) = traces::read(file)? else { return Ok(()) };
        texts.push(String::from_utf8(bytes)?);
    }
    let trace = LoadTrace::read(("vms.csv", &texts[0]), ("cpu.csv", &texts[1]))?;
    let shapes = shapes(&texts[2])?;
    println!(
        "| VMs on hosts | busy | rule | unmet CPU s | of which seen | unmet | moves | in circles | to none | to the rival |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (count, percent, seed) in DAYS {
        let (fleet, series) = drawn(&trace, &shapes, count, percent, seed)?;
        let play = |rule| replay(&fleet, &series, rule, &Budgets::default());
        let none = play(Rule::None);
        let rivals = TARGETS_PPM.map(|target_ppm| (target_ppm, play(Rule::Deviation { target_ppm })));
        let rival = rivals.iter().map(|(_, report)| report).min_by_key(|report| report.unmet_cpu_s);
        let rival = rival.context("there are targets")?.clone();
        let size = format!("| {} on {} | {percent} %", series.len(), fleet.hosts().count());
        let tell = |rule: &str, report: &Report| {
            let seen = |report: &Report| report.unmet_cpu_s - report.unseen_cpu_s;
            let ratio = |other: &Report| {
                let unmet = seen(report) as f64 / seen(other).max(1) as f64;
                let moves = report.moves as f64 / other.moves.max(1) as f64;
                if other.moves == 0 {
                    format!("{unmet:.3}")
                } else {
                    format!("{unmet:.2}, {moves:.2} x moves")
                }
            };
            println!(
                "{size} | {rule} | {} | {} | {:.3} % | {} | {} | {} | {} |",
                report.unmet_cpu_s,
                seen(report),
                report.unmet_ppm() as f64 / 1e4,
                report.moves,
                report.circles,
                ratio(&none),
                ratio(&rival),
            );
        };
        tell("none", &none);
        for (target_ppm, report) in &rivals {
            tell(&format!("deviation to {} %", target_ppm / 10_000), report);
        }
        for level in [3, 4] {
            let level = Eagerness::try_from(level)?;
            tell(&format!("pain, level {}", u8::from(level)), &play(Rule::Pain { level }));
        }
    }
    println!(
        "\n\"Seen\" leaves out the first five minutes, before any rule has a sample: they are the same for all. The rival is the deviation target with the least unmet demand."
    );
    println!(
        "Goals: unmet at most 0.1 of none and 0.5 of the rival with a third of its moves; no VM moves A-B-A within an hour."
    );
    Ok(())
}

/// CPUs and MiB of the hosts there are.
fn shapes(json: &str) -> anyhow::Result<Vec<(u64, u64)>> {
    let value: serde_json::Value = serde_json::from_str(json)?;
    let clusters = value["clusters"].as_array().context("clusters")?;
    let hosts = clusters.iter().filter_map(|cluster| cluster["hosts"].as_array()).flatten();
    let shape = |host: &serde_json::Value| {
        let cpus = host["cpu"]["coreCount"].as_u64()?;
        let bytes: u64 = host["memory"]["memorySize"].as_str()?.split(' ').next()?.parse().ok()?;
        Some((cpus, bytes >> 20))
    };
    hosts.map(|host| shape(host).context("a host without CPUs or memory")).collect()
}

fn uid(number: usize) -> HostId {
    let uid: VmId = format!("{number:032x}").parse().expect("32 digits are a uuid");
    HostId(uid.0)
}

/// VMs and hosts by lot: hosts until the mean demand fills `percent` of them. VMs are placed as the product places them,
/// by what they were promised, since nothing has been measured yet.
fn drawn(
    trace: &LoadTrace,
    shapes: &[(u64, u64)],
    count: usize,
    percent: u64,
    seed: u64,
) -> anyhow::Result<(Snapshot, Series)> {
    let vms = trace.draw(count, seed);
    let day = |drawn: &dunlin_scheduler::replay::trace::Drawn| &trace.vms[drawn.vm].days[drawn.day];
    let mean = |day: &Vec<u32>| day.iter().map(|used| u64::from(*used)).sum::<u64>() / DAY_SLOTS as u64;
    let demand: u64 = vms.iter().map(|vm| mean(day(vm))).sum();
    let mut fleet = Snapshot::empty(Policy { cpu_overcommit_percent: 600, ..Policy::spread() });
    let mut dice = Dice::new(seed.wrapping_add(1));
    let mut capacity = 0;
    while capacity * percent / 100 < demand {
        let (cpus, mem_mib) = shapes[dice.below(shapes.len())];
        let physical = Amounts::new(cpus * 1_000, mem_mib);
        let number = fleet.host_slots() + 1;
        let total = fleet.policy.promised(physical);
        let name = format!("host-{number}").parse()?;
        fleet.add_host(&HostEntry { physical, ..HostEntry::new(uid(number), name, total) });
        capacity += physical.cpu_milli;
    }
    let mut series = Series::new();
    for (number, drawn) in vms.iter().enumerate() {
        let vm = &trace.vms[drawn.vm];
        let demand = Demand { amounts: Amounts::new(vm.cpus * 1_000, vm.mem_mib), ..Demand::default() };
        let name = format!("vm-{number}").parse()?;
        let vm = fleet.add_vm(&VmEntry::new(VmId(uid(1_000_000 + number).0), name, demand));
        match place(&fleet, &Request::start(&fleet, vm)).seat() {
            Some(seat) => {
                fleet.put(vm, seat);
                series.insert(vm, day(drawn).clone());
            }
            None => fleet.remove_vm(vm),
        }
    }
    Ok((fleet, series))
}
