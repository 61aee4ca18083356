//! The Operator service: the cluster's own controllers, its leadership, its backups.

use std::pin::Pin;
use std::sync::Arc;

use dunlin_model::rights::Verb;
use dunlin_model::{ControllerId, ErrorCode, Invalid, Kind, Level};
use dunlin_proto::v1::operator_client::OperatorClient;
use dunlin_proto::v1::operator_server::{Operator, OperatorServer};
use dunlin_proto::{Fault, v1};
use dunlin_state::rights::Scope;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::call::{CALL_DEADLINE, Call};
use super::{carry, inspect};
use crate::audit::Entry;
use crate::backup;
use crate::members::{self, Addition};
use crate::node::Node;
use crate::rights::{self, Caller};
use crate::upgrade::{self, Raise};

/// News and chunks on their way to the client: a slow one holds up nothing but its own call.
const WAITING: usize = 16;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The Operator service of one controller.
#[derive(Debug)]
pub(crate) struct Operations {
    node: Arc<Node>,
}

/// What long work is told through.
#[derive(Clone)]
struct News(mpsc::UnboundedSender<Result<v1::OperationNews, Status>>);

impl News {
    fn tell(&self, text: String) {
        tracing::info!(text, "operation");
        // The client may have gone; the work goes on, and can be asked for again.
        let _ = self.0.send(Ok(v1::OperationNews { text }));
    }
}

impl Operations {
    pub(crate) fn service(node: Arc<Node>) -> OperatorServer<Self> {
        OperatorServer::new(Self { node })
    }

    /// The leader's channel when this controller does not lead.
    fn elsewhere(&self, forwarded: bool) -> Result<Option<OperatorClient<Channel>>, Fault> {
        if self.node.leading().is_some() {
            return Ok(None);
        }
        match self.node.leader_endpoint() {
            Some(endpoint) if !forwarded && self.node.leader() != Some(self.node.config.id) => {
                Ok(Some(OperatorClient::new(self.node.peers.channel(&endpoint)?)))
            }
            _ => Err(Fault::new(ErrorCode::NotLeader, "no controller leads at this moment")),
        }
    }

    /// Refuses a caller who may not do this to the cluster, and writes down that one who may is about to.
    async fn may(&self, caller: &Caller, verb: Verb, what: &str) -> Result<(), Fault> {
        let view = self.node.replica.read();
        rights::authorise(&self.node, caller, &view, (verb, Kind::Cluster, Scope::Fleet), what)?;
        drop(view);
        if verb != Verb::Read {
            self.begun(caller, verb, what).await;
        }
        Ok(())
    }

    async fn begun(&self, caller: &Caller, verb: Verb, what: &str) {
        let entry = Entry::of(caller, verb.as_str()).about("Cluster", what, None);
        self.node.audit.note(entry.with_outcome("begun")).await;
    }

    /// Runs `work` on the leader, here or at the one that leads, and passes its news on.
    async fn long<Q, W, F, R, RF>(
        &self,
        what: &str,
        request: Request<Q>,
        work: W,
        remote: R,
    ) -> Result<Response<Streamed<v1::OperationNews>>, Status>
    where
        W: FnOnce(Arc<Node>, u64, Q, News) -> F,
        F: Future<Output = Result<(), Fault>> + Send + 'static,
        R: FnOnce(OperatorClient<Channel>, Request<Q>) -> RF,
        RF: Future<Output = Result<Response<Streaming<v1::OperationNews>>, Status>>,
    {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        if let Some(leader) = self.elsewhere(call.forwarded)? {
            let mut request = Request::new(request.into_inner());
            call.mark(request.metadata_mut());
            return Ok(Response::new(Box::pin(remote(leader, request).await?.into_inner())));
        }
        self.may(&call.caller, Verb::Operate, what).await?;
        let term =
            self.node.leading().ok_or_else(|| Fault::new(ErrorCode::NotLeader, "it leads no longer"))?;
        let (sender, news) = mpsc::unbounded_channel();
        let work = work(Arc::clone(&self.node), term, request.into_inner(), News(sender.clone()));
        tokio::spawn(async move {
            if let Err(fault) = work.await {
                let _ = sender.send(Err(fault.into()));
            }
        });
        let news = futures_util::stream::unfold(news, |mut news| async { Some((news.recv().await?, news)) });
        Ok(Response::new(Box::pin(news)))
    }
}

/// A controller's number, or none for 0.
fn some(id: u64) -> Option<ControllerId> {
    (id > 0).then_some(ControllerId(id))
}

fn given(id: u64) -> Result<ControllerId, Invalid> {
    some(id).ok_or_else(|| Invalid::new("id", "0 is no controller", "1 and up"))
}

#[tonic::async_trait]
impl Operator for Operations {
    type AddControllerStream = Streamed<v1::OperationNews>;
    type RemoveControllerStream = Streamed<v1::OperationNews>;
    type TransferLeadershipStream = Streamed<v1::OperationNews>;
    type BackupStream = Streamed<v1::BackupChunk>;
    type UpgradeStream = Streamed<v1::OperationNews>;

