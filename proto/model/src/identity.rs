//! Who somebody is to the cluster: the name a certificate carries, and what the cluster remembers of certificates.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ControllerId, HostId, Invalid, Name, Secret, Timestamp};

/// What somebody is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// One of the controllers.
    Controller,
    /// The agent of one host.
    #[default]
    Host,
    /// A person, or what acts for one, who may do everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Controller, Self::Host, Self::Admin];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Host => "host",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| Invalid::new("role", format!("{text:?} is none"), "host, controller or admin"))
    }
}

/// Who somebody is. Reads as `controller/1`, `host/UUID` or `admin/NAME`, in that spelling only, so that two texts are
/// never the same identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// The controller of that number.
    Controller(ControllerId),
    /// The agent of that host.
    Host(HostId),
    /// The admin of that name.
    Admin(Name),
}

impl Identity {
    /// What it is.
    #[must_use]
    pub const fn role(&self) -> Role {
        match self {
            Self::Controller(_) => Role::Controller,
            Self::Host(_) => Role::Host,
            Self::Admin(_) => Role::Admin,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller(id) => write!(f, "controller/{id}"),
            Self::Host(uid) => write!(f, "host/{uid}"),
            Self::Admin(name) => write!(f, "admin/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            let allowed = "controller/NUMBER, host/UUID or admin/NAME";
            Invalid::new("identity", format!("{text:?} is none"), allowed)
        };
        let (role, name) = text.split_once('/').ok_or_else(wrong)?;
        let found = match role.parse()? {
            Role::Controller => {
                let id = name.parse().ok().filter(|id| *id > 0).ok_or_else(wrong)?;
                Self::Controller(ControllerId(id))
            }
            Role::Host => Self::Host(name.parse().map_err(|_| wrong())?),
            Role::Admin => Self::Admin(name.parse()?),
        };
        if found.to_string() == text { Ok(found) } else { Err(wrong()) }
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One certificate authority of the cluster, with the key it signs with. Lives in the replicated state and in the
/// founding controllers' files, and is shown by no API, event or log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its own name: part of the certificate's subject.
    pub id: String,
    /// Its certificate, signed by itself, PEM.
    pub certificate: String,
    /// The same name and key, signed by the authority before it: whoever trusts only that one trusts this one too. PEM.
    #[serde(default)]
    pub endorsement: Option<String>,
    /// Its private key, PKCS #8 in PEM.
    pub key: Secret,
    /// From when it holds.
    pub made: Timestamp,
    /// Until when.
    pub expires: Timestamp,
}

/// One certificate that was issued, as the cluster remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its serial number.
    pub serial: u64,
    /// SHA-256 of the public key it is for, hex.
    pub key_sha256: String,
    /// Id of the authority that signed it.
    pub authority: String,
    /// When.
    pub at: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> impl Strategy<Value = Identity> {
        prop_oneof![
            (1..u64::MAX).prop_map(|id| Identity::Controller(ControllerId(id))),
            any::<u128>().prop_map(|uid| Identity::Host(HostId(uuid::Uuid::from_u128(uid)))),
            "[A-Za-z0-9][A-Za-z0-9._-]{0,62}".prop_map(|name| Identity::Admin(name.parse().unwrap())),
        ]
    }

    proptest! {
        /// What is written is read back, and no other spelling of it is taken for it.
        #[test]
        fn an_identity_has_one_spelling(identity in identity(), noise in "\\PC{1,3}", at in any::<prop::sample::Index>()) {
            let text = identity.to_string();
            prop_assert_eq!(text.parse::<Identity>(), Ok(identity.clone()));
            let mut other = text.clone();
            other.insert_str(at.index(text.len() + 1), &noise);
            prop_assert_ne!(other.parse::<Identity>(), Ok(identity));
        }

        /// Any text is either refused or is exactly what is written back.
        #[test]
        fn any_text_is_refused_or_canonical(text in "(controller|host|admin|root)?/?[0-9a-fA-F./ +-]{0,40}|\\PC*") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    /// The spellings that a number or uid could also have.
    #[test]
    fn other_spellings_are_refused() {
        let uid = "6e1d0c46-6a6b-4dd2-a1a6-0f8e5f6c9d01";
        assert!(format!("host/{uid}").parse::<Identity>().is_ok());
        for text in [
            "controller/0",
            "controller/01",
            "controller/+1",
            "controller/",
            "admin/",
            "admin/../x",
            "host/6E1D0C46-6A6B-4DD2-A1A6-0F8E5F6C9D01",
            "host/6e1d0c466a6b4dd2a1a60f8e5f6c9d01",
            "agent/1",
            "",
            "admin",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
