//! What changed, in order, for as long as the bound allows. Kept by every replica for itself: a snapshot does not carry
//! it, and `apply` never reads it.

use std::cmp::Ordering;
use std::sync::Arc;

use dunlin_model::{Object, Revision};
use imbl::Vector;
use thiserror::Error;

use crate::State;

/// Changes held for watchers. At a few hundred changes per second a watcher may be away for half a minute, and the ring
/// costs some 20 MiB at worst, since most objects in it are shared with the state.
pub const CHANGES_MAX: usize = 16_384;

/// One object's change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The cluster's revision after it. Objects that changed in one command share it.
    pub revision: Revision,
    /// The object after the change, or as it last was.
    pub object: Arc<Object>,
    /// It was removed.
    pub deleted: bool,
}

/// The revision asked for is no longer held, so that something between might be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "changes after revision {after} are no longer held: the oldest known is {oldest}; list again and watch from there"
)]
pub struct Compacted {
    /// What was asked for.
    pub after: Revision,
    /// Changes after this revision are held.
    pub oldest: Revision,
}

/// The ring. Two histories are always equal: it is no part of the replicated state.
///
/// DECISION: a vector and not a map. Changes come at one end and go at the other, which a map answers with two searches and
/// two rebuilt paths for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// In the order in which they happened.
    ring: Vector<Change>,
    /// Every change after this revision is in the ring.
    complete_after: Revision,
}

impl PartialEq for History {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl History {
    pub(crate) fn starting_at(revision: Revision) -> Self {
        Self { ring: Vector::new(), complete_after: revision }
    }

    pub(crate) fn push(&mut self, change: Change) {
        self.ring.push_back(change);
        while self.ring.len() > CHANGES_MAX {
            let Some(oldest) = self.ring.pop_front() else { return };
            self.complete_after = self.complete_after.max(oldest.revision);
        }
    }
}

impl State {
    /// Every change after `revision`, oldest first.
    pub fn changes_after(&self, revision: Revision) -> Result<impl Iterator<Item = &Change>, Compacted> {
        let History { ring, complete_after: oldest } = &self.history;
        if revision < *oldest {
            return Err(Compacted { after: revision, oldest: *oldest });
        }
        // No change is equal: the search ends before the first one that is later.
        let side =
            |change: &Change| if change.revision > revision { Ordering::Greater } else { Ordering::Less };
        let first = ring.binary_search_by(side).unwrap_or_else(|at| at);
        Ok(ring.focus().narrow(first..ring.len()).into_iter())
    }

    /// Changes after this revision are held.
    #[must_use]
    pub fn oldest_revision(&self) -> Revision {
        self.history.complete_after
    }
}
