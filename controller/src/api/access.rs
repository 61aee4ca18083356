//! The Access service: logins, passwords, tokens, and the audit log.
//!
//! Passwords and tokens pass through here and are kept nowhere: what is proposed is their hash. A login is judged by the
//! leader, where attempts are counted; an unknown user costs and reads as a wrong password does.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::invalid::in_range;
use dunlin_model::rights::{ApiTokenSpec, User, UserSpec, Verb};
use dunlin_model::{ControllerId, ErrorCode, Invalid, Kind, Name, Object, Secret, Timestamp};
use dunlin_proto::v1::access_server::{Access, AccessServer};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::rights::{RightsSpec, RightsWrite, Scope, Subject};
use dunlin_state::{Command, Write};
use futures_util::future::join_all;
use tonic::{Request, Response, Status};

use super::call::{CALL_DEADLINE, Call};
use super::{carry, commit, identities, peers, reads, rejected_fault};
use crate::audit::{self, AuditError, Entry, Wanted};
use crate::node::Node;
use crate::rights::{self, Caller, Provider};
use crate::{clock, mint};

/// How long a session lasts, s: a working day.
const SESSION_TTL_S: u64 = 12 * 3_600;
/// Shortest and longest life of a token, s: up to a year.
const TOKEN_TTL_S: std::ops::RangeInclusive<u64> = 1..=366 * 86_400;
/// Lines of the audit log in one answer: below what one message may hold.
const LINES_MAX: usize = 2_000;
/// How long the other controllers may take over their part of the audit log.
const GATHER_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest request, bytes: an id token of an identity provider that sends hundreds of groups.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The Access service of one controller.
#[derive(Debug)]
pub(crate) struct Doorman {
    node: Arc<Node>,
}

impl Doorman {
    pub(crate) fn service(node: Arc<Node>) -> AccessServer<Self> {
        let server = AccessServer::new(Self { node });
        server
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(super::MESSAGE_BYTES_MAX)
    }

    async fn log_in(&self, caller: &Caller, asked: v1::LoginRequest) -> Result<v1::Session, Fault> {
        let now = clock::now();
        // What was typed as a name may have been the password: only names of users are written down.
        let view = self.node.replica.read();
        let user = asked.user.parse::<Name>().ok().and_then(|name| view.user_named(&name)).cloned();
        let known =
            user.as_ref().map_or_else(|| "unknown user".to_owned(), |user| user.metadata.name.to_string());
        let entry = Entry::of(caller, "login").about("User", &known, None);
        let refuse = |entry: Entry, fault| rights::refuse(&self.node, entry, fault);
        if let Err(fault) = self.node.attempts.admit(&asked.user, &caller.from, now) {
            return Err(refuse(entry, fault));
        }
        let hash = user.as_ref().and_then(|user| view.password(user.metadata.uid)).cloned();
        drop(view);
        let fits = self.node.passwords.fits(Secret::new(asked.password), hash).await;
        let fits = fits.map_err(|fault| refuse(entry.clone(), fault))?;
        let Some(user) = user.filter(|user| fits && !user.spec.disabled) else {
            self.node.attempts.failed(&asked.user, &caller.from, now);
            let fault = Fault::new(ErrorCode::Unauthenticated, "the user or the password is wrong");
            return Err(refuse(entry, fault));
        };
        self.node.attempts.succeeded(&asked.user, &caller.from);
        self.begin_session(entry, &user).await
    }

    fn provider(&self) -> Result<&Provider, Fault> {
        let none = || {
            Fault::new(ErrorCode::NotFound, "no identity provider vouches for people here; log in as USER")
        };
        self.node.provider.as_ref().ok_or_else(none)
    }

