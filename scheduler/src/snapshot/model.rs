//! From the objects of the model to rows.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::capabilities::{Accel, DriverCapabilities, DriverName, HostCapabilities};
use dunlin_model::host::{Host, HostPhase};
use dunlin_model::vm::{Arch, DiskSource, NicNetwork, Vm, VmPhase, VmSpec};
use dunlin_model::{HostId, Labels, Name};

use super::Snapshot;
use super::amounts::Amounts;
use super::host::{Fact, FactKind, HostEntry, HostState, NodeSet};
use super::index::{HostIdx, VmIdx};
use super::vm::{Demand, Seat, VmEntry};
use super::wishes;
use crate::filter::Reason;
use crate::policy::Policy;
use crate::request::{Pin, Request};

/// Stands for whatever a driver that names no machine types or CPU models will take.
const ANYTHING: &str = "*";

impl HostEntry {
    /// As the fleet knows it. What may be promised follows from the policy.
    #[must_use]
    pub fn from_model(host: &Host, policy: &Policy) -> Self {
        let capabilities = &host.status.capabilities;
        let physical = Amounts {
            net_mbps: 0,
            ..Amounts::new(u64::from(capabilities.cpus) * 1_000, capabilities.mem_mib)
        };
        let facts = capabilities.drivers.iter().flat_map(|driver| driver_facts(driver, &capabilities.arch));
        let networks = capabilities.networks.keys().map(|name| Fact::new(FactKind::Network, name));
        let features = capabilities.cpu_features.iter().map(|name| Fact::new(FactKind::CpuFeature, name));
        let notes = capabilities.drivers.iter().flat_map(|driver| {
            let failed = driver.accels.iter().filter(|probe| !probe.usable).map(|probe| &probe.evidence);
            let away = Some(&driver.away).filter(|away| !away.is_empty());
            failed.chain(away).map(|why| Fact::new(FactKind::Accel, why))
        });
        let state = if host.status.phase == HostPhase::Up { HostState::Up } else { HostState::Down };
        Self {
            state,
            cordoned: host.spec.cordoned,
            labels: wishes::labels(host),
            taints: wishes::taints(&host.spec.taints),
            facts: facts.chain(networks).chain(features).collect(),
            physical,
            total: policy.promised(physical),
            notes: notes.collect(),
            named: host.spec.resources.clone().into_iter().collect(),
            ..Self::new(host.metadata.uid, host.metadata.name.clone(), physical)
        }
    }
}

fn driver_facts(driver: &DriverCapabilities, arch: &str) -> Vec<Fact> {
    let name = driver.name;
    let archs: &[&str] = match name {
        // They play PCs, whatever the host is; that a vCPU of one runs was tried.
        DriverName::Qemu | DriverName::Libvirt | DriverName::Test => &["x86_64", "i686"],
        DriverName::Lxc | DriverName::Uml if arch.is_empty() => &[ANYTHING],
        DriverName::Lxc | DriverName::Uml => &[arch],
    };
    let machines = or_anything(&driver.machines);
    let models = or_anything(&driver.cpu_models);
    // One that is away runs nothing new.
    let accels = driver.accels.iter().filter(|probe| probe.usable && driver.away.is_empty());
    let mut facts = vec![Fact::new(FactKind::Driver, name.to_string())];
    facts.extend(archs.iter().map(|arch| Fact::new(FactKind::Arch, format!("{name} {arch}"))));
    facts.extend(accels.map(|probe| Fact::new(FactKind::Accel, accel_text(driver.name, probe.accel))));
    facts.extend(machines.iter().map(|machine| Fact::new(FactKind::Machine, format!("{name} {machine}"))));
    facts.extend(models.iter().map(|model| Fact::new(FactKind::CpuModel, format!("{name} {model}"))));
    facts.extend(driver.powers.iter().map(|power| Fact::new(FactKind::Power, format!("{name} {power:?}"))));
    facts
}

fn or_anything(offered: &BTreeSet<String>) -> Vec<&str> {
    if offered.is_empty() { vec![ANYTHING] } else { offered.iter().map(String::as_str).collect() }
}

fn accel_text(driver: impl std::fmt::Display, accel: Accel) -> String {
    format!("{driver} {accel}")
}

