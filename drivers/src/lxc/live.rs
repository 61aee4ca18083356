//! Real containers.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::{DiskBus, DiskFormat, VmSpec};
use dunlin_model::{Incarnation, VmId};

use super::{LxcConfig, keep};
use crate::conformance::{self, Fixture};
use crate::hypervisor::{Hypervisor, Launch, LaunchDisk, LaunchMode};
use crate::keep::live::{Hosts, userland};

fn launch(at: &Path, vm: VmId) -> Launch {
    let disk = at.join(format!("the disk of {vm}.raw"));
    if !disk.exists() {
        if !at.join("root").exists() {
            userland(&at.join("root"));
        }
        let file = std::fs::File::create(&disk).expect("create");
        file.set_len(16 << 20).expect("length");
        let made = Command::new("mkfs.ext4").args(["-q", "-d"]).arg(at.join("root")).arg(&disk).status();
        assert!(made.expect("mkfs.ext4").success());
    }
    let mut spec = VmSpec::new(64);
    spec.driver = DriverName::Lxc;
    let root = LaunchDisk {
        name: "root".parse().expect("name"),
        path: disk,
        format: DiskFormat::Raw,
        bus: DiskBus::Virtio,
        read_only: false,
        shared: false,
    };
    spec.disks = vec![dunlin_model::vm::Disk {
        name: root.name.clone(),
        bus: root.bus,
        format: root.format,
        source: dunlin_model::vm::DiskSource::EmptyMib(16),
        shared: false,
        read_only: false,
    }];
    Launch {
        vm,
        name: "box".parse().expect("name"),
        incarnation: Incarnation(1),
        spec,
        disks: vec![root],
        kernel: None,
        initrd: None,
        nics: Vec::new(),
        layout: None,
        mode: LaunchMode::Boot,
        paused: false,
    }
}

fn hosts() -> Hosts<super::Lxc> {
    Hosts::new(|dir| keep(LxcConfig::new(dir)), launch)
}

/// Containers pass every check that any driver has to pass.
#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let report = conformance::suite(&hosts()).await.expect("both hosts open");
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "{report}");
    conformance::page::check("lxc", &report);
}

/// A container has the memory and the CPUs of its spec and no more, restarts itself in its process when it wants to, and
/// leaves no group, loop device or mount on its host.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_bounded_and_leaves_nothing() {
    let hosts = hosts();
    let driver: Arc<dyn Hypervisor> = hosts.open(0).await.expect("open");
    let vm: VmId = "00000000-0000-4000-8000-0000000000bb".parse().expect("uid");
    let launch = hosts.launch(0, vm, Incarnation(1));
    let disk = launch.disks[0].path.clone();
    driver.start(launch).await.expect("start");
    hosts.until_said(&*driver, vm, "guest is up").await;
    let token = format!("dunlin.{vm}.1");
    let folders = super::groups::of(&token);
    let limit = ["/sys/fs/cgroup/memory/{}/memory.limit_in_bytes", "/sys/fs/cgroup/{}/memory.max"];
    let payload = |file: &str| {
        let own = format!("{folders}/lxc.payload.{token}");
        std::fs::read_to_string(file.replace("{}", &own))
            .or_else(|_| std::fs::read_to_string(file.replace("{}", &folders)))
            .ok()
    };
    let limits: Vec<String> = limit.iter().filter_map(|file| payload(file)).collect();
    assert!(limits.iter().any(|limit| limit.trim() == (64 << 20).to_string()), "{limits:?}");
    let before = driver.list().await.expect("list")[0].clone();
    hosts.say(&*driver, vm, "reboot").await;
    let deadline = tokio::time::Instant::now() + crate::keep::live::PATIENCE;
    let after = loop {
        let now = driver.list().await.expect("list")[0].clone();
        if now.reboots == 1 {
            break now;
        }
        assert!(tokio::time::Instant::now() < deadline, "it did not restart: {now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!((after.pid, after.incarnation), (before.pid, before.incarnation));
    driver.destroy(vm).await.expect("destroy");
    driver.forget(vm).await.expect("forget");
    let loops = Command::new("losetup").arg("-a").output().expect("losetup").stdout;
    assert!(!String::from_utf8_lossy(&loops).contains(&disk.display().to_string()), "a loop device is left");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&vm.to_string()), "a mount is left");
    for root in std::fs::read_dir("/sys/fs/cgroup").expect("groups").flatten() {
        assert!(!root.path().join(&folders).exists(), "a group is left in {:?}", root.path());
    }
}
