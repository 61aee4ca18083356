use std::fs;
use std::process::Command;
use std::sync::Arc;

use dunlin_model::vm::DiskBus;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::journal::hex;
use crate::line::Line;

struct House {
    dir: TempDir,
    volumes: Volumes,
    images: Images,
    catalog: BTreeMap<Name, ImageSpec>,
    spec: VmSpec,
    receiving: bool,
    made: BTreeMap<Name, PathBuf>,
    sizes: BTreeMap<Name, u64>,
}

const VM: VmId = VmId(Uuid::from_u128(1));

impl House {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let volumes = Volumes::open(dir.path().join("volumes"), lock).unwrap();
        let images =
            Images::open(dir.path().join("images"), Arc::new(Line::new([], crate::tests::dialer()))).unwrap();
        let spec = VmSpec::new(64);
        Self {
            dir,
            volumes,
            images,
            catalog: BTreeMap::new(),
            spec,
            receiving: false,
            made: BTreeMap::new(),
            sizes: BTreeMap::new(),
        }
    }

    /// Puts an image where a fetch would have.
    fn image(&mut self, name: &str, format: ImageFormat, bytes: &[u8]) {
        let sha256 = hex(&Sha256::digest(bytes));
        fs::write(self.dir.path().join("images").join(&sha256), bytes).unwrap();
        let spec = ImageSpec { format, sha256, size_bytes: bytes.len() as u64, source: String::new() };
        self.catalog.insert(name.parse().unwrap(), spec);
    }

    fn disk(&mut self, name: &str, format: DiskFormat, source: DiskSource) {
        let bus = DiskBus::Virtio;
        let name = name.parse().unwrap();
        self.spec.disks.push(Disk { name, bus, format, source, shared: false, read_only: false });
    }

    async fn prepare(&self) -> Result<Ready, VolumeError> {
        let (given_up, name) = (CancellationToken::new(), "web".parse().unwrap());
        let need = Need {
            name: &name,
            vm: VM,
            spec: &self.spec,
            receiving: self.receiving,
            made: &self.made,
            sizes: &self.sizes,
            catalog: &self.catalog,
            given_up: &given_up,
        };
        self.volumes.prepare(need, &self.images, &|_| {}).await
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.volumes.folder_of(VM))
            .map(|all| all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}

