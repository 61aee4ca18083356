//! What is written at which level.

use std::collections::BTreeMap;

use dunlin_model::capabilities::{DriverPower, HostCapabilities};
use dunlin_model::event::Event;
use dunlin_model::vm::device::{Disk, DiskBus, DiskFormat, DiskSource};
use dunlin_model::vm::{Built, CloudInit, VmSpec};
use dunlin_model::{ClusterId, ErrorCode, Kind, Labels, Level, Name};
use uuid::Uuid;

use super::{Fleet, capabilities, host_id, vm_id};
use crate::command::{Command, NewVm, Seen, Write};
use crate::{readable, snapshot};

fn resources() -> BTreeMap<String, u64> {
    BTreeMap::from([("licence/db".to_owned(), 2)])
}

fn wanting() -> VmSpec {
    let mut spec = VmSpec::new(64);
    spec.placement.resources = resources();
    spec
}

fn set_host(fleet: &Fleet, rack: &str, resources: BTreeMap<String, u64>) -> Write {
    let host = fleet.state.host(host_id(0)).unwrap();
    Write::UpdateHost {
        uid: host_id(0),
        revision: host.metadata.revision,
        labels: Labels::new(),
        cordoned: false,
        rack: Some(rack.parse().unwrap()),
        zone: None,
        taints: Labels::new(),
        resources,
    }
}

/// One more disk for a VM.
fn more(fleet: &Fleet, number: u64) -> Write {
    let vm = fleet.state.vm(vm_id(number)).unwrap();
    let mut spec = vm.spec.clone();
    spec.disks.push(Disk {
        name: "vda".parse().unwrap(),
        bus: DiskBus::Virtio,
        format: DiskFormat::Raw,
        source: DiskSource::EmptyMib(1),
        shared: false,
        read_only: false,
    });
    Write::UpdateVm { uid: vm_id(number), revision: vm.metadata.revision, labels: Labels::new(), spec }
}

fn abilities() -> HostCapabilities {
    let mut capabilities = capabilities();
    capabilities.drivers[0].powers.insert(DriverPower::HotPlug);
    capabilities
}

/// Everything that level 2 brought, as a proposal.
fn level_2(fleet: &mut Fleet) -> Vec<Command> {
    let incarnation = fleet.state.vm(vm_id(1)).unwrap().status.incarnation;
    let built = Some(Built { layout: "slots".into(), ..Built::of(&VmSpec::new(64)) });
    let name = |text: &str| -> Name { text.parse().unwrap() };
    let (labels, own_uid) = (Labels::new(), false);
    let new = NewVm { uid: vm_id(8), own_uid, name: name("vm8"), labels: labels.clone(), spec: wanting() };
    let create = Write::CreateVm { uid: vm_id(9), own_uid, name: name("vm9"), labels, spec: wanting() };
    let checked = Write::Checked { expect: None, claim: None, asked: String::new(), write: Box::new(create) };
    let seeded = VmSpec { cloud_init: Some(CloudInit::default()), ..VmSpec::new(64) };
    let seeded =
        Write::CreateVm { uid: vm_id(7), own_uid, name: name("vm7"), labels: Labels::new(), spec: seeded };
    let writes = [set_host(fleet, "r1", resources()), Write::CreateVms { vms: vec![new] }, checked, seeded];
    let mut commands: Vec<_> = writes
        .into_iter()
        .enumerate()
        .map(|(number, write)| Command::Write { key: format!("l{number}"), write })
        .collect();
    commands.push(Command::SetCapabilities { host: host_id(0), session: 1, capabilities: abilities() });
    let seen = Seen::Built(built);
    commands.push(Command::Observe { vm: vm_id(1), host: host_id(0), incarnation, seen });
    commands
}

