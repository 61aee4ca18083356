//! Images on this host: fetched once by their hash, checked, and kept in `images/`.
//!
//! Knows nothing of VMs, so it does not know which of them are still needed: `image_cache` does. A fetch that was cut off goes on where it stopped; bytes that do not have the hash they are
//! named by are thrown away. Images are never written to: disks are copies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dunlin_model::image::{ImageFormat, ImageSpec};
use dunlin_model::{ErrorCode, Name};
use dunlin_proto::{Fault, v1};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::durable;
use crate::image_cache::Cached;
use crate::journal::hex;
use crate::line::Line;

/// Images fetched at the same time. Two keep a 10 Gbit/s link busy; more only share it.
const FETCHES_MAX: usize = 2;

/// Bytes of an image that hold its header, whatever the format: QCOW2's is 104, VMDK's 512.
const HEAD_BYTES: usize = 512;

/// What the file keeps in memory before it writes, bytes.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Bytes hashed at a time.
const HASH_BUFFER_BYTES: usize = 64 << 10;

/// How long a fetch that found the disk full waits for others' images to go: a question to a controller and some unlinks.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an image is not here.
#[derive(Debug, Error)]
pub(crate) enum ImageError {
    /// No controller could be asked, or the connection broke. The part that came is kept.
    #[error("image {name} could not be fetched: {source}")]
    Fetch {
        /// Which image.
        name: Name,
        /// What the last controller asked said.
        #[source]
        source: Fault,
    },
    /// The bytes are not the image.
    #[error("image {name} came damaged: its SHA-256 is {found}, not {expected}")]
    Damaged {
        /// Which image.
        name: Name,
        /// The hash of what came.
        found: String,
        /// The hash it is named by.
        expected: String,
    },
    /// This host's disk refused.
    #[error("image {name} could not be kept: {source}")]
    Keep {
        /// Which image.
        name: Name,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its header does not say how large its disk is.
    #[error("image {name} has no {format} header", format = .format.as_str())]
    Header {
        /// Which image.
        name: Name,
        /// What it should be.
        format: ImageFormat,
    },
}

impl ImageError {
    /// May trying again help?
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.code.retryable(),
            Self::Damaged { .. } => true,
            Self::Keep { .. } | Self::Header { .. } => false,
        }
    }
}

/// Says what is under way.
pub(crate) type Tell<'a> = &'a (dyn Fn(String) + Send + Sync);

/// The images of this host.
#[derive(Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    line: Arc<Line>,
    fetches: Semaphore,
    /// One lock for each image, so that two VMs do not fetch it twice.
    locks: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Asks for room: to whoever knows which images are needed.
    press: mpsc::Sender<Asking>,
    pressed: tokio::sync::Mutex<mpsc::Receiver<Asking>>,
}

/// Is told how many bytes have become free.
pub(crate) type Asking = oneshot::Sender<u64>;

