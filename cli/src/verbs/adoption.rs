//! Guests that somebody else started: listed, adopted, handed back.

use dunlin_model::Invalid;
use dunlin_model::observed::Unmanaged;
use dunlin_model::vm::VmPhase;
use dunlin_proto::v1;

use super::Session;
use crate::args::{Format, VmAdoptArgs, WaitArgs};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::output::table::columns;
use crate::{output, wait};

const TAKEN_OVER: &[VmPhase] = &[VmPhase::Running, VmPhase::Paused];

pub(crate) async fn list(session: &Session) -> Result<(), Failure> {
    let asked = v1::ListUnmanagedRequest {};
    let told = session.fleet.call(async |mut client| client.list_unmanaged(asked).await).await?.vms;
    let all: Result<Vec<Unmanaged>, Invalid> = told.into_iter().map(TryInto::try_into).collect();
    let all = all?;
    match session.format {
        Format::Json | Format::Yaml => output::value(session.format, &all),
        Format::Table | Format::Wide if all.is_empty() => output::line("none"),
        Format::Table | Format::Wide => {
            let rows = all.iter().map(row);
            output::line(&columns(
                &["NAME", "HOST", "DRIVER", "RUNS", "CPUS", "MEMORY", "LEFT OUT", "UID"],
                rows,
            ))
        }
    }
}

fn row(Unmanaged { host_name, guest, .. }: &Unmanaged) -> Vec<String> {
    let size = guest.spec.as_ref().map(|spec| (spec.cpus.to_string(), format!("{} MiB", spec.mem_mib)));
    let (cpus, memory) = size.unwrap_or_else(|| ("-".to_owned(), "-".to_owned()));
    let left_out =
        if guest.problem.is_empty() { guest.left_out.len().to_string() } else { guest.problem.clone() };
    vec![
        guest.name.clone(),
        host_name.to_string(),
        guest.driver.to_string(),
        if guest.running { "yes" } else { "no" }.to_owned(),
        cpus,
        memory,
        left_out,
        guest.vm.to_string(),
    ]
}

pub(crate) async fn adopt(session: &Session, args: VmAdoptArgs) -> Result<(), Failure> {
    let VmAdoptArgs { name, host, rename, project, wait } = args;
    let idempotency_key = idempotency_key();
    let asked = v1::AdoptRequest { idempotency_key, name, host, rename, project, dry_run: false };
    let vm = session.fleet.object(async |mut client| client.adopt(asked.clone()).await).await?;
    if !wait.wait {
        return output::done(session.format, "will be adopted", &vm);
    }
    let vm = wait::until(&session.fleet, wait, vm, wait::vm_phase(TAKEN_OVER)).await?;
    output::done(session.format, "adopted", &vm)
}

pub(crate) async fn release(session: &Session, name: &str, wait: WaitArgs) -> Result<(), Failure> {
    let (idempotency_key, vm) = (idempotency_key(), name.to_owned());
    let asked = v1::ReleaseRequest { idempotency_key, vm, dry_run: false };
    let vm = session.fleet.object(async |mut client| client.release(asked.clone()).await).await?;
    if !wait.wait {
        return output::done(session.format, "will be released", &vm);
    }
    let vm = wait::until(&session.fleet, wait, vm, wait::gone).await?;
    output::done(session.format, "released", &vm)
}
