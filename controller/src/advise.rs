//! The scheduler, asked: explanations and plans over what the leader knows at this moment. Pure, and commits nothing.
//!
//! Owns the words and numbers of the answers. Refuses to decide: what is explained is what the reconcilers would do,
//! found by the same functions over the same mirror of the fleet.

mod capacity;
mod explain;
mod facts;
mod plans;

pub(crate) use capacity::capacity;
pub(crate) use explain::{explain_host, explain_migration, explain_vm};
pub(crate) use plans::{Aim, balance_plan, drain_plan};

use dunlin_model::Timestamp;
use dunlin_state::State;

use crate::reconcile::Observed;

/// What an answer is about: the fleet at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) state: &'a State,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
}

impl Scene<'_> {
    /// The fleet as the scheduler sees it.
    pub(crate) fn mirror(&self) -> dunlin_scheduler::Snapshot {
        crate::reconcile::mirror::of(self.state, self.observed, self.now)
    }
}
