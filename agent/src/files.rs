//! The file system that the journal is kept in: this machine's, or one that a simulation plays, with a disk that is slow,
//! full, or loses what was not made durable when the power goes.
//!
//! Says only what [`durable`](crate::durable) needs; the order in which it is used, which is what makes a file whole or
//! not there, is that room's.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::ground::Later;

/// Only the agent's own user may read what it keeps: identities and guest specs hold secrets.
const PRIVATE: u32 = 0o600;

/// A file system. Each call is what POSIX promises of it, and no more.
pub trait Files: Debug + Send + Sync {
    /// Makes the folder and those above it, where they are missing.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;
    /// The files in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Writes a file, over what was there. Not durable.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Makes a file's content durable, but not its name.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name, in the place of whatever had it. Atomic, and not durable.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Removes a file. Not durable.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Waited for before the next write: a disk that is only played takes its time here, a real one in the calls.
    fn pace(&self) -> Later {
        Box::pin(std::future::ready(()))
    }
}

/// This machine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

impl Files for ThisMachine {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(path)?;
        file.write_all(content)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}
