//! Empties hosts: all at once, in waves, with a proof that everything fits, or the VMs that do not and why.
//!
//! Owns the assignment. Refuses to move anything that is not on the hosts to be emptied: what it says does not fit might,
//! after making room. Rules between VMs hold at the end and at every step.
//!
//! ```text
//! assign    largest first, each to the host it leaves least room on; VMs bound to each other as one
//!           -> everything seated: that assignment is the proof
//!           -> something left over: search, depth first, for an assignment that seats all (or more)
//!              -> found: proof; every branch tried: the misfits are real; too many branches: said so
//! waves     the assignment in an order in which each step fits when it runs
//! ```
//!
//! [`evacuate`] asks whether they can be emptied, [`depart`] where everything is to go.

mod depart;

pub use depart::depart;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use dunlin_model::{HostId, Name, VmId};
use serde::{Deserialize, Serialize};

use crate::balance::cost::cost;
use crate::budget::Budgets;
use crate::decision;
use crate::distrust;
use crate::filter;
use crate::request::Request;
use crate::snapshot::{HostIdx, Level, Load, Seat, Snapshot, VmIdx, Want};
use crate::waves::{Step, seat, waves};

/// Branches of the search for a better assignment, in all. Enough for every fleet small enough to argue about by hand.
const BRANCHES_MAX: u32 = 20_000;

/// How sure an answer is. Closed: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// The assignment is the proof: everything fits.
    Fits,
    /// What is named does not fit, whatever is tried.
    DoesNotFit,
    /// What is named was not placed. It may be that some other assignment places more; not all were tried.
    NotFound,
}

/// The answer to "can these hosts be emptied?".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuation {
    /// Which state it was asked of.
    pub revision: u64,
    /// How sure it is.
    pub certainty: Certainty,
    /// Where every VM goes that can go, in waves; each step fits when it runs.
    pub waves: Vec<EvacuationWave>,
    /// VMs that have nowhere to go, and why.
    pub misfits: Vec<Misfit>,
}

/// Moves that run at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvacuationWave {
    /// The moves.
    pub moves: Vec<Evacuee>,
    /// How long the longest is expected to take, ms.
    pub took_ms: u64,
}

/// A VM and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuee {
    /// Which VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: Name,
    /// The host to be emptied.
    pub from: HostId,
    /// Where it goes.
    pub to: HostId,
    /// Its name.
    pub to_name: Name,
    /// The seat there, in the numbers of the snapshot.
    pub seat: Seat,
    /// How long it is expected to take, ms.
    pub took_ms: u64,
}

/// A VM that has nowhere to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misfit {
    /// Which VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: Name,
    /// The host it is on.
    pub from: HostId,
    /// It would fit nowhere even if it were the only one to go. Else the others take the room it would need.
    pub alone: bool,
    /// For people, host by host in groups: "3 hosts: not enough memory (need 4096 MiB, most free 512 MiB)".
    pub reason: String,
}

impl Evacuation {
    /// Everything in one line, for people.
    #[must_use]
    pub fn verdict(&self) -> String {
        let moves: usize = self.waves.iter().map(|wave| wave.moves.len()).sum();
        let fits = crate::balance::plural(moves, "VM");
        let waves = crate::balance::plural(self.waves.len(), "wave");
        let first = self.misfits.first();
        let misfit = first
            .map_or(String::new(), |first| format!(", first of them {}: {}", first.vm_name, first.reason));
        match self.certainty {
            Certainty::Fits => format!("{fits} can go, in {waves}"),
            Certainty::DoesNotFit => {
                format!("{} cannot go{misfit}", crate::balance::plural(self.misfits.len(), "VM"))
            }
            Certainty::NotFound => {
                format!("no place was found for {}{misfit}", crate::balance::plural(self.misfits.len(), "VM"))
            }
        }
    }
}

/// Plans to empty those hosts, all of them at the same time. Nothing goes from one of them to another.
#[must_use]
pub fn evacuate(snapshot: &Snapshot, hosts: &[HostIdx], budgets: &Budgets) -> Evacuation {
    told(snapshot, hosts, budgets, &assign(snapshot, hosts, Way::Alive))
}

