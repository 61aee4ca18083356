//! Answers the other controllers, and notices when the leader's connection breaks.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use dunlin_proto::v1 as wire;
use dunlin_proto::v1::raft_transport_server::{RaftTransport, RaftTransportServer};
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::ReadError;
use super::client::MESSAGE_BYTES_MAX;
use super::hearing::Hearing;
use super::identity::Identity;
use super::reads::ReadIndex;
use super::types::{
    DecodeError, Raft, Types, entry_from_wire, log_id_from_wire, log_id_to_wire, meta_from_wire,
    vote_from_wire, vote_to_wire,
};
use super::wire::{Line, Wire, lines};

/// The service of one controller.
pub(super) struct Service {
    pub(super) raft: Raft,
    pub(super) identity: Arc<Identity>,
    pub(super) reads: ReadIndex,
    pub(super) hearing: Hearing,
}

/// A running listener.
pub(super) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Stops listening and closes every connection.
    pub(super) async fn stop(self) {
        drop(self.stop);
        drop(self.task.await);
    }
}

/// Binds the listener, before anything else is started.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until stopped. The id of a controller whose connection closed is sent to `gone`.
pub(super) fn start(
    listener: TcpListener,
    wire: Option<Wire>,
    service: Service,
    gone: mpsc::UnboundedSender<u64>,
) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let incoming = ReceiverStream::new(lines(listener, wire)).map(move |line| {
        let line = line?;
        let peer = Caller { proved: line.proved(), spoken: Arc::default() };
        Ok::<_, io::Error>(Connection { line, peer, gone: gone.clone() })
    });
    let service = RaftTransportServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let serving = Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, async {
        drop(stopped.await);
    });
    let task = tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the raft transport stopped");
        }
    });
    Running { stop, task }
}

/// A connection that knows which controller it is from, and tells when it closes.
struct Connection {
    line: Line,
    peer: Caller,
    gone: mpsc::UnboundedSender<u64>,
}

/// The controller at the other end.
#[derive(Clone)]
struct Caller {
    /// Whose certificate was shown.
    proved: Option<u64>,
    /// Its id, once it has spoken; 0 until then.
    spoken: Arc<AtomicU64>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let peer = self.peer.spoken.load(Ordering::Relaxed);
        if peer != 0 {
            // Nobody listens while stopping.
            let _ = self.gone.send(peer);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.line).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.line).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.line.is_write_vectored()
    }
}

impl Service {
    async fn admit(&self, caller: Option<Caller>, header: Option<wire::RaftHeader>) -> Result<(), Status> {
        let from = self.identity.admit(header).await?;
        if let Some(caller) = caller {
            if caller.proved.is_some_and(|proved| proved != from) {
                let text = format!("the message is of controller {from}, the certificate of another");
                return Err(Status::permission_denied(text));
            }
            caller.spoken.store(from, Ordering::Relaxed);
        }
        self.hearing.note(from);
        Ok(())
    }
}

fn caller<T>(request: &Request<T>) -> Option<Caller> {
    request.extensions().get::<Caller>().cloned()
}

#[tonic::async_trait]
impl RaftTransport for Service {
    async fn append(
        &self,
        request: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendResponse>, Status> {
        use wire::append_response::Result as Answer;
        let caller = caller(&request);
        let wire::AppendRequest { header, vote, previous, leader_commit, entries } = request.into_inner();
        self.admit(caller, header).await?;
        let entries = entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>();
        let request = AppendEntriesRequest::<Types> {
            vote: vote.map(vote_from_wire).ok_or_else(|| missing("vote"))?,
            prev_log_id: previous.map(log_id_from_wire),
            leader_commit: leader_commit.map(log_id_from_wire),
            entries: entries.map_err(|error| garbled(&error))?,
        };
        let answer = match self.raft.append_entries(request).await.map_err(|error| stopped(&error))? {
            AppendEntriesResponse::Success => Answer::Success(true),
            AppendEntriesResponse::PartialSuccess(Some(id)) => Answer::Partial(log_id_to_wire(&id)),
            AppendEntriesResponse::PartialSuccess(None) => return Err(Status::internal("stored nothing")),
            AppendEntriesResponse::Conflict => Answer::Conflict(true),
            AppendEntriesResponse::HigherVote(vote) => Answer::HigherVote(vote_to_wire(&vote)),
        };
        Ok(Response::new(wire::AppendResponse { result: Some(answer), store: self.identity.store }))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        let caller = caller(&request);
        let wire::VoteRequest { header, vote, last_log } = request.into_inner();
        self.admit(caller, header).await?;
        let vote = vote.map(vote_from_wire).ok_or_else(|| missing("vote"))?;
        let request = VoteRequest { vote, last_log_id: last_log.map(log_id_from_wire) };
        let answer = self.raft.vote(request).await.map_err(|error| stopped(&error))?;
        Ok(Response::new(wire::VoteResponse {
            vote: Some(vote_to_wire(&answer.vote)),
            granted: answer.vote_granted,
            last_log: answer.last_log_id.as_ref().map(log_id_to_wire),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<wire::SnapshotChunk>,
    ) -> Result<Response<wire::SnapshotChunkResponse>, Status> {
        use wire::snapshot_chunk_response::Result as Answer;
        let caller = caller(&request);
        let wire::SnapshotChunk { header, vote, meta, offset, data, done } = request.into_inner();
        self.admit(caller, header).await?;
        let request = InstallSnapshotRequest::<Types> {
            vote: vote.map(vote_from_wire).ok_or_else(|| missing("vote"))?,
            meta: meta_from_wire(meta.ok_or_else(|| missing("meta"))?).map_err(|error| garbled(&error))?,
            offset,
            data,
            done,
        };
        let answer = match self.raft.install_snapshot(request).await {
            Ok(response) => Answer::Vote(vote_to_wire(&response.vote)),
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(_))) => Answer::Mismatch(true),
            Err(error) => return Err(stopped(&error)),
        };
        Ok(Response::new(wire::SnapshotChunkResponse { result: Some(answer) }))
    }

    async fn stand(
        &self,
        request: Request<wire::StandRequest>,
    ) -> Result<Response<wire::StandResponse>, Status> {
        let caller = caller(&request);
        self.admit(caller, request.into_inner().header).await?;
        self.raft.trigger().elect().await.map_err(|error| stopped(&error))?;
        Ok(Response::new(wire::StandResponse {}))
    }

    async fn heard(
        &self,
        request: Request<wire::HeardRequest>,
    ) -> Result<Response<wire::HeardResponse>, Status> {
        let caller = caller(&request);
        let wire::HeardRequest { header, about } = request.into_inner();
        self.admit(caller, header).await?;
        let silent_ms = u64::try_from(self.hearing.silence(about).as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(wire::HeardResponse { silent_ms }))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let caller = caller(&request);
        self.admit(caller, request.into_inner().header).await?;
        let log_end = self.reads.confirm().await.map_err(|error| match error {
            ReadError::NotLeader { .. } => Status::failed_precondition(error.to_string()),
            ReadError::Deadline { .. } => Status::deadline_exceeded(error.to_string()),
            ReadError::Stopped => Status::aborted(error.to_string()),
        })?;
        Ok(Response::new(wire::ReadIndexResponse { log_end }))
    }
}

fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("the message lacks {field}"))
}

fn garbled(error: &DecodeError) -> Status {
    Status::invalid_argument(format!("the message cannot be read: {error}"))
}

fn stopped(error: &dyn std::error::Error) -> Status {
    Status::aborted(error.to_string())
}