    async fn log_in_by_provider(
        &self,
        caller: &Caller,
        asked: v1::LoginByProviderRequest,
    ) -> Result<v1::Session, Fault> {
        let entry = Entry::of(caller, "login");
        let vouched = self.provider()?.identify(&Secret::new(asked.id_token), &asked.nonce).await;
        let vouched = vouched.map_err(|fault| rights::refuse(&self.node, entry.clone(), fault))?;
        let entry = entry.about("User", vouched.name.as_str(), None);
        let name = vouched.name.clone();
        let known = self.node.replica.read().user_named(&name).cloned();
        if known.is_none_or(|known| {
            known.spec != UserSpec { disabled: known.spec.disabled, ..vouched.spec.clone() }
        }) {
            let uid = dunlin_model::UserId(mint::uuid());
            let write = Write::Rights(RightsWrite::Vouch { uid, name: name.clone(), spec: vouched.spec });
            let command = Command::Write { key: mint::secret(), write };
            let proposed = self.node.replica.propose(&command).await;
            let proposed = proposed.map_err(|e| carry::propose_fault(&e))?;
            proposed.map_err(|e| rights::refuse(&self.node, entry.clone(), rejected_fault(e)))?;
        }
        let user = self.node.replica.read().user_named(&name).filter(|user| !user.spec.disabled).cloned();
        let gone = || Fault::new(ErrorCode::Unauthenticated, format!("the user {name} is disabled"));
        let user = user.ok_or_else(|| rights::refuse(&self.node, entry.clone(), gone()))?;
        self.begin_session(entry, &user).await
    }

    async fn begin_session(&self, entry: Entry, user: &User) -> Result<v1::Session, Fault> {
        let name = user.metadata.name.clone();
        let spec = ApiTokenSpec {
            user: name.clone(),
            roles: std::collections::BTreeSet::new(),
            project: None,
            expires: Timestamp(clock::now().0 + SESSION_TTL_S * 1_000),
            session: true,
        };
        let expires_ms = spec.expires.0;
        let called = format!("session-{}", mint::suffix()).parse()?;
        let (token, write) = new_token(called, spec);
        let entry = Entry { who: name.to_string(), ..entry };
        commit::noted(&self.node, entry, mint::secret(), write).await?;
        let authorities = identities::authorities(self.node.replica.read().trust());
        let controllers = self.node.controllers().into_iter().map(|known| known.endpoint).collect();
        Ok(v1::Session { token, user: name.to_string(), expires_ms, authorities, controllers })
    }

    async fn set_password(
        &self,
        caller: &Caller,
        asked: v1::SetPasswordRequest,
    ) -> Result<v1::SetPasswordResponse, Fault> {
        let view = self.node.replica.read();
        let grants = rights::grants(&self.node, caller, &view)?;
        let user =
            reads::find(&view, Kind::User, &asked.user).map_err(|fault| rights::hide(fault, &grants))?;
        let user = dunlin_model::UserId(user.uid());
        let write = |hash| Write::Rights(RightsWrite::SetPassword { user, hash });
        // Judged before the work is done: only somebody who may set a password may have one hashed.
        let entry = rights::allow(&self.node, caller, &view, &grants, &write(None))?;
        drop(view);
        let hash = match asked.password.is_empty() {
            true => None,
            false => Some(self.node.passwords.hash(Secret::new(asked.password)).await?),
        };
        let entry = Entry { verb: "set_password".to_owned(), ..entry };
        commit::noted(&self.node, entry, mint::secret(), write(hash)).await?;
        Ok(v1::SetPasswordResponse {})
    }

    async fn create_token(
        &self,
        caller: &Caller,
        asked: v1::CreateApiTokenRequest,
    ) -> Result<v1::CreateApiTokenResponse, Fault> {
        in_range("ttl_s", asked.ttl_s, TOKEN_TTL_S)?;
        let names =
            |texts: Vec<String>| texts.iter().map(|text| text.parse()).collect::<Result<_, Invalid>>();
        let spec = ApiTokenSpec {
            user: read(asked.user, "user")?,
            roles: names(asked.roles)?,
            project: read(asked.project, "project")?,
            expires: Timestamp(clock::now().0 + asked.ttl_s * 1_000),
            session: false,
        };
        let (token, write) = new_token(read(asked.name, "name")?, spec);
        let outcome =
            commit::commit(&self.node, caller, mint::secret(), false, |_| Ok(write.clone())).await?;
        let made = match outcome.object.as_deref() {
            Some(Object::ApiToken(made)) => Some(made.clone().into()),
            _ => None,
        };
        Ok(v1::CreateApiTokenResponse { token, object: made })
    }

    async fn log_out(&self, caller: &Caller) -> Result<v1::LogoutResponse, Fault> {
        let view = self.node.replica.read();
        rights::grants(&self.node, caller, &view)?;
        drop(view);
        let Ok(Subject::User { token, .. }) = caller.subject else {
            let message = "no token was shown: there is no session to end";
            return Err(Fault::new(ErrorCode::WrongState, message));
        };
        let write = Write::Rights(RightsWrite::Delete { kind: Kind::ApiToken, uid: token.0 });
        let entry = Entry::of(caller, "logout").about("ApiToken", &token.to_string(), None);
        commit::noted(&self.node, entry, mint::secret(), write).await?;
        Ok(v1::LogoutResponse {})
    }

