//! When each of the other controllers was last heard: any message of it that was let in, any answer it gave.
//!
//! Refuses to know what follows from silence; that is the sentinel's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Cheap to clone; all clones hear the same.
#[derive(Clone, Debug)]
pub(super) struct Hearing {
    since: Instant,
    last: Arc<Mutex<HashMap<u64, Instant>>>,
}

impl Hearing {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), last: Arc::default() }
    }

    /// Controller `id` lives.
    pub(super) fn note(&self, id: u64) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }

    /// How long nothing came from controller `id`: since this one started, when it has never spoken.
    pub(super) fn silence(&self, id: u64) -> Duration {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        last.unwrap_or(self.since).elapsed()
    }
}