/// What a VM of that spec and those labels asks for.
#[must_use]
pub fn demand(spec: &VmSpec, labels: &Labels) -> Demand {
    let driver = spec.driver;
    let one = |kind, text: String| vec![Fact::new(kind, text)];
    let offered =
        |kind, what: &str| [what, ANYTHING].map(|what| Fact::new(kind, format!("{driver} {what}"))).to_vec();
    let mut needs = vec![one(FactKind::Driver, driver.to_string())];
    let accels = [Accel::Kvm, Accel::Tcg, Accel::Simulated, Accel::Container, Accel::Uml];
    let accels = accels.into_iter().filter(|accel| accel.is_only_way() || spec.accel.allows(*accel));
    needs.push(accels.map(|accel| Fact::new(FactKind::Accel, accel_text(driver, accel))).collect());
    let arch = match spec.arch {
        Arch::X86_64 => "x86_64",
        Arch::I686 => "i686",
    };
    needs.push(offered(FactKind::Arch, arch));
    needs.push(offered(FactKind::Machine, spec.machine.as_str()));
    // Flags follow the model after a comma; QEMU itself judges those.
    let model = spec.cpu_model.split(',').next().unwrap_or_default();
    if !model.is_empty() {
        needs.push(offered(FactKind::CpuModel, model));
    }
    let networks = spec.nics.iter().filter_map(|nic| match &nic.network {
        NicNetwork::Network(name) => Some(one(FactKind::Network, name.to_string())),
        _ => None,
    });
    needs.extend(networks);
    let text = |(key, value): (&String, &String)| format!("{key}={value}");
    needs.extend(spec.placement.host_labels.iter().map(text).map(|label| one(FactKind::Label, label)));
    Demand {
        amounts: Amounts::new(u64::from(spec.cpus) * 1_000, spec.mem_mib),
        needs,
        images: spec.images().into_iter().map(Name::to_string).collect(),
        labels: labels.iter().map(text).collect(),
        rules: wishes::rules(&spec.placement),
        tolerates: wishes::taints(&spec.placement.tolerates),
        prefers: wishes::prefers(&spec.placement),
        named: spec.placement.resources.clone().into_iter().collect(),
        ..Demand::default()
    }
}

/// What a guest of that host may have seen of its CPU, each feature for itself: it needs them wherever it moves. Nothing
/// when its CPU is played or named: any hypervisor that knows the name plays the same one.
fn seen_features(spec: &VmSpec, host: &HostCapabilities) -> Vec<Vec<Fact>> {
    let model = spec.cpu_model.split(',').next().unwrap_or_default();
    // QEMU's own default where a real CPU runs the guest is the host's.
    let is_hosts = matches!(model, "host" | "max") || model.is_empty() && spec.arch == Arch::X86_64;
    let driver = host.driver(spec.driver);
    let really = driver.is_some_and(|driver| driver.can_run(Accel::Kvm)) && spec.accel.allows(Accel::Kvm);
    let features = host.cpu_features.iter().filter(|_| is_hosts && really);
    features.map(|name| vec![Fact::new(FactKind::CpuFeature, name)]).collect()
}

impl VmEntry {
    /// As the fleet knows it. What its guest has seen of a host's CPU is added by [`VmEntry::on`].
    #[must_use]
    pub fn from_model(vm: &Vm) -> Self {
        let power = |power: &str| vec![Fact::new(FactKind::Power, format!("{} {power}", vm.spec.driver))];
        let mut move_needs = vec![power("Migrate")];
        if vm.spec.has_local_disks() {
            move_needs.push(power("MigrateStorage"));
        }
        let mut demand = demand(&vm.spec, &vm.metadata.labels);
        if let Some(built) = &vm.status.built {
            // Its process has that until it ends, whatever the next one is to have.
            let (cpus, mem_mib) = (built.cpus.max(vm.spec.cpus), built.mem_mib.max(vm.spec.mem_mib));
            demand.amounts = Amounts::new(u64::from(cpus) * 1_000, mem_mib);
        }
        let runs = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused);
        let empty_mib = vm.spec.disks.iter().map(|disk| match disk.source {
            DiskSource::EmptyMib(size) => size,
            _ => 0,
        });
        Self {
            local_disk_mib: empty_mib.sum(),
            move_needs,
            movable: runs && vm.spec.placement.host.is_none() && vm.status.migration.is_none(),
            ..Self::new(vm.metadata.uid, vm.metadata.name.clone(), demand)
        }
    }

    /// The same once it has that host: its disks are made, and from no image any more.
    #[must_use]
    pub fn on(vm: &Vm, host: &HostCapabilities) -> Self {
        let mut entry = Self::from_model(vm);
        entry.demand.images.clear();
        entry.move_needs.extend(seen_features(&vm.spec, host));
        entry
    }
}

