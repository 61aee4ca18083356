use std::process::Command;

use dunlin_drivers::Hypervisor;
use dunlin_drivers::qemu::{Qemu, QemuConfig};
use dunlin_model::image::{ImageFormat, ImageSpec};
use dunlin_model::vm::{AccelChoice, Disk, DiskBus, DiskFormat, DiskSource};
use dunlin_model::{Name, Revision};
use sha2::{Digest, Sha256};

use super::*;
use crate::images::{ImageError, Images};
use crate::journal::hex;
use crate::line::Line;

fn image(fake: &Fake, format: ImageFormat, bytes: &[u8]) -> ImageSpec {
    let sha256 = hex(&Sha256::digest(bytes));
    fake.with(|state| state.blobs.kept.insert(sha256.clone(), bytes.to_vec()));
    ImageSpec { format, sha256, size_bytes: bytes.len() as u64, source: String::new() }
}

/// A fetch that breaks goes on where it stopped, with whichever controller has the bytes; bytes that are not the image
/// are thrown away; what is here is not asked for again.
#[tokio::test]
async fn fetching() {
    let (empty, fake) = (Fake::start().await, Fake::start().await);
    let dir = TempDir::new().unwrap();
    let line = Arc::new(Line::new([empty.endpoint.clone(), fake.endpoint.clone()], dialer()));
    let images = Images::open(dir.path().join("images"), line).unwrap();
    let name: Name = "golden".parse().unwrap();
    let bytes: Vec<u8> = (0..10_500_u32).map(|at| (at % 241) as u8).collect();
    let spec = image(&fake, ImageFormat::Raw, &bytes);
    let get = async || images.get(&name, &spec, &|_| {}).await;

    fake.with(|state| state.blobs.breaks = vec![3, 2]);
    for _ in 0..2 {
        let broken = get().await.unwrap_err();
        assert!(broken.is_transient(), "{broken}");
    }
    let path = get().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(get().await.unwrap(), path);
    assert_eq!(fake.with(|state| state.blobs.asked.clone()), [0, 3000, 5000]);

    std::fs::remove_file(&path).unwrap();
    let mut rotten = bytes.clone();
    rotten[777] ^= 1;
    fake.with(|state| state.blobs.kept.insert(spec.sha256.clone(), rotten));
    let damaged = get().await.unwrap_err();
    assert!(matches!(damaged, ImageError::Damaged { .. }), "{damaged}");
    assert_eq!(std::fs::read_dir(dir.path().join("images")).unwrap().count(), 0);
    fake.with(|state| state.blobs.kept.insert(spec.sha256.clone(), bytes.clone()));
    assert_eq!(std::fs::read(get().await.unwrap()).unwrap(), bytes);

    let nowhere = ImageSpec { sha256: "0".repeat(64), ..spec.clone() };
    let missing = images.get(&name, &nowhere, &|_| {}).await.unwrap_err();
    assert!(!missing.is_transient() && missing.to_string().contains("no such blob"), "{missing}");
}

