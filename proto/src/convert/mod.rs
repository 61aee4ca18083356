//! Generated type <-> model type, field by field.
//!
//! Outwards never fails. Inwards refuses a missing message, an enum number without a name, a malformed id or name, and
//! whatever the model's own `validate` refuses; the refusal names the field by its path, as in `spec.disks[0].bus`.
//! One trait, [`Wire`], carries all of it; `From` and `TryFrom` are there for every message and enum on top of it.
//! A field that is absent takes the model's default where there is one.

#[macro_use]
mod rules;
mod advice;
mod cluster;
mod decision;
mod device;
mod host;
mod identity;
mod migration;
mod object;
mod rights;
mod scalar;
mod session;
mod task;
mod vm;

use dunlin_model::Invalid;

/// A model type that crosses the wire as a `W`. The refusal's path is relative to the value itself.
pub trait Wire<W>: Sized {
    /// The value as it is sent.
    fn to_wire(self) -> W;

    /// Refuses what the model cannot hold.
    fn from_wire(wire: W) -> Result<Self, Invalid>;
}

/// Reads the field called `name`; a refusal says so.
pub fn read<M: Wire<W>, W>(wire: W, name: &str) -> Result<M, Invalid> {
    M::from_wire(wire).map_err(|e| e.under(name))
}

/// A refusal of the value itself; whoever holds it puts its name in front.
fn refuse(problem: impl Into<String>, allowed: impl Into<String>) -> Invalid {
    Invalid::new("", problem, allowed)
}

fn missing() -> Invalid {
    refuse("is missing", "a message")
}
