//! What the hosts report to this leader, where the reconcilers look. In memory only, and of one term only.

use std::sync::{Arc, Mutex, PoisonError};

use dunlin_model::HostId;
use dunlin_model::desired::DesiredSet;
use dunlin_model::observed::UnmanagedVm;
use dunlin_state::State;
use tokio::sync::watch;

use crate::clock;
use crate::reconcile::{Measured, Observed, Report, desired_set};

/// The hosts' reports.
#[derive(Debug)]
pub(crate) struct Board {
    reports: Mutex<Reports>,
    /// Counts what changed.
    news: watch::Sender<u64>,
    /// Counts the samples taken in: the balancer's news.
    measured: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Reports {
    term: u64,
    /// Copied only when a step still looks at an older one.
    observed: Arc<Observed>,
}

impl Default for Board {
    fn default() -> Self {
        let (news, measured) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { reports: Mutex::default(), news, measured }
    }
}

impl Board {
    /// A new term begins: what was reported in an older one is not believed. Does nothing when it has begun already.
    pub(crate) fn begin(&self, term: u64) {
        let mut reports = self.lock();
        if reports.term < term {
            let observed = Arc::new(Observed::new(clock::now()));
            *reports = Reports { term, observed };
        }
    }

    /// A session opened.
    pub(super) fn open(&self, term: u64, host: HostId, session: u64) {
        self.begin(term);
        self.change(|observed| {
            observed.open(host, session, clock::now());
            true
        });
    }

    /// A session ended.
    pub(super) fn close(&self, host: HostId, session: u64) {
        self.change(|observed| {
            observed.close(host, session, clock::now());
            true
        });
    }

    /// A host reported. Returns whether that may matter to anybody.
    pub(super) fn take_in(&self, host: HostId, session: u64, report: Report) -> bool {
        self.change(|observed| observed.take_in(host, session, report))
    }

    /// A host told of the guests that nobody manages. Nothing follows from it until somebody asks.
    pub(super) fn unmanaged(&self, host: HostId, session: u64, vms: Vec<UnmanagedVm>) {
        self.change(|observed| {
            observed.tell_unmanaged(host, session, vms);
            false
        });
    }

    /// Drops acts whose tasks are over.
    pub(crate) fn forget_acts(&self, state: &State) {
        self.change(|observed| {
            observed.forget_acts(state);
            false
        });
    }

    /// A host measured its guests, at that time of its own clock.
    pub(super) fn measured(&self, host: HostId, at_ms: u64, samples: &[Measured]) {
        let now = clock::now();
        let mut reports = self.lock();
        if Arc::make_mut(&mut reports.observed).measured(host, at_ms, samples, now) {
            self.measured.send_modify(|count| *count += 1);
        }
    }

    /// Wakes when something was measured.
    pub(crate) fn watch_measured(&self) -> watch::Receiver<u64> {
        self.measured.subscribe()
    }

    /// What is reported now.
    pub(crate) fn snapshot(&self) -> Arc<Observed> {
        Arc::clone(&self.lock().observed)
    }

    /// What a host should be doing. None while it has not said everything.
    pub(super) fn desired_set(&self, state: &State, host: HostId) -> Option<DesiredSet> {
        desired_set(state, &self.snapshot(), host, clock::now())
    }

    /// Wakes when something is reported.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Observed) -> bool) -> bool {
        let changed = change(Arc::make_mut(&mut self.lock().observed));
        if changed {
            self.news.send_modify(|count| *count += 1);
        }
        changed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
