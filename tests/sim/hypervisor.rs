//! The hypervisors of all hosts: guest processes that live on when an agent dies, and what goes on between two of them
//! during a migration, whether an agent looks or not.
//!
//! ```text
//!   Running <-> Paused      Incoming -> Arrived -> (resumed)
//!      |  Copying -> AtSwitchover -> Passing -> Sent | Holding
//!      |     +------------+--> Cancelled: it goes on as it was
//! ```
//! Verbs take their time, and an agent that is killed in the middle of one never learns what came of it. `verbs` has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_drivers::Notice;
use dunlin_drivers::hypervisor::{Guest, Run, Send};
use dunlin_model::migration::{Endpoint, MigrationFigures};
use dunlin_model::observed::{EndCause, SendProgress};
use dunlin_model::{HostId, Incarnation, Name, VmId};
use tokio::sync::broadcast;

use crate::rng::Rng;
use crate::time::Time;

/// Notices that wait for an agent. Few, so that some lag.
const NOTICES_MAX: usize = 16;

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    Paused,
    Incoming { arrived: bool },
    Still,
    Ended(EndCause, String),
}

/// How a sending stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    Copying { until: u64 },
    AtSwitchover,
    Passing { until: u64 },
    Sent,
    Holding,
    Cancelled(String),
}

/// A process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) vm: VmId,
    pub(crate) name: Name,
    pub(crate) incarnation: Incarnation,
    pub(crate) stage: Stage,
    /// What it does again when a sending is called off.
    pub(crate) before: Stage,
    pub(crate) sending: Option<(Endpoint, Sending)>,
    pub(crate) ever_ran: bool,
    pub(crate) reboots: u32,
    pub(crate) reboots_on_shutdown: bool,
    pub(crate) off_at: Option<u64>,
    /// Where it takes a migration.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) resumed_at_ms: Option<u64>,
}

impl Process {
    /// Do its vCPUs execute?
    pub(crate) fn executes(&self) -> bool {
        self.stage == Stage::Running
    }

    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Ended(..))
    }

    pub(crate) fn end(&mut self, cause: EndCause, why: &str) {
        self.stage = Stage::Ended(cause, why.to_owned());
        self.sending = None;
        self.endpoint = None;
    }

    pub(crate) fn guest(&self) -> Guest {
        let run = match &self.stage {
            Stage::Running => Run::Running,
            Stage::Paused => Run::Paused,
            Stage::Incoming { arrived: true } => Run::Arrived,
            Stage::Incoming { arrived: false } => Run::Incoming,
            Stage::Still => Run::Outgoing,
            Stage::Ended(cause, why) => Run::Ended(*cause, why.clone()),
        };
        let send = self.sending.as_ref().map(|(_, sending)| match sending {
            Sending::Copying { .. } => Send::Copying(SendProgress::default()),
            Sending::AtSwitchover | Sending::Passing { .. } => Send::AtSwitchover(SendProgress::default()),
            Sending::Sent => Send::Sent(MigrationFigures::default()),
            Sending::Holding => Send::Holding("broken pipe".to_owned()),
            Sending::Cancelled(why) => Send::Cancelled(why.clone()),
        });
        Guest {
            vm: self.vm,
            name: self.name.clone(),
            incarnation: self.incarnation,
            run,
            pid: None,
            vnc: None,
            endpoint: self.endpoint.clone(),
            send,
            disk_bytes: BTreeMap::new(),
            layout: None,
            ever_ran: self.ever_ran,
            reboots: self.reboots,
            resumed_at_ms: self.resumed_at_ms,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) processes: BTreeMap<VmId, Process>,
    pub(crate) notices: broadcast::Sender<Notice>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) rng: Rng,
    pub(crate) machines: BTreeMap<HostId, Machine>,
    /// Hosts that cannot reach one another, in either direction.
    pub(crate) cut: BTreeSet<(HostId, HostId)>,
    /// May things still break?
    pub(crate) breaks: bool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Plane {
    inner: Mutex<Inner>,
    pub(crate) time: Time,
}

impl Plane {
    pub(crate) fn new(seed: u64, time: Time) -> Arc<Self> {
        let inner =
            Inner { rng: Rng::new(seed), machines: BTreeMap::new(), cut: BTreeSet::new(), breaks: true };
        Arc::new(Self { inner: Mutex::new(inner), time })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, host: HostId) {
        let notices = broadcast::channel(NOTICES_MAX).0;
        self.lock().machines.insert(host, Machine { processes: BTreeMap::new(), notices });
    }

    /// What goes on by itself until now.
    pub(crate) fn go_on(&self) {
        let now = self.time.now_ms();
        let mut inner = self.lock();
        let hosts: Vec<HostId> = inner.machines.keys().copied().collect();
        for host in hosts {
            let vms: Vec<VmId> = inner.machines[&host].processes.keys().copied().collect();
            for vm in vms {
                inner.power_off(host, vm, now);
                inner.send_on(host, vm, now);
            }
        }
        inner.orphans();
    }

    /// The power of a host goes. What its driver kept of a process is there afterwards, or is not.
    pub(crate) fn lose_power(&self, host: HostId) {
        let mut inner = self.lock();
        let Inner { rng, machines, .. } = &mut *inner;
        let Some(machine) = machines.get_mut(&host) else { return };
        machine.processes.retain(|_, process| {
            if process.is_alive() {
                process.end(EndCause::Died, "the power went");
            }
            rng.chance(50)
        });
    }

    /// The host's disk is new: its driver knows of nothing.
    pub(crate) fn forget_all(&self, host: HostId) {
        if let Some(machine) = self.lock().machines.get_mut(&host) {
            machine.processes.clear();
        }
    }

