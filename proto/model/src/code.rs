//! The closed table of public errors: one code each, with its HTTP status, gRPC code and CLI exit status.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, http $http:literal, grpc $grpc:literal, exit $exit:literal, retry $retry:literal;)*) => {
        /// Why a request was refused. Closed and documented: a client may match on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode {
            $($(#[doc = $doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code, in table order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as it crosses the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// HTTP status (RFC 9110).
            #[must_use]
            pub const fn http(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// gRPC status code number (google.rpc.Code).
            #[must_use]
            pub const fn grpc(self) -> i32 {
                match self { $(Self::$name => $grpc,)* }
            }

            /// Exit status of the CLI.
            #[must_use]
            pub const fn exit(self) -> u8 {
                match self { $(Self::$name => $exit,)* }
            }

            /// May the same request succeed later without being changed?
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }

            /// One line for the table in the docs.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// A field has a value that is not allowed; the message names it.
    InvalidArgument = "invalid_argument", http 400, grpc 3, exit 2, retry false;
    /// There is no object of that kind and name.
    NotFound = "not_found", http 404, grpc 5, exit 3, retry false;
    /// An object of that kind and name exists.
    AlreadyExists = "already_exists", http 409, grpc 6, exit 4, retry false;
    /// The object was written since it was read; the message has its current revision.
    StaleRevision = "stale_revision", http 409, grpc 10, exit 4, retry false;
    /// The object is in a state in which this cannot be done.
    WrongState = "wrong_state", http 409, grpc 9, exit 5, retry false;
    /// Another object still needs this one.
    InUse = "in_use", http 409, grpc 9, exit 5, retry false;
    /// There is no room for it: the message says why for each group of hosts, or which disk is full.
    NoCapacity = "no_capacity", http 409, grpc 8, exit 6, retry true;
    /// The token or certificate shown is unknown, used up, expired or revoked, or none was shown.
    Unauthenticated = "unauthenticated", http 401, grpc 16, exit 7, retry false;
    /// Who asks is known, and may not do this: the message says which verb on which kind is missing, and where.
    Forbidden = "forbidden", http 403, grpc 7, exit 16, retry false;
    /// The project has no room for it left: the message says which bound.
    QuotaExceeded = "quota_exceeded", http 403, grpc 8, exit 14, retry false;
    /// Too many attempts; the message says when to try again.
    TooManyAttempts = "too_many_attempts", http 429, grpc 8, exit 15, retry true;
    /// The driver or host cannot do this.
    Unsupported = "unsupported", http 501, grpc 12, exit 8, retry false;
    /// The idempotency key was used before for another request.
    KeyReused = "key_reused", http 422, grpc 3, exit 2, retry false;
    /// The revision asked for is no longer held; list again and watch from there.
    Compacted = "compacted", http 410, grpc 11, exit 9, retry false;
    /// Another field manager owns a field that would change; the message names both. Apply with force, or leave it out.
    FieldConflict = "field_conflict", http 409, grpc 10, exit 4, retry false;
    /// The request is larger than is taken.
    TooLarge = "too_large", http 413, grpc 11, exit 2, retry false;
    /// This client has as many streams open as one client may have.
    TooMany = "too_many", http 429, grpc 8, exit 10, retry true;
    /// The controller has as many calls under way as it takes; nothing was done. Try again after a moment.
    Overloaded = "overloaded", http 503, grpc 14, exit 10, retry true;
    /// The controller asked does not lead and could not pass the request on.
    NotLeader = "not_leader", http 503, grpc 14, exit 10, retry true;
    /// No quorum, or the controller is starting or stopping.
    Unavailable = "unavailable", http 503, grpc 14, exit 10, retry true;
    /// The deadline passed; a write may or may not have happened: repeat it with the same idempotency key.
    Deadline = "deadline", http 504, grpc 4, exit 11, retry true;
    /// A bug; the log has the details.
    Internal = "internal", http 500, grpc 13, exit 70, retry false;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for ErrorCode {
    type Err = crate::Invalid;

    fn from_str(text: &str) -> Result<Self, crate::Invalid> {
        let found = Self::ALL.iter().copied().find(|code| code.as_str() == text);
        found.ok_or_else(|| {
            crate::Invalid::new("code", format!("{text:?} is no error code"), "a code of the errors table")
        })
    }
}
