//! Tasks end, and what has ended stays as it ended; migrations too.

use std::collections::BTreeMap;

use dunlin_model::migration::MigrationPhase;
use dunlin_model::task::TaskPhase;
use dunlin_model::{MigrationId, TaskId};

use crate::World;

/// A task that still goes on after so long never ends, ms: twice the longest bound of a step, and what drains wait for.
const TASK_MAX_MS: u64 = 900_000;

/// How they ended, and when those that have not were first seen.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    tasks: BTreeMap<TaskId, TaskPhase>,
    migrations: BTreeMap<MigrationId, MigrationPhase>,
    since: BTreeMap<TaskId, u64>,
}

impl World {
    pub(crate) fn check_tasks(&mut self) {
        let mut broken = None;
        let now = self.now();
        for task in self.whole_log.tasks() {
            let (uid, phase) = (task.metadata.uid, task.status.phase);
            if phase.is_terminal() {
                let ended = *self.tasks.tasks.entry(uid).or_insert(phase);
                if ended != phase {
                    broken = Some(format!("task {} ended {ended} and is {phase}", task.metadata.name));
                }
            } else if self.tasks.tasks.contains_key(&uid) {
                broken = Some(format!("task {} had ended and is {phase}", task.metadata.name));
            } else if now - *self.tasks.since.entry(uid).or_insert(now) > TASK_MAX_MS {
                broken = Some(format!("task {} does not end", task.metadata.name));
            }
        }
        for migration in self.whole_log.migrations() {
            let (uid, phase) = (migration.metadata.uid, migration.status.phase);
            let ended = self.tasks.migrations.get(&uid);
            if ended.is_some_and(|ended| *ended != phase) {
                broken =
                    Some(format!("migration {} ended {ended:?} and is {phase}", migration.metadata.name));
            }
            if phase.is_terminal() {
                self.tasks.migrations.insert(uid, phase);
            }
        }
        if let Some(why) = broken {
            self.fail(&why);
        }
    }
}
