//! Whom a request is taken for: found out once, before it is known what it asks.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use dunlin_model::{ErrorCode, Role, Secret};
use dunlin_proto::{CODE_KEY, Fault};
use dunlin_state::Command;
use dunlin_state::rights::Subject;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tracing::Instrument as _;

use super::refuse;
use crate::audit::Entry;
use crate::node::Node;
use crate::trust::{self, CALLER_KEY, LOCAL_ADMIN, Peer};
use crate::{clock, metrics, mint};

/// Header of a token: `Bearer TOKEN` (RFC 6750).
pub(crate) const AUTHORIZATION: &str = "authorization";
/// Header that ties together all that one command of a user led to: 1 to 64 of `A-Z a-z 0-9 - _ .`
const CORRELATION: &str = "dunlin-correlation";
/// Set on every call that a controller passes on: it goes no further. From anybody else it is taken away.
pub(crate) const FORWARDED_KEY: &str = "dunlin-forwarded";
/// Where a call that is passed on came from.
const FROM: &str = "dunlin-from";
/// Longest correlation id, characters.
const CORRELATION_MAX: usize = 64;
/// Longest token looked at, bytes; ours have 68.
const TOKEN_MAX: usize = 128;
/// How long a follower waits to learn of a token that it does not know yet.
const NEWS_TIMEOUT: Duration = Duration::from_secs(2);
/// What a call with an answer that is too large to take is, in the audit log.
const TOO_LARGE: &str = "too_large";

/// A method that there is not, in the metrics.
const UNKNOWN_METHOD: &str = "unknown";

/// By what a caller was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Certificate,
    Socket,
    Token,
    Nothing,
}

impl Via {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Socket => "socket",
            Self::Token => "token",
            Self::Nothing => "nothing",
        }
    }
}

/// Whoever makes a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Whom he was taken for, or why he is nobody.
    pub(crate) subject: Result<Subject, Fault>,
    /// For the audit log: a user's name, or what a certificate says.
    pub(crate) name: String,
    pub(crate) via: Via,
    /// The address he calls from.
    pub(crate) from: String,
    pub(crate) correlation: String,
    /// What he showed, as it is shown again when his call is passed on.
    bearer: Option<Secret>,
    peer: Option<Peer>,
    /// This controller asks for itself: nothing is passed on.
    own: bool,
}

impl Caller {
    /// Nobody, with the reason.
    pub(crate) fn nobody(why: &str) -> Self {
        Self {
            subject: Err(Fault::new(ErrorCode::Unauthenticated, why)),
            name: String::new(),
            via: Via::Nothing,
            from: String::new(),
            correlation: String::new(),
            bearer: None,
            peer: None,
            own: false,
        }
    }

    /// This controller, which shows its certificate and nothing else.
    pub(crate) fn itself() -> Self {
        Self { subject: Ok(Subject::Controller), own: true, ..Self::nobody("") }
    }

    /// The caller of a request that came in by the front door; nobody for any other.
    pub(crate) fn of(extensions: &Extensions) -> Arc<Self> {
        let known = extensions.get::<Arc<Self>>().cloned();
        known.unwrap_or_else(|| Arc::new(Self::nobody("nobody has found out who calls")))
    }

    /// Marks a request that is passed on: the receiver is to judge it as this controller would.
    pub(crate) fn show(&self, metadata: &mut MetadataMap) {
        if self.own {
            return;
        }
        let mut headers = std::mem::take(metadata).into_headers();
        headers.insert(FORWARDED_KEY, HeaderValue::from_static("1"));
        let mut set = |name: &'static str, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set(CORRELATION, &self.correlation);
        set(FROM, &self.from);
        if let Some(token) = &self.bearer {
            set(AUTHORIZATION, &format!("Bearer {}", token.expose()));
        }
        if let Some(peer) = &self.peer {
            set(CALLER_KEY, &peer.to_string());
        }
        *metadata = MetadataMap::from_headers(headers);
    }
}

/// Finds out who calls and leaves it in the request's extensions; refuses whoever may not call such a thing at all.
pub(crate) async fn enter(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let (began, _running) = (Instant::now(), metrics::API_RUNNING.held());
    let method = method(&request);
    let answer = admit(&node, request, next).await;
    let code = code(&answer);
    // What there is no such method of is whatever somebody typed.
    let method = if code == UNKNOWN_METHOD { UNKNOWN_METHOD } else { &method };
    metrics::API_CALLS.inc(&[method, &code]);
    metrics::API_CALL.observe(&[method], began.elapsed());
    answer
}

/// The method as the table of methods has it: without the names of objects.
fn method(request: &Request) -> String {
    match request.uri().path().strip_prefix("/dunlin.v1.") {
        Some(grpc) => grpc.to_owned(),
        None => {
            let route = request.extensions().get::<MatchedPath>().map_or("nothing", MatchedPath::as_str);
            format!("{} {route}", request.method())
        }
    }
}

/// What came of a call, by the head of its answer: a public code, or `ok`.
fn code(answer: &Response) -> String {
    let text = |key: &str| answer.headers().get(key).and_then(|value| value.to_str().ok());
    let known = answer.extensions().get::<ErrorCode>().map(|code| code.as_str()).or_else(|| text(CODE_KEY));
    let code = match (known, text("grpc-status")) {
        (Some(code), _) => code,
        (None, None | Some("0")) if answer.status().is_success() => "ok",
        (None, Some("12")) => UNKNOWN_METHOD,
        (None, Some(status)) if answer.status().is_success() => return format!("grpc {status}"),
        (None, _) => return answer.status().as_str().to_owned(),
    };
    code.to_owned()
}

