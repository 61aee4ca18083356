//! The fleet's state as the replicated core drives it. The one place where the two meet.

use std::io::{self, BufReader, Read, Write};

use dunlin_model::cluster::Controller;
use dunlin_state::{Command, Outcome, Rejected, State, apply, readable, snapshot};

use crate::raft::{self, Machine};

/// This controller's copy of the fleet.
pub(crate) type Replica = raft::Replica<State>;
/// One moment of it.
pub(crate) type View = raft::View<State>;

impl Machine for State {
    type Command = Command;
    type Outcome = Result<Outcome, Rejected>;

    fn refuses(&self, command: &Command) -> Option<Self::Outcome> {
        readable(self, command).err().map(Err)
    }

    fn apply(&mut self, stamp: raft::Stamp, command: &Command) -> Self::Outcome {
        let stamp = dunlin_state::Stamp { index: stamp.index, time: stamp.time };
        apply(self, &stamp, command)
    }

    fn encode(&self, mut out: &mut dyn Write) -> io::Result<()> {
        snapshot::encode(self, &mut out).map_err(io::Error::other)
    }

    fn decode(input: &mut dyn Read) -> io::Result<Self> {
        snapshot::decode(&mut BufReader::new(input)).map_err(io::Error::other)
    }
}

/// The controllers the cluster has agreed on; none before it is founded.
pub(crate) fn controllers(state: &State) -> &[Controller] {
    state.cluster().map_or(&[], |cluster| &cluster.status.controllers)
}
