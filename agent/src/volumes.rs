//! The disks of the VMs on this host.
//!
//! Owns `volumes/<uid>/<disk>.<format>`: copies of images, empty disks, and the disks a migration is received into.
//! Everything in there was made here and goes with the VM; a disk given as a path is somebody else's and is never made
//! or removed here ([`targets`](crate::targets) has the one exception). A disk gets its name only when it is whole and
//! durable.
//!
//! DECISION: a disk is a full copy of its image (a reflink where the file system can), not an overlay on the cached
//! image. An overlay would start faster, but then the disk of a guest depends on a cache file for ever: the cache could
//! never be cleaned, and a migrated guest would change its layout on the way, since mirroring flattens it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use dunlin_drivers::hypervisor::LaunchDisk;
use dunlin_model::capabilities::DriverName;
use dunlin_model::image::{ImageFormat, ImageSpec};
use dunlin_model::vm::cloud_init::SEED_DISK;
use dunlin_model::vm::{Boot, CloudInit, Disk, DiskBus, DiskFormat, DiskSource, FileRef, VmSpec};
use dunlin_model::{Name, VmId};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::durable;
use crate::identity::DirLock;
use crate::images::{ImageError, Images, Tell};
use crate::seed;

/// Longest piece of qemu-img's words that is passed on, bytes.
const WORDS_MAX: usize = 1024;

/// Why a VM has not got its disks.
#[derive(Debug, Error)]
pub(crate) enum VolumeError {
    /// The image is not here and did not come.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The leader named no such image.
    #[error("disk or boot file names image {0}, which was not sent along")]
    NoImage(Name),
    /// A file that should be on this host.
    #[error("{what}: {path} is not on this host")]
    Missing {
        /// Which disk or boot file.
        what: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A disk was made here before and is gone. A new one in its place would be an empty one.
    #[error("disk {disk} was made on this host, but {path} is gone; it is not made again over lost data")]
    Lost {
        /// Which disk.
        disk: Name,
        /// Where it was.
        path: PathBuf,
    },
    /// A local file cannot be received here.
    #[error("disk {disk} is the file {path}, which cannot be received here: {why}")]
    NotReceivable {
        /// Which disk.
        disk: Name,
        /// Its path, here as on the source.
        path: PathBuf,
        /// What stands against it.
        why: String,
    },
    /// The file system refused.
    #[error("disk {disk} could not be made: {source}")]
    Io {
        /// Which disk.
        disk: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else is wanted of the VM by now.
    #[error("given up: something else is wanted of the VM")]
    GivenUp,
    /// qemu-img refused.
    #[error("disk {disk} could not be made: {words}")]
    QemuImg {
        /// Which disk.
        disk: String,
        /// Its own words.
        words: String,
    },
}

impl VolumeError {
    /// May trying again help?
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Image(image) => image.is_transient(),
            Self::GivenUp => true,
            _ => false,
        }
    }
}

/// What a VM needs of this host's files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need<'a> {
    pub(crate) vm: VmId,
    pub(crate) name: &'a Name,
    pub(crate) spec: &'a VmSpec,
    /// Disks are only targets, filled by a migration.
    pub(crate) receiving: bool,
    /// What was made here before, by disk.
    pub(crate) made: &'a BTreeMap<Name, PathBuf>,
    /// Sizes of the source's disks as its host reported them, bytes.
    pub(crate) sizes: &'a BTreeMap<Name, u64>,
    /// The images the leader named.
    pub(crate) catalog: &'a BTreeMap<Name, ImageSpec>,
    /// Cancelled when the disks are no longer wanted. Only what may be cut off anywhere is: never the moment in which
    /// a disk gets its name.
    pub(crate) given_up: &'a CancellationToken,
}

/// Files that are there.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) disks: Vec<LaunchDisk>,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    /// Disks that were made here, now or before.
    pub(crate) made: BTreeMap<Name, PathBuf>,
}

/// The volume folder.
#[derive(Debug)]
pub(crate) struct Volumes {
    folder: PathBuf,
    lock: DirLock,
}

/// What a disk is to be made from.
enum Source {
    Empty(u64),
    Copy { image: PathBuf, format: ImageFormat },
}

