//! The replicated state machine: every object of the fleet, and the one function that changes them.
//!
//! [`apply`] is pure and deterministic: no clock (time is in the [`Stamp`]), no randomness (uids are in the command), no
//! floats, no hash order. It checks and commits; it never plans. A proposal names the generations and incarnations it
//! assumed and is refused when one is stale, so many planners may propose at once and none can sell the same memory
//! twice.
//!
//! [`State`] is built of persistent maps: a clone costs nothing and is a snapshot. A command that is refused leaves no
//! trace but the cluster's time; one that changes something raises the revision by one, and every object it changed
//! carries that revision. Watchers read [`State::changes_after`].

pub mod apply;
pub mod changes;
mod cluster;
pub mod command;
mod draft;
mod host;
mod image;
pub mod invariant;
pub mod keys;
pub mod migration;
pub mod near;
pub mod owners;
mod quota;
pub mod recommendation;
pub mod rejected;
pub mod reserve;
mod restored;
pub mod rights;
mod rules;
pub mod snapshot;
pub mod state;
pub mod sweep;
pub mod task;
mod token;
mod tracked;
pub mod trust;
pub mod vm;

pub use apply::{Outcome, apply, readable};
pub use changes::{Change, Compacted};
pub use command::{Command, MigrationEvent, NewVm, Seen, Stamp, Write};
pub use rejected::Rejected;
pub use state::{Fence, State, Typed};
pub use trust::{Trust, TrustChange};

#[cfg(test)]
mod tests;
