//! Verbs of VMs.

use dunlin_model::migration::{Migration, MigrationCause, MigrationLimits, MigrationSpec, MigrationStatus};
use dunlin_model::task::Act;
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{
    Generation, Invalid, Kind, Labels, Metadata, MigrationId, Name, Object, Resource, Revision, Timestamp,
};
use dunlin_proto::v1;

use super::{Session, adoption, console, host, listing, vm_create, vm_set};
use crate::args::{Format, VmActArgs, VmMigrateArgs, VmVerb};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::{output, wait};

const SAVED: &[VmPhase] = &[VmPhase::Saved];
const RUNNING: &[VmPhase] = &[VmPhase::Running];
const PAUSED: &[VmPhase] = &[VmPhase::Paused];
const STOPPED: &[VmPhase] = &[VmPhase::Stopped];

pub(crate) async fn run(session: &Session, verb: VmVerb) -> Result<(), Failure> {
    match verb {
        VmVerb::Create(args) => vm_create::run(session, *args).await,
        VmVerb::List { list, unmanaged: false } => listing::run(session, Kind::Vm, &list).await,
        VmVerb::List { unmanaged: true, .. } => adoption::list(session).await,
        VmVerb::Adopt(args) => adoption::adopt(session, args).await,
        VmVerb::Release(args) => {
            each(session, &args.names, async |name| adoption::release(session, name, args.wait).await).await
        }
        VmVerb::Show { name, watch: false } => host::show(session, Kind::Vm, &name).await,
        VmVerb::Show { name, watch: true } => follow(session, &name).await,
        VmVerb::Start(args) => power(session, &args, Power::Running, RUNNING, "started").await,
        VmVerb::Restore(args) => restore(session, &args).await,
        VmVerb::Destroy(args) => power(session, &args, Power::Stopped, STOPPED, "powered off").await,
        VmVerb::Pause(args) => power(session, &args, Power::Paused, PAUSED, "paused").await,
        VmVerb::Resume(args) => power(session, &args, Power::Running, RUNNING, "resumed").await,
        VmVerb::Shutdown { act: args, timeout_s } => {
            act(session, &args, &Act::Shutdown { timeout_s }, STOPPED).await
        }
        VmVerb::Reboot { act: args, timeout_s } => {
            act(session, &args, &Act::Reboot { timeout_s }, RUNNING).await
        }
        VmVerb::Reset(args) => act(session, &args, &Act::Reset, RUNNING).await,
        VmVerb::Save(args) => act(session, &args, &Act::Save, SAVED).await,
        VmVerb::Set(args) => vm_set::run(session, args).await,
        VmVerb::Migrate(args) => migrate(session, args).await,
        VmVerb::Delete(args) => delete(session, &args).await,
        VmVerb::Console { name } => console::interactive(session, name).await,
        VmVerb::Logs { name, follow } => console::log(session, name, follow).await,
        VmVerb::Xml { name } => {
            let vm = fetch(session, &name).await?;
            let text = dunlin_drivers::domain_xml::write(&vm)
                .map_err(|e| Invalid::new(name, e.to_string(), "a VM that domain XML can say"))?;
            output::line(&text)
        }
    }
}

/// One VM by name.
pub(crate) async fn fetch(session: &Session, name: &str) -> Result<Vm, Failure> {
    match session.fleet.get(Kind::Vm, name).await? {
        Object::Vm(vm) => Ok(vm),
        other => Err(Failure::Local(format!("the fleet answered with a {}", other.kind()))),
    }
}

async fn follow(session: &Session, name: &str) -> Result<(), Failure> {
    let first = session.fleet.get(Kind::Vm, name).await?;
    output::object(session.format, &first)?;
    let mut watch = session.fleet.watch(&[Kind::Vm], first.revision(), name).await?;
    loop {
        let change = watch.next().await?;
        if session.format != Format::Json {
            output::line("---")?;
        }
        output::object(session.format, &change.object)?;
        if change.deleted {
            return Ok(());
        }
    }
}

async fn set_power(session: &Session, name: &str, power: Power) -> Result<Object, Failure> {
    let request = v1::SetPowerRequest {
        idempotency_key: idempotency_key(),
        vm: name.to_owned(),
        power: v1::Power::from(power).into(),
        ..v1::SetPowerRequest::default()
    };
    Ok(session.fleet.object(async |mut client| client.set_power(request.clone()).await).await?)
}

