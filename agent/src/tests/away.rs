//! A hypervisor that is not there, beside one that is.

use std::os::unix::net::UnixListener;

use dunlin_drivers::libvirt::{Libvirt, LibvirtConfig};
use dunlin_proto::v1;

use super::*;

/// A daemon that takes connections and never answers holds up nothing: the host says that this driver is away and why, the
/// guests of the other one are started and commanded, and of its own nothing is concluded, before and after it is gone.
#[tokio::test]
async fn a_daemon_that_hangs_holds_up_nobody() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    let socket = house.config.data_dir.join("libvirt-sock");
    let hangs = UnixListener::bind(&socket).unwrap();
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    let config = LibvirtConfig::new(house.config.data_dir.join("libvirt"), &uri).unwrap();
    house.start_beside(vec![Arc::new(Libvirt::open(config).unwrap())]).await;
    let id = house.id(&fake).await;

    let hello = fake.until("its Hello", |state| state.hellos.first().cloned()).await;
    let drivers = hello.capabilities.unwrap().drivers;
    let driver = |name| drivers.iter().find(|driver| driver.name == i32::from(name)).unwrap();
    let (libvirt, test) = (driver(v1::DriverName::Libvirt), driver(v1::DriverName::Test));
    assert!(libvirt.away.contains(&uri) && libvirt.accels.is_empty(), "{libvirt:?}");
    assert!(test.away.is_empty() && test.accels.len() == 1, "{test:?}");

    let (ours, theirs) = (vm(1), vm(2));
    let mut there = told(theirs, 1, running());
    there.spec.driver = DriverName::Libvirt;
    fake.tell(id, 1, &[told(ours, 1, running()), there.clone()], &[]).await;
    fake.sees("its neighbour running", id, ours, runs_as(1)).await;
    let unknown = |seen: &ObservedVm| matches!(&seen.process, Process::Unknown { why } if why.contains(&uri));
    fake.sees("nothing known of it", id, theirs, unknown).await;
    fake.tell(id, 2, &[told(ours, 1, paused()), Assignment { role: Role::Hold, ..there.clone() }], &[]).await;
    fake.sees("its neighbour paused", id, ours, |seen| seen.process == Process::Paused).await;
    fake.sees("still nothing known", id, theirs, unknown).await;

    drop(hangs);
    house.restart(&fake).await;
    fake.until("a complete report", |state| (state.hosts.get(&id)?.completes == 2).then_some(())).await;
    house.kill().await;
    let config = LibvirtConfig::new(house.config.data_dir.join("libvirt"), &uri).unwrap();
    fake.lost(id);
    house.start_beside(vec![Arc::new(Libvirt::open(config).unwrap())]).await;
    fake.until("a complete report", |state| (state.hosts.get(&id)?.completes == 3).then_some(())).await;
    fake.sees("nothing known of it", id, theirs, unknown).await;
    fake.tell(id, 3, &[told(ours, 1, running()), there], &[]).await;
    fake.sees("its neighbour running", id, ours, runs_as(1)).await;
}
