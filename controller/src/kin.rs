//! Is this data directory the cluster's that the other controllers are of?
//!
//! A controller that was pointed at the data directory of another cluster is a sound member of that other one, and only
//! the company it was told to keep (`--member`, `--cluster`) can tell. It asks until it knows, and then never again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dunlin_model::{ClusterId, Name};
use futures_util::future::join_all;

use crate::api::{Company, company};
use crate::node::Node;

/// Between rounds, while too few of the others have answered to know.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// It is another's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// The others belong to another cluster.
    #[error(
        "{} belongs to cluster {ours}, but {count} of the controllers named by --member belong to cluster {theirs}: \
         point this controller at its own data directory",
        path.display()
    )]
    Cluster {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        ours: ClusterId,
        /// Whose the others are.
        theirs: ClusterId,
        /// How many of them.
        count: usize,
    },
    /// The others have another authority.
    #[error(
        "{} belongs to cluster {ours}, but {count} of the controllers named by --member are of another authority than its \
         own: point this controller at its own data directory",
        path.display()
    )]
    Authority {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        ours: ClusterId,
        /// How many of the others.
        count: usize,
    },
    /// It was told of another cluster by name.
    #[error(
        "{} belongs to a cluster called {ours}, but this controller was started for one called {wanted}: point it at its \
         own data directory",
        path.display()
    )]
    Name {
        /// The data directory.
        path: PathBuf,
        /// What its cluster is called.
        ours: Name,
        /// What it should be called.
        wanted: Name,
    },
}

/// Returns when the data directory is known to be a stranger's; never when it is known not to be.
pub(crate) async fn stranger(node: &Node) -> Stranger {
    let path = || node.config.data_dir.clone();
    if let Some(wanted) = node.config.cluster_name.clone() {
        let mut views = node.replica.watch();
        // Fails only when the replica is closing, and then somebody else says why.
        let named = views.wait_for(|view| view.cluster().is_some()).await.ok();
        let ours = named.and_then(|view| view.cluster().map(|cluster| cluster.metadata.name.clone()));
        if let Some(ours) = ours.filter(|ours| *ours != wanted) {
            return Stranger::Name { path: path(), ours, wanted };
        }
    }
    while !node.config.peers.is_empty() {
        let told = node.config.peers.len() + 1;
        if let Some(ours) = node.replica.cluster() {
            let mut votes = BTreeMap::from([(ours, 1)]);
            let mut foreign = 0;
            let peers = node.config.peers.iter();
            for theirs in join_all(peers.map(|peer| company(&node.peers, &peer.api_endpoint))).await {
                match theirs {
                    Company::Of(theirs) => *votes.entry(theirs).or_insert(0) += 1,
                    Company::Foreign => foreign += 1,
                    Company::Silent => {}
                }
            }
            if foreign * 2 > told {
                return Stranger::Authority { path: path(), ours, count: foreign };
            }
            match votes.into_iter().find(|(_, count)| count * 2 > told) {
                Some((theirs, count)) if theirs != ours => {
                    return Stranger::Cluster { path: path(), ours, theirs, count };
                }
                Some(_) => break,
                None => {}
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    std::future::pending().await
}
