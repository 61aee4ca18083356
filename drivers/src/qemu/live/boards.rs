//! Every board, bus, format and card there is, against the QEMU of this machine.

use std::path::Path;
use std::process::Command;

use dunlin_model::Incarnation;
use dunlin_model::vm::{Arch, Boot, DiskBus, DiskFormat, MachineType, Nic, NicModel, NicNetwork};

use super::Fleet;
use crate::hypervisor::{Hypervisor, Launch, LaunchDisk, LaunchMode, LaunchNic, Run};

fn make_disk(path: &Path, format: DiskFormat) {
    let made =
        Command::new("qemu-img").args(["create", "-q", "-f", format.as_str()]).arg(path).arg("16M").status();
    assert!(made.expect("qemu-img").success());
}

/// Every board with every bus, format and card is accepted by the QEMU of this machine, as a boot and as the
/// receiving side of a migration; a read-only disk can be filled by its mirror all the same.
#[tokio::test(flavor = "multi_thread")]
async fn every_board_comes_up() {
    let fleet = Fleet::new();
    let qemu = fleet.driver("a");
    let buses: [(MachineType, &[DiskBus], &[NicModel]); 3] = [
        (
            MachineType::Q35,
            &[DiskBus::Virtio, DiskBus::Sata],
            &[NicModel::Virtio, NicModel::E1000, NicModel::Rtl8139],
        ),
        (
            MachineType::Pc,
            &[DiskBus::Virtio, DiskBus::Ide],
            &[NicModel::Virtio, NicModel::E1000, NicModel::Rtl8139],
        ),
        (MachineType::Microvm, &[DiskBus::Virtio], &[NicModel::Virtio]),
    ];
    let mut incarnation = 0;
    for (machine, buses, cards) in buses {
        let mut launch = fleet.launch(&fleet.disk("a"), false);
        (launch.spec.machine, launch.paused) = (machine, true);
        if machine != MachineType::Microvm {
            (launch.spec.boot, launch.kernel, launch.initrd) = (Boot::Disk, None, None);
        }
        launch.disks.clear();
        for bus in buses {
            for (format, read_only) in
                [(DiskFormat::Qcow2, false), (DiskFormat::Vmdk, false), (DiskFormat::Raw, true)]
            {
                let name = format!("{bus}-{}", format.as_str());
                let path = fleet.path(&format!("{machine:?}, {name}"));
                make_disk(&path, format);
                let name = name.parse().expect("name");
                launch.disks.push(LaunchDisk { name, path, format, bus: *bus, read_only, shared: false });
            }
        }
        let nic = |model: &NicModel| Nic { mac: None, model: *model, network: NicNetwork::User };
        launch.spec.nics = cards.iter().map(nic).collect();
        launch.nics = cards.iter().map(|_| LaunchNic::User).collect();
        let incoming = LaunchMode::Incoming { listen: "127.0.0.1".into(), limits: Default::default() };
        for (mode, arch, run) in
            [(LaunchMode::Boot, Arch::X86_64, Run::Paused), (incoming, Arch::I686, Run::Incoming)]
        {
            incarnation += 1;
            let mut launch = Launch { incarnation: Incarnation(incarnation), mode, ..launch.clone() };
            launch.spec.arch = arch;
            let guest = qemu.start(launch).await.unwrap_or_else(|e| panic!("{machine:?}: {e}"));
            assert_eq!(guest.run, run, "{machine:?}");
            assert_eq!(guest.endpoint.is_some_and(|at| !at.disks.is_empty()), run == Run::Incoming);
            qemu.destroy(fleet.vm).await.expect("destroy");
        }
    }
    qemu.forget(fleet.vm).await.expect("forget");
}
