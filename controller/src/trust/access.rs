//! The gate in front of every service: who asks, and may such a one ask for that at all?
//!
//! ```text
//!   controller's certificate + caller named by it -> that caller, by way of the controller
//!   certificate that holds ------------------------> its identity
//!   local socket ----------------------------------> admin/local-socket
//!   none, or one that does not hold ---------------> nobody: may join, log in, and read what is public; with a token,
//!                                                    whoever the token speaks for: he may call what people call
//! ```

use std::fmt;
use std::str::FromStr;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use dunlin_model::{ControllerId, ErrorCode, Identity, Invalid, Role};
use dunlin_pki::{Refusal, Verified};
use dunlin_proto::Fault;
use tonic::Status;

use super::Keys;
use crate::rights::{AUTHORIZATION, FORWARDED_KEY};

/// Metadata key by which a controller names whose call it passes on. From anybody else it is taken away.
pub(crate) const CALLER_KEY: &str = "dunlin-caller";
/// Whoever calls on a controller's local socket. Nobody joins under this name.
pub(crate) const LOCAL_ADMIN: &str = "local-socket";

/// Where our gRPC services are.
const GRPC: &str = "/dunlin.v1.";
/// Where the REST API is. What is beside it (health, the API's description, pages) everybody may read.
const REST: &str = "/v1/";
/// What helps whoever shows nothing.
const LOG_IN: &str = ", nor a token: log in first (`dunlin login USER`)";
/// What nobody in particular may call: there the token or the password is the proof.
const OPEN: &[&str] = &[
    "/dunlin.v1.Identities/Join",
    "/dunlin.v1.Access/Login",
    "/dunlin.v1.Access/LoginByProvider",
    "/dunlin.v1.Access/ShowProvider",
];
/// What anybody with a certificate may call.
const EVERYBODYS: &[&str] = &["/dunlin.v1.Identities/Renew", "/dunlin.v1.Identities/WhoAmI"];
/// What an agent may call beside those: its session and consoles, the bytes of images, and which of them there still are
/// (`List` looks at the kind).
const AGENTS: &[&str] = &[
    "/dunlin.v1.AgentGate/Session",
    "/dunlin.v1.AgentGate/Tunnel",
    "/dunlin.v1.Fleet/DownloadBlob",
    "/dunlin.v1.Fleet/List",
];
/// What only an agent may call.
const AGENT_GATE: &str = "/dunlin.v1.AgentGate/";

/// How a connection came, told to each request on it.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    /// With a certificate that held at the handshake.
    Proved(Verified),
    /// With none, or with one that does not hold.
    Nobody(Refusal),
    /// Over the local socket, by root or by who owns the data directory.
    Local,
}

/// Who asks. In the extensions of every request that came with a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Who.
    pub(crate) identity: Identity,
    /// Number of the certificate; 0 on the local socket.
    pub(crate) serial: u64,
    /// The controller that passed the call on.
    pub(crate) via: Option<ControllerId>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.identity, self.serial)
    }
}

impl FromStr for Peer {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new(CALLER_KEY, format!("{text:?} is no caller"), "IDENTITY#SERIAL");
        let (identity, serial) = text.split_once('#').ok_or_else(wrong)?;
        let serial: u64 = serial.parse().map_err(|_| wrong())?;
        let peer = Self { identity: identity.parse()?, serial, via: None };
        if peer.to_string() == text { Ok(peer) } else { Err(wrong()) }
    }
}

/// Lets a request in with its [`Peer`], or says why not. Whoever shows a token besides or instead is let in to what people
/// call, and judged by the token there.
pub(crate) fn gate(keys: &Keys, request: &mut Request) -> Result<(), Fault> {
    let arrival = request.extensions().get::<Arrival>().cloned();
    let arrival = arrival.unwrap_or(Arrival::Nobody(Refusal::Missing));
    // Only another controller has passed anything on.
    let relay = matches!(&arrival, Arrival::Proved(by) if by.identity.role() == Role::Controller && keys.admit(by).is_ok());
    if !relay {
        request.headers_mut().remove(FORWARDED_KEY);
    }
    let who = who(keys, &arrival, request.headers())?;
    request.headers_mut().remove(CALLER_KEY);
    let token = request.headers().contains_key(AUTHORIZATION);
    if let Ok(peer) = &who {
        request.extensions_mut().insert(peer.clone());
    }
    allowed(request.uri().path(), who.as_ref().map_err(Clone::clone), token)
}

/// Who asks; or, inside, why it is nobody.
fn who(keys: &Keys, arrival: &Arrival, headers: &HeaderMap) -> Result<Result<Peer, Refusal>, Fault> {
    let shown = match arrival {
        Arrival::Proved(shown) => shown,
        Arrival::Nobody(refusal) => return Ok(Err(refusal.clone())),
        Arrival::Local => {
            let name = LOCAL_ADMIN.parse().expect("a word is a name");
            return Ok(Ok(Peer { identity: Identity::Admin(name), serial: 0, via: None }));
        }
    };
    if let Err(refusal) = keys.admit(shown) {
        return Ok(Err(refusal));
    }
    let Identity::Controller(by) = shown.identity else {
        return Ok(Ok(Peer { identity: shown.identity.clone(), serial: shown.serial, via: None }));
    };
    match headers.get(CALLER_KEY) {
        Some(caller) => {
            let caller: Peer = caller.to_str().unwrap_or_default().parse()?;
            let named =
                Verified { identity: caller.identity.clone(), serial: caller.serial, anchor: String::new() };
            Ok(keys.admit(&named).map(|()| Peer { via: Some(by), ..caller }))
        }
        None if headers.contains_key(FORWARDED_KEY) => Ok(Err(Refusal::Missing)),
        None => Ok(Ok(Peer { identity: shown.identity.clone(), serial: shown.serial, via: None })),
    }
}

