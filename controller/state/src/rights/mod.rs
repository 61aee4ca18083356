//! Who may do what: pure questions to one state. Writing is in `people` and `policy`.
//!
//! A [`Subject`] is whom the edge took the caller for. [`State::grants`] gathers what it may do at this revision, and
//! refuses one that is gone, disabled or expired; [`Grants`] then answers for any verb, kind and [`Scope`]. Nothing is
//! allowed that no rule allows. Asked again for each request, so that what is revoked is revoked at once.

mod needs;
mod people;
mod policy;
mod seed;
mod sight;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use dunlin_model::rights::{ApiToken, RoleRule, User, Verb};
use dunlin_model::{ApiTokenId, ErrorCode, Kind, Labels, Name, Revision, Secret, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::draft::Draft;
use crate::{Rejected, State};

pub use needs::{Asked, Need};
pub use seed::BUILT_IN_ROLES;
pub(crate) use seed::seed;
pub use sight::widest;

/// A user's write of what stands in `dunlin_model::rights` and `dunlin_model::project`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RightsWrite {
    /// A new object. `secret` is the hash of a user's password, in PHC form, or the SHA-256 of a token, hex.
    Create { uid: Uuid, name: Name, labels: Labels, spec: RightsSpec, secret: Option<Secret> },
    /// Other labels and another spec.
    Update { uid: Uuid, revision: Revision, labels: Labels, spec: RightsSpec },
    /// Its end. Refused while something names it; a user's tokens and places in bindings go with him.
    Delete { kind: Kind, uid: Uuid },
    /// Another password, in PHC form, or none. Every session of the user ends.
    SetPassword { user: UserId, hash: Option<Secret> },
    /// An identity provider vouches for somebody, who is a user from now on, or is one and may be in other groups.
    Vouch { uid: UserId, name: Name, spec: dunlin_model::rights::UserSpec },
}

/// The spec of any of these kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // Each is the kind of its name.
pub enum RightsSpec {
    User(dunlin_model::rights::UserSpec),
    Role(dunlin_model::rights::RoleSpec),
    Binding(dunlin_model::rights::BindingSpec),
    Project(dunlin_model::project::ProjectSpec),
    ApiToken(dunlin_model::rights::ApiTokenSpec),
}

impl RightsSpec {
    /// Of which kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::User(_) => Kind::User,
            Self::Role(_) => Kind::Role,
            Self::Binding(_) => Kind::Binding,
            Self::Project(_) => Kind::Project,
            Self::ApiToken(_) => Kind::ApiToken,
        }
    }
}

/// Whom the edge took the caller for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Whoever holds the machine or an administrator's certificate. No rule is asked.
    Everything,
    /// Another controller that asks for itself: which cluster it is, and the bytes of images.
    Controller,
    /// The agent of a host: may fetch images.
    Agent,
    /// A user, by one of his tokens.
    User { user: UserId, token: ApiTokenId },
}

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// In the whole fleet.
    Fleet,
    /// In that project.
    Project(&'a Name),
    /// In any project whatever: things that all projects share.
    Anywhere,
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("in the whole fleet"),
            Self::Project(name) => write!(f, "in project {name}"),
            Self::Anywhere => f.write_str("in some project"),
        }
    }
}

/// Verbs x kinds, a bit each: eight verbs of sixteen kinds. The bits of kinds that are yet to come are there already.
type Bits = u128;

fn bit(verb: Verb, kind: Kind) -> Bits {
    1 << ((verb as u32) * 16 + kind as u32)
}

fn bits(rule: &RoleRule) -> Bits {
    let kinds: Bits = match rule.any_kind {
        true => 0xffff,
        false => rule.kinds.iter().fold(0, |bits, kind| bits | 1 << (*kind as u32)),
    };
    if rule.verbs.contains(&Verb::Any) {
        return (0..8).fold(0, |bits, verb| bits | kinds << (verb * 16));
    }
    rule.verbs.iter().fold(0, |bits, verb| bits | kinds << ((*verb as u32) * 16))
}

