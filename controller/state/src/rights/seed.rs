//! What every cluster has from its first command on: three roles that nobody may change, and the project `default`.
//!
//! Their uids are the same everywhere. A store of a release that knew no rights gets them from its first new leader.

use std::collections::BTreeSet;

use dunlin_model::project::{Project, ProjectSpec, ProjectStatus, default_project};
use dunlin_model::rights::{Role, RoleRule, RoleSpec, RoleStatus, Verb};
use dunlin_model::{Kind, Labels, Name, ProjectId, RoleId};
use uuid::Uuid;

use crate::Rejected;
use crate::draft::Draft;

/// Upper half of the uids of what every cluster has.
const SPACE: u64 = 0x6475_6e6c_696e_4000;

/// The roles every cluster has, the weakest first.
pub const BUILT_IN_ROLES: [&str; 3] = ["viewer", "operator", "admin"];

/// Kinds that show the fleet at work; who may do what in it is for administrators.
const FLEET: [Kind; 9] = [
    Kind::Cluster,
    Kind::Host,
    Kind::Vm,
    Kind::Image,
    Kind::Migration,
    Kind::Task,
    Kind::Event,
    Kind::Recommendation,
    Kind::Project,
];

fn rule(verbs: &[Verb], kinds: &[Kind]) -> RoleRule {
    let kinds: BTreeSet<Kind> = kinds.iter().copied().collect();
    RoleRule { verbs: verbs.iter().copied().collect(), any_kind: kinds.is_empty(), kinds }
}

fn rules(role: &str) -> Vec<RoleRule> {
    use Verb::{Console, Create, Delete, Operate, Read, Update};
    let read = rule(&[Read], &FLEET);
    match role {
        "viewer" => vec![read],
        "operator" => vec![
            read,
            rule(&[Create, Update, Delete, Operate, Console], &[Kind::Vm]),
            rule(&[Create, Update, Delete], &[Kind::Image]),
            rule(&[Update, Operate], &[Kind::Host]),
        ],
        _ => vec![rule(&[Verb::Any], &[])],
    }
}

/// Makes what is missing.
pub(crate) fn seed(draft: &mut Draft) -> Result<(), Rejected> {
    for (number, role) in (1..).zip(BUILT_IN_ROLES) {
        let name: Name = role.parse().expect("a word is a name");
        if draft.state.role_named(&name).is_some() {
            continue;
        }
        let uid = RoleId(Uuid::from_u64_pair(SPACE, number));
        let metadata = draft.card::<Role, _>(uid, uid.0, &name, &Labels::new())?;
        let spec = RoleSpec { rules: rules(role) };
        draft.put(Role { metadata, spec, status: RoleStatus { built_in: true } });
    }
    let name = default_project();
    if draft.state.project_named(&name).is_none() {
        let uid = ProjectId(Uuid::from_u64_pair(SPACE, 0x100));
        let metadata = draft.card::<Project, _>(uid, uid.0, &name, &Labels::new())?;
        let spec = ProjectSpec {
            description: "what belongs to no other project".to_owned(),
            ..ProjectSpec::default()
        };
        draft.put(Project { metadata, spec, status: ProjectStatus::default() });
    }
    Ok(())
}
