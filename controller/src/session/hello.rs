//! Who is it, and may it sit down? From the first message of a stream to a committed session.

use std::net::SocketAddr;
use std::time::Duration;

use dunlin_model::capabilities::HostCapabilities;
use dunlin_model::{ErrorCode, HostId, Identity, Level};
use dunlin_proto::v1::from_agent::Message;
use dunlin_proto::{Fault, read, v1};
use dunlin_state::{Command, State};
use tonic::Streaming;

use super::seats::{Seat, ToAgentSender};
use crate::api::{carry, rejected_fault};
use crate::node::Node;
use crate::trust::Peer;

/// How long an agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a session number is tried for: another controller may have counted on meanwhile.
const OPEN_TRIES: u32 = 3;

/// A session that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) host: HostId,
    pub(super) session: u64,
    /// The leadership it belongs to.
    pub(super) term: u64,
    pub(super) seat: Seat,
    pub(super) peer: Peer,
    /// What it says of itself.
    pub(super) capabilities: HostCapabilities,
}

/// Why it did not open.
#[derive(Debug)]
pub(super) enum Closed {
    /// Another controller leads.
    Elsewhere,
    /// The agent is told why.
    Refused(Fault),
    /// It went away.
    Gone,
}

impl From<Fault> for Closed {
    fn from(fault: Fault) -> Self {
        match fault.code {
            ErrorCode::NotLeader | ErrorCode::Unavailable => Self::Elsewhere,
            _ => Self::Refused(fault),
        }
    }
}

/// Reads the Hello, checks it and commits the session.
pub(super) async fn admit(
    node: &Node,
    from_agent: &mut Streaming<v1::FromAgent>,
    to_agent: ToAgentSender,
    address: Option<SocketAddr>,
    peer: Peer,
) -> Result<Opened, Closed> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, from_agent.message()).await;
    let Ok(Ok(Some(v1::FromAgent { message: Some(Message::Hello(hello)) }))) = first else {
        return Err(Closed::Gone);
    };
    let term = node.leading().ok_or(Closed::Elsewhere)?;
    // An older leader's view would do for a known host, but one that has just joined must be found.
    let view = node.replica.linearizable().await.map_err(|_| Closed::Elsewhere)?;
    let host = identify(&view, &hello, &peer)?;
    let capabilities: HostCapabilities =
        read(hello.capabilities, "capabilities").map_err(|e| Closed::Refused(e.into()))?;
    // One that says none is of a time before there were any.
    let level = Level(hello.level.max(Level::OLDEST.0));
    if level < view.level() {
        return Err(Closed::Refused(too_old(&hello.agent_version, level, view.level())));
    }
    let seat = node.sessions.seat(hello.instance, address, level, to_agent);
    if let Err(rival) = node.sessions.claim(host, &seat).await {
        let address =
            rival.address.map_or_else(|| "an unknown address".into(), |address| address.to_string());
        let message = format!("another agent with the identity of host {host} is alive at {address}");
        return Err(Closed::Refused(Fault::new(ErrorCode::AlreadyExists, message)));
    }
    match open(node, term, host, hello.agent_version, &capabilities).await {
        Ok(session) => Ok(Opened { host, session, term, seat, peer, capabilities }),
        Err(fault) => {
            node.sessions.leave(host, &seat);
            Err(fault.into())
        }
    }
}

/// What an agent is told that would not read what is written.
pub(super) fn too_old(version: &str, reads: Level, level: Level) -> Fault {
    let release = if version.is_empty() { String::new() } else { format!(" of release {version}") };
    let message = format!(
        "the cluster writes at feature level {level}, and this agent{release} reads up to {reads}: install the release that the \
         controllers have; guests go on meanwhile"
    );
    Fault::new(ErrorCode::WrongState, message)
}

fn identify(state: &State, hello: &v1::Hello, peer: &Peer) -> Result<HostId, Fault> {
    let stranger = |message: String| Fault::new(ErrorCode::Unauthenticated, message);
    let cluster = state.cluster().map(|cluster| cluster.metadata.uid.to_string());
    if cluster.as_ref() != Some(&hello.cluster_uid) {
        let ours = cluster.unwrap_or_else(|| "not founded yet".into());
        let message = format!("this cluster is {ours}; the agent belongs to {:?}", hello.cluster_uid);
        return Err(stranger(message));
    }
    let host: HostId = read(hello.host_uid.clone(), "host_uid")?;
    if peer.identity != Identity::Host(host) {
        let message =
            format!("the certificate is that of {}, which may not speak for host {host}", peer.identity);
        return Err(Fault::new(ErrorCode::Forbidden, message));
    }
    if !state.trust().admits(&peer.identity, peer.serial) {
        return Err(stranger(format!("the certificate of host {host} was revoked")));
    }
    match state.host(host) {
        Some(_) => Ok(host),
        None => Err(stranger(format!("no host {host} has joined, or it was removed"))),
    }
}

async fn open(
    node: &Node,
    term: u64,
    host: HostId,
    agent_version: String,
    capabilities: &HostCapabilities,
) -> Result<u64, Fault> {
    let mut tries = 1;
    loop {
        let view = node.replica.read();
        let session = view.host(host).map_or(0, |host| host.status.session) + 1;
        let (agent_version, capabilities) = (agent_version.clone(), capabilities.clone().at(view.level()));
        let command = Command::OpenSession { host, session, agent_version, capabilities };
        // Before the state knows it: a host that is Up and has no session here would be given up at once.
        node.board.open(term, host, session);
        let proposed = node.replica.propose_in_term(term, &command).await;
        if !matches!(proposed, Ok(Ok(_))) {
            node.board.close(host, session);
        }
        match proposed.map_err(|e| carry::propose_fault(&e))? {
            Ok(_) => return Ok(session),
            Err(rejected) if rejected.code == ErrorCode::WrongState && tries < OPEN_TRIES => tries += 1,
            Err(rejected) => return Err(rejected_fault(rejected)),
        }
    }
}
