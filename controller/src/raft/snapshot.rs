//! Snapshot files: a head, the machine's own encoding, and a tail that proves both.
//!
//! ```text
//! "DUNLSNAP"  version u32  head length u32  SnapshotHead  machine ...  length u64  crc32 u32
//!                                                                      \__ of everything before __/
//! ```
//! Integers are little-endian. A file appears under its name only when it is complete and durable (temporary name,
//! fsync, rename, fsync of the folder); one is kept. Everything here blocks: call it on a blocking thread.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_proto::v1 as wire;
use prost::Message;

use super::StoreError;

const MAGIC: &[u8; 8] = b"DUNLSNAP";
const VERSION: u32 = 1;

/// Length and checksum behind the content.
const TAIL_BYTES: u64 = 12;

/// The head is a membership and some numbers; more than this is garbage that claims to be a length.
const HEAD_BYTES_MAX: u32 = 1 << 20;

/// Copied at a time.
const BUFFER_BYTES: usize = 256 << 10;

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
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(self.error("publish a snapshot in", io::Error::other("the store is closed")));
        }
        Ok(closed)
    }

    /// Waits for a publication that is under way and allows no other: a build that outlives its replica must not
    /// touch a folder that somebody else may have opened by then.
    pub(super) fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
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
    let inner = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
    let mut out = Counted { inner, crc: crc32fast::Hasher::new(), length: 0 };
    let head = head.encode_to_vec();
    let head_length = u32::try_from(head.len()).map_err(io::Error::other)?;
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&head_length.to_le_bytes())?;
    out.write_all(&head)?;
    body(&mut out)?;
    let Counted { mut inner, crc, length } = out;
    inner.write_all(&length.to_le_bytes())?;
    inner.write_all(&crc.finalize().to_le_bytes())?;
    inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Checks a whole file, then reads its head and hands its body to `decode`.
pub(super) fn read<T>(
    file: &mut File,
    decode: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<(wire::SnapshotHead, T), Unreadable> {
    let end = verify(file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, file).take(end);
    let mut fixed = [0_u8; 16];
    input.read_exact(&mut fixed)?;
    if &fixed[..8] != MAGIC {
        return Err(Unreadable::Content("it does not begin like a snapshot"));
    }
    let version = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    if version != VERSION {
        return Err(Unreadable::Version { found: version, known: VERSION });
    }
    let head_length = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]);
    if head_length > HEAD_BYTES_MAX {
        return Err(Unreadable::Content("its head is impossibly long"));
    }
    let mut head = vec![0; head_length as usize];
    input.read_exact(&mut head)?;
    let head = wire::SnapshotHead::decode(head.as_slice())
        .map_err(|_| Unreadable::Content("its head is garbled"))?;
    let body = decode(&mut input)?;
    Ok((head, body))
}

/// Checks length and checksum; returns where the body ends.
fn verify(file: &mut File) -> Result<u64, Unreadable> {
    let length = file.seek(SeekFrom::End(0))?;
    let Some(end) = length.checked_sub(TAIL_BYTES) else {
        return Err(Unreadable::Content("it is too short"));
    };
    file.seek(SeekFrom::Start(0))?;
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = end;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        file.read_exact(&mut buffer[..want])?;
        crc.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut tail = [0_u8; 12];
    file.read_exact(&mut tail)?;
    let (told_length, told_crc) = tail.split_at(8);
    if told_length != end.to_le_bytes() {
        return Err(Unreadable::Content("its length is not what it says"));
    }
    if told_crc != crc.finalize().to_le_bytes() {
        return Err(Unreadable::Content("its checksum does not match"));
    }
    Ok(end)
}

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Content(&'static str),
    #[error("its version is {found}, and this binary knows {known}")]
    Version { found: u32, known: u32 },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Counts and sums what passes.
struct Counted<W> {
    inner: W,
    crc: crc32fast::Hasher,
    length: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
