//! Ganeti's cluster score, kept up to date move by move.
//!
//! The score is a weighted sum: standard deviations over the online nodes (free memory, vCPU ratio, measured loads, ...) and
//! counts (instances on nodes that lack memory, on nodes that are offline, beside others they should avoid). Where an
//! instance on shared storage moves, some of these columns change; a column is `base + sum of u / scale` over a node's
//! instances, so one move costs two additions per column and one square root. What no move can change is added up once.
//!
//! Not computed: the terms of location tags (`htools:nlocation`, `htools:desiredlocation`). A fleet without such tags gets
//! the score `hbal` prints.

use std::collections::BTreeMap;

use crate::ganeti::text::{Instance, NodeRole, TextFleet};
use crate::input::{BadInput, Line, shown};

/// Columns a move can change: memory, vCPUs, and four loads; the first two once more with promised instances.
pub(super) const COLUMNS: usize = 8;

/// The column of the disk load.
const DISK_LOAD: usize = 6;

/// Weight of the spread of free memory, of vCPUs, and of each again with promised ("forthcoming") instances.
const WEIGHT_SHARE: f64 = 0.5;
/// Weight of the spread of each measured load.
const WEIGHT_LOAD: f64 = 1.0;
/// Weight of an instance on a node that lacks memory.
const WEIGHT_SHORT: f64 = 1.0;
/// Weight of an instance on an offline node: 4 for being there at all and 16 for running there.
const WEIGHT_OFFLINE: f64 = 20.0;
/// Weight of an instance that mirrors to an offline node.
const WEIGHT_OFFLINE_MIRROR: f64 = 4.0;
/// Weight of a pair of instances that should be apart.
const WEIGHT_TAGS: f64 = 2.0;
/// Weight of the memory kept for mirrored instances: its spread, and a quarter of its sum.
const WEIGHT_RESERVED: (f64, f64) = (1.0, 0.25);

/// What an instance was measured to use: CPU, memory, disk, network, each a share of what a node has.
pub type Load = [f64; 4];

/// Measured loads by instance name. Ganeti counts an instance it knows no load of as 1 in each.
pub type Loads = BTreeMap<String, Load>;

/// Reads the file of `hbal -U`: `name cpu memory disk network`, one instance a line.
///
/// # Errors
/// The first line that is not understood.
pub fn read_loads(file: &str, text: &str) -> Result<Loads, BadInput> {
    let mut loads = Loads::new();
    for line in Line::all(file, text).filter(|line| !line.text.trim().is_empty()) {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        let [name, values @ ..] = words.as_slice() else { continue };
        let [cpu, memory, disk, network] = values else {
            return Err(line.refuse("load", format!("{} numbers; allowed: 4 after the name", values.len())));
        };
        let number = |field: &str, text: &str| match text.parse::<f64>() {
            Ok(value) if value.is_finite() && (0.0..=1e9).contains(&value) => Ok(value),
            _ => Err(line.refuse(field, format!("{} is not a number from 0 to 1e9", shown(text)))),
        };
        let load = [
            number("cpu", cpu)?,
            number("memory", memory)?,
            number("disk", disk)?,
            number("network", network)?,
        ];
        loads.insert((*name).to_owned(), load);
    }
    Ok(loads)
}

/// What the score looks at besides the fleet itself.
#[derive(Clone, Copy, Debug)]
pub enum Measured<'l> {
    /// Nothing: `hbal --ignore-dynu`.
    Ignored,
    /// Loads; an instance that is not named counts as 1 in each: `hbal -U FILE`, or no option at all with an empty map.
    Loads(&'l Loads),
}

