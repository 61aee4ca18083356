//! The fleet API: parses, carries to the leader, reads, watches. Everything a client can see passes here.
//!
//! Names generated protocol types; nothing behind it does, except `session`. Decides nothing about the fleet: what may
//! be written is for `apply`, what must be done for the reconcilers.

mod access;
mod adoption;
mod advisor;
mod blobs;
pub(crate) mod call;
pub(crate) mod carry;
mod commit;
mod console;
mod identities;
mod inspect;
mod many;
mod operator;
mod pages;
mod peers;
mod policy;
mod reads;
mod rest;
mod streams;
mod watch;
mod writes;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use dunlin_model::invalid::in_range;
use dunlin_model::rights::Verb;
use dunlin_model::{ErrorCode, Kind, Secret, Timestamp};
use dunlin_pki::{JoinToken, fingerprint, pem_certificates};
use dunlin_proto::v1::fleet_server::{Fleet, FleetServer};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::rights::Scope;
use dunlin_state::{State, Write};
use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use access::Doorman;
pub(crate) use advisor::Advice;
pub(crate) use blobs::keep_blobs;
use call::{CALL_DEADLINE, Call, TRANSFER_DEADLINE};
pub(crate) use identities::{Holders, authorities, join_as_controller, renew_own};
pub(crate) use operator::Operations;
pub(crate) use pages::Pages;
pub(crate) use peers::{Company, Peers, cluster_of, company, reads_level};
pub(crate) use reads::rejected_fault;
pub(crate) use rest::{fallback as rest_fallback, router as rest_router};
pub(crate) use streams::Streams;
use writes::Ask;

use crate::node::Node;
use crate::rights::{self, Caller};
use crate::{clock, mint};

/// Largest message taken or given. Objects are far smaller; lists and blobs are cut to fit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest idempotency key, bytes.
const KEY_MAX: u64 = 64;
/// Shortest and longest life of a token, s: up to a week.
const TOKEN_TTL_S: std::ops::RangeInclusive<u64> = 1..=604_800;

/// How often a write that is merged with what is stored is made anew, because that was changed in between: each time
/// somebody else got through, so this is an object that changes many times in a millisecond.
const MERGE_TRIES_MAX: usize = 8;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The Fleet service of one controller.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    node: Arc<Node>,
}

impl Api {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    pub(crate) fn service(self) -> FleetServer<Self> {
        let server = FleetServer::new(self);
        server.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn write<A: Ask>(&self, request: Request<A>) -> Result<Response<v1::Object>, Status> {
        let most = if request.get_ref().moves_bytes() { TRANSFER_DEADLINE } else { CALL_DEADLINE };
        let call = Call::admit(&self.node.calls, &request, most)?;
        let mut ask = request.into_inner();
        complete_key(ask.key())?;
        let caller = Arc::clone(&call.caller);
        let local = |ask| self.carry_out(&caller, ask);
        let object = carry::to_leader(&self.node, call, ask, local, A::send).await?;
        Ok(Response::new(object))
    }

    /// Runs a write on the leader. One that is made from what is stored is made again when that has changed meanwhile.
    async fn carry_out<A: Ask>(&self, caller: &Caller, ask: A) -> Result<v1::Object, Fault> {
        let mut tries = 1;
        loop {
            match self.carry_out_once(caller, ask.clone()).await {
                // What was not there is there now: that is stale too.
                Err(Fault { code: ErrorCode::StaleRevision | ErrorCode::AlreadyExists, .. })
                    if ask.merges() && tries < MERGE_TRIES_MAX =>
                {
                    tries += 1;
                }
                settled => return settled,
            }
        }
    }

    async fn carry_out_once<A: Ask>(&self, caller: &Caller, mut ask: A) -> Result<v1::Object, Fault> {
        let (key, dry_run) = (ask.key().clone(), ask.dry_run());
        let outcome = commit::commit(&self.node, caller, key, dry_run, |state| ask.write(state)).await?;
        let view = self.node.replica.read();
        let shown = outcome.object.map(|object| reads::show(&self.node, &view, &object));
        Ok(shown.unwrap_or_default())
    }

    /// Only the leader has heard what runs on the hosts.
    async fn adopt_here(&self, caller: &Caller, asked: v1::AdoptRequest) -> Result<v1::Object, Fault> {
        let observed = self.node.board.snapshot();
        let (key, dry_run) = (asked.idempotency_key.clone(), asked.dry_run);
        let write = |state: &State| adoption::write(state, &observed, &asked);
        let outcome = commit::commit(&self.node, caller, key, dry_run, write).await?;
        let view = self.node.replica.read();
        let shown = outcome.object.map(|object| reads::show(&self.node, &view, &object));
        Ok(shown.unwrap_or_default())
    }

