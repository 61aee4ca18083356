//! How the vocabulary reads, and what it refuses.

use serde_json::json;

use crate::capabilities::DriverName;
use crate::desired::{Assignment, Role};
use crate::image::{ImageFormat, ImageSpec};
use crate::vm::{Boot, Disk, DiskBus, DiskSource, FileRef, Mac, MachineType, Nic, NicModel, NicNetwork};
use crate::vm::{CloudInit, Power, VmSpec, Vnc, VncPort};
use crate::{Incarnation, Invalid, Kind, Name, Object, Secret, Timestamp, VmId};

const GOLDEN: &str = r#"{
  "kind": "Vm",
  "metadata": {
    "name": "web",
    "uid": "00000000-0000-0000-0000-000000000001",
    "labels": {
      "tier": "front"
    },
    "generation": 2,
    "revision": 7,
    "created": "2026-11-23T10:00:00.250Z"
  },
  "spec": {
    "power": "running",
    "cpus": 2,
    "mem_mib": 512,
    "driver": "qemu",
    "accel": "any",
    "arch": "x86_64",
    "machine": "q35",
    "boot": {
      "kernel": {
        "kernel": {
          "image": "vmlinuz"
        },
        "cmdline": "console=ttyS0"
      }
    },
    "disks": [
      {
        "name": "vda",
        "bus": "virtio",
        "format": "qcow2",
        "source": {
          "empty_mib": 64
        }
      }
    ],
    "nics": [
      {
        "mac": "52:54:00:12:34:56",
        "model": "virtio",
        "network": "user"
      }
    ],
    "vnc": {
      "port": {
        "fixed": 5901
      },
      "password": "geheim"
    },
    "restart": "on_crash"
  },
  "status": {
    "phase": "Stopped",
    "incarnation": 0,
    "restarts": 0,
    "since": "1970-01-01T00:00:00.000Z"
  }
}"#;

/// One VM reads as it did when this text was published: the shape, the names and the order.
#[test]
fn a_vm_reads_as_published() {
    let object: Object = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(serde_json::to_string_pretty(&object).unwrap(), GOLDEN);
    assert_eq!(object.kind(), Kind::Vm);
    assert_eq!(object.name().as_str(), "web");
    let Object::Vm(vm) = object else { panic!("not a VM") };
    vm.spec.validate().unwrap();
    assert_eq!(vm.spec.images().into_iter().map(Name::as_str).collect::<Vec<_>>(), ["vmlinuz"]);
}

/// The same VM in YAML, as people write it, is the same object. YAML goes through a JSON value on purpose: read straight,
/// the YAML crate wants `!image vmlinuz` tags where JSON has `{"image": "vmlinuz"}`.
#[test]
fn a_vm_reads_from_yaml() {
    let yaml = r#"
kind: Vm
metadata: {name: web, uid: 00000000-0000-0000-0000-000000000001, labels: {tier: front},
  generation: 2, revision: 7, created: 2026-11-23T11:00:00.25+01:00}
spec:
  power: running
  cpus: 2
  mem_mib: 512
  boot:
    kernel:
      kernel: {image: vmlinuz}
      cmdline: console=ttyS0
  disks:
    - name: vda
      source: {empty_mib: 64}
  nics:
    - mac: "52:54:00:12:34:56"
  vnc: {port: {fixed: 5901}, password: geheim}
status: {phase: Stopped, incarnation: 0, restarts: 0, since: "1970-01-01T00:00:00Z"}
"#;
    let value: serde_json::Value = serde_norway::from_str(yaml).unwrap();
    let object: Object = serde_json::from_value(value).unwrap();
    assert_eq!(object, serde_json::from_str(GOLDEN).unwrap());
    let spec = serde_norway::to_string(&DiskSource::EmptyMib(64)).unwrap();
    assert_eq!(spec.trim(), "!empty_mib 64");
}

/// A misspelt field of a spec is refused by its name, not ignored.
#[test]
fn unknown_spec_fields_are_refused() {
    let error = serde_json::from_value::<VmSpec>(json!({"mem_mib": 64, "memory": 64})).unwrap_err();
    assert!(error.to_string().contains("`memory`"), "{error}");
}

