//! Disks and NICs for a guest that runs, and from it.

use std::path::Path;
use std::time::Duration;

use dunlin_model::migration::MigrationLimits;
use dunlin_model::vm::{DiskBus, DiskFormat, Nic, NicModel, NicNetwork};
use tokio::time::{Instant, timeout};

use super::{Fleet, PATIENCE, Qemu, close};
use crate::error::DriverErrorKind::{Busy, Refused};
use crate::hypervisor::{Device, DeviceName, Hypervisor, Launch, LaunchDisk, LaunchNic};

fn disk(path: &Path, bus: DiskBus) -> LaunchDisk {
    let name = "vdb".parse().expect("name");
    LaunchDisk { name, path: path.to_owned(), format: DiskFormat::Raw, bus, read_only: false, shared: false }
}

fn nic(index: usize, model: NicModel) -> Device {
    Device::Nic { index, card: Nic { mac: None, model, network: NicNetwork::User }, end: LaunchNic::User }
}

fn vdb() -> DeviceName {
    DeviceName::Disk("vdb".parse().expect("name"))
}

/// A guest that still boots may not have heard.
async fn unplug(fleet: &Fleet, qemu: &Qemu, name: DeviceName) {
    let until = Instant::now() + PATIENCE;
    while let Err(error) = qemu.unplug(fleet.vm, name.clone()).await {
        assert!(error.kind == Busy && Instant::now() < until, "{name:?}: {error}");
    }
}

/// A running guest gets a disk and a NIC, its driver is killed at any moment of it, it moves to another host with them where
/// they sit, and its own kernel lets go of them there; what cannot be plugged is refused and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn devices_come_and_go_and_move_along() {
    let fleet = Fleet::new();
    let mut a = fleet.ticking("a").await;
    let file = fleet.disk("a-vdb");
    assert_eq!(fleet.guest(&a).await.layout, None, "it sits where a fresh start puts it");

    let missing = disk(&fleet.path("no-such-file"), DiskBus::Virtio);
    let error = a.plug(fleet.vm, Device::Disk(missing)).await.expect_err("no file");
    assert!(error.kind == Refused && error.message.contains("no-such-file"), "{error}");
    for device in [Device::Disk(disk(&file, DiskBus::Sata)), nic(1, NicModel::E1000)] {
        assert_eq!(a.plug(fleet.vm, device).await.expect_err("no seat for it").kind, Refused);
    }

    // Cut off after 0, 1, 2 ... ms: the next driver is asked the same and brings it to its end.
    for cut_ms in 0..4 {
        let (plug, cut) =
            (a.plug(fleet.vm, Device::Disk(disk(&file, DiskBus::Virtio))), Duration::from_millis(cut_ms));
        let _ = timeout(cut, plug).await;
        close(a).await;
        a = fleet.driver("a");
        a.plug(fleet.vm, Device::Disk(disk(&file, DiskBus::Virtio))).await.expect("plug");
        assert_eq!(fleet.guest(&a).await.disk_bytes[&"vdb".parse().expect("name")], 64 << 20);
        let _ = timeout(cut, a.unplug(fleet.vm, vdb())).await;
        close(a).await;
        a = fleet.driver("a");
        unplug(&fleet, &a, vdb()).await;
        assert_eq!(fleet.guest(&a).await.disk_bytes.len(), 1);
    }
    // The NIC it was started with goes, and two others come.
    unplug(&fleet, &a, DeviceName::Nic(0)).await;
    for device in
        [nic(0, NicModel::Virtio), Device::Disk(disk(&file, DiskBus::Virtio)), nic(1, NicModel::Virtio)]
    {
        a.plug(fleet.vm, device).await.expect("plug");
    }
    a.pause(fleet.vm).await.expect("pause");
    assert_eq!(a.unplug(fleet.vm, vdb()).await.expect_err("it stands still").kind, Busy);
    a.resume(fleet.vm).await.expect("resume");
    fleet.assert_goes_on("a").await;

    let layout = fleet.guest(&a).await.layout;
    assert!(layout.is_some());
    let mut incoming = Launch { layout, ..fleet.incoming(&fleet.disk("b"), false) };
    incoming.disks.push(disk(&fleet.disk("b-vdb"), DiskBus::Virtio));
    incoming.nics.push(LaunchNic::User);
    let b = fleet.driver("b");
    let endpoint = b.start(incoming).await.expect("start incoming").endpoint.expect("an endpoint");
    a.migrate_out(fleet.vm, endpoint, MigrationLimits::default()).await.expect("begin");
    assert_eq!(a.unplug(fleet.vm, vdb()).await.expect_err("it moves").kind, Busy);
    fleet.until_at_switchover(&a).await;
    a.migrate_switch(fleet.vm).await.expect("switch");
    fleet.until_arrived(&b).await;
    b.resume(fleet.vm).await.expect("resume");
    let last = fleet.last_tick("a").expect("ticked");
    fleet.wait_tick("b", last + 2).await;
    fleet.end(&a).await;

    for name in [vdb(), DeviceName::Nic(0), DeviceName::Nic(1)] {
        unplug(&fleet, &b, name).await;
    }
    b.plug(fleet.vm, Device::Disk(disk(&fleet.path("b-vdb.raw"), DiskBus::Virtio))).await.expect("plug");
    fleet.assert_goes_on("b").await;
    fleet.end(&b).await;
}
