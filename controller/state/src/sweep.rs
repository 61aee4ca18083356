//! What is over is kept for a while, and then dropped, oldest first.

use dunlin_model::{Kind, Timestamp};
use uuid::Uuid;

use crate::draft::Draft;
use crate::{State, rights, token, trust};

/// Ended migrations kept for people to look at.
pub const ENDED_MIGRATIONS_MAX: usize = 1_000;
/// Ended tasks kept for people to look at.
pub const ENDED_TASKS_MAX: usize = 1_000;
/// Ended recommendations kept: dismissed ones are remembered by them.
pub const ENDED_RECOMMENDATIONS_MAX: usize = 1_000;
/// So many more may gather before a sweep is worth a write.
pub const SWEEP_SLACK: usize = 100;

type Ended = Vec<(Timestamp, Uuid)>;

fn ended_migrations(state: &State) -> Ended {
    let over = state.migrations().filter(|m| m.status.phase.is_terminal());
    let mut over: Ended = over
        .map(|m| (m.status.history.last().map_or(m.metadata.created, |(_, at)| *at), m.metadata.uid.0))
        .collect();
    over.sort_unstable();
    over
}

fn ended_tasks(state: &State) -> Ended {
    let over = state.tasks().filter(|task| task.status.phase.is_terminal());
    let mut over: Ended =
        over.map(|task| (task.status.ended.unwrap_or_default(), task.metadata.uid.0)).collect();
    over.sort_unstable();
    over
}

fn ended_recommendations(state: &State) -> Ended {
    let over = state.recommendations().filter(|found| found.status.phase.is_terminal());
    let mut over: Ended = over.map(|found| (found.status.since, found.metadata.uid.0)).collect();
    over.sort_unstable();
    over
}

impl State {
    /// Is there enough to drop to make a Sweep worth while?
    #[must_use]
    pub fn needs_sweep(&self, now: Timestamp) -> bool {
        self.answers.stale(now)
            || self.tokens.iter().any(|(_, token)| token.expires <= now.min(self.time))
            || self.has_outlived_holders(now.min(self.time))
            || rights::expired(self, now.min(self.time)).next().is_some()
            || self.count(Kind::Migration) > ENDED_MIGRATIONS_MAX + SWEEP_SLACK
                && ended_migrations(self).len() > ENDED_MIGRATIONS_MAX + SWEEP_SLACK
            || self.count(Kind::Task) > ENDED_TASKS_MAX + SWEEP_SLACK
                && ended_tasks(self).len() > ENDED_TASKS_MAX + SWEEP_SLACK
            || self.count(Kind::Recommendation) > ENDED_RECOMMENDATIONS_MAX + SWEEP_SLACK
                && ended_recommendations(self).len() > ENDED_RECOMMENDATIONS_MAX + SWEEP_SLACK
    }

    fn count(&self, kind: Kind) -> usize {
        self.objects_of(kind).count()
    }
}

pub(crate) fn sweep(draft: &mut Draft) {
    let now = draft.now();
    draft.state.answers.drop_stale(now);
    token::drop_expired(draft);
    trust::forget_outlived(draft);
    rights::drop_expired(draft);
    for (kind, ended, keep) in [
        (Kind::Migration, ended_migrations(draft.state), ENDED_MIGRATIONS_MAX),
        (Kind::Task, ended_tasks(draft.state), ENDED_TASKS_MAX),
        (Kind::Recommendation, ended_recommendations(draft.state), ENDED_RECOMMENDATIONS_MAX),
    ] {
        let surplus = ended.len().saturating_sub(keep);
        for (_, uid) in ended.into_iter().take(surplus) {
            draft.remove(kind, uid);
        }
    }
}