    /// Refuses, by this controller's own copy, a caller who may not do this.
    fn may(&self, caller: &Caller, right: (Verb, Kind, Scope<'_>), name: &str) -> Result<(), Fault> {
        rights::authorise(&self.node, caller, &self.node.replica.read(), right, name).map(drop)
    }

    async fn mint_token(
        &self,
        caller: &Caller,
        asked: v1::CreateTokenRequest,
    ) -> Result<v1::CreateTokenResponse, Fault> {
        let role = read(asked.role, "role")?;
        let view = self.node.replica.read();
        let founding = || Fault::new(ErrorCode::Unavailable, "the cluster is being founded");
        let signer = view.trust().signer().ok_or_else(founding)?;
        let authority = pem_certificates(&signer.certificate).ok().and_then(|mut all| all.pop());
        let fingerprint = fingerprint(&authority.ok_or_else(founding)?);
        let expires = Timestamp(clock::now().0 + asked.ttl_s * 1000);
        if asked.dry_run {
            return Ok(v1::CreateTokenResponse { token: String::new(), expires_ms: expires.0 });
        }
        let secret = mint::secret();
        let write = Write::CreateToken { sha256: mint::sha256_hex(&secret), role, expires };
        let token = JoinToken { role, secret: Secret::new(secret), fingerprint }.text();
        // A token is shown once and kept nowhere, so an answer cannot be given again: each try mints its own, and
        // the client's key is not used. A token whose answer was lost is nobody's, and expires.
        commit::commit(&self.node, caller, mint::secret(), false, |_| Ok(write)).await?;
        Ok(v1::CreateTokenResponse { token, expires_ms: expires.0 })
    }
}

impl Api {
    /// Takes bytes in, however they come.
    async fn store<S>(&self, request: Request<S>) -> Result<v1::BlobInfo, Fault>
    where
        S: Stream<Item = Result<v1::BlobChunk, Status>>,
    {
        let call = Call::admit(&self.node.calls, &request, TRANSFER_DEADLINE)?;
        self.may(&call.caller, (Verb::Create, Kind::Image, Scope::Fleet), "")?;
        blobs::upload(&self.node, request.into_inner()).await
    }

    /// One page of a list: of the newest revision, or of that at which the list was begun.
    async fn page(&self, request: &Request<v1::ListRequest>, as_json: bool) -> Result<reads::Page, Fault> {
        let call = Call::admit(&self.node.calls, request, CALL_DEADLINE)?;
        let asked = request.get_ref();
        let (view, after) = if asked.page_token.is_empty() {
            (carry::view(&self.node, &call, asked.consistency()).await?, None)
        } else {
            let place = pages::place(asked)?;
            (self.node.pages.at(place.revision)?, Some(place.after))
        };
        let page = reads::list(&self.node, &call.caller, &view, asked, after.as_ref(), as_json)?;
        if page.next.is_some() {
            self.node.pages.keep(&view);
        }
        Ok(page)
    }
}

/// Where a request came from.
fn client<T>(request: &Request<T>) -> Option<IpAddr> {
    request.remote_addr().map(|address| address.ip())
}

#[tonic::async_trait]
impl Fleet for Api {
    type WatchStream = Streamed<v1::WatchEvent>;
    type ConsoleStream = Streamed<v1::ConsoleChunk>;
    type DownloadBlobStream = Streamed<v1::BlobChunk>;

    #[tracing::instrument(level = "debug", skip_all, fields(name = request.get_ref().name))]
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Object>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let view = carry::view(&self.node, &call, request.get_ref().consistency()).await?;
        Ok(Response::new(reads::get(&self.node, &call.caller, &view, request.get_ref())?))
    }

    #[tracing::instrument(skip_all)]
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let page = self.page(&request, false).await?;
        let next = page.next.map(|place| pages::token(request.get_ref(), &place));
        let mut answer = v1::ListResponse {
            revision: page.revision.0,
            more: next.is_some(),
            next_page_token: next.unwrap_or_default(),
            ..v1::ListResponse::default()
        };
        for item in page.items {
            match item {
                reads::Item::Message(object) => answer.objects.push(*object),
                reads::Item::Json(text) => answer.json.push(text),
            }
        }
        Ok(Response::new(answer))
    }

