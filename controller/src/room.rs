//! Free space under the data directory, kept back for what must not fail.
//!
//! DECISION: writes are refused before the disk is full, not when it is. The log engine cannot go on after a write that
//! the file system refused (it fails for good, and the process has to start anew), so the last mebibytes belong to what
//! the controllers write by themselves: votes, sessions of hosts, what became of guests.
//!
//! ```text
//!   free:   plenty ... | IMAGE_RESERVE | WRITE_RESERVE | 0
//!   images:   taken    |    refused    |    refused    |
//!   writes:   taken    |     taken     |    refused, but for those that let go of something
//!   the core, reads:                       taken       | the controller stops, and starts clean when there is room
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dunlin_model::ErrorCode;
use dunlin_proto::Fault;
use dunlin_state::Write;

use crate::metrics;

/// Below this no user's write is taken, bytes: a snapshot of a large fleet and hours of the core's own writes.
pub(crate) const WRITE_RESERVE_BYTES: u64 = 32 << 20;

/// Below this no image's bytes are taken, bytes: an image that nearly fits must not be what ends all other writes.
pub(crate) const IMAGE_RESERVE_BYTES: u64 = 2 * WRITE_RESERVE_BYTES;

/// What was seen counts for so long: writes come by the thousand, and in this time the reserve cannot be used up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The file system of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    seen: Arc<Mutex<Option<(Instant, u64)>>>,
}

impl Room {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), seen: Arc::default() }
    }

    /// Free for this process, bytes. None when the file system does not say: then nothing is refused.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, free)) = *seen
            && now.duration_since(at) < LOOK_EVERY
        {
            return Some(free);
        }
        let disk = rustix::fs::statvfs(&self.dir).ok()?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        *seen = Some((now, free));
        Some(free)
    }

    /// Is there so little left that nothing new should be kept?
    pub(crate) fn is_short(&self) -> bool {
        self.free_bytes().is_some_and(|free| free < IMAGE_RESERVE_BYTES)
    }

    /// Refuses a write that adds something while the reserve is touched.
    pub(crate) fn admit(&self, write: &Write) -> Result<(), Fault> {
        match self.free_bytes() {
            Some(free) if free < WRITE_RESERVE_BYTES && !lets_go(write) => {
                metrics::API_SHED.inc(&["writes on a full disk"]);
                Err(Fault::new(
                    ErrorCode::NoCapacity,
                    format!(
                        "the disk of the leading controller is full: {} has {} MiB free, writes need {}; make room there, \
                     or delete images",
                        self.dir.display(),
                        free >> 20,
                        WRITE_RESERVE_BYTES >> 20
                    ),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Does it end or remove something? That is how room is made.
fn lets_go(write: &Write) -> bool {
    matches!(
        write.inner(),
        Write::DeleteVm { .. }
            | Write::ReleaseVm { .. }
            | Write::DeleteImage { .. }
            | Write::RemoveHost { .. }
            | Write::CancelMigration { .. }
            | Write::CancelTask { .. }
    )
}
