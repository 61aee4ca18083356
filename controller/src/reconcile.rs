//! What the leader does about what it sees: pure steps over the replicated state and the hosts' reports.
//!
//! Owns every decision the fleet takes by itself: where a VM goes, what a host is told, when a migration takes its next
//! step. Refuses to know clocks, sockets and the log: the loop around it passes the time in, proposes the commands, and
//! sends the desired sets. A command that is refused (somebody was faster) is forgotten; the next step sees why.
//!
//! The contract with the agents is docs/protocol.md.

pub mod desired;
pub mod observed;

pub use desired::desired_set;
pub use observed::{HostView, Observed, Report};

use dunlin_model::Timestamp;
use dunlin_state::{Command, State};

/// Everything to propose now. Nothing, when the fleet is as it should be and has been heard.
#[must_use]
pub fn step(_state: &State, _observed: &Observed, _now: Timestamp) -> Vec<Command> {
    Vec::new()
}
