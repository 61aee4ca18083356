//! P1: one decision at 1,000, 10,000 and 100,000 hosts, 80 % full, three in ten requests with rules; against asking every
//! host with the same filters and scores.

use dunlin_scheduler::filter::refuse;
use dunlin_scheduler::score::score;
use dunlin_scheduler::simulate::Draw;
use dunlin_scheduler::simulate::fleet::{host_uid, read_demand};
use dunlin_scheduler::snapshot::{Amounts, HostEntry, HostIdx, ProfileIdx, TiesIdx};
use dunlin_scheduler::{Placer, Policy, Request, Snapshot, VmIdx};

use crate::{cpu_seconds, median_and_worst};

/// Decisions timed for each size, after as many again to warm up.
const DECISIONS: usize = 4_000;
/// Full scans timed for each size.
const SCANS: usize = 40;
/// How full the fleets are, percent of the CPUs.
const FULL_PERCENT: u64 = 80;
/// Demands with rules for each host: the groups that rules name then have about ten members in a fleet of any size.
const RULED_PER_HOST: usize = 2;

/// vCPUs and GiB in thousandths, as the mix of the Azure trace has them.
const FLAVOURS: [(u64, u64, u64); 8] = [
    (1, 1_750, 60),
    (2, 3_500, 19),
    (4, 7_000, 10),
    (8, 14_000, 7),
    (1, 750, 2),
    (8, 56_000, 1),
    (4, 28_000, 1),
    (2, 14_000, 1),
];

