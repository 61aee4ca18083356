//! What can go wrong, sorted by what the caller can do about it.

use std::io;
use std::path::PathBuf;

use dunlin_model::{ClusterId, ControllerId, Invalid};

use super::Member;

/// Why a controller could not start. None of these heals by itself.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is out of range.
    #[error("raft configuration")]
    Config(#[source] Invalid),
    /// The store could not be opened.
    #[error("open the store")]
    Store(#[from] StoreError),
    /// The transport could not listen.
    #[error("listen for raft peers on {address}")]
    Listen {
        /// The address asked for.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The core did not start.
    #[error("start the raft core: {0}")]
    Core(String),
}

/// What is wrong with a store, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or a file in it cannot be used.
    #[error("{act} {}", path.display())]
    Io {
        /// What was attempted.
        act: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another process: only one controller may run on a data directory", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// It belongs to another cluster.
    #[error("{} belongs to cluster {found}, but this controller was started for cluster {wanted}: point it at its own data directory", path.display())]
    ForeignCluster {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        wanted: ClusterId,
    },
    /// It belongs to another controller of the cluster.
    #[error("{} belongs to controller {found}, but this is controller {wanted}: point it at its own data directory", path.display())]
    ForeignController {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        found: ControllerId,
        /// Whose it should be.
        wanted: ControllerId,
    },
    /// A newer Dunlin wrote it.
    #[error("{} has format {found}, and this binary knows formats up to {known}: start the newer binary", path.display())]
    Newer {
        /// The data directory.
        path: PathBuf,
        /// What it has.
        found: u32,
        /// What this binary knows.
        known: u32,
    },
    /// Its content contradicts itself. Nothing is guessed and nothing is dropped.
    #[error(
        "the store in {} is damaged: {what}. The other controllers have everything: remove this controller from the \
         cluster, move the directory away, and add the controller again. If it is the only one, restore a backup",
        path.display()
    )]
    Damaged {
        /// The data directory.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The storage engine failed.
    #[error("{act}: {cause}")]
    Engine {
        /// What was attempted.
        act: &'static str,
        /// What it said.
        cause: String,
    },
}

/// A controller and where to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its number.
    pub id: ControllerId,
    /// Its endpoints.
    pub member: Member,
}

/// Why a proposal has no outcome. [`ProposeError::is_unknown`] tells whether it may still be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another controller leads, or nobody does at this moment. The command was not and will not be applied.
    #[error("this controller does not lead{}", leader_hint(leader.as_ref()))]
    NotLeader {
        /// Who does, when known.
        leader: Option<Leader>,
    },
    /// The term of a fenced proposal is over. The command was not and will not be applied.
    #[error("term {term} is over")]
    TermOver {
        /// The term the command was meant for.
        term: u64,
    },
    /// The command is larger than one may be. It was not proposed.
    #[error("the command is {bytes} bytes long; the limit is {limit}")]
    TooLarge {
        /// Its length as JSON.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The command cannot be written as JSON. It was not proposed.
    #[error("encode the command: {0}")]
    Encode(String),
    /// Leadership was lost while the command was on its way: it may or may not be applied.
    #[error("leadership changed while the command was on its way; whether it will be applied is unknown")]
    Unavailable,
    /// No quorum answered in time: it may or may not be applied.
    #[error("no quorum within {millis} ms; whether the command will be applied is unknown")]
    Deadline {
        /// The limit that passed.
        millis: u64,
    },
    /// This controller is stopping: it may or may not be applied.
    #[error("this controller is stopping; whether the command will be applied is unknown")]
    Stopped,
}

impl ProposeError {
    /// For the metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "not leader",
            Self::TermOver { .. } => "term over",
            Self::TooLarge { .. } => "too large",
            Self::Encode(_) => "encode",
            Self::Unavailable => "leader lost",
            Self::Deadline { .. } => "deadline",
            Self::Stopped => "stopped",
        }
    }

    /// Whether the command may have been, or may yet be, applied. When false, it may safely be proposed again.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Deadline { .. } | Self::Stopped)
    }
}

/// Why there is no linearizable view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nobody is known to lead, or the leader could not be asked.
    #[error("no leader could confirm the read{}", leader_hint(leader.as_ref()))]
    NotLeader {
        /// Who does, when known.
        leader: Option<Leader>,
    },
    /// No quorum confirmed the leadership in time.
    #[error("no quorum confirmed the read within {millis} ms")]
    Deadline {
        /// The limit that passed.
        millis: u64,
    },
    /// This controller is stopping.
    #[error("this controller is stopping")]
    Stopped,
}

/// Why the membership did not change (as far as is known).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Another controller leads.
    #[error("this controller does not lead{}", leader_hint(leader.as_ref()))]
    NotLeader {
        /// Who does, when known.
        leader: Option<Leader>,
    },
    /// An earlier change is not finished.
    #[error("another membership change is in progress")]
    InProgress,
    /// The change makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The initial members are not acceptable.
    #[error("initial members")]
    Invalid(#[source] Invalid),
    /// It could not be finished in time; it may still be.
    #[error("the membership change was not confirmed within {millis} ms")]
    Deadline {
        /// The limit that passed.
        millis: u64,
    },
    /// This controller is stopping.
    #[error("this controller is stopping")]
    Stopped,
}

/// Why the replicated core stopped. Unless it was asked to, the process must end: it can no longer keep its promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// `shutdown` was called.
    #[error("shut down")]
    Asked,
    /// The store, the state machine or the core failed.
    #[error("the replicated core failed: {0}")]
    Failed(String),
}

fn leader_hint(leader: Option<&Leader>) -> String {
    leader.map_or_else(String::new, |leader| format!("; controller {} does", leader.id))
}
