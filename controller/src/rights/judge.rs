//! Yes or no, and a line in the audit log for every no.

use dunlin_model::rights::Verb;
use dunlin_model::{ErrorCode, Kind};
use dunlin_proto::Fault;
use dunlin_state::rights::{Asked, Grants, Scope};
use dunlin_state::{Rejected, State, Write};

use super::Caller;
use crate::api::rejected_fault;
use crate::audit::Entry;
use crate::clock;
use crate::node::Node;

/// Writes a refusal down, and gives it back.
pub(crate) fn refuse(node: &Node, entry: Entry, fault: Fault) -> Fault {
    node.audit.refusal(entry.with_outcome(fault.code.as_str()));
    fault
}

/// What a caller may do, by that state.
pub(crate) fn grants(node: &Node, caller: &Caller, state: &State) -> Result<Grants, Fault> {
    let subject = caller.subject.clone();
    let granted = subject.and_then(|subject| state.grants(subject, clock::now()).map_err(rejected_fault));
    granted.map_err(|fault| refuse(node, Entry::of(caller, "authenticate"), fault))
}

/// Refuses a caller who may not do this, whatever it is done to.
pub(crate) fn authorise(
    node: &Node,
    caller: &Caller,
    state: &State,
    (verb, kind, scope): (Verb, Kind, Scope<'_>),
    name: &str,
) -> Result<Grants, Fault> {
    let granted = grants(node, caller, state)?;
    granted.check(verb, kind, scope).map_err(|rejected| {
        let project = match scope {
            Scope::Project(project) => Some(project.to_string()),
            Scope::Fleet | Scope::Anywhere => None,
        };
        let entry = Entry::of(caller, verb.as_str()).about(&kind.to_string(), name, project);
        refuse(node, entry, rejected_fault(rejected))
    })?;
    Ok(granted)
}

/// Refuses a caller who may not do everything.
pub(crate) fn authorise_all(
    node: &Node,
    caller: &Caller,
    state: &State,
    verb: &str,
    what: &str,
) -> Result<(), Fault> {
    let granted = grants(node, caller, state)?;
    granted.check_everything(what).map_err(|rejected| {
        let entry = Entry::of(caller, verb).about(&Kind::Cluster.to_string(), what, None);
        refuse(node, entry, rejected_fault(rejected))
    })
}

/// Refuses a write that the caller may not make. Gives the line that its outcome belongs into.
pub(crate) fn allow(
    node: &Node,
    caller: &Caller,
    state: &State,
    granted: &Grants,
    write: &Write,
) -> Result<Entry, Fault> {
    let asked: Asked<'_> = state.asked(write);
    let entry = Entry::of(caller, asked.main.verb.as_str());
    let project = asked.project().map(ToString::to_string);
    let kind = asked.object.map_or(asked.main.kind, dunlin_model::Object::kind);
    let entry = entry.about(&kind.to_string(), &asked.name, project);
    let allowed: Result<(), Rejected> = asked.allow(granted, state);
    match allowed {
        Ok(()) => Ok(entry),
        Err(rejected) => Err(refuse(node, entry, rejected_fault(rejected))),
    }
}

/// A refusal that there is no such object, told to somebody who does not see all: without the names that are near.
pub(crate) fn hide(fault: Fault, granted: &Grants) -> Fault {
    let all = Kind::ALL.into_iter().all(|kind| granted.sees_all(kind));
    if fault.code != ErrorCode::NotFound || all {
        return fault;
    }
    let message = fault.message.split("; did you mean").next().unwrap_or_default().to_owned();
    Fault { message, ..fault }
}
