//! What must hold of every state. Run after every apply in tests and in simulation.

use dunlin_model::host::Host;
use dunlin_model::migration::{Migration, MigrationPhase};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{Identity, Kind, Object};

use crate::State;
use crate::draft::is_active;
use crate::reserve::{hosts_of, recount};
use crate::rules::Marks;

/// Checks everything. The error says what is broken, of which object.
pub fn check(state: &State) -> Result<(), String> {
    indexes(state)?;
    check_trust(state)?;
    state.hosts().try_for_each(|host| check_host(state, host))?;
    state.vms().try_for_each(|vm| {
        check_vm(state, vm)
            .map_err(|broken| format!("VM {} ({}): {broken}", vm.metadata.name, vm.status.phase))
    })?;
    state.migrations().try_for_each(|m| {
        check_migration(state, m)
            .map_err(|broken| format!("migration {} ({}): {broken}", m.metadata.name, m.status.phase))
    })?;
    state.owners.iter().try_for_each(|(key, own)| {
        let sound = state.objects.contains_key(key)
            && !own.is_empty()
            && own.values().all(|fields| !fields.is_empty());
        ensure(sound, || format!("{} {} has owners and is not there, or they own nothing", key.0, key.1))
    })?;
    state.tasks().try_for_each(|task| {
        let ordered = state.order_of(task.metadata.uid).is_some();
        let over = task.status.phase.is_terminal();
        ensure(!(ordered && over), || format!("task {} is over and still ordered", task.metadata.name))
    })
}

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

fn indexes(state: &State) -> Result<(), String> {
    ensure(state.names.len() == state.objects.len(), || "names and objects differ in number".to_owned())?;
    let (mut by_host, mut moves, mut active) =
        (imbl::OrdSet::new(), imbl::OrdSet::new(), imbl::OrdSet::new());
    let mut marks = Marks::default();
    for (key, object) in state.objects.iter() {
        marks.follow(None, Some(object));
        let named = state.names.get(&(key.0, object.name().clone()));
        ensure(named == Some(&key.1), || format!("{} is not found by its name", object.name()))?;
        ensure(object.revision() <= state.revision(), || format!("{} is from the future", object.name()))?;
        for host in hosts_of(object) {
            match &**object {
                Object::Vm(vm) => drop(by_host.insert((host, vm.metadata.uid))),
                Object::Migration(m) => drop(moves.insert((host, m.metadata.uid))),
                _ => {}
            }
        }
        if is_active(object) {
            active.insert(*key);
        }
    }
    ensure(marks == state.marks, || "the index of VMs by label is wrong".to_owned())?;
    ensure(by_host == *state.by_host, || "the index of VMs by host is wrong".to_owned())?;
    ensure(moves == *state.moves, || "the index of migrations by host is wrong".to_owned())?;
    ensure(active == *state.active, || "the index of what is under way is wrong".to_owned())?;
    ensure(crate::quota::recount(state) == *state.usage, || "what projects use is miscounted".to_owned())?;
    check_rights(state)?;
    let events = state.objects_of(Kind::Event).count();
    ensure(events == state.event_count, || "events are miscounted".to_owned())
}

/// What bindings and tokens name exists, and no hash is left behind by the user or token it belonged to.
fn check_rights(state: &State) -> Result<(), String> {
    for binding in state.bindings() {
        let (name, spec) = (&binding.metadata.name, &binding.spec);
        ensure(state.role_named(&spec.role).is_some(), || format!("binding {name} names no role"))?;
        let lost = spec.users.iter().find(|user| state.user_named(user).is_none());
        ensure(lost.is_none(), || format!("binding {name} names {lost:?}, who is gone"))?;
        let project = spec.project.as_ref();
        ensure(project.is_none_or(|project| state.project_named(project).is_some()), || {
            format!("binding {name} names no project")
        })?;
    }
    for token in state.api_tokens() {
        let name = &token.metadata.name;
        ensure(state.user_named(&token.spec.user).is_some(), || format!("token {name} is nobody's"))?;
        let hashes = state.bearers.values().filter(|uid| **uid == token.metadata.uid).count();
        ensure(hashes == 1, || format!("token {name} has {hashes} hashes"))?;
    }
    let tokens = state.api_tokens().count();
    ensure(state.bearers.len() == tokens, || "a token's hash is left behind".to_owned())?;
    for user in state.passwords.keys() {
        let known = state.user(*user).is_some_and(|user| user.status.password_set.is_some());
        ensure(known, || format!("the password of {user} is left behind"))?;
    }
    Ok(())
}

