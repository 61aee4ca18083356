use std::path::{Path, PathBuf};

use dunlin_model::capabilities::Accel;
use dunlin_model::migration::MigrationLimits;
use dunlin_model::vm::{
    Arch, Boot, DiskBus, DiskFormat, FileRef, MachineType, Nic, NicModel, NicNetwork, VmSpec, Vnc, VncPort,
};
use dunlin_model::{Incarnation, Secret};

use super::{Surroundings, arguments, local_disks};
use crate::hypervisor::{Launch, LaunchDisk, LaunchMode, LaunchNic};

fn launch() -> Launch {
    Launch {
        vm: "6ecd1b2e-0000-4000-8000-00000000a1b2".parse().expect("uid"),
        name: "web-1".parse().expect("name"),
        incarnation: Incarnation(3),
        spec: VmSpec::new(256),
        disks: Vec::new(),
        kernel: None,
        initrd: None,
        nics: Vec::new(),
        layout: None,
        mode: LaunchMode::Boot,
        paused: false,
    }
}

fn disk(name: &str, path: &str, format: DiskFormat, bus: DiskBus) -> LaunchDisk {
    let name = name.parse().expect("name");
    LaunchDisk { name, path: path.into(), format, bus, read_only: false, shared: false }
}

fn line(launch: &Launch, accel: Accel, direct: &[bool]) -> String {
    let seats = super::Seats::of(launch).expect("no layout");
    let around = Surroundings {
        accel,
        qmp_fd: 20,
        console_fd: 21,
        token: &super::token(launch),
        serial_log: Path::new("/run/a,b/serial.log"),
        direct,
        seats: &seats,
    };
    let words = arguments(launch, &around);
    // One option a line, its value behind it.
    words.join(" ").replace(" -", "\n-")
}

fn check(launch: &Launch, accel: Accel, direct: &[bool], expect: &str) {
    let got = line(launch, accel, direct);
    assert_eq!(got, expect.trim(), "\n--- got:\n{got}\n");
}

/// The whole line of a guest of the usual kind: everything that must be the same on two hosts is fixed here.
#[test]
fn a_usual_guest() {
    let mut launch = launch();
    launch.spec.cpus = 2;
    let kernel = FileRef::Path("/k".into());
    launch.spec.boot = Boot::Kernel { kernel, initrd: None, cmdline: "console=ttyS0 a,b".into() };
    launch.kernel = Some("/boot/vm linux".into());
    launch.initrd = Some("/boot/initrd".into());
    launch.disks = vec![disk("vda", "/d/a,\"b.qcow2", DiskFormat::Qcow2, DiskBus::Virtio)];
    let network = NicNetwork::User;
    let mac = Some("52:54:00:12:34:56".parse().expect("mac"));
    launch.spec.nics = vec![
        Nic { mac, model: NicModel::Virtio, network: network.clone() },
        Nic { mac: None, model: NicModel::E1000, network },
    ];
    launch.nics = vec![LaunchNic::User, LaunchNic::Tap("tap7".into())];
    let password = Some(Secret::new("hunter2"));
    launch.spec.vnc = Some(Vnc { listen: String::new(), port: VncPort::Auto, password });
    check(&launch, Accel::Tcg, &[], include_str!("golden/usual.txt"));
    assert!(
        !line(&launch, Accel::Tcg, &[]).contains("hunter2"),
        "every user of the host can read a command line"
    );
}

/// The receiving side: nothing runs, read-only local disks can be filled, shared ones bypass the page cache.
#[test]
fn a_receiving_guest() {
    let mut launch = launch();
    launch.spec.machine = MachineType::Pc;
    launch.spec.vnc = Some(Vnc { listen: "::1".into(), port: VncPort::Fixed(5907), password: None });
    launch.disks = vec![
        disk("hda", "/d/hda.raw", DiskFormat::Raw, DiskBus::Ide),
        LaunchDisk { read_only: true, ..disk("iso", "/d/cd.iso", DiskFormat::Raw, DiskBus::Ide) },
        LaunchDisk { shared: true, ..disk("vda", "/nfs/vda", DiskFormat::Vmdk, DiskBus::Virtio) },
    ];
    launch.mode = LaunchMode::Incoming { listen: "10.0.0.2".into(), limits: MigrationLimits::default() };
    check(&launch, Accel::Kvm, &[false, false, true], include_str!("golden/receiving.txt"));
    let mirrored: Vec<_> =
        local_disks(&launch).into_iter().map(|(node, name)| format!("{node}={name}")).collect();
    assert_eq!(mirrored, ["disk0=hda", "disk1=iso"]);
}

/// Boards and buses beyond the usual ones.
#[test]
fn odd_boards() {
    let mut micro = launch();
    micro.spec.machine = MachineType::Microvm;
    micro.spec.cpu_model = "max,+avx2".into();
    micro.nics = vec![LaunchNic::User];
    micro.disks = vec![disk("vda", "/d/a", DiskFormat::Raw, DiskBus::Virtio)];
    let got = line(&micro, Accel::Tcg, &[]);
    for part in
        ["virtio-blk-device,drive=disk0,bootindex=1", "virtio-net-device,netdev=net0,mac=52:00:00:a1:b2:00"]
    {
        assert!(got.contains(part), "{part} in {got}");
    }
    assert!(got.contains("-cpu max,+avx2") && !got.contains("pvpanic") && !got.contains("pci"), "{got}");

    let mut old = launch();
    old.spec.arch = Arch::I686;
    old.disks = (0..8).map(|n| disk(&format!("sd{n}"), "/d", DiskFormat::Raw, DiskBus::Sata)).collect();
    old.mode = LaunchMode::Restore(PathBuf::from("/saved"));
    let got = line(&old, Accel::Kvm, &[]);
    assert!(got.contains("-cpu qemu32") && got.ends_with("-incoming defer"), "{got}");
    for part in
        ["bus=ide.5,drive=disk5", "ich9-ahci,id=ahci1", "bus=ahci1.0,drive=disk6", "bus=ahci1.1,drive=disk7"]
    {
        assert!(got.contains(part), "{part} in {got}");
    }
}
