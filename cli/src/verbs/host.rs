//! Verbs of hosts.

use dunlin_model::host::Host;
use dunlin_model::task::Act;
use dunlin_model::{ErrorCode, Kind, Object, Role};
use dunlin_proto::{Fault, v1};

use super::{Session, authority, driver, host_set, listing};
use crate::args::{HostVerb, WaitArgs};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::{output, wait};

/// How often an update is tried again after somebody else wrote in between.
const STALE_TRIES_MAX: usize = 5;

pub(crate) async fn run(session: &Session, verb: HostVerb) -> Result<(), Failure> {
    match verb {
        HostVerb::List(args) => listing::run(session, Kind::Host, &args).await,
        HostVerb::Show { name } => driver::host(session, &session.fleet.get(Kind::Host, &name).await?),
        HostVerb::Cordon { name } => cordon(session, &name, true, "cordoned").await,
        HostVerb::Uncordon { name } => cordon(session, &name, false, "uncordoned").await,
        HostVerb::Set(args) => host_set::run(session, args).await,
        HostVerb::Drain { names, dry_run: true, .. } => drain_plan(session, names).await,
        HostVerb::Drain { names, wait, .. } => drain(session, names, wait).await,
        HostVerb::Revoke { name } => authority::revoke(session, Role::Host, name).await,
        HostVerb::Remove { name, force } => {
            let gone = delete(session, Kind::Host, &name, force).await?;
            output::done(session.format, "removed", &gone)
        }
    }
}

async fn drain_plan(session: &Session, hosts: Vec<String>) -> Result<(), Failure> {
    let request = v1::PlanDrainRequest { hosts };
    let plan = session.fleet.advise(async |mut client| client.plan_drain(request.clone()).await).await?;
    output::advice::drain(session.format, &plan.try_into()?)
}

/// All are begun before any is waited for: what leaves one must not go to another.
async fn drain(session: &Session, names: Vec<String>, wait: WaitArgs) -> Result<(), Failure> {
    let mut tasks = Vec::new();
    for name in names {
        tasks.push(begin_task(session, Kind::Host, name, Act::Drain).await?);
    }
    for task in tasks {
        follow_task(session, task, Act::Drain.as_str(), wait).await?;
    }
    Ok(())
}

/// Prints one object of any kind.
pub(crate) async fn show(session: &Session, kind: Kind, name: &str) -> Result<(), Failure> {
    output::object(session.format, &session.fleet.get(kind, name).await?)
}

async fn cordon(session: &Session, name: &str, cordoned: bool, what: &str) -> Result<(), Failure> {
    let edit = |object: &mut Object| {
        if let Object::Host(Host { spec, .. }) = object {
            spec.cordoned = cordoned;
        }
    };
    output::done(session.format, what, &update(session, Kind::Host, name, edit).await?)
}

/// Reads, edits and writes back, again when somebody wrote in between.
pub(crate) async fn update(
    session: &Session,
    kind: Kind,
    name: &str,
    edit: impl Fn(&mut Object),
) -> Result<Object, Failure> {
    let mut tries = 0;
    loop {
        let mut object = session.fleet.get(kind, name).await?;
        edit(&mut object);
        let request = v1::UpdateRequest {
            idempotency_key: idempotency_key(),
            object: Some(object.into()),
            dry_run: false,
        };
        match session.fleet.object(async |mut client| client.update(request.clone()).await).await {
            Err(Fault { code: ErrorCode::StaleRevision, .. }) if tries < STALE_TRIES_MAX => tries += 1,
            other => return Ok(other?),
        }
    }
}

/// Deletes one object of any kind; returns it as it last was.
pub(crate) async fn delete(
    session: &Session,
    kind: Kind,
    name: &str,
    force: bool,
) -> Result<Object, Failure> {
    let request = v1::DeleteRequest {
        idempotency_key: idempotency_key(),
        kind: v1::Kind::from(kind).into(),
        name: name.to_owned(),
        force,
        ..v1::DeleteRequest::default()
    };
    Ok(session.fleet.object(async |mut client| client.delete(request.clone()).await).await?)
}

/// Begins a task, and waits for it when asked to.
pub(crate) async fn start_task(
    session: &Session,
    kind: Kind,
    name: String,
    act: Act,
    wait: WaitArgs,
) -> Result<(), Failure> {
    let what = act.as_str();
    let task = begin_task(session, kind, name, act).await?;
    follow_task(session, task, what, wait).await
}

async fn begin_task(session: &Session, kind: Kind, name: String, act: Act) -> Result<Object, Failure> {
    let request = v1::StartTaskRequest {
        idempotency_key: idempotency_key(),
        kind: v1::Kind::from(kind).into(),
        name,
        act: Some(act.into()),
        dry_run: false,
    };
    Ok(session.fleet.object(async |mut client| client.start_task(request.clone()).await).await?)
}

async fn follow_task(session: &Session, task: Object, what: &str, wait: WaitArgs) -> Result<(), Failure> {
    if !wait.wait {
        return output::done(session.format, &format!("({what}) begun"), &task);
    }
    let task = wait::until(&session.fleet, wait, task, wait::task_done).await?;
    output::done(session.format, &format!("({what}) done"), &task)
}
