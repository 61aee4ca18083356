//! A host of the simulation: guest processes, what the agent keeps on disk, and the agent itself.
//!
//! Written from docs/protocol.md alone, so that it is a second reading of the contract. Processes live on when the agent
//! dies; everything dies when the host loses power; only `disk` survives that.

use std::collections::BTreeMap;

use dunlin_model::desired::{Assignment, DesiredSet, Role, SendStep};
use dunlin_model::migration::{Endpoint, MigrationFigures};
use dunlin_model::observed::{
    ActReport, EndCause, ObservedVm, Process, ReceiveState, SavedFile, SendProgress, SendState,
};
use dunlin_model::task::{Act, TaskPhase};
use dunlin_model::vm::Power;
use dunlin_model::{HostId, Incarnation, MigrationId, Name, Revision, TaskId, VmId};

use super::Rng;
use crate::reconcile::Report;

pub(super) type Said = (BTreeMap<VmId, ObservedVm>, BTreeMap<TaskId, ActReport>, Revision);

#[derive(Debug)]
pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) powered: bool,
    pub(super) agent_up: bool,
    pub(super) session: Option<u64>,
    pub(super) processes: BTreeMap<VmId, Guest>,
    pub(super) disk: BTreeMap<VmId, Record>,
    pub(super) journal: BTreeMap<TaskId, ActReport>,
    /// Saves whose guest has ended and whose file is made durable at a time.
    saves: Vec<(u64, TaskId, VmId, String)>,
    /// Memory of the agent process.
    pub(super) set: Option<DesiredSet>,
    pub(super) said: Option<Said>,
}

/// What the agent keeps on disk of one VM.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) name: Name,
    pub(super) highest: Incarnation,
    /// The last incarnation a process was begun for.
    pub(super) begun: Option<Incarnation>,
    /// The last incarnation that is closed: it never runs (again) here.
    pub(super) ended: Option<(Incarnation, EndCause, String, bool)>,
    pub(super) ever_ran: bool,
    pub(super) volumes: bool,
    pub(super) saved: Option<SavedFile>,
    pub(super) receive: Option<MigrationId>,
}

/// A guest process.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) incarnation: Incarnation,
    pub(super) stage: Stage,
    pub(super) send: Option<(MigrationId, Send)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Starting {
        ready_at: u64,
    },
    Running,
    Paused,
    Incoming {
        migration: MigrationId,
        ready_at: u64,
        arrived: bool,
    },
    /// At or past the switch-over.
    Still,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Send {
    Copying {
        until: u64,
    },
    AtSwitchover,
    /// Told to pass; the bytes are on their way.
    Passing {
        until: u64,
    },
    Sent,
    /// For an instant the hypervisor lets the guest run, until its driver stops it again.
    Blink,
    Holding,
    Cancelled,
}

impl Guest {
    /// Do its vCPUs execute?
    pub(super) fn executes(&self) -> bool {
        self.stage == Stage::Running || matches!(self.send, Some((_, Send::Blink)))
    }
}

impl Host {
    pub(super) fn new(id: HostId) -> Self {
        Self {
            id,
            powered: true,
            agent_up: true,
            session: None,
            processes: BTreeMap::new(),
            disk: BTreeMap::new(),
            journal: BTreeMap::new(),
            saves: Vec::new(),
            set: None,
            said: None,
        }
    }

    /// The process is gone; why is known for good.
    pub(super) fn end(&mut self, vm: VmId, cause: EndCause, message: &str) {
        let Some(guest) = self.processes.remove(&vm) else { return };
        if let Some(record) = self.disk.get_mut(&vm) {
            record.ended = Some((guest.incarnation, cause, message.to_owned(), record.ever_ran));
        }
    }

    pub(super) fn crash_agent(&mut self) {
        self.agent_up = false;
        self.set = None;
        self.said = None;
    }

    pub(super) fn lose_power(&mut self) {
        self.powered = false;
        self.crash_agent();
        self.processes.clear();
    }

    /// After a power loss the agent finds no process for what it had begun: that incarnation is over.
    pub(super) fn find_again(&mut self) {
        for (vm, record) in &mut self.disk {
            let Some(begun) = record.begun else { continue };
            let closed = record.ended.as_ref().is_some_and(|(ended, ..)| *ended >= begun);
            if !closed && !self.processes.contains_key(vm) {
                record.ended =
                    Some((begun, EndCause::Died, "its process is gone".to_owned(), record.ever_ran));
            }
        }
    }