/// A secret shows in no debug text, and a redacted object holds none.
#[test]
fn secrets_do_not_show() {
    let mut object: Object = serde_json::from_str(GOLDEN).unwrap();
    assert!(!format!("{object:?}").contains("geheim"));
    object.redact();
    let text = serde_json::to_string(&object).unwrap();
    assert!(!text.contains("geheim") && text.contains(Secret::REDACTED), "{text}");
    let Object::Vm(vm) = object else { panic!("not a VM") };
    vm.spec.validate().expect("a redacted spec may be written back");
    let assignment = Assignment {
        vm: VmId(uuid::Uuid::nil()),
        name: "web".parse().unwrap(),
        incarnation: Incarnation(1),
        continues: None,
        built: None,
        spec: VmSpec {
            vnc: Some(Vnc { password: Some(Secret::new("geheim")), ..Vnc::default() }),
            ..vm.spec
        },
        role: Role::Hold,
    };
    assert!(!format!("{assignment:?}").contains("geheim"));
    assert!(serde_json::to_string(&assignment).unwrap().contains("geheim"), "the host needs it");
}

/// Names fit a DNS label and a file name, and nothing that a path or a shell would read otherwise.
#[test]
fn names() {
    let longest = "a".repeat(63);
    for good in ["a", "0", "web-1", "Web_1.example", &longest] {
        assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
    }
    let long = "a".repeat(64);
    for bad in ["", "-a", ".", "..", "_a", "a b", "a/b", "ä", "a\n", &long] {
        let refusal = bad.parse::<Name>().unwrap_err();
        assert_eq!(refusal.field, "name");
        serde_json::from_value::<Name>(json!(bad)).unwrap_err();
    }
}

