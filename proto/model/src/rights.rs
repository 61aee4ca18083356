//! People, and what they may do: users, roles, bindings and API tokens.
//!
//! ```text
//! User --(by name, or by a group he is in)-- Binding --> Role: rules of verbs x kinds
//!   |                                           `------> a project, or the whole fleet
//! ApiToken: speaks for its user, narrowed to some roles and a project
//! ```
//! Nothing secret stands in these objects: the hashes of passwords and tokens lie beside them in the state, and leave the
//! controllers never.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::in_range;
use crate::{ApiTokenId, BindingId, Invalid, Kind, Name, Resource, RoleId, Timestamp, UserId};

/// Longest display name or group, bytes.
pub const WORDS_MAX: u64 = 253;
/// Most groups of a user, subjects of a binding, or roles of a token; an identity provider may send many.
pub const SET_MAX: u64 = 256;
/// Most rules of a role: every kind with verbs of its own, twice.
pub const RULES_MAX: u64 = 32;

/// One person, or one program.
pub type User = Resource<UserId, UserSpec, UserStatus>;
/// What somebody may do.
pub type Role = Resource<RoleId, RoleSpec, RoleStatus>;
/// Who may do it, and where.
pub type Binding = Resource<BindingId, BindingSpec, BindingStatus>;
/// A token that speaks for a user. The token itself is shown once.
pub type ApiToken = Resource<ApiTokenId, ApiTokenSpec, ApiTokenStatus>;

/// What may be done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Get, list, watch, explain.
    Read,
    /// Make one. Of a Host: mint the token with which its agent joins.
    Create,
    /// Change its spec or labels.
    Update,
    /// Remove it.
    Delete,
    /// Act on it: power, migrations and tasks of a Vm; drains of a Host.
    Operate,
    /// Talk to a Vm's console, and read what was said there.
    Console,
    /// Read who did what; goes with the Cluster.
    Audit,
    /// Every one of them, and those to come.
    Any,
}

impl Verb {
    /// Every verb that can be needed; [`Verb::Any`] is only granted.
    pub const NEEDED: [Self; 7] =
        [Self::Read, Self::Create, Self::Update, Self::Delete, Self::Operate, Self::Console, Self::Audit];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Operate => "operate",
            Self::Console => "console",
            Self::Audit => "audit",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut all = Self::NEEDED.into_iter().chain([Self::Any]);
        let allowed = "read, create, update, delete, operate, console, audit or any";
        all.find(|verb| verb.as_str() == text)
            .ok_or_else(|| Invalid::new("verb", format!("{text:?} is no verb"), allowed))
    }
}

/// Who somebody is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Groups that bindings may name. Of a user of an identity provider: as it said at the last login.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<String>,
    /// May do nothing, whatever is bound to him, and neither may his tokens.
    #[serde(default)]
    pub disabled: bool,
    /// Who vouches for him: `ISSUER#SUBJECT` of an identity provider. Empty: this cluster, by password. A login by the
    /// provider never becomes a user of the cluster's own of the same name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vouched_by: String,
}

/// What is known of him.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserStatus {
    /// Since when he has the password he has; none when he has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_set: Option<Timestamp>,
}

/// What a role allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// What is in none of them is not allowed.
    #[serde(default)]
    pub rules: Vec<RoleRule>,
}

/// Every one of these verbs on every one of these kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleRule {
    /// What may be done; at least one.
    pub verbs: BTreeSet<Verb>,
    /// To which kinds.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kinds: BTreeSet<Kind>,
    /// To every kind, those to come too; then no kind is named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any_kind: bool,
}

/// A role has no state of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoleStatus {
    /// Came with the cluster; nobody may change it.
    #[serde(default)]
    pub built_in: bool,
}

/// Who may do what, where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BindingSpec {
    /// What they may do.
    pub role: Name,
    /// Who, by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub users: BTreeSet<Name>,
    /// And whoever is in one of these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<String>,
    /// Only to what belongs to this project. None: in the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Name>,
}

/// A binding has no state of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BindingStatus {}

/// For whom a token speaks, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenSpec {
    /// Whose it is.
    pub user: Name,
    /// Allows only what these allow and its user may do. Empty: whatever its user may do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub roles: BTreeSet<Name>,
    /// Only in this project. None: wherever its user may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Name>,
    /// Of no use from then on.
    pub expires: Timestamp,
    /// Made by a login, and ended by the logout.
    #[serde(default)]
    pub session: bool,
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiTokenStatus {
    /// About when it was used last, to the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}

impl UserSpec {
    /// Refuses what is too long or too much.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.display_name (bytes)", self.display_name.len() as u64, 0..=WORDS_MAX)?;
        in_range("spec.vouched_by (bytes)", self.vouched_by.len() as u64, 0..=2 * WORDS_MAX)?;
        validate_groups(&self.groups)
    }
}

impl RoleSpec {
    /// Refuses a rule that says nothing, or too much at once.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.rules", self.rules.len() as u64, 0..=RULES_MAX)?;
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.verbs.is_empty() {
                let field = format!("spec.rules[{index}].verbs");
                return Err(Invalid::new(field, "names none", "one verb or more"));
            }
            if rule.any_kind != rule.kinds.is_empty() {
                let field = format!("spec.rules[{index}].kinds");
                return Err(Invalid::new(
                    field,
                    "names none, or some beside any_kind",
                    "kinds, or any_kind: true",
                ));
            }
        }
        Ok(())
    }
}

impl BindingSpec {
    /// Refuses what is too long or too much. That role, users and project exist is checked when it is written.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.users", self.users.len() as u64, 0..=SET_MAX)?;
        validate_groups(&self.groups)
    }
}

impl ApiTokenSpec {
    /// Refuses what is too much.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.roles", self.roles.len() as u64, 0..=SET_MAX)
    }
}

fn validate_groups(groups: &BTreeSet<String>) -> Result<(), Invalid> {
    in_range("spec.groups", groups.len() as u64, 0..=SET_MAX)?;
    let fits = |group: &String| {
        !group.is_empty() && group.len() as u64 <= WORDS_MAX && !group.chars().any(char::is_control)
    };
    match groups.iter().find(|group| !fits(group)) {
        Some(group) => {
            let problem = format!("{group:?} is no group");
            Err(Invalid::new("spec.groups", problem, "1 to 253 bytes without control characters"))
        }
        None => Ok(()),
    }
}
