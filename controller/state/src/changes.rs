//! What changed, in order, for as long as the bound allows. Kept by every replica for itself: a snapshot does not carry
//! it, and `apply` never reads it.

use std::sync::Arc;

use dunlin_model::{Object, Revision};
use imbl::OrdMap;
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
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    ring: OrdMap<(Revision, u32), Change>,
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
        Self { ring: OrdMap::new(), complete_after: revision }
    }

    pub(crate) fn push(&mut self, ordinal: u32, change: Change) {
        self.ring.insert((change.revision, ordinal), change);
        while self.ring.len() > CHANGES_MAX {
            let Some((key, _)) = self.ring.get_min().cloned() else { return };
            self.complete_after = self.complete_after.max(key.0);
            self.ring.remove(&key);
        }
    }
}

impl State {
    /// Every change after `revision`, oldest first.
    pub fn changes_after(&self, revision: Revision) -> Result<impl Iterator<Item = &Change>, Compacted> {
        let oldest = self.history.complete_after;
        if revision < oldest {
            return Err(Compacted { after: revision, oldest });
        }
        Ok(self.history.ring.range((revision.next(), 0)..).map(|(_, change)| change))
    }

    /// Changes after this revision are held.
    #[must_use]
    pub fn oldest_revision(&self) -> Revision {
        self.history.complete_after
    }
}