/// What a subject may do, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    fleet: Bits,
    projects: BTreeMap<Name, Bits>,
    /// The user himself, when it is one, and whether his token lets him do all that he may.
    me: Option<(UserId, Name, bool)>,
}

impl Grants {
    fn everything() -> Self {
        Self { fleet: Bits::MAX, projects: BTreeMap::new(), me: None }
    }

    /// Nothing at all: what nobody has.
    #[must_use]
    pub fn nothing() -> Self {
        Self { fleet: 0, projects: BTreeMap::new(), me: None }
    }

    fn in_scope(&self, scope: Scope<'_>) -> Bits {
        match scope {
            Scope::Fleet => self.fleet,
            Scope::Project(name) => self.fleet | self.projects.get(name).copied().unwrap_or(0),
            Scope::Anywhere => self.projects.values().fold(self.fleet, |sum, bits| sum | bits),
        }
    }

    /// Is it allowed?
    #[must_use]
    pub fn may(&self, verb: Verb, kind: Kind, scope: Scope<'_>) -> bool {
        self.in_scope(scope) & bit(verb, kind) != 0
    }

    /// Refuses what is not allowed, naming what is missing.
    pub fn check(&self, verb: Verb, kind: Kind, scope: Scope<'_>) -> Result<(), Rejected> {
        if self.may(verb, kind, scope) {
            return Ok(());
        }
        let who = self.me.as_ref().map_or_else(|| "the caller".to_owned(), |(_, name, _)| name.to_string());
        let message = format!("{who} may not: this needs the verb {verb} on {kind} {scope}");
        Err(Rejected::new(ErrorCode::Forbidden, message))
    }

    /// Does it allow whatever the rule allows? Nobody can give away more than he has.
    #[must_use]
    pub fn covers(&self, rule: &RoleRule, scope: Scope<'_>) -> bool {
        bits(rule) & !self.in_scope(scope) == 0
    }

    /// Refuses whoever may not do everything: what asks for this shows or changes the cluster's own keys.
    pub fn check_everything(&self, what: &str) -> Result<(), Rejected> {
        if self.fleet == Bits::MAX {
            return Ok(());
        }
        let who = self.me.as_ref().map_or_else(|| "the caller".to_owned(), |(_, name, _)| name.to_string());
        let message = format!("{who} may not: {what} is for whoever may do everything");
        Err(Rejected::new(ErrorCode::Forbidden, message))
    }

    /// The user, when the subject is one.
    #[must_use]
    pub fn user(&self) -> Option<&Name> {
        self.me.as_ref().map(|(_, name, _)| name)
    }

    fn is_wholly(&self, user: UserId) -> bool {
        matches!(&self.me, Some((me, _, whole)) if *me == user && *whole)
    }
}

fn unauthenticated(message: impl Into<String>) -> Rejected {
    Rejected::new(ErrorCode::Unauthenticated, message)
}

impl State {
    /// What a subject may do now; the refusal of one that is gone, disabled or expired.
    pub fn grants(&self, subject: Subject, now: Timestamp) -> Result<Grants, Rejected> {
        let (user, token) = match subject {
            Subject::Everything => return Ok(Grants::everything()),
            Subject::Controller => {
                let fleet = bit(Verb::Read, Kind::Cluster)
                    | bit(Verb::Read, Kind::Image)
                    | bit(Verb::Create, Kind::Image);
                return Ok(Grants { fleet, ..Grants::nothing() });
            }
            Subject::Agent => {
                let fleet = bit(Verb::Read, Kind::Image);
                return Ok(Grants { fleet, ..Grants::nothing() });
            }
            Subject::User { user, token } => (self.user(user), self.api_token(token)),
        };
        let (Some(user), Some(token)) = (user, token) else {
            return Err(unauthenticated("the token was revoked"));
        };
        if token.spec.expires <= now {
            return Err(unauthenticated(format!("the token {} has expired", token.metadata.name)));
        }
        if user.spec.disabled {
            return Err(unauthenticated(format!("the user {} is disabled", user.metadata.name)));
        }
        Ok(self.narrowed(self.bound_to(user), token))
    }

