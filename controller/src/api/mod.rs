//! The fleet API: parses, carries to the leader, reads, watches. Everything a client can see passes here.
//!
//! Names generated protocol types; nothing behind it does, except `session`. Decides nothing about the fleet: what may
//! be written is for `apply`, what must be done for the reconcilers.

mod advisor;
mod blobs;
pub(crate) mod call;
pub(crate) mod carry;
mod console;
mod peers;
mod policy;
mod reads;
mod watch;
mod writes;

use std::pin::Pin;
use std::sync::Arc;

use dunlin_model::invalid::in_range;
use dunlin_model::{ErrorCode, Timestamp};
use dunlin_proto::v1::fleet_server::{Fleet, FleetServer};
use dunlin_proto::{Fault, v1};
use dunlin_state::{Command, Outcome, Rejected, Write, apply};
use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use advisor::Advice;
pub(crate) use blobs::keep_blobs;
use call::{CALL_DEADLINE, Call, TRANSFER_DEADLINE};
pub(crate) use peers::{Peers, cluster_of, gate};
pub(crate) use reads::rejected_fault;
pub(crate) use watch::WATCHES_MAX;
use writes::Ask;

use crate::node::Node;
use crate::{clock, mint};

/// Largest message taken or given. Objects are far smaller; lists and blobs are cut to fit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest idempotency key, bytes.
const KEY_MAX: u64 = 64;
/// Shortest and longest life of a token, s: up to a week.
const TOKEN_TTL_S: std::ops::RangeInclusive<u64> = 1..=604_800;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The Fleet service of one controller.
#[derive(Debug)]
pub(crate) struct Api {
    node: Arc<Node>,
}

impl Api {
    pub(crate) fn service(node: Arc<Node>) -> FleetServer<Self> {
        let server = FleetServer::new(Self { node });
        server.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn write<A: Ask>(&self, request: Request<A>) -> Result<Response<v1::Object>, Status> {
        let most = if request.get_ref().moves_bytes() { TRANSFER_DEADLINE } else { CALL_DEADLINE };
        let call = Call::of(&request, most);
        let mut ask = request.into_inner();
        if ask.key().is_empty() {
            *ask.key() = mint::secret();
        }
        in_range("idempotency_key (bytes)", ask.key().len() as u64, 1..=KEY_MAX).map_err(Fault::from)?;
        let object = carry::to_leader(&self.node, call, ask, |ask| self.decide(ask), A::send).await?;
        Ok(Response::new(object))
    }

    /// Runs a write on the leader.
    async fn decide<A: Ask>(&self, mut ask: A) -> Result<v1::Object, Fault> {
        let (key, dry_run) = (ask.key().clone(), ask.dry_run());
        let write = ask.write(&self.node.replica.read())?;
        self.node.room.admit(&write)?;
        if let Some(spec) = writes::needs_bytes(&write).filter(|_| !dry_run) {
            blobs::ensure_stored(&self.node, spec).await?;
        }
        let outcome = if dry_run { self.rehearse(key, write)? } else { self.commit(key, write).await? };
        Ok(outcome.object.map_or_else(v1::Object::default, |object| reads::show(&self.node, &object)))
    }

    async fn commit(&self, key: String, write: Write) -> Result<Outcome, Fault> {
        let proposed = self.node.replica.propose(&Command::Write { key, write }).await;
        proposed.map_err(|e| carry::propose_fault(&e))?.map_err(rejected_fault)
    }

    /// What the write would lead to now: applied to a copy, which costs nothing and is dropped.
    fn rehearse(&self, key: String, write: Write) -> Result<Outcome, Fault> {
        let view = self.node.replica.read();
        let stamp = dunlin_state::Stamp { index: view.index + 1, time: clock::now() };
        let mut copy = view.machine.clone();
        let outcome: Result<Outcome, Rejected> = apply(&mut copy, &stamp, &Command::Write { key, write });
        outcome.map_err(rejected_fault)
    }

    async fn mint_token(&self, ttl_s: u64) -> Result<v1::CreateTokenResponse, Fault> {
        let token = mint::secret();
        let expires = Timestamp(clock::now().0 + ttl_s * 1000);
        let write = Write::CreateToken { sha256: mint::sha256_hex(&token), expires };
        self.node.room.admit(&write)?;
        // A token is shown once and kept nowhere, so an answer cannot be given again: each try mints its own, and
        // the client's key is not used. A token whose answer was lost is nobody's, and expires.
        self.commit(mint::secret(), write).await?;
        Ok(v1::CreateTokenResponse { token, expires_ms: expires.0 })
    }
}

#[tonic::async_trait]
impl Fleet for Api {
    type WatchStream = Streamed<v1::WatchEvent>;
    type ConsoleStream = Streamed<v1::ConsoleChunk>;
    type DownloadBlobStream = Streamed<v1::BlobChunk>;

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Object>, Status> {
        let call = Call::of(&request, CALL_DEADLINE);
        let view = carry::view(&self.node, call, request.get_ref().consistency()).await?;
        Ok(Response::new(reads::get(&self.node, &view, request.get_ref())?))
    }

