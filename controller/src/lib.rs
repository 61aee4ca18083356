//! The replicated control plane of Dunlin: one controller of a cluster.
//!
//! [`run`] is the way in. The rooms, from the wire inwards:
//!
//! ```text
//!  clients -> api ----+                      +---- session <- agents
//!                     v                      v
//!             node: replica, blobs, seats, what hosts report
//!                     ^                      ^
//!   raft (log, state) +---- drive (leader) --+---- reconcile (pure)
//! ```
//! Both come in by `front`, the one port, through the gate of `trust`, which knows who asks.
//!
//! Invariants. Only `raft` names the consensus and storage crates. Only `api` and `session` name generated protocol
//! types. Only `clock` reads the wall clock, and only `mint` draws randomness. Leader-only work is fenced by the term.

mod advise;
mod api;
mod audit;
pub mod backup;
mod balancer;
mod blob;
mod clock;
mod config;
mod doctor;
mod drive;
mod fleet;
mod found;
mod front;
mod kin;
mod members;
mod metrics;
mod mint;
mod node;
pub mod raft;
pub mod reconcile;
mod rights;
mod room;
mod run;
mod sealed;
mod session;
mod threads;
mod trust;
mod upgrade;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{CONTROLLERS_MAX, Config, Peer};
pub use kin::Stranger;
pub use raft::{SnapshotPolicy, Timers};
pub use rights::ProviderConfig;
pub use run::{Controller, RunError, run};
pub use trust::{Bundle, KeysError, bundle};
pub use upgrade::TooOld;
