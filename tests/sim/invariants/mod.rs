//! What must hold after every step, a file each.

pub(crate) mod acknowledged;
pub(crate) mod at_rest;
pub(crate) mod incarnations;
pub(crate) mod one_place;
pub(crate) mod tasks;
pub(crate) mod watchers;
