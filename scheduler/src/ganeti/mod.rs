//! Ganeti's world, so that fleets can be exchanged with its tools and judged by its score.
//!
//! Owns the text format of `hbal -t FILE`, Ganeti's cluster score, and a search that lowers it. A room of its own because
//! the score is made of square roots: it works in `f64`, and nothing outside of this room does. IEEE 754 defines `+ - * /`
//! and `sqrt` to the last bit, and no other float function is used here, so even this room gives the same plan everywhere.
//!
//! Sources: Ganeti 3.0, `Ganeti.HTools.Backend.Text` (format), `Ganeti.HTools.Cluster.Metrics` (score).

pub mod score;
pub mod search;
pub mod text;

pub use score::Score;
pub use search::{GanetiMove, GanetiPlan, balance};
pub use text::{Group, Instance, Node, NodeRole, TextFleet};

#[cfg(test)]
mod tests;
