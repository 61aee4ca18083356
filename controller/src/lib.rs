//! The replicated control plane of Dunlin.

pub mod raft;
pub mod reconcile;
