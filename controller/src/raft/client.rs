//! Speaks to the other controllers.
//!
//! Two connections to each: one for log entries, one for heartbeats, votes, reads and snapshots, so that a hundred
//! megabytes of snapshot never stand in front of an append. They are made when first needed and kept.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_proto::v1 as wire;
use dunlin_proto::v1::raft_transport_client::RaftTransportClient;
use openraft::AnyError;
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::identity::Identity;
use super::log_store::Durable;
use super::types::{
    LogId, Types, entry_to_wire, log_id_from_wire, log_id_to_wire, meta_to_wire, vote_from_wire, vote_to_wire,
};
use super::{Member, Wire};

/// What a message may weigh: an append of 1 MiB that was topped by one command of 1 MiB, and its envelope.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// How long a connection may take, its handshake included. A LAN answers in a millisecond, a busy machine shakes hands in
/// some; a missing host never does.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// An idle connection is probed so often, and dropped when the probe is not answered within the second of these:
/// otherwise the connection to a host that lost power would hang in retransmission long after it is back.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// Pause before an unreachable controller is tried again: one that restarts is found within two of them.
const BACKOFF: Duration = Duration::from_millis(100);

/// How long an append waits for the local disk so that it can carry the news of a commit: a few syncs.
const COMMIT_PATIENCE: Duration = Duration::from_millis(10);

type Client = RaftTransportClient<Channel>;
type RpcError<E = openraft::error::Infallible> = RPCError<u64, Member, RaftError<u64, E>>;

/// Makes and keeps the connections.
#[derive(Clone)]
pub(super) struct Network {
    identity: Arc<Identity>,
    wire: Option<Wire>,
    peers: Arc<Mutex<HashMap<(u64, String), Peer>>>,
    /// The store each controller had when it first answered.
    stores: Arc<Mutex<HashMap<u64, u64>>>,
    durable: watch::Receiver<Durable>,
    /// Where connections live, whoever asks for them first.
    threads: Handle,
}

/// The connections to one controller.
#[derive(Clone)]
pub(super) struct Peer {
    id: u64,
    identity: Arc<Identity>,
    stores: Arc<Mutex<HashMap<u64, u64>>>,
    durable: watch::Receiver<Durable>,
    log: Client,
    other: Client,
    /// Raised while this controller refuses to talk, so that it is told once and not ten times a second.
    refused: Arc<AtomicBool>,
}

impl Network {
    /// To be called on the threads of the core.
    pub(super) fn new(
        identity: Arc<Identity>,
        durable: watch::Receiver<Durable>,
        wire: Option<Wire>,
    ) -> Self {
        let threads = Handle::current();
        Self { identity, wire, peers: Arc::default(), stores: Arc::default(), durable, threads }
    }

    /// The connections to controller `id` at `address`.
    pub(super) fn peer(&self, id: u64, address: &str) -> Peer {
        let _inside = self.threads.enter();
        let mut peers = lock(&self.peers);
        let peer = peers.entry((id, address.to_owned())).or_insert_with(|| Peer {
            id,
            identity: Arc::clone(&self.identity),
            stores: Arc::clone(&self.stores),
            durable: self.durable.clone(),
            log: connect(address, self.wire.as_ref()),
            other: connect(address, self.wire.as_ref()),
            refused: Arc::default(),
        });
        peer.clone()
    }

    /// Controller `id` is about to be added anew: whatever store it has now is its own.
    pub(super) fn forget(&self, id: u64) {
        lock(&self.stores).remove(&id);
    }

    /// Closes the connections that nobody uses any more.
    pub(super) fn close(&self) {
        lock(&self.peers).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(address: &str, wire: Option<&Wire>) -> Client {
    let scheme = if wire.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"));
    // An address that is none leads nowhere; every call says so.
    let endpoint = endpoint.unwrap_or_else(|_| Endpoint::from_static("http://invalid.invalid:1"));
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    let channel = match wire {
        Some(wire) => endpoint.connect_with_connector_lazy(wire.keyring.dialer()),
        None => endpoint.connect_lazy(),
    };
    Client::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, &node.raft)
    }
}

impl Peer {
    /// Asks the leader which part of the log a linearizable read must have seen.
    pub(super) async fn read_index(&mut self) -> Result<u64, Status> {
        let header = self.identity.header(self.id);
        let response = self.other.read_index(wire::ReadIndexRequest { header }).await?;
        Ok(response.into_inner().log_end)
    }

    /// Asks it to stand for election.
    pub(super) async fn stand(&mut self) -> Result<(), Status> {
        let header = self.identity.header(self.id);
        self.other.stand(wire::StandRequest { header }).await.map(drop)
    }

    /// Asks how long it has heard nothing from controller `about`; any answer shows that it lives itself.
    pub(super) async fn heard(&mut self, about: u64) -> Result<Duration, Status> {
        let header = self.identity.header(self.id);
        let response = self.other.heard(wire::HeardRequest { header, about }).await?;
        Ok(Duration::from_millis(response.into_inner().silent_ms))
    }

