//! The text of a join token: what the joiner shows, and by what it knows whom it shows it to.
//!
//! ```text
//!   host.SECRET.FINGERPRINT     role; 64 hex digits; SHA-256 of the authority's certificate, 64 hex digits
//! ```
//! The fingerprint lets the joiner refuse to show the secret to anybody but the cluster it is for.

use std::fmt;
use std::str::FromStr;

use dunlin_model::{Invalid, Role, Secret};

use crate::hex;

/// Bytes of the secret and of the fingerprint.
const BYTES: usize = 32;

/// A join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// What its bearer may become.
    pub role: Role,
    /// What only its bearer knows, hex.
    pub secret: Secret,
    /// SHA-256 of the authority's certificate, hex.
    pub fingerprint: String,
}

impl JoinToken {
    /// The whole text: a secret.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}.{}.{}", self.role, self.secret.expose(), self.fingerprint)
    }
}

impl FromStr for JoinToken {
    type Err = Invalid;

    /// The text itself is never told: it may be a token that was mistyped.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |problem: &str| {
            Invalid::new("token", problem, "a token as `dunlin token create` printed it, whole")
        };
        let mut parts = text.trim().split('.');
        let (Some(role), Some(secret), Some(fingerprint), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong("it has not three parts"));
        };
        let role = role.parse().map_err(|_| wrong("it begins with no role"))?;
        if hex::decode::<BYTES>(secret).is_none() {
            return Err(wrong("its secret is cut or mistyped"));
        }
        if hex::decode::<BYTES>(fingerprint).is_none() {
            return Err(wrong("its fingerprint is cut or mistyped"));
        }
        Ok(Self { role, secret: Secret::new(secret), fingerprint: fingerprint.to_owned() })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token for a {}", self.role)
    }
}