    fn identity(&self, caller: &Caller) -> Result<v1::Account, Fault> {
        let view = self.node.replica.read();
        rights::grants(&self.node, caller, &view)?;
        let via = caller.via.as_str().to_owned();
        let Ok(Subject::User { user, token }) = caller.subject else {
            let name = caller.name.clone();
            let bound = vec!["everything".to_owned()];
            return Ok(v1::Account { name, via, bound, ..v1::Account::default() });
        };
        let (Some(user), token) = (view.user(user), view.api_token(token)) else {
            return Err(Fault::new(ErrorCode::Unauthenticated, "the user is gone"));
        };
        let name = &user.metadata.name;
        let mine = view
            .bindings()
            .map(|binding| &binding.spec)
            .filter(|spec| spec.users.contains(name) || !spec.groups.is_disjoint(&user.spec.groups));
        let mut bound: Vec<String> = mine
            .map(|spec| match &spec.project {
                Some(project) => format!("{} {}", spec.role, Scope::Project(project)),
                None => format!("{} {}", spec.role, Scope::Fleet),
            })
            .collect();
        bound.sort();
        Ok(v1::Account {
            name: name.to_string(),
            via,
            groups: user.spec.groups.iter().cloned().collect(),
            bound,
            expires_ms: token.map(|token| token.spec.expires.0),
        })
    }

    /// The audit lines of this controller.
    async fn lines_here(&self, wanted: Wanted) -> Result<Vec<(u64, String)>, Fault> {
        self.node.audit.written().await;
        let dir = self.node.config.data_dir.clone();
        let read = tokio::task::spawn_blocking(move || audit::list(&dir, &wanted)).await;
        read.map_err(|e| broken(&e))?.map_err(|e| broken(&e))
    }

