//! What the leader does about what it sees: pure steps over the replicated state and the hosts' reports.
//!
//! Owns every decision the fleet takes by itself: where a VM goes, what a host is told, when a migration takes its next
//! step. Refuses to know clocks, sockets and the log: the loop around it passes the time in, proposes the commands, and
//! sends the desired sets. A command that is refused (somebody was faster) is forgotten; the next step sees why.
//!
//! The contract with the agents is docs/protocol.md.

mod balance;
#[cfg(test)]
mod balance_tests;
pub mod desired;
mod drain;
mod host;
pub(crate) mod levelling;
mod load;
mod migration;
pub(crate) mod mirror;
pub mod observed;
mod placement;
pub(crate) mod record;
mod task;
mod vm;

pub use balance::balance;
pub(crate) use balance::migration as level_by;
pub use desired::{desired_set, is_news};
pub(crate) use load::{Loads, Measured};
pub(crate) use observed::Sight;
pub use observed::{HostView, Observed, Report};

use dunlin_model::Timestamp;
use dunlin_state::{Command, State};

/// Everything to propose now. Nothing, when the fleet is as it should be and has been heard.
#[must_use]
pub fn step(state: &State, observed: &Observed, now: Timestamp) -> Vec<Command> {
    let mut commands = Vec::new();
    host::step(state, observed, now, &mut commands);
    vm::step(state, observed, &mut commands);
    migration::step(state, observed, now, &mut commands);
    task::step(state, observed, now, &mut commands);
    placement::step(state, observed, now, &mut commands);
    if state.needs_sweep(now) {
        commands.push(Command::Sweep);
    }
    commands
}

#[cfg(test)]
mod sim;
