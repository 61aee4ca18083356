//! What a write needs of its caller. One table over every write: a new one does not compile without its line.

use dunlin_model::rights::{BindingSpec, RoleRule, User, Verb};
use dunlin_model::vm::Vm;
use dunlin_model::{ApiTokenId, BindingId, ErrorCode, Kind, MigrationId, Name, Object, Role, UserId, VmId};
use uuid::Uuid;

use super::{Grants, RightsSpec, RightsWrite, Scope};
use crate::command::{NewVm, Write};
use crate::{Rejected, State};

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need<'a> {
    /// To do what.
    pub verb: Verb,
    /// To which kind.
    pub kind: Kind,
    /// Where.
    pub scope: Scope<'a>,
}

/// What a write is, for whoever judges it and whoever writes it down.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The verb and kind it is mostly about, and where.
    pub main: Need<'a>,
    /// Needed besides.
    pub more: Vec<Need<'a>>,
    /// The name of the object it is about.
    pub name: String,
    /// The object it is about, when it exists.
    pub object: Option<&'a Object>,
    /// Only somebody who may do all this himself may give it away.
    gives: Vec<(RoleRule, Scope<'a>)>,
    /// This user may do it without any right, by a token that is not narrowed.
    own: Option<UserId>,
}

impl<'a> Asked<'a> {
    fn new(verb: Verb, kind: Kind, scope: Scope<'a>, name: &dyn std::fmt::Display) -> Self {
        let main = Need { verb, kind, scope };
        Self { main, more: Vec::new(), name: name.to_string(), object: None, gives: Vec::new(), own: None }
    }

    fn about(verb: Verb, state: &'a State, kind: Kind, uid: Uuid) -> Self {
        match state.object(kind, uid) {
            Some(object) => {
                let asked = Self::new(verb, kind, state.scope_of(object), object.name());
                Self { object: Some(object), ..asked }
            }
            // It is gone for good: `apply` will say so, and nothing can come to harm.
            None => Self::new(verb, kind, Scope::Anywhere, &uid),
        }
    }

    fn fleet(verb: Verb, state: &'a State, kind: Kind, uid: Uuid) -> Self {
        let about = Self::about(verb, state, kind, uid);
        Self { main: Need { scope: Scope::Fleet, ..about.main }, ..about }
    }

    /// Acting on a VM, by way of its migration, task or recommendation.
    fn by_way_of(state: &'a State, kind: Kind, uid: Uuid, vm: Option<VmId>) -> Self {
        let about = Self::about(Verb::Operate, state, kind, uid);
        let scope = vm.map_or(Scope::Anywhere, |vm| state.scope_of_vm(vm));
        Self { main: Need { verb: Verb::Operate, kind: Kind::Vm, scope }, ..about }
    }

    /// Refuses a write that its caller may not make. Whatever he cannot see is, to him, not there.
    pub fn allow(&self, grants: &Grants, state: &State) -> Result<(), Rejected> {
        if self.own.is_some_and(|owner| grants.is_wholly(owner)) {
            return Ok(());
        }
        let Need { verb, kind, scope } = self.main;
        if !grants.may(verb, kind, scope)
            && let Some(hidden) = self.object.filter(|object| !grants.sees(state, object))
            && grants.sees_any(hidden.kind())
        {
            let noun = hidden.kind().to_string().to_ascii_lowercase();
            let message =
                format!("no {noun} is called {:?}, or it is not for {} to see", self.name, who(grants));
            return Err(Rejected::new(ErrorCode::NotFound, message));
        }
        grants.check(verb, kind, scope)?;
        for Need { verb, kind, scope } in &self.more {
            grants.check(*verb, *kind, *scope)?;
        }
        for (rule, scope) in &self.gives {
            if !grants.covers(rule, *scope) {
                let message = format!(
                    "{} may not: it would give away rights {scope} that he has not got himself",
                    who(grants)
                );
                return Err(Rejected::new(ErrorCode::Forbidden, message));
            }
        }
        Ok(())
    }

    /// The project it is about, when it is about one.
    #[must_use]
    pub fn project(&self) -> Option<&Name> {
        match self.main.scope {
            Scope::Project(name) => Some(name),
            Scope::Fleet | Scope::Anywhere => None,
        }
    }
}

fn everything<'a>() -> (RoleRule, Scope<'a>) {
    let verbs = [Verb::Any].into();
    (RoleRule { verbs, kinds: std::collections::BTreeSet::new(), any_kind: true }, Scope::Fleet)
}

fn who(grants: &Grants) -> String {
    grants.user().map_or_else(|| "the caller".to_owned(), ToString::to_string)
}

