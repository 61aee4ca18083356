//! The handle that everything else in the controller uses.

use std::collections::BTreeMap;
use std::fmt;

use dunlin_model::{ClusterId, ControllerId};
use tokio::sync::watch;

use super::{
    Config, Leader, Machine, Member, MembershipError, OpenError, ProposeError, ReadError, StopReason, View,
};

/// Who leads, as far as this controller knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, when one is known.
    pub leader: Option<Leader>,
    /// Whether it is this controller, and its view holds everything that earlier leaders committed.
    pub is_me: bool,
    /// The current term. Pass it to [`Replica::propose_in_term`].
    pub term: u64,
}

/// Numbers for dashboards and for `dunlin status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The current term.
    pub term: u64,
    /// The last raft log index held, and the last applied, snapshotted and purged.
    pub last_log: Option<u64>,
    /// The last applied raft log index.
    pub last_applied: Option<u64>,
    /// The last raft log index in the snapshot.
    pub snapshot: Option<u64>,
    /// The last raft log index that was purged.
    pub purged: Option<u64>,
    /// Every controller, voters and learners.
    pub members: BTreeMap<ControllerId, Member>,
    /// Those that vote.
    pub voters: Vec<ControllerId>,
    /// On the leader: how many log entries each controller is behind.
    pub lag: BTreeMap<ControllerId, u64>,
}

/// One controller's copy of the replicated state. Cheap to clone; all clones are the same replica.
#[derive(Clone)]
pub struct Replica<M: Machine> {
    view: watch::Receiver<View<M>>,
    leadership: watch::Receiver<Leadership>,
    stopped: watch::Receiver<Option<StopReason>>,
}

impl<M: Machine> fmt::Debug for Replica<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").finish_non_exhaustive()
    }
}

impl<M: Machine> Replica<M> {
    /// Opens the store, replays it over `machine` (the empty state), listens, and joins the cluster it belongs to.
    pub async fn open(config: Config, machine: M) -> Result<Self, OpenError> {
        let _ = (config, machine);
        Err(OpenError::Core("under construction".into()))
    }

    /// Forms a new cluster of `members` (1, 3 or 5 with this controller among them), once. Every member may call it
    /// with the same list at every start: it does nothing on a store that has ever held anything, and only the member
    /// with the lowest id acts; the others wait to be contacted.
    pub async fn init(&self, members: &BTreeMap<ControllerId, Member>) -> Result<(), MembershipError> {
        let _ = members;
        Err(MembershipError::Stopped)
    }

    /// The cluster this controller belongs to; `None` until it is initialised or contacted.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        None
    }

    /// Proposes a command and waits until it is applied here. Only on the leader; forwarding is the caller's business.
    ///
    /// Cancel-safe in the sense that dropping the future takes nothing back: the command may still be applied.
    pub async fn propose(&self, command: M::Command) -> Result<M::Outcome, ProposeError> {
        let _ = command;
        Err(ProposeError::Stopped)
    }

    /// Like `propose`, but only within the leadership of `term` (from [`Leadership::term`]).
    ///
    /// Guarantee: the command is applied only if the log entry that carries it was appended by this controller as
    /// leader of exactly `term`. So it comes, in log order, before everything that any later leadership (this
    /// controller's own included) proposes; what such a leadership decides can never be overtaken by it. The check is
    /// part of the log and gives the same answer on every controller. A later leader may still be the one to commit
    /// the entry.
    pub async fn propose_in_term(&self, term: u64, command: M::Command) -> Result<M::Outcome, ProposeError> {
        let _ = (term, command);
        Err(ProposeError::Stopped)
    }

    /// The local state, which may lag behind the cluster. O(1), holds no lock.
    #[must_use]
    pub fn read(&self) -> View<M> {
        self.view.borrow().clone()
    }

    /// A state that includes everything acknowledged before the call, on any controller. Works on followers, which
    /// ask the leader for its confirmed index and wait until they have applied that far.
    pub async fn linearizable(&self) -> Result<View<M>, ReadError> {
        Err(ReadError::Stopped)
    }

    /// The local state as it advances: `changed().await` wakes after every applied batch. Clone the view out of
    /// `borrow()` at once; holding the borrow stops the replica.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View<M>> {
        self.view.clone()
    }

    /// Who leads. A hint, to start and stop leader-only loops; what they do must go through `propose_in_term`.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Adds a controller that receives the log but does not vote, and waits until it has caught up. Its store must be
    /// empty. Leader only.
    pub async fn add_learner(&self, id: ControllerId, member: Member) -> Result<(), MembershipError> {
        let _ = (id, member);
        Err(MembershipError::Stopped)
    }

    /// Makes exactly `voters` vote; each must be a voter or learner already. Controllers that no longer vote leave the
    /// cluster. Leader only.
    pub async fn change_membership(&self, voters: &[ControllerId]) -> Result<(), MembershipError> {
        let _ = voters;
        Err(MembershipError::Stopped)
    }

    /// Numbers for dashboards.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::default()
    }

    /// Resolves when the replica has stopped, with the reason. Anything but [`StopReason::Asked`] must end the
    /// process: a restart replays the store.
    pub async fn stopped(&self) -> StopReason {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(StopReason::Asked),
            Err(_) => StopReason::Asked,
        }
    }

    /// Stops: answers what waits, closes the store. The data directory can be opened again when this returns.
    pub async fn shutdown(&self) {}
}
