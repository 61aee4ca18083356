//! What the log drives: the application's state machine, and the views of it that readers take.

use std::io::{self, Read, Write};
use std::ops::Deref;

use dunlin_model::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

/// A deterministic state machine: the same commands in the same order give the same state and the same outcomes on
/// every controller. No clock, no randomness, no I/O, no iteration order that differs between processes.
///
/// `Clone` must be O(1) (persistent maps): one is taken after every batch of commands, and the snapshot builder
/// works from such a copy while `apply` goes on.
pub trait Machine: Clone + Send + Sync + 'static {
    /// What callers propose. Written to the log as JSON, so a field may be added with a default and never change its
    /// meaning.
    type Command: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the proposer gets back. Never written anywhere.
    type Outcome: Send + 'static;

    /// Refuses what must not get into the log, because not every member of the cluster could read it. Asked of a state that may
    /// lag behind, so what was let in once stays so.
    fn refuses(&self, _command: &Self::Command) -> Option<Self::Outcome> {
        None
    }

    /// Runs one committed command. A refusal is an outcome like any other; a panic stops the process.
    fn apply(&mut self, stamp: Stamp, command: &Self::Command) -> Self::Outcome;

    /// Writes the whole state. Called on a blocking thread.
    fn encode(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Reads what `encode` of this or an older version wrote. Called on a blocking thread.
    fn decode(input: &mut dyn Read) -> io::Result<Self>;
}

/// What the log adds to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The command's number in the history of the cluster: 1, 2, 3, ... without gaps, the same on every controller.
    /// (Not the raft index: one log entry carries many commands.)
    pub index: u64,
    /// The proposer's clock, held so that it never runs backwards from one command to the next.
    pub time: Timestamp,
}

/// The state after the command `index`: immutable, O(1) to take and to clone, and no lock is held by having it.
#[derive(Clone, Debug)]
pub struct View<M> {
    /// The state.
    pub machine: M,
    /// The last applied command, 0 when there is none.
    pub index: u64,
    /// The time of that command.
    pub time: Timestamp,
    /// The last applied raft log position plus one, 0 when there is none.
    pub(super) log_end: u64,
}

impl<M> Deref for View<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.machine
    }
}