/// One node, as far as moves change it.
#[derive(Clone, Debug)]
pub(super) struct NodeCell {
    pub(super) online: bool,
    /// The value of each column.
    pub(super) x: [f64; COLUMNS],
    /// How much of a column one unit of an instance is.
    pub(super) inverse: [f64; COLUMNS],
    /// Memory nobody has, MiB; negative when oversold.
    pub(super) mem_free: i64,
    /// Memory kept for mirrored instances, MiB.
    reserved: i64,
    vcpus: u64,
    /// vCPUs that may be promised.
    vcpus_most: u64,
    /// Instances that run here, and all that have a disk here.
    residents: u32,
}

/// One instance of the group.
#[derive(Clone, Debug)]
pub(super) struct VmCell {
    /// Its index in the file.
    pub(super) instance: usize,
    pub(super) movable: bool,
    /// Where it runs: an index of [`Score::nodes`].
    pub(super) at: usize,
    /// What it adds to each column.
    pub(super) unit: [f64; COLUMNS],
    mem: i64,
    vcpus: u64,
    tags: Vec<u32>,
}

/// The score of one node group, and all that is needed to change it by moves.
#[derive(Clone, Debug)]
pub struct Score {
    pub(super) columns: usize,
    pub(super) weight: [f64; COLUMNS],
    /// Sum and sum of squares of each column over the online nodes.
    pub(super) sum: [f64; COLUMNS],
    pub(super) squares: [f64; COLUMNS],
    /// One over the number of online nodes.
    pub(super) share: f64,
    pub(super) nodes: Vec<NodeCell>,
    pub(super) vms: Vec<VmCell>,
    /// Indices of the nodes in the file.
    pub(super) places: Vec<usize>,
    /// How many instances of each node carry each exclusive tag: node times tags plus tag.
    tagged: Vec<u16>,
    tags: usize,
    /// What no move changes.
    fixed: f64,
    /// The counts: offline, short of memory, tags.
    pub(super) counted: f64,
}

impl Score {
    /// The score of one group of the fleet.
    #[must_use]
    pub fn new(fleet: &TextFleet, group: usize, measured: Measured<'_>) -> Self {
        let places: Vec<usize> =
            (0..fleet.nodes.len()).filter(|at| fleet.nodes[*at].group == group).collect();
        let ratio = fleet.vcpu_ratio_milli(group);
        let local = Local::new(fleet);
        let mut score = Self {
            columns: 0,
            weight: [0.0; COLUMNS],
            sum: [0.0; COLUMNS],
            squares: [0.0; COLUMNS],
            share: 0.0,
            nodes: places.iter().map(|at| node_cell(fleet, &local, *at, ratio)).collect(),
            vms: Vec::new(),
            places,
            tagged: Vec::new(),
            tags: 0,
            fixed: 0.0,
            counted: 0.0,
        };
        score.seat(fleet, measured);
        score.keep_columns();
        score.fixed = local.fixed(fleet, &score.places, group);
        score.recount();
        score
    }

