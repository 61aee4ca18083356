//! Watchers see every revision, in order and once, whichever controller they watch and however often they change over. One
//! that asks for what is no longer held is told so, and lists again.

use dunlin_model::{Object, Revision};
use dunlin_state::{Change, State};

use crate::World;

/// A controller is asked by a watcher this often, percent of the rounds.
const POLL_PERCENT: u64 = 60;

/// One that watches.
#[derive(Debug)]
pub(crate) struct Watcher {
    at: usize,
    after: Revision,
    /// Times it had to list again.
    pub(crate) lists: u32,
}

impl Watcher {
    pub(crate) fn new() -> Self {
        Self { at: 0, after: Revision(0), lists: 0 }
    }
}

type Told = (Revision, String, bool);

fn told<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<Told> {
    let line = |change: &Change| {
        let object: &Object = &change.object;
        (change.revision, format!("{} {}", object.kind(), object.name()), change.deleted)
    };
    changes.map(line).collect()
}

/// What changed in the whole log after one revision and up to another.
fn truth(whole: &State, after: Revision, to: Revision) -> Vec<Told> {
    let changes = whole.changes_after(after).expect("the whole log forgets nothing in so short a run");
    told(changes.take_while(|change| change.revision <= to))
}

impl World {
    pub(crate) fn check_watchers(&mut self) {
        for index in 0..self.watchers.len() {
            if !self.rng.chance(POLL_PERCENT) {
                continue;
            }
            let at = self.watchers[index].at;
            if !self.controllers[at].up || self.rng.chance(3) {
                self.watchers[index].at = self.rng.index(self.controllers.len());
                continue;
            }
            let (state, after) = (&self.controllers[at].state, self.watchers[index].after);
            match state.changes_after(after) {
                Ok(changes) => {
                    let seen = told(changes);
                    let Some((last, ..)) = seen.last().cloned() else { continue };
                    let truth = truth(&self.whole_log, after, last);
                    if seen != truth {
                        self.fail(&format!(
                            "after {after} controller {at} told {seen:?} instead of {truth:?}"
                        ));
                    }
                    self.watchers[index].after = last;
                }
                // It has come back from a snapshot, which holds no changes.
                Err(compacted) if compacted.oldest > after => {
                    self.watchers[index].after = compacted.oldest;
                    self.watchers[index].lists += 1;
                }
                Err(compacted) => self.fail(&format!("after {after}: {compacted}")),
            }
        }
    }
}
