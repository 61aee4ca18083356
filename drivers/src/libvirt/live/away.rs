//! A daemon that goes away, and comes back.

use std::time::Duration;

use dunlin_model::Incarnation;
use tokio::time::timeout;

use super::conforms::LibvirtFixture;
use crate::conformance::Fixture;
use crate::error::DriverErrorKind;
use crate::hypervisor::{Hypervisor, Presence, Run};

/// A hung daemon is found out by pings, 30 s; libvirtd's first look at QEMU takes four, on a busy builder ten times that.
const PATIENCE: Duration = Duration::from_secs(180);

async fn until(driver: &dyn Hypervisor, here: bool) -> Presence {
    let mut presence = driver.presence();
    let is = |presence: &Presence| (*presence == Presence::Here) == here;
    let found =
        timeout(PATIENCE, presence.wait_for(is)).await.expect("in time").expect("the driver is there");
    found.clone()
}

/// libvirtd is ended and started, then stopped dead and let go on: each time the driver says that it is away and why, and
/// is back by itself; its guest is the same process all along, and what became of it meanwhile is seen, not guessed.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_goes_away_and_comes_back() {
    let fixture = LibvirtFixture::new("qemu:///system");
    let driver = fixture.open(0).await.expect("open");
    let vm = "00000000-0000-4000-9100-000000000001".parse().expect("uid");
    let guest = driver.start(fixture.launch(0, vm, Incarnation(1))).await.expect("start");

    fixture.daemon(0).stop();
    let Presence::Away(why) = until(&*driver, false).await else { panic!("it is away") };
    assert!(why.contains("qemu+unix"), "{why}");
    let failed = driver.pause(vm).await.expect_err("nobody to ask");
    assert_eq!(failed.kind, DriverErrorKind::Transient, "{failed}");
    fixture.daemon(0).go_on();
    until(&*driver, true).await;
    let again = driver.list().await.expect("list");
    assert_eq!(
        (again[0].pid, &again[0].run, again[0].incarnation),
        (guest.pid, &Run::Running, Incarnation(1))
    );

    fixture.daemon(0).signal("STOP");
    until(&*driver, false).await;
    // It ends unseen.
    let pid = guest.pid.expect("a process").to_string();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().expect("kill").success());
    fixture.daemon(0).signal("CONT");
    until(&*driver, true).await;
    let ended = driver.list().await.expect("list");
    assert!(matches!(ended[0].run, Run::Ended(dunlin_model::observed::EndCause::Died, _)), "{ended:?}");
}
