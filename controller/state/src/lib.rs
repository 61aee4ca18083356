//! The replicated state machine: every object of the fleet, and the one function that changes them.
//!
//! `apply` is pure and deterministic: no clock (time is in the [`Stamp`]), no randomness (uids are in the command), no
//! floats, no hash order. It checks and commits; it never plans. A proposal names the generations and incarnations it
//! assumed and is refused when one is stale, so many planners may propose at once and none can sell the same memory
//! twice.

pub mod command;
pub mod rejected;

pub use command::{Command, Stamp, Write};
pub use rejected::Rejected;
