//! Where an object belongs, and who sees it.

use dunlin_model::event::About;
use dunlin_model::rights::Verb;
use dunlin_model::{Kind, MigrationId, Object, TaskId, VmId};

use super::{Grants, Scope};
use crate::State;

impl State {
    /// Where somebody must be allowed to read, to see that object. What a VM led to belongs where the VM does; when
    /// that is gone, to the whole fleet.
    #[must_use]
    pub fn scope_of<'a>(&'a self, object: &'a Object) -> Scope<'a> {
        match object {
            Object::Vm(vm) => Scope::Project(&vm.spec.project),
            Object::Migration(migration) => self.scope_of_vm(migration.spec.vm),
            Object::Recommendation(found) => self.scope_of_vm(found.spec.vm),
            Object::Task(task) if task.spec.kind == Kind::Vm => self.scope_of_vm(VmId(task.spec.uid)),
            Object::Event(event) => self.scope_about(&event.spec.about),
            Object::Project(project) => Scope::Project(&project.metadata.name),
            Object::Binding(binding) => binding.spec.project.as_ref().map_or(Scope::Fleet, Scope::Project),
            Object::Cluster(_) | Object::Image(_) | Object::Role(_) => Scope::Anywhere,
            Object::Task(_) | Object::Host(_) | Object::User(_) | Object::ApiToken(_) => Scope::Fleet,
        }
    }

    /// Where a VM belongs.
    #[must_use]
    pub fn scope_of_vm(&self, vm: VmId) -> Scope<'_> {
        self.vm(vm).map_or(Scope::Fleet, |vm| Scope::Project(&vm.spec.project))
    }

    fn scope_about(&self, about: &About) -> Scope<'_> {
        match about.kind {
            Kind::Vm => self.scope_of_vm(VmId(about.uid)),
            Kind::Migration => {
                let migration = self.migration(MigrationId(about.uid));
                migration.map_or(Scope::Fleet, |migration| self.scope_of_vm(migration.spec.vm))
            }
            Kind::Task => match self.task(TaskId(about.uid)) {
                Some(task) if task.spec.kind == Kind::Vm => self.scope_of_vm(VmId(task.spec.uid)),
                _ => Scope::Fleet,
            },
            _ => Scope::Fleet,
        }
    }
}

impl Grants {
    /// May it be seen? Everybody sees himself and his own tokens.
    #[must_use]
    pub fn sees(&self, state: &State, object: &Object) -> bool {
        let mine = match (&self.me, object) {
            (Some((me, _, _)), Object::User(user)) => user.metadata.uid == *me,
            (Some((_, name, _)), Object::ApiToken(token)) => token.spec.user == *name,
            _ => false,
        };
        mine || self.sees_all(object.kind()) || self.may(Verb::Read, object.kind(), state.scope_of(object))
    }

    /// May every object of that kind be seen?
    #[must_use]
    pub fn sees_all(&self, kind: Kind) -> bool {
        self.may(Verb::Read, kind, Scope::Fleet)
    }

    /// May any object of that kind be seen, were there one? Everybody may look for himself and his own tokens.
    #[must_use]
    pub fn sees_any(&self, kind: Kind) -> bool {
        let mine = self.me.is_some() && matches!(kind, Kind::User | Kind::ApiToken);
        mine || self.may(Verb::Read, kind, widest(kind))
    }
}

/// Where somebody must at least be allowed to read, to see any object of that kind: some belong to no project.
#[must_use]
pub const fn widest(kind: Kind) -> Scope<'static> {
    match kind {
        Kind::Host | Kind::User | Kind::ApiToken => Scope::Fleet,
        _ => Scope::Anywhere,
    }
}