/// MAC addresses read in the one common form, unicast only, and are written in lower case.
#[test]
fn macs() {
    assert_eq!("52:54:00:AB:cd:0f".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:0f");
    for bad in [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "5:54:00:12:34:56",
        "+5:54:00:12:34:56",
        "zz:54:00:12:34:56",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
    ] {
        assert_eq!(bad.parse::<Mac>().expect_err(bad).field, "mac");
    }
}

/// Times read as RFC 3339 with milliseconds, whatever offset they were written with, and never as a negative number.
#[test]
fn timestamps() {
    for (millis, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
        (Timestamp::MAX.0, "9999-12-30T22:00:00.000Z"),
    ] {
        assert_eq!(serde_json::to_value(Timestamp(millis)).unwrap(), json!(text));
        assert_eq!(serde_json::from_value::<Timestamp>(json!(text)).unwrap(), Timestamp(millis));
    }
    let offset = serde_json::from_value::<Timestamp>(json!("1970-01-01T01:00:00.5+01:00")).unwrap();
    assert_eq!(offset, Timestamp(500));
    for bad in ["", "yesterday", "1969-12-31T23:59:59Z", "2026-02-30T00:00:00Z"] {
        serde_json::from_value::<Timestamp>(json!(bad)).expect_err(bad);
    }
}

/// An image is named by 64 lower-case hex digits and has a size.
#[test]
fn image_specs() {
    let good = ImageSpec {
        format: ImageFormat::Raw,
        sha256: "0123456789abcdef".repeat(4),
        size_bytes: 1,
        source: String::new(),
    };
    good.validate().unwrap();
    for sha256 in [String::new(), "0".repeat(63), "0".repeat(65), "A".repeat(64), "g".repeat(64)] {
        let refusal = ImageSpec { sha256, ..good.clone() }.validate().unwrap_err();
        assert_eq!(refusal.field, "spec.sha256");
    }
    for size_bytes in [0, (2 << 40) + 1] {
        let refusal = ImageSpec { size_bytes, ..good.clone() }.validate().unwrap_err();
        assert_eq!(refusal.field, "spec.size_bytes");
    }
}

fn disk(name: &str, bus: DiskBus, source: DiskSource) -> Disk {
    let name = name.parse().unwrap();
    Disk { name, bus, format: Default::default(), source, shared: false, read_only: false }
}

/// Every refusal of a VM's spec names the field, as it is written in YAML, and says what would be right.
#[test]
fn bad_vm_specs_are_refused_by_field() {
    let empty = || disk("vda", DiskBus::Virtio, DiskSource::EmptyMib(64));
    let kernel = |path: &str, cmdline: String| Boot::Kernel {
        kernel: FileRef::Path(path.to_owned()),
        initrd: None,
        cmdline,
    };
    let nic = |model, network| Nic { mac: None, model, network };
    let vnc = |vnc: Vnc| VmSpec { vnc: Some(vnc), ..VmSpec::new(64) };
    let on = |machine| VmSpec { machine, ..VmSpec::new(64) };
    let disks = |disks| VmSpec { disks, ..VmSpec::new(64) };
    let table = [
        ("spec.cpus", VmSpec { cpus: 0, ..VmSpec::new(64) }),
        ("spec.cpus", VmSpec { cpus: 289, ..VmSpec::new(64) }),
        ("spec.mem_mib", VmSpec::new(15)),
        ("spec.mem_mib", VmSpec::new((4 << 20) + 1)),
        ("spec.cpu_model", VmSpec { cpu_model: "host;rm".into(), ..VmSpec::new(64) }),
        ("spec.boot", on(MachineType::Microvm)),
        ("spec.boot.kernel.path", VmSpec { boot: kernel("vmlinuz", String::new()), ..VmSpec::new(64) }),
        ("spec.boot.cmdline", VmSpec { boot: kernel("/k", "a\0".into()), ..VmSpec::new(64) }),
        ("spec.boot.cmdline (bytes)", VmSpec { boot: kernel("/k", "a".repeat(2048)), ..VmSpec::new(64) }),
        ("spec.disks", disks(vec![empty(); 17])),
        ("spec.disks[1].name", disks(vec![empty(); 2])),
        ("spec.disks[0].bus", disks(vec![disk("hda", DiskBus::Ide, DiskSource::EmptyMib(64))])),
        ("spec.disks[0].source.empty_mib", disks(vec![disk("a", DiskBus::Virtio, DiskSource::EmptyMib(0))])),
        (
            "spec.disks[0].source.path",
            disks(vec![disk("a", DiskBus::Sata, DiskSource::Path("/a/../b".into()))]),
        ),
        ("spec.disks[0].shared", disks(vec![Disk { shared: true, ..empty() }])),
        (
            "spec.nics[0].model",
            VmSpec {
                nics: vec![nic(NicModel::E1000, NicNetwork::User)],
                boot: kernel("/k", String::new()),
                ..on(MachineType::Microvm)
            },
        ),
        (
            "spec.nics[0].network.tap",
            VmSpec { nics: vec![nic(NicModel::E1000, NicNetwork::Tap("a b".into()))], ..VmSpec::new(64) },
        ),
        ("spec.vnc.listen", vnc(Vnc { listen: "localhost".into(), ..Vnc::default() })),
        ("spec.vnc.port", vnc(Vnc { port: VncPort::Fixed(80), ..Vnc::default() })),
        (
            "spec.vnc.password (bytes)",
            vnc(Vnc { password: Some(Secret::new("neun zwei")), ..Vnc::default() }),
        ),
        ("spec.cloud_init.user_data", seeded("echo hi", "")),
        ("spec.cloud_init.user_data (bytes)", seeded("", "")),
        ("spec.cloud_init.network_config (bytes)", seeded("#cloud-config", &"a".repeat(16 << 10 | 1))),
        ("spec.cloud_init", VmSpec { driver: DriverName::Libvirt, ..seeded("#!/bin/sh", "") }),
        (
            "spec.disks[0].name",
            VmSpec {
                disks: vec![disk("cidata", DiskBus::Virtio, DiskSource::EmptyMib(8))],
                ..seeded("#!/bin/sh", "")
            },
        ),
    ];
    for (field, spec) in table {
        let Invalid { field: named, problem, allowed } = spec.validate().expect_err(field);
        assert_eq!(named, field);
        assert!(!problem.is_empty() && !allowed.is_empty(), "{field}");
    }
}

fn seeded(user_data: &str, network_config: &str) -> VmSpec {
    let (user_data, network_config) = (Some(Secret::new(user_data)), network_config.to_owned());
    VmSpec { cloud_init: Some(CloudInit { user_data, network_config }), ..VmSpec::new(64) }
}

/// What is allowed is not refused: every bus on its board, and a path with a space.
#[test]
fn sound_vm_specs_are_taken() {
    let empty = disk("vda", DiskBus::Virtio, DiskSource::EmptyMib(64));
    let mut sound = VmSpec { power: Power::Running, disks: vec![empty], ..VmSpec::new(64) };
    sound.validate().unwrap();
    sound.disks[0] = disk("sda", DiskBus::Sata, DiskSource::Path("/srv/a b.qcow2".into()));
    sound.validate().unwrap();
    assert!(sound.has_local_disks());
    sound.disks[0].bus = DiskBus::Ide;
    sound.machine = MachineType::Pc;
    sound.disks[0].shared = true;
    sound.validate().unwrap();
    assert!(!sound.has_local_disks());
}
