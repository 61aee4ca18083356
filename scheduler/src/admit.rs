//! Can any k hosts fail at once, and everything they carry be started elsewhere?
//!
//! Owns the answer and the restart plan. Refuses to count on luck: "yes" is proven, "no" names hosts whose VMs have nowhere
//! to go, and what is neither is told as unknown.
//!
//! ```text
//! few sets of k hosts    each is tried: an assignment is its restart plan          exact
//! many                   slots: VMs rounded up to sizes that double, rooms cut     "yes" is sound, "no" is not claimed,
//!                        into slots of each size, the k worst hosts of each size   but the k fullest hosts are tried
//! ```
//!
//! Why slots are sound: sizes that divide each other pack without waste, largest first. With every VM rounded up to
//! `unit * 2^s`, all of them fit if and only if, for each s, the VMs of size s and above need no more slots of that size
//! than the hosts that remain have. A set of k failing hosts adds its VMs to one side and takes its slots from the other;
//! the k hosts for which the sum of both is largest bound what any k can do. Rounding only ever errs towards "unknown".

use dunlin_model::{HostId, VmId};
use serde::{Deserialize, Serialize};

use crate::evacuate::{Certainty, Misfit, Table, Way, is_open, misfit};
use crate::snapshot::{Amounts, HostIdx, Numa, ProfileIdx, Snapshot, VmIdx};

/// Sets of hosts that are tried one by one: a few seconds of work on the largest fleets, milliseconds on small ones.
const SETS_MAX: u64 = 5_000;

/// Sizes of slots: the largest VM may be 2^15 times the smallest.
const SIZES_MAX: usize = 16;

/// Shapes of slots that are tried: one that proves it is enough.
const SHAPES_MAX: usize = 8;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Which state it was asked of.
    pub revision: u64,
    /// How many hosts may fail at once.
    pub failures: u32,
    /// Yes, no, or not known.
    pub answer: Answer,
    /// How it is known.
    pub proof: Proof,
    /// For one failure: where the VMs of each host would start. Otherwise empty: there are too many sets to keep.
    pub plans: Vec<RestartPlan>,
    /// Hosts that must not fail together, and what would have nowhere to start. All of them for one failure, else the first
    /// set found.
    pub gaps: Vec<Gap>,
}

/// Can any k hosts fail? Closed: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Whichever fail, everything starts elsewhere.
    Yes,
    /// Those of [`Admission::gaps`] must not fail.
    No,
    /// Neither was shown.
    Unknown,
}

/// How an answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Every set of hosts was tried.
    Exact,
    /// By counting slots.
    Slots,
}

/// Where everything of one host would start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPlan {
    /// The host that fails.
    pub host: HostId,
    /// Each VM and its new host, largest first.
    pub starts: Vec<(VmId, HostId)>,
}

/// Hosts whose VMs would have nowhere to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The hosts that fail.
    pub hosts: Vec<HostId>,
    /// It is certain: every assignment was tried, or each of the VMs fits nowhere at all.
    pub certain: bool,
    /// What is left over.
    pub misfits: Vec<Misfit>,
}

/// Can any `failures` hosts fail at once?
#[must_use]
pub fn admit(snapshot: &Snapshot, failures: u32) -> Admission {
    // A host without VMs counts, too: when it fails, what it could have taken goes elsewhere.
    let counts = |host: &HostIdx| is_open(snapshot, *host) || !snapshot.room(*host).vms.is_empty();
    let hosts: Vec<HostIdx> = snapshot.hosts().map(|(host, _)| host).filter(counts).collect();
    let size = usize::try_from(failures).unwrap_or(usize::MAX).min(hosts.len());
    let mut admission = Admission {
        revision: snapshot.revision,
        failures,
        answer: Answer::Yes,
        proof: Proof::Exact,
        plans: Vec::new(),
        gaps: Vec::new(),
    };
    if size == 0 {
        return admission;
    }
    if sets(hosts.len() as u64, size as u64) > SETS_MAX {
        admission.proof = Proof::Slots;
        if !slots_suffice(snapshot, size) {
            admission.answer = try_fullest(snapshot, hosts, size, &mut admission.gaps);
        }
        return admission;
    }
    try_all(snapshot, &hosts, size, &mut admission);
    admission
}