    pub(super) fn take_set(&mut self, set: DesiredSet) {
        if self.set.as_ref().is_none_or(|have| have.generation <= set.generation) {
            self.set = Some(set);
        }
    }

    /// A saved file becomes whole some time after its guest has ended; an agent that was away finds it so.
    fn finish_saves(&mut self, now: u64) {
        let whole = self.saves.iter().filter(|(at, ..)| *at <= now).cloned().collect::<Vec<_>>();
        self.saves.retain(|(at, ..)| *at > now);
        for (_, task, vm, path) in whole {
            let Some(record) = self.disk.get_mut(&vm) else { continue };
            let incarnation = record.begun.unwrap_or_default();
            record.saved = Some(SavedFile { path, size_bytes: 1, incarnation });
            if let Some(report) = self.journal.get_mut(&task) {
                report.phase = TaskPhase::Succeeded;
            }
        }
    }

    /// Acts on a part of the difference: the rest waits for another tick, as real work does.
    pub(super) fn converge(&mut self, rng: &mut Rng, now: u64) {
        self.finish_saves(now);
        let Some(set) = self.set.clone() else { return };
        for one in &set.assignments {
            if rng.chance(70) {
                self.assign(one, rng, now);
            }
        }
        for order in &set.acts {
            if rng.chance(50) && !self.journal.contains_key(&order.task) {
                self.begin(order.task, order.vm, order.incarnation, &order.act, now);
            }
        }
        self.journal.retain(|task, _| set.acts.iter().any(|order| order.task == *task));
    }

    fn begin(&mut self, task: TaskId, vm: VmId, incarnation: Incarnation, act: &Act, now: u64) {
        let guest = self.processes.get(&vm).filter(|guest| guest.incarnation == incarnation);
        let ready = guest.is_some_and(|guest| {
            matches!(guest.stage, Stage::Running | Stage::Paused) && guest.send.is_none()
        });
        let mut phase = if ready { TaskPhase::Succeeded } else { TaskPhase::Failed };
        match act {
            Act::Shutdown { .. } if ready => self.end(vm, EndCause::GuestShutdown, "powered off"),
            Act::Save if ready => {
                self.end(vm, EndCause::Told, "saved");
                self.saves.push((now + 100, task, vm, format!("/saved/{vm}/{incarnation}")));
                phase = TaskPhase::Running;
            }
            _ => {}
        }
        let report = ActReport { task, phase, progress_percent: 100, message: "as it was found".to_owned() };
        self.journal.insert(task, report);
    }

    /// What an agent did that nobody heard of: it ended a guest by saving it.
    pub(super) fn saved_alone(&mut self, vm: VmId, path: String) {
        self.end(vm, EndCause::Told, "saved");
        let record = self.disk.get_mut(&vm).unwrap();
        let incarnation = record.begun.unwrap_or_default();
        record.saved = Some(SavedFile { path, size_bytes: 1, incarnation });
    }

    fn assign(&mut self, one: &Assignment, rng: &mut Rng, now: u64) {
        if matches!(one.role, Role::Discard { .. } | Role::Release) {
            self.processes.remove(&one.vm);
            self.disk.remove(&one.vm);
            return;
        }
        let record = self.disk.entry(one.vm).or_insert_with(|| Record {
            name: one.name.clone(),
            highest: Incarnation(0),
            begun: None,
            ended: None,
            ever_ran: false,
            volumes: false,
            saved: None,
            receive: None,
        });
        if one.incarnation < record.highest {
            return;
        }
        record.highest = one.incarnation;
        match &one.role {
            Role::Run { power, restore_from, received } => {
                self.run(one, *power, restore_from.as_deref(), *received, rng, now);
            }
            Role::Hold => self.hold(one),
            Role::Receive { migration, .. } => self.receive(one, *migration, rng, now),
            Role::Send { migration, step, power, .. } => self.send(one, *migration, *step, *power, rng, now),
            Role::Adopt { power } => self.run(one, *power, None, true, rng, now),
            Role::Discard { .. } | Role::Release => {}
        }
    }

    fn drop_lower(&mut self, one: &Assignment) {
        let keep =
            |guest: &Guest| guest.incarnation == one.incarnation || Some(guest.incarnation) == one.continues;
        if self.processes.get(&one.vm).is_some_and(|guest| !keep(guest)) {
            self.end(one.vm, EndCause::Told, "an older incarnation");
        }
    }