    /// Seats every instance of the group on its node.
    fn seat(&mut self, fleet: &TextFleet, measured: Measured<'_>) {
        let prefixes: Vec<&str> =
            fleet.tags.iter().filter_map(|tag| tag.strip_prefix("htools:iextags:")).collect();
        let mut known: BTreeMap<&str, u32> = BTreeMap::new();
        for (instance, entry) in fleet.instances.iter().enumerate() {
            let Ok(at) = self.places.binary_search(&entry.primary) else { continue };
            let exclusive = |tag: &&String| prefixes.iter().any(|prefix| tag.starts_with(prefix));
            let mut tags: Vec<u32> = Vec::new();
            for tag in entry.tags.iter().filter(exclusive) {
                let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
                tags.push(*known.entry(tag).or_insert(next));
            }
            self.vms.push(vm_cell(instance, entry, at, tags, measured));
        }
        self.tags = known.len();
        self.tagged = vec![0; self.nodes.len() * self.tags];
        let mut promised: Vec<i64> =
            self.places.iter().map(|at| signed(fleet.nodes[*at].free_mem_mib)).collect();
        for vm in &self.vms {
            let node = &mut self.nodes[vm.at];
            for column in 2..COLUMNS {
                node.x[column] += vm.unit[column] * node.inverse[column];
            }
            node.mem_free -= vm.mem;
            node.vcpus += vm.vcpus;
            node.residents += 1;
            // A mirror writes what the instance writes.
            let entry = &fleet.instances[vm.instance];
            let mirror = entry.secondary.filter(|_| entry.template == "drbd");
            if let Some(at) = mirror.and_then(|mirror| self.places.binary_search(&mirror).ok()) {
                self.nodes[at].x[DISK_LOAD] += vm.unit[DISK_LOAD];
            }
            // The free memory a node reports does not know of instances that are off or only promised.
            if !fleet.instances[vm.instance].is_on() {
                promised[vm.at] -= signed(fleet.instances[vm.instance].mem_mib);
            }
            for tag in &vm.tags {
                self.tagged[vm.at * self.tags + *tag as usize] += 1;
            }
        }
        for ((cell, at), promised) in self.nodes.iter_mut().zip(&self.places).zip(promised) {
            // Memory that is gone without an instance to show for it is not there to be given.
            cell.mem_free = cell.mem_free.min(signed(fleet.nodes[*at].free_mem_mib));
            cell.x[0] = real(cell.mem_free) * cell.inverse[0];
            cell.x[1] = real(promised) * cell.inverse[1];
        }
    }

    /// Joins columns that are equal on every node, and drops those nobody adds to: fewer square roots per move.
    fn keep_columns(&mut self) {
        let weights = [
            WEIGHT_SHARE,
            WEIGHT_SHARE,
            WEIGHT_SHARE,
            WEIGHT_SHARE,
            WEIGHT_LOAD,
            WEIGHT_LOAD,
            WEIGHT_LOAD,
            WEIGHT_LOAD,
        ];
        let same = |a: usize, b: usize| {
            self.nodes.iter().all(|node| {
                node.x[a].to_bits() == node.x[b].to_bits()
                    && node.inverse[a].to_bits() == node.inverse[b].to_bits()
            }) && self.vms.iter().all(|vm| vm.unit[a].to_bits() == vm.unit[b].to_bits())
        };
        let mut kept: Vec<(usize, f64)> = Vec::new();
        for (column, weight) in weights.into_iter().enumerate() {
            match kept.iter_mut().find(|(first, _)| same(*first, column)) {
                Some((_, sum)) => *sum += weight,
                None => kept.push((column, weight)),
            }
        }
        kept.retain(|(column, _)| self.nodes.iter().any(|node| node.x[*column] != 0.0));
        self.columns = kept.len();
        let pick = |from: &[f64; COLUMNS]| {
            let mut to = [0.0; COLUMNS];
            for (slot, (column, _)) in to.iter_mut().zip(&kept) {
                *slot = from[*column];
            }
            to
        };
        for node in &mut self.nodes {
            (node.x, node.inverse) = (pick(&node.x), pick(&node.inverse));
        }
        for vm in &mut self.vms {
            vm.unit = pick(&vm.unit);
        }
        for (slot, (_, weight)) in self.weight.iter_mut().zip(&kept) {
            *slot = *weight;
        }
    }

    /// Sums and counts anew, which also removes what rounding has left in them.
    pub(super) fn recount(&mut self) {
        (self.sum, self.squares, self.counted) = ([0.0; COLUMNS], [0.0; COLUMNS], 0.0);
        let mut online = 0_i64;
        for (at, node) in self.nodes.iter().enumerate() {
            if !node.online {
                self.counted += WEIGHT_OFFLINE * f64::from(node.residents);
                continue;
            }
            online += 1;
            for column in 0..self.columns {
                self.sum[column] += node.x[column];
                self.squares[column] += node.x[column] * node.x[column];
            }
            self.counted += WEIGHT_SHORT * node.short(node.mem_free, node.residents);
            let tagged = &self.tagged[at * self.tags..(at + 1) * self.tags];
            let pairs: u32 = tagged.iter().map(|count| u32::from(count.saturating_sub(1))).sum();
            self.counted += WEIGHT_TAGS * f64::from(pairs);
        }
        self.share = 1.0 / real(online.max(1));
    }

