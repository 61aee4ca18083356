//! Files that are there whole or not at all, whatever the moment of a crash.
//!
//! A new content is written beside the old one, made durable, and put in its place by a rename, which POSIX makes
//! atomic; then the folder is made durable, so that the rename itself is not lost.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{Files, ThisMachine};

/// Ending of a file that is being made. One that is found at start is a leftover of a crash.
pub(crate) const HALF_MADE: &str = "half-made";

thread_local! {
    /// Is what waits for the disk done where it is asked for? A simulation has one thread, and its order is its seed's.
    static IN_PLACE: Cell<bool> = const { Cell::new(false) };
}

/// Where the content of `path` is written before it is whole.
pub(crate) fn half_made(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(HALF_MADE);
    path.with_file_name(name)
}

/// Replaces `path` by `content`, durably.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_in(&ThisMachine, path, content)
}

/// The same, in a file system that may be played.
pub(crate) fn replace_in(files: &dyn Files, path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = half_made(path);
    files.write(&beside, content)?;
    settle_in(files, &beside, path)
}

/// Gives a file that is whole its name, durably. The file's own bytes are made durable first.
pub(crate) fn settle(from: &Path, to: &Path) -> io::Result<()> {
    settle_in(&ThisMachine, from, to)
}

fn settle_in(files: &dyn Files, from: &Path, to: &Path) -> io::Result<()> {
    files.sync(from)?;
    files.rename(from, to)?;
    sync_folder_of(files, to)
}

/// Removes `path`, durably. Done when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    remove_in(&ThisMachine, path)
}

/// The same, in a file system that may be played.
pub(crate) fn remove_in(files: &dyn Files, path: &Path) -> io::Result<()> {
    match files.remove(path) {
        Ok(()) => sync_folder_of(files, path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes what a crash left half made in `folder`.
pub(crate) fn sweep(files: &dyn Files, folder: &Path) -> io::Result<()> {
    for path in files.list(folder)? {
        if path.extension().is_some_and(|ending| ending == HALF_MADE) {
            files.remove(&path)?;
        }
    }
    Ok(())
}

fn sync_folder_of(files: &dyn Files, path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| files.sync_folder(folder))
}

/// From now on, on this thread, [`off_thread`] is not off it.
pub(crate) fn stay_on_thread() {
    IN_PLACE.set(true);
}

/// Does `work`, which waits for the disk, on a thread of its own, so that the session goes on meanwhile.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if IN_PLACE.get() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
