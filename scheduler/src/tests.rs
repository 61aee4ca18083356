//! Golden cases: a fleet and a request in a few words, the decision in one line.

use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use dunlin_model::cluster::{ClusterSpec, PlacementPolicy};
use dunlin_model::host::{Host, HostPhase, HostSpec, HostStatus, Reserved};
use dunlin_model::meta::Metadata;
use dunlin_model::vm::{AccelChoice, Nic, NicNetwork, SavedState, Vm, VmPhase, VmSpec, VmStatus};
use dunlin_model::{Generation, HostId, Labels, Revision, Timestamp, VmId};
use proptest::prelude::*;

use crate::{Policy, Snapshot, place};

type Tweak = fn(&mut Host);

fn uid(number: u128) -> HostId {
    HostId(format!("{number:032x}").parse::<VmId>().unwrap().0)
}

/// Hosts h1, h2, ... of 4 CPUs and 1024 MiB, each changed by its tweak.
fn hosts(tweaks: &[Tweak]) -> Vec<Host> {
    let build = |(number, tweak): (u128, &Tweak)| {
        let probe = |accel, usable| AccelProbe { accel, usable, evidence: "probed".to_owned() };
        let driver = DriverCapabilities {
            name: DriverName::Qemu,
            accels: vec![probe(Accel::Kvm, false), probe(Accel::Tcg, true)],
            machines: ["q35", "pc"].map(str::to_owned).into(),
            cpu_models: ["qemu64"].map(str::to_owned).into(),
            powers: [DriverPower::Migrate].into(),
            ..DriverCapabilities::default()
        };
        let capabilities = HostCapabilities {
            cpus: 4,
            mem_mib: 1_024,
            drivers: vec![driver],
            ..HostCapabilities::default()
        };
        let metadata = Metadata {
            name: format!("h{number}").parse().unwrap(),
            uid: uid(number),
            labels: Labels::new(),
            generation: Generation(1),
            revision: Revision(1),
            created: Timestamp(0),
        };
        let status = HostStatus { phase: HostPhase::Up, capabilities, ..HostStatus::default() };
        let mut host = Host { metadata, spec: HostSpec::default(), status };
        tweak(&mut host);
        host
    };
    (1..).zip(tweaks).map(build).collect()
}

fn vm(number: u128, labels: &[(&str, &str)], spec: VmSpec) -> Vm {
    let metadata = Metadata {
        name: format!("v{number}").parse().unwrap(),
        uid: VmId(uid(1_000 + number).0),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        generation: Generation(1),
        revision: Revision(1),
        created: Timestamp(0),
    };
    Vm { metadata, spec, status: VmStatus::default() }
}

fn policy(placement: PlacementPolicy) -> Policy {
    (&ClusterSpec { placement, host_reserve_mib: 0, ..ClusterSpec::default() }).into()
}

struct Case {
    hosts: Vec<Host>,
    placement: PlacementPolicy,
    vm: Vm,
    from: Option<HostId>,
    /// VMs that are there already.
    guests: Vec<(HostId, Vm)>,
}

impl Case {
    fn new(tweaks: &[Tweak], spec: impl FnOnce(&mut VmSpec)) -> Self {
        let mut vm = vm(1, &[], VmSpec::new(512));
        spec(&mut vm.spec);
        let placement = PlacementPolicy::Spread;
        Self { hosts: hosts(tweaks), placement, vm, from: None, guests: Vec::new() }
    }

    fn decide(&self) -> String {
        let guests = self.guests.iter().map(|(host, vm)| (*host, vm));
        let mut snapshot = Snapshot::new(policy(self.placement), self.hosts.iter(), guests);
        let request = match self.from {
            Some(from) => snapshot.migrate(&self.vm, from, None),
            None => snapshot.start(&self.vm),
        };
        let decision = place(&snapshot, &request);
        let told = |scored: &Option<crate::Scored>| {
            scored.as_ref().map_or("-".to_owned(), |scored| format!("{} {}", scored.name, scored.score))
        };
        let explain = decision.explain();
        format!(
            "{} | {} | {} | {explain}",
            told(&decision.winner),
            told(&decision.runner_up),
            decision.reason()
        )
    }
}

fn check(case: &Case, expected: &str) {
    assert_eq!(case.decide(), expected);
}

