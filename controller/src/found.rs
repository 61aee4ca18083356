//! How a controller comes up, and the first things a leader commits: the cluster itself, its authority, and where its
//! controllers are.

use std::time::Duration;

use dunlin_model::Level;
use dunlin_model::cluster::Controller;
use dunlin_model::project::default_project;
use dunlin_state::{Command, Rejected, State, TrustChange};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::api::reads_level;
use crate::config::CLUSTER_NAME;
use crate::fleet::{Replica, controllers};
use crate::node::Node;
use crate::raft::{MembershipError, OpenError, ProposeError, Wire};
use crate::{Config, raft};

/// How long to wait before trying again what could not be committed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a cluster that is being founded waits for all its controllers to say what they read: they are started together. Without
/// them it begins at the oldest level, and is raised when they are there.
const FOUNDERS_WAIT: Duration = Duration::from_secs(3);

/// Opens this controller's copy of the fleet, and forms the cluster when it is told to.
/// `founds`: it was given the authority that a new cluster begins with; one that joined by a token never forms another.
pub(crate) async fn open(config: &Config, wire: Wire, founds: bool) -> Result<Replica, Opening> {
    let raft_config = raft::Config {
        wire: Some(wire),
        timers: config.timers,
        snapshots: config.snapshots,
        ..raft::Config::new(config.id, config.data_dir.join("raft"), config.raft_listen)
    };
    let replica = Replica::open(raft_config, State::new()).await.map_err(Opening::Open)?;
    let founders = config.founders();
    if founds
        && !founders.is_empty()
        && let Err(error) = replica.init(&founders).await
    {
        replica.shutdown().await;
        return Err(Opening::Init(error));
    }
    Ok(replica)
}

/// Why it could not come up.
#[derive(Debug)]
pub(crate) enum Opening {
    Open(OpenError),
    Init(MembershipError),
}

/// In a new term: founds the cluster if nobody has, and corrects the controllers' endpoints. Tries until it is done;
/// the end of the term ends it.
pub(crate) async fn found(node: &Node, term: u64) {
    // A controller that leads is a member; until the core says so, there is nothing to write down.
    while members_now(node).is_empty() {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    while let Some(command) = next_step(node).await {
        let name = match command {
            Command::FoundCluster { .. } => "founding",
            Command::Trust(_) => "authority",
            _ => "endpoints",
        };
        let outcome: Result<Result<_, Rejected>, ProposeError> =
            node.replica.propose_in_term(term, &command).await;
        match outcome {
            Ok(Ok(_)) => tracing::info!(term, step = name, "committed"),
            Ok(Err(rejected)) => {
                tracing::error!(term, step = name, %rejected, "refused");
                return;
            }
            Err(error) => {
                tracing::debug!(term, step = name, %error, "has to wait");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn next_step(node: &Node) -> Option<Command> {
    let view = node.replica.read();
    let wanted = members_now(node);
    if view.cluster().is_none() {
        let uid = node.replica.cluster()?;
        let unnamed = || CLUSTER_NAME.parse().expect("a word is a name");
        let name = node.config.cluster_name.clone().unwrap_or_else(unnamed);
        let level = common_level(node, &wanted).await;
        return Some(Command::FoundCluster { uid, name, controllers: wanted, level });
    }
    if view.trust().signer().is_none()
        && let Some((authority, issued)) = node.keys.founding()
    {
        let authority = Box::new(authority);
        return Some(Command::Trust(TrustChange::Install { authority, issued }));
    }
    if view.project_named(&default_project()).is_none() {
        // Founded by a release that knew no rights.
        return Some(Command::SeedRights);
    }
    (controllers(&view) != wanted).then_some(Command::SetControllers { controllers: wanted })
}

/// The highest level that all controllers of a new cluster read. One that does not say may be of any release.
async fn common_level(node: &Node, controllers: &[Controller]) -> Level {
    let others: Vec<_> = controllers.iter().filter(|one| one.id != node.config.id).collect();
    let began = Instant::now();
    loop {
        let ask = others.iter().map(|other| reads_level(&node.peers, &other.endpoint));
        let told: Option<Vec<_>> = join_all(ask).await.into_iter().collect();
        match told {
            Some(told) => {
                return told.into_iter().map(|(_, reads)| reads).fold(node.config.level, Level::min);
            }
            None if began.elapsed() < FOUNDERS_WAIT => tokio::time::sleep(RETRY_PAUSE).await,
            None => {
                tracing::warn!(
                    "not every controller answers: the cluster is founded at the oldest feature level"
                );
                return Level::OLDEST;
            }
        }
    }
}

/// The members of the replicated core, each with the endpoint this controller was told of, or else the one the cluster
/// knew, or else the one it joined with.
fn members_now(node: &Node) -> Vec<Controller> {
    let told = node.config.controllers();
    let view = node.replica.read();
    let known = controllers(&view);
    let endpoint = |list: &[Controller], id| {
        list.iter().find(|controller| controller.id == id).map(|controller| controller.endpoint.clone())
    };
    let members = node.replica.metrics().members;
    members
        .into_iter()
        .map(|(id, member)| {
            let endpoint = endpoint(&told, id).or_else(|| endpoint(known, id)).unwrap_or(member.api);
            Controller { id, endpoint }
        })
        .collect()
}