    /// A controller whose store is another one than before has lost its log, and with it promises that the quorum
    /// counts on. It must not be filled up again under its old name.
    fn check_store(&self, store: u64) -> Result<(), AnyError> {
        let known = *lock(&self.stores).entry(self.id).or_insert(store);
        if known == store {
            return Ok(());
        }
        let text =
            format!("controller {} has lost its store: remove it from the cluster and add it again", self.id);
        self.complain(&text);
        Err(AnyError::error(text))
    }

    fn complain(&self, reason: &str) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::error!(controller = self.id, reason, "no replication to a controller");
        }
    }

    /// What a failed call means to the core: wait before the next try, or try at once, or the other side has stopped.
    fn failed<E: Error>(&self, status: &Status) -> RPCError<u64, Member, RaftError<u64, E>> {
        match status.code() {
            // Refused, reset, timed out while connecting.
            Code::Unavailable => RPCError::Unreachable(Unreachable::new(status)),
            // The other side will not talk to us until somebody acts.
            Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::PermissionDenied => {
                self.complain(status.message());
                RPCError::Unreachable(Unreachable::new(status))
            }
            Code::Aborted => {
                RPCError::RemoteError(RemoteError::new(self.id, RaftError::Fatal(Fatal::Stopped)))
            }
            _ => RPCError::Network(NetworkError::new(status)),
        }
    }

    /// What followers may be told is committed: only what is on disk here too; see `LogStore::append`. A disk that takes
    /// long must not hold up the entries themselves: the news then comes with a later message.
    async fn told_committed(&mut self, committed: Option<LogId>) -> Option<wire::LogId> {
        let committed = committed?;
        let written = self.durable.wait_for(|end| end.as_ref().map_or(true, |end| *end > committed.index));
        match timeout(COMMIT_PATIENCE, written).await {
            Ok(Ok(end)) if end.is_ok() => Some(log_id_to_wire(&committed)),
            _ => None,
        }
    }

    fn header(&self) -> Option<wire::RaftHeader> {
        self.identity.header(self.id)
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        use wire::append_response::Result as Answer;
        let is_heartbeat = request.entries.is_empty();
        let leader_commit = self.told_committed(request.leader_commit).await;
        let message = wire::AppendRequest {
            header: self.header(),
            vote: Some(vote_to_wire(&request.vote)),
            previous: request.prev_log_id.as_ref().map(log_id_to_wire),
            leader_commit,
            entries: request.entries.iter().map(entry_to_wire).collect(),
        };
        let client = if is_heartbeat { &mut self.other } else { &mut self.log };
        let response = client.append(message).await.map_err(|status| self.failed(&status))?.into_inner();
        self.check_store(response.store).map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        self.refused.store(false, Ordering::Relaxed);
        match response.result {
            Some(Answer::Success(_)) => Ok(AppendEntriesResponse::Success),
            Some(Answer::Partial(id)) => {
                Ok(AppendEntriesResponse::PartialSuccess(Some(log_id_from_wire(id))))
            }
            Some(Answer::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
            Some(Answer::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote_from_wire(vote))),
            None => Err(meaningless(self.id)),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        use wire::snapshot_chunk_response::Result as Answer;
        let segment =
            openraft::SnapshotSegmentId { id: request.meta.snapshot_id.clone(), offset: request.offset };
        let message = wire::SnapshotChunk {
            header: self.header(),
            vote: Some(vote_to_wire(&request.vote)),
            meta: Some(meta_to_wire(&request.meta)),
            offset: request.offset,
            data: request.data,
            done: request.done,
        };
        let response = self.other.install_snapshot(message).await.map_err(|status| self.failed(&status))?;
        match response.into_inner().result {
            Some(Answer::Vote(vote)) => Ok(InstallSnapshotResponse { vote: vote_from_wire(vote) }),
            Some(Answer::Mismatch(_)) => {
                let start = openraft::SnapshotSegmentId { id: segment.id.clone(), offset: 0 };
                let mismatch = SnapshotMismatch { expect: start, got: segment };
                Err(RPCError::RemoteError(RemoteError::new(self.id, RaftError::APIError(mismatch.into()))))
            }
            None => Err(meaningless(self.id)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let message = wire::VoteRequest {
            header: self.header(),
            vote: Some(vote_to_wire(&request.vote)),
            last_log: request.last_log_id.as_ref().map(log_id_to_wire),
        };
        let response = self.other.vote(message).await.map_err(|status| self.failed(&status))?.into_inner();
        let vote = response.vote.map(vote_from_wire).ok_or_else(|| meaningless(self.id))?;
        Ok(VoteResponse {
            vote,
            vote_granted: response.granted,
            last_log_id: response.last_log.map(log_id_from_wire),
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

fn meaningless<E: Error>(target: u64) -> RPCError<u64, Member, RaftError<u64, E>> {
    RPCError::Network(NetworkError::new(&AnyError::error(format!("controller {target} gave no answer"))))
}