    #[tracing::instrument(skip_all)]
    async fn inspect(
        &self,
        request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::Inspection>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        self.may(&call.caller, Verb::Read, "controllers").await?;
        Ok(Response::new(inspect::own(&self.node)))
    }

    #[tracing::instrument(skip_all)]
    async fn diagnose(
        &self,
        request: Request<v1::DiagnoseRequest>,
    ) -> Result<Response<v1::Diagnosis>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        self.may(&call.caller, Verb::Read, "controllers").await?;
        Ok(Response::new(inspect::diagnose(&self.node, &call).await))
    }

    #[tracing::instrument(skip_all)]
    async fn upgrade(
        &self,
        request: Request<v1::UpgradeRequest>,
    ) -> Result<Response<Self::UpgradeStream>, Status> {
        let work = |node: Arc<Node>, term, asked: v1::UpgradeRequest, news: News| async move {
            let to = (asked.to > 0).then_some(Level(asked.to));
            let asked = Raise { to, force: asked.force, dry_run: asked.dry_run };
            upgrade::raise(&node, term, asked, &|text| news.tell(text)).await
        };
        self.long("raise the feature level", request, work, |mut leader, request| async move {
            leader.upgrade(request).await
        })
        .await
    }

    #[tracing::instrument(skip_all)]
    async fn list_controllers(
        &self,
        request: Request<v1::ListControllersRequest>,
    ) -> Result<Response<v1::ListControllersResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let here = |_| async {
            self.may(&caller, Verb::Read, "controllers").await?;
            let leadership = self.node.replica.leadership().borrow().clone();
            let states = members::list(&self.node).await.into_iter().map(|seen| v1::ControllerState {
                id: seen.id.0,
                api_endpoint: seen.member.api,
                raft_endpoint: seen.member.raft,
                votes: seen.votes,
                behind: seen.behind,
                answers: seen.answers,
            });
            let leader = leadership.leader.map_or(0, |leader| leader.id.0);
            Ok(v1::ListControllersResponse { controllers: states.collect(), leader, term: leadership.term })
        };
        let there =
            |channel, request| async move { OperatorClient::new(channel).list_controllers(request).await };
        Ok(Response::new(carry::to_leader(&self.node, call, request.into_inner(), here, there).await?))
    }

    #[tracing::instrument(skip_all, fields(id = request.get_ref().id))]
    async fn add_controller(
        &self,
        request: Request<v1::AddControllerRequest>,
    ) -> Result<Response<Self::AddControllerStream>, Status> {
        let work = |node: Arc<Node>, term, asked: v1::AddControllerRequest, news: News| async move {
            let addition = Addition {
                id: given(asked.id)?,
                member: members::member(asked.api_endpoint, asked.raft_endpoint)?,
                replaces: some(asked.replaces),
                force: asked.force,
            };
            members::add(&node, term, addition, &|text| news.tell(text)).await
        };
        self.long("add a controller", request, work, |mut leader, request| async move {
            leader.add_controller(request).await
        })
        .await
    }

    #[tracing::instrument(skip_all, fields(id = request.get_ref().id))]
    async fn remove_controller(
        &self,
        request: Request<v1::RemoveControllerRequest>,
    ) -> Result<Response<Self::RemoveControllerStream>, Status> {
        let work = |node: Arc<Node>, term, asked: v1::RemoveControllerRequest, news: News| async move {
            members::remove(&node, term, given(asked.id)?, asked.force, &|text| news.tell(text)).await
        };
        self.long("remove a controller", request, work, |mut leader, request| async move {
            leader.remove_controller(request).await
        })
        .await
    }

    #[tracing::instrument(skip_all, fields(to = request.get_ref().to))]
    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<Self::TransferLeadershipStream>, Status> {
        let work = |node: Arc<Node>, _, asked: v1::TransferLeadershipRequest, news: News| async move {
            members::transfer(&node, some(asked.to), &|text| news.tell(text)).await
        };
        self.long("transfer leadership", request, work, |mut leader, request| async move {
            leader.transfer_leadership(request).await
        })
        .await
    }

    #[tracing::instrument(skip_all)]
    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let stale = request.get_ref().stale;
        let consistency = if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable };
        // Everything is in it, the hashes of passwords and the authority's key too.
        let (caller, here) = (&call.caller, self.node.replica.read());
        rights::authorise_all(&self.node, caller, &here, Verb::Operate.as_str(), "backup")?;
        drop(here);
        self.begun(caller, Verb::Operate, "backup").await;
        let view = carry::view(&self.node, &call, consistency).await?;
        let (sender, chunks) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let out = backup::Chunked::new(|data| {
                sender.blocking_send(Ok(data)).map_err(|_| std::io::Error::other("the client has gone"))
            });
            if let Err(error) = backup::write(&view, out) {
                let _ = sender.blocking_send(Err(Fault::new(ErrorCode::Internal, error.to_string()).into()));
            }
        });
        let chunks = ReceiverStream::new(chunks).map(|data| data.map(|data| v1::BackupChunk { data }));
        Ok(Response::new(Box::pin(chunks)))
    }
}
