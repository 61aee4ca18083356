//! Which command of a user led to what: correlation ids by the object they were about, so that a host's log can be searched
//! for what the CLI showed.
//!
//! In the leader's memory only, like all that helps people to look and decides nothing: a new leader knows the threads of what
//! it was asked itself. The fleet's own doings (a balancer's move, a restart) have none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use dunlin_model::desired::{Assignment, DesiredSet, Role};
use dunlin_model::migration::MigrationCause;
use dunlin_model::{MigrationId, VmId};
use dunlin_state::{State, Write};
use uuid::Uuid;

/// Objects remembered, the newest: as many writes as a busy fleet has in some minutes, 100 bytes each.
const KNOWN_MAX: usize = 16_384;

/// The threads this controller knows.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ids: BTreeMap<Uuid, String>,
    /// The oldest first; a uid may stand here more than once, and goes with its first.
    order: VecDeque<Uuid>,
}

impl Threads {
    /// A write is about to be made on behalf of that command.
    pub(crate) fn note(&self, write: &Write, correlation: &str) {
        if correlation.is_empty() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for uid in about(write) {
            known.ids.insert(uid, correlation.to_owned());
            known.order.push_back(uid);
            if known.order.len() > KNOWN_MAX
                && let Some(oldest) = known.order.pop_front()
            {
                known.ids.remove(&oldest);
            }
        }
    }

    /// The threads of what a host is told to do: by VM, and by task.
    pub(crate) fn of(&self, state: &State, set: &DesiredSet) -> BTreeMap<Uuid, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.ids.is_empty() {
            return BTreeMap::new();
        }
        let vms = set.assignments.iter().filter_map(|assignment| {
            let id = moved_by(state, assignment).and_then(|by| known.ids.get(&by));
            Some((assignment.vm.0, id.or_else(|| known.ids.get(&assignment.vm.0))?.clone()))
        });
        let tasks = set.acts.iter().filter_map(|act| Some((act.task.0, known.ids.get(&act.task.0)?.clone())));
        vms.chain(tasks).collect()
    }
}

/// What had the VM moved: a migration that somebody asked for, or the host that is drained.
fn moved_by(state: &State, assignment: &Assignment) -> Option<Uuid> {
    let (Role::Receive { migration: MigrationId(uid), .. } | Role::Send { migration: MigrationId(uid), .. }) =
        assignment.role
    else {
        return None;
    };
    let migration = state.migration(MigrationId(uid))?;
    match migration.spec.cause {
        MigrationCause::User => Some(uid),
        MigrationCause::Drain => migration.status.from.map(|host| host.0),
        MigrationCause::Balance => None,
    }
}

/// The objects that a host may have to do something for because of it.
fn about(write: &Write) -> Vec<Uuid> {
    let vm = |VmId(uid): &VmId| vec![*uid];
    match write.inner() {
        Write::CreateVm { uid, .. }
        | Write::UpdateVm { uid, .. }
        | Write::SetPower { uid, .. }
        | Write::DeleteVm { uid } => vm(uid),
        Write::CreateVms { vms } => vms.iter().map(|new| new.uid.0).collect(),
        Write::CreateMigration { uid, .. } | Write::CancelMigration { uid } => vec![uid.0],
        Write::CreateTask { uid, spec, .. } => vec![uid.0, spec.uid],
        Write::CancelTask { uid } => vec![uid.0],
        _ => Vec::new(),
    }
}
