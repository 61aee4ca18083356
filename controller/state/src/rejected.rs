//! Why `apply` refused a command. Part of the log's outcome, so every replica refuses alike.

use dunlin_model::{ErrorCode, Invalid, Object};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A refusal: its public code, a sentence, and for a stale revision the object as it is.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Rejected {
    /// From the public table.
    pub code: ErrorCode,
    /// What was refused and why.
    pub message: String,
    /// The object as it is, when the caller's was stale.
    pub current: Option<Box<Object>>,
}

impl Rejected {
    /// A refusal without an object.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), current: None }
    }
}

impl From<Invalid> for Rejected {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorCode::InvalidArgument, invalid.to_string())
    }
}
