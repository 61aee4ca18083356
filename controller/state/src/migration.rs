//! Live migrations: the one table of phases, and what each step does to the VM, the hosts and the incarnations.

mod steps;
mod write;

pub(crate) use steps::{note_effect, step};
pub(crate) use write::{call_off, call_off_drain, cancel, create, host_removed};

use dunlin_model::migration::{Migration, MigrationPhase};
use thiserror::Error;

use crate::command::MigrationEvent;

/// A step the table does not know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a migration that is {phase} cannot take the step {event}")]
pub struct Illegal {
    /// Where it stands.
    pub phase: MigrationPhase,
    /// What was to happen.
    pub event: &'static str,
}

/// The table.
pub const fn next(phase: MigrationPhase, event: &MigrationEvent) -> Result<MigrationPhase, Illegal> {
    use MigrationEvent as E;
    use MigrationPhase as P;
    match (phase, event) {
        (P::Planned, E::Wait { .. }) => Ok(P::Planned),
        (P::Planned, E::Reserve { .. }) => Ok(P::Reserved),
        (P::Reserved, E::Ready { .. }) => Ok(P::Prepared),
        (P::Prepared, E::Started) => Ok(P::Copying),
        (P::Copying, E::HandOver { .. }) => Ok(P::Switching),
        (P::Switching, E::HandBack { .. }) => Ok(P::Aborting),
        (P::Switching, E::Arrived { .. }) => Ok(P::Done),
        (P::Planned | P::Reserved | P::Prepared | P::Copying, E::Abort { .. }) => Ok(P::Aborting),
        (P::Aborting, E::Cleaned { .. }) => Ok(P::Aborted),
        _ => Err(Illegal { phase, event: name(event) }),
    }
}

/// One word for an event.
#[must_use]
pub const fn name(event: &MigrationEvent) -> &'static str {
    match event {
        MigrationEvent::Reserve { .. } => "reserve",
        MigrationEvent::Wait { .. } => "wait",
        MigrationEvent::Ready { .. } => "ready",
        MigrationEvent::Started => "started",
        MigrationEvent::HandOver { .. } => "hand-over",
        MigrationEvent::HandBack { .. } => "hand-back",
        MigrationEvent::Arrived { .. } => "arrived",
        MigrationEvent::Abort { .. } => "abort",
        MigrationEvent::Cleaned { .. } => "cleaned",
    }
}

/// Was the hand-over committed at some time?
#[must_use]
pub fn handed_over(migration: &Migration) -> bool {
    migration.status.history.iter().any(|(phase, _)| *phase == MigrationPhase::Switching)
}

/// Is it in a phase in which only the source may run the guest?
#[must_use]
pub fn before_hand_over(migration: &Migration) -> bool {
    matches!(
        migration.status.phase,
        MigrationPhase::Planned
            | MigrationPhase::Reserved
            | MigrationPhase::Prepared
            | MigrationPhase::Copying
    )
}
