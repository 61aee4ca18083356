//! What several procedures have in common: references to objects, and typed parameters.

use super::xdr::{Reader, Xdr, XdrError};

/// Structures that are their fields in order.
macro_rules! records {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $kind),* }

        impl $crate::libvirt::wire::xdr::Xdr for $name {
            #[allow(unused_variables)]
            fn put(&self, out: &mut Vec<u8>) -> Result<(), $crate::libvirt::wire::xdr::XdrError> {
                $($crate::libvirt::wire::xdr::Xdr::put(&self.$field, out)?;)*
                Ok(())
            }

            #[allow(unused_variables)]
            fn get(
                from: &mut $crate::libvirt::wire::xdr::Reader<'_>,
            ) -> Result<Self, $crate::libvirt::wire::xdr::XdrError> {
                Ok(Self { $($field: $crate::libvirt::wire::xdr::Xdr::get(from)?),* })
            }

            #[cfg(test)]
            #[allow(unused_variables)]
            fn any(dice: &mut $crate::libvirt::wire::tests::Dice) -> Self {
                Self { $($field: $crate::libvirt::wire::xdr::Xdr::any(dice)),* }
            }
        }
    )*};
}
pub(super) use records;

/// Most domains in one list.
pub const DOMAINS_MAX: usize = 16_384;
/// Most parameters of one migration, or of a job's statistics.
pub const JOB_PARAMS_MAX: usize = 64;
/// Most parameters in one domain's statistics.
pub const STATS_MAX: usize = 262_144;
/// Longest migration cookie, bytes.
pub const COOKIE_BYTES_MAX: usize = 16_384;
/// Longest piece of a SASL exchange, characters.
pub const SASL_CHARS_MAX: usize = 65_536;

/// A UUID.
pub type Uuid = [u8; 16];
/// State that one side of a migration gives the other; nobody's business but theirs.
pub type Cookie = super::xdr::Opaque<COOKIE_BYTES_MAX>;
/// Parameters of a migration.
pub type JobParams = super::xdr::List<Param, JOB_PARAMS_MAX>;

records! {
    /// A domain: its name, its UUID, and the number it has while it runs (-1: it does not).
    Domain { name: String, uuid: Uuid, id: i32 }
    /// A network.
    Network { name: String, uuid: Uuid }
    /// A named value that carries its type.
    Param { field: String, value: Value }
    /// One domain's statistics.
    DomainStats { domain: Domain, params: super::xdr::List<Param, STATS_MAX> }
}

/// A value that carries its type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Int(i32),
    Uint(u32),
    Hyper(i64),
    Uhyper(u64),
    Double(f64),
    Bool(bool),
    Text(String),
}

impl Value {
    /// As a number without a sign, when it is one.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            Self::Uint(number) => Some(u64::from(*number)),
            Self::Hyper(number) => u64::try_from(*number).ok(),
            Self::Uhyper(number) => Some(*number),
            Self::Bool(_) | Self::Double(_) | Self::Text(_) => None,
        }
    }
}

impl Xdr for Value {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        match self {
            Self::Int(value) => (1u32.put(out)?, value.put(out)?),
            Self::Uint(value) => (2u32.put(out)?, value.put(out)?),
            Self::Hyper(value) => (3u32.put(out)?, value.put(out)?),
            Self::Uhyper(value) => (4u32.put(out)?, value.put(out)?),
            Self::Double(value) => (5u32.put(out)?, value.put(out)?),
            Self::Bool(value) => (6u32.put(out)?, i32::from(*value).put(out)?),
            Self::Text(value) => (7u32.put(out)?, value.put(out)?),
        };
        Ok(())
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        match u32::get(from)? {
            1 => i32::get(from).map(Self::Int),
            2 => u32::get(from).map(Self::Uint),
            3 => i64::get(from).map(Self::Hyper),
            4 => u64::get(from).map(Self::Uhyper),
            5 => f64::get(from).map(Self::Double),
            6 => i32::get(from).map(|value| Self::Bool(value != 0)),
            7 => String::get(from).map(Self::Text),
            word => Err(XdrError::Word { what: "type of a parameter", word }),
        }
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        match dice.below(7) {
            0 => Self::Int(Xdr::any(dice)),
            1 => Self::Uint(Xdr::any(dice)),
            2 => Self::Hyper(Xdr::any(dice)),
            3 => Self::Uhyper(Xdr::any(dice)),
            4 => Self::Double(Xdr::any(dice)),
            5 => Self::Bool(dice.below(2) == 1),
            _ => Self::Text(Xdr::any(dice)),
        }
    }
}