    fn closed(&self, one: &Assignment) -> bool {
        let record = &self.disk[&one.vm];
        record.ended.as_ref().is_some_and(|(ended, ..)| *ended >= one.incarnation)
    }

    fn run(
        &mut self,
        one: &Assignment,
        power: Power,
        restore_from: Option<&str>,
        received: bool,
        rng: &mut Rng,
        now: u64,
    ) {
        self.drop_lower(one);
        let closed = self.closed(one);
        let record = self.disk.get_mut(&one.vm).unwrap();
        let Some(guest) = self.processes.get_mut(&one.vm) else {
            if closed || received || one.continues.is_some() {
                return;
            }
            if rng.chance(3) {
                record.ended = Some((one.incarnation, EndCause::Refused, "bad disk".to_owned(), false));
                return;
            }
            if let Some(file) = restore_from {
                // Used up before it may run: never restored twice.
                let have = record.saved.take();
                if have.as_ref().map(|saved| saved.path.as_str()) != Some(file) {
                    let words = "the saved memory is not there".to_owned();
                    record.ended = Some((one.incarnation, EndCause::Refused, words, false));
                    return;
                }
            }
            record.begun = Some(one.incarnation);
            record.ever_ran = false;
            record.volumes = record.volumes || one.spec.has_local_disks();
            let stage = Stage::Starting { ready_at: now + rng.below(300) };
            self.processes.insert(one.vm, Guest { incarnation: one.incarnation, stage, send: None });
            return;
        };
        if guest.incarnation != one.incarnation {
            // It carries on after a hand-back.
            guest.incarnation = one.incarnation;
            record.begun = Some(one.incarnation);
            guest.send = None;
            guest.stage = Stage::Paused;
        }
        match (&guest.stage, &guest.send) {
            (Stage::Incoming { arrived: true, .. }, _) if received => {
                guest.stage = Stage::Paused;
                record.receive = None;
            }
            (Stage::Starting { ready_at }, _) if *ready_at <= now => guest.stage = Stage::Paused,
            (_, Some((_, Send::Copying { .. } | Send::AtSwitchover | Send::Cancelled))) => {
                guest.send = None;
                guest.stage = Stage::Paused;
            }
            _ => {}
        }
        if matches!(guest.stage, Stage::Running | Stage::Paused) {
            record.ever_ran |= power == Power::Running;
            guest.stage = if power == Power::Running { Stage::Running } else { Stage::Paused };
        }
    }

    fn hold(&mut self, one: &Assignment) {
        let current = self.processes.get(&one.vm).is_some_and(|guest| {
            guest.incarnation == one.incarnation || Some(guest.incarnation) == one.continues
        });
        let ran = current && self.disk[&one.vm].ever_ran;
        if self.processes.remove(&one.vm).is_some() || !self.closed(one) {
            let record = self.disk.get_mut(&one.vm).unwrap();
            record.ended = Some((one.incarnation, EndCause::Told, "held".to_owned(), ran));
        }
    }

    fn receive(&mut self, one: &Assignment, migration: MigrationId, rng: &mut Rng, now: u64) {
        self.drop_lower(one);
        if self.processes.contains_key(&one.vm) || self.closed(one) {
            return;
        }
        let record = self.disk.get_mut(&one.vm).unwrap();
        record.receive = Some(migration);
        if rng.chance(3) {
            record.ended = Some((one.incarnation, EndCause::Refused, "no port".to_owned(), false));
            return;
        }
        record.begun = Some(one.incarnation);
        record.ever_ran = false;
        record.volumes = record.volumes || one.spec.has_local_disks();
        let stage = Stage::Incoming { migration, ready_at: now + rng.below(300), arrived: false };
        self.processes.insert(one.vm, Guest { incarnation: one.incarnation, stage, send: None });
    }

    fn send(
        &mut self,
        one: &Assignment,
        migration: MigrationId,
        step: SendStep,
        power: Power,
        rng: &mut Rng,
        now: u64,
    ) {
        let Some(guest) = self.processes.get_mut(&one.vm) else { return };
        if guest.incarnation != one.incarnation {
            return;
        }
        let go_on = |guest: &mut Guest| {
            guest.stage = if power == Power::Running { Stage::Running } else { Stage::Paused };
        };
        let ours = guest.send.as_ref().filter(|(id, _)| *id == migration).map(|(_, send)| send.clone());
        match (step, ours) {
            (SendStep::Copy, None) if matches!(guest.stage, Stage::Running | Stage::Paused) => {
                guest.send = Some((migration, Send::Copying { until: now + rng.below(1_500) }));
            }
            (SendStep::Switch, Some(Send::AtSwitchover)) => {
                guest.send = Some((migration, Send::Passing { until: now + rng.below(400) }));
            }
            (SendStep::Cancel, Some(Send::Copying { .. } | Send::AtSwitchover)) => {
                guest.send = Some((migration, Send::Cancelled));
                go_on(guest);
            }
            _ => {}
        }
    }

