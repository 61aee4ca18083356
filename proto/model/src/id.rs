//! Typed ids and counters. A `VmId` is never a `HostId`, and an incarnation is never a revision.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Invalid;

macro_rules! uid {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Uuid::parse_str(text).map($name).map_err(|e| Invalid::new("uid", format!("{text:?}: {e}"), "a UUID"))
            }
        }
    )*};
}

uid! {
    /// The whole deployment: minted once, when the first controller is initialised.
    ClusterId,
    /// One enrolled host.
    HostId,
    /// One virtual machine, for its whole life.
    VmId,
    /// One imported image.
    ImageId,
    /// One live migration.
    MigrationId,
    /// One task; it doubles as the operation id of a one-shot act.
    TaskId,
    /// One recorded event.
    EventId,
    /// One move that the balancer would make.
    RecommendationId,
    /// One person or program.
    UserId,
    /// One role.
    RoleId,
    /// One binding of a role.
    BindingId,
    /// One project.
    ProjectId,
    /// One token that speaks for a user.
    ApiTokenId,
}

macro_rules! counter {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

counter! {
    /// Counts the changes of one object's spec.
    Generation,
    /// Counts the writes of the whole cluster; an object carries that of its last write.
    Revision,
    /// The fencing token of one VM: raised by every start and every hand-over, so at most one incarnation may run.
    Incarnation,
}

/// A controller's number within its cluster, 1 and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ControllerId(pub u64);

impl fmt::Display for ControllerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