/// An assignment in waves, and in words.
fn told(snapshot: &Snapshot, hosts: &[HostIdx], budgets: &Budgets, found: &Assignment) -> Evacuation {
    let steps: Vec<Step> = found.seats.iter().map(|(vm, seat)| Step { vm: *vm, to: seat.host }).collect();
    let planned = waves(snapshot, &steps, budgets);
    let mut misfits: Vec<Misfit> =
        found.left.iter().map(|vm| misfit(snapshot, hosts, *vm, Way::Alive)).collect();
    // Each fits at the end, but some only after another that waits for them: they would have to go in one instant.
    misfits.extend(planned.stuck.iter().map(|step| Misfit {
        alone: false,
        reason: "it and others wait for each other's room".to_owned(),
        ..misfit(snapshot, hosts, step.vm, Way::Alive)
    }));
    let certainty = match found.certainty {
        // Another assignment might need no such exchange.
        _ if !planned.stuck.is_empty() => Certainty::NotFound,
        certainty => certainty,
    };
    let link = budgets.link();
    let waves = planned.waves.iter().map(|wave| {
        let moves: Vec<Evacuee> =
            wave.iter().map(|(step, seat)| evacuee(snapshot, *step, *seat, &link)).collect();
        EvacuationWave { took_ms: moves.iter().map(|one| one.took_ms).max().unwrap_or(0), moves }
    });
    Evacuation { revision: snapshot.revision, certainty, waves: waves.collect(), misfits }
}

fn evacuee(snapshot: &Snapshot, step: Step, seat: Seat, link: &crate::balance::cost::Link) -> Evacuee {
    let row = snapshot.vm(step.vm);
    let promised = snapshot.profile(row.profile).amounts.cpu_milli;
    let load = distrust::judge(row.load.as_ref(), promised, snapshot.now_ms).copied().unwrap_or_default();
    // What does not converge by itself is throttled until it does; twice its memory is a fair guess.
    let took_ms = cost(snapshot, step.vm, &load, link).map_or_else(
        || cost(snapshot, step.vm, &Load::default(), link).map_or(0, |cost| 2 * cost.took_ms),
        |cost| cost.took_ms,
    );
    let from = row.at.map_or(step.to, |at| at.host);
    Evacuee {
        vm: row.uid,
        vm_name: row.name.clone(),
        from: snapshot.host(from).uid,
        to: snapshot.host(step.to).uid,
        to_name: snapshot.host(step.to).name.clone(),
        seat,
        took_ms,
    }
}

/// How VMs leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By live migration: the hosts are there, the VMs must be movable.
    Alive,
    /// By restart elsewhere: the hosts are gone.
    Restart,
}

/// Seats found.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) certainty: Certainty,
    /// In the order they were seated: largest first.
    pub(crate) seats: Vec<(VmIdx, Seat)>,
    pub(crate) left: Vec<VmIdx>,
}

/// Finds seats elsewhere for all VMs of those hosts.
pub(crate) fn assign(snapshot: &Snapshot, hosts: &[HostIdx], way: Way) -> Assignment {
    Table::new(snapshot.clone(), hosts, way).assign()
}

/// The fleet without what leaves, and what has been seated again.
#[derive(Clone)]
pub(crate) struct Table {
    fleet: Snapshot,
    way: Way,
    /// VMs that leave, and the seats they had.
    evacuees: Vec<(VmIdx, Seat)>,
    /// VMs that were on their way to what is emptied, and the seats they held there.
    turned: Vec<(VmIdx, Seat)>,
    /// Hosts that may take some, in the order of index.
    targets: Vec<HostIdx>,
    /// What those may promise in all: CPU, thousandths; memory, MiB.
    whole: (u64, u64),
    seats: BTreeMap<VmIdx, Seat>,
    order: Vec<VmIdx>,
}

impl Table {
    /// Takes the VMs of those hosts out of the fleet.
    pub(crate) fn new(mut fleet: Snapshot, hosts: &[HostIdx], way: Way) -> Self {
        let gone: BTreeSet<HostIdx> = hosts.iter().copied().collect();
        let (mut evacuees, mut turned) = (Vec::new(), Vec::new());
        for host in &gone {
            for vm in fleet.room(*host).vms.clone() {
                let row = fleet.vm(vm);
                // One that is on its way out already has its seat; one on its way in turns round.
                match (row.at, row.held) {
                    (_, Some(held)) if gone.contains(&held.host) => {
                        fleet.release(vm);
                        turned.push((vm, held));
                    }
                    (Some(at), None) if at.host == *host => {
                        fleet.take(vm);
                        evacuees.push((vm, at));
                    }
                    _ => {}
                }
            }
        }
        // One that was turned round may be on a host to be emptied itself.
        for (vm, _) in &turned {
            if let Some(at) = fleet.vm(*vm).at.filter(|at| gone.contains(&at.host)) {
                fleet.take(*vm);
                evacuees.push((*vm, at));
            }
        }
        evacuees.sort_unstable();
        let open = |host: &HostIdx| !gone.contains(host) && is_open(&fleet, *host);
        let targets: Vec<HostIdx> = fleet.hosts().map(|(host, _)| host).filter(open).collect();
        let mut whole = (1_u64, 1_u64);
        for host in &targets {
            let total = fleet.host(*host).total;
            whole = (whole.0 + total.cpu_milli, whole.1 + total.mem_mib + total.huge_mib);
        }
        Self { fleet, way, evacuees, turned, targets, whole, seats: BTreeMap::new(), order: Vec::new() }
    }

