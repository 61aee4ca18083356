//! Hard filters: each looks at one host and says no, or nothing. The order is that of the reasons: the first that
//! refuses is the one told, so what an admin can change least stands first.

use dunlin_model::capabilities::{Accel, DriverCapabilities, DriverPower};
use dunlin_model::vm::NicNetwork;
use serde::{Deserialize, Serialize};

use crate::snapshot::{HostRow, Policy, Request};

/// Why a host was refused. Closed: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The VM runs there already.
    IsSource,
    /// Another host was asked for.
    OtherHostAsked,
    /// Its saved memory is on another host.
    SavedElsewhere,
    /// Its disks are on another host.
    VolumesElsewhere,
    /// The host lacks labels the VM asks for.
    HostLabels,
    /// Its agent holds no session.
    HostDown,
    /// The host is cordoned.
    Cordoned,
    /// The hypervisor driver was not found there.
    DriverMissing,
    /// No vCPU has been seen to run there in the way asked for.
    AccelUnusable,
    /// The hypervisor there does not offer the machine type.
    MachineType,
    /// The hypervisor there does not offer the CPU model.
    CpuModel,
    /// A network is not known there.
    NetworkMissing,
    /// The driver there cannot take a live migration.
    CannotMigrate,
    /// A VM it must stay apart from is there.
    ApartFrom,
    /// Not enough vCPUs are left.
    Cpus,
    /// Not enough memory is left.
    Memory,
}

/// A refusal of one host: the reason, and what a person needs to know to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct No {
    /// For machines.
    pub reason: Reason,
    /// The same for every host refused for the same cause, so that they are told together.
    pub text: String,
    /// How much the host has left of what is short: the most of it is told.
    pub left: Option<u64>,
}

impl No {
    fn because(reason: Reason, text: impl Into<String>) -> Option<Self> {
        Some(Self { reason, text: text.into(), left: None })
    }
}

/// One filter.
pub type Filter = fn(&Policy, &HostRow<'_>, &Request<'_>) -> Option<No>;

/// All of them, in the order they are asked.
pub const FILTERS: &[Filter] = &[
    is_source,
    other_host_asked,
    disks_elsewhere,
    host_labels,
    host_up,
    cordoned,
    driver_present,
    accel_usable,
    machine_type,
    cpu_model,
    networks,
    can_migrate,
    apart_from,
    cpus_fit,
    memory_fits,
];

/// The first filter that refuses the host.
#[must_use]
pub fn refuse(policy: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    FILTERS.iter().find_map(|filter| filter(policy, row, request))
}

fn is_source(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let from = request.moving?.from;
    (from == row.host.metadata.uid).then_some(())?;
    No::because(Reason::IsSource, "the VM runs there already")
}

fn other_host_asked(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let name = &row.host.metadata.name;
    let pin = request.spec.placement.host.as_ref();
    let asked = [request.moving.and_then(|moving| moving.to), pin];
    let asked = asked.into_iter().flatten().find(|asked| *asked != name)?;
    No::because(Reason::OtherHostAsked, format!("the VM is to be on host {asked}"))
}

fn disks_elsewhere(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let fixed = request.fixed.filter(|fixed| fixed.host != row.host.metadata.uid)?;
    if fixed.saved {
        return No::because(Reason::SavedElsewhere, "the VM's saved memory is on another host");
    }
    No::because(Reason::VolumesElsewhere, "the VM's disks are on another host")
}

fn host_labels(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let labels = &row.host.metadata.labels;
    let lacks =
        request.spec.placement.host_labels.iter().find(|(key, value)| labels.get(*key) != Some(*value));
    lacks.and_then(|(key, value)| No::because(Reason::HostLabels, format!("no label {key}={value}")))
}

fn host_up(_: &Policy, row: &HostRow<'_>, _: &Request<'_>) -> Option<No> {
    (!row.is_up()).then_some(())?;
    No::because(Reason::HostDown, "not up")
}

fn cordoned(_: &Policy, row: &HostRow<'_>, _: &Request<'_>) -> Option<No> {
    row.host.spec.cordoned.then_some(())?;
    No::because(Reason::Cordoned, "cordoned")
}

fn driver<'a>(row: &HostRow<'a>, request: &Request<'_>) -> Option<&'a DriverCapabilities> {
    row.host.status.capabilities.driver(request.spec.driver)
}

fn driver_present(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    driver(row, request).is_none().then_some(())?;
    No::because(Reason::DriverMissing, format!("no driver {}", request.spec.driver))
}

fn accel_usable(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let choice = request.spec.accel;
    let usable = |accel: Accel| accel == Accel::Simulated || choice.allows(accel);
    let driver = driver(row, request)?;
    let found = driver.accels.iter().any(|probe| probe.usable && usable(probe.accel));
    (!found).then_some(())?;
    let tried = driver.accels.iter().find(|probe| usable(probe.accel));
    let evidence = tried.map_or(String::new(), |probe| format!(" ({})", probe.evidence));
    No::because(Reason::AccelUnusable, format!("no vCPU was seen to run as asked{evidence}"))
}

/// A driver that names no machines or CPU models at all does not care: the simulated one.
fn machine_type(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let machine = request.spec.machine.as_str();
    let offered = &driver(row, request)?.machines;
    (!offered.is_empty() && !offered.contains(machine)).then_some(())?;
    No::because(Reason::MachineType, format!("no machine type {machine}"))
}

fn cpu_model(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    // Flags follow the model after a comma; QEMU itself judges those.
    let model = request.spec.cpu_model.split(',').next().unwrap_or_default();
    let offered = &driver(row, request)?.cpu_models;
    (!model.is_empty() && !offered.is_empty() && !offered.contains(model)).then_some(())?;
    No::because(Reason::CpuModel, format!("no CPU model {model}"))
}

fn networks(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let known = &row.host.status.capabilities.networks;
    let missing = request.spec.nics.iter().find_map(|nic| match &nic.network {
        NicNetwork::Network(name) if !known.contains_key(name.as_str()) => Some(name),
        _ => None,
    })?;
    No::because(Reason::NetworkMissing, format!("no network {missing}"))
}

fn can_migrate(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    request.moving?;
    let powers = &driver(row, request)?.powers;
    if !powers.contains(&DriverPower::Migrate) {
        return No::because(Reason::CannotMigrate, "its driver takes no live migration");
    }
    (request.spec.has_local_disks() && !powers.contains(&DriverPower::MigrateStorage)).then_some(())?;
    No::because(Reason::CannotMigrate, "its driver takes no disks that are not shared")
}

fn apart_from(_: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let others = || row.guests.iter().filter(|(vm, _)| **vm != request.vm);
    let clash = request
        .spec
        .placement
        .apart_from
        .iter()
        .find(|(key, value)| others().any(|(_, labels)| labels.get(*key) == Some(*value)));
    clash.and_then(|(key, value)| {
        No::because(Reason::ApartFrom, format!("a VM labelled {key}={value} is there"))
    })
}

fn cpus_fit(policy: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let (need, left) = (u64::from(request.spec.cpus), row.cpus_free(policy));
    (left < need).then(|| No {
        reason: Reason::Cpus,
        text: format!("not enough vCPUs (need {need}, most free "),
        left: Some(left),
    })
}

fn memory_fits(policy: &Policy, row: &HostRow<'_>, request: &Request<'_>) -> Option<No> {
    let (need, left) = (request.spec.mem_mib, row.mem_free_mib(policy));
    (left < need).then(|| No {
        reason: Reason::Memory,
        text: format!("not enough memory (need {need} MiB, most free "),
        left: Some(left),
    })
}
