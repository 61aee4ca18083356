//! What the hosts have reported to this leader. It lives in memory only: a new leader begins with nothing and believes
//! nothing until a host has said everything once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_model::host::HostPhase;
use dunlin_model::observed::{ActReport, ObservedVm, UnmanagedVm};
use dunlin_model::{HostId, Revision, TaskId, Timestamp, VmId};
use dunlin_state::State;

use super::{Loads, Measured};

/// The hosts' reports.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    since: Timestamp,
    hosts: BTreeMap<HostId, HostView>,
    lost: BTreeMap<HostId, Timestamp>,
    /// Shared: a copy of the rest costs nothing of it.
    loads: Arc<Loads>,
}

/// One host's reports of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// Which session, as opened in the state.
    pub session: u64,
    /// Has it said everything once? Before that nothing can be concluded from what it did not say.
    pub complete: bool,
    /// Its VMs.
    pub vms: BTreeMap<VmId, ObservedVm>,
    /// Guests there that nobody in the fleet manages.
    pub unmanaged: Arc<Vec<UnmanagedVm>>,
    /// Its one-shot acts.
    pub acts: BTreeMap<TaskId, ActReport>,
    /// Generation of the last desired set it took in.
    pub taken: Revision,
    /// Since when the session is open.
    pub since: Timestamp,
}

/// One report of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// It says everything; what is not in it is not there.
    pub complete: bool,
    /// VMs that are new or have changed.
    pub vms: Vec<ObservedVm>,
    /// VMs of which nothing is left.
    pub gone: Vec<VmId>,
    /// Acts that are new or have changed.
    pub acts: Vec<ActReport>,
    /// Generation of the last desired set taken in.
    pub taken: Revision,
}

/// How far a host can be believed.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// It has said everything, and says what changes.
    Seen(&'a HostView),
    /// It cannot be seen now. Its guests may well be running.
    Unseen,
    /// An admin removed it, and so vouched that nothing of it runs.
    Removed,
}

impl Observed {
    /// What a leader knows that begins at `now`: nothing.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { since: now, ..Self::default() }
    }

    /// Since when this leader looks.
    #[must_use]
    pub const fn since(&self) -> Timestamp {
        self.since
    }

    /// A session opened: what an older one said is forgotten.
    pub fn open(&mut self, host: HostId, session: u64, now: Timestamp) {
        let view = HostView {
            session,
            complete: false,
            vms: BTreeMap::new(),
            unmanaged: Arc::default(),
            acts: BTreeMap::new(),
            taken: Revision(0),
            since: now,
        };
        self.hosts.insert(host, view);
        self.lost.remove(&host);
    }

    /// A session ended. Does nothing when a newer one is open.
    pub fn close(&mut self, host: HostId, session: u64, now: Timestamp) {
        if self.hosts.get(&host).is_some_and(|view| view.session == session) {
            self.hosts.remove(&host);
            self.lost.insert(host, now);
        }
    }

    /// Takes in a report. Returns whether it changed anything that matters to a step; that of another session does not.
    pub fn take_in(&mut self, host: HostId, session: u64, report: Report) -> bool {
        let Some(view) = self.hosts.get_mut(&host).filter(|view| view.session == session) else {
            return false;
        };
        let before = view.clone();
        if report.complete {
            view.complete = true;
            view.vms.clear();
            view.acts.clear();
        }
        for vm in report.vms {
            view.vms.insert(vm.vm, vm);
        }
        for vm in report.gone {
            view.vms.remove(&vm);
        }
        for act in report.acts {
            view.acts.insert(act.task, act);
        }
        view.taken = view.taken.max(report.taken);
        *view != before
    }

    /// A host told of every guest that nobody manages.
    pub fn tell_unmanaged(&mut self, host: HostId, session: u64, vms: Vec<UnmanagedVm>) {
        if let Some(view) = self.hosts.get_mut(&host).filter(|view| view.session == session) {
            view.unmanaged = Arc::new(vms);
        }
    }

    /// A host measured its guests, at that time of its own clock. Returns whether a rate came of it.
    pub(crate) fn measured(
        &mut self,
        host: HostId,
        at_ms: u64,
        samples: &[Measured],
        now: Timestamp,
    ) -> bool {
        let loads = Arc::make_mut(&mut self.loads);
        loads.forget(now);
        loads.take_in(host, at_ms, samples, now)
    }

    /// What guests use.
    pub(crate) fn loads(&self) -> &Loads {
        &self.loads
    }

    /// The reports of a host's open session, whether the state knows that session or not.
    #[must_use]
    pub fn host(&self, host: HostId) -> Option<&HostView> {
        self.hosts.get(&host)
    }

    /// When its session was lost; when this leader began, for a host that never had one with it.
    #[must_use]
    pub fn lost_at(&self, host: HostId) -> Timestamp {
        self.lost.get(&host).copied().unwrap_or(self.since)
    }

    /// How far a host can be believed: only the session that the state knows counts, and only once it is complete.
    #[must_use]
    pub fn sight(&self, state: &State, host: HostId) -> Sight<'_> {
        let Some(known) = state.host(host) else { return Sight::Removed };
        let view = self.hosts.get(&host).filter(|view| {
            view.complete && view.session == known.status.session && known.status.phase == HostPhase::Up
        });
        view.map_or(Sight::Unseen, Sight::Seen)
    }

    /// Drops acts that no order asks for any more, so that the memory stays bounded.
    pub fn forget_acts(&mut self, state: &State) {
        let open: BTreeSet<TaskId> = state.active_tasks().map(|task| task.metadata.uid).collect();
        for view in self.hosts.values_mut() {
            view.acts.retain(|task, _| open.contains(task));
        }
    }
}

impl<'a> Sight<'a> {
    /// What it says of one VM. None when it says nothing of it, or cannot be seen.
    #[must_use]
    pub fn vm(self, vm: VmId) -> Option<&'a ObservedVm> {
        match self {
            Self::Seen(view) => view.vms.get(&vm),
            Self::Unseen | Self::Removed => None,
        }
    }
}