/// How many sets of k there are.
fn sets(of: u64, size: u64) -> u64 {
    (0..size).fold(1_u64, |sets, at| sets.saturating_mul(of - at) / (at + 1))
}

fn try_all(snapshot: &Snapshot, hosts: &[HostIdx], size: usize, admission: &mut Admission) {
    let mut fleet = snapshot.clone();
    let mut picked: Vec<usize> = (0..size).collect();
    loop {
        let set: Vec<HostIdx> = picked.iter().map(|at| hosts[*at]).collect();
        let mut table = Table::new(fleet, &set, Way::Restart);
        let found = table.assign();
        fleet = table.restore();
        if found.certainty == Certainty::Fits {
            if size == 1 && !found.seats.is_empty() {
                let start = |(vm, seat): &(VmIdx, crate::snapshot::Seat)| {
                    (snapshot.vm(*vm).uid, snapshot.host(seat.host).uid)
                };
                let starts = found.seats.iter().map(start).collect();
                admission.plans.push(RestartPlan { host: snapshot.host(set[0]).uid, starts });
            }
        } else {
            let certain = found.certainty == Certainty::DoesNotFit;
            admission.answer = match admission.answer {
                Answer::No => Answer::No,
                _ if certain => Answer::No,
                _ => Answer::Unknown,
            };
            admission.gaps.push(gap(snapshot, &set, &found.left, certain));
            if size > 1 && certain {
                admission.gaps.drain(..admission.gaps.len() - 1);
                return;
            }
        }
        // The next set, in order: the last that can go on goes on, and those after it follow closely.
        let Some(at) = (0..size).rev().find(|at| picked[*at] + (size - at) < hosts.len()) else { return };
        picked[at] += 1;
        for after in at + 1..size {
            picked[after] = picked[after - 1] + 1;
        }
    }
}

fn gap(snapshot: &Snapshot, set: &[HostIdx], left: &[VmIdx], certain: bool) -> Gap {
    let misfits = left.iter().map(|vm| misfit(snapshot, set, *vm, Way::Restart)).collect();
    Gap { hosts: set.iter().map(|host| snapshot.host(*host).uid).collect(), certain, misfits }
}

/// The k hosts that carry most: if even those can fail nothing is shown, if they cannot the answer is no.
fn try_fullest(snapshot: &Snapshot, mut hosts: Vec<HostIdx>, size: usize, gaps: &mut Vec<Gap>) -> Answer {
    let weight = |host: &HostIdx| {
        let used = snapshot.room(*host).used;
        std::cmp::Reverse((used.mem_mib + used.huge_mib, used.cpu_milli))
    };
    hosts.sort_by_key(|host| (weight(host), *host));
    hosts.truncate(size);
    let found = Table::new(snapshot.clone(), &hosts, Way::Restart).assign();
    if found.certainty != Certainty::DoesNotFit {
        return Answer::Unknown;
    }
    gaps.push(gap(snapshot, &hosts, &found.left, true));
    Answer::No
}

