//! How a driver fails: the verb, the kind of failure, and the hypervisor's own words.

use dunlin_model::capabilities::{DriverName, NOT_SUPPORTED};
use thiserror::Error;

/// What went wrong, and what may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverErrorKind {
    /// No such guest, or its process is gone.
    NotFound,
    /// Another verb holds the guest, or a port or file is taken.
    Busy,
    /// This driver cannot do that.
    Unsupported,
    /// It may work when tried again.
    Transient,
    /// The hypervisor refused, or the guest is not in a state that allows it; trying again changes nothing.
    Refused,
    /// No answer within the verb's deadline.
    Deadline,
}

/// A verb that failed.
#[derive(Clone, Debug, Error)]
#[error("{driver} {verb}: {message}")]
pub struct DriverError {
    /// Which driver.
    pub driver: DriverName,
    /// Which verb: `start`, `migrate_out`.
    pub verb: &'static str,
    /// What may be done about it.
    pub kind: DriverErrorKind,
    /// The hypervisor's own words where there are any.
    pub message: String,
}

impl DriverError {
    /// A failure of `verb`.
    pub fn new(
        driver: DriverName,
        verb: &'static str,
        kind: DriverErrorKind,
        message: impl Into<String>,
    ) -> Self {
        Self { driver, verb, kind, message: message.into() }
    }

    /// The driver has no such power.
    #[must_use]
    pub fn unsupported(driver: DriverName, verb: &'static str) -> Self {
        Self::new(driver, verb, DriverErrorKind::Unsupported, NOT_SUPPORTED)
    }
}
