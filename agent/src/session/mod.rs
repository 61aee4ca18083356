//! The one session to the leader.
//!
//! ```text
//! Dialling --Hello--> (Welcome) --> Live --any end--> Waiting (50 ms, then longer, jittered) --> Dialling
//!     ^                  | (Redirect, a few times)                                                  |
//!     +------------------+--------------------------------------------------------------------------+
//! ```
//! Owns no truth: whatever ends a session, the next one begins with everything there is. Guests never notice.

mod live;
pub mod simulation;

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::ErrorCode;
use dunlin_proto::v1::from_agent::Message as Up;
use dunlin_proto::v1::to_agent::Message as Down;
use dunlin_proto::{Fault, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::console::Tunnels;
use crate::host::Host;
use crate::identity::{Identity, IdentityError};
use crate::{capabilities, metrics};

/// First wait before dialling again: a leader change takes about a second, and then every try counts.
const BACKOFF_MIN_MS: u64 = 50;

/// Longest wait before dialling again: an agent is back within a second of a new leader. 300 agents that all do this
/// make 600 small connections a second, which three controllers do not notice.
const BACKOFF_MAX_MS: u64 = 800;

/// Wait after a controller has refused this host's identity: only a person can change that.
const REFUSED_WAIT_MS: u64 = 5000;

/// Redirects followed before waiting: leader changed once, twice; more is controllers that disagree.
const REDIRECTS_MAX: u32 = 4;

/// Time for a controller to answer Hello. The leader commits something for it; a second is ten fsyncs on a slow disk.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);

/// Messages waiting to leave. Few, so that what waits is coalesced on the board instead of queueing here.
const OUTGOING_MAX: usize = 4;

/// Largest message taken in: a desired set of 10 000 VMs of 3 KiB each.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// How an attempt or a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Somebody else leads; empty: nobody is known to.
    Redirect(String),
    /// The controller dismissed this host, and said why.
    Goodbye(Fault),
    /// No connection, or none any more.
    Broken(Fault),
}

/// An open session.
pub(super) struct Opened {
    pub(super) outgoing: mpsc::Sender<v1::FromAgent>,
    pub(super) incoming: Streaming<v1::ToAgent>,
    pub(super) welcome: v1::Welcome,
    pub(super) endpoint: String,
    pub(super) channel: Channel,
}

/// What lasts over sessions.
pub(super) struct Agent {
    pub(super) host: Arc<Host>,
    pub(super) identity: Identity,
    pub(super) tunnels: Tunnels,
    /// Random per process.
    instance: String,
    /// Has this process ever been welcome?
    known: bool,
}

/// Holds sessions, one after the other, until the task is dropped. Ends only when the cluster refuses this host before
/// it was ever welcome, or has another that is it: then somebody should be told at once.
pub(crate) async fn attend(host: Arc<Host>, identity: Identity) -> Result<(), IdentityError> {
    let instance = uuid::Uuid::new_v4().to_string();
    let mut agent = Agent { host, identity, tunnels: Tunnels::default(), instance, known: false };
    let mut wait_ms = BACKOFF_MIN_MS;
    loop {
        let candidates = agent.host.line.candidates();
        let mut refused = None;
        for endpoint in candidates {
            let ended = agent.try_at(endpoint).await;
            metrics::SESSION_ENDED.inc(&[word(ended.as_ref())]);
            match ended {
                Some(End::Goodbye(fault)) => {
                    tracing::error!(code = %fault.code, message = fault.message, "the cluster dismissed this host");
                    refused = Some(fault);
                    break;
                }
                Some(End::Broken(fault)) => {
                    tracing::debug!(%fault, "no session");
                }
                Some(End::Redirect(_)) => {}
                // A session was held: whatever ended it, start anew at once.
                None => {
                    wait_ms = BACKOFF_MIN_MS;
                    break;
                }
            }
        }
        match refused {
            Some(fault)
                if matches!(fault.code, ErrorCode::Unauthenticated | ErrorCode::Forbidden)
                    && !agent.known =>
            {
                return Err(agent.identity.refused(fault.message));
            }
            Some(fault) if fault.code == ErrorCode::AlreadyExists && !agent.known => {
                return Err(agent.identity.rivalled(fault.message));
            }
            Some(fault)
                if matches!(
                    fault.code,
                    ErrorCode::Unauthenticated | ErrorCode::Forbidden | ErrorCode::AlreadyExists
                ) =>
            {
                wait_ms = REFUSED_WAIT_MS;
            }
            _ => {}
        }
        tokio::time::sleep(jittered(wait_ms)).await;
        wait_ms = (wait_ms * 2).min(BACKOFF_MAX_MS);
    }
}

