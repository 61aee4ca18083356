//! Recommendations: written by the balancer, decided by somebody, never both open and out of date.

use dunlin_model::event::EventLevel;
use dunlin_model::migration::{MigrationCause, MigrationLimits, MigrationSpec};
use dunlin_model::recommendation::{
    Recommendation, RecommendationPhase, RecommendationSpec, RecommendationStatus,
};
use dunlin_model::{ErrorCode, Kind, Labels, MigrationId, Name, RecommendationId};
use thiserror::Error;

use crate::draft::Draft;
use crate::{Rejected, State, migration};

/// Open recommendations at most: more than anybody reads.
pub const OPEN_MAX: usize = 200;

/// A step the table does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a recommendation that is {from} cannot become {to}")]
pub struct Illegal {
    /// Where it stands.
    pub from: RecommendationPhase,
    /// Where it was to go.
    pub to: RecommendationPhase,
}

/// The table.
pub const fn next(
    from: RecommendationPhase,
    to: RecommendationPhase,
) -> Result<RecommendationPhase, Illegal> {
    use RecommendationPhase as P;
    match (from, to) {
        (P::Open, P::Approved | P::Dismissed | P::Expired) => Ok(to),
        _ => Err(Illegal { from, to }),
    }
}

impl State {
    /// Recommendations that wait for somebody.
    pub fn open_recommendations(&self) -> impl Iterator<Item = &Recommendation> {
        self.recommendations().filter(|found| found.status.phase == RecommendationPhase::Open)
    }
}

/// Written by the balancer. Refused when the VM is no longer where it was thought to be, or there is one for it already.
pub(crate) fn recommend(
    draft: &mut Draft,
    uid: RecommendationId,
    name: &Name,
    spec: &RecommendationSpec,
) -> Result<(), Rejected> {
    check_current(draft.state, spec)?;
    let open = draft.state.open_recommendations();
    let (mut count, mut same) = (0, None);
    for found in open {
        count += 1;
        same = same.or((found.spec.vm == spec.vm).then(|| found.metadata.name.clone()));
    }
    if let Some(same) = same {
        let message = format!("{same} recommends a move of VM {} already", spec.vm_name);
        return Err(Rejected::new(ErrorCode::AlreadyExists, message));
    }
    if count >= OPEN_MAX {
        let message = format!("{OPEN_MAX} recommendations are open");
        return Err(Rejected::new(ErrorCode::NoCapacity, message));
    }
    let metadata = draft.card::<Recommendation, _>(uid, uid.0, name, &Labels::new())?;
    let status = RecommendationStatus { since: draft.now(), ..RecommendationStatus::default() };
    let made = Recommendation { metadata, spec: spec.clone(), status };
    let message =
        format!("VM {} from {} to {}: {}", spec.vm_name, spec.from_name, spec.to_name, spec.grounds.reason);
    draft.event(EventLevel::Normal, "MoveRecommended", &made, message);
    draft.put(made);
    Ok(())
}

/// Is the VM where the recommendation takes it from, and could it leave?
fn check_current(state: &State, spec: &RecommendationSpec) -> Result<(), Rejected> {
    let vm = state
        .vm(spec.vm)
        .ok_or_else(|| Rejected::new(ErrorCode::NotFound, format!("VM {} is gone", spec.vm_name)))?;
    let from = state.check_movable(vm)?;
    if from.metadata.uid != spec.from || state.host(spec.to).is_none() {
        let message = format!("VM {} is on host {} now", spec.vm_name, from.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    Ok(())
}

/// Somebody's word: it becomes a migration, or is dismissed.
pub(crate) fn decide(
    draft: &mut Draft,
    uid: RecommendationId,
    approve: bool,
    migration: MigrationId,
    name: &Name,
) -> Result<(), Rejected> {
    let found = draft.take::<Recommendation>(uid)?;
    if !approve {
        return end(draft, uid, RecommendationPhase::Dismissed, "dismissed");
    }
    next(found.status.phase, RecommendationPhase::Approved).map_err(|illegal| wrong(&found, &illegal))?;
    check_current(draft.state, &found.spec)?;
    let spec = MigrationSpec {
        vm: found.spec.vm,
        vm_name: found.spec.vm_name.clone(),
        to: Some(found.spec.to_name.clone()),
        cause: MigrationCause::Balance,
        limits: MigrationLimits::default(),
        grounds: Some(found.spec.grounds.clone()),
    };
    migration::create(draft, migration, name, &spec)?;
    let mut found = found;
    found.status.migration = Some(migration);
    draft.put(found);
    end(draft, uid, RecommendationPhase::Approved, &format!("approved: migration {name}"))
}

fn wrong(found: &Recommendation, illegal: &Illegal) -> Rejected {
    let message = format!("recommendation {}: {illegal}", found.metadata.name);
    Rejected::new(ErrorCode::WrongState, message)
}

/// Ends one that is open.
pub(crate) fn end(
    draft: &mut Draft,
    uid: RecommendationId,
    phase: RecommendationPhase,
    message: &str,
) -> Result<(), Rejected> {
    let mut found = draft.take::<Recommendation>(uid)?;
    found.status.phase = next(found.status.phase, phase).map_err(|illegal| wrong(&found, &illegal))?;
    found.status.since = draft.now();
    message.clone_into(&mut found.status.message);
    draft.put(found);
    draft.answer(Kind::Recommendation, uid.0);
    Ok(())
}
