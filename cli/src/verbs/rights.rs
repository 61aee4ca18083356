//! Verbs of users, roles, bindings, projects and users' tokens.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use dunlin_model::project::{Project, ProjectSpec, Quota};
use dunlin_model::rights::{Binding, BindingSpec, Role, RoleRule, RoleSpec, User, UserSpec, Verb};
use dunlin_model::{
    Generation, Invalid, Kind, Labels, Metadata, Name, Object, Resource, Revision, Timestamp,
};
use dunlin_proto::v1;
use uuid::Uuid;

use super::{Session, access, host, listing};
use crate::args::{Format, ListArgs, whole};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum UserVerb {
    /// Make a user; the password is asked for, or read from standard input
    Create {
        name: Name,
        #[arg(long, default_value = "")]
        display_name: String,
        /// A group that bindings may name
        #[arg(long = "group")]
        groups: Vec<String>,
        /// He cannot log in, but have tokens
        #[arg(long)]
        no_password: bool,
    },
    /// List users
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one user
    Show { name: String },
    /// Change a password, one's own without a name; ends the user's sessions
    Passwd {
        name: Option<String>,
        /// Take it away: he cannot log in any more
        #[arg(long)]
        none: bool,
    },
    /// Let him do nothing, at once
    Disable { name: String },
    /// Let him do again what is bound to him
    Enable { name: String },
    /// Remove him, his tokens, and his place in bindings
    Delete { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RoleVerb {
    /// Make a role
    Create {
        name: Name,
        /// VERBS:KINDS, as in read,operate:Vm,Task; `any` stands for every verb or kind
        #[arg(long = "allow", value_name = "VERBS:KINDS", required = true)]
        allow: Vec<String>,
    },
    /// List roles
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one role
    Show { name: String },
    /// Remove a role that no binding names
    Delete { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BindingVerb {
    /// Let users or groups do what a role allows, in a project or in the whole fleet
    Create {
        name: Name,
        #[arg(long)]
        role: Name,
        #[arg(long = "user")]
        users: Vec<Name>,
        #[arg(long = "group")]
        groups: Vec<String>,
        /// Only there; the whole fleet when not said
        #[arg(long)]
        project: Option<Name>,
    },
    /// List bindings
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one binding
    Show { name: String },
    /// Take away what it gave
    Delete { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectVerb {
    /// Make a project
    Create {
        name: Name,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Change its quota or description
    Set {
        name: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// List projects, with what each uses of its quota
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one project
    Show { name: String },
    /// Remove a project without VMs
    Delete { name: String },
}

/// Bounds of a project; `none` takes one away.
#[derive(Debug, Args)]
pub(crate) struct QuotaArgs {
    /// VMs, whether they run or not
    #[arg(long)]
    vms: Option<String>,
    /// vCPUs of all its VMs
    #[arg(long)]
    vcpus: Option<String>,
    /// Memory of all its VMs, MiB
    #[arg(long)]
    mem_mib: Option<String>,
    /// Disks made for its VMs, MiB
    #[arg(long)]
    storage_mib: Option<String>,
    #[arg(long)]
    description: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokenVerb {
    /// Mint a token that speaks for a user; it is shown once
    Create {
        name: Name,
        /// For whom; whoever asks, when not said
        #[arg(long)]
        user: Option<Name>,
        /// Allow only what these roles allow
        #[arg(long = "role")]
        roles: Vec<Name>,
        /// Only in this project
        #[arg(long)]
        project: Option<Name>,
        /// Seconds until it expires
        #[arg(long, default_value_t = 2_592_000, allow_negative_numbers = true, value_parser = whole::<u64>("1 to 31622400"))]
        ttl_s: u64,
    },
    /// List tokens and sessions
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Revoke a token, at once
    Delete { name: String },
}

fn unnamed<Id, Spec, Status>(
    name: Name,
    id: fn(Uuid) -> Id,
    spec: Spec,
    status: Status,
) -> Resource<Id, Spec, Status> {
    let metadata = Metadata {
        name,
        uid: id(Uuid::nil()),
        labels: Labels::new(),
        generation: Generation(0),
        revision: Revision(0),
        created: Timestamp(0),
    };
    Resource { metadata, spec, status }
}

async fn create(session: &Session, object: impl Into<Object>) -> Result<Object, Failure> {
    let object = Some(object.into().into());
    let request = v1::CreateRequest { idempotency_key: idempotency_key(), object, dry_run: false };
    Ok(session.fleet.object(async |mut client| client.create(request.clone()).await).await?)
}

async fn delete(session: &Session, kind: Kind, name: &str) -> Result<(), Failure> {
    output::done(session.format, "deleted", &host::delete(session, kind, name, false).await?)
}

pub(crate) async fn user(session: &Session, verb: UserVerb) -> Result<(), Failure> {
    match verb {
        UserVerb::Create { name, display_name, groups, no_password } => {
            let password = if no_password { None } else { Some(access::new_password()?) };
            let groups = groups.into_iter().collect();
            let spec = UserSpec { display_name, groups, ..UserSpec::default() };
            spec.validate()?;
            let user: User = unnamed(name, dunlin_model::UserId, spec, Default::default());
            let made = create(session, user).await?;
            if let Some(password) = password {
                access::set_password(session, made.name().as_str(), password).await?;
            }
            output::done(session.format, "created", &made)
        }
        UserVerb::List(args) => listing::run(session, Kind::User, &args).await,
        UserVerb::Show { name } => host::show(session, Kind::User, &name).await,
        UserVerb::Passwd { name, none } => access::passwd(session, name, none).await,
        UserVerb::Disable { name } => set_disabled(session, &name, true, "disabled").await,
        UserVerb::Enable { name } => set_disabled(session, &name, false, "enabled").await,
        UserVerb::Delete { name } => delete(session, Kind::User, &name).await,
    }
}

async fn set_disabled(session: &Session, name: &str, disabled: bool, what: &str) -> Result<(), Failure> {
    let edit = |object: &mut Object| {
        if let Object::User(user) = object {
            user.spec.disabled = disabled;
        }
    };
    output::done(session.format, what, &host::update(session, Kind::User, name, edit).await?)
}

pub(crate) async fn role(session: &Session, verb: RoleVerb) -> Result<(), Failure> {
    match verb {
        RoleVerb::Create { name, allow } => {
            let rules = allow.iter().map(|text| rule(text)).collect::<Result<_, Invalid>>()?;
            let role: Role = unnamed(name, dunlin_model::RoleId, RoleSpec { rules }, Default::default());
            output::done(session.format, "created", &create(session, role).await?)
        }
        RoleVerb::List(args) => listing::run(session, Kind::Role, &args).await,
        RoleVerb::Show { name } => host::show(session, Kind::Role, &name).await,
        RoleVerb::Delete { name } => delete(session, Kind::Role, &name).await,
    }
}

/// `VERBS:KINDS`.
fn rule(text: &str) -> Result<RoleRule, Invalid> {
    let wrong =
        || Invalid::new("--allow", format!("{text:?} is no rule"), "VERBS:KINDS, as in read,operate:Vm");
    let (verbs, kinds) = text.split_once(':').ok_or_else(wrong)?;
    let verbs = verbs.split(',').map(str::parse).collect::<Result<BTreeSet<Verb>, _>>()?;
    let any_kind = kinds == "any";
    let kinds = match any_kind {
        true => BTreeSet::new(),
        false => kinds.split(',').map(str::parse).collect::<Result<BTreeSet<Kind>, _>>()?,
    };
    Ok(RoleRule { verbs, kinds, any_kind })
}

pub(crate) async fn binding(session: &Session, verb: BindingVerb) -> Result<(), Failure> {
    match verb {
        BindingVerb::Create { name, role, users, groups, project } => {
            if users.is_empty() && groups.is_empty() {
                return Err(Invalid::new("binding create", "nobody is named", "--user or --group").into());
            }
            let (users, groups) = (users.into_iter().collect(), groups.into_iter().collect());
            let spec = BindingSpec { role, users, groups, project };
            let binding: Binding = unnamed(name, dunlin_model::BindingId, spec, Default::default());
            output::done(session.format, "created", &create(session, binding).await?)
        }
        BindingVerb::List(args) => listing::run(session, Kind::Binding, &args).await,
        BindingVerb::Show { name } => host::show(session, Kind::Binding, &name).await,
        BindingVerb::Delete { name } => delete(session, Kind::Binding, &name).await,
    }
}

impl QuotaArgs {
    /// What is to change, once everything typed has been read.
    fn change(self) -> Result<impl Fn(&mut ProjectSpec), Invalid> {
        let bound = |flag: &str, text: Option<&String>| match text.map(String::as_str) {
            None => Ok(None),
            Some("none") => Ok(Some(None)),
            Some(text) => match text.parse::<u64>() {
                Ok(most) => Ok(Some(Some(most))),
                Err(_) => Err(Invalid::new(flag, format!("{text:?} is no number"), "0 and up, or none")),
            },
        };
        let vms = bound("--vms", self.vms.as_ref())?;
        let vcpus = bound("--vcpus", self.vcpus.as_ref())?;
        let mem_mib = bound("--mem-mib", self.mem_mib.as_ref())?;
        let storage_mib = bound("--storage-mib", self.storage_mib.as_ref())?;
        Ok(move |spec: &mut ProjectSpec| {
            let Quota { vms: a, vcpus: b, mem_mib: c, storage_mib: d } = &mut spec.quota;
            for (field, given) in [(a, vms), (b, vcpus), (c, mem_mib), (d, storage_mib)] {
                super::vm_flags::set(field, given);
            }
            super::vm_flags::set(&mut spec.description, self.description.clone());
        })
    }
}

pub(crate) async fn project(session: &Session, verb: ProjectVerb) -> Result<(), Failure> {
    match verb {
        ProjectVerb::Create { name, quota } => {
            let mut spec = ProjectSpec::default();
            quota.change()?(&mut spec);
            let project: Project = unnamed(name, dunlin_model::ProjectId, spec, Default::default());
            output::done(session.format, "created", &create(session, project).await?)
        }
        ProjectVerb::Set { name, quota } => {
            let change = quota.change()?;
            let edit = |object: &mut Object| {
                if let Object::Project(project) = object {
                    change(&mut project.spec);
                }
            };
            output::done(session.format, "changed", &host::update(session, Kind::Project, &name, edit).await?)
        }
        ProjectVerb::List(args) => listing::run(session, Kind::Project, &args).await,
        ProjectVerb::Show { name } => host::show(session, Kind::Project, &name).await,
        ProjectVerb::Delete { name } => delete(session, Kind::Project, &name).await,
    }
}

pub(crate) async fn api_token(session: &Session, verb: ApiTokenVerb) -> Result<(), Failure> {
    match verb {
        ApiTokenVerb::Create { name, user, roles, project, ttl_s } => {
            let user = match user {
                Some(user) => user.to_string(),
                None => access::me(session).await?,
            };
            let request = v1::CreateApiTokenRequest {
                name: name.to_string(),
                user,
                roles: roles.iter().map(ToString::to_string).collect(),
                project: project.map(|project| project.to_string()),
                ttl_s,
            };
            let made = session
                .fleet
                .access(async |mut client| client.create_api_token(request.clone()).await)
                .await?;
            match session.format {
                Format::Table | Format::Wide => output::line(&made.token),
                format => output::value(format, &serde_json::json!({"token": made.token, "name": name})),
            }
        }
        ApiTokenVerb::List(args) => listing::run(session, Kind::ApiToken, &args).await,
        ApiTokenVerb::Delete { name } => delete(session, Kind::ApiToken, &name).await,
    }
}