fn used(host: &mut Host, mem_mib: u64, cpus: u64) {
    host.status.reserved = Reserved { cpus, mem_mib, vms: 1 };
}

const ANY: Tweak = |_| {};
const DOWN: Tweak = |host| host.status.phase = HostPhase::Down;
const CORDONED: Tweak = |host| host.spec.cordoned = true;
const HALF: Tweak = |host| used(host, 256, 4);
const FULL: Tweak = |host| used(host, 724, 4);
const FULLER: Tweak = |host| used(host, 924, 4);

/// The emptiest host wins under spread, the fullest that fits under pack, the name among equals.
#[test]
fn the_best_host_wins() {
    check(&Case::new(&[HALF, ANY], |_| {}), "h2 12180 | h1 9680 | NoHosts | ");
    let mut pack = Case::new(&[HALF, ANY], |_| {});
    pack.placement = PlacementPolicy::Pack;
    check(&pack, "h1 21064 | h2 20564 | NoHosts | ");
    check(&Case::new(&[ANY, ANY, ANY], |_| {}), "h1 12180 | h2 12180 | NoHosts | ");
}

/// Hosts refused for one reason are told together, the largest group first, with what is needed and what is left.
#[test]
fn a_vm_that_fits_nowhere_hears_why_per_group() {
    check(
        &Case::new(&[FULL, CORDONED, FULLER, DOWN], |_| {}),
        "- | - | Memory | 2 hosts: not enough memory (need 512 MiB, most free 300 MiB); 1 host: not up; 1 host: cordoned",
    );
    check(
        &Case::new(&[ANY], |spec| spec.cpus = 17),
        "- | - | Cpus | 1 host: not enough vCPUs (need 17, most free 16)",
    );
    check(&Case::new(&[], |_| {}), "- | - | NoHosts | the cluster has no hosts");
}

/// Each hard filter refuses what it is there for, and says it.
#[test]
fn every_filter_refuses_with_its_reason() {
    let refused = |case: &Case, reason: &str, text: &str| {
        check(case, &format!("- | - | {reason} | 1 host: {text}"));
    };
    let spec = |tweak: fn(&mut VmSpec)| Case::new(&[ANY], tweak);
    refused(
        &spec(|spec| spec.accel = AccelChoice::Kvm),
        "AccelUnusable",
        "no vCPU was seen to run as asked (probed)",
    );
    refused(&spec(|spec| spec.driver = DriverName::Test), "DriverMissing", "no driver test");
    refused(
        &spec(|spec| spec.machine = dunlin_model::vm::MachineType::Microvm),
        "MachineType",
        "no machine type microvm",
    );
    refused(&spec(|spec| "host,+vmx".clone_into(&mut spec.cpu_model)), "CpuModel", "no CPU model host");
    let network = |spec: &mut VmSpec| {
        let network = NicNetwork::Network("lan".parse().unwrap());
        spec.nics.push(Nic { mac: None, model: dunlin_model::vm::NicModel::default(), network });
    };
    refused(&spec(network), "NetworkMissing", "no network lan");
    refused(
        &spec(|spec| spec.placement.host = Some("h9".parse().unwrap())),
        "OtherHostAsked",
        "the VM is to be on host h9",
    );
    let labels =
        |spec: &mut VmSpec| drop(spec.placement.host_labels.insert("rack".to_owned(), "a".to_owned()));
    refused(&spec(labels), "HostLabels", "no label rack=a");
    let takes = |spec: &mut VmSpec| {
        spec.placement.resources.insert("licence/db".to_owned(), 2);
    };
    refused(&spec(takes), "Licences", "not enough licence/db (need 2, most free 0)");
    let has: Tweak = |host| {
        host.spec.resources.insert("licence/db".to_owned(), 3);
    };
    let mut taken = Case::new(&[has], takes);
    check(&taken, "h1 12180 | - | NoHosts | ");
    let mut other = vm(2, &[], VmSpec::new(0));
    takes(&mut other.spec);
    taken.guests = vec![(uid(1), other)];
    refused(&taken, "Licences", "not enough licence/db (need 2, most free 1)");
    let mut elsewhere = spec(|_| {});
    elsewhere.vm.status.volumes_on = Some(uid(7));
    refused(&elsewhere, "VolumesElsewhere", "the VM's disks are on another host");
    let path = "/saved".to_owned();
    elsewhere.vm.status.saved = Some(SavedState { host: uid(7), path, size_bytes: 1 });
    refused(&elsewhere, "SavedElsewhere", "the VM's saved memory is on another host");
    let mut apart = spec(|spec| drop(spec.placement.apart_from.insert("app".to_owned(), "db".to_owned())));
    apart.guests = vec![(uid(1), vm(2, &[("app", "db")], VmSpec::new(64)))];
    refused(&apart, "ApartFrom", "a VM labelled app=db is there");
    let mut moving = spec(|_| {});
    moving.from = Some(uid(1));
    refused(&moving, "IsSource", "the VM runs there already");
    let mut unable = Case::new(&[|host| host.status.capabilities.drivers[0].powers.clear()], |_| {});
    unable.from = Some(uid(9));
    refused(&unable, "CannotMigrate", "its driver takes no live migration");
    let container = |spec: &mut VmSpec| spec.driver = DriverName::Lxc;
    let arm: Tweak = |host| {
        "aarch64".clone_into(&mut host.status.capabilities.arch);
        host.status.capabilities.drivers[0].name = DriverName::Lxc;
    };
    refused(&Case::new(&[arm], container), "Arch", "no guests of architecture x86_64");
}