impl Images {
    pub(crate) fn open(folder: PathBuf, line: Arc<Line>) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let (press, pressed) = mpsc::channel(FETCHES_MAX);
        let (fetches, locks) = (Semaphore::new(FETCHES_MAX), Mutex::default());
        Ok(Self { folder, line, fetches, locks, press, pressed: tokio::sync::Mutex::new(pressed) })
    }

    /// The next one who found the disk full.
    pub(crate) async fn pressed(&self) -> Option<Asking> {
        self.pressed.lock().await.recv().await
    }

    /// Everything in the folder. What is half fetched counts as the image it is to be.
    pub(crate) fn cached(&self) -> io::Result<Vec<Cached>> {
        self.listed(|name| name.split('.').next())
    }

    /// The images whose bytes are all here.
    pub(crate) fn whole(&self) -> io::Result<Vec<Cached>> {
        self.listed(|name| (!name.contains('.')).then_some(name))
    }

    fn listed(&self, image: impl Fn(&str) -> Option<&str>) -> io::Result<Vec<Cached>> {
        let mut cached = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(sha256) = name.to_str().and_then(&image) else { continue };
            match entry.metadata().and_then(|meta| Ok((meta.len(), meta.modified()?))) {
                Ok((size_bytes, used)) => cached.push(Cached { sha256: sha256.to_owned(), size_bytes, used }),
                // It has been given its name, or was thrown away, since the folder was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(cached)
    }

    /// The hashes of every image the fleet has; none when no controller could be asked.
    pub(crate) async fn in_fleet(&self) -> Option<BTreeSet<String>> {
        for endpoint in self.line.candidates() {
            match listed(&self.line, &endpoint).await {
                Ok(hashes) => return Some(hashes),
                Err(fault) => {
                    tracing::debug!(%fault, "the images of the fleet are not known from this controller");
                }
            }
        }
        None
    }

    /// Removes an image, unless somebody is at it. Says whether it did.
    pub(crate) async fn forget(&self, sha256: &str) -> io::Result<bool> {
        let lock = self.lock_of(sha256);
        let Ok(_only_one) = lock.try_lock() else { return Ok(false) };
        let path = self.folder.join(sha256);
        durable::off_thread(move || {
            durable::remove(&durable::half_made(&path))?;
            durable::remove(&path)
        })
        .await?;
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Ours and the map's: nobody waits for it, and nobody can begin to while the map is held.
        if Arc::strong_count(&lock) == 2 {
            locks.remove(sha256);
        }
        Ok(true)
    }

    fn lock_of(&self, sha256: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(sha256.to_owned()).or_default())
    }

    /// The image's file, fetched if it is not here.
    pub(crate) async fn get(
        &self,
        name: &Name,
        spec: &ImageSpec,
        tell: Tell<'_>,
    ) -> Result<PathBuf, ImageError> {
        let path = self.folder.join(&spec.sha256);
        let lock = self.lock_of(&spec.sha256);
        let _only_one = lock.lock().await;
        if path.exists() {
            touch(&path);
            return Ok(path);
        }
        tell(format!("waiting to fetch image {name}"));
        let _permit = self.fetches.acquire().await;
        let part = durable::half_made(&path);
        let mut fetched = self.fetch(name, spec, &part, tell).await;
        if is_full(&fetched) && self.make_room().await > 0 {
            fetched = self.fetch(name, spec, &part, tell).await;
        }
        if is_full(&fetched) {
            // A disk that is full must not stay full of what could not be finished.
            let _ = durable::remove(&part);
        }
        fetched?;
        tell(format!("checking image {name}"));
        let (expected, checked) = (spec.sha256.clone(), path.clone());
        let kept = durable::off_thread(move || {
            let found = hash(&part)?;
            if found == expected {
                durable::settle(&part, &checked)?;
                return Ok(None);
            }
            durable::remove(&part)?;
            Ok(Some(found))
        });
        match kept.await {
            // A fetch that was given up while it checked has put it in its place meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.exists() => Ok(path),
            Err(source) => Err(ImageError::Keep { name: name.clone(), source }),
            Ok(None) => Ok(path),
            Ok(Some(found)) => {
                Err(ImageError::Damaged { name: name.clone(), found, expected: spec.sha256.clone() })
            }
        }
    }

    /// Has images removed that nobody needs. Returns the bytes that have become free.
    async fn make_room(&self) -> u64 {
        let (asking, freed) = oneshot::channel();
        if self.press.try_send(asking).is_err() {
            return 0;
        }
        // Nobody answers while the agent is not told yet what is to run, or is stopping.
        tokio::time::timeout(ROOM_TIMEOUT, freed).await.ok().and_then(Result::ok).unwrap_or(0)
    }

    /// Size of the disk in the image, bytes, from its first bytes alone: a destination of a migration needs no more.
    pub(crate) async fn disk_bytes(&self, name: &Name, spec: &ImageSpec) -> Result<u64, ImageError> {
        if spec.format == ImageFormat::Raw {
            return Ok(spec.size_bytes.next_multiple_of(512));
        }
        let cached = self.folder.join(&spec.sha256);
        let head = if cached.exists() {
            let mut head = Vec::new();
            let file = std::fs::File::open(&cached);
            file.and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
                .map_err(|source| ImageError::Keep { name: name.clone(), source })?;
            head
        } else {
            self.head(name, spec).await?
        };
        disk_bytes_of(&head, spec.format)
            .ok_or_else(|| ImageError::Header { name: name.clone(), format: spec.format })
    }

    async fn head(&self, name: &Name, spec: &ImageSpec) -> Result<Vec<u8>, ImageError> {
        let mut worst = None;
        for endpoint in self.line.candidates() {
            let head = async {
                let mut stream = open(&self.line, &endpoint, &spec.sha256, 0).await?;
                let mut head = Vec::new();
                while head.len() < HEAD_BYTES {
                    let Some(chunk) = stream.message().await? else { break };
                    head.extend_from_slice(&chunk.data);
                }
                Ok(head)
            };
            match head.await {
                Ok(head) => return Ok(head),
                Err(fault) => worst = Some(more_telling(worst, fault)),
            }
        }
        Err(ImageError::Fetch { name: name.clone(), source: worst.unwrap_or_else(nobody) })
    }

    /// Asks one controller after the other, the leader first, until all of it is here.
    async fn fetch(
        &self,
        name: &Name,
        spec: &ImageSpec,
        part: &Path,
        tell: Tell<'_>,
    ) -> Result<(), ImageError> {
        let keep = |source| ImageError::Keep { name: name.clone(), source };
        let here = || std::fs::metadata(part).map_or(0, |meta| meta.len());
        if here() > spec.size_bytes {
            durable::remove(part).map_err(keep)?;
        }
        let mut worst = None;
        for endpoint in self.line.candidates() {
            if here() == spec.size_bytes {
                break;
            }
            match take(&self.line, &endpoint, name, spec, part, tell).await {
                Ok(()) => return Ok(()),
                Err(Taken::Keep(source)) => return Err(keep(source)),
                Err(Taken::Fault(fault)) => worst = Some(more_telling(worst, fault)),
            }
        }
        if here() == spec.size_bytes {
            return Ok(());
        }
        Err(ImageError::Fetch { name: name.clone(), source: worst.unwrap_or_else(nobody) })
    }
}

