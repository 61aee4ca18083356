//! The replicated core: a log that a quorum of controllers agrees on, and a state machine driven by it.
//!
//! Owns consensus, the store in the data directory, snapshots, and the transport between controllers. Refuses to know
//! what a command means: everything is generic over a [`Machine`]. Only this module names the consensus and storage
//! crates, and none of their types leave it.
//!
//! ```text
//!  propose ──> proposer ──pack──> core ──append──> log store ──> writer thread ──> sled, fdatasync
//!                 ^                │  ^                                                │
//!                 │                │  └───────────────── flushed ──────────────────────┘
//!                 │                ├──AppendEntries──> transport ──> other controllers
//!                 │                └──committed──> applier: Machine::apply ──> View (watch channel) ──> readers
//!                 └───outcomes────────────────────────┘      └──> snapshot file
//! ```

mod client;
mod config;
mod elector;
mod engine;
mod error;
mod hearing;
mod identity;
mod log_check;
mod log_store;
mod machine;
mod membership;
mod proposer;
mod reads;
mod record;
mod replica;
mod restore;
mod sentinel;
mod server;
mod sled_engine;
mod snapshot;
mod state_machine;
mod threads;
mod types;
mod watchman;
mod wire;
mod witness;
mod writer;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod demo_tests;
#[cfg(test)]
mod store_tests;

pub use config::{Config, Member, SnapshotPolicy, Timers};
pub use error::{Leader, MembershipError, OpenError, ProposeError, ReadError, StopReason, StoreError};
pub use machine::{Machine, Stamp, View};
pub use replica::{Leadership, Metrics, Replica};
pub use restore::restore;
pub use wire::Wire;
