//! Where VMs go: pure functions over a snapshot of the fleet.
//!
//! Owns filters, scores and the reasons for both. Refuses to know the replicated state, clocks, randomness and I/O: the
//! caller builds a [`Snapshot`] from plain objects, asks [`place`], and proposes what it says; `apply` checks it again.
//!
//! ```text
//! Snapshot + Request -> filters (each with a reason) -> scores -> Decision { host, explain }
//!
//! decision::place   asks every host and says everything     Placer::place   the same host, whatever the fleet's size
//! spare             the same, with room kept for hosts that fail
//! group             a batch, or a gang: all or none         make_room       moves that let a VM in
//! simulate          replays arrivals with the same code   replay            a day of measured load
//!
//! balance           takes pain out, in waves              consolidate       empties hosts to switch off
//! evacuate          empties hosts, with a proof           admit             can any k hosts fail?
//! distrust, history what not to believe, not to repeat    ganeti            its format, its score, a search for it
//! ```

pub mod admit;
pub mod balance;
pub mod budget;
pub mod consolidate;
pub mod decision;
pub mod dice;
pub mod distrust;
pub mod evacuate;
pub mod explain;
pub mod filter;
pub mod ganeti;
pub mod group;
pub mod history;
pub mod input;
pub mod make_room;
pub mod place;
pub mod policy;
pub mod replay;
pub mod request;
pub mod score;
pub mod simulate;
pub mod snapshot;
pub mod spare;
pub mod waves;
pub mod worth;

pub use decision::{Decision, Refusal, Scored, place, why_not};
pub use explain::{No, Remedy, remedies};
pub use filter::Reason;
pub use place::{Pick, Placer};
pub use policy::{Policy, Term};
pub use request::{Pin, Request};
pub use snapshot::{HostIdx, Seat, Snapshot, VmIdx};
pub use spare::{place_with_spare, why_not_spare};

#[cfg(test)]
mod place_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod tests;