    /// What `hbal -l 0` prints for this group.
    #[must_use]
    pub fn value(&self) -> f64 {
        let spread = |column| self.weight[column] * self.deviation(self.sum[column], self.squares[column]);
        let spreads: f64 = (0..self.columns).map(spread).sum();
        self.fixed + self.counted + spreads
    }

    pub(super) fn deviation(&self, sum: f64, squares: f64) -> f64 {
        let mean = sum * self.share;
        (squares * self.share - mean * mean).max(0.0).sqrt()
    }

    /// May the instance run there? Not where it is.
    pub(super) fn fits(&self, vm: usize, to: usize) -> bool {
        let (vm, node) = (&self.vms[vm], &self.nodes[to]);
        let left = node.mem_free - vm.mem;
        vm.at != to
            && node.online
            && left > 0
            && (left > node.reserved || node.mem_free <= node.reserved)
            && node.vcpus + vm.vcpus <= node.vcpus_most
            && vm.tags.iter().all(|tag| self.tagged[to * self.tags + *tag as usize] == 0)
    }

    /// What the score would be with the instance there. Says nothing about whether it fits.
    pub(super) fn after(&self, vm: usize, to: usize) -> f64 {
        let from = &self.nodes[self.vms[vm].at];
        let (vm, to) = (&self.vms[vm], &self.nodes[to]);
        let mut value = self.fixed + self.counted + self.counted_by(vm, from);
        for column in 0..self.columns {
            let unit = vm.unit[column];
            let gone = if from.online { -unit * from.inverse[column] } else { 0.0 };
            let come = unit * to.inverse[column];
            let sum = self.sum[column] + gone + come;
            let squares = self.squares[column]
                + gone * (2.0 * from.x[column] + gone)
                + come * (2.0 * to.x[column] + come);
            value += self.weight[column] * self.deviation(sum, squares);
        }
        value
    }

    /// May the two change places? Not those tied by tags, nor from a node where counts would change: those move alone.
    pub(super) fn may_exchange(&self, vm: usize, other: usize) -> bool {
        let (vm, other) = (&self.vms[vm], &self.vms[other]);
        let room = |node: &NodeCell, come: &VmCell, go: &VmCell| {
            node.online
                && node.mem_free > node.reserved
                && node.mem_free - come.mem + go.mem > node.reserved.max(0)
                && node.vcpus + come.vcpus <= node.vcpus_most + go.vcpus
        };
        vm.tags.is_empty()
            && other.tags.is_empty()
            && room(&self.nodes[other.at], vm, other)
            && room(&self.nodes[vm.at], other, vm)
    }

    /// What the score would be with the two in each other's place.
    pub(super) fn exchanged(&self, vm: usize, other: usize) -> f64 {
        let (vm, other) = (&self.vms[vm], &self.vms[other]);
        let (from, to) = (&self.nodes[vm.at], &self.nodes[other.at]);
        let mut value = self.fixed + self.counted;
        for column in 0..self.columns {
            let unit = vm.unit[column] - other.unit[column];
            let (gone, come) = (-unit * from.inverse[column], unit * to.inverse[column]);
            let sum = self.sum[column] + gone + come;
            let squares = self.squares[column]
                + gone * (2.0 * from.x[column] + gone)
                + come * (2.0 * to.x[column] + come);
            value += self.weight[column] * self.deviation(sum, squares);
        }
        value
    }