/// May such a one call that?
fn allowed(path: &str, who: Result<&Peer, Refusal>, token: bool) -> Result<(), Fault> {
    let public = !path.starts_with(GRPC) && !path.starts_with(REST);
    if public || OPEN.contains(&path) {
        return Ok(());
    }
    if who.is_err() && token && !path.starts_with(AGENT_GATE) && !EVERYBODYS.contains(&path) {
        return Ok(());
    }
    let peer = who.map_err(|refusal| {
        let way = if matches!(refusal, Refusal::Missing) { LOG_IN } else { "" };
        Fault::new(ErrorCode::Unauthenticated, format!("{refusal}{way}"))
    })?;
    let may = EVERYBODYS.contains(&path)
        || match peer.identity.role() {
            Role::Host => AGENTS.contains(&path),
            Role::Admin | Role::Controller => !path.starts_with(AGENT_GATE),
        };
    if may {
        return Ok(());
    }
    let message = format!("{} may not call {}", peer.identity, path.trim_start_matches('/'));
    Err(Fault::new(ErrorCode::Forbidden, message))
}

/// The answer to whoever is not let in, in the way he speaks.
pub(crate) fn refused(request: &Request, fault: Fault) -> Response {
    tracing::debug!(path = request.uri().path(), code = %fault.code, message = fault.message, "refused at the gate");
    let speaks_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if speaks_grpc {
        return Status::from(fault).into_http::<Body>();
    }
    let status = StatusCode::from_u16(fault.code.http()).unwrap_or(StatusCode::FORBIDDEN);
    let problem = serde_json::json!({
        "title": fault.code.as_str(),
        "status": status.as_u16(),
        "detail": fault.message,
        "code": fault.code.as_str(),
    });
    let kind = [(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))];
    let mut response = (status, kind, problem.to_string()).into_response();
    response.extensions_mut().insert(fault.code);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(identity: &str) -> Peer {
        Peer { identity: identity.parse().unwrap(), serial: 7, via: None }
    }

    /// Each role reaches what it needs and nothing else, and nobody reaches only what is open.
    #[test]
    fn roles_reach_what_they_need() {
        let (admin, one) = (peer("admin/ada"), peer("controller/1"));
        let host = peer("host/6e1d0c46-6a6b-4dd2-a1a6-0f8e5f6c9d01");
        let check = |path: &str, nobody: bool, as_host: bool, as_admin: bool| {
            assert_eq!(allowed(path, Err(Refusal::Expired), false).is_ok(), nobody, "nobody: {path}");
            for (who, may) in [(&host, as_host), (&admin, as_admin), (&one, as_admin)] {
                let found = allowed(path, Ok(who), false).map_err(|fault| fault.code);
                let expected = if may { Ok(()) } else { Err(ErrorCode::Forbidden) };
                assert_eq!(found, expected, "{who}: {path}");
            }
        };
        check("/dunlin.v1.Identities/Join", true, true, true);
        check("/dunlin.v1.Identities/Renew", false, true, true);
        check("/dunlin.v1.Identities/Rotate", false, false, true);
        check("/dunlin.v1.AgentGate/Session", false, true, false);
        check("/dunlin.v1.Fleet/DownloadBlob", false, true, true);
        check("/dunlin.v1.Fleet/UploadBlob", false, false, true);
        check("/dunlin.v1.Fleet/CreateToken", false, false, true);
        check("/dunlin.v1.Advisor/Explain", false, false, true);
        check("/v1/vms", false, false, true);
        check("/healthz", true, true, true);
        for (path, may) in
            [("/v1/vms", true), ("/dunlin.v1.Fleet/List", true), ("/dunlin.v1.AgentGate/Session", false)]
        {
            assert_eq!(allowed(path, Err(Refusal::Missing), true).is_ok(), may, "with a token: {path}");
        }
        assert!(
            allowed("/v1/vms", Ok(&host), true).is_err(),
            "an agent stays one, whatever it shows besides"
        );
        let refused = allowed("/v1/vms", Err(Refusal::Expired), false).unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (ErrorCode::Unauthenticated, "the certificate has expired")
        );
    }

    /// A caller's name is read back, and in one spelling only.
    #[test]
    fn callers_read_back() {
        for text in ["admin/ada#7", "controller/3#0"] {
            assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        }
        for text in
            ["admin/ada", "admin/ada#", "admin/ada#07", "admin/ada#-1", "#7", "admin/a#b#7", "root/x#1", ""]
        {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }
}
