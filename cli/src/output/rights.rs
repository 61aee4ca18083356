//! Tables of users, roles, bindings, projects and tokens.

use std::collections::BTreeSet;
use std::fmt::Display;

use dunlin_model::Object;
use dunlin_model::project::{Project, Quota};
use dunlin_model::rights::{ApiToken, RoleRule};

use super::Surroundings;
use super::table::{Cells, age};

/// The column heads of a kind, those of the wide table apart.
pub(super) fn header(object: &Object) -> (&'static [&'static str], &'static [&'static str]) {
    match object {
        Object::User(_) => (&["NAME", "DISPLAY NAME", "GROUPS", "STATE", "AGE"], &["VOUCHED BY", "UID"]),
        Object::Role(_) => (&["NAME", "BUILT IN", "ALLOWS"], &["AGE"]),
        Object::Binding(_) => (&["NAME", "ROLE", "WHO", "WHERE"], &["AGE"]),
        Object::Project(_) => {
            (&["NAME", "VMS", "VCPUS", "MEMORY MIB", "STORAGE MIB", "AGE"], &["DESCRIPTION"])
        }
        _ => (&["NAME", "USER", "ROLES", "WHERE", "EXPIRES"], &["SESSION", "LAST USED", "AGE"]),
    }
}

/// One row.
pub(super) fn row(object: &Object, around: &Surroundings) -> Cells {
    let everywhere = || "the fleet".to_owned();
    match object {
        Object::User(user) => {
            let state = match (user.spec.disabled, user.status.password_set, user.spec.vouched_by.is_empty())
            {
                (true, _, _) => "disabled",
                (false, _, false) => "vouched for",
                (false, Some(_), true) => "password",
                (false, None, true) => "no password",
            };
            let name = user.metadata.name.to_string();
            let display = user.spec.display_name.clone();
            let groups = joined(&user.spec.groups);
            let more = vec![user.spec.vouched_by.clone(), user.metadata.uid.to_string()];
            (vec![name, display, groups, state.to_owned(), age(user.metadata.created, around)], more)
        }
        Object::Role(role) => {
            let built_in = if role.status.built_in { "yes" } else { "no" };
            let allows: Vec<String> = role.spec.rules.iter().map(rule).collect();
            let narrow = vec![role.metadata.name.to_string(), built_in.to_owned(), allows.join("; ")];
            (narrow, vec![age(role.metadata.created, around)])
        }
        Object::Binding(binding) => {
            let spec = &binding.spec;
            let users = spec.users.iter().map(ToString::to_string);
            let who: Vec<String> =
                users.chain(spec.groups.iter().map(|group| format!("group {group}"))).collect();
            let project = spec.project.as_ref().map_or_else(everywhere, |name| format!("project {name}"));
            let narrow =
                vec![binding.metadata.name.to_string(), spec.role.to_string(), who.join(","), project];
            (narrow, vec![age(binding.metadata.created, around)])
        }
        Object::Project(project) => project_row(project, around),
        Object::ApiToken(token) => token_row(token, around),
        _ => (Vec::new(), Vec::new()),
    }
}

fn project_row(project: &Project, around: &Surroundings) -> Cells {
    let (used, Quota { vms, vcpus, mem_mib, storage_mib }) = (project.status.used, project.spec.quota);
    let of = |used: u64, most: Option<u64>| match most {
        Some(most) => format!("{used}/{most}"),
        None => used.to_string(),
    };
    let narrow = vec![
        project.metadata.name.to_string(),
        of(used.vms, vms),
        of(used.vcpus, vcpus),
        of(used.mem_mib, mem_mib),
        of(used.storage_mib, storage_mib),
        age(project.metadata.created, around),
    ];
    (narrow, vec![project.spec.description.clone()])
}

fn token_row(token: &ApiToken, around: &Surroundings) -> Cells {
    let spec = &token.spec;
    let roles = if spec.roles.is_empty() { "all of the user's".to_owned() } else { joined(&spec.roles) };
    let project = spec.project.as_ref();
    let project = project.map_or_else(|| "the fleet".to_owned(), |name| format!("project {name}"));
    let expires = if spec.expires <= around.now { "expired".to_owned() } else { spec.expires.to_string() };
    let narrow = vec![token.metadata.name.to_string(), spec.user.to_string(), roles, project, expires];
    let session = if spec.session { "yes" } else { "no" };
    let used = token.status.last_used.map_or_else(|| "-".to_owned(), |at| at.to_string());
    (narrow, vec![session.to_owned(), used, age(token.metadata.created, around)])
}

fn rule(rule: &RoleRule) -> String {
    let kinds = if rule.any_kind { "any kind".to_owned() } else { joined(&rule.kinds) };
    format!("{} {kinds}", joined(&rule.verbs))
}

fn joined<T: Display>(set: &BTreeSet<T>) -> String {
    set.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