impl State {
    /// What a write needs of its caller.
    #[must_use]
    pub fn asked<'a>(&'a self, write: &'a Write) -> Asked<'a> {
        match write {
            Write::CreateVm { name, spec, .. } => {
                Asked::new(Verb::Create, Kind::Vm, Scope::Project(&spec.project), name)
            }
            Write::CreateVms { vms } => {
                let need = |vm: &'a NewVm| Need {
                    verb: Verb::Create,
                    kind: Kind::Vm,
                    scope: Scope::Project(&vm.spec.project),
                };
                let main = vms.first().map_or(Scope::Fleet, |vm| Scope::Project(&vm.spec.project));
                let asked = Asked::new(Verb::Create, Kind::Vm, main, &format_args!("{} VMs", vms.len()));
                Asked { more: vms.iter().skip(1).map(need).collect(), ..asked }
            }
            Write::UpdateVm { uid, spec, .. } => {
                let asked = Asked::about(Verb::Update, self, Kind::Vm, uid.0);
                let moves = self.vm(*uid).is_some_and(|vm: &Vm| vm.spec.project != spec.project);
                let (verb, kind, scope) = (Verb::Create, Kind::Vm, Scope::Project(&spec.project));
                Asked { more: moves.then_some(Need { verb, kind, scope }).into_iter().collect(), ..asked }
            }
            Write::SetPower { uid, .. } => Asked::about(Verb::Operate, self, Kind::Vm, uid.0),
            Write::AdoptVm { name, spec, .. } => {
                let asked = Asked::new(Verb::Create, Kind::Vm, Scope::Project(&spec.project), name);
                // What runs on a host is its keeper's to give.
                let host = Need { verb: Verb::Operate, kind: Kind::Host, scope: Scope::Fleet };
                Asked { more: vec![host], ..asked }
            }
            Write::ReleaseVm { uid } => Asked::about(Verb::Delete, self, Kind::Vm, uid.0),
            Write::DeleteVm { uid } => Asked::about(Verb::Delete, self, Kind::Vm, uid.0),
            Write::UpdateHost { uid, .. } => Asked::about(Verb::Update, self, Kind::Host, uid.0),
            Write::RemoveHost { uid, .. } => Asked::about(Verb::Delete, self, Kind::Host, uid.0),
            Write::CreateImage { name, .. } => Asked::new(Verb::Create, Kind::Image, Scope::Fleet, name),
            Write::DeleteImage { uid } => Asked::fleet(Verb::Delete, self, Kind::Image, uid.0),
            Write::UpdateImage { uid, .. } => Asked::fleet(Verb::Update, self, Kind::Image, uid.0),
            Write::Checked { write, .. } => self.asked(write),
            Write::UpdateCluster { .. } => Asked::new(Verb::Update, Kind::Cluster, Scope::Fleet, &""),
            Write::CreateMigration { spec, .. } => Asked::about(Verb::Operate, self, Kind::Vm, spec.vm.0),
            Write::CancelMigration { uid } => self.cancel_migration(*uid),
            Write::CreateTask { spec, .. } => Asked::about(Verb::Operate, self, spec.kind, spec.uid),
            Write::CancelTask { uid } => match self.task(*uid) {
                Some(task) if task.spec.kind == Kind::Host => {
                    let asked = Asked::about(Verb::Operate, self, Kind::Task, uid.0);
                    Asked { main: Need { kind: Kind::Host, ..asked.main }, ..asked }
                }
                task => {
                    let vm = task.map(|task| VmId(task.spec.uid));
                    Asked::by_way_of(self, Kind::Task, uid.0, vm)
                }
            },
            Write::DecideRecommendation { uid, .. } => {
                let vm = self.recommendation(*uid).map(|found| found.spec.vm);
                Asked::by_way_of(self, Kind::Recommendation, uid.0, vm)
            }
            Write::CreateToken { role, .. } => {
                let asked = Asked::new(
                    Verb::Create,
                    Kind::Host,
                    Scope::Fleet,
                    &format_args!("join token of a {role}"),
                );
                match role {
                    Role::Host => asked,
                    // Whoever is one of these may do anything.
                    Role::Controller | Role::Admin => Asked { gives: vec![everything()], ..asked },
                }
            }
            Write::Rights(write) => self.asked_of_rights(write),
        }
    }

    fn cancel_migration(&self, uid: MigrationId) -> Asked<'_> {
        let vm = self.migration(uid).map(|migration| migration.spec.vm);
        Asked::by_way_of(self, Kind::Migration, uid.0, vm)
    }

    fn asked_of_rights<'a>(&'a self, write: &'a RightsWrite) -> Asked<'a> {
        match write {
            RightsWrite::Create { name, spec, .. } => {
                let scope = match spec {
                    RightsSpec::Binding(spec) => scope_of_binding(spec),
                    _ => Scope::Fleet,
                };
                let asked = Asked::new(Verb::Create, spec.kind(), scope, name);
                let own = match spec {
                    RightsSpec::ApiToken(spec) => self.user_named(&spec.user).map(|user| user.metadata.uid),
                    _ => None,
                };
                Asked { gives: self.given(spec), own, ..asked }
            }
            RightsWrite::Update { uid, spec, .. } => {
                let kind = spec.kind();
                let asked = match kind {
                    Kind::Binding => Asked::about(Verb::Update, self, kind, *uid),
                    _ => Asked::fleet(Verb::Update, self, kind, *uid),
                };
                let there = self.binding(BindingId(*uid)).map(|binding| scope_of_binding(&binding.spec));
                let more = match spec {
                    RightsSpec::Binding(spec) if there != Some(scope_of_binding(spec)) => {
                        vec![Need { verb: Verb::Create, kind, scope: scope_of_binding(spec) }]
                    }
                    _ => Vec::new(),
                };
                Asked { gives: self.given_by_update(*uid, spec), more, ..asked }
            }
            RightsWrite::Delete { kind: Kind::Binding, uid } => {
                Asked::about(Verb::Delete, self, Kind::Binding, *uid)
            }
            RightsWrite::Delete { kind, uid } => {
                let asked = Asked::fleet(Verb::Delete, self, *kind, *uid);
                let token = self.api_token(ApiTokenId(*uid)).filter(|_| *kind == Kind::ApiToken);
                let own = token.and_then(|token| self.user_named(&token.spec.user));
                Asked { own: own.map(|user| user.metadata.uid), ..asked }
            }
            RightsWrite::SetPassword { user, .. } => {
                let asked = Asked::fleet(Verb::Update, self, Kind::User, user.0);
                let gives = self.user(*user).map(|user| self.all_of(user)).unwrap_or_default();
                Asked { gives, own: Some(*user), ..asked }
            }
            RightsWrite::Vouch { name, .. } => Asked::new(Verb::Create, Kind::User, Scope::Fleet, name),
        }
    }

    /// The rights that somebody else gets by it.
    fn given<'a>(&'a self, spec: &'a RightsSpec) -> Vec<(RoleRule, Scope<'a>)> {
        match spec {
            RightsSpec::Role(spec) => spec.rules.iter().map(|rule| (rule.clone(), Scope::Fleet)).collect(),
            RightsSpec::Binding(spec) => {
                let rules = self.role_named(&spec.role).map(|role| role.spec.rules.as_slice());
                let scope = scope_of_binding(spec);
                rules.unwrap_or_default().iter().map(|rule| (rule.clone(), scope)).collect()
            }
            RightsSpec::User(spec) => self.rules_of(|bound| !bound.groups.is_disjoint(&spec.groups)),
            RightsSpec::ApiToken(spec) => {
                self.user_named(&spec.user).map(|user| self.all_of(user)).unwrap_or_default()
            }
            RightsSpec::Project(_) => Vec::new(),
        }
    }

    /// Of a user, only what new groups bring: whoever may disable users need not be mightier than they.
    fn given_by_update<'a>(&'a self, uid: Uuid, spec: &'a RightsSpec) -> Vec<(RoleRule, Scope<'a>)> {
        let RightsSpec::User(new) = spec else { return self.given(spec) };
        let Some(old) = self.user(UserId(uid)) else { return Vec::new() };
        if old.spec.disabled && !new.disabled {
            return self.all_of(old);
        }
        self.rules_of(|bound| {
            bound.groups.iter().any(|g| new.groups.contains(g) && !old.spec.groups.contains(g))
        })
    }

    fn all_of(&self, user: &User) -> Vec<(RoleRule, Scope<'_>)> {
        let name = &user.metadata.name;
        self.rules_of(|bound| bound.users.contains(name) || !bound.groups.is_disjoint(&user.spec.groups))
    }

    fn rules_of(&self, wanted: impl Fn(&BindingSpec) -> bool) -> Vec<(RoleRule, Scope<'_>)> {
        let bound = self.bindings().map(|binding| &binding.spec).filter(|spec| wanted(spec));
        let rules = bound.filter_map(|spec| Some((self.role_named(&spec.role)?, scope_of_binding(spec))));
        rules
            .flat_map(|(role, scope)| role.spec.rules.iter().map(move |rule| (rule.clone(), scope)))
            .collect()
    }
}

fn scope_of_binding(spec: &BindingSpec) -> Scope<'_> {
    spec.project.as_ref().map_or(Scope::Fleet, Scope::Project)
}
