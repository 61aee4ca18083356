//! How many more VMs of a flavour fit, and which hosts may fail.

use dunlin_model::advice::{Capacity, HOSTS_MAX, HostRoom};
use dunlin_model::vm::Vm;
use dunlin_model::{HostId, Name, Revision, VmId};
use dunlin_scheduler::admit::{Admission, Answer, Proof, admit};
use dunlin_scheduler::snapshot::VmEntry;
use dunlin_scheduler::{HostIdx, Request, Snapshot, filter, score};
use uuid::Uuid;

use super::Scene;
use super::facts::count;
use super::plans::misfit;

/// VMs counted at most: whoever has room for more need not ask.
const COUNT_MAX: u64 = 1_000_000;

/// How many more VMs like this one could be started now. With rules between them, one order of starting them is counted.
pub(crate) fn capacity(scene: &Scene<'_>, flavour: &Vm, failures: u32) -> Capacity {
    let mut snapshot = scene.mirror();
    let admission = admit(&snapshot, failures);
    let hosts: Vec<HostIdx> = snapshot.hosts().map(|(at, _)| at).collect();
    let mut next = 0;
    let mut rooms = Vec::new();
    for at in hosts {
        let free = snapshot.room(at).free;
        let (fits, limit) = fill(&mut snapshot, at, flavour, &mut next);
        rooms.push(HostRoom {
            host: snapshot.host(at).name.clone(),
            fits,
            limit,
            cpus_free: free.cpu_milli / 1_000,
            mem_free_mib: free.mem_mib,
        });
    }
    rooms.sort_by(|a, b| b.fits.cmp(&a.fits).then(a.host.cmp(&b.host)));
    rooms.truncate(HOSTS_MAX);
    let name = |host: HostId| scene.state.host(host).map(|host| host.metadata.name.clone());
    let gap = admission.gaps.first();
    let misfits = gap.into_iter().flat_map(|gap| &gap.misfits);
    Capacity {
        revision: Revision(snapshot.revision),
        cpus: flavour.spec.cpus,
        mem_mib: flavour.spec.mem_mib,
        fits: next,
        hosts: rooms,
        failures,
        survives: admission.answer == Answer::Yes,
        worst: gap.map_or(Vec::new(), |gap| gap.hosts.iter().filter_map(|host| name(*host)).collect()),
        misfits: misfits.filter_map(|found| Some(misfit(found, name(found.from)?))).collect(),
        verdict: verdict(&admission, name),
    }
}

fn verdict(admission: &Admission, name: impl Fn(HostId) -> Option<Name>) -> String {
    let any = match admission.failures {
        0 => return String::new(),
        1 => "any one host".to_owned(),
        more => format!("any {more} hosts"),
    };
    let how = match admission.proof {
        Proof::Exact => "every case was tried",
        Proof::Slots => "proven by counting slots",
    };
    match admission.answer {
        Answer::Yes => format!("{any} may fail: every VM finds a place elsewhere ({how})"),
        Answer::No => {
            let gap = admission.gaps.first();
            let lost = gap.into_iter().flat_map(|gap| &gap.hosts).filter_map(|host| name(*host));
            let lost: Vec<String> = lost.map(|name| name.to_string()).collect();
            let vms = count(gap.map_or(0, |gap| gap.misfits.len() as u64), "VM");
            let (hosts, without) = (count(admission.failures.into(), "host"), lost.join(" and "));
            format!("{hosts} may not fail: without {without}, {vms} would find no place ({how})")
        }
        Answer::Unknown => format!("whether {any} may fail was not shown"),
    }
}

/// Puts VMs of the flavour on one host until it refuses: how many, and what ended first.
fn fill(snapshot: &mut Snapshot, at: HostIdx, flavour: &Vm, next: &mut u64) -> (u64, String) {
    let mut fits = 0;
    while *next < COUNT_MAX {
        let entry =
            VmEntry { uid: VmId(Uuid::from_u128(u128::from(*next) + 1)), ..VmEntry::from_model(flavour) };
        let vm = snapshot.add_vm(&entry);
        let request = Request::start(snapshot, vm);
        let refused = filter::refuse(snapshot, &request, at);
        let seat = score::seat(snapshot, request.profile, at);
        let (None, Some(seat)) = (refused, seat) else {
            snapshot.remove_vm(vm);
            return (fits, refused.map_or(String::new(), |reason| format!("{reason:?}")));
        };
        snapshot.put(vm, seat);
        fits += 1;
        *next += 1;
    }
    (fits, String::new())
}