    /// The fleet as it was.
    pub(crate) fn restore(mut self) -> Snapshot {
        self.clear();
        for (vm, seat) in &self.evacuees {
            self.fleet.put(*vm, *seat);
        }
        for (vm, seat) in &self.turned {
            self.fleet.hold(*vm, *seat);
        }
        self.fleet
    }

    pub(crate) fn assign(&mut self) -> Assignment {
        let units = self.units();
        self.fill(&units);
        if self.left(&units).is_empty() {
            return self.answer(&units, Certainty::Fits);
        }
        let greedy = self.answer(&units, Certainty::NotFound);
        let mut search = Depth { branches: 0, best: usize::MAX, seats: Vec::new(), whole: true };
        self.clear();
        search.go(self, &units, 0, 0);
        if search.best == 0 || search.whole {
            for (vm, seat) in &search.seats {
                self.put(*vm, *seat);
            }
            let certainty = if search.best == 0 { Certainty::Fits } else { Certainty::DoesNotFit };
            return self.answer(&units, certainty);
        }
        // A VM that fits nowhere even in the empty table is a real misfit; when they are all like that, so is the answer.
        let hopeless = |vm: &VmIdx| !self.targets.iter().any(|host| self.fits(*vm, *host));
        let certainty =
            if greedy.left.iter().all(hopeless) { Certainty::DoesNotFit } else { Certainty::NotFound };
        Assignment { certainty, ..greedy }
    }

    /// VMs that must be on one host together, as one; the largest first.
    fn units(&self) -> Vec<Vec<VmIdx>> {
        let mut units: BTreeMap<Option<u32>, Vec<Vec<VmIdx>>> = BTreeMap::new();
        for (vm, _) in &self.evacuees {
            let ties = self.fleet.ties(self.fleet.vm(*vm).ties);
            let bound = |rule: &&crate::snapshot::Rule| {
                rule.is_hard() && rule.wants(Want::Together) && rule.level == Level::Host
            };
            let key = ties.rules.iter().find(bound).map(|rule| rule.label.0);
            let group = units.entry(key).or_default();
            match (key, group.first_mut()) {
                (Some(_), Some(unit)) => unit.push(*vm),
                _ => group.push(vec![*vm]),
            }
        }
        let mut units: Vec<Vec<VmIdx>> = units.into_values().flatten().collect();
        units.sort_by_key(|unit| (std::cmp::Reverse(self.size(unit)), unit.first().copied()));
        units
    }

    /// The larger of its shares of all CPU and of all memory, in millionths: what is hardest to place goes first.
    fn size(&self, unit: &[VmIdx]) -> u64 {
        let (mut cpu, mut mem) = (0_u64, 0_u64);
        for vm in unit {
            let amounts = self.fleet.profile(self.fleet.vm(*vm).profile).amounts;
            cpu += amounts.cpu_milli;
            mem += amounts.mem_mib + amounts.huge_mib;
        }
        let share = |part: u64, whole: u64| u128::from(part) * 1_000_000_000 / u128::from(whole);
        let largest = share(cpu, self.whole.0).max(share(mem, self.whole.1));
        u64::try_from(largest).unwrap_or(u64::MAX)
    }

    fn request(&self, vm: VmIdx) -> Request {
        match self.way {
            Way::Alive => Request { from: None, ..Request::to_move(&self.fleet, vm) },
            Way::Restart => Request::start(&self.fleet, vm),
        }
    }

    fn fits(&self, vm: VmIdx, host: HostIdx) -> bool {
        (self.way == Way::Restart || self.fleet.vm(vm).movable)
            && filter::refuse(&self.fleet, &self.request(vm), host).is_none()
    }

    fn put(&mut self, vm: VmIdx, at: Seat) {
        self.fleet.put(vm, at);
        self.seats.insert(vm, at);
        self.order.push(vm);
    }