fn check_host(state: &State, host: &Host) -> Result<(), String> {
    let name = &host.metadata.name;
    let (is, sum) = (host.status.reserved, recount(state, host.metadata.uid));
    ensure(is == sum, || format!("host {name} has {is:?} reserved, its claims sum up to {sum:?}"))?;
    let holder = state.trust.holders.get(&Identity::Host(host.metadata.uid));
    ensure(holder.is_some_and(|holder| !holder.issued.is_empty()), || {
        format!("host {name} never had a certificate")
    })
}

fn check_trust(state: &State) -> Result<(), String> {
    let trust = &state.trust;
    ensure(trust.authorities.len() <= 2, || "more than two authorities are believed".to_owned())?;
    let mut serials = std::collections::BTreeSet::new();
    for (identity, holder) in &trust.holders {
        for issued in &holder.issued {
            ensure(serials.insert(issued.serial), || format!("{identity} shares a serial number"))?;
            ensure(issued.serial <= trust.counters.serial, || {
                format!("{identity} has a certificate of the future")
            })?;
        }
    }
    Ok(())
}

fn check_vm(state: &State, vm: &Vm) -> Result<(), String> {
    let status = &vm.status;
    let fence = state.fence(vm.metadata.uid);
    ensure(status.incarnation <= fence.highest, || "its incarnation was never given out".to_owned())?;
    if status.phase.holds_reservation() {
        let host = status.host.and_then(|host| state.host(host));
        ensure(host.is_some(), || "it should have a host that exists".to_owned())?;
    } else if status.phase != VmPhase::Deleting {
        ensure(status.host.is_none(), || "it should have no host".to_owned())?;
    }
    if matches!(status.phase, VmPhase::Running | VmPhase::Paused) {
        ensure(status.saved.is_none(), || "it runs and is saved".to_owned())?;
    }
    if status.phase == VmPhase::Saved {
        ensure(status.saved.is_some(), || "nothing was saved of it".to_owned())?;
    }
    if matches!(status.phase, VmPhase::Stopped | VmPhase::Saved) {
        ensure(vm.spec.power == Power::Stopped, || "it should be Pending".to_owned())?;
    }
    let says_down = status.reason == crate::vm::HOST_DOWN;
    ensure(says_down == crate::vm::down(state, vm).is_some(), || {
        "it hides that its host is down".to_owned()
    })?;
    if let Some(id) = status.migration {
        let migration = state.migration(id).ok_or("its migration does not exist")?;
        ensure(migration.spec.vm == vm.metadata.uid, || "its migration is another VM's".to_owned())?;
        ensure(!migration.status.phase.is_terminal(), || "its migration is over".to_owned())?;
    }
    if let Some(task) = status.task {
        ensure(state.order_of(task).is_some(), || "its save task is over".to_owned())?;
    }
    Ok(())
}

fn check_migration(state: &State, migration: &Migration) -> Result<(), String> {
    let status = &migration.status;
    let over = status.phase.is_terminal();
    ensure(status.outcome.is_some() == over, || "an outcome belongs to the end".to_owned())?;
    ensure(status.history.last().map(|(phase, _)| *phase) == Some(status.phase), || {
        "its history lies".to_owned()
    })?;
    if over {
        return Ok(());
    }
    let vm = state.vm(migration.spec.vm).ok_or("its VM does not exist")?;
    ensure(vm.status.migration == Some(migration.metadata.uid), || "its VM does not know it".to_owned())?;
    if status.phase == MigrationPhase::Switching && vm.status.phase != VmPhase::Deleting {
        ensure(vm.status.host == status.to, || "handed over, and the VM is elsewhere".to_owned())?;
        ensure(vm.status.incarnation == status.incarnation, || {
            "handed over under another number".to_owned()
        })?;
    }
    let bound = !matches!(status.phase, MigrationPhase::Planned | MigrationPhase::Aborting);
    ensure(!bound || status.to.is_some(), || "it has no destination".to_owned())
}