/// Do slots prove that any `size` hosts can fail?
pub(crate) fn slots_suffice(snapshot: &Snapshot, size: usize) -> bool {
    let mut profiles: Vec<(u32, ProfileIdx)> =
        snapshot.mix().map(|(profile, count)| (count, profile)).collect();
    profiles.sort_unstable_by_key(|(count, profile)| (std::cmp::Reverse(*count), *profile));
    let plain = |(_, row): (VmIdx, &crate::snapshot::VmRow)| {
        let (profile, ties) = (snapshot.profile(row.profile), snapshot.ties(row.ties));
        let ruled =
            ties.rules.iter().any(crate::snapshot::Rule::is_hard) || crate::filter::is_named(snapshot, ties);
        !ruled && profile.named.is_empty() && profile.numa == Numa::Float
    };
    // Rules between VMs, devices and NUMA nodes are not counted in slots.
    if !snapshot.vms().filter(|(_, row)| row.at.is_some()).all(plain) {
        return false;
    }
    let shapes: Vec<ProfileIdx> = profiles.iter().map(|(_, profile)| *profile).collect();
    let largest =
        shapes.iter().fold(Amounts::default(), |most, shape| most.max_with(snapshot.profile(*shape).amounts));
    let takes_all = |host: &HostIdx| {
        is_open(snapshot, *host)
            && shapes.iter().all(|shape| crate::filter::class_takes(snapshot, *shape, *host))
    };
    let takers: Vec<HostIdx> = snapshot.hosts().map(|(host, _)| host).filter(takes_all).collect();
    let units = shapes.iter().take(SHAPES_MAX).map(|shape| snapshot.profile(*shape).amounts).chain([largest]);
    units.into_iter().any(|unit| {
        Slots::new(snapshot, unit, largest).is_some_and(|slots| slots.prove(snapshot, &takers, size))
    })
}

/// Slots of one shape in sizes that double.
struct Slots {
    /// The smallest slot.
    unit: Amounts,
}

impl Slots {
    /// Slots that look like `shape`, the largest of which holds `largest`. None when nothing of that shape can.
    fn new(_: &Snapshot, shape: Amounts, largest: Amounts) -> Option<Self> {
        let holds = |slot: &Amounts| largest.fits(slot);
        let mut slot = shape;
        // First up until everything fits, then down by all sizes there are: the unit is the smallest.
        for _ in 0..SIZES_MAX {
            if holds(&slot) {
                break;
            }
            slot = slot.plus(slot);
        }
        if !holds(&slot) {
            return None;
        }
        let mut unit = slot;
        for _ in 1..SIZES_MAX {
            let half = unit.half();
            if half.plus(half) != unit || half == Amounts::default() {
                break;
            }
            unit = half;
        }
        Some(Self { unit })
    }

    /// The size of slot a VM needs; None when none is large enough.
    fn size_of(&self, amounts: Amounts) -> Option<usize> {
        let mut slot = self.unit;
        for size in 0..SIZES_MAX {
            if amounts.fits(&slot) {
                return Some(size);
            }
            slot = slot.plus(slot);
        }
        None
    }

    /// How many of the smallest slots there are in that much room.
    fn count(&self, room: Amounts) -> u64 {
        let pairs = self.unit.each().into_iter().zip(room.each()).filter(|((_, unit), _)| *unit > 0);
        pairs.map(|((_, unit), (_, room))| room / unit).min().unwrap_or(0)
    }

    fn prove(&self, snapshot: &Snapshot, takers: &[HostIdx], failures: usize) -> bool {
        let mut rooms = vec![0_u64; snapshot.host_slots()];
        for host in takers {
            rooms[host.at()] = self.count(snapshot.room(*host).free);
        }
        // VMs of each host by size, then those of that size and above in slots of that size.
        let mut needs = vec![[0_u64; SIZES_MAX]; snapshot.host_slots()];
        for (_, row) in snapshot.vms() {
            let amounts = snapshot.profile(row.profile).amounts;
            let Some(size) = self.size_of(amounts) else { return false };
            for seat in [row.at, row.held].into_iter().flatten() {
                needs[seat.host.at()][size] += 1;
            }
        }
        (0..SIZES_MAX).all(|size| {
            let slots = |host: usize| rooms[host] >> size;
            let need = |host: usize| -> u64 {
                (size..SIZES_MAX).map(|larger| needs[host][larger] << (larger - size)).sum()
            };
            let all: u64 = (0..rooms.len()).map(slots).sum();
            let mut harm: Vec<u64> = (0..rooms.len()).map(|host| need(host) + slots(host)).collect();
            let needed: u64 = (0..rooms.len()).map(need).sum();
            harm.sort_unstable_by(|a, b| b.cmp(a));
            let worst: u64 = harm.iter().take(failures).sum();
            needed == 0 || worst <= all
        })
    }
}
