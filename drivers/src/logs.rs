//! Keeps what guests make their hypervisor write within bounds: what they say on their serial port, and its complaints
//! about them.
//!
//! The head of a log that has grown too long becomes a hole: its bytes are given back to the file system, while the
//! hypervisor goes on to append and every place in the log keeps its number, so that a reader who follows misses nothing and reads nothing
//! twice. Where a file system cannot make holes, the log begins anew. It writes while no agent is there, too: the
//! bound holds again as soon as one is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, ftruncate, seek};
use rustix::io::Errno;

use crate::run_dir::RunDir;

/// Bytes that are kept of each log: hours of a chatty guest, the whole boot of any.
pub(super) const LOG_BYTES_MAX: u64 = 4 << 20;
/// What a log may have beyond that before it is cut: one cut for many lines.
const LOG_SLACK_BYTES: u64 = 1 << 20;
/// Holes are made of whole blocks; none of the file systems in use has larger ones.
const BLOCK_BYTES: u64 = 64 << 10;

/// Cuts every log that is too long: what guests say, and these files in the guests' folders. What cannot be cut is told, and the others are cut all the same.
pub(super) fn trim_all(dir: &Path, of_guests: &[&str]) -> io::Result<()> {
    let mut logs: Vec<PathBuf> = Vec::new();
    match std::fs::read_dir(dir.join("logs")) {
        Ok(entries) => logs.extend(entries.flatten().map(|entry| entry.path())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let guests = RunDir::all(dir).map_err(io::Error::other)?;
    logs.extend(guests.iter().flat_map(|guest| of_guests.iter().map(|name| guest.file(name))));
    let mut first = Ok(());
    for log in logs {
        match trim(&log) {
            Err(e) if e.kind() != io::ErrorKind::NotFound && first.is_ok() => {
                first = Err(io::Error::new(e.kind(), format!("{}: {e}", log.display())));
            }
            _ => {}
        }
    }
    first
}

/// Cuts a log that is too long.
pub(crate) fn trim(log: &Path) -> io::Result<()> {
    let length = std::fs::metadata(log)?.len();
    if length <= LOG_BYTES_MAX + LOG_SLACK_BYTES {
        return Ok(());
    }
    let file = File::options().write(true).open(log)?;
    let begins = match seek(&file, SeekFrom::Data(0)) {
        Ok(begins) => begins,
        // Nothing but hole.
        Err(Errno::NXIO) => return Ok(()),
        Err(_) => 0,
    };
    if length - begins.min(length) <= LOG_BYTES_MAX + LOG_SLACK_BYTES {
        return Ok(());
    }
    let cut = (length - LOG_BYTES_MAX) / BLOCK_BYTES * BLOCK_BYTES;
    match fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, cut) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(ftruncate(&file, 0)?),
        punched => Ok(punched?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// However much a guest says, its log takes no more than its bound; the newest stays, at the place it had.
    #[test]
    fn a_log_is_bounded_and_keeps_its_places() {
        let dir = tempfile::tempdir().expect("dir");
        let log = dir.path().join("logs/web.log");
        std::fs::create_dir(dir.path().join("logs")).expect("folder");
        // As QEMU writes it.
        let mut writer = File::options().create(true).append(true).open(&log).expect("open");
        for batch in 0..20_u32 {
            let lines: String =
                (batch * 50_000..(batch + 1) * 50_000).map(|line| format!("line {line:010}\n")).collect();
            writer.write_all(lines.as_bytes()).expect("write");
            trim_all(dir.path(), &["qemu.log"]).expect("trim");
        }
        let meta = std::fs::metadata(&log).expect("there");
        let most = LOG_BYTES_MAX + LOG_SLACK_BYTES + BLOCK_BYTES;
        assert!(meta.blocks() * 512 <= most, "{} bytes are taken", meta.blocks() * 512);
        assert_eq!(meta.len(), 16_000_000, "a place in the log has moved");
        let mut reader = File::open(&log).expect("open");
        let kept = 16_000_000 - LOG_BYTES_MAX;
        reader.seek(io::SeekFrom::Start(kept / 16 * 16 + 16)).expect("seek");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text, no hole");
        let numbers: Vec<u64> = text.lines().map(|line| line[5..].parse().expect("a whole line")).collect();
        assert_eq!(numbers.last(), Some(&999_999));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
        std::fs::remove_dir_all(dir.path().join("logs")).expect("remove");
        trim_all(dir.path(), &["qemu.log"]).expect("no log at all");
    }
}
