//! A refused or failed call: one code of the public table, a sentence, and for a stale revision the current object.
//!
//! API, CLI and agent all hold their errors as this one type; only here it becomes, or is read from, a gRPC status.

use dunlin_model::{ErrorCode, Invalid, Object};
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::v1;

/// Metadata key of the public code.
pub const CODE_KEY: &str = "dunlin-code";
/// Metadata key of the current object, a [`v1::Object`].
const CURRENT_KEY: &str = "dunlin-current-bin";
/// Metadata key that tells gRPC clients when to try again (gRPC A6, "Pushback").
const PUSHBACK_KEY: &str = "grpc-retry-pushback-ms";
/// After so long the calls that were in the way are over.
const PUSHBACK_MS: &str = "1000";
/// Longest message sent, bytes. hyper takes 16 KiB of headers, and each byte of it may become three (`%C3`).
const MESSAGE_BYTES_MAX: usize = 2 << 10;
/// Largest current object sent, bytes: base64 makes four of three. A larger one is left out; the client reads it anew.
const CURRENT_BYTES_MAX: usize = 6 << 10;

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Which line of the public table.
    pub code: ErrorCode,
    /// A sentence for people.
    pub message: String,
    /// With [`ErrorCode::StaleRevision`]: the object as it is now, without its secrets.
    pub current: Option<Box<Object>>,
}

impl Fault {
    /// A failure of that kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), current: None }
    }

    /// The same, with the object as it is now. Its secrets are taken out: a fault leaves the house.
    #[must_use]
    pub fn with_current(mut self, mut current: Object) -> Self {
        current.redact();
        self.current = Some(Box::new(current));
        self
    }

    /// What the message says of a field or of names, taken out for programs. Messages of [`Invalid`] and of a name that
    /// nothing carries have a fixed form, whatever way they came.
    #[must_use]
    pub fn details(&self) -> Details {
        let mut details = Details::default();
        match self.code {
            ErrorCode::InvalidArgument => {
                if let Some((rest, allowed)) = self.message.rsplit_once("; allowed: ")
                    && let Some((field, _)) = rest.split_once(": ")
                {
                    details.field = Some(field.to_owned());
                    details.allowed = Some(allowed.to_owned());
                }
            }
            ErrorCode::NotFound => {
                if let Some((_, names)) = self.message.split_once("; did you mean ") {
                    details.near = names.trim_end_matches('?').split(", ").map(str::to_owned).collect();
                }
            }
            _ => {}
        }
        details
    }

    /// Reads what a server, or the transport under it, said.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let sent = status.metadata().get(CODE_KEY).and_then(|value| value.to_str().ok());
        let code = sent.and_then(|text| text.parse().ok()).unwrap_or_else(|| code_of(status));
        let current = status.metadata().get_bin(CURRENT_KEY).and_then(|value| {
            let bytes = value.to_bytes().ok()?;
            let object = v1::Object::decode(bytes).ok()?;
            Object::try_from(object).ok().map(Box::new)
        });
        Self { code, message: status.message().to_owned(), current }
    }
}

/// What a message says, for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The field that is wrong, by its path.
    pub field: Option<String>,
    /// What would have been accepted.
    pub allowed: Option<String>,
    /// Names that are nearly the one asked for.
    pub near: Vec<String>,
}

/// The code of a status that no part of Dunlin made.
fn code_of(status: &Status) -> ErrorCode {
    match status.code() {
        Code::Unavailable | Code::Cancelled => ErrorCode::Unavailable,
        // tonic's own word for a message beyond the bound.
        Code::OutOfRange => ErrorCode::TooLarge,
        Code::DeadlineExceeded => ErrorCode::Deadline,
        // Only a status made on this side has a source: the connection broke, nobody answered.
        Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => {
            ErrorCode::Unavailable
        }
        _ => ErrorCode::Internal,
    }
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorCode::InvalidArgument, invalid.to_string())
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

/// The connection could not be made. The whole chain is told, since the outer error says only "transport error".
impl From<tonic::transport::Error> for Fault {
    fn from(error: tonic::transport::Error) -> Self {
        let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        let mut texts: Vec<_> = chain.map(ToString::to_string).collect();
        texts.dedup();
        Self::new(ErrorCode::Unavailable, texts.join(": "))
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let Fault { code, message, current } = fault;
        let mut metadata = MetadataMap::new();
        metadata.insert(CODE_KEY, MetadataValue::from_static(code.as_str()));
        if matches!(code, ErrorCode::Overloaded | ErrorCode::TooMany) {
            metadata.insert(PUSHBACK_KEY, MetadataValue::from_static(PUSHBACK_MS));
        }
        if let Some(current) = current {
            let bytes = v1::Object::from(*current).encode_to_vec();
            if bytes.len() <= CURRENT_BYTES_MAX {
                metadata.insert_bin(CURRENT_KEY, MetadataValue::from_bytes(&bytes));
            }
        }
        Self::with_metadata(Code::from_i32(code.grpc()), cut(message), metadata)
    }
}

/// The message, no longer than may be sent, cut between characters.
fn cut(mut message: String) -> String {
    let mut end = MESSAGE_BYTES_MAX.min(message.len());
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    message
}

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