fn is_full<T>(result: &Result<T, ImageError>) -> bool {
    let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    matches!(result, Err(ImageError::Keep { source, .. }) if full(source))
}

/// Notes that an image was asked for. Only the order in which images go depends on it.
fn touch(path: &Path) {
    let touched = std::fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, path = %path.display(), "the use of an image was not noted");
    }
}

/// The images that one controller knows of, from its own copy.
async fn listed(line: &Line, endpoint: &str) -> Result<BTreeSet<String>, Fault> {
    let mut client = v1::fleet_client::FleetClient::new(line.dial(endpoint).await?);
    let mut hashes = BTreeSet::new();
    let mut request = v1::ListRequest {
        kind: v1::Kind::from(dunlin_model::Kind::Image).into(),
        consistency: v1::Consistency::Stale.into(),
        ..v1::ListRequest::default()
    };
    loop {
        let page = client.list(request.clone()).await?.into_inner();
        for object in page.objects {
            let Some(v1::object::Choice::Image(image)) = object.choice else { continue };
            hashes.extend(image.spec.map(|spec| spec.sha256));
        }
        if !page.more {
            return Ok(hashes);
        }
        request.page_token = page.next_page_token;
    }
}

fn nobody() -> Fault {
    Fault::new(ErrorCode::Unavailable, "no controller is known")
}

/// Of two failures the one that says more: that one controller has not got it says little while another could not be
/// asked.
fn more_telling(worst: Option<Fault>, next: Fault) -> Fault {
    tracing::debug!(%next, "no image from this controller");
    match worst {
        Some(worst) if worst.code.retryable() && !next.code.retryable() => worst,
        _ => next,
    }
}

async fn open(
    line: &Line,
    endpoint: &str,
    sha256: &str,
    offset: u64,
) -> Result<tonic::Streaming<v1::BlobChunk>, Fault> {
    let mut client = v1::fleet_client::FleetClient::new(line.dial(endpoint).await?);
    let request = v1::DownloadBlobRequest { sha256: sha256.to_owned(), offset };
    Ok(client.download_blob(request).await?.into_inner())
}

/// Takes from one controller what is missing in `part`.
async fn take(
    line: &Line,
    endpoint: &str,
    name: &Name,
    spec: &ImageSpec,
    part: &Path,
    tell: Tell<'_>,
) -> Result<(), Taken> {
    let mut so_far = std::fs::metadata(part).map_or(0, |meta| meta.len());
    let mut stream = open(line, endpoint, &spec.sha256, so_far).await?;
    let mut file = tokio::fs::OpenOptions::new().append(true).create(true).open(part).await?;
    file.set_max_buf_size(WRITE_BUFFER_BYTES);
    let mut told = None;
    while let Some(chunk) = stream.message().await.map_err(Fault::from)? {
        so_far += chunk.data.len() as u64;
        if so_far > spec.size_bytes {
            let message = format!("more than {} bytes came", spec.size_bytes);
            return Err(Fault::new(ErrorCode::Internal, message).into());
        }
        file.write_all(&chunk.data).await?;
        let percent = so_far * 100 / spec.size_bytes.max(1);
        if told.replace(percent) != Some(percent) {
            tell(format!("fetching image {name}, {percent} %"));
        }
    }
    file.flush().await?;
    if so_far < spec.size_bytes {
        let message = format!("{so_far} of {} bytes came", spec.size_bytes);
        return Err(Fault::new(ErrorCode::Unavailable, message).into());
    }
    Ok(())
}

/// Why taking a stream in has failed: on the way, or on this host's disk.
enum Taken {
    Fault(Fault),
    Keep(io::Error),
}

impl From<Fault> for Taken {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Taken {
    fn from(error: io::Error) -> Self {
        Self::Keep(error)
    }
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Size of the disk, bytes, as the header says: QEMU's `docs/interop/qcow2.txt`, VMware's Virtual Disk Format 5.0.
fn disk_bytes_of(head: &[u8], format: ImageFormat) -> Option<u64> {
    let eight = |at: usize| head.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    match format {
        ImageFormat::Raw => None,
        ImageFormat::Qcow2 => head.starts_with(b"QFI\xfb").then(|| eight(24).map(u64::from_be_bytes))?,
        ImageFormat::Vmdk => {
            let sectors = head.starts_with(b"KDMV").then(|| eight(12).map(u64::from_le_bytes))??;
            sectors.checked_mul(512)
        }
    }
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
