//! What fields are made of: numbers, text that must parse, and collections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use dunlin_model::invalid::in_range;
use dunlin_model::vm::Mac;
use dunlin_model::{
    ApiTokenId, BindingId, ClusterId, ControllerId, EventId, Generation, HostId, ImageId, Incarnation,
    Invalid, Labels, Level, MigrationId, Name, ProjectId, RecommendationId, Revision, RoleId, Secret, TaskId,
    Timestamp, UserId, VmId,
};
use uuid::Uuid;

use super::{Wire, refuse};

macro_rules! same {
    ($($kind:ty)*) => {$(
        impl Wire<$kind> for $kind {
            fn to_wire(self) -> $kind {
                self
            }

            fn from_wire(wire: $kind) -> Result<Self, Invalid> {
                Ok(wire)
            }
        }
    )*};
}

same!(bool u32 u64 i64 String Labels BTreeMap<String, u32> BTreeMap<String, u64>);

macro_rules! numbers {
    ($($kind:ident)*) => {$(
        impl Wire<u64> for $kind {
            fn to_wire(self) -> u64 {
                self.0
            }

            fn from_wire(wire: u64) -> Result<Self, Invalid> {
                Ok(Self(wire))
            }
        }
    )*};
}

numbers!(Generation Revision Incarnation ControllerId);

impl Wire<u32> for Level {
    fn to_wire(self) -> u32 {
        self.0
    }

    /// Whoever says none is of a time before there were any.
    fn from_wire(wire: u32) -> Result<Self, Invalid> {
        Ok(if wire == 0 { Self::OLDEST } else { Self(wire) })
    }
}

impl Wire<u64> for Timestamp {
    fn to_wire(self) -> u64 {
        self.0
    }

    /// Refuses what could be stored but not be read back from JSON.
    fn from_wire(wire: u64) -> Result<Self, Invalid> {
        in_range("", wire, 0..=Self::MAX.0)?;
        Ok(Self(wire))
    }
}

/// Text the model parses. Its refusal names a field of its own ("name", "uid"), which the holder's name replaces.
macro_rules! texts {
    ($($kind:ident)*) => {$(
        impl Wire<String> for $kind {
            fn to_wire(self) -> String {
                self.to_string()
            }

            fn from_wire(wire: String) -> Result<Self, Invalid> {
                wire.parse().map_err(|e: Invalid| refuse(e.problem, e.allowed))
            }
        }
    )*};
}

texts!(Name Mac ClusterId HostId VmId ImageId MigrationId TaskId EventId RecommendationId UserId RoleId BindingId ProjectId
    ApiTokenId);

impl Wire<String> for Uuid {
    fn to_wire(self) -> String {
        self.to_string()
    }

    fn from_wire(wire: String) -> Result<Self, Invalid> {
        Self::parse_str(&wire).map_err(|e| refuse(format!("{wire:?}: {e}"), "a UUID"))
    }
}

impl Wire<String> for Secret {
    fn to_wire(self) -> String {
        self.expose().to_owned()
    }

    fn from_wire(wire: String) -> Result<Self, Invalid> {
        Ok(Self::new(wire))
    }
}

/// protobuf has no 16-bit number.
impl Wire<u32> for u16 {
    fn to_wire(self) -> u32 {
        self.into()
    }

    fn from_wire(wire: u32) -> Result<Self, Invalid> {
        Self::try_from(wire).map_err(|_| refuse(format!("{wire} is out of range"), "0 to 65535"))
    }
}

impl<M: Wire<W>, W> Wire<Option<W>> for Option<M> {
    fn to_wire(self) -> Option<W> {
        self.map(M::to_wire)
    }

    fn from_wire(wire: Option<W>) -> Result<Self, Invalid> {
        wire.map(M::from_wire).transpose()
    }
}

impl<M: Wire<W>, W> Wire<Vec<W>> for Vec<M> {
    fn to_wire(self) -> Vec<W> {
        self.into_iter().map(M::to_wire).collect()
    }

    fn from_wire(wire: Vec<W>) -> Result<Self, Invalid> {
        wire.into_iter().enumerate().map(|(index, item)| at(index, M::from_wire(item))).collect()
    }
}

impl<M: Wire<W> + Ord, W> Wire<Vec<W>> for BTreeSet<M> {
    fn to_wire(self) -> Vec<W> {
        self.into_iter().map(M::to_wire).collect()
    }

    fn from_wire(wire: Vec<W>) -> Result<Self, Invalid> {
        wire.into_iter().enumerate().map(|(index, item)| at(index, M::from_wire(item))).collect()
    }
}

impl<M: Wire<W>, W> Wire<BTreeMap<String, W>> for BTreeMap<Name, M> {
    fn to_wire(self) -> BTreeMap<String, W> {
        self.into_iter().map(|(name, item)| (name.to_wire(), item.to_wire())).collect()
    }

    fn from_wire(wire: BTreeMap<String, W>) -> Result<Self, Invalid> {
        let entry = |(key, item): (String, W)| {
            let value = at(&key, M::from_wire(item))?;
            Ok((at(&key, Name::from_wire(key.clone()))?, value))
        };
        wire.into_iter().map(entry).collect()
    }
}

fn at<M>(index: impl Display, item: Result<M, Invalid>) -> Result<M, Invalid> {
    item.map_err(|e| e.under(&format!("[{index}]")))
}