pub(crate) fn run() -> anyhow::Result<()> {
    println!(
        "| hosts | VMs | full scan us | decision us: median | mean | p99 | without rules | with rules | cheaper |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut medians = Vec::new();
    for hosts in [1_000, 10_000, 100_000] {
        let mut fleet = Fleet::filled(hosts)?;
        let scan = fleet.scan();
        let timed = fleet.decide();
        let times = |ruled: Option<bool>| {
            let of = timed.iter().filter(|(rule, _)| ruled.is_none_or(|ruled| *rule == ruled));
            let mut times: Vec<f64> = of.map(|(_, us)| *us).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let median = |ruled| median_and_worst(times(ruled)).0;
        let (all, plain, ruled) = (median(None), median(Some(false)), median(Some(true)));
        let sorted = times(None);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        let p99 = sorted[sorted.len() * 99 / 100];
        println!(
            "| {hosts} | {} | {scan:.0} | {all:.2} | {mean:.2} | {p99:.1} | {plain:.2} | {ruled:.2} | {:.0}x |",
            fleet.live.len(),
            scan / mean
        );
        medians.push((all, ruled / plain, scan / mean));
    }
    let [_, ten, hundred] = medians[..] else { return Ok(()) };
    println!(
        "\nAt 10,000 hosts {:.0}x cheaper than the scan, by the means (goal >= 10x); by the medians rules",
        ten.2
    );
    println!(
        "cost {:.2}x (goal <= 1.5x), and ten times the hosts {:.2}x (goal <= 1.5x).",
        ten.1,
        hundred.0 / ten.0
    );
    Ok(())
}

struct Fleet {
    snapshot: Snapshot,
    placer: Placer,
    draw: Draw,
    live: Vec<VmIdx>,
    plain: Vec<(ProfileIdx, TiesIdx)>,
    ruled: Vec<(ProfileIdx, TiesIdx)>,
}

impl Fleet {
    fn filled(hosts: usize) -> anyhow::Result<Self> {
        let mut draw = Draw(7);
        let mut snapshot = Snapshot::empty(Policy::pack());
        for number in 0..hosts {
            let (cpus, gib) = [(64, 128), (48, 192), (96, 384), (128, 512)][draw.within(0, 3) as usize];
            let total = Amounts::new(cpus * 1_000, gib * 1_024);
            let mut entry = HostEntry::new(host_uid(number), format!("h{number}").parse()?, total);
            let label = |key: &str, value: String| (key.to_owned(), value);
            entry.labels = [
                label("rack", (number / 20).to_string()),
                label("zone", (number % 3).to_string()),
                label("disk", ["ssd", "hdd"][draw.within(0, 1) as usize].to_owned()),
                label("cpu", format!("gen{}", draw.within(1, 4))),
            ]
            .into();
            entry.nodes = vec![total.part(2); 2];
            snapshot.add_host(&entry);
        }
        let mut fleet = Self {
            snapshot,
            placer: Placer::new(),
            draw,
            live: Vec::new(),
            plain: Vec::new(),
            ruled: Vec::new(),
        };
        fleet.learn()?;
        fleet.fill();
        Ok(fleet)
    }

    /// Every demand there will be, interned.
    fn learn(&mut self) -> anyhow::Result<()> {
        for (cpus, milli_gib, share) in FLAVOURS {
            let size = format!("cpus={cpus} mem={}M", milli_gib * 1_024 / 1_000);
            let plain = self.snapshot.intern(&read_demand("bench", &size)?);
            self.plain.extend(vec![plain; share as usize]);
        }
        let hosts = self.snapshot.host_slots();
        for _ in 0..hosts * RULED_PER_HOST {
            let lot = self.draw.within(1, FLAVOURS.iter().map(|(_, _, share)| share).sum());
            let mut sum = 0;
            let flavour = FLAVOURS.iter().find(|(_, _, share)| {
                sum += share;
                lot <= sum
            });
            let (cpus, milli_gib, _) = flavour.copied().unwrap_or(FLAVOURS[0]);
            let (group, value) = (self.draw.within(1, hosts as u64), self.draw.within(1, 3));
            let rules = match self.draw.within(0, 5) {
                0 => "numa=one".to_owned(),
                1 => "needs=label:disk=ssd".to_owned(),
                2 => format!("needs=label:cpu=gen{}", self.draw.within(1, 4)),
                3 => format!("label=app=g{group} rule=apart:app=g{group}@host"),
                4 => format!("label=set=g{group} rule=together:set=g{group}@rack~50"),
                _ => format!("label=shard{group}=v{value} rule=domain:shard{group}@rack"),
            };
            let size = format!("cpus={cpus} mem={}M", milli_gib * 1_024 / 1_000);
            let ruled = self.snapshot.intern(&read_demand("bench", &format!("{size} {rules}"))?);
            self.ruled.push(ruled);
        }
        Ok(())
    }

    fn request(&mut self) -> (bool, Request) {
        let ruled = self.draw.within(0, 9) < 3;
        let from = if ruled { &self.ruled } else { &self.plain };
        let (profile, ties) = from[self.draw.within(0, from.len() as u64 - 1) as usize];
        let vm = self.snapshot.add_interned(profile, ties);
        (ruled, Request::start(&self.snapshot, vm))
    }

    fn fill(&mut self) {
        let offered: u64 = self.snapshot.hosts().map(|(_, row)| row.total.cpu_milli).sum();
        let mut promised = 0;
        let slots = self.snapshot.host_slots() as u64;
        while promised * 100 < offered * FULL_PERCENT {
            let (_, request) = self.request();
            // Spread by lot: this is not what is measured.
            let mut lots = (0..64).map(|_| HostIdx::of(self.draw.within(0, slots - 1) as usize));
            let Some(host) = lots.find(|host| refuse(&self.snapshot, &request, *host).is_none()) else {
                continue;
            };
            let Some(seat) = dunlin_scheduler::score::seat(&self.snapshot, request.profile, host) else {
                continue;
            };
            self.snapshot.accept(&request, seat);
            promised += self.snapshot.profile(request.profile).amounts.cpu_milli;
            self.live.extend(request.vm);
        }
    }

    /// Mean time of asking every host, microseconds.
    fn scan(&mut self) -> f64 {
        let mut spent = 0.0;
        for _ in 0..SCANS {
            let (_, request) = self.request();
            let began = cpu_seconds();
            let snapshot = &self.snapshot;
            let fitting = snapshot.hosts().filter(|(host, _)| refuse(snapshot, &request, *host).is_none());
            let scored = fitting.map(|(host, _)| {
                (score(snapshot, snapshot.weights(), &request, host), std::cmp::Reverse(host))
            });
            std::hint::black_box(scored.max());
            spent += (cpu_seconds() - began) * 1e6;
            request.vm.into_iter().for_each(|vm| self.snapshot.remove_vm(vm));
        }
        spent / SCANS as f64
    }

    /// Time of each decision, microseconds, and whether it had rules. One comes, one goes.
    fn decide(&mut self) -> Vec<(bool, f64)> {
        let mut times = Vec::new();
        for turn in 0..2 * DECISIONS {
            let (ruled, request) = self.request();
            let began = cpu_seconds();
            let pick = std::hint::black_box(self.placer.place(&self.snapshot, &request));
            let us = (cpu_seconds() - began) * 1e6;
            match pick {
                Some(pick) => {
                    self.snapshot.accept(&request, pick.seat);
                    self.live.extend(request.vm);
                    let gone = self.draw.within(0, self.live.len() as u64 - 1) as usize;
                    let gone = self.live.swap_remove(gone);
                    self.snapshot.remove_vm(gone);
                }
                None => request.vm.into_iter().for_each(|vm| self.snapshot.remove_vm(vm)),
            }
            if turn >= DECISIONS {
                times.push((ruled, us));
            }
        }
        times
    }
}
