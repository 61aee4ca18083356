//! Snapshot files: a head and the machine's own encoding, sealed.
//!
//! A file appears under its name only when it is complete and durable (temporary name, fsync, rename, fsync of the
//! folder); one is kept. Everything here blocks: call it on a blocking thread.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_proto::v1 as wire;
use prost::Message;

use super::StoreError;
use crate::sealed::{self, BUFFER_BYTES, Unreadable};

/// Snapshot files of this version.
const SNAPSHOT: sealed::Format = sealed::Format { magic: b"DUNLSNAP", version: 1, noun: "snapshot" };

/// The folder with the snapshot.
#[derive(Clone, Debug)]
pub(super) struct SnapshotDir {
    path: PathBuf,
    /// Held while publishing; true once nothing may be published any more.
    closed: Arc<Mutex<bool>>,
}

impl SnapshotDir {
    /// Makes the folder and removes what a crash left half-written.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let dir = Self { path, closed: Arc::default() };
        dir.prepare().map_err(|source| dir.error("prepare", source))?;
        Ok(dir)
    }

    fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        for item in fs::read_dir(&self.path)? {
            let item = item?;
            if item.path().extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(item.path())?;
            }
        }
        Ok(())
    }

    /// The newest snapshot's file, by the log index in its name.
    pub(super) fn newest(&self) -> Result<Option<PathBuf>, StoreError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let items = fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>()?;
            Ok(items.into_iter().map(|item| item.path()).filter(|path| is_snapshot(path)).collect())
        };
        let mut files = list().map_err(|source| self.error("list", source))?;
        // Names begin with the index in twenty digits, so their order is the order of age.
        files.sort();
        Ok(files.pop())
    }

    /// A name for a file in the making, never used before in this process.
    pub(super) fn temporary(&self) -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.path.join(format!("{next}.tmp"))
    }

    /// Writes a complete, durable file under a temporary name.
    pub(super) fn write(
        &self,
        head: &wire::SnapshotHead,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<PathBuf, StoreError> {
        let temporary = self.temporary();
        write_file(&temporary, head, body).map_err(|source| self.error("write a snapshot in", source))?;
        Ok(temporary)
    }

    /// Only one thread may publish at a time, and none after `close`.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, bool>, StoreError> {
        let closed = self.hold();
        if *closed {
            return Err(self.error("publish a snapshot in", io::Error::other("the store is closed")));
        }
        Ok(closed)
    }

    /// While this is held nothing is published, so the file that is the snapshot stays where it is. Blocks for the
    /// fsyncs of a publication that is under way.
    pub(super) fn hold(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a publication that is under way and allows no other: a build that outlives its replica must not
    /// touch a folder that somebody else may have opened by then.
    pub(super) fn close(&self) {
        *self.hold() = true;
    }

    /// Makes a complete file the snapshot and removes the older ones. Under `lock`.
    pub(super) fn publish(&self, temporary: &Path, head: &wire::SnapshotHead) -> Result<PathBuf, StoreError> {
        let meta = head.meta.clone().unwrap_or_default();
        let path = self.path.join(format!(
            "{:020}-{}.snap",
            meta.last_log.unwrap_or_default().index,
            meta.snapshot_id
        ));
        let publish = || -> io::Result<()> {
            File::open(temporary)?.sync_all()?;
            fs::rename(temporary, &path)?;
            File::open(&self.path)?.sync_all()?;
            for item in fs::read_dir(&self.path)? {
                let old = item?.path();
                if is_snapshot(&old) && old != path {
                    fs::remove_file(old)?;
                }
            }
            Ok(())
        };
        publish().map_err(|source| self.error("publish a snapshot in", source))?;
        Ok(path)
    }

    pub(super) fn error(&self, act: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { act, path: self.path.clone(), source }
    }

    pub(super) fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }
}

fn is_snapshot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "snap")
}

fn write_file(
    path: &Path,
    head: &wire::SnapshotHead,
    body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let out = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
    let out = sealed::write(SNAPSHOT, out, &head.encode_to_vec(), body)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Checks a whole file, then reads its head and hands its body to `decode`.
pub(super) fn read<T>(
    file: &mut File,
    decode: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<(wire::SnapshotHead, T), Unreadable> {
    let (head, body) = sealed::read(SNAPSHOT, file, decode)?;
    let head = wire::SnapshotHead::decode(head.as_slice())
        .map_err(|_| Unreadable::Content("its head is garbled".into()))?;
    Ok((head, body))
}