    #[tracing::instrument(skip_all)]
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let call = Call::of(&request, CALL_DEADLINE);
        let view = carry::view(&self.node, call, request.get_ref().consistency()).await?;
        Ok(Response::new(reads::list(&self.node, &view, request.get_ref())?))
    }

    #[tracing::instrument(skip_all, fields(after = request.get_ref().after_revision))]
    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&request, CALL_DEADLINE);
        let events = watch::watch(Arc::clone(&self.node), call, request.into_inner()).await?;
        Ok(Response::new(Box::pin(events.map(|event| event.map_err(Status::from)))))
    }

    #[tracing::instrument(skip_all)]
    async fn create(&self, request: Request<v1::CreateRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all)]
    async fn update(&self, request: Request<v1::UpdateRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(vm = request.get_ref().vm))]
    async fn set_power(&self, request: Request<v1::SetPowerRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn start_task(
        &self,
        request: Request<v1::StartTaskRequest>,
    ) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn decide(&self, request: Request<v1::DecideRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all)]
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let call = Call::of(&request, CALL_DEADLINE);
        let asked = request.into_inner();
        in_range("ttl_s", asked.ttl_s, TOKEN_TTL_S).map_err(Fault::from)?;
        let local = |asked: v1::CreateTokenRequest| self.mint_token(asked.ttl_s);
        let remote = |channel, request| async move { peers::fleet(channel).create_token(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, asked, local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn console(
        &self,
        request: Request<Streaming<v1::ConsoleChunk>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let call = Call::of(&request, CALL_DEADLINE);
        let stream = console::open(&self.node, call, request.into_inner()).await?;
        Ok(Response::new(stream))
    }

    #[tracing::instrument(skip_all)]
    async fn upload_blob(
        &self,
        request: Request<Streaming<v1::BlobChunk>>,
    ) -> Result<Response<v1::BlobInfo>, Status> {
        Ok(Response::new(blobs::upload(&self.node, request.into_inner()).await?))
    }

    #[tracing::instrument(skip_all, fields(sha256 = request.get_ref().sha256))]
    async fn download_blob(
        &self,
        request: Request<v1::DownloadBlobRequest>,
    ) -> Result<Response<Self::DownloadBlobStream>, Status> {
        let chunks = blobs::download(&self.node, request.get_ref()).await?;
        Ok(Response::new(Box::pin(chunks.map(|chunk| chunk.map_err(Status::from)))))
    }

    #[tracing::instrument(skip_all, fields(sha256 = request.get_ref().sha256))]
    async fn stat_blob(
        &self,
        request: Request<v1::StatBlobRequest>,
    ) -> Result<Response<v1::BlobInfo>, Status> {
        Ok(Response::new(blobs::stat(&self.node, request.get_ref())?))
    }
}

/// A stream was ended by the far end before it said what it wanted.
fn cut_short(what: &str) -> Fault {
    Fault::new(ErrorCode::InvalidArgument, format!("the stream ended before {what}"))
}
