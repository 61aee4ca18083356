//! What the log store needs of a disk, so that the engine under it can be replaced.
//!
//! An engine keeps numbered records and a few named values. It knows bytes, not raft. One writer thread calls the
//! writing methods, in order; readers may call `read` and `get` at any time.

use std::ops::Range;

use super::StoreError;

/// A named value beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MetaKey {
    /// Whose store this is.
    Identity,
    /// The last vote.
    Vote,
    /// The last purged log id.
    Purged,
    /// What was written and committed so far.
    Marks,
}

impl MetaKey {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Vote => "vote",
            Self::Purged => "purged",
            Self::Marks => "marks",
        }
    }
}

/// A record and its number.
pub(super) type Numbered = (u64, Vec<u8>);

/// A durable log of numbered records. `testing::conformance` is the contract; every engine passes it.
///
/// Writes become readable at once and durable with the next `sync`, in the order they were made: a crash keeps a
/// prefix of them, and never half a record.
pub(super) trait LogEngine: Send + Sync + 'static {
    /// Adds records. A number that exists is overwritten.
    fn append(&self, records: &[Numbered]) -> Result<(), StoreError>;

    /// Records within `range` in their order, until `max_bytes` are passed; at least one if there is one.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Numbered>, StoreError>;

    /// The first and last number held.
    fn bounds(&self) -> Result<Option<(u64, u64)>, StoreError>;

    /// Removes the records from `first` on, the last one first: a crash leaves no hole.
    fn truncate_from(&self, first: u64) -> Result<(), StoreError>;

    /// Removes records up to and including `last`, the first ones first, at most `limit` of them. Returns whether
    /// there are more.
    fn purge_to(&self, last: u64, limit: u64) -> Result<bool, StoreError>;

    /// Writes a named value.
    fn put(&self, key: MetaKey, value: &[u8]) -> Result<(), StoreError>;

    /// Reads a named value.
    fn get(&self, key: MetaKey) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns when everything written so far would survive the loss of power.
    fn sync(&self) -> Result<(), StoreError>;
}
