//! The body of an answer that says no.

use super::types::{Domain, Network, records};

records! {
    /// Why a call failed, in the words of the daemon.
    Fault {
        code: i32,
        origin: i32,
        message: Option<String>,
        level: i32,
        domain: Option<Domain>,
        text_1: Option<String>,
        text_2: Option<String>,
        text_3: Option<String>,
        number_1: i32,
        number_2: i32,
        network: Option<Network>,
    }
}

/// This call is not there, or not in this driver.
pub const NO_SUPPORT: i32 = 3;
/// The procedure is not known at all.
pub const RPC: i32 = 39;
/// An argument is not taken.
pub const INVALID_ARG: i32 = 8;
/// There is no such domain.
pub const NO_DOMAIN: i32 = 42;
/// The domain is in no state for that.
pub const OPERATION_INVALID: i32 = 55;
/// Something took too long inside the daemon.
pub const TIMEOUT: i32 = 68;
/// The hypervisor cannot do that as configured.
pub const CONFIG_UNSUPPORTED: i32 = 67;
/// The domain has no such metadata.
pub const NO_METADATA: i32 = 80;
/// The hypervisor cannot do that.
pub const OPERATION_UNSUPPORTED: i32 = 84;

impl Fault {
    /// The daemon's words.
    #[must_use]
    pub fn words(&self) -> String {
        self.message.clone().unwrap_or_else(|| format!("error {} without a word", self.code))
    }

    /// Is it that this driver does not know a flag?
    #[must_use]
    pub fn is_about_flags(&self) -> bool {
        self.code == INVALID_ARG && self.words().contains("unsupported flags")
    }

    /// Is it that there is no such verb, here or at all?
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        let unknown = self.code == RPC && self.words().starts_with("unknown procedure");
        unknown || matches!(self.code, NO_SUPPORT | OPERATION_UNSUPPORTED)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words())
    }
}