    /// Everything the agent can see.
    pub(super) fn sees(&self, now: u64) -> BTreeMap<VmId, ObservedVm> {
        let all = self.disk.iter().map(|(vm, record)| (*vm, self.sees_one(*vm, record, now)));
        all.collect()
    }

    fn sees_one(&self, vm: VmId, record: &Record, now: u64) -> ObservedVm {
        let guest = self.processes.get(&vm);
        let ended = record.ended.clone().map(|(incarnation, cause, message, ever_ran)| {
            (incarnation, Process::Ended { cause, message, ever_ran })
        });
        let (incarnation, process) = match guest {
            Some(guest) => (guest.incarnation, guest.process()),
            None => ended.unwrap_or((record.highest, Process::None)),
        };
        let receive = match guest.map(|guest| &guest.stage) {
            Some(Stage::Incoming { migration, arrived: true, .. }) => {
                Some((*migration, ReceiveState::Arrived))
            }
            Some(Stage::Incoming { migration, ready_at, .. }) if *ready_at <= now => {
                Some((*migration, ReceiveState::Ready(Endpoint::default())))
            }
            Some(Stage::Incoming { migration, .. }) => Some((*migration, ReceiveState::Preparing)),
            _ => None,
        };
        let send = guest.and_then(|guest| guest.send.clone()).map(|(id, send)| (id, send.reported()));
        ObservedVm {
            vm,
            name: record.name.clone(),
            incarnation,
            process,
            has_volumes: record.volumes,
            pid: None,
            vnc: None,
            saved: record.saved.clone(),
            disk_bytes: BTreeMap::new(),
            built: None,
            resumed_at_ms: None,
            receive,
            send,
        }
    }

    /// What to report: everything at first, then what changed.
    pub(super) fn report(&mut self, now: u64) -> Option<Report> {
        let vms = self.sees(now);
        let acts = self.journal.clone();
        let taken = self.set.as_ref().map_or(Revision(0), |set| set.generation);
        let report = match &self.said {
            None => Report {
                complete: true,
                vms: vms.values().cloned().collect(),
                gone: Vec::new(),
                acts: acts.values().cloned().collect(),
                taken,
            },
            Some((said_vms, said_acts, said_taken)) => {
                if *said_vms == vms && *said_acts == acts && *said_taken == taken {
                    return None;
                }
                Report {
                    complete: false,
                    vms: vms
                        .iter()
                        .filter(|(id, vm)| said_vms.get(id) != Some(*vm))
                        .map(|(_, vm)| vm.clone())
                        .collect(),
                    gone: said_vms.keys().filter(|id| !vms.contains_key(id)).copied().collect(),
                    acts: acts.values().cloned().collect(),
                    taken,
                }
            }
        };
        self.said = Some((vms, acts, taken));
        Some(report)
    }
}

impl Guest {
    fn process(&self) -> Process {
        if matches!(
            self.send,
            Some((_, Send::AtSwitchover | Send::Passing { .. } | Send::Sent | Send::Holding | Send::Blink))
        ) {
            return Process::Outgoing;
        }
        match self.stage {
            Stage::Starting { .. } => Process::Starting { doing: "booting".to_owned() },
            Stage::Running => Process::Running,
            Stage::Paused => Process::Paused,
            Stage::Incoming { .. } => Process::Incoming,
            Stage::Still => Process::Outgoing,
        }
    }
}

impl Send {
    fn reported(self) -> SendState {
        match self {
            Self::Copying { .. } => SendState::Copying(SendProgress::default()),
            Self::AtSwitchover | Self::Passing { .. } => SendState::AtSwitchover(SendProgress::default()),
            Self::Sent => SendState::Sent(MigrationFigures::default()),
            Self::Blink | Self::Holding => SendState::Holding("broken pipe".to_owned()),
            Self::Cancelled => SendState::Cancelled("cancelled".to_owned()),
        }
    }
}
