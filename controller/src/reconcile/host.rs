//! Hosts whose session nobody holds any more are Down.

use dunlin_model::Timestamp;
use dunlin_model::host::HostPhase;
use dunlin_state::{Command, State};

use super::Observed;

/// How long an agent has to come back before its host counts as Down, ms: longer than an agent's restart and than the
/// search for a new leader, so that neither shows as an outage.
pub(super) const SESSION_GRACE_MS: u64 = 8_000;

pub(super) fn step(state: &State, observed: &Observed, now: Timestamp, commands: &mut Vec<Command>) {
    for host in state.hosts().filter(|host| host.status.phase == HostPhase::Up) {
        let (uid, session) = (host.metadata.uid, host.status.session);
        let held = observed.host(uid).is_some_and(|view| view.session >= session);
        let away_ms = now.millis_since(observed.lost_at(uid));
        if !held && away_ms > SESSION_GRACE_MS {
            let message = format!("its agent has held no session for {} s", away_ms / 1_000);
            commands.push(Command::CloseSession { host: uid, session, message });
        }
    }
}
