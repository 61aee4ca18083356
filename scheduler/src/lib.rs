//! Where VMs go: pure functions over a snapshot of the fleet.
//!
//! Owns filters, scores and the reasons for both. Refuses to know the replicated state, clocks, randomness and I/O: the
//! caller builds a [`Snapshot`] from plain objects, asks [`place`], and proposes what it says; `apply` checks it again.
//!
//! ```text
//! Snapshot + Request -> filters (each with a reason) -> scores -> Decision { host, explain }
//! ```

pub mod decision;
pub mod filter;
pub mod ganeti;
pub mod input;
pub mod score;
pub mod snapshot;

pub use decision::{Decision, Refusal, Scored, place};
pub use filter::Reason;
pub use snapshot::{Fixed, HostRow, Move, Policy, Request, Snapshot};

#[cfg(test)]
mod tests;
