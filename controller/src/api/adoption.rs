//! Guests that nobody manages: shown, and found for whoever adopts one.
//!
//! What runs on the hosts is in the leader's memory only, so both are asked of the leader.

use dunlin_model::observed::{Unmanaged, UnmanagedVm};
use dunlin_model::vm::{Adoption, VmPhase};
use dunlin_model::{ErrorCode, Invalid, Name};
use dunlin_proto::{Fault, v1};
use dunlin_state::{State, Write};

use crate::mint;
use crate::reconcile::{Observed, Sight};

/// Every one of them, by host and name. A guest that was adopted a moment ago is not shown any more.
pub(super) fn list(state: &State, observed: &Observed) -> v1::ListUnmanagedResponse {
    let mut vms: Vec<Unmanaged> = all(state, observed).collect();
    vms.sort_by(|a, b| (&a.host_name, &a.guest.name).cmp(&(&b.host_name, &b.guest.name)));
    v1::ListUnmanagedResponse { vms: vms.into_iter().map(Into::into).collect() }
}

fn all<'a>(state: &'a State, observed: &'a Observed) -> impl Iterator<Item = Unmanaged> + 'a {
    state.hosts().flat_map(move |host| {
        let (uid, name) = (host.metadata.uid, &host.metadata.name);
        let there: &[UnmanagedVm] = match observed.sight(state, uid) {
            Sight::Seen(view) => &view.unmanaged,
            Sight::Unseen | Sight::Removed => &[],
        };
        let free = there.iter().filter(move |guest| {
            state.vm(guest.vm).is_none_or(|vm| vm.status.host.is_some_and(|on| on != uid))
        });
        free.map(move |guest| Unmanaged { host: uid, host_name: name.clone(), guest: guest.clone() })
    })
}

/// The write that adopts what is asked for. What was adopted already is adopted again as it is, which changes nothing.
pub(super) fn write(state: &State, observed: &Observed, asked: &v1::AdoptRequest) -> Result<Write, Fault> {
    let write = match chosen(state, observed, asked)? {
        Some(found) => adopted(found, asked)?,
        None => again(state, asked)?,
    };
    // The same request finds other things once it was carried out.
    let asked =
        mint::sha256_hex(&format!("adopt {} {} {} {}", asked.name, asked.host, asked.rename, asked.project));
    Ok(Write::Checked { expect: None, claim: None, asked, write: Box::new(write) })
}

fn chosen(state: &State, observed: &Observed, asked: &v1::AdoptRequest) -> Result<Option<Unmanaged>, Fault> {
    let meant = |found: &Unmanaged| {
        let named = found.guest.name == asked.name || found.guest.vm.to_string() == asked.name;
        named && (asked.host.is_empty() || found.host_name.as_str() == asked.host)
    };
    let mut found: Vec<Unmanaged> = all(state, observed).filter(meant).collect();
    if found.len() > 1 {
        let hosts: Vec<_> = found.iter().map(|found| found.host_name.to_string()).collect();
        let problem =
            format!("is not said, and {} of them have a guest called {:?}", found.len(), asked.name);
        return Err(Invalid::new("host", problem, hosts.join(" or ")).into());
    }
    Ok(found.pop())
}

fn adopted(found: Unmanaged, asked: &v1::AdoptRequest) -> Result<Write, Fault> {
    let Unmanaged { host, host_name, guest } = found;
    let wrong = |why: String| {
        Fault::new(ErrorCode::WrongState, format!("guest {:?} on host {host_name} {why}", guest.name))
    };
    if !guest.running {
        return Err(wrong("does not run; only what runs is adopted".to_owned()));
    }
    let Some(mut spec) = guest.spec.clone() else {
        return Err(wrong(format!("cannot be adopted: {}", guest.problem)));
    };
    if !asked.project.is_empty() {
        spec.project = name("project", &asked.project)?;
    }
    let called = if asked.rename.is_empty() { &guest.name } else { &asked.rename };
    Ok(Write::AdoptVm { uid: guest.vm, name: name("rename", called)?, spec, host })
}

fn name(field: &str, text: &str) -> Result<Name, Invalid> {
    text.parse().map_err(|refusal: Invalid| Invalid { field: field.to_owned(), ..refusal })
}

/// It may have been adopted by an earlier call of the same words.
fn again(state: &State, asked: &v1::AdoptRequest) -> Result<Write, Fault> {
    let called = if asked.rename.is_empty() { &asked.name } else { &asked.rename };
    let same = state.vms().find(|vm| {
        let named = vm.metadata.name.as_str() == called || vm.metadata.uid.to_string() == asked.name;
        let adopted = matches!(vm.status.adoption, Some(Adoption::Asked | Adoption::Done));
        named && adopted && vm.status.phase != VmPhase::Deleting
    });
    let there = same.and_then(|vm| Some((vm, vm.status.host.or(vm.status.last_host)?)));
    let Some((vm, host)) = there else {
        let on = if asked.host.is_empty() { "any host" } else { &asked.host };
        let message = format!(
            "no guest called {:?} that nobody manages was seen on {on}; `dunlin vm list --unmanaged` shows them",
            asked.name
        );
        return Err(Fault::new(ErrorCode::NotFound, message));
    };
    Ok(Write::AdoptVm { uid: vm.metadata.uid, name: vm.metadata.name.clone(), spec: vm.spec.clone(), host })
}
