//! Events a daemon tells unasked: their number, and what they carry.

use super::types::{Domain, JobParams, records};
use super::xdr::{self, XdrError};

/// What a domain's life is told as.
pub mod lifecycle {
    /// It was started.
    pub const STARTED: i32 = 2;
    /// Its vCPUs were stopped.
    pub const SUSPENDED: i32 = 3;
    /// It is no longer active.
    pub const STOPPED: i32 = 5;
}

macro_rules! events {
    ($($(#[$doc:meta])* $number:literal for $registered:literal $name:ident { $($field:ident: $kind:ty),* };)*) => {
        $(
            records! { $(#[$doc])* $name { $($field: $kind),* } }
        )*

        /// An event that is understood.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Event {
            $($(#[$doc])* $name($name),)*
        }

        impl Event {
            /// Reads the event of that number; none when it is not one of ours.
            ///
            /// # Errors
            /// When the bytes are not what that event carries.
            pub fn decode(number: i32, bytes: &[u8]) -> Result<Option<Self>, XdrError> {
                match number {
                    $($number => xdr::decode(bytes).map(|event| Some(Self::$name(event))),)*
                    _ => Ok(None),
                }
            }

            /// The domain it is about.
            #[must_use]
            pub fn domain(&self) -> &Domain {
                match self { $(Self::$name(event) => &event.domain,)* }
            }
        }

        /// Number of each message, and the number one registers for it.
        pub const EVENTS: &[(i32, i32)] = &[$(($number, $registered)),*];

        #[cfg(test)]
        pub(super) fn round_trips(dice: &mut super::tests::Dice) -> Vec<(i32, Vec<u8>)> {
            vec![$(($number, super::tests::round_trip::<$name>(dice))),*]
        }
    };
}

events! {
    /// A domain was started, stopped, and so on; see [`lifecycle`].
    318 for 0 Lifecycle { callback: i32, domain: Domain, event: i32, detail: i32 };
    /// A domain's machine was restarted.
    319 for 1 Reboot { callback: i32, domain: Domain };
    /// A migration begins another pass over the memory.
    359 for 20 MigrationIteration { callback: i32, domain: Domain, iteration: i32 };
    /// A job has ended.
    363 for 21 JobCompleted { callback: i32, domain: Domain, params: JobParams };
}
