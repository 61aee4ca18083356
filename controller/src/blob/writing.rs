//! One blob on its way in: hashed while it is written, on a thread of its own.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::{Blob, BlobError, Digest};
use crate::mint;
use crate::room::Room;

/// How often the free space is looked at, bytes: several at once must not use up the reserve between two looks.
const LOOK_EVERY_BYTES: u64 = 4 << 20;

/// Chunks between the network and the disk. A few, so that both work at once; more would only be memory.
const CHUNKS_IN_FLIGHT: usize = 8;

enum Step {
    Data(Vec<u8>),
    Finish { wanted: Option<Digest> },
}

/// A blob being written. Dropped before `finish`, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Writing {
    steps: mpsc::Sender<Step>,
    writer: JoinHandle<Result<Blob, BlobError>>,
    _permit: OwnedSemaphorePermit,
}

impl Writing {
    pub(super) fn begin(dir: PathBuf, limit: u64, permit: OwnedSemaphorePermit) -> Self {
        let (steps, received) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let writer = tokio::task::spawn_blocking(move || write(&dir, limit, received));
        Self { steps, writer, _permit: permit }
    }

    /// Adds bytes, waiting while the disk is behind. False when the writer has given up: `finish` says why.
    pub(crate) async fn push(&mut self, data: Vec<u8>) -> bool {
        self.steps.send(Step::Data(data)).await.is_ok()
    }

    /// Makes it durable under its digest, which must be `wanted` when that is given.
    pub(crate) async fn finish(self, wanted: Option<Digest>) -> Result<Blob, BlobError> {
        // A writer that has given up no longer receives; its result is what counts.
        let _ = self.steps.send(Step::Finish { wanted }).await;
        drop(self.steps);
        match self.writer.await {
            Ok(result) => result,
            Err(join) => Err(BlobError::Io {
                act: "write",
                path: PathBuf::from("blobs"),
                source: std::io::Error::other(join.to_string()),
            }),
        }
    }
}

/// Removes the file unless it was given its name.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "left an unfinished blob behind");
        }
    }
}

fn write(dir: &Path, limit: u64, mut steps: mpsc::Receiver<Step>) -> Result<Blob, BlobError> {
    let path = dir.join(format!("tmp-{}", mint::suffix()));
    let mut file = File::create_new(&path).map_err(BlobError::io("create", &path))?;
    let mut temporary = Temporary { path: path.clone(), kept: false };
    let (mut hasher, mut size_bytes, mut looked_at) = (Sha256::new(), 0, 0);
    let room = Room::new(dir);
    let wanted = loop {
        match steps.blocking_recv() {
            Some(Step::Data(data)) => {
                size_bytes += data.len() as u64;
                if size_bytes > limit {
                    return Err(BlobError::TooLarge { limit });
                }
                if size_bytes >= looked_at {
                    looked_at = size_bytes + LOOK_EVERY_BYTES;
                    // What the others keep back for the log is not for images to fill.
                    if room.is_short() {
                        return Err(BlobError::DiskFull { dir: dir.to_owned() });
                    }
                }
                file.write_all(&data).map_err(BlobError::io("write", &path))?;
                hasher.update(&data);
            }
            Some(Step::Finish { wanted }) => break wanted,
            // Whoever sent it has gone away in the middle.
            None => return Err(BlobError::Empty),
        }
    };
    if size_bytes == 0 {
        return Err(BlobError::Empty);
    }
    let found = Digest(mint::hex(&hasher.finalize()));
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
        return Err(BlobError::Mismatch { wanted, found });
    }
    file.sync_all().map_err(BlobError::io("sync", &path))?;
    fs::rename(&path, dir.join(found.as_str())).map_err(BlobError::io("rename", &path))?;
    temporary.kept = true;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(BlobError::io("sync", dir))?;
    Ok(Blob { digest: found, size_bytes })
}
