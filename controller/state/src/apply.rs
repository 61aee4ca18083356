//! The one function that changes the state.

use std::sync::Arc;

use dunlin_model::host::HostSpec;
use dunlin_model::recommendation::RecommendationPhase;
use dunlin_model::{ErrorCode, Object, Revision};

use crate::command::{Command, Stamp, Write};
use crate::draft::Draft;
use crate::{
    Rejected, State, cluster, host, image, keys, migration, owners, recommendation, rights, sweep, task,
    token, trust, vm,
};

/// What a command led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The cluster's revision after it.
    pub revision: Revision,
    /// The object it was about, as it is now; None for a Sweep, and for a repeated write whose object is gone since.
    pub object: Option<Arc<Object>>,
    /// The idempotency key had been answered before: nothing was done this time.
    pub repeated: bool,
}

/// Checks a command and carries it out, wholly or not at all. Every replica comes to the same result.
pub fn apply(state: &mut State, stamp: &Stamp, command: &Command) -> Result<Outcome, Rejected> {
    // Even a refused command moves the cluster's time and index, so that every replica agrees on them.
    state.time = state.time.max(stamp.time);
    state.index = state.index.max(stamp.index);
    if let Command::Write { key, write } = command
        && let Some(outcome) = keys::answered(state, key, write)?
    {
        return Ok(outcome);
    }
    state.begin();
    let mut draft = Draft::new(state);
    if let Err(rejected) = dispatch(&mut draft, command) {
        state.take_back();
        return Err(rejected);
    }
    let object = draft.commit();
    state.keep();
    if let (Command::Write { key, write }, Some(object)) = (command, &object) {
        keys::remember(state, key, write, object);
    }
    Ok(Outcome { revision: state.revision, object, repeated: false })
}

/// Refuses what not every controller and agent would read. Whoever proposes asks this before anything is written, because a
/// record that is in the log reaches those too that cannot read it; a state that lags behind refuses more, and never less.
pub fn readable(state: &State, command: &Command) -> Result<(), Rejected> {
    let (needs, level) = (command.level(), state.level());
    if needs <= level {
        return Ok(());
    }
    let message = format!(
        "this needs feature level {needs}, and the cluster is at {level}, which older releases read too: see `dunlin cluster upgrade`"
    );
    Err(Rejected::new(ErrorCode::WrongState, message))
}

fn dispatch(draft: &mut Draft, command: &Command) -> Result<(), Rejected> {
    readable(draft.state, command)?;
    match command {
        Command::Write { write, .. } => dispatch_write(draft, write),
        Command::FoundCluster { uid, name, controllers, level } => {
            cluster::found(draft, *uid, name, controllers, *level)
        }
        Command::SetControllers { controllers } => cluster::set_controllers(draft, controllers),
        Command::RaiseLevel { to } => cluster::raise_level(draft, *to),
        Command::JoinHost { token_sha256, uid, name, labels, ask } => {
            token::join(draft, token_sha256, *uid, name, labels, ask)
        }
        Command::Trust(change) => trust::change(draft, change),
        Command::OpenSession { host, session, agent_version, capabilities } => {
            host::open_session(draft, *host, *session, agent_version, capabilities)
        }
        Command::CloseSession { host, session, message } => {
            host::close_session(draft, *host, *session, message)
        }
        Command::SetCapabilities { host, session, capabilities } => {
            host::set_capabilities(draft, *host, *session, capabilities)
        }
        Command::BindVm { vm, generation, incarnation, host, why } => {
            vm::bind(draft, *vm, *generation, *incarnation, *host, why.as_deref())
        }
        Command::ExplainPending { vm, generation, reason, message } => {
            vm::explain(draft, *vm, *generation, reason, message)
        }
        Command::Observe { vm, host, incarnation, seen } => {
            vm::observe(draft, *vm, *host, *incarnation, seen)
        }
        Command::ForgetVm { vm } => vm::forget(draft, *vm),
        Command::Migrate { migration, event } => migration::step(draft, *migration, event),
        Command::Progress { task, phase, progress_percent, message, drain } => {
            task::progress(draft, *task, *phase, *progress_percent, message, *drain)
        }
        Command::Recommend { uid, name, spec } => recommendation::recommend(draft, *uid, name, spec),
        Command::Expire { recommendation, message } => {
            recommendation::end(draft, *recommendation, RecommendationPhase::Expired, message)
        }
        Command::NoteEffect { migration, effect } => migration::note_effect(draft, *migration, *effect),
        Command::SeedRights => rights::seed(draft),
        Command::NoteUse { token } => rights::note_use(draft, *token),
        Command::Sweep => {
            sweep::sweep(draft);
            Ok(())
        }
    }
}

fn dispatch_write(draft: &mut Draft, write: &Write) -> Result<(), Rejected> {
    match write {
        Write::CreateVm { uid, own_uid, name, labels, spec } => {
            vm::create(draft, *uid, *own_uid, name, labels, spec)
        }
        Write::CreateVms { vms } => vm::create_all(draft, vms),
        Write::UpdateVm { uid, revision, labels, spec } => vm::update(draft, *uid, *revision, labels, spec),
        Write::SetPower { uid, power } => vm::set_power(draft, *uid, *power),
        Write::DeleteVm { uid } => vm::delete(draft, *uid),
        Write::AdoptVm { uid, name, spec, host } => vm::adopt(draft, *uid, name, spec, *host),
        Write::ReleaseVm { uid } => vm::release(draft, *uid),
        Write::UpdateHost { uid, revision, labels, cordoned, rack, zone, taints, resources } => {
            let (rack, zone) = (rack.clone(), zone.clone());
            let (taints, resources) = (taints.clone(), resources.clone());
            let spec = HostSpec { cordoned: *cordoned, rack, zone, taints, resources };
            host::update(draft, *uid, *revision, labels, spec)
        }
        Write::RemoveHost { uid, force } => host::remove(draft, *uid, *force),
        Write::CreateImage { uid, name, labels, spec } => image::create(draft, *uid, name, labels, spec),
        Write::DeleteImage { uid } => image::delete(draft, *uid),
        Write::UpdateCluster { revision, labels, spec } => cluster::update(draft, *revision, labels, spec),
        Write::CreateMigration { uid, name, spec } => migration::create(draft, *uid, name, spec),
        Write::CancelMigration { uid } => migration::cancel(draft, *uid),
        Write::CreateTask { uid, name, spec } => task::create(draft, *uid, name, spec),
        Write::CancelTask { uid } => task::cancel(draft, *uid),
        Write::DecideRecommendation { uid, approve, migration, name } => {
            recommendation::decide(draft, *uid, *approve, *migration, name)
        }
        Write::CreateToken { sha256, role, expires } => token::create(draft, sha256, *role, *expires),
        Write::Rights(write) => rights::write(draft, write),
        Write::UpdateImage { uid, revision, labels, spec } => {
            image::update(draft, *uid, *revision, labels, spec)
        }
        Write::Checked { expect, claim, write, .. } => {
            let inner = |draft: &mut Draft| dispatch_write(draft, write);
            owners::checked(draft, expect.as_ref(), claim.as_ref(), draft.changed_by(write), inner)
        }
    }
}