    #[tracing::instrument(skip_all, fields(after = request.get_ref().after_revision))]
    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let place = self.node.streams.enter(client(&request))?;
        let events = watch::watch(Arc::clone(&self.node), &call, place, request.into_inner()).await?;
        Ok(Response::new(Box::pin(events.map(|event| event.map_err(Status::from)))))
    }

    #[tracing::instrument(level = "debug", skip_all)]
    async fn create(&self, request: Request<v1::CreateRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(level = "debug", skip_all)]
    async fn create_many(
        &self,
        request: Request<v1::CreateManyRequest>,
    ) -> Result<Response<v1::CreateManyResponse>, Status> {
        self.many(request).await
    }

    #[tracing::instrument(skip_all)]
    async fn update(&self, request: Request<v1::UpdateRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn patch(&self, request: Request<v1::PatchRequest>) -> Result<Response<v1::Object>, Status> {
        self.write(request).await
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::Object>, Status> {
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

    #[tracing::instrument(level = "debug", skip_all)]
    async fn list_unmanaged(
        &self,
        request: Request<v1::ListUnmanagedRequest>,
    ) -> Result<Response<v1::ListUnmanagedResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |_| async {
            self.may(&caller, (Verb::Read, Kind::Host, Scope::Fleet), "unmanaged")?;
            Ok(adoption::list(&self.node.replica.read(), &self.node.board.snapshot()))
        };
        let remote = |channel, request| async move { peers::fleet(channel).list_unmanaged(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), local, remote).await?))
    }

    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn adopt(&self, request: Request<v1::AdoptRequest>) -> Result<Response<v1::Object>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let mut asked = request.into_inner();
        complete_key(&mut asked.idempotency_key)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked: v1::AdoptRequest| async { self.adopt_here(&caller, asked).await };
        let remote = |channel, request| async move { peers::fleet(channel).adopt(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, asked, local, remote).await?))
    }

    #[tracing::instrument(skip_all, fields(vm = request.get_ref().vm))]
    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::Object>, Status> {
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
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let asked = request.into_inner();
        in_range("ttl_s", asked.ttl_s, TOKEN_TTL_S).map_err(Fault::from)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked: v1::CreateTokenRequest| self.mint_token(&caller, asked);
        let remote = |channel, request| async move { peers::fleet(channel).create_token(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, asked, local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn console(
        &self,
        request: Request<Streaming<v1::ConsoleChunk>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        // One that was passed on counts where its client is, and here only among all.
        let place = self.node.streams.enter(client(&request).filter(|_| !call.forwarded))?;
        let stream = console::open(&self.node, &call, request.into_inner()).await?;
        let held = stream.inspect(move |_| {
            let _held = &place;
        });
        Ok(Response::new(Box::pin(held)))
    }

    #[tracing::instrument(skip_all)]
    async fn upload_blob(
        &self,
        request: Request<Streaming<v1::BlobChunk>>,
    ) -> Result<Response<v1::BlobInfo>, Status> {
        Ok(Response::new(self.store(request).await?))
    }

    #[tracing::instrument(skip_all, fields(sha256 = request.get_ref().sha256))]
    async fn download_blob(
        &self,
        request: Request<v1::DownloadBlobRequest>,
    ) -> Result<Response<Self::DownloadBlobStream>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let right = (Verb::Read, Kind::Image, Scope::Anywhere);
        self.may(&call.caller, right, &request.get_ref().sha256)?;
        let chunks = blobs::download(&self.node, request.get_ref()).await?;
        Ok(Response::new(Box::pin(chunks.map(|chunk| chunk.map_err(Status::from)))))
    }

    #[tracing::instrument(skip_all, fields(sha256 = request.get_ref().sha256))]
    async fn stat_blob(
        &self,
        request: Request<v1::StatBlobRequest>,
    ) -> Result<Response<v1::BlobInfo>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let right = (Verb::Read, Kind::Image, Scope::Anywhere);
        self.may(&call.caller, right, &request.get_ref().sha256)?;
        Ok(Response::new(blobs::stat(&self.node, request.get_ref())?))
    }
}

/// Checks an idempotency key, or mints one where none was given.
fn complete_key(key: &mut String) -> Result<(), Fault> {
    if key.is_empty() {
        *key = mint::secret();
    }
    in_range("idempotency_key (bytes)", key.len() as u64, 1..=KEY_MAX)?;
    Ok(())
}

/// A stream was ended by the far end before it said what it wanted.
fn cut_short(what: &str) -> Fault {
    Fault::new(ErrorCode::InvalidArgument, format!("the stream ended before {what}"))
}