    /// How the counts change when the instance leaves its node for one it fits on.
    fn counted_by(&self, vm: &VmCell, from: &NodeCell) -> f64 {
        if !from.online {
            return -WEIGHT_OFFLINE;
        }
        let before = from.short(from.mem_free, from.residents);
        let short =
            if before > 0.0 { from.short(from.mem_free + vm.mem, from.residents - 1) - before } else { 0.0 };
        let clashes =
            vm.tags.iter().filter(|tag| self.tagged[vm.at * self.tags + **tag as usize] > 1).count();
        WEIGHT_SHORT * short - WEIGHT_TAGS * real(i64::try_from(clashes).unwrap_or(0))
    }

    /// Moves the instance. The caller has asked [`Self::fits`].
    pub(super) fn apply(&mut self, index: usize, to: usize) {
        let at = self.vms[index].at;
        self.counted += self.counted_by(&self.vms[index], &self.nodes[at]);
        let vm = &mut self.vms[index];
        for (place, sign) in [(at, -1.0), (to, 1.0)] {
            let node = &mut self.nodes[place];
            for column in 0..self.columns {
                let change = sign * vm.unit[column] * node.inverse[column];
                if node.online {
                    self.sum[column] += change;
                    self.squares[column] += change * (2.0 * node.x[column] + change);
                }
                node.x[column] += change;
            }
        }
        self.nodes[at].mem_free += vm.mem;
        self.nodes[at].vcpus -= vm.vcpus;
        self.nodes[at].residents -= 1;
        // A node that lacks memory already takes part of the blame for the newcomer, too.
        let node = &mut self.nodes[to];
        let before = node.short(node.mem_free, node.residents);
        node.mem_free -= vm.mem;
        node.vcpus += vm.vcpus;
        node.residents += 1;
        self.counted += WEIGHT_SHORT * (node.short(node.mem_free, node.residents) - before);
        for tag in &vm.tags {
            self.tagged[at * self.tags + *tag as usize] -= 1;
            self.tagged[to * self.tags + *tag as usize] += 1;
        }
        vm.at = to;
    }
}

impl NodeCell {
    /// The instances that count as short of memory: all or none.
    fn short(&self, mem_free: i64, residents: u32) -> f64 {
        if mem_free <= self.reserved { f64::from(residents) } else { 0.0 }
    }
}

/// A node without its instances.
fn node_cell(fleet: &TextFleet, local: &Local, at: usize, ratio_milli: u64) -> NodeCell {
    let node = &fleet.nodes[at];
    let mem_free = signed(node.total_mem_mib) - signed(node.node_mem_mib);
    let per_mem = 1.0 / real(signed(node.total_mem_mib.max(1)));
    let per_cpu = 1.0 / (real(signed(node.cpus.max(1))) * real(signed(node.cpu_speed_milli)) / 1_000.0);
    let own_cpu = real(signed(node.node_cpus)) * per_cpu;
    NodeCell {
        online: node.role != NodeRole::Offline,
        x: [0.0, 0.0, own_cpu, own_cpu, 0.0, 0.0, 0.0, 0.0],
        inverse: [per_mem, per_mem, per_cpu, per_cpu, 1.0, 1.0, 1.0, 1.0],
        mem_free,
        reserved: signed(local.reserved_mib[at]),
        vcpus: node.node_cpus,
        vcpus_most: u64::try_from(u128::from(node.cpus) * u128::from(ratio_milli) / 1_000)
            .unwrap_or(u64::MAX),
        residents: local.mirrors[at],
    }
}

fn vm_cell(instance: usize, entry: &Instance, at: usize, tags: Vec<u32>, measured: Measured<'_>) -> VmCell {
    let mem = if entry.is_on() { signed(entry.mem_mib) } else { 0 };
    let counts_cpu = entry.status != "ADMIN_offline";
    let vcpus = if counts_cpu { entry.vcpus } else { 0 };
    let now = !entry.forthcoming;
    let load = match measured {
        Measured::Ignored => [0.0; 4],
        Measured::Loads(loads) => loads.get(&entry.name).copied().unwrap_or([1.0; 4]),
    };
    let load = if now { load } else { [0.0; 4] };
    let cpu = real(signed(vcpus));
    VmCell {
        instance,
        movable: now && entry.auto_balance && entry.is_shared(),
        at,
        unit: [
            -real(mem),
            -real(signed(entry.mem_mib)),
            if now { cpu } else { 0.0 },
            cpu,
            load[0],
            load[1],
            load[2],
            load[3],
        ],
        mem,
        vcpus: if now { vcpus } else { 0 },
        tags,
    }
}

