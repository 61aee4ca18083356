//! Small integers that stand for things: dense, so that a table of them is an array.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// As the position in an array.
            #[must_use]
            pub const fn at(self) -> usize {
                self.0 as usize
            }

            /// Of a position in an array.
            ///
            /// # Panics
            /// Past 2^32 - 1 rows, which no fleet has.
            #[must_use]
            pub fn of(position: usize) -> Self {
                Self(u32::try_from(position).expect("fewer than 2^32 rows"))
            }
        }
    )*};
}

index! {
    /// A host of one snapshot, in the order it was added. Stays as it is until the host is removed.
    HostIdx,
    /// A VM of one snapshot, in the order it was added. Reused after the VM is removed.
    VmIdx,
    /// What some VMs ask of a host, interned: equal demands share it.
    ProfileIdx,
    /// The facts some profiles need and the taints they tolerate, interned.
    GateIdx,
    /// Labels and rules some VMs share, interned.
    TiesIdx,
    /// What some hosts have in common, interned: equal facts and taints share it.
    ClassIdx,
    /// One fact about hosts, interned.
    FactIdx,
    /// One label of VMs, interned: `key=value`, or `key` for whatever value.
    LabelIdx,
    /// A countable thing that only some hosts have, interned: `disk/fast`, `device/a100`, `licence/db`.
    ResourceIdx,
    /// An image, interned by name.
    ImageIdx,
    /// A rack or a zone, interned by name.
    DomainIdx,
}

/// Gives equal values one number, in the order they are first seen.
#[derive(Clone, Debug)]
pub struct Interner<T> {
    numbers: BTreeMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { numbers: BTreeMap::new(), values: Vec::new() }
    }
}

impl<T: Ord + Clone> Interner<T> {
    /// The number of a value, given now if it has none yet.
    pub fn intern(&mut self, value: &T) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = u32::try_from(self.values.len()).expect("fewer than 2^32 values");
        self.numbers.insert(value.clone(), number);
        self.values.push(value.clone());
        number
    }

    /// The number of a value that has been seen.
    #[must_use]
    pub fn find(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    /// The value behind a number of this interner.
    #[must_use]
    pub fn get(&self, number: u32) -> &T {
        &self.values[number as usize]
    }

    /// Values seen so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Nothing seen yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}
