//! What the rooms of one controller share: its replica, and what it holds in memory only.

use std::sync::Arc;

use dunlin_model::ControllerId;
use dunlin_model::cluster::Controller;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::call::CALLS_MAX;
use crate::api::{Pages, Peers, Streams};
use crate::audit::Audit;
use crate::blob::BlobStore;
use crate::fleet::Replica;
use crate::rights::{Attempts, Passwords, Provider};
use crate::room::Room;
use crate::session::{Board, Sessions, Tunnels};
use crate::threads::Threads;
use crate::trust::Keys;
use crate::{Config, fleet, raft};

/// Questions to the leader about unknown tokens at once: logins are rare, and guesses shall stay so.
const NEWS_MAX: usize = 4;

/// Looks at readiness at once: each asks the leader, and whoever probes does so once in a few seconds.
const READINESS_MAX: usize = 4;

/// One controller.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) replica: Replica,
    pub(crate) blobs: BlobStore,
    /// Who this controller is, and whom it believes.
    pub(crate) keys: Arc<Keys>,
    pub(crate) room: Room,
    pub(crate) peers: Peers,
    /// The agents' sessions that end here; only a leader has any.
    pub(crate) sessions: Sessions,
    /// What those agents report.
    pub(crate) board: Board,
    pub(crate) tunnels: Tunnels,
    pub(crate) audit: Audit,
    pub(crate) passwords: Passwords,
    pub(crate) attempts: Attempts,
    pub(crate) provider: Option<Provider>,
    /// One permit per follower's question whether a token is new.
    pub(crate) news: Semaphore,
    /// One permit per call under way.
    pub(crate) calls: Arc<Semaphore>,
    /// Watches and consoles that are open here.
    pub(crate) streams: Streams,
    /// Revisions of which somebody is reading a list page by page.
    pub(crate) pages: Pages,
    /// Which commands of users led to what.
    pub(crate) threads: Threads,
    /// One permit per look whether this controller has caught up.
    pub(crate) readiness: Semaphore,
    /// Cancelled when the controller stops.
    pub(crate) closing: CancellationToken,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        replica: Replica,
        blobs: BlobStore,
        keys: Arc<Keys>,
        (audit, provider): (Audit, Option<Provider>),
    ) -> Self {
        let room = Room::new(&config.data_dir);
        Self {
            config,
            replica,
            blobs,
            room,
            peers: Peers::new(keys.keyring.dialer()),
            keys,
            sessions: Sessions::default(),
            board: Board::default(),
            tunnels: Tunnels::default(),
            audit,
            passwords: Passwords::default(),
            attempts: Attempts::default(),
            provider,
            news: Semaphore::new(NEWS_MAX),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            streams: Streams::default(),
            pages: Pages::default(),
            threads: Threads::default(),
            readiness: Semaphore::new(READINESS_MAX),
            closing: CancellationToken::new(),
        }
    }

    /// Every controller and where its API is. What the cluster agreed on goes before the members as they were
    /// when they joined.
    pub(crate) fn controllers(&self) -> Vec<Controller> {
        let mut known = fleet::controllers(&self.replica.read()).to_vec();
        if known.is_empty() {
            let members = self.replica.metrics().members;
            known = members.into_iter().map(|(id, member)| Controller { id, endpoint: member.api }).collect();
        }
        known
    }

    /// The endpoint of the leader, as far as it is known.
    pub(crate) fn leader_endpoint(&self) -> Option<String> {
        let leader = self.replica.leadership().borrow().leader.clone()?;
        Some(self.endpoint_of(&leader))
    }

    /// Where a leader's API is.
    pub(crate) fn endpoint_of(&self, leader: &raft::Leader) -> String {
        let view = self.replica.read();
        let known = fleet::controllers(&view).iter().find(|known| known.id == leader.id);
        known.map_or_else(|| leader.member.api.clone(), |known| known.endpoint.clone())
    }

    /// Who leads, as far as it is known.
    pub(crate) fn leader(&self) -> Option<ControllerId> {
        self.replica.leadership().borrow().leader.as_ref().map(|leader| leader.id)
    }

    /// The term in which this controller leads; none when it does not.
    pub(crate) fn leading(&self) -> Option<u64> {
        let leadership = self.replica.leadership();
        let now = leadership.borrow();
        now.is_me.then_some(now.term)
    }
}
