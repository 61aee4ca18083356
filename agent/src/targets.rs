//! Files at paths that somebody else named, made here only to receive a migration into.
//!
//! ```text
//!  nothing --intent journaled--> made under a name of ours --its inode journaled--> at the path --has run--> a disk
//!     ^                                    |                                            |
//!     +----------- called off, at any moment, by a crash too: what is ours is removed --+
//! ```
//! Owns how such a file comes to be and goes again. It never takes the place of a file that is there, and never removes
//! one that it cannot prove to have made: the journal names the inode before the inode gets the path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dunlin_model::{Incarnation, VmId};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::durable;
use crate::journal::{Mark, Target};

/// A guest's disk is its owner's business: readable by the agent's own user, which the hypervisor runs as.
const PRIVATE: u32 = 0o600;

/// The name under which the file is made. No other VM, incarnation or program uses it.
pub(crate) fn beside(path: &Path, vm: VmId, incarnation: Incarnation) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".dunlin-{vm}-{incarnation}"));
    durable::half_made(&path.with_file_name(name))
}

/// May a file be made at `path`? If not, why. `own` is the agent's data folder, where nobody else's files belong.
pub(crate) fn refusal(path: &Path, own: &Path) -> Option<String> {
    let folder = path.parent().unwrap_or(path);
    let Ok(real) = folder.canonicalize() else {
        return Some(format!("the folder {} is not on this host", folder.display()));
    };
    if own.canonicalize().is_ok_and(|own| real.starts_with(own)) {
        return Some("it lies in the agent's own data folder".to_owned());
    }
    // A link that leads nowhere is something too.
    if path.symlink_metadata().is_ok() {
        return Some(taken());
    }
    None
}

/// Why a path that has a file is not used.
pub(crate) fn taken() -> String {
    "there is a file already, which is not overwritten; move it away, or say `shared` if every host sees the same file"
        .to_owned()
}

/// Opens a fresh file under our own name; what an earlier attempt left there is removed.
pub(crate) fn begin(beside: &Path) -> io::Result<()> {
    durable::remove(beside)?;
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(beside).map(drop)
}

/// Makes the file durable, and says which it is.
pub(crate) fn finish(beside: &Path) -> io::Result<Mark> {
    let file = File::open(beside)?;
    file.sync_all()?;
    let meta = file.metadata()?;
    Ok(Mark { device: meta.dev(), inode: meta.ino() })
}

/// Gives the file its path, unless something has come to be there meanwhile. Durable.
pub(crate) fn claim(beside: &Path, path: &Path) -> io::Result<()> {
    place(beside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Moves a file to a name that nothing has.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows how; a second name is as good.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        moved => Ok(moved?),
    }
}

/// Is the file that was made still the one at its path?
pub(crate) fn is_there(target: &Target) -> bool {
    let found = target.path.symlink_metadata().ok();
    found.is_some_and(|meta| target.mark == Some(Mark { device: meta.dev(), inode: meta.ino() }))
}

/// Removes all that was made for the target, and nothing else. Done when there is nothing.
pub(crate) fn unmake(target: &Target, vm: VmId) -> io::Result<()> {
    durable::remove(&beside(&target.path, vm, target.incarnation))?;
    if is_there(target) { durable::remove(&target.path) } else { Ok(()) }
}

/// Gives a file that is out of date another name. Done when it has it already, or is gone.
pub(crate) fn set_aside(path: &Path, to: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_file() || meta.is_symlink() => {}
        // A device stays where it is.
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    place(path, to)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