/// In a cluster at level 1 nothing is taken that a release of that level does not read, whoever proposes it and however it is
/// wrapped, with the level it needs; what is taken has the effect it had there, down to the words of events; once the level is
/// raised, one by one, all of it is.
#[test]
fn below_its_level_everything_is_as_it_was() {
    let mut fleet = Fleet::at(Level::OLDEST, 1);
    fleet.running(1, 0, 64);
    for command in level_2(&mut fleet) {
        let refused = fleet.refused(&command);
        assert_eq!((refused.code, command.level()), (ErrorCode::WrongState, Level(2)), "{command:?}");
        assert!(refused.message.contains("needs feature level 2, and the cluster is at 1"), "{refused}");
        assert_eq!(readable(&fleet.state, &command), Err(refused), "and it is not even written");
    }
    let update = more(&fleet, 1);
    let refused = fleet.write_refused(update);
    assert!(refused.message.contains("stop it first, or raise the feature level to 2"), "{refused}");
    let update = set_host(&fleet, "r1", BTreeMap::new());
    fleet.write_ok(update);
    let told = |fleet: &Fleet| {
        let changed = fleet.state.all::<Event>().filter(|event| event.spec.reason == "HostChanged");
        changed.max_by_key(|event| event.metadata.revision).unwrap().spec.message.clone()
    };
    assert_eq!(told(&fleet), "its rack, zone or taints were changed");

    let refused = fleet.refused(&Command::RaiseLevel { to: Level(3) });
    assert!(refused.message.contains("one by one"), "{refused}");
    fleet.ok(&Command::RaiseLevel { to: Level(2) });
    fleet.ok(&Command::RaiseLevel { to: Level(2) });
    assert_eq!(fleet.state.level(), Level(2));
    for command in level_2(&mut fleet) {
        fleet.ok(&command);
    }
    let update = more(&fleet, 1);
    fleet.write_ok(update);
    let update = set_host(&fleet, "r2", resources());
    fleet.write_ok(update);
    assert_eq!(told(&fleet), "its rack, zone, taints or resources were changed");
    fleet.ok(&Command::RaiseLevel { to: Level::OLDEST });
    assert_eq!(fleet.state.level(), Level(2), "levels never fall");
}

/// A release that knows no levels finds nothing new in what is written at the oldest one, and refuses the snapshot of a cluster
/// that was raised instead of losing what it does not know.
#[test]
fn who_knows_no_levels_is_not_misled() {
    let founding = |level| {
        let (uid, name) = (ClusterId(Uuid::nil()), "c".parse().unwrap());
        serde_json::to_value(Command::FoundCluster { uid, name, controllers: Vec::new(), level }).unwrap()
    };
    assert!(founding(Level::OLDEST)["found_cluster"].get("level").is_none());
    assert_eq!(founding(Level(2))["found_cluster"]["level"], 2);
    let head = |fleet: &Fleet| {
        let mut bytes = Vec::new();
        snapshot::encode(&fleet.state, &mut bytes).unwrap();
        assert_eq!(snapshot::decode(&mut bytes.as_slice()).unwrap(), fleet.state);
        let head: serde_json::Value =
            serde_json::from_slice(bytes.split(|b| *b == b'\n').next().unwrap()).unwrap();
        head["head"]["version"].as_u64().unwrap()
    };
    let mut fleet = Fleet::at(Level::OLDEST, 1);
    assert_eq!(head(&fleet), 2, "what 0.1 reads");
    fleet.ok(&Command::RaiseLevel { to: Level(2) });
    assert_eq!(head(&fleet), u64::from(snapshot::VERSION));
    assert!(fleet.state.objects_of(Kind::Host).count() == 1);
}

/// What a host says of itself is laid down as everybody reads it: a driver that is away has, to a release that does not know the
/// word, nothing that works.
#[test]
fn abilities_are_told_as_they_are_read() {
    let mut all = abilities();
    all.drivers[0].away = "it hangs".into();
    all.images.insert("0".repeat(64));
    assert_eq!((all.level(), all.clone().at(Level(2))), (Level::MORE_OF_HOSTS, all.clone()));
    let read = all.at(Level::OLDEST);
    assert_eq!((read.level(), read.images.len()), (Level::OLDEST, 0));
    let driver = &read.drivers[0];
    assert!(!driver.powers.contains(&DriverPower::HotPlug) && driver.away.is_empty());
    assert!(driver.accels.iter().all(|accel| !accel.usable && accel.evidence == "it hangs"), "{driver:?}");
}
