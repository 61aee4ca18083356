//! How one controller of the replicated core is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use dunlin_model::{ClusterId, ControllerId, Invalid};
use serde::{Deserialize, Serialize};

use super::Wire;

/// One controller as the others reach it. Part of the replicated membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where the raft transport listens: `host:port`.
    pub raft: String,
    /// Where clients and agents are sent to: `https://host:port`. Only carried, never used here.
    #[serde(default)]
    pub api: String,
}

/// How one controller is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This controller's number: 1 and up, its own for ever.
    pub id: ControllerId,
    /// The cluster it must belong to. `None`: whatever the store says; an empty store takes the id minted by `init`,
    /// or that of the first controller that calls.
    pub cluster: Option<ClusterId>,
    /// The folder it alone may use. Created when missing.
    pub data_dir: PathBuf,
    /// Where the raft transport listens.
    pub listen: SocketAddr,
    /// How controllers prove who they are to one another. None: not at all, for tests of the core alone.
    pub wire: Option<Wire>,
    /// Heartbeat and election.
    pub timers: Timers,
    /// When the log is compacted.
    pub snapshots: SnapshotPolicy,
    /// How long a caller waits for a proposal or a linearizable read.
    pub deadline: Duration,
}

impl Config {
    /// The defaults for controller `id` in `data_dir`.
    #[must_use]
    pub fn new(id: ControllerId, data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            id,
            cluster: None,
            data_dir: data_dir.into(),
            listen,
            wire: None,
            timers: Timers::default(),
            snapshots: SnapshotPolicy::default(),
            deadline: Duration::from_secs(5),
        }
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let Timers { heartbeat_ms, election_min_ms, election_max_ms } = self.timers;
        if self.id.0 == 0 {
            return Err(Invalid::new("id", "0", "1 and up"));
        }
        if !(10..=10_000).contains(&heartbeat_ms) {
            return Err(Invalid::new("timers.heartbeat_ms", heartbeat_ms.to_string(), "10 to 10000"));
        }
        if election_min_ms < heartbeat_ms * 2 || election_max_ms <= election_min_ms {
            let got = format!("{election_min_ms} to {election_max_ms} ms");
            return Err(Invalid::new(
                "timers.election",
                got,
                "from at least two heartbeats to something longer",
            ));
        }
        if self.snapshots.every_entries == 0 || self.snapshots.every_bytes == 0 {
            return Err(Invalid::new("snapshots.every", "0", "1 and up"));
        }
        Ok(())
    }
}

/// Heartbeat and election timers, milliseconds.
///
/// A leader whose process dies is noticed at once by its closed socket, one that falls silent (power, cable, SIGSTOP)
/// by the sentinels of a quorum. Behind both stand these timers: it is replaced after `election_max_ms` (the lease in which
/// followers refuse every candidate) plus a random `election_min_ms..election_max_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// How often a leader shows that it lives; also the limit of one append round trip with its fsync.
    pub heartbeat_ms: u64,
    /// The shortest election timeout.
    pub election_min_ms: u64,
    /// The longest election timeout.
    pub election_max_ms: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self { heartbeat_ms: 100, election_min_ms: 300, election_max_ms: 450 }
    }
}

/// When a snapshot is taken, and how much log is kept behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// A snapshot every so many log entries (an entry carries up to some hundreds of commands).
    pub every_entries: u64,
    /// ... or as soon as so many bytes of commands were applied since the last one.
    pub every_bytes: u64,
    /// Entries kept although a snapshot covers them, so that a follower that was briefly away catches up by log.
    pub keep_entries: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { every_entries: 10_000, every_bytes: 64 << 20, keep_entries: 1_000 }
    }
}
