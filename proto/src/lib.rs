//! What crosses a process boundary: the generated protocol types and their conversions to and from the model.
//!
//! Owns the `.proto` files and nothing else: no transport policy, no retries. Only this crate and the API edges
//! name a generated type; everything behind them speaks `dunlin_model`.

mod convert;
pub mod document;
mod fault;
#[cfg(test)]
mod strategy;
#[cfg(test)]
mod tests;

pub use convert::{Wire, read};
pub use fault::{CODE_KEY, Details, Fault};

/// The generated types of `dunlin/v1/*.proto`.
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("dunlin.v1");
}
