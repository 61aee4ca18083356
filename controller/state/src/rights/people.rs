//! Users, their passwords and their tokens.

use dunlin_model::rights::{ApiToken, ApiTokenSpec, ApiTokenStatus, Binding, User, UserSpec, UserStatus};
use dunlin_model::{ApiTokenId, ErrorCode, Invalid, Kind, Labels, Name, Revision, Secret, Timestamp, UserId};
use uuid::Uuid;

use super::RightsSpec;
use crate::draft::{Draft, refuse_stale};
use crate::{Rejected, State};

/// Users of a cluster.
const USERS_MAX: usize = 10_000;
/// Tokens of one user, sessions included: one for each of his machines and programs. A further login ends his oldest
/// session.
const TOKENS_PER_USER_MAX: usize = 64;
/// Longest life of a token, ms: a year.
const TOKEN_LIFE_MAX_MS: u64 = 366 * 86_400_000;
/// How old the note of a token's last use may be, ms: a write an hour at most for each token.
const USE_NOTED_EVERY_MS: u64 = 3_600_000;
/// How long an expired token is still shown, ms.
const EXPIRED_KEPT_MS: u64 = 86_400_000;

pub(super) fn create(
    draft: &mut Draft,
    uid: Uuid,
    name: &Name,
    labels: &Labels,
    spec: &RightsSpec,
    secret: Option<&Secret>,
) -> Result<(), Rejected> {
    match spec {
        RightsSpec::User(spec) => create_user(draft, UserId(uid), name, labels, spec, secret),
        RightsSpec::ApiToken(spec) => create_token(draft, ApiTokenId(uid), name, labels, spec, secret),
        _ => Err(Rejected::new(ErrorCode::Internal, "it is neither a user nor a token")),
    }
}

fn create_user(
    draft: &mut Draft,
    uid: UserId,
    name: &Name,
    labels: &Labels,
    spec: &UserSpec,
    password: Option<&Secret>,
) -> Result<(), Rejected> {
    spec.validate()?;
    if draft.state.users().count() >= USERS_MAX {
        return Err(Rejected::new(ErrorCode::WrongState, format!("there are {USERS_MAX} users already")));
    }
    let metadata = draft.card::<User, _>(uid, uid.0, name, labels)?;
    let now = draft.now();
    if let Some(password) = password {
        draft.state.passwords.insert(uid, password.clone());
    }
    draft.put(User {
        metadata,
        spec: spec.clone(),
        status: UserStatus { password_set: password.map(|_| now) },
    });
    Ok(())
}

pub(super) fn update(
    draft: &mut Draft,
    uid: UserId,
    read: Revision,
    labels: &Labels,
    spec: &UserSpec,
) -> Result<(), Rejected> {
    let mut user = draft.take::<User>(uid)?;
    refuse_stale(user.clone(), read)?;
    spec.validate()?;
    if spec.vouched_by != user.spec.vouched_by {
        let problem = "cannot change: another person would get what is bound to this one";
        return Err(Invalid::new("spec.vouched_by", problem, "as it is").into());
    }
    user.metadata.labels.clone_from(labels);
    if user.spec != *spec {
        user.spec = spec.clone();
        user.metadata.generation = user.metadata.generation.next();
    }
    draft.put(user);
    Ok(())
}

pub(super) fn vouch(draft: &mut Draft, uid: UserId, name: &Name, spec: &UserSpec) -> Result<(), Rejected> {
    spec.validate()?;
    let Some(known) = draft.state.user_named(name).cloned() else {
        return create_user(draft, uid, name, &Labels::new(), spec, None);
    };
    if known.spec.vouched_by != spec.vouched_by {
        let message = format!("the user {name} is not the one this identity provider vouches for");
        return Err(Rejected::new(ErrorCode::Unauthenticated, message));
    }
    let mut user = draft.take::<User>(known.metadata.uid)?;
    let spec = UserSpec { disabled: user.spec.disabled, ..spec.clone() };
    if user.spec != spec {
        user.spec = spec;
        user.metadata.generation = user.metadata.generation.next();
    }
    draft.put(user);
    Ok(())
}