/// What the fleet has deleted leaves the host once it is known what is to run there, what only nobody needs stays within
/// the budget, and what a VM names stays whatever the fleet says; a fetch that was broken off counts as its image.
#[tokio::test]
async fn images_nobody_needs_leave() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.config.image_cache_mib = 1;
    let folder = house.config.data_dir.join("images");
    std::fs::create_dir_all(&folder).unwrap();
    let needed = image(&fake, ImageFormat::Raw, &[1; 700 << 10]);
    let older = image(&fake, ImageFormat::Raw, &[2; 200 << 10]);
    let newer = image(&fake, ImageFormat::Raw, &[3; 300 << 10]);
    let deleted = "d".repeat(64);
    fake.with(|state| state.blobs.kept.remove(&needed.sha256));
    let put = |name: &str, size_bytes: u64, age_s| {
        let file = std::fs::File::create(folder.join(name)).unwrap();
        file.set_len(size_bytes).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age_s)).unwrap();
    };
    put(&needed.sha256, needed.size_bytes, 9000);
    put(&older.sha256, older.size_bytes, 5000);
    put(&newer.sha256, newer.size_bytes, 10);
    put(&format!("{deleted}.half-made"), 5, 1);
    let there = || {
        let mut names: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let before = there();
    house.start().await;
    let id = house.id(&fake).await;
    assert_eq!(there(), before, "nothing goes before it is known what is needed");
    let set = dunlin_model::desired::DesiredSet {
        host: id,
        generation: Revision(1),
        assignments: Vec::new(),
        acts: Vec::new(),
        // Both: a machine whose disk is nearly full keeps none that is not needed.
        images: BTreeMap::from([
            ("golden".parse().unwrap(), needed.clone()),
            ("silver".parse().unwrap(), newer.clone()),
        ]),
    };
    fake.say(id, dunlin_proto::v1::to_agent::Message::Desired(set.into())).await;
    let mut kept = vec![needed.sha256, newer.sha256];
    kept.sort();
    eventually("what is not needed is gone", async || {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        (there() == kept).then_some(())
    })
    .await;
}

/// A real guest: its disk is made from an image that is fetched, it runs, outlives a killed agent as the same process,
/// and leaves nothing when it is discarded.
#[tokio::test]
async fn a_real_guest() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    let golden = house.config.data_dir.join("golden.qcow2");
    let made =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&golden).arg("16M").status();
    assert!(made.unwrap().success());
    let spec = image(&fake, ImageFormat::Qcow2, &std::fs::read(&golden).unwrap());
    let start = async |house: &mut House| {
        let driver = Arc::new(Qemu::new(QemuConfig::new(house.config.data_dir.join("qemu"))));
        eventually("the data folder", async || crate::identity::DirLock::take(&house.config.data_dir).ok())
            .await;
        let running = run_with(house.config.clone(), vec![driver.clone()], std::future::pending());
        house.agent = Some(tokio::spawn(running));
        driver
    };
    let driver = start(&mut house).await;
    let (id, one) = (house.id(&fake).await, vm(1));
    let tell = async |generation: u64, role: Role| {
        let mut told = told(one, 1, role);
        (told.spec.driver, told.spec.accel, told.spec.sim) = (DriverName::Qemu, AccelChoice::Tcg, None);
        let (name, source) = ("vda".parse().unwrap(), DiskSource::Image("golden".parse().unwrap()));
        let (bus, format) = (DiskBus::Virtio, DiskFormat::Qcow2);
        told.spec.disks = vec![Disk { name, bus, format, source, shared: false, read_only: false }];
        let set = dunlin_model::desired::DesiredSet {
            host: id,
            generation: Revision(generation),
            assignments: vec![told],
            acts: Vec::new(),
            images: BTreeMap::from([("golden".parse().unwrap(), spec.clone())]),
        };
        fake.say(id, dunlin_proto::v1::to_agent::Message::Desired(set.into())).await;
    };
    tell(1, running()).await;
    let seen = fake.sees("running", id, one, runs_as(1)).await;
    assert!(seen.has_volumes && seen.pid.is_some(), "{seen:?}");
    assert!(house.config.data_dir.join("volumes").join(one.to_string()).join("vda.qcow2").exists());

    house.kill().await;
    fake.lost(id);
    drop(driver);
    let driver = start(&mut house).await;
    let again = fake.sees("running still", id, one, runs_as(1)).await;
    assert_eq!(again.pid, seen.pid);
    tell(2, paused()).await;
    fake.sees("paused", id, one, |seen| seen.process == Process::Paused).await;
    tell(3, Role::Discard { elsewhere: false }).await;
    fake.sees_gone(id, one).await;
    assert!(driver.list().await.unwrap().is_empty());
    assert!(!house.config.data_dir.join("volumes").join(one.to_string()).exists());
}