/// Does it to each, whatever becomes of the others. Of several failures the last one is the command's own.
async fn each(
    session: &Session,
    names: &[String],
    act: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut result = Ok(());
    for name in names {
        if let Err(failure) = act(name).await
            && let Err(earlier) = std::mem::replace(&mut result, Err(failure))
        {
            output::failed(session.format, &earlier);
        }
    }
    result
}

async fn power(
    session: &Session,
    args: &VmActArgs,
    power: Power,
    wanted: &'static [VmPhase],
    what: &str,
) -> Result<(), Failure> {
    each(session, &args.names, async |name| {
        let vm = set_power(session, name, power).await?;
        if !args.wait.wait {
            return output::done(session.format, &format!("will be {what}"), &vm);
        }
        let vm = wait::until(&session.fleet, args.wait, vm, wait::vm_phase(wanted)).await?;
        output::done(session.format, what, &vm)
    })
    .await
}

/// As start, but only for a VM that has saved memory: starting afresh instead would lose what the user asked for.
async fn restore(session: &Session, args: &VmActArgs) -> Result<(), Failure> {
    for name in &args.names {
        if fetch(session, name).await?.status.saved.is_none() {
            let code = dunlin_model::ErrorCode::WrongState;
            return Err(
                dunlin_proto::Fault::new(code, format!("vm {name} has no saved memory to restore")).into()
            );
        }
    }
    power(session, args, Power::Running, RUNNING, "restored").await
}

async fn act(
    session: &Session,
    args: &VmActArgs,
    act: &Act,
    wanted: &'static [VmPhase],
) -> Result<(), Failure> {
    each(session, &args.names, async |name| {
        host::start_task(session, Kind::Vm, name.to_owned(), act.clone(), args.wait).await?;
        if args.wait.wait {
            // The task is over once its host said so; the VM's own phase follows it in the log.
            let vm = session.fleet.get(Kind::Vm, name).await?;
            wait::until(&session.fleet, args.wait, vm, wait::vm_phase(wanted)).await?;
        }
        Ok(())
    })
    .await
}

async fn delete(session: &Session, args: &VmActArgs) -> Result<(), Failure> {
    each(session, &args.names, async |name| {
        let vm = host::delete(session, Kind::Vm, name, false).await?;
        if !args.wait.wait {
            return output::done(session.format, "will be deleted", &vm);
        }
        let vm = wait::until(&session.fleet, args.wait, vm, wait::gone).await?;
        output::done(session.format, "deleted", &vm)
    })
    .await
}

async fn migrate(session: &Session, args: VmMigrateArgs) -> Result<(), Failure> {
    let vm = fetch(session, &args.name).await?;
    let limits = MigrationLimits {
        downtime_ms: args.downtime_ms,
        bandwidth_mib_s: args.bandwidth_mib_s,
        timeout_s: args.timeout_s,
    };
    limits.validate()?;
    let uid = uuid::Uuid::new_v4();
    let tail = uid.simple().to_string();
    let stem: String = args.name.chars().take(dunlin_model::meta::NAME_MAX - 9).collect();
    let name: Name = format!("{stem}-{}", &tail[..8]).parse()?;
    let spec = MigrationSpec {
        vm: vm.metadata.uid,
        vm_name: vm.metadata.name,
        to: args.to,
        cause: MigrationCause::User,
        limits,
        grounds: None,
    };
    let metadata = Metadata {
        name,
        uid: MigrationId(uid),
        labels: Labels::new(),
        generation: Generation(0),
        revision: Revision(0),
        created: Timestamp(0),
    };
    let migration: Migration = Resource { metadata, spec, status: MigrationStatus::default() };
    let request = v1::CreateRequest {
        idempotency_key: idempotency_key(),
        object: Some(Object::from(migration).into()),
        dry_run: false,
    };
    let made = session.fleet.object(async |mut client| client.create(request.clone()).await).await?;
    if !args.wait.wait {
        return output::done(session.format, "begun", &made);
    }
    let ended = wait::until(&session.fleet, args.wait, made, wait::migration_done).await?;
    let Object::Migration(Migration { ref spec, ref status, .. }) = ended else {
        return Err(Failure::Local("the fleet answered with another kind".into()));
    };
    let figures = status.figures.unwrap_or_default();
    let to = status.to_name.as_ref().map_or_else(|| "its destination".to_owned(), ToString::to_string);
    let what = format!(
        "done: {} runs on {to}; stood still {} ms of {} ms",
        spec.vm_name, figures.downtime_ms, figures.total_ms
    );
    output::done(session.format, &what, &ended)
}
