//! Reads what a VM's driver keeps of its serial console, also while it grows.
//!
//! A log keeps the places of its bytes: its head may become a hole, which is passed over, and it is known by its file, so
//! that a reader who comes back goes on where it was. Held open, it is read to its end even when it was removed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use dunlin_model::Name;
use rustix::fs::{SeekFrom, inotify, seek};
use rustix::io::Errno;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::durable::off_thread;

/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;

/// A place in one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which log.
    pub(crate) log: String,
    /// Bytes before it.
    pub(crate) offset: u64,
}

/// One log, held open.
#[derive(Clone, Debug)]
pub(crate) struct SerialLog {
    file: Arc<File>,
    /// Tells it from every other log in the fleet, one of the same VM on the same host included.
    name: String,
}

impl SerialLog {
    pub(crate) fn open(path: &Path, host: &Name) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        // Not every file system knows when a file was made; then the inode has to do.
        let made = meta.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let name = format!("{host}/{}/{}", meta.ino(), made.unwrap_or_default().as_nanos());
        Ok(Self { file: Arc::new(file), name })
    }

    /// Where to begin: where the reader was, if he was in this very log.
    pub(crate) fn resume(&self, places: &[Place]) -> u64 {
        places.iter().find(|place| place.log == self.name).map_or(0, |place| place.offset)
    }

    /// The place of the byte at `offset`.
    pub(crate) fn place(&self, offset: u64) -> Place {
        Place { log: self.name.clone(), offset }
    }

    /// Some bytes from `at` on, or from where there are any, and where they end. None at the end of the log.
    pub(crate) async fn read(&self, at: u64) -> io::Result<(Vec<u8>, u64)> {
        let file = Arc::clone(&self.file);
        off_thread(move || {
            // Begun anew on a file system without holes.
            let at = if file.metadata()?.len() < at { 0 } else { at };
            let from = match seek(&file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => return Ok((Vec::new(), at)),
                Err(Errno::INVAL) => at,
                found => found?,
            };
            let mut bytes = vec![0; READ_BYTES];
            let count = file.read_at(&mut bytes, from)?;
            bytes.truncate(count);
            Ok((bytes, from + count as u64))
        })
        .await
    }

    /// Nobody writes to it any more, and what it has is read by those who hold it open.
    pub(crate) fn is_removed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }

    /// Says when it has changed or was removed.
    pub(crate) fn watch(&self) -> io::Result<Changes> {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        // This very file, whatever has its path by now. That its last name is gone changes its attributes.
        let this = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        inotify::add_watch(&watch, this, inotify::WatchFlags::MODIFY | inotify::WatchFlags::ATTRIB)?;
        // An inotify instance is read as a pipe is: epoll says when, and each read gives whole events (inotify(7)).
        Ok(Changes(pipe::Receiver::from_owned_fd_unchecked(watch)?))
    }
}

/// News of one log.
#[derive(Debug)]
pub(crate) struct Changes(pipe::Receiver);

impl Changes {
    /// Waits for the next. Only that something happened matters, not what the events say.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        let mut events = [0u8; 1024];
        self.0.read(&mut events).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    /// What was cut off is passed over, a place holds in its own log and in no other, and what was removed is read to its
    /// end.
    #[tokio::test]
    async fn places_hold() {
        let (dir, host) = (tempfile::tempdir().unwrap(), "h1".parse().unwrap());
        let path = dir.path().join("web.log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        writer.write_all(&vec![b'a'; 128 << 10]).unwrap();
        writer.write_all(b"the end").unwrap();
        let log = SerialLog::open(&path, &host).unwrap();
        let length = (128 << 10) + 7;
        fallocate(&writer, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 128 << 10).unwrap();
        assert_eq!(log.read(0).await.unwrap(), (b"the end".to_vec(), length));
        assert_eq!(log.read(length).await.unwrap(), (Vec::new(), length));
        let places = [log.place(length)];
        assert_eq!(SerialLog::open(&path, &host).unwrap().resume(&places), length);

        let mut changes = log.watch().unwrap();
        assert!(!log.is_removed().unwrap());
        writer.write_all(b", and more").unwrap();
        changes.next().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        changes.next().await.unwrap();
        assert!(log.is_removed().unwrap());
        assert_eq!(log.read(length).await.unwrap().0, b", and more");
        std::fs::write(&path, b"another").unwrap();
        assert_eq!(SerialLog::open(&path, &host).unwrap().resume(&places), 0);
    }
}
