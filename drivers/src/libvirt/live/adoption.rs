//! Guests that were there before us.

use std::sync::Arc;

use dunlin_model::Incarnation;

use super::conforms::LibvirtFixture;
use crate::conformance::Fixture;
use crate::error::DriverErrorKind;
use crate::hypervisor::Run;
use crate::libvirt::link::domain;
use crate::libvirt::wire::calls::DomainGetXml;
use crate::libvirt::{Libvirt, LibvirtConfig};

/// Three running guests of somebody else's are listed, adopted, commanded and given back: the same processes, and the same
/// documents.
#[tokio::test(flavor = "multi_thread")]
async fn three_guests_are_adopted_and_released() {
    let fixture = LibvirtFixture::new("qemu:///system");
    // Somebody else is a driver with files of its own, which is gone before we look.
    let theirs = fixture.open(0).await.expect("open");
    let mut pids = Vec::new();
    for number in 1..=3u8 {
        let vm = format!("00000000-0000-4000-9000-{number:012}").parse().expect("uid");
        let mut launch = fixture.launch(0, vm, Incarnation(9));
        launch.name = format!("old-{number}").parse().expect("name");
        pids.push((vm, theirs.start(launch).await.expect("start").pid.expect("a process")));
    }
    drop(theirs);
    let other = fixture.other(0).await;
    let xml = async |vm| {
        let xml = other.call(&DomainGetXml { domain: domain(vm), flags: 0 }).await.expect("xml");
        let marked = xml.lines().filter(|line| !line.contains("dunlin") && !line.contains("metadata"));
        marked.map(str::to_owned).collect::<Vec<_>>()
    };
    let config = LibvirtConfig::new(fixture.path(0, "ours"), &fixture.uri(0)).expect("uri");
    let ours: Arc<dyn crate::Hypervisor> = Arc::new(Libvirt::open(config).expect("open"));
    let found = ours.foreign().await.expect("foreign");
    assert_eq!(found.len(), 3, "{found:?}");
    for (vm, pid) in &pids {
        let before = xml(*vm).await;
        let foreign = found.iter().find(|foreign| foreign.vm == *vm).expect("listed");
        let spec = foreign.spec.as_ref().expect("read");
        assert!(foreign.running && spec.mem_mib == 128 && spec.disks.len() == 1, "{foreign:?}");
        for _ in 0..2 {
            let guest = ours.adopt(*vm, Incarnation(4)).await.expect("adopt");
            assert_eq!(
                (guest.pid, guest.incarnation, &guest.run),
                (Some(*pid), Incarnation(4), &Run::Running)
            );
        }
        assert_eq!(ours.pause(*vm).await.expect("pause").run, Run::Paused);
        assert_eq!(ours.resume(*vm).await.expect("resume").pid, Some(*pid));
        ours.release(*vm).await.expect("release");
        ours.release(*vm).await.expect("released");
        assert_eq!(xml(*vm).await, before);
        let gone = ours.pause(*vm).await.expect_err("not ours");
        assert_eq!(gone.kind, DriverErrorKind::NotFound);
    }
    let again = ours.foreign().await.expect("foreign");
    assert!(again.iter().all(|foreign| foreign.running) && again.len() == 3, "{again:?}");
    for (_, pid) in pids {
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} has gone");
    }
}