    /// What is bound to a user, by his name and his groups. A token of his allows this, or less.
    #[must_use]
    pub fn bound_to(&self, user: &User) -> Grants {
        let name = &user.metadata.name;
        let mut grants = Grants { me: Some((user.metadata.uid, name.clone(), true)), ..Grants::nothing() };
        for binding in self.bindings() {
            let spec = &binding.spec;
            let named = spec.users.contains(name) || !spec.groups.is_disjoint(&user.spec.groups);
            let Some(role) = self.role_named(&spec.role).filter(|_| named) else { continue };
            let allowed = role.spec.rules.iter().fold(0, |sum, rule| sum | bits(rule));
            match &spec.project {
                None => grants.fleet |= allowed,
                Some(project) => *grants.projects.entry(project.clone()).or_insert(0) |= allowed,
            }
        }
        grants
    }

    fn narrowed(&self, mut grants: Grants, token: &ApiToken) -> Grants {
        let spec = &token.spec;
        if !spec.roles.is_empty() {
            let roles = spec.roles.iter().filter_map(|role| self.role_named(role));
            let allowed = roles.flat_map(|role| &role.spec.rules).fold(0, |sum, rule| sum | bits(rule));
            grants.fleet &= allowed;
            grants.projects.values_mut().for_each(|bits| *bits &= allowed);
        }
        if let Some(project) = &spec.project {
            let there = grants.in_scope(Scope::Project(project));
            grants.projects = [(project.clone(), there)].into();
            grants.fleet = 0;
        }
        if let Some((_, _, whole)) = &mut grants.me {
            *whole = spec.roles.is_empty() && spec.project.is_none();
        }
        grants
    }

    /// The token with that SHA-256 (hex) and its user, whether it may still be used or not.
    #[must_use]
    pub fn bearer(&self, sha256: &Secret) -> Option<Subject> {
        let token = *self.bearers.get(sha256)?;
        let user = self.user_named(&self.api_token(token)?.spec.user)?.metadata.uid;
        Some(Subject::User { user, token })
    }

    /// The hash of a user's password, in PHC form.
    #[must_use]
    pub fn password(&self, user: UserId) -> Option<&Secret> {
        self.passwords.get(&user)
    }
}

pub(crate) fn write(draft: &mut Draft, write: &RightsWrite) -> Result<(), Rejected> {
    match write {
        RightsWrite::Create { uid, name, labels, spec, secret } => {
            dunlin_model::meta::validate_labels(labels)?;
            match spec {
                RightsSpec::User(_) | RightsSpec::ApiToken(_) => {
                    people::create(draft, *uid, name, labels, spec, secret.as_ref())
                }
                _ => policy::create(draft, *uid, name, labels, spec),
            }
        }
        RightsWrite::Update { uid, revision, labels, spec } => {
            dunlin_model::meta::validate_labels(labels)?;
            match spec {
                RightsSpec::User(spec) => people::update(draft, UserId(*uid), *revision, labels, spec),
                _ => policy::update(draft, *uid, *revision, labels, spec),
            }
        }
        RightsWrite::Delete { kind: Kind::User, uid } => people::delete_user(draft, UserId(*uid)),
        RightsWrite::Delete { kind: Kind::ApiToken, uid } => people::revoke(draft, ApiTokenId(*uid)),
        RightsWrite::Delete { kind, uid } => policy::delete(draft, *kind, *uid),
        RightsWrite::SetPassword { user, hash } => people::set_password(draft, *user, hash.as_ref()),
        RightsWrite::Vouch { uid, name, spec } => people::vouch(draft, *uid, name, spec),
    }
}

pub(crate) use people::{drop_expired, expired, note_use};
