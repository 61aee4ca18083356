//! Real guests of User Mode Linux.

use std::path::Path;
use std::sync::Arc;

use dunlin_model::vm::{Boot, DiskBus, DiskFormat, FileRef, VmSpec};
use dunlin_model::{Incarnation, VmId};

use super::{UmlConfig, keep};
use crate::conformance::{self, Fixture};
use crate::hypervisor::{Hypervisor, Launch, LaunchDisk, LaunchMode};
use crate::keep::live::{Hosts, userland};

fn launch(at: &Path, vm: VmId) -> Launch {
    let initrd = at.join("initrd");
    if !initrd.exists() {
        userland(&at.join("root"));
        let pack = "find . | cpio --quiet -o -H newc -R 0:0 >../initrd.new && mv ../initrd.new ../initrd";
        let packed =
            std::process::Command::new("sh").args(["-c", pack]).current_dir(at.join("root")).status();
        assert!(packed.expect("cpio").success());
    }
    let disk = at.join(format!("a disk, of {vm}: raw"));
    let file = std::fs::File::options().create(true).append(true).open(&disk).expect("create");
    file.set_len(1 << 20).expect("length");
    let mut spec = VmSpec::new(64);
    spec.driver = dunlin_model::capabilities::DriverName::Uml;
    let kernel = FileRef::Path("/usr/bin/linux.uml".to_owned());
    spec.boot = Boot::Kernel { kernel, initrd: None, cmdline: "quiet".to_owned() };
    Launch {
        vm,
        name: "uml".parse().expect("name"),
        incarnation: Incarnation(1),
        spec,
        disks: vec![LaunchDisk {
            name: "ubda".parse().expect("name"),
            path: disk,
            format: DiskFormat::Raw,
            bus: DiskBus::Virtio,
            read_only: false,
            shared: false,
        }],
        kernel: None,
        initrd: Some(initrd),
        nics: Vec::new(),
        layout: None,
        mode: LaunchMode::Boot,
        paused: false,
    }
}

fn hosts() -> Hosts<super::Uml> {
    Hosts::new(|dir| keep(UmlConfig::new(dir)), launch)
}

/// UML passes every check that any driver has to pass.
#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let report = conformance::suite(&hosts()).await.expect("both hosts open");
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "{report}");
    conformance::page::check("uml", &report);
}

/// What a guest writes is on its disk and in its log; a copy-on-write header that it wrote itself is seen at its
/// next start, and gives it no file of its host.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_writes_to_its_disk_and_to_nothing_else() {
    let hosts = hosts();
    let driver: Arc<dyn Hypervisor> = hosts.open(0).await.expect("open");
    let vm: VmId = "00000000-0000-4000-8000-0000000000aa".parse().expect("uid");
    let launch = hosts.launch(0, vm, Incarnation(1));
    let disk = launch.disks[0].path.clone();
    driver.start(launch).await.expect("start");
    hosts.until_said(&*driver, vm, "guest is up").await;
    // The first words of such a header, and the name of a file: source: the kernel's arch/um/drivers/cow_user.c.
    let header = "OOOM\\0\\0\\0\\3/etc/hostname";
    hosts
        .say(&*driver, vm, &format!("printf '{header}' >/dev/ubda; /bin/busybox sync; echo wr''itten"))
        .await;
    hosts.until_said(&*driver, vm, "written").await;
    let bytes = std::fs::read(&disk).expect("read");
    assert_eq!(&bytes[..21], b"OOOM\0\0\0\x03/etc/hostname");
    driver.destroy(vm).await.expect("destroy");
    let again = driver.start(hosts.launch(0, vm, Incarnation(2))).await.expect_err("refused");
    assert!(again.message.contains("begins as a copy-on-write file"), "{again}");
    driver.forget(vm).await.expect("forget");
}
