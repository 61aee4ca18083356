//! Refusals in words. Kept apart from the filters, which are asked far more often than they are told.

use crate::filter::{Reason, others, refusals};
use crate::request::Request;
use crate::snapshot::{FactKind, HostIdx, Kind, Need, Role, Snapshot, Want};

/// A refusal of one host: the reason, and what a person needs to know to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct No {
    /// For machines.
    pub reason: Reason,
    /// The same for every host refused for the same cause, so that they are told together.
    pub text: String,
    /// How much the host has left of what is short, and its unit: the most of it is told.
    pub left: Option<(u64, &'static str)>,
}

/// One thing that, were it otherwise, would let the VM in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// On this host.
    pub host: HostIdx,
    /// The only filter that refuses it there.
    pub reason: Reason,
    /// In words: "not enough memory (need 512 MiB, free 300 MiB)".
    pub text: String,
}

/// What would have to change: hosts that a single filter keeps it from, the ones that lack least first.
#[must_use]
pub fn remedies(snapshot: &Snapshot, request: &Request, most: usize) -> Vec<Remedy> {
    let mut found: Vec<(Reason, u64, HostIdx)> = Vec::new();
    for (host, _) in snapshot.hosts() {
        if let [reason] = refusals(snapshot, request, host)[..] {
            let left = told(snapshot, request, host, reason).left.map_or(0, |(left, _)| left);
            found.push((reason, u64::MAX - left, host));
        }
    }
    found.sort_unstable();
    let told = found.into_iter().take(most).map(|(reason, _, host)| {
        let no = told(snapshot, request, host, reason);
        let text = match no.left {
            Some((left, unit)) => format!("{}{left}{unit})", no.text.replace("most free", "free")),
            None => no.text,
        };
        Remedy { host, reason, text }
    });
    told.collect()
}

/// What a filter guards against, without any figures.
pub(crate) const fn phrase(reason: Reason) -> &'static str {
    match reason {
        Reason::IsSource => "the VM runs there already",
        Reason::OtherHostAsked => "another host was asked for",
        Reason::SavedElsewhere => "the VM's saved memory is on another host",
        Reason::VolumesElsewhere => "the VM's disks are on another host",
        Reason::Closed => "left out for now",
        Reason::HostDown => "not up",
        Reason::Asleep => "switched off to save power",
        Reason::Cordoned => "cordoned",
        Reason::HostLabels => "lacks labels",
        Reason::Tainted => "tainted",
        Reason::DriverMissing => "no such driver",
        Reason::Arch => "no guests of that architecture",
        Reason::AccelUnusable => "no vCPU was seen to run as asked",
        Reason::MachineType => "no such machine type",
        Reason::CpuModel => "no such CPU model",
        Reason::CpuFeature => "lacks CPU features",
        Reason::NetworkMissing => "no such network",
        Reason::StorageMissing => "no such storage",
        Reason::CannotMigrate => "its driver cannot take the migration",
        Reason::Cpus => "not enough vCPUs",
        Reason::Memory => "not enough memory",
        Reason::HugePages => "not enough huge pages",
        Reason::Bandwidth => "not enough bandwidth",
        Reason::DiskSpace => "not enough disk space",
        Reason::Devices => "not enough devices",
        Reason::Licences => "not enough licences",
        Reason::Numa => "it fits the host, but not its NUMA nodes as they are filled",
        Reason::AffinityElsewhere => "VMs it belongs with are elsewhere",
        Reason::ApartFrom => "a VM it stays apart from is there",
        Reason::FaultDomain => "another fault domain of its group is there",
        Reason::SpareHosts => "the room kept for hosts that fail would be gone",
    }
}

/// The refusal of a host in words.
pub(crate) fn told(snapshot: &Snapshot, request: &Request, host: HostIdx, reason: Reason) -> No {
    let profile = snapshot.profile(request.profile);
    let short = || profile.amounts.short_of(&snapshot.room(host).free);
    let just = |text: &str| No { reason, text: text.to_owned(), left: None };
    let pinned = || request.pins.iter().find(|pin| pin.reason == reason).map_or("", |pin| pin.text.as_str());
    let lacks = |what: &str, kind| just(&format!("no {what} {}", missing(snapshot, request, host, kind)));
    match reason {
        Reason::IsSource
        | Reason::Closed
        | Reason::HostDown
        | Reason::Asleep
        | Reason::Cordoned
        | Reason::SpareHosts
        | Reason::Numa => just(phrase(reason)),
        Reason::OtherHostAsked | Reason::SavedElsewhere | Reason::VolumesElsewhere => just(pinned()),
        Reason::HostLabels => lacks("label", FactKind::Label),
        Reason::Tainted => just(&format!("tainted {}", taint(snapshot, request, host))),
        Reason::DriverMissing => lacks("driver", FactKind::Driver),
        Reason::Arch => lacks("guests of architecture", FactKind::Arch),
        Reason::AccelUnusable => {
            just(&format!("no vCPU was seen to run as asked{}", evidence(snapshot, host)))
        }
        Reason::MachineType => lacks("machine type", FactKind::Machine),
        Reason::CpuModel => lacks("CPU model", FactKind::CpuModel),
        Reason::CpuFeature => lacks("CPU feature", FactKind::CpuFeature),
        Reason::NetworkMissing => lacks("network", FactKind::Network),
        Reason::StorageMissing => lacks("storage", FactKind::Storage),
        Reason::CannotMigrate => just(cannot_migrate(snapshot, request, host)),
        Reason::Cpus | Reason::Memory | Reason::HugePages | Reason::Bandwidth => match short() {
            Some((kind, need, left)) => too_little(reason, kind, need, left),
            None => just("not enough room"),
        },
        Reason::DiskSpace | Reason::Devices | Reason::Licences => {
            named_short(snapshot, request, host, reason)
        }
        Reason::AffinityElsewhere | Reason::ApartFrom | Reason::FaultDomain => {
            just(&tie(snapshot, request, host, reason))
        }
    }
}

