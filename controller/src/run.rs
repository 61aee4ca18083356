//! One controller, from its start to its end: opens what it keeps, serves, and lets go in the right order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use dunlin_model::Invalid;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::api::{Advice, Api, Doorman, Holders, Operations, keep_blobs, rest_fallback, rest_router};
use crate::audit::{Audit, AuditError, Files};
use crate::blob::{BlobError, BlobStore};
use crate::drive::drive;
use crate::found::{self, Opening};
use crate::front::{Local, LocalError};
use crate::kin::{self, Stranger};
use crate::node::Node;
use crate::raft::{MembershipError, OpenError, StopReason, Wire};
use crate::session::Gate;
use crate::trust::{Keys, KeysError};
use crate::upgrade::{TooOld, outgrown, readable};
use crate::{Config, front, rights, trust};

/// How long calls under way may take to end when the controller stops. Streams are told to end at once.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a controller did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration contradicts itself.
    #[error("controller configuration")]
    Config(#[source] Invalid),
    /// Its data directory is damaged, in use, or belongs to another cluster or controller; or it cannot listen for its
    /// peers. The source says which and what to do.
    #[error("open the replicated core")]
    Open(#[source] OpenError),
    /// The cluster could not be formed.
    #[error("form the cluster")]
    Init(#[source] MembershipError),
    /// It has no identity, or not its own.
    #[error("this controller's identity")]
    Keys(#[from] KeysError),
    /// The local socket cannot be had.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The folder of image bytes cannot be used.
    #[error("open the image store: {0}")]
    Blobs(String),
    /// The audit log cannot be used.
    #[error("open the audit log: {0}")]
    Audit(String),
    /// Identity providers cannot be talked to.
    #[error("make ready for the identity provider")]
    Provider(#[source] reqwest::Error),
    /// The address is taken, or is not this machine's.
    #[error("listen for clients and agents on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its data directory is sound, but another cluster's.
    #[error("the data directory is not this controller's")]
    Stranger(#[source] Stranger),
    /// The cluster writes what this release does not read.
    #[error(transparent)]
    TooOld(#[from] TooOld),
    /// The replicated core can no longer keep its promises. Starting again replays what is on disk.
    #[error("the controller had to stop")]
    Stopped(#[source] StopReason),
}

impl From<Opening> for RunError {
    fn from(opening: Opening) -> Self {
        match opening {
            Opening::Open(error) => Self::Open(error),
            Opening::Init(error) => Self::Init(error),
        }
    }
}

impl From<AuditError> for RunError {
    fn from(error: AuditError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Audit(format!("{error}{cause}"))
    }
}

impl From<BlobError> for RunError {
    fn from(error: BlobError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Blobs(format!("{error}{cause}"))
    }
}

/// Runs one controller until `shutdown` resolves, or until it cannot go on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let controller = Controller::start(config).await?;
    tokio::select! {
        () = shutdown => {
            controller.stop().await;
            Ok(())
        }
        error = controller.failed() => {
            controller.stop().await;
            Err(error)
        }
    }
}

/// A controller that runs.
#[derive(Debug)]
pub struct Controller {
    pub(crate) node: Arc<Node>,
    loops: JoinSet<()>,
    server: tokio::task::JoinHandle<()>,
    served: CancellationToken,
}

impl Controller {
    /// Opens the data directory and begins to serve. Returns as soon as it listens; a leader may not be known yet.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        config.validate().map_err(RunError::Config)?;
        let address = config.api_listen;
        // First of all: a port in use must leave no trace on disk.
        let listener =
            TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
        let data_dir = config.data_dir.clone();
        let blobs = tokio::task::spawn_blocking(move || BlobStore::open(&data_dir)).await;
        let blobs = blobs.map_err(|error| RunError::Blobs(error.to_string()))??;
        let (data_dir, number) = (config.data_dir.clone(), config.id.0);
        let audit = tokio::task::spawn_blocking(move || Files::open(&data_dir, number)).await;
        let audit = audit.map_err(|error| RunError::Audit(error.to_string()))??;
        let provider = config.provider.clone().map(rights::Provider::new).transpose();
        let provider = provider.map_err(RunError::Provider)?;
        let keys = Keys::open(&config).await?;
        let replica = found::open(&config, wire(&keys), keys.founding().is_some()).await?;
        if let Err(old) = readable(replica.read().level(), config.level) {
            replica.shutdown().await;
            return Err(old.into());
        }
        keys.mend(replica.read().trust())?;
        // Before anybody is let in: who was revoked is so from the first moment.
        keys.follow(replica.read().trust())?;
        // The store is this process's alone by now, and so is what lies beside it.
        let local = Local::open(&config.data_dir)?;
        let (id, endpoint) = (config.id, config.api_endpoint.clone());
        let node =
            Arc::new(Node::new(config, replica, blobs, Arc::clone(&keys), (Audit::start(audit), provider)));
        let mut loops = JoinSet::new();
        loops.spawn(drive(Arc::clone(&node)));
        loops.spawn(keep_blobs(Arc::clone(&node)));
        loops.spawn(trust::keep(Arc::clone(&node)));
        let served = CancellationToken::new();
        let router = routes(&node);
        loops.spawn(local.serve(router.clone(), served.clone()));
        let server = tokio::spawn(front::serve(router, listener, keys, served.clone()));
        tracing::info!(controller = %id, endpoint, "serves");
        Ok(Self { node, loops, server, served })
    }

    /// Resolves when it cannot go on, with the reason.
    pub async fn failed(&self) -> RunError {
        tokio::select! {
            reason = self.node.replica.stopped() => RunError::Stopped(reason),
            old = outgrown(&self.node) => RunError::TooOld(old),
            stranger = kin::stranger(&self.node) => RunError::Stranger(stranger),
        }
    }

    /// Ends every stream (agents are sent elsewhere), finishes calls under way, closes the store. The data directory
    /// can be opened again when this returns.
    pub async fn stop(mut self) {
        self.node.closing.cancel();
        self.served.cancel();
        while self.loops.join_next().await.is_some() {}
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, &mut self.server).await;
        if drained.is_err() {
            tracing::debug!("calls under way were cut off");
            self.server.abort();
        }
        self.node.audit.written().await;
        self.node.replica.shutdown().await;
    }
}

/// Everything that is served, on one port.
fn routes(node: &Arc<Node>) -> Router {
    let (api, advice) = (Api::new(Arc::clone(node)), Advice::new(Arc::clone(node)));
    let rest = rest_router(node, &api, &advice);
    let grpc = Routes::new(api.service()).add_service(Gate::service(Arc::clone(node)));
    let grpc = grpc.add_service(advice.service()).add_service(Operations::service(Arc::clone(node)));
    let grpc =
        grpc.add_service(Holders::service(Arc::clone(node))).add_service(Doorman::service(Arc::clone(node)));
    let router = rest_fallback(grpc.prepare().into_axum_router().merge(rest));
    // In front of everything that is served, whatever is added to it.
    router.layer(axum::middleware::from_fn_with_state(Arc::clone(node), rights::enter))
}

/// How this controller speaks to the others.
fn wire(keys: &Arc<Keys>) -> Wire {
    let (admits, revoked) = (Arc::clone(keys), Arc::clone(keys));
    Wire {
        keyring: Arc::clone(&keys.keyring),
        admits: Arc::new(move |peer| admits.admit(peer)),
        revoked: Arc::new(move |peer| {
            let keys = Arc::clone(&revoked);
            Box::pin(async move { keys.revoked(&peer).await })
        }),
    }
}