    /// Seats a whole unit on a host, or nothing of it.
    fn try_unit(&mut self, unit: &[VmIdx], host: HostIdx) -> bool {
        for (done, vm) in unit.iter().enumerate() {
            let seat = self.fits(*vm, host).then(|| seat(&self.fleet, Step { vm: *vm, to: host })).flatten();
            let Some(seat) = seat else {
                self.undo(&unit[..done]);
                return false;
            };
            self.put(*vm, seat);
        }
        true
    }

    fn undo(&mut self, unit: &[VmIdx]) {
        for vm in unit {
            self.fleet.take(*vm);
            self.seats.remove(vm);
            self.order.pop();
        }
    }

    fn clear(&mut self) {
        for vm in std::mem::take(&mut self.order) {
            self.fleet.take(vm);
        }
        self.seats.clear();
    }

    /// Best fit: the host that is left with least, so that large rooms stay large.
    fn fill(&mut self, units: &[Vec<VmIdx>]) {
        for unit in units {
            let amounts = self.fleet.profile(self.fleet.vm(unit[0]).profile).amounts;
            let room = |host: &&HostIdx| amounts.fits(&self.fleet.room(**host).free);
            let by_room = |host: &HostIdx| std::cmp::Reverse((self.left_over(*host), *host));
            let mut hosts: BinaryHeap<_> = self.targets.iter().filter(room).map(by_room).collect();
            while let Some(std::cmp::Reverse((_, host))) = hosts.pop() {
                if self.try_unit(unit, host) {
                    break;
                }
            }
        }
    }

    /// The smaller of the shares of CPU and memory left, in millionths.
    fn left_over(&self, host: HostIdx) -> u64 {
        let (free, total) = (self.fleet.room(host).free, self.fleet.host(host).total);
        let share = |part: u64, whole: u64| part.saturating_mul(1_000_000) / whole.max(1);
        share(free.cpu_milli, total.cpu_milli).min(share(free.mem_mib, total.mem_mib))
    }

    fn left(&self, units: &[Vec<VmIdx>]) -> Vec<VmIdx> {
        units.iter().flatten().filter(|vm| !self.seats.contains_key(vm)).copied().collect()
    }

    fn answer(&self, units: &[Vec<VmIdx>], certainty: Certainty) -> Assignment {
        let seats = self.order.iter().map(|vm| (*vm, self.seats[vm])).collect();
        Assignment { certainty, seats, left: self.left(units) }
    }
}

/// May the host take VMs, whatever they are?
pub(crate) fn is_open(fleet: &Snapshot, host: HostIdx) -> bool {
    let row = fleet.host(host);
    row.state == crate::snapshot::HostState::Up
        && (!row.cordoned || fleet.policy.without.contains(&filter::Reason::Cordoned))
}

/// Depth first over all assignments, fewest left over first.
struct Depth {
    branches: u32,
    /// Fewest VMs left over so far.
    best: usize,
    seats: Vec<(VmIdx, Seat)>,
    /// Every branch has been tried.
    whole: bool,
}

impl Depth {
    fn go(&mut self, table: &mut Table, units: &[Vec<VmIdx>], next: usize, left: usize) {
        if left >= self.best {
            return;
        }
        let Some(unit) = units.get(next) else {
            self.best = left;
            self.seats = table.order.iter().map(|vm| (*vm, table.seats[vm])).collect();
            return;
        };
        for host in table.targets.clone() {
            self.branches += 1;
            if self.branches > BRANCHES_MAX {
                self.whole = false;
                return;
            }
            if table.try_unit(unit, host) {
                self.go(table, units, next + 1, left);
                table.undo(unit);
            }
            if self.best == 0 {
                return;
            }
        }
        self.go(table, units, next + 1, left + unit.len());
    }
}

/// A VM that was left over, and why.
pub(crate) fn misfit(snapshot: &Snapshot, hosts: &[HostIdx], vm: VmIdx, way: Way) -> Misfit {
    let table = Table::new(snapshot.clone(), hosts, way);
    let alone = !table.targets.iter().any(|host| table.fits(vm, *host));
    let row = snapshot.vm(vm);
    let from = row.at.map(|at| snapshot.host(at.host).uid);
    let reason = if way == Way::Alive && !row.movable {
        "it may not be moved while it runs".to_owned()
    } else {
        let mut request = table.request(vm);
        request.closed = hosts.to_vec();
        request.closed.sort_unstable();
        let reason = decision::place(&table.fleet, &request).explain();
        if alone { reason } else { format!("the others take the room it needs; {reason}") }
    };
    let from = from.unwrap_or(HostId(row.uid.0));
    Misfit { vm: row.uid, vm_name: row.name.clone(), from, alone, reason }
}