impl Policy {
    /// What may be promised of a host that has so much.
    #[must_use]
    pub fn promised(&self, physical: Amounts) -> Amounts {
        let percent = |amount: u64, percent: u32| amount.saturating_mul(percent.into()) / 100;
        let cpu = physical.cpu_milli.saturating_sub(self.host_reserve_cpu_milli);
        let mem = physical.mem_mib.saturating_sub(self.host_reserve_mib);
        Amounts {
            cpu_milli: percent(cpu, self.cpu_overcommit_percent),
            mem_mib: percent(mem, self.mem_overcommit_percent),
            ..physical
        }
    }
}

impl Snapshot {
    /// Built from plain objects. `guests` says which host each VM is on, or on its way to: a VM named twice is on the
    /// first and holds room on the second. Hosts are numbered in the order of their names.
    #[must_use]
    pub fn new<'a>(
        policy: Policy,
        hosts: impl Iterator<Item = &'a Host>,
        guests: impl Iterator<Item = (HostId, &'a Vm)>,
    ) -> Self {
        let mut hosts: Vec<&Host> = hosts.collect();
        hosts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut snapshot = Self::empty(policy);
        for host in &hosts {
            let entry = HostEntry::from_model(host, &snapshot.policy);
            snapshot.add_host(&entry);
        }
        let capabilities: BTreeMap<HostId, &HostCapabilities> =
            hosts.iter().map(|host| (host.metadata.uid, &host.status.capabilities)).collect();
        for (host, vm) in guests {
            let Some((known, host)) = capabilities.get(&host).zip(snapshot.find_host(host)) else { continue };
            let seat = Seat { host, nodes: NodeSet::default() };
            let vm =
                snapshot.find_vm(vm.metadata.uid).unwrap_or_else(|| snapshot.add_vm(&VmEntry::on(vm, known)));
            match snapshot.vm(vm).at {
                None => snapshot.put(vm, seat),
                Some(at) if at.host != host => snapshot.hold(vm, seat),
                Some(_) => {}
            }
        }
        // The replicated state has the last word on what was promised.
        for host in hosts {
            let Some(at) = snapshot.find_host(host.metadata.uid) else { continue };
            let reserved = host.status.reserved;
            snapshot.set_used(at, Amounts::new(reserved.cpus * 1_000, reserved.mem_mib));
        }
        snapshot
    }

    /// A place for a VM that waits. The VM is added if it is not there yet.
    pub fn start(&mut self, vm: &Vm) -> Request {
        let at = self.known(vm);
        let mut request = Request::start(self, at);
        // What was started once is let in again after a crash: keeping it out would be the failure that room is kept for.
        request.spare = if vm.status.restarts == 0 { self.policy.failover_hosts } else { 0 };
        request.pins = self.asked_host(vm.spec.placement.host.as_ref()).into_iter().collect();
        let saved =
            vm.status.saved.as_ref().map(|saved| (saved.host, Reason::SavedElsewhere, "saved memory is"));
        let disks = vm.status.volumes_on.map(|host| (host, Reason::VolumesElsewhere, "disks are"));
        request.pins.extend(saved.or(disks).map(|(host, reason, what)| Pin {
            host: self.find_host(host),
            reason,
            text: format!("the VM's {what} on another host"),
        }));
        request
    }

    /// A place for a VM that runs and is to move alive, to `to` if that is said: its disks go with it.
    pub fn migrate(&mut self, vm: &Vm, from: HostId, to: Option<&Name>) -> Request {
        let at = self.known(vm);
        let mut request = Request::to_move(self, at);
        request.from = self.find_host(from);
        let asked = [to, vm.spec.placement.host.as_ref()];
        request.pins = asked.into_iter().filter_map(|name| self.asked_host(name)).collect();
        request
    }

    fn known(&mut self, vm: &Vm) -> VmIdx {
        self.find_vm(vm.metadata.uid).unwrap_or_else(|| self.add_vm(&VmEntry::from_model(vm)))
    }

    fn asked_host(&self, name: Option<&Name>) -> Option<Pin> {
        let name = name?;
        let text = format!("the VM is to be on host {name}");
        Some(Pin { host: self.host_named(name), reason: Reason::OtherHostAsked, text })
    }

    /// Counts a placement in, so that the next decision sees it: a VM that moves holds room, one that waits sits down.
    pub fn accept(&mut self, request: &Request, seat: Seat) {
        let Some(vm) = request.vm else { return };
        if request.from.is_some() {
            self.hold(vm, seat);
        } else {
            self.put(vm, seat);
        }
    }

    /// Names of hosts, for people.
    #[must_use]
    pub fn host_name(&self, host: HostIdx) -> &Name {
        &self.host(host).name
    }
}
