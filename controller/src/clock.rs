//! The only wall clock of a controller. Everything behind the edge gets its time from here, through a stamp or a
//! parameter.

use std::time::{SystemTime, UNIX_EPOCH};

use dunlin_model::Timestamp;

/// Now. A clock set before 1970 reads as 0: `apply` never lets the cluster's time go backwards anyway.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