/// What instances on local disks put on each node of the file. No move over shared storage changes it.
struct Local {
    /// Spindles' worth of load.
    spindle_use: Vec<u64>,
    /// Instances that mirror their disk there.
    mirrors: Vec<u32>,
    /// Memory the node keeps free for the one other node whose mirrored instances need most, MiB.
    reserved_mib: Vec<u64>,
}

impl Local {
    fn new(fleet: &TextFleet) -> Self {
        let nodes = fleet.nodes.len();
        let (mut spindle_use, mut mirrors) = (vec![0; nodes], vec![0; nodes]);
        let mut needed: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for instance in &fleet.instances {
            let mirror = instance.secondary.filter(|_| instance.template == "drbd");
            if matches!(instance.template.as_str(), "plain" | "drbd") {
                for at in [Some(instance.primary), mirror].into_iter().flatten() {
                    spindle_use[at] += instance.spindle_use;
                }
            }
            let Some(at) = mirror else { continue };
            mirrors[at] += 1;
            if instance.auto_balance && !instance.forthcoming && instance.status != "ADMIN_offline" {
                *needed.entry((at, instance.primary)).or_default() += instance.mem_mib;
            }
        }
        let mut reserved_mib = vec![0; nodes];
        for ((at, _), mib) in needed {
            reserved_mib[at] = mib.max(reserved_mib[at]);
        }
        Self { spindle_use, mirrors, reserved_mib }
    }

    /// The part of the score that moves over shared storage do not touch: disks, spindles, mirrors.
    fn fixed(&self, fleet: &TextFleet, places: &[usize], group: usize) -> f64 {
        let ratio = real(signed(fleet.spindle_ratio_milli(group))) / 1_000.0;
        let (mut disks, mut spindles, mut reserved) = (Vec::new(), Vec::new(), Vec::new());
        let mut offline = 0.0;
        for at in places {
            let node = &fleet.nodes[*at];
            if node.role == NodeRole::Offline {
                offline += WEIGHT_OFFLINE_MIRROR * f64::from(self.mirrors[*at]);
                continue;
            }
            let (free, total) = if node.exclusive_storage {
                (node.free_spindles, node.spindles)
            } else {
                (node.free_disk_mib, node.total_disk_mib)
            };
            disks.push(if total == 0 { 1.0 } else { real(signed(free)) / real(signed(total)) });
            let most = real(signed(node.spindles)) * ratio;
            let counted = !node.exclusive_storage && most > 0.0;
            spindles.push(if counted { real(signed(self.spindle_use[*at])) / most } else { 0.0 });
            reserved.push(real(signed(self.reserved_mib[*at])) / real(signed(node.total_mem_mib.max(1))));
        }
        let twice = 2.0 * WEIGHT_SHARE;
        let kept: f64 = reserved.iter().sum();
        let spreads =
            twice * spread(&disks) + twice * spread(&spindles) + WEIGHT_RESERVED.0 * spread(&reserved);
        offline + spreads + WEIGHT_RESERVED.1 * kept
    }
}

fn spread(values: &[f64]) -> f64 {
    let count = real(i64::try_from(values.len().max(1)).unwrap_or(i64::MAX));
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count).sqrt()
}

/// Sizes of the format are below 2^40, see the reader.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Exact up to 2^53, and sums of sizes stay below that in any real fleet.
#[allow(clippy::cast_precision_loss)]
pub(super) fn real(value: i64) -> f64 {
    value as f64
}