fn too_little(reason: Reason, kind: Kind, need: u64, left: u64) -> No {
    let (what, unit, per) = match kind {
        Kind::Cpu => ("vCPUs", "", 1_000),
        Kind::Memory => ("memory", " MiB", 1),
        Kind::HugePages => ("huge pages", " MiB", 1),
        Kind::Network => ("bandwidth", " Mbit/s", 1),
    };
    let text = format!("not enough {what} (need {}{unit}, most free ", need.div_ceil(per));
    No { reason, text, left: Some((left / per, unit)) }
}

fn unmet<'a>(snapshot: &'a Snapshot, request: &Request, host: HostIdx) -> Option<&'a Need> {
    let facts = &snapshot.class(snapshot.host(host).class).facts;
    let needs = &snapshot.profile(request.profile).needs;
    needs.iter().find(|need| !need.any_of.iter().any(|fact| facts.binary_search(fact).is_ok()))
}

/// What the host lacks, without the driver's name before it and without the fallback behind it.
fn missing(snapshot: &Snapshot, request: &Request, host: HostIdx, kind: FactKind) -> String {
    let Some(need) = unmet(snapshot, request, host).filter(|need| need.kind == kind) else {
        return String::new();
    };
    let texts = need.any_of.iter().map(|fact| snapshot.fact(*fact).text.as_str());
    let words = texts.map(|text| match kind {
        FactKind::Arch | FactKind::Machine | FactKind::CpuModel => {
            text.split_once(' ').map_or(text, |(_, what)| what)
        }
        _ => text,
    });
    let words: Vec<&str> = words.filter(|word| *word != "*").collect();
    words.join(" or ")
}

fn taint<'a>(snapshot: &'a Snapshot, request: &Request, host: HostIdx) -> &'a str {
    let tolerates = &snapshot.profile(request.profile).tolerates;
    let taints = &snapshot.class(snapshot.host(host).class).taints;
    let taint = taints.iter().find(|taint| tolerates.binary_search(taint).is_err());
    taint.map_or("", |taint| snapshot.fact(*taint).text.as_str())
}

fn evidence(snapshot: &Snapshot, host: HostIdx) -> String {
    let notes = &snapshot.host(host).notes;
    let note = notes.iter().find(|note| note.kind == FactKind::Accel);
    note.map_or(String::new(), |note| format!(" ({})", note.text))
}

fn cannot_migrate(snapshot: &Snapshot, request: &Request, host: HostIdx) -> &'static str {
    let storage = unmet(snapshot, request, host).is_some_and(|need| {
        need.any_of.iter().any(|fact| snapshot.fact(*fact).text.ends_with("MigrateStorage"))
    });
    if storage {
        "its driver takes no disks that are not shared"
    } else {
        "its driver takes no live migration"
    }
}

fn named_short(snapshot: &Snapshot, request: &Request, host: HostIdx, reason: Reason) -> No {
    let (row, room) = (snapshot.host(host), snapshot.room(host));
    let left = |resource| {
        let at = row.named.binary_search_by_key(&resource, |(resource, _)| *resource).ok()?;
        room.named_free.get(at).copied()
    };
    let named = &snapshot.profile(request.profile).named;
    let short = named.iter().find(|(resource, need)| left(*resource).unwrap_or(0) < *need);
    let Some((resource, need)) = short else {
        return No { reason, text: "not enough".to_owned(), left: None };
    };
    let text = format!("not enough {} (need {need}, most free ", snapshot.resource(*resource));
    No { reason, text, left: Some((left(*resource).unwrap_or(0), "")) }
}

/// Which rule between VMs stands in the way.
fn tie(snapshot: &Snapshot, request: &Request, host: HostIdx, reason: Reason) -> String {
    let want = match reason {
        Reason::AffinityElsewhere => Want::Together,
        Reason::ApartFrom => Want::Apart,
        _ => Want::OtherValuesApart,
    };
    let rules = &snapshot.ties(request.ties).rules;
    let own = rules.iter().filter(|rule| rule.is_hard() && rule.want == want).find(|rule| {
        let place = snapshot.place(rule.level, host);
        let (here, anywhere) = others(snapshot, request.vm, Role::Carrier, rule, place);
        if want == Want::Together { here < anywhere } else { here > 0 }
    });
    let label = own.map(|rule| snapshot.label(rule.label));
    match (reason, label) {
        (Reason::AffinityElsewhere, Some(label)) => format!("VMs labelled {label} are elsewhere"),
        (Reason::AffinityElsewhere, None) => "VMs that want it with them are elsewhere".to_owned(),
        (Reason::ApartFrom, Some(label)) => format!("a VM labelled {label} is there"),
        (Reason::ApartFrom, None) => "a VM that stays apart from it is there".to_owned(),
        (_, Some(label)) => format!("a VM with another value of {label} is there"),
        (_, None) => "a VM that wants no other fault domain beside it is there".to_owned(),
    }
}