    async fn list_all(
        &self,
        call: &Call,
        asked: v1::ListAuditRequest,
        wanted: Wanted,
    ) -> Result<v1::ListAuditResponse, Fault> {
        let limit = wanted.limit;
        let me = self.node.config.id;
        let others = self.node.controllers().into_iter().filter(|other| other.id != me);
        let theirs = others.map(|other| {
            // What a controller is asked for must not be everything it has: the newest, as many as are wanted.
            let asked = v1::ListAuditRequest { controller: other.id.0, after: u64::MAX, ..asked.clone() };
            async move {
                let ask = async {
                    let channel = self.node.peers.channel(&other.endpoint)?;
                    Ok::<_, Fault>(peers::access(channel).list_audit(call.pass_on(asked)).await?.into_inner())
                };
                (other.id, tokio::time::timeout(GATHER_TIMEOUT, ask).await)
            }
        });
        let (mine, theirs) = tokio::join!(self.lines_here(wanted), join_all(theirs));
        let (mut lines, mut missing) = (mine?, Vec::new());
        let mut more = lines.len() >= limit;
        for (id, answer) in theirs {
            match answer {
                Ok(Ok(answer)) => {
                    more |= answer.more;
                    lines.extend(answer.lines.into_iter().map(|line| (time_of(&line), line)));
                }
                _ => missing.push(id.0),
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        let surplus = lines.len().saturating_sub(limit);
        let lines = lines.into_iter().skip(surplus).map(|(_, line)| line).collect();
        Ok(v1::ListAuditResponse { lines, missing, more: more || surplus > 0 })
    }

    /// Where another controller's API is.
    fn endpoint_of(&self, id: u64) -> Result<String, Fault> {
        let known = self.node.controllers().into_iter().find(|known| known.id == ControllerId(id));
        let nobody = || Fault::new(ErrorCode::NotFound, format!("there is no controller {id}"));
        known.map(|known| known.endpoint).ok_or_else(nobody)
    }

    fn may_audit(&self, caller: &Caller) -> Result<(), Fault> {
        let view = self.node.replica.read();
        let right = (Verb::Audit, Kind::Cluster, Scope::Fleet);
        rights::authorise(&self.node, caller, &view, right, "audit log").map(drop)
    }
}

fn new_token(name: Name, spec: ApiTokenSpec) -> (String, Write) {
    let token = format!("dlt_{}", mint::secret());
    let write = RightsWrite::Create {
        uid: mint::uuid(),
        name,
        labels: dunlin_model::Labels::new(),
        spec: RightsSpec::ApiToken(spec),
        secret: Some(Secret::new(mint::sha256_hex(&token))),
    };
    (token, Write::Rights(write))
}

fn broken(error: &dyn std::error::Error) -> Fault {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Fault::new(ErrorCode::Internal, format!("{error}{cause}"))
}

fn time_of(line: &str) -> u64 {
    serde_json::from_str::<audit::Line>(line).map_or(0, |line| line.entry.at.0)
}

#[tonic::async_trait]
impl Access for Doorman {
    #[tracing::instrument(skip_all)]
    async fn login(&self, request: Request<v1::LoginRequest>) -> Result<Response<v1::Session>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked| self.log_in(&caller, asked);
        let remote = |channel, request| async move { peers::access(channel).login(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), local, remote).await?))
    }

    async fn show_provider(
        &self,
        _: Request<v1::ShowProviderRequest>,
    ) -> Result<Response<v1::Provider>, Status> {
        let known = &self.provider()?.config;
        let (issuer, client_id) = (known.issuer.clone(), known.client_id.clone());
        Ok(Response::new(v1::Provider { issuer, client_id, scope: known.scope.clone() }))
    }

    #[tracing::instrument(skip_all)]
    async fn login_by_provider(
        &self,
        request: Request<v1::LoginByProviderRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked| self.log_in_by_provider(&caller, asked);
        let remote =
            |channel, request| async move { peers::access(channel).login_by_provider(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn logout(
        &self,
        request: Request<v1::LogoutRequest>,
    ) -> Result<Response<v1::LogoutResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |_| self.log_out(&caller);
        let remote = |channel, request| async move { peers::access(channel).logout(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn show_account(
        &self,
        request: Request<v1::ShowAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        Ok(Response::new(self.identity(&Caller::of(request.extensions()))?))
    }

    #[tracing::instrument(skip_all)]
    async fn set_password(
        &self,
        request: Request<v1::SetPasswordRequest>,
    ) -> Result<Response<v1::SetPasswordResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked| self.set_password(&caller, asked);
        let remote = |channel, request| async move { peers::access(channel).set_password(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn create_api_token(
        &self,
        request: Request<v1::CreateApiTokenRequest>,
    ) -> Result<Response<v1::CreateApiTokenResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked| self.create_token(&caller, asked);
        let remote = |channel, request| async move { peers::access(channel).create_api_token(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        self.may_audit(&call.caller)?;
        let asked = request.into_inner();
        let limit = usize::try_from(asked.limit).ok().filter(|limit| (1..=LINES_MAX).contains(limit));
        let wanted = Wanted {
            user: asked.user.clone(),
            verb: asked.verb.clone(),
            outcome: asked.outcome.clone(),
            since_ms: asked.since_ms,
            limit: limit.unwrap_or(LINES_MAX),
            after: (asked.controller != 0 && asked.after != u64::MAX).then_some(asked.after),
        };
        if asked.controller == 0 {
            return Ok(Response::new(self.list_all(&call, asked, wanted).await?));
        }
        if asked.controller != self.node.config.id.0 {
            let channel = self.node.peers.channel(&self.endpoint_of(asked.controller)?)?;
            return peers::access(channel).list_audit(call.pass_on(asked)).await;
        }
        let limit = wanted.limit;
        let lines = self.lines_here(wanted).await?;
        let more = lines.len() >= limit;
        let lines = lines.into_iter().map(|(_, line)| line).collect();
        Ok(Response::new(v1::ListAuditResponse { lines, missing: Vec::new(), more }))
    }

    #[tracing::instrument(skip_all)]
    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        self.may_audit(&call.caller)?;
        let asked = *request.get_ref();
        let me = self.node.config.id.0;
        if asked.controller != me && asked.controller != 0 {
            let channel = self.node.peers.channel(&self.endpoint_of(asked.controller)?)?;
            return peers::access(channel).verify_audit(call.pass_on(asked)).await;
        }
        self.node.audit.written().await;
        let dir = self.node.config.data_dir.clone();
        let checked = tokio::task::spawn_blocking(move || audit::verify(&dir)).await;
        let checked: Result<_, AuditError> = checked.map_err(|e| broken(&e))?;
        let (lines, found) = checked.map_err(|e| broken(&e))?;
        Ok(Response::new(v1::VerifyAuditResponse {
            controller: me,
            lines,
            broken: found.unwrap_or_default(),
        }))
    }
}