async fn admit(node: &Arc<Node>, mut request: Request, next: Next) -> Response {
    let gate = trust::gate(&node.keys, &mut request);
    let shown = Shown::read(request.headers(), request.extensions());
    let path = request.uri().path().to_owned();
    if let Err(fault) = gate {
        let (caller, verb) =
            (shown.unread(), if fault.code == ErrorCode::Forbidden { "call" } else { "authenticate" });
        let fault = refuse(node, Entry::of(&caller, verb).about("", &path, None), fault);
        return trust::refused(&request, fault);
    }
    let caller = Arc::new(recognise(node, shown).await);
    let span = tracing::info_span!("call", correlation = caller.correlation);
    request.extensions_mut().insert(Arc::clone(&caller));
    let mut answer = next.run(request).instrument(span).await;
    if let Ok(id) = HeaderValue::from_str(&caller.correlation) {
        answer.headers_mut().insert(HeaderName::from_static(CORRELATION), id);
    }
    if is_too_large(&answer) {
        let entry = Entry::of(&caller, "call").about("", &path, None);
        node.audit.refusal(entry.with_outcome(TOO_LARGE));
    }
    answer
}

/// Was the request larger than is taken? Nobody but whoever reads it finds out, and tonic does not tell us; it answers so
/// (`OUT_OF_RANGE`), before any of our code is asked. Our own answers of that status name their code.
fn is_too_large(answer: &Response) -> bool {
    let headers = answer.headers();
    let out_of_range = headers.get("grpc-status").is_some_and(|status| status == "11");
    answer.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE
        || out_of_range && !headers.contains_key(CODE_KEY)
}

/// What a request shows of its sender.
struct Shown {
    peer: Option<Peer>,
    address: String,
    bearer: Option<Secret>,
    /// There was an authorization header, whatever stood in it.
    tried: bool,
    correlation: Option<String>,
}

impl Shown {
    fn read(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(AUTHORIZATION).and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            let fits = scheme.eq_ignore_ascii_case("bearer") && token.len() <= TOKEN_MAX;
            fits.then(|| Secret::new(token.trim()))
        });
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let correlation = text(CORRELATION)
            .filter(|id| !id.is_empty() && id.len() <= CORRELATION_MAX && id.chars().all(fits));
        // Only another controller's word is left here by the gate.
        let passed_on = text(FROM).filter(|_| headers.contains_key(FORWARDED_KEY)).map(str::to_owned);
        let address = || {
            let tcp = extensions.get::<TcpConnectInfo>().and_then(|tcp| tcp.remote_addr);
            tcp.map_or_else(|| "local".to_owned(), |address| address.ip().to_string())
        };
        Self {
            peer: extensions.get::<Peer>().cloned(),
            address: passed_on.unwrap_or_else(address),
            bearer,
            tried: headers.contains_key(AUTHORIZATION),
            correlation: correlation.map(str::to_owned),
        }
    }

    /// The caller by his certificate alone.
    fn unread(self) -> Caller {
        let nobody = Caller::nobody("log in first: `dunlin login USER`, or show a token or certificate");
        let correlation = self.correlation.unwrap_or_else(mint::suffix);
        let nobody = Caller { from: self.address, correlation, ..nobody };
        let Some(peer) = self.peer else { return nobody };
        let role = peer.identity.role();
        let subject = match role {
            Role::Host => Subject::Agent,
            Role::Controller => Subject::Controller,
            Role::Admin => Subject::Everything,
        };
        let name = peer.identity.to_string();
        let local = role == Role::Admin && name.ends_with(LOCAL_ADMIN) && peer.serial == 0;
        let via = if local { Via::Socket } else { Via::Certificate };
        Caller { subject: Ok(subject), name, via, peer: Some(peer), ..nobody }
    }
}

async fn recognise(node: &Arc<Node>, mut shown: Shown) -> Caller {
    let (tried, bearer) = (shown.tried, shown.bearer.take());
    let caller = shown.unread();
    if !tried {
        return caller;
    }
    // A token that is shown counts, whatever certificate is shown besides.
    let caller = Caller { via: Via::Token, name: String::new(), bearer, ..caller };
    let unknown = |why| Err(Fault::new(ErrorCode::Unauthenticated, why));
    let Some(token) = caller.bearer.clone() else {
        return Caller { subject: unknown("the authorization is no Bearer token"), ..caller };
    };
    match whose(node, &token).await {
        Some((subject, name)) => Caller { subject: Ok(subject), name, ..caller },
        None => Caller { subject: unknown("the token is unknown or was revoked; log in again"), ..caller },
    }
}

/// Whose token it is. A follower that does not know it asks the leader for news first, for it may be a moment old.
async fn whose(node: &Arc<Node>, token: &Secret) -> Option<(Subject, String)> {
    let sha256 = Secret::new(mint::sha256_hex(token.expose()));
    let mut view = node.replica.read();
    let mut subject = view.bearer(&sha256);
    if subject.is_none() && node.leading().is_none() {
        // Bounded: whoever guesses tokens must not keep the leader busy.
        let permit = node.news.acquire().await.ok()?;
        if let Ok(Ok(fresh)) = tokio::time::timeout(NEWS_TIMEOUT, node.replica.linearizable()).await {
            subject = fresh.bearer(&sha256);
            view = fresh;
        }
        drop(permit);
    }
    let Subject::User { user, token } = subject? else { return None };
    let now = clock::now();
    if node.leading().is_some() && view.use_is_news(token, now) {
        let node = Arc::clone(node);
        tokio::spawn(async move {
            // For people who tidy up; one that is lost is made up for by the next use.
            let _ = node.replica.propose(&Command::NoteUse { token }).await;
        });
    }
    let name = view.user(user).map(|user| user.metadata.name.to_string());
    Some((Subject::User { user, token }, name.unwrap_or_default()))
}
