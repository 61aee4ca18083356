//! What each project has, counted as its VMs come, change and go, and the bound on it.
//!
//! Kept beside the project objects: a VM that is created is no write of its project, so two users of one project do not
//! stand in each other's way, and an administrator's change of the quota is never stale for the sake of a new VM.

use dunlin_model::project::{Project, Used, is_default};
use dunlin_model::vm::{DiskSource, Vm, VmSpec};
use dunlin_model::{ErrorCode, Name, Object};
use imbl::OrdMap;

use crate::{Rejected, State};

const MIB: u64 = 1 << 20;

/// What a VM of this spec takes. An image cannot change, nor be deleted, while a VM names it: the sum stays right.
pub(crate) fn taken(state: &State, spec: &VmSpec) -> Used {
    let image = |name: &Name| state.image_named(name).map_or(0, |image| image.spec.size_bytes.div_ceil(MIB));
    let storage = spec.disks.iter().map(|disk| match &disk.source {
        DiskSource::EmptyMib(size_mib) => *size_mib,
        DiskSource::Image(name) => image(name),
        DiskSource::Path(_) => 0,
    });
    let storage_mib = storage.fold(0, u64::saturating_add);
    Used { vms: 1, vcpus: spec.cpus.into(), mem_mib: spec.mem_mib, storage_mib }
}

fn plus(a: Used, b: Used) -> Used {
    Used {
        vms: a.vms + b.vms,
        vcpus: a.vcpus + b.vcpus,
        mem_mib: a.mem_mib + b.mem_mib,
        storage_mib: a.storage_mib.saturating_add(b.storage_mib),
    }
}

fn minus(a: Used, b: Used) -> Used {
    Used {
        vms: a.vms.saturating_sub(b.vms),
        vcpus: a.vcpus.saturating_sub(b.vcpus),
        mem_mib: a.mem_mib.saturating_sub(b.mem_mib),
        storage_mib: a.storage_mib.saturating_sub(b.storage_mib),
    }
}

fn spec(object: Option<&Object>) -> Option<&VmSpec> {
    if let Some(Object::Vm(vm)) = object { Some(&vm.spec) } else { None }
}

/// Keeps the count when an object changes. Most changes of a VM are of its status and count nothing.
pub(crate) fn follow(state: &mut State, old: Option<&Object>, new: Option<&Object>) {
    if let (Some(Object::Vm(old)), Some(Object::Vm(new))) = (old, new)
        && same_size(&old.spec, &new.spec)
    {
        return;
    }
    if let Some(old) = spec(old) {
        let left = minus(state.used(&old.project), taken(state, old));
        if left == Used::default() {
            state.usage.remove(&old.project);
        } else {
            state.usage.insert(old.project.clone(), left);
        }
    }
    if let Some(new) = spec(new) {
        let sum = plus(state.used(&new.project), taken(state, new));
        state.usage.insert(new.project.clone(), sum);
    }
}

fn same_size(a: &VmSpec, b: &VmSpec) -> bool {
    a.project == b.project && a.cpus == b.cpus && a.mem_mib == b.mem_mib && a.disks == b.disks
}

/// Counts afresh.
pub(crate) fn recount(state: &State) -> OrdMap<Name, Used> {
    let mut usage: OrdMap<Name, Used> = OrdMap::new();
    for vm in state.vms() {
        let sum = usage.get(&vm.spec.project).copied().unwrap_or_default();
        usage.insert(vm.spec.project.clone(), plus(sum, taken(state, &vm.spec)));
    }
    usage
}

/// Sets what was never counted: a state that was just read.
pub(crate) fn count_anew(state: &mut State) {
    for (project, used) in recount(state) {
        state.usage.insert(project, used);
    }
}

/// Refuses a VM that would take its project over a bound, `before` being the VM as it is now. One that takes no more of
/// what is over the bound already is not refused.
pub(crate) fn admit(state: &State, before: Option<&Vm>, spec: &VmSpec) -> Result<(), Rejected> {
    if before.is_some_and(|before| same_size(&before.spec, spec)) {
        return Ok(());
    }
    if is_default(&spec.project) && state.project_named(&spec.project).is_none() {
        // A log of a release that knew no projects.
        return Ok(());
    }
    let project = state.find::<Project>(&spec.project)?;
    let now = state.used(&spec.project);
    let others = match before.filter(|before| before.spec.project == spec.project) {
        Some(before) => minus(now, taken(state, &before.spec)),
        None => now,
    };
    let after = plus(others, taken(state, spec));
    let bounds = [
        ("vms", now.vms, after.vms, project.spec.quota.vms),
        ("vcpus", now.vcpus, after.vcpus, project.spec.quota.vcpus),
        ("mem_mib", now.mem_mib, after.mem_mib, project.spec.quota.mem_mib),
        ("storage_mib", now.storage_mib, after.storage_mib, project.spec.quota.storage_mib),
    ];
    for (what, now, after, most) in bounds {
        if let Some(most) = most.filter(|most| after > *most && after > now) {
            let message = format!(
                "project {} may have {most} {what}, has {now}, and would have {after}",
                project.metadata.name
            );
            return Err(Rejected::new(ErrorCode::QuotaExceeded, message));
        }
    }
    Ok(())
}

impl State {
    /// What the VMs of a project take together, whether they run or not.
    #[must_use]
    pub fn used(&self, project: &Name) -> Used {
        self.usage.get(project).copied().unwrap_or_default()
    }
}
