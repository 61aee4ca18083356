//! What a host is told: a function of the state and of what it reports, never stored.

use dunlin_model::HostId;
use dunlin_model::desired::DesiredSet;
use dunlin_state::State;

use super::Observed;

/// The whole desired set of a host. None while it cannot be seen: a host is told nothing before it has said everything.
#[must_use]
pub fn desired_set(_state: &State, _observed: &Observed, _host: HostId) -> Option<DesiredSet> {
    None
}