/// The bytes a guest would read from the disk.
fn bytes_of(disk: &LaunchDisk) -> Vec<u8> {
    let raw = disk.path.with_extension("as-raw");
    let from = disk.format.as_str();
    let done = Command::new("qemu-img")
        .args(["convert", "-f", from, "-O", "raw"])
        .arg(&disk.path)
        .arg(&raw)
        .status();
    assert!(done.unwrap().success());
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

/// A disk made from an image reads as the image in any format, is made once, and keeps what the guest wrote.
#[tokio::test]
async fn made_once_from_an_image() {
    let mut house = House::new();
    let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    house.image("golden", ImageFormat::Raw, &content);
    house.disk("vda", DiskFormat::Raw, DiskSource::Image("golden".parse().unwrap()));
    house.disk("vdb", DiskFormat::Qcow2, DiskSource::Image("golden".parse().unwrap()));
    house.disk("vdc", DiskFormat::Qcow2, DiskSource::EmptyMib(3));
    let ready = house.prepare().await.unwrap();
    assert_eq!(house.names(), ["vda.raw", "vdb.qcow2", "vdc.qcow2"]);
    assert_eq!(bytes_of(&ready.disks[0]), content);
    assert_eq!(bytes_of(&ready.disks[1]), content);
    assert_eq!(bytes_of(&ready.disks[2]), vec![0; 3 << 20]);

    fs::write(&ready.disks[0].path, b"what the guest wrote").unwrap();
    // The agent died before it could journal that they were made: what has its name is whole and is kept.
    fs::write(durable::half_made(&ready.disks[1].path), b"left by a crash").unwrap();
    let again = house.prepare().await.unwrap();
    assert_eq!(again.made, ready.made);
    assert_eq!(fs::read(&again.disks[0].path).unwrap(), b"what the guest wrote");

    house.volumes.remove(VM).await.unwrap();
    house.volumes.remove(VM).await.unwrap();
    assert_eq!(house.names(), [""; 0]);
    house.made = ready.made;
    let lost = house.prepare().await.unwrap_err();
    assert!(matches!(lost, VolumeError::Lost { .. }), "a disk that was lost came back empty: {lost}");
}

/// The destination's disks have exactly the size of the source's, without the image's bytes being fetched.
#[tokio::test]
async fn received_into_disks_of_the_same_size() {
    let mut house = House::new();
    let golden = house.dir.path().join("golden.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&golden).arg("7M").status();
    assert!(made.unwrap().success());
    house.image("golden", ImageFormat::Qcow2, &fs::read(&golden).unwrap());
    house.disk("vda", DiskFormat::Qcow2, DiskSource::Image("golden".parse().unwrap()));
    house.disk("vdb", DiskFormat::Raw, DiskSource::EmptyMib(2));
    house.receiving = true;
    let ready = house.prepare().await.unwrap();
    assert_eq!([bytes_of(&ready.disks[0]).len(), bytes_of(&ready.disks[1]).len()], [7 << 20, 2 << 20]);

    // What the source's host says counts more than what the image says; a CD comes along whatever lies at its path.
    house.volumes.remove(VM).await.unwrap();
    let cd = house.dir.path().join("debian.iso");
    fs::write(&cd, b"another CD of that name").unwrap();
    house.disk("cd", DiskFormat::Raw, DiskSource::Path(cd.display().to_string()));
    house.spec.disks[2].read_only = true;
    house.sizes = [("vda".parse().unwrap(), 9 << 20), ("cd".parse().unwrap(), 1 << 20)].into();
    let ready = house.prepare().await.unwrap();
    assert_eq!(house.names(), ["cd.raw", "vda.qcow2", "vdb.raw"]);
    assert_eq!([bytes_of(&ready.disks[0]).len(), bytes_of(&ready.disks[2]).len()], [9 << 20, 1 << 20]);
    assert_eq!(fs::read(&cd).unwrap(), b"another CD of that name");
    // Started afresh here, it keeps the copy that came with it.
    (house.receiving, house.made) = (false, ready.made);
    assert_eq!(house.prepare().await.unwrap().disks[2].path, ready.disks[2].path);
}

/// What is missing, damaged or does not fit is refused in words that say so, and nothing half made stays behind.
#[tokio::test]
async fn refusals() {
    let mut house = House::new();
    house.disk("vda", DiskFormat::Raw, DiskSource::Path("/no/such/disk".to_owned()));
    let refusal = house.prepare().await.unwrap_err().to_string();
    assert_eq!(refusal, "disk vda: /no/such/disk is not on this host");

    house.spec.disks.clear();
    house.disk("vda", DiskFormat::Raw, DiskSource::Image("nobody".parse().unwrap()));
    assert!(matches!(house.prepare().await.unwrap_err(), VolumeError::NoImage(_)));

    house.image("bad", ImageFormat::Qcow2, b"this is no QCOW2");
    house.spec.disks.clear();
    house.disk("vda", DiskFormat::Raw, DiskSource::Image("bad".parse().unwrap()));
    let refusal = house.prepare().await.unwrap_err();
    assert!(!refusal.is_transient() && refusal.to_string().contains("vda"), "{refusal}");

    house.spec.disks.clear();
    // Beyond what a file can be: the same path as a disk that is full.
    house.disk("vda", DiskFormat::Raw, DiskSource::EmptyMib(1 << 43));
    let refusal = house.prepare().await.unwrap_err();
    assert!(matches!(refusal, VolumeError::Io { .. }), "{refusal}");
    assert_eq!(house.names(), [""; 0]);

    house.spec.driver = DriverName::Test;
    house.spec.disks.clear();
    house.disk("vda", DiskFormat::Qcow2, DiskSource::Path("/no/such/disk".to_owned()));
    assert_eq!(house.prepare().await.unwrap().disks.len(), 1, "a simulated guest reads no disk");
}
