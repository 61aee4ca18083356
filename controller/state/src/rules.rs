//! The rules that keep VMs and hosts apart, checked where they are committed: two planners that looked at different
//! moments cannot break one together.
//!
//! Owns taints and required Apart rules, in both directions. What brings VMs together, and what is only preferred, is
//! the planner's: breaking it hurts nobody, and enforcing it here would forbid moving a group one by one.

use dunlin_model::host::{Host, same_place};
use dunlin_model::vm::{Rule, Scope, Vm};
use dunlin_model::{ErrorCode, HostId, Labels, Object, VmId};
use uuid::Uuid;

use crate::reserve::{migration_holds, vm_holds};
use crate::tracked::{TrackedSet, Undo};
use crate::{Rejected, State};

/// VMs by a label: key, value, VM.
pub(crate) type ByLabel = TrackedSet<(String, String, VmId)>;

/// What is looked up when a VM comes: who carries a label, and who keeps away from one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Marks {
    carried: ByLabel,
    avoided: ByLabel,
}

impl Marks {
    /// What a refused command may have changed.
    pub(crate) fn tracked(&mut self) -> [&mut dyn Undo; 2] {
        [&mut self.carried, &mut self.avoided]
    }

    /// Keeps up with one object's change.
    pub(crate) fn follow(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let labels = |object: Option<&Object>| match object {
            Some(Object::Vm(vm)) => carried(vm),
            _ => Vec::new(),
        };
        let wary = |object: Option<&Object>| match object {
            Some(Object::Vm(vm)) => avoided(vm),
            _ => Vec::new(),
        };
        exchange(&mut self.carried, labels(old), labels(new));
        exchange(&mut self.avoided, wary(old), wary(new));
    }
}

fn exchange(set: &mut ByLabel, old: Vec<(String, String, VmId)>, new: Vec<(String, String, VmId)>) {
    if old == new {
        return;
    }
    for entry in old {
        set.remove(&entry);
    }
    for entry in new {
        set.insert(entry);
    }
}

fn carried(vm: &Vm) -> Vec<(String, String, VmId)> {
    let each = |(key, value): (&String, &String)| (key.clone(), value.clone(), vm.metadata.uid);
    vm.metadata.labels.iter().map(each).collect()
}

/// The labels it keeps away from.
fn avoided(vm: &Vm) -> Vec<(String, String, VmId)> {
    let placement = &vm.spec.placement;
    let rules = placement.rules.iter().filter(|rule| rule.keeps_apart());
    let first = rules.filter_map(|rule| rule.label());
    let each = |(key, value): (&String, &String)| (key.clone(), value.clone(), vm.metadata.uid);
    first.chain(&placement.apart_from).map(each).collect()
}

fn with_label<'a>(
    state: &'a State,
    set: &'a ByLabel,
    key: &str,
    value: &str,
) -> impl Iterator<Item = &'a Vm> {
    let at = |uid| (key.to_owned(), value.to_owned(), VmId(uid));
    set.range(at(Uuid::nil())..=at(Uuid::max())).filter_map(|(_, _, vm)| state.vm(*vm))
}

/// The hosts on which a VM holds a place: its own, and that of a migration under way.
fn places<'a>(state: &'a State, vm: &Vm) -> impl Iterator<Item = &'a Host> + use<'a> {
    let second = state.migration_of(vm).and_then(migration_holds);
    [vm_holds(vm), second].into_iter().flatten().filter_map(|host| state.host(host))
}

/// Refuses when the host's taints, or a rule of this VM or of one that is there, keep it away.
pub(crate) fn check(state: &State, vm: &Vm, host: &Host) -> Result<(), Rejected> {
    let placement = &vm.spec.placement;
    let (name, there) = (&vm.metadata.name, &host.metadata.name);
    let refuse = |why: String| Err(Rejected::new(ErrorCode::WrongState, why));
    if let Some((key, value)) = placement.untolerated(&host.spec.taints) {
        return refuse(format!(
            "host {there} has the taint {key}={value}, which VM {name} does not tolerate"
        ));
    }
    for rule in placement.rules.iter().filter(|rule| rule.keeps_apart()) {
        if let Some(other) = candidates(state, rule, host).find(|other| clashes(state, vm, rule, other, host))
        {
            let other = &other.metadata.name;
            return refuse(format!("VM {name} is to be {rule}, and VM {other} is there, by host {there}"));
        }
    }
    if let Some(other) = on_host(state, host.metadata.uid).find(|other| {
        other.metadata.uid != vm.metadata.uid && any_of(&placement.apart_from, &other.metadata.labels)
    }) {
        let other = &other.metadata.name;
        return refuse(format!("VM {name} is to be apart from VM {other}, which is on host {there}"));
    }
    check_others(state, vm, host)
}

/// The same, by the rules of those that are there already.
fn check_others(state: &State, vm: &Vm, host: &Host) -> Result<(), Rejected> {
    let labels = &vm.metadata.labels;
    for (key, value) in labels {
        for other in with_label(state, &state.marks.avoided, key, value) {
            if other.metadata.uid == vm.metadata.uid {
                continue;
            }
            let theirs = &other.spec.placement;
            let mut rules = theirs.rules.iter().filter(|rule| rule.keeps_apart() && rule.is_about(labels));
            let rule =
                rules.find(|rule| places(state, other).any(|place| same_place(place, host, rule.over)));
            let plain = any_of(&theirs.apart_from, labels)
                && places(state, other).any(|place| same_place(place, host, Scope::Host));
            if rule.is_some() || plain {
                let (name, other, there) = (&vm.metadata.name, &other.metadata.name, &host.metadata.name);
                let message = format!("VM {other} keeps VM {name} away from host {there}");
                return Err(Rejected::new(ErrorCode::WrongState, message));
            }
        }
    }
    Ok(())
}

fn any_of(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().any(|(key, value)| labels.get(key) == Some(value))
}

fn on_host(state: &State, host: HostId) -> impl Iterator<Item = &Vm> {
    let arriving = state.host_migrations(host).filter(move |m| migration_holds(m) == Some(host));
    let arriving = arriving.filter_map(|m| state.vm(m.spec.vm));
    state.host_vms(host).filter(move |vm| vm_holds(vm) == Some(host)).chain(arriving)
}

/// VMs that a rule may be about, the fewest that are cheaply known.
fn candidates<'a>(state: &'a State, rule: &'a Rule, host: &Host) -> Box<dyn Iterator<Item = &'a Vm> + 'a> {
    match (rule.over, rule.label()) {
        (Scope::Host, _) | (_, None) => Box::new(on_host(state, host.metadata.uid)),
        (_, Some((key, value))) => Box::new(with_label(state, &state.marks.carried, key, value)),
    }
}

fn clashes(state: &State, vm: &Vm, rule: &Rule, other: &Vm, host: &Host) -> bool {
    other.metadata.uid != vm.metadata.uid
        && rule.is_about(&other.metadata.labels)
        && places(state, other).any(|place| same_place(place, host, rule.over))
}
