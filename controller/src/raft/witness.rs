//! A second, independent word on how far the log was written.
//!
//! The storage engine heals a broken file by going back to the last state it can prove, silently: a garbled block in
//! the middle of the database can cost it everything acknowledged since. What it then presents is perfectly
//! consistent, only old. So after every group of writes the end of the log and the term of the vote go to a small
//! file of their own, and a store that knows less than this file says is refused.
//!
//! The file is overwritten in place and not synced (two microseconds instead of a second fsync): a killed process
//! leaves it exact, the loss of power leaves it some seconds old, and old only means that it detects less. It
//! must never claim too much: it is written after the engine has synced, and synced before the log is cut short.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The file's name in the data directory.
const FILE: &str = "witness";

/// Log end, vote term, checksum.
const BYTES: usize = 20;

/// What the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// One past the last entry that was durable.
    pub(super) log_end: u64,
    /// The term of the last vote that was durable.
    pub(super) term: u64,
}

/// The open file.
pub(super) struct Witness {
    file: File,
}

impl Witness {
    /// Opens the file, and reads it. Nothing is seen in a new file, nor in one that is itself damaged.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Seen)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(dir.join(FILE))?;
        let length = file.metadata()?.len();
        if length == 0 {
            return Ok((Self { file }, Seen::default()));
        }
        let mut bytes = [0; BYTES];
        let whole = length == BYTES as u64 && file.read_exact_at(&mut bytes, 0).is_ok();
        let seen = if whole { decode(bytes) } else { None };
        if seen.is_none() {
            tracing::warn!(dir = %dir.display(), "the witness file is unreadable; the log is judged without it");
        }
        Ok((Self { file }, seen.unwrap_or_default()))
    }

    /// Says how far the log is durable.
    pub(super) fn write(&self, seen: Seen) -> io::Result<()> {
        self.file.write_all_at(&encode(seen), 0)
    }

    /// Makes it durable itself.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn encode(seen: Seen) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&seen.log_end.to_le_bytes());
    bytes[8..16].copy_from_slice(&seen.term.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: [u8; BYTES]) -> Option<Seen> {
    let number = |at: usize| <[u8; 8]>::try_from(&bytes[at..at + 8]).map(u64::from_le_bytes).ok();
    let seen = Seen { log_end: number(0)?, term: number(8)? };
    (encode(seen) == bytes).then_some(seen)
}
