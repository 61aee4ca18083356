//! How a command ends badly, and with which exit status.

use dunlin_model::{ErrorCode, Invalid};
use dunlin_proto::Fault;
use thiserror::Error;

/// Exit status of a failure that has no code of its own.
pub(crate) const EXIT_OTHER: u8 = 1;
/// Exit status when `--wait` ended otherwise than hoped for.
pub(crate) const EXIT_WAIT: u8 = 12;

/// Exit status of `diff` when something would change.
pub(crate) const EXIT_DIFFERS: u8 = 13;

/// Exit status of `doctor` when something is wrong.
pub(crate) const EXIT_SICK: u8 = 17;

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The fleet refused, or could not be reached.
    #[error("{0}")]
    Fleet(#[from] Fault),
    /// What was typed or read is not right.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error("{0}")]
    Context(#[from] crate::context::ContextError),
    /// `--wait` saw it end otherwise.
    #[error("{0}")]
    Wait(String),
    /// `diff` saw that `apply` would change something.
    #[error("{0}")]
    Differs(String),
    /// `doctor` found something.
    #[error("{0}")]
    Sick(String),
    /// Reading or writing something on this machine.
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// A daemon, or a whole local fleet, could not be run.
    #[error("{0}")]
    Local(String),
}

impl Failure {
    /// For `map_err`: what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The exit status; the table is in docs/errors.md.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::Fleet(fault) => fault.code.exit(),
            Self::Invalid(_) => ErrorCode::InvalidArgument.exit(),
            Self::Context(_) => ErrorCode::InvalidArgument.exit(),
            Self::Wait(_) => EXIT_WAIT,
            Self::Differs(_) => EXIT_DIFFERS,
            Self::Sick(_) => EXIT_SICK,
            Self::Io { .. } | Self::Local(_) => EXIT_OTHER,
        }
    }

    /// The public code, where there is one.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Fleet(fault) => Some(fault.code),
            Self::Invalid(_) => Some(ErrorCode::InvalidArgument),
            _ => None,
        }
    }
}

/// An error and its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