/// A guest that may have seen a CPU's features moves to hosts that have them; one whose CPU is named or played goes anywhere.
#[test]
fn a_guest_keeps_the_cpu_it_has_seen() {
    let real = |features: &[&str]| {
        let features = features.iter().map(|name| (*name).to_owned()).collect();
        (AccelProbe { accel: Accel::Kvm, usable: true, evidence: String::new() }, features)
    };
    let told = |model: &str, accel: AccelChoice| {
        let mut fleet = hosts(&[ANY, ANY, ANY]);
        for (host, names) in
            fleet.iter_mut().zip([&["sse2", "avx2"][..], &["sse2"], &["sse2", "avx2", "amx"]])
        {
            let capabilities = &mut host.status.capabilities;
            (capabilities.drivers[0].accels[0], capabilities.cpu_features) = real(names);
        }
        let mut guest = vm(1, &[], VmSpec::new(512));
        (guest.spec.cpu_model, guest.spec.accel) = (model.to_owned(), accel);
        guest.status.phase = VmPhase::Running;
        let guests = std::iter::once((uid(1), &guest));
        let mut snapshot = Snapshot::new(policy(PlacementPolicy::Spread), fleet.iter(), guests);
        let request = snapshot.migrate(&guest, uid(1), None);
        place(&snapshot, &request).explain()
    };
    let source = "1 host: the VM runs there already";
    assert_eq!(told("", AccelChoice::Any), format!("{source}; 1 host: no CPU feature avx2"));
    assert_eq!(told("", AccelChoice::Tcg), source);
    assert_eq!(told("qemu64", AccelChoice::Any), source);
}

proptest! {
    /// However many VMs one round places, no host is sold twice over, and nothing is refused while some host has room.
    #[test]
    fn a_round_never_oversells(sizes in proptest::collection::vec((16_u64..600, 1_u32..6), 1..60), pack: bool) {
        let fleet = hosts(&[ANY, HALF, FULL, ANY]);
        let placement = if pack { PlacementPolicy::Pack } else { PlacementPolicy::Spread };
        let vms: Vec<Vm> = (1..).zip(&sizes).map(|(number, (mem, cpus))| {
            let mut vm = vm(number, &[], VmSpec::new(*mem));
            vm.spec.cpus = *cpus;
            vm
        }).collect();
        let mut snapshot = Snapshot::new(policy(placement), fleet.iter(), std::iter::empty());
        for vm in &vms {
            let request = snapshot.start(vm);
            let need = snapshot.profile(request.profile).amounts;
            match place(&snapshot, &request).seat() {
                Some(seat) => snapshot.accept(&request, seat),
                None => prop_assert!(!snapshot.hosts().any(|(host, _)| need.fits(&snapshot.room(host).free))),
            }
        }
        for (host, row) in snapshot.hosts() {
            prop_assert!(snapshot.room(host).used.fits(&row.total));
        }
    }
}
