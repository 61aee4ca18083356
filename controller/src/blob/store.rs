//! The folder of blobs: what is there, reading it, and letting go of what nobody wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dunlin_model::image::IMAGE_BYTES_MAX;
use tokio::io::AsyncSeekExt as _;
use tokio::sync::Semaphore;

use super::{Blob, BlobError, Digest, Writing};

/// Blobs written at once. More would not be faster on one disk, and each may be as large as an image may be.
const WRITES_AT_ONCE: usize = 4;

/// The blobs of one controller.
#[derive(Debug)]
pub(crate) struct BlobStore {
    dir: PathBuf,
    writes: Arc<Semaphore>,
    /// Since when nobody has wanted a blob that no image names. Starts anew with the process.
    unwanted_since: Mutex<BTreeMap<Digest, Instant>>,
}

impl BlobStore {
    /// Opens `<data>/blobs`, removing what a crash left half-written.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, BlobError> {
        let dir = data_dir.join("blobs");
        fs::create_dir_all(&dir).map_err(BlobError::io("create", &dir))?;
        for entry in fs::read_dir(&dir).map_err(BlobError::io("list", &dir))? {
            let path = entry.map_err(BlobError::io("list", &dir))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tmp-")) {
                fs::remove_file(&path).map_err(BlobError::io("remove", &path))?;
            }
        }
        let writes = Arc::new(Semaphore::new(WRITES_AT_ONCE));
        Ok(Self { dir, writes, unwanted_since: Mutex::default() })
    }

    /// Begins to write one, once fewer than the bound are being written.
    pub(crate) async fn write(&self) -> Writing {
        let permit = Arc::clone(&self.writes).acquire_owned().await;
        let permit = permit.expect("the semaphore lives as long as the store and is never closed");
        Writing::begin(self.dir.clone(), IMAGE_BYTES_MAX, permit)
    }

    /// Is it here, and how long? Asking shows that somebody wants it: its grace begins anew.
    pub(crate) fn stat(&self, digest: &Digest) -> Result<Option<Blob>, BlobError> {
        if let Some(since) = self.lock().get_mut(digest) {
            *since = Instant::now();
        }
        let path = self.dir.join(digest.as_str());
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(Blob { digest: digest.clone(), size_bytes: found.len() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobError::io("stat", path)(error)),
        }
    }

    /// Opens it for reading from `offset` on.
    pub(crate) async fn read(&self, digest: &Digest, offset: u64) -> Result<tokio::fs::File, BlobError> {
        let path = self.dir.join(digest.as_str());
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BlobError::Absent(digest.clone()));
            }
            Err(error) => return Err(BlobError::io("open", path)(error)),
        };
        file.seek(SeekFrom::Start(offset)).await.map_err(BlobError::io("seek in", path))?;
        Ok(file)
    }

    /// Removes blobs that are not in `named` and that nobody has wanted for `grace`. Returns what went.
    pub(crate) fn collect(
        &self,
        named: &BTreeSet<Digest>,
        grace: Duration,
    ) -> Result<Vec<Digest>, BlobError> {
        let now = Instant::now();
        let present = self.digests()?;
        let expired: Vec<_> = {
            let mut since = self.lock();
            since.retain(|digest, _| present.contains(digest) && !named.contains(digest));
            for digest in present.difference(named) {
                since.entry(digest.clone()).or_insert(now);
            }
            since.iter().filter(|(_, at)| now.duration_since(**at) >= grace).map(|(d, _)| d.clone()).collect()
        };
        for digest in &expired {
            let path = self.dir.join(digest.as_str());
            fs::remove_file(&path).map_err(BlobError::io("remove", path))?;
            self.lock().remove(digest);
        }
        Ok(expired)
    }

    fn digests(&self) -> Result<BTreeSet<Digest>, BlobError> {
        let mut digests = BTreeSet::new();
        for entry in fs::read_dir(&self.dir).map_err(BlobError::io("list", &self.dir))? {
            let name = entry.map_err(BlobError::io("list", &self.dir))?.file_name();
            digests.extend(name.to_str().and_then(|name| name.parse().ok()));
        }
        Ok(digests)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Instant>> {
        self.unwanted_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
