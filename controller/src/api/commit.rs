//! One write, from whoever asks to what came of it: judged, carried out, written down.

use dunlin_proto::Fault;
use dunlin_state::{Command, Outcome, Rejected, State, Write, apply};

use super::{blobs, carry, rejected_fault, writes};
use crate::audit::Entry;
use crate::clock;
use crate::node::Node;
use crate::rights::{self, Caller};

/// Runs a write on the leader, when its caller may make it.
pub(super) async fn commit(
    node: &Node,
    caller: &Caller,
    key: String,
    dry_run: bool,
    write: impl FnOnce(&State) -> Result<Write, Fault>,
) -> Result<Outcome, Fault> {
    let (write, entry) = {
        let view = node.replica.read();
        let grants = rights::grants(node, caller, &view)?;
        let write = write(&view).map_err(|fault| rights::hide(fault, &grants))?;
        let entry = rights::allow(node, caller, &view, &grants, &write)?;
        (write, entry)
    };
    node.room.admit(&write)?;
    if dry_run {
        return rehearse(node, key, write);
    }
    if let Some(spec) = writes::needs_bytes(&write) {
        blobs::ensure_stored(node, spec).await?;
    }
    // Before it is made: the host may be told of it before the answer is.
    node.threads.note(&write, &caller.correlation);
    noted(node, entry, key, write).await
}

/// Proposes what is allowed already, and writes down what came of it.
pub(super) async fn noted(node: &Node, entry: Entry, key: String, write: Write) -> Result<Outcome, Fault> {
    carried_out(node, entry, &Command::Write { key, write }).await
}

/// The same for a command that is no write of a user's.
pub(super) async fn carried_out(node: &Node, entry: Entry, command: &Command) -> Result<Outcome, Fault> {
    let proposed = node.replica.propose(command).await;
    let result = proposed.map_err(|e| carry::propose_fault(&e)).and_then(|done| done.map_err(rejected_fault));
    let outcome = result.as_ref().map_or_else(|fault| fault.code.as_str(), |_| "ok");
    node.audit.note(entry.with_outcome(outcome)).await;
    result
}

/// What the write would lead to now: applied to a copy, which costs nothing and is dropped.
fn rehearse(node: &Node, key: String, write: Write) -> Result<Outcome, Fault> {
    let view = node.replica.read();
    let stamp = dunlin_state::Stamp { index: view.index + 1, time: clock::now() };
    let mut copy = view.machine.clone();
    let outcome: Result<Outcome, Rejected> = apply(&mut copy, &stamp, &Command::Write { key, write });
    outcome.map_err(rejected_fault)
}