pub(super) fn set_password(draft: &mut Draft, uid: UserId, hash: Option<&Secret>) -> Result<(), Rejected> {
    let mut user = draft.take::<User>(uid)?;
    if !user.spec.vouched_by.is_empty() {
        let message =
            format!("{} has no password here: an identity provider vouches for him", user.metadata.name);
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    match hash {
        Some(hash) => draft.state.passwords.insert(uid, hash.clone()),
        None => drop(draft.state.passwords.remove(&uid)),
    }
    // Whoever knew the old one is out.
    for session in tokens_of(draft.state, &user.metadata.name, true) {
        remove_token(draft, session);
    }
    user.status.password_set = hash.map(|_| draft.now());
    draft.put(user);
    Ok(())
}

pub(super) fn delete_user(draft: &mut Draft, uid: UserId) -> Result<(), Rejected> {
    let user = draft.take::<User>(uid)?;
    let name = &user.metadata.name;
    for token in tokens_of(draft.state, name, false) {
        remove_token(draft, token);
    }
    // Another of the same name must not find himself bound to what this one was.
    let bound: Vec<Binding> =
        draft.state.bindings().filter(|binding| binding.spec.users.contains(name)).cloned().collect();
    for mut binding in bound {
        binding.spec.users.remove(name);
        binding.metadata.generation = binding.metadata.generation.next();
        draft.put(binding);
    }
    draft.state.passwords.remove(&uid);
    draft.remove(Kind::User, uid.0);
    draft.answer(Kind::User, uid.0);
    Ok(())
}

fn create_token(
    draft: &mut Draft,
    uid: ApiTokenId,
    name: &Name,
    labels: &Labels,
    spec: &ApiTokenSpec,
    sha256: Option<&Secret>,
) -> Result<(), Rejected> {
    spec.validate()?;
    let Some(sha256) = sha256 else {
        return Err(Rejected::new(ErrorCode::Internal, "a token without its hash"));
    };
    let user = draft.state.find::<User>(&spec.user)?;
    if user.spec.disabled {
        return Err(Rejected::new(ErrorCode::WrongState, format!("the user {} is disabled", spec.user)));
    }
    for role in &spec.roles {
        draft.state.find::<dunlin_model::rights::Role>(role)?;
    }
    if let Some(project) = &spec.project {
        draft.state.find::<dunlin_model::project::Project>(project)?;
    }
    let life_ms = spec.expires.millis_since(draft.now());
    dunlin_model::invalid::in_range("spec.expires (ms from now)", life_ms, 1..=TOKEN_LIFE_MAX_MS)?;
    make_room(draft, spec)?;
    let metadata = draft.card::<ApiToken, _>(uid, uid.0, name, labels)?;
    draft.state.bearers.insert(sha256.clone(), uid);
    draft.put(ApiToken { metadata, spec: spec.clone(), status: ApiTokenStatus::default() });
    Ok(())
}

fn make_room(draft: &mut Draft, spec: &ApiTokenSpec) -> Result<(), Rejected> {
    if tokens_of(draft.state, &spec.user, false).len() < TOKENS_PER_USER_MAX {
        return Ok(());
    }
    let oldest = tokens_of(draft.state, &spec.user, true).into_iter().next().filter(|_| spec.session);
    let full = || {
        let message = format!("{} has {TOKENS_PER_USER_MAX} tokens already; delete one", spec.user);
        Rejected::new(ErrorCode::WrongState, message)
    };
    remove_token(draft, oldest.ok_or_else(full)?);
    Ok(())
}

/// A user's tokens, or only his sessions, the oldest first.
fn tokens_of(state: &State, user: &Name, sessions: bool) -> Vec<ApiTokenId> {
    let his = state.api_tokens().filter(|token| token.spec.user == *user);
    let his = his.filter(|token| token.spec.session || !sessions);
    let mut his: Vec<_> = his.map(|token| (token.metadata.created, token.metadata.uid)).collect();
    his.sort_unstable();
    his.into_iter().map(|(_, uid)| uid).collect()
}

pub(super) fn revoke(draft: &mut Draft, uid: ApiTokenId) -> Result<(), Rejected> {
    draft.take::<ApiToken>(uid)?;
    remove_token(draft, uid);
    draft.answer(Kind::ApiToken, uid.0);
    Ok(())
}

fn remove_token(draft: &mut Draft, uid: ApiTokenId) {
    let hash = draft.state.bearers.iter().find(|(_, token)| **token == uid).map(|(hash, _)| hash.clone());
    if let Some(hash) = hash {
        draft.state.bearers.remove(&hash);
    }
    draft.remove(Kind::ApiToken, uid.0);
}

/// Notes that a token was used, once an hour.
pub(crate) fn note_use(draft: &mut Draft, uid: ApiTokenId) -> Result<(), Rejected> {
    let mut token = draft.take::<ApiToken>(uid)?;
    let now = draft.now();
    if use_is_news(&token, now) {
        token.status.last_used = Some(now);
        draft.put(token);
    }
    Ok(())
}

fn use_is_news(token: &ApiToken, now: Timestamp) -> bool {
    token.status.last_used.is_none_or(|noted| now.millis_since(noted) >= USE_NOTED_EVERY_MS)
}

impl State {
    /// Is it worth a write that this token was used now?
    #[must_use]
    pub fn use_is_news(&self, token: ApiTokenId, now: Timestamp) -> bool {
        self.api_token(token).is_some_and(|token| use_is_news(token, now))
    }
}

/// Tokens that have been expired for long enough.
pub(crate) fn expired(state: &State, now: Timestamp) -> impl Iterator<Item = ApiTokenId> {
    let over = move |token: &&ApiToken| now.millis_since(token.spec.expires) >= EXPIRED_KEPT_MS;
    state.api_tokens().filter(over).map(|token| token.metadata.uid)
}

pub(crate) fn drop_expired(draft: &mut Draft) {
    let over: Vec<_> = expired(draft.state, draft.now()).collect();
    over.into_iter().for_each(|token| remove_token(draft, token));
}
