//! The log engine on sled.
//!
//! sled 0.34 is sound only when used with care; each rule here cures a fault that was reproduced:
//! - `flush` on Linux is `sync_file_range`, which leaves the device cache and the file size alone: `sync` follows it
//!   with `fdatasync` on an own handle of the same file.
//! - A value above about 128 KiB goes to a file of its own that is never synced: records are split into chunks.
//! - A half-written `snap.*.generating` makes `open` fail: it is removed first (the rename is sled's commit).
//! - The cache would grow to 1 GiB: it is bounded.
//!
//! A record is one key, its number as 8 bytes big-endian. The further chunks of a long record have the same key with
//! two more bytes, so they sort behind it; a batch makes all of them appear or none.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::engine::{LogEngine, MetaKey, Numbered};

/// The largest value handed to sled. Far below the 128 KiB where values stop being synced.
const CHUNK_BYTES: usize = 60 << 10;

/// sled's page cache. The log is read back only by a follower that lags behind the log store's own cache.
const CACHE_BYTES: u64 = 32 << 20;

/// Entries cut off the end of the log in one batch.
const TRUNCATE_BATCH: u64 = 256;

/// How often sled writes its buffers by itself, in milliseconds. Only for what was not asked to be durable.
const IDLE_FLUSH_MS: u64 = 500;

pub(super) struct SledEngine {
    path: PathBuf,
    db: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    file: File,
}

impl SledEngine {
    /// Opens or makes the database in `path`.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|source| io_error("create", path, source))?;
        remove_unfinished_snapshots(path)?;
        let config =
            sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(IDLE_FLUSH_MS));
        let db = config.open().map_err(|error| open_error(path, error))?;
        let log = db.open_tree("log").map_err(|error| open_error(path, error))?;
        let meta = db.open_tree("meta").map_err(|error| open_error(path, error))?;
        let file_path = path.join("db");
        let file = File::open(&file_path).map_err(|source| io_error("open", &file_path, source))?;
        Ok(Self { path: path.to_owned(), db, log, meta, file })
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }

    fn number_of(&self, key: &[u8]) -> Result<u64, StoreError> {
        let number = key.get(..8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        number
            .map(u64::from_be_bytes)
            .ok_or_else(|| self.damaged(format!("the log has a key of {} bytes", key.len())))
    }

    /// Removes records and their chunks, all at once.
    fn remove(&self, numbers: Range<u64>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for key in self.log.range(numbers.start.to_be_bytes()..numbers.end.to_be_bytes()).keys() {
            batch.remove(key.map_err(|error| engine_error("scan the log", &error))?);
        }
        self.log.apply_batch(batch).map_err(|error| engine_error("remove from the log", &error))
    }
}

impl LogEngine for SledEngine {
    fn append(&self, records: &[Numbered]) -> Result<(), StoreError> {
        for (number, record) in records {
            let key = number.to_be_bytes();
            let done = if record.len() <= CHUNK_BYTES {
                self.log.insert(key, record.as_slice()).map(|_| ())
            } else {
                let mut batch = sled::Batch::default();
                for (at, chunk) in record.chunks(CHUNK_BYTES).enumerate() {
                    batch.insert(chunk_key(*number, at), chunk);
                }
                self.log.apply_batch(batch)
            };
            done.map_err(|error| engine_error("append to the log", &error))?;
        }
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Numbered>, StoreError> {
        let mut records: Vec<Numbered> = Vec::new();
        let mut bytes = 0;
        for item in self.log.range(range.start.to_be_bytes()..range.end.to_be_bytes()) {
            let (key, value) = item.map_err(|error| engine_error("read the log", &error))?;
            let number = self.number_of(&key)?;
            let is_head = key.len() == 8;
            if is_head && bytes >= max_bytes {
                break;
            }
            bytes += value.len();
            match records.last_mut() {
                Some((last, record)) if !is_head && *last == number => record.extend_from_slice(&value),
                _ if is_head => records.push((number, value.to_vec())),
                _ => return Err(self.damaged(format!("entry {number} has lost its first part"))),
            }
        }
        Ok(records)
    }

    fn bounds(&self) -> Result<Option<(u64, u64)>, StoreError> {
        let first = self.log.first().map_err(|error| engine_error("read the log", &error))?;
        let last = self.log.last().map_err(|error| engine_error("read the log", &error))?;
        match (first, last) {
            (Some((first, _)), Some((last, _))) => {
                Ok(Some((self.number_of(&first)?, self.number_of(&last)?)))
            }
            _ => Ok(None),
        }
    }

    fn truncate_from(&self, first: u64) -> Result<(), StoreError> {
        let Some((_, last)) = self.bounds()? else { return Ok(()) };
        // From the end, one batch after the other: a crash between them leaves no hole.
        let mut end = last + 1;
        while end > first {
            let start = end.saturating_sub(TRUNCATE_BATCH).max(first);
            self.remove(start..end)?;
            end = start;
        }
        Ok(())
    }

    fn purge_to(&self, last: u64, limit: u64) -> Result<bool, StoreError> {
        let Some((first, _)) = self.bounds()? else { return Ok(false) };
        let end = last.saturating_add(1);
        let slice_end = first.saturating_add(limit).min(end);
        if first < slice_end {
            self.remove(first..slice_end)?;
        }
        Ok(slice_end < end && self.bounds()?.is_some_and(|(first, _)| first < end))
    }

    fn put(&self, key: MetaKey, value: &[u8]) -> Result<(), StoreError> {
        let done = self.meta.insert(key.name(), value).map(|_| ());
        done.map_err(|error| engine_error("write beside the log", &error))
    }

    fn get(&self, key: MetaKey) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.meta.get(key.name()).map_err(|error| engine_error("read beside the log", &error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| engine_error("flush the log", &error))?;
        self.file.sync_data().map_err(|source| io_error("sync", &self.path, source))
    }
}

fn chunk_key(number: u64, at: usize) -> Vec<u8> {
    let mut key = number.to_be_bytes().to_vec();
    if at > 0 {
        let at = u16::try_from(at).expect("a record is at most some MiB, which is far below 65536 chunks");
        key.extend_from_slice(&at.to_be_bytes());
    }
    key
}

fn remove_unfinished_snapshots(path: &Path) -> Result<(), StoreError> {
    for item in fs::read_dir(path).map_err(|source| io_error("list", path, source))? {
        let item = item.map_err(|source| io_error("list", path, source))?;
        let name = item.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(item.path()).map_err(|source| io_error("remove", &item.path(), source))?;
        }
    }
    Ok(())
}

fn open_error(path: &Path, error: sled::Error) -> StoreError {
    match error {
        // sled wraps the failed flock of its file in an error of its own words.
        sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => {
            StoreError::Locked { path: path.to_owned() }
        }
        sled::Error::Io(source) => io_error("open", path, source),
        sled::Error::Corruption { at, .. } => {
            StoreError::Damaged { path: path.to_owned(), what: format!("the database is corrupt at {at:?}") }
        }
        other => StoreError::Damaged { path: path.to_owned(), what: other.to_string() },
    }
}

fn engine_error(act: &'static str, error: &sled::Error) -> StoreError {
    StoreError::Engine { act, cause: error.to_string() }
}

fn io_error(act: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { act, path: path.to_owned(), source }
}
