//! Files that are there whole or not at all, whatever the moment of a crash.
//!
//! A new content is written beside the old one, made durable, and put in its place by a rename, which POSIX makes
//! atomic; then the folder is made durable, so that the rename itself is not lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Ending of a file that is being made. One that is found at start is a leftover of a crash.
pub(crate) const HALF_MADE: &str = "half-made";

/// Only the agent's own user may read what it keeps: identities and guest specs hold secrets.
const PRIVATE: u32 = 0o600;

/// Where the content of `path` is written before it is whole.
pub(crate) fn half_made(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(HALF_MADE);
    path.with_file_name(name)
}

/// Replaces `path` by `content`, durably.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = half_made(path);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(&beside)?;
    file.write_all(content)?;
    drop(file);
    settle(&beside, path)
}

/// Gives a file that is whole its name, durably. The file's own bytes are made durable first.
pub(crate) fn settle(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    std::fs::rename(from, to)?;
    sync_folder_of(to)
}

/// Removes `path`, durably. Done when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes what a crash left half made in `folder`.
pub(crate) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == HALF_MADE) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Does `work`, which waits for the disk, on a thread of its own, so that the session goes on meanwhile.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