impl Agent {
    /// Tries to hold a session, beginning at `endpoint` and going where it is sent. None: one was held.
    async fn try_at(&mut self, endpoint: String) -> Option<End> {
        let mut next = endpoint;
        for _ in 0..=REDIRECTS_MAX {
            match self.open(next).await {
                Ok(opened) => {
                    self.known = true;
                    let leader = opened.endpoint.clone();
                    self.host.line.set_leader(Some(&leader));
                    tracing::info!(%leader, session = opened.welcome.session, "session open");
                    metrics::SESSIONS.inc();
                    let open = metrics::SESSION.held();
                    let end = self.live(opened).await;
                    drop(open);
                    match end {
                        End::Redirect(leader) if !leader.is_empty() => {
                            tracing::info!(%leader, "the leader has changed");
                            self.host.line.set_leader(Some(&leader));
                        }
                        End::Redirect(_) => self.host.line.set_leader(None),
                        End::Goodbye(fault) => return Some(End::Goodbye(fault)),
                        End::Broken(fault) => {
                            tracing::warn!(%fault, "session lost");
                            self.host.line.set_leader(None);
                        }
                    }
                    return None;
                }
                Err(End::Redirect(leader)) if !leader.is_empty() => next = leader,
                Err(end) => return Some(end),
            }
        }
        Some(End::Redirect(String::new()))
    }

    /// Dials, says Hello, and waits to be welcome.
    async fn open(&self, endpoint: String) -> Result<Opened, End> {
        let channel = self.host.line.dial(&endpoint).await.map_err(End::Broken)?;
        let mut gate = v1::agent_gate_client::AgentGateClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, waiting) = mpsc::channel(OUTGOING_MAX);
        let hello = v1::FromAgent { message: Some(Up::Hello(self.hello())) };
        let broken = |status: tonic::Status| {
            let fault = Fault::from(status);
            // The gate has turned this host's certificate away: only a person can change that.
            let refused = matches!(fault.code, ErrorCode::Unauthenticated | ErrorCode::Forbidden);
            if refused { End::Goodbye(fault) } else { End::Broken(fault) }
        };
        let closed = || End::Broken(Fault::new(ErrorCode::Unavailable, "the controller closed the stream"));
        outgoing.try_send(hello).map_err(|_| closed())?;
        let answered = async {
            let mut incoming = gate.session(ReceiverStream::new(waiting)).await.map_err(broken)?.into_inner();
            let first = incoming.message().await.map_err(broken)?.and_then(|first| first.message);
            match first.ok_or_else(closed)? {
                Down::Welcome(welcome) => Ok((incoming, welcome)),
                Down::Redirect(redirect) => Err(End::Redirect(redirect.leader)),
                Down::Goodbye(goodbye) => Err(End::Goodbye(fault_of(goodbye))),
                _ => Err(End::Broken(Fault::new(ErrorCode::Internal, "the first message was no Welcome"))),
            }
        };
        let late =
            |_| End::Broken(Fault::new(ErrorCode::Deadline, format!("{endpoint} did not answer Hello")));
        let (incoming, welcome) = timeout(WELCOME_TIMEOUT, answered).await.map_err(late)??;
        Ok(Opened { outgoing, incoming, welcome, endpoint, channel })
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            cluster_uid: self.identity.cluster.to_string(),
            host_uid: self.identity.host.to_string(),
            instance: self.instance.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Some(capabilities::look(&self.host).into()),
            level: self.host.config.level.0,
        }
    }
}

/// For the metrics.
const fn word(end: Option<&End>) -> &'static str {
    match end {
        None => "held",
        Some(End::Redirect(_)) => "redirected",
        Some(End::Goodbye(_)) => "dismissed",
        Some(End::Broken(_)) => "broken",
    }
}

/// What a Goodbye says, as the fault it is.
fn fault_of(goodbye: v1::Goodbye) -> Fault {
    Fault::new(goodbye.code.parse().unwrap_or(ErrorCode::Internal), goodbye.message)
}

/// Between half of `wait_ms` and all of it, so that agents that lost the same leader do not come back in step.
fn jittered(wait_ms: u64) -> Duration {
    let random = getrandom::u64().unwrap_or(0);
    Duration::from_millis(wait_ms / 2 + random % (wait_ms / 2 + 1))
}