impl Volumes {
    pub(crate) fn open(folder: PathBuf, lock: DirLock) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, lock })
    }

    /// The folder of one VM.
    pub(crate) fn folder_of(&self, vm: VmId) -> PathBuf {
        self.folder.join(vm.to_string())
    }

    /// VMs that have a folder here.
    pub(crate) fn owners(&self) -> io::Result<Vec<VmId>> {
        let mut owners = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            owners.extend(entry?.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()));
        }
        Ok(owners)
    }

    /// Makes what is missing. Done again after a crash, it finds what was made and makes the rest.
    pub(crate) async fn prepare(
        &self,
        need: Need<'_>,
        images: &Images,
        tell: Tell<'_>,
    ) -> Result<Ready, VolumeError> {
        let mut ready = Ready::default();
        for disk in &need.spec.disks {
            let path = self.disk(need, disk, images, tell, &mut ready.made).await?;
            ready.disks.push(LaunchDisk {
                name: disk.name.clone(),
                path,
                format: disk.format,
                bus: disk.bus,
                read_only: disk.read_only,
                shared: disk.shared,
            });
        }
        if let Some(cloud_init) = &need.spec.cloud_init {
            let path = self.seed(need, cloud_init).await?;
            let name = SEED_DISK.parse::<Name>().expect("it is a name");
            ready.made.insert(name.clone(), path.clone());
            // Every host makes the same, so that nobody has to carry it along.
            let (format, bus) = (DiskFormat::Raw, DiskBus::Virtio);
            ready.disks.push(LaunchDisk { name, path, format, bus, read_only: true, shared: true });
        }
        if let (Boot::Kernel { kernel, initrd, .. }, true) =
            (&need.spec.boot, need.spec.driver != DriverName::Test)
        {
            ready.kernel = Some(unless_given_up(need, file(need, "kernel", kernel, images, tell)).await?);
            if let Some(initrd) = initrd {
                ready.initrd = Some(unless_given_up(need, file(need, "initrd", initrd, images, tell)).await?);
            }
        }
        Ok(ready)
    }

    /// Written at every start: what it says may have changed.
    async fn seed(&self, need: Need<'_>, cloud_init: &CloudInit) -> Result<PathBuf, VolumeError> {
        let folder = self.folder_of(need.vm);
        let path = folder.join("cloud-init.iso");
        let image = seed::image(need.vm, need.name, cloud_init);
        let (to, lock) = (path.clone(), self.lock.clone());
        let write = move || {
            let _lock = lock;
            std::fs::create_dir_all(&folder)?;
            let beside = durable::half_made(&to);
            // It may hold passwords.
            let mode = std::os::unix::fs::OpenOptionsExt::mode;
            let mut options = std::fs::OpenOptions::new();
            let mut file = mode(options.create(true).write(true).truncate(true), 0o600).open(&beside)?;
            std::io::Write::write_all(&mut file, &image)?;
            durable::settle(&beside, &to)
        };
        let failed = |source| VolumeError::Io { disk: SEED_DISK.to_owned(), source };
        durable::off_thread(write).await.map_err(failed)?;
        Ok(path)
    }

    async fn disk(
        &self,
        need: Need<'_>,
        disk: &Disk,
        images: &Images,
        tell: Tell<'_>,
        made: &mut BTreeMap<Name, PathBuf>,
    ) -> Result<PathBuf, VolumeError> {
        let simulated = need.spec.driver == DriverName::Test;
        if let Some(path) = need.made.get(&disk.name) {
            if !path.exists() {
                return Err(VolumeError::Lost { disk: disk.name.clone(), path: path.clone() });
            }
            made.insert(disk.name.clone(), path.clone());
            return Ok(path.clone());
        }
        if let DiskSource::Path(path) = &disk.source
            && !is_received_as_copy(need, disk)
        {
            // Nothing reads the disks of a simulated guest.
            if !simulated {
                must_exist(&format!("disk {}", disk.name), Path::new(path))?;
            }
            return Ok(PathBuf::from(path));
        }
        let folder = self.folder_of(need.vm);
        let path = folder.join(format!("{}.{}", disk.name, disk.format.as_str()));
        if !path.exists() {
            let source = unless_given_up(need, source_of(need, disk, images, tell)).await?;
            tell(format!("making disk {}", disk.name));
            let at = |source| VolumeError::Io { disk: disk.name.to_string(), source };
            std::fs::create_dir_all(&folder).map_err(at)?;
            let beside = durable::half_made(&path);
            let done = match unless_given_up(need, make(&source, disk, simulated, &beside)).await {
                Ok(()) => {
                    let (from, to, lock) = (beside.clone(), path.clone(), self.lock.clone());
                    let settle = move || {
                        let _lock = lock;
                        durable::settle(&from, &to)
                    };
                    durable::off_thread(settle).await.map_err(at)
                }
                Err(e) => Err(e),
            };
            if done.is_err() {
                // A disk that is full must not stay full of what could not be finished.
                let _ = std::fs::remove_file(&beside);
            }
            done?;
        }
        made.insert(disk.name.clone(), path.clone());
        Ok(path)
    }

    /// Removes everything made for the VM. Done when there is nothing.
    pub(crate) async fn remove(&self, vm: VmId) -> Result<(), VolumeError> {
        let folder = self.folder_of(vm);
        let doomed = folder.clone();
        match durable::off_thread(move || std::fs::remove_dir_all(doomed)).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(VolumeError::Io { disk: format!("in {}", folder.display()), source })
            }
            _ => Ok(()),
        }
    }
}

/// A disk that nobody writes to is carried along as a copy of our own: a file of that name may well be here too, for
/// the guests that were started here, and is neither overwritten nor trusted to be the same.
fn is_received_as_copy(need: Need<'_>, disk: &Disk) -> bool {
    need.receiving && disk.read_only && !disk.shared && need.spec.driver != DriverName::Test
}