    /// A process dies, or its guest powers off.
    pub(crate) fn kill_one(&self, host: HostId, cause: EndCause) -> Option<VmId> {
        let mut inner = self.lock();
        let alive: Vec<VmId> = inner.machines[&host]
            .processes
            .values()
            .filter(|process| process.is_alive() && (cause == EndCause::Died || process.executes()))
            .map(|process| process.vm)
            .collect();
        let vm = inner.rng.pick(&alive)?;
        inner.change(host, vm, |process| process.end(cause, "it ended by itself"));
        Some(vm)
    }
}

impl Inner {
    pub(crate) fn process(&self, host: HostId, vm: VmId) -> Option<&Process> {
        self.machines.get(&host)?.processes.get(&vm)
    }

    /// Changes a process and tells whoever listens.
    pub(crate) fn change(&mut self, host: HostId, vm: VmId, change: impl FnOnce(&mut Process)) {
        let Some(machine) = self.machines.get_mut(&host) else { return };
        let Some(process) = machine.processes.get_mut(&vm) else { return };
        change(process);
        // Nobody listens while the agent is down.
        let _ = machine.notices.send(Notice { guest: process.guest() });
    }

    fn power_off(&mut self, host: HostId, vm: VmId, now: u64) {
        let due = |process: &Process| process.executes() && process.off_at.is_some_and(|at| at <= now);
        if !self.process(host, vm).is_some_and(due) {
            return;
        }
        self.change(host, vm, |process| {
            process.off_at = None;
            if process.reboots_on_shutdown {
                process.reboots += 1;
                process.reboots_on_shutdown = false;
            } else {
                process.end(EndCause::GuestShutdown, "powered off");
            }
        });
    }

    /// The other end of a sending, if it can be reached.
    fn peer(&self, host: HostId, vm: VmId, to: &Endpoint) -> Option<HostId> {
        let waits = |process: &Process| {
            process.endpoint.as_ref() == Some(to) && process.stage == Stage::Incoming { arrived: false }
        };
        let found = self.machines.iter().find(|(_, machine)| machine.processes.get(&vm).is_some_and(waits));
        found.map(|(peer, _)| *peer).filter(|peer| !self.cut.contains(&(host.min(*peer), host.max(*peer))))
    }

    fn send_on(&mut self, host: HostId, vm: VmId, now: u64) {
        let Some((to, sending)) = self.process(host, vm).and_then(|process| process.sending.clone()) else {
            return;
        };
        let peer = self.peer(host, vm, &to);
        match sending {
            Sending::Copying { .. } | Sending::AtSwitchover if peer.is_none() && self.rng.chance(30) => {
                self.call_off(host, vm, "the other end is gone");
            }
            Sending::Copying { until } if until <= now && peer.is_some() => {
                self.change(host, vm, |process| {
                    process.before = process.stage.clone();
                    process.stage = Stage::Still;
                    process.sending = Some((to, Sending::AtSwitchover));
                });
            }
            Sending::Passing { until } if until <= now => self.pass(host, vm, peer, to),
            _ => {}
        }
    }

    /// The guest goes on as it was.
    pub(crate) fn call_off(&mut self, host: HostId, vm: VmId, why: &str) {
        self.change(host, vm, |process| {
            if let Some((_, sending)) = &mut process.sending {
                if *sending == Sending::AtSwitchover {
                    process.stage = process.before.clone();
                }
                *sending = Sending::Cancelled(why.to_owned());
            }
        });
    }

    /// The last bytes: they arrive, or do not, and the source learns of it, or does not.
    fn pass(&mut self, host: HostId, vm: VmId, peer: Option<HostId>, to: Endpoint) {
        let arrives = peer.filter(|_| !(self.breaks && self.rng.chance(25)));
        let sent = arrives.is_some() || self.rng.chance(50);
        let stands = if sent { Sending::Sent } else { Sending::Holding };
        self.change(host, vm, |process| process.sending = Some((to, stands)));
        match (arrives, peer) {
            (Some(peer), _) => {
                self.change(peer, vm, |process| {
                    process.stage = Stage::Incoming { arrived: true };
                    process.endpoint = None;
                });
            }
            (None, Some(peer)) if self.rng.chance(60) => {
                self.change(peer, vm, |process| process.end(EndCause::Died, "the stream broke"));
            }
            _ => {}
        }
    }

    /// Destinations whose source is gone: some notice, some wait for ever.
    fn orphans(&mut self) {
        let sends: BTreeSet<String> = self
            .machines
            .values()
            .flat_map(|machine| machine.processes.values())
            .filter_map(|process| process.sending.as_ref().map(|(to, _)| to.memory.clone()))
            .collect();
        let waits = |process: &Process| {
            process.endpoint.as_ref().is_some_and(|endpoint| !sends.contains(&endpoint.memory))
        };
        let orphans: Vec<(HostId, VmId)> = self
            .machines
            .iter()
            .flat_map(|(host, machine)| machine.processes.values().map(|process| (*host, process)))
            .filter(|(_, process)| waits(process))
            .map(|(host, process)| (host, process.vm))
            .collect();
        for (host, vm) in orphans {
            if self.breaks && self.rng.chance(1) && self.rng.chance(20) {
                self.change(host, vm, |process| process.end(EndCause::Died, "the source is gone"));
            }
        }
    }
}

/// The driver of one host.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) host: HostId,
    pub(crate) plane: Arc<Plane>,
    pub(crate) data_dir: PathBuf,
}
