//! Roles, bindings and projects.

use dunlin_model::project::{Project, ProjectSpec, ProjectStatus, is_default};
use dunlin_model::rights::{Binding, BindingSpec, BindingStatus, Role, RoleSpec, RoleStatus, User};
use dunlin_model::{
    BindingId, ErrorCode, Invalid, Kind, Labels, Name, Object, ProjectId, Resource, Revision, RoleId,
};
use uuid::Uuid;

use super::RightsSpec;
use crate::draft::{Draft, refuse_stale};
use crate::{Rejected, State};

/// Roles, bindings or projects of a cluster: every request of a user looks through his bindings.
const EACH_MAX: usize = 1_000;

pub(super) fn create(
    draft: &mut Draft,
    uid: Uuid,
    name: &Name,
    labels: &Labels,
    spec: &RightsSpec,
) -> Result<(), Rejected> {
    let kind = spec.kind();
    check(draft.state, spec)?;
    if draft.state.objects_of(kind).count() >= EACH_MAX {
        let noun = kind.to_string().to_ascii_lowercase();
        return Err(Rejected::new(ErrorCode::WrongState, format!("there are {EACH_MAX} {noun}s already")));
    }
    match spec {
        RightsSpec::Role(spec) => {
            let metadata = draft.card::<Role, _>(RoleId(uid), uid, name, labels)?;
            draft.put(Role { metadata, spec: spec.clone(), status: RoleStatus::default() });
        }
        RightsSpec::Binding(spec) => {
            let metadata = draft.card::<Binding, _>(BindingId(uid), uid, name, labels)?;
            draft.put(Binding { metadata, spec: spec.clone(), status: BindingStatus::default() });
        }
        RightsSpec::Project(spec) => {
            let metadata = draft.card::<Project, _>(ProjectId(uid), uid, name, labels)?;
            draft.put(Project { metadata, spec: spec.clone(), status: ProjectStatus::default() });
        }
        RightsSpec::User(_) | RightsSpec::ApiToken(_) => return Err(elsewhere()),
    }
    Ok(())
}

fn check(state: &State, spec: &RightsSpec) -> Result<(), Rejected> {
    match spec {
        RightsSpec::Role(spec) => spec.validate()?,
        RightsSpec::Project(spec) => spec.validate()?,
        RightsSpec::Binding(spec) => {
            spec.validate()?;
            state.find::<Role>(&spec.role)?;
            spec.users.iter().try_for_each(|user| state.find::<User>(user).map(drop))?;
            spec.project.iter().try_for_each(|project| state.find::<Project>(project).map(drop))?;
        }
        RightsSpec::User(_) | RightsSpec::ApiToken(_) => return Err(elsewhere()),
    }
    Ok(())
}

/// Tokens are made and deleted, never changed; users are written next door.
fn elsewhere() -> Rejected {
    Invalid::new("kind", "cannot be updated", "User, Role, Binding or Project").into()
}

pub(super) fn update(
    draft: &mut Draft,
    uid: Uuid,
    read: Revision,
    labels: &Labels,
    spec: &RightsSpec,
) -> Result<(), Rejected> {
    check(draft.state, spec)?;
    match spec {
        RightsSpec::Role(spec) => {
            let role = draft.take::<Role>(RoleId(uid))?;
            refuse_built_in(&role)?;
            refuse_stale(role.clone(), read)?;
            draft.put(changed::<_, RoleSpec, _>(role, labels, spec));
        }
        RightsSpec::Binding(spec) => {
            let binding = draft.take::<Binding>(BindingId(uid))?;
            refuse_stale(binding.clone(), read)?;
            draft.put(changed::<_, BindingSpec, _>(binding, labels, spec));
        }
        RightsSpec::Project(spec) => {
            let project = draft.take::<Project>(ProjectId(uid))?;
            refuse_stale(project.clone(), read)?;
            draft.put(changed::<_, ProjectSpec, _>(project, labels, spec));
        }
        RightsSpec::User(_) | RightsSpec::ApiToken(_) => return Err(elsewhere()),
    }
    Ok(())
}

fn changed<Id, Spec: Clone + PartialEq, Status>(
    mut object: Resource<Id, Spec, Status>,
    labels: &Labels,
    spec: &Spec,
) -> Resource<Id, Spec, Status> {
    object.metadata.labels.clone_from(labels);
    if object.spec != *spec {
        object.spec = spec.clone();
        object.metadata.generation = object.metadata.generation.next();
    }
    object
}

fn refuse_built_in(role: &Role) -> Result<(), Rejected> {
    if !role.status.built_in {
        return Ok(());
    }
    let message = format!("the role {} came with the cluster; make another", role.metadata.name);
    Err(Rejected::new(ErrorCode::WrongState, message))
}

pub(super) fn delete(draft: &mut Draft, kind: Kind, uid: Uuid) -> Result<(), Rejected> {
    match kind {
        Kind::Role => {
            let role = draft.take::<Role>(RoleId(uid))?;
            refuse_built_in(&role)?;
            refuse_named(draft.state, &Object::Role(role))?;
        }
        Kind::Binding => drop(draft.take::<Binding>(BindingId(uid))?),
        Kind::Project => {
            let project = draft.take::<Project>(ProjectId(uid))?;
            if is_default(&project.metadata.name) {
                let message = "the project default is where a VM belongs when nobody says";
                return Err(Rejected::new(ErrorCode::WrongState, message));
            }
            refuse_named(draft.state, &Object::Project(project))?;
        }
        other => {
            let problem = format!("a {other} is no part of the rights");
            return Err(Invalid::new("kind", problem, "User, Role, Binding, Project or ApiToken").into());
        }
    }
    draft.remove(kind, uid);
    draft.answer(kind, uid);
    Ok(())
}

/// Refuses the end of what a binding, a token or a VM names.
fn refuse_named(state: &State, object: &Object) -> Result<(), Rejected> {
    let name = object.name();
    let role = object.kind() == Kind::Role;
    let binding = state.bindings().find(|binding| match role {
        true => binding.spec.role == *name,
        false => binding.spec.project.as_ref() == Some(name),
    });
    let token = state.api_tokens().find(|token| match role {
        true => token.spec.roles.contains(name),
        false => token.spec.project.as_ref() == Some(name),
    });
    let used = if role { 0 } else { state.used(name).vms };
    let by = binding.map(|binding| format!("the binding {}", binding.metadata.name));
    let by = by.or_else(|| token.map(|token| format!("the token {}", token.metadata.name)));
    let by = by.or_else(|| (used > 0).then(|| format!("{used} VMs")));
    let Some(by) = by else { return Ok(()) };
    let noun = object.kind().to_string().to_ascii_lowercase();
    Err(Rejected::new(ErrorCode::InUse, format!("the {noun} {name} is still needed by {by}")))
}