async fn unless_given_up<T>(
    need: Need<'_>,
    work: impl Future<Output = Result<T, VolumeError>>,
) -> Result<T, VolumeError> {
    need.given_up.run_until_cancelled(work).await.unwrap_or(Err(VolumeError::GivenUp))
}

fn must_exist(what: &str, path: &Path) -> Result<(), VolumeError> {
    if path.exists() {
        return Ok(());
    }
    Err(VolumeError::Missing { what: what.to_owned(), path: path.to_owned() })
}

fn image_of<'a>(need: Need<'a>, name: &Name) -> Result<&'a ImageSpec, VolumeError> {
    need.catalog.get(name).ok_or_else(|| VolumeError::NoImage(name.clone()))
}

async fn file(
    need: Need<'_>,
    what: &str,
    file: &FileRef,
    images: &Images,
    tell: Tell<'_>,
) -> Result<PathBuf, VolumeError> {
    match file {
        FileRef::Image(name) => Ok(images.get(name, image_of(need, name)?, tell).await?),
        FileRef::Path(path) => {
            must_exist(what, Path::new(path))?;
            Ok(PathBuf::from(path))
        }
    }
}

async fn source_of(
    need: Need<'_>,
    disk: &Disk,
    images: &Images,
    tell: Tell<'_>,
) -> Result<Source, VolumeError> {
    if let Some(bytes) = need.sizes.get(&disk.name).filter(|_| need.receiving) {
        return Ok(Source::Empty(*bytes));
    }
    let name = match &disk.source {
        DiskSource::EmptyMib(mib) => return Ok(Source::Empty(mib << 20)),
        DiskSource::Image(name) => name,
        DiskSource::Path(path) => return Err(size_unknown(disk, Path::new(path))),
    };
    let spec = image_of(need, name)?;
    if need.spec.driver == DriverName::Test {
        return Ok(Source::Empty(spec.size_bytes));
    }
    if need.receiving {
        return Ok(Source::Empty(images.disk_bytes(name, spec).await?));
    }
    Ok(Source::Copy { image: images.get(name, spec, tell).await?, format: spec.format })
}

/// The source's agent is older than this one, or its hypervisor does not tell.
pub(crate) fn size_unknown(disk: &Disk, path: &Path) -> VolumeError {
    let why = "its own host has not said how large it is".to_owned();
    VolumeError::NotReceivable { disk: disk.name.clone(), path: path.to_owned(), why }
}

/// Makes an empty disk of so many bytes.
pub(crate) async fn make_empty(disk: &Disk, bytes: u64, to: &Path) -> Result<(), VolumeError> {
    make(&Source::Empty(bytes), disk, false, to).await
}

async fn make(source: &Source, disk: &Disk, simulated: bool, to: &Path) -> Result<(), VolumeError> {
    let at = |source| VolumeError::Io { disk: disk.name.to_string(), source };
    match source {
        Source::Empty(bytes) if simulated || disk.format == DiskFormat::Raw => {
            std::fs::File::create(to).and_then(|file| file.set_len(*bytes)).map_err(at)
        }
        Source::Empty(bytes) => {
            let (format, bytes) = (disk.format.as_str(), bytes.to_string());
            qemu_img(
                disk,
                &[
                    "create".as_ref(),
                    "-q".as_ref(),
                    "-f".as_ref(),
                    format.as_ref(),
                    to.as_os_str(),
                    bytes.as_ref(),
                ],
            )
            .await
        }
        Source::Copy { image, format } => {
            let same = format.as_str() == disk.format.as_str();
            if same && reflink(image, to) {
                return Ok(());
            }
            let (from, into) = (format.as_str(), disk.format.as_str());
            let arguments: [&std::ffi::OsStr; 8] = [
                "convert".as_ref(),
                "-q".as_ref(),
                "-f".as_ref(),
                from.as_ref(),
                "-O".as_ref(),
                into.as_ref(),
                image.as_os_str(),
                to.as_os_str(),
            ];
            qemu_img(disk, &arguments).await
        }
    }
}

/// A copy that shares its blocks, where the file system can: btrfs, XFS.
fn reflink(from: &Path, to: &Path) -> bool {
    let Ok(source) = std::fs::File::open(from) else { return false };
    let Ok(target) = std::fs::File::create(to) else { return false };
    rustix::fs::ioctl_ficlone(&target, &source).is_ok()
}

async fn qemu_img(disk: &Disk, arguments: &[&std::ffi::OsStr]) -> Result<(), VolumeError> {
    let output = tokio::process::Command::new("qemu-img").args(arguments).kill_on_drop(true).output().await;
    let output = output.map_err(|e| VolumeError::QemuImg {
        disk: disk.name.to_string(),
        words: format!("qemu-img could not be run: {e}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().chars().take(WORDS_MAX).collect();
    Err(VolumeError::QemuImg { disk: disk.name.to_string(), words })
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
