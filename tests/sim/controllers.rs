//! The controllers. Real is what each of them holds and decides; the log between them is only its contract:
//!
//! ```text
//!   proposed --a majority has it--> committed: in one order, for ever, applied by everybody in that order
//!           \--the leader is deposed--> committed by the next one after all, or lost: nobody is told which
//! ```
//! A leader that is cut off goes on believing that it leads for a while, on the state it has. A controller that crashes
//! comes back with its last snapshot, and takes the rest of the log from there.

use std::collections::{BTreeMap, VecDeque};

use dunlin_controller::reconcile::{Observed, step};
use dunlin_model::HostId;
use dunlin_state::{Command, Outcome, Rejected, Stamp, State, apply, snapshot};

use crate::World;
use crate::net::Node;
use crate::sessions::Seat;
use crate::time::Skewed;

/// Entries between two snapshots of a controller.
const SNAPSHOT_EVERY: usize = 60;
/// A leader that reaches no majority believes in itself for so long at most, ms.
const STALE_MAX_MS: u64 = 4_000;
/// An election takes so long at most, ms.
const ELECTION_MAX_MS: u64 = 800;

/// One entry of the log.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) stamp: Stamp,
    pub(crate) command: Command,
}

/// Who wants to know what came of a proposal.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Reconciler,
    Session { host: usize, session: u64 },
    User(u64),
    Members(Vec<usize>),
}

#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) due: u64,
    pub(crate) command: Command,
    pub(crate) origin: Origin,
}

pub(crate) struct Controller {
    pub(crate) member: bool,
    pub(crate) up: bool,
    pub(crate) state: State,
    /// Entries applied.
    pub(crate) applied: usize,
    /// The term it believes to lead.
    pub(crate) leads: Option<u64>,
    /// When it last had a majority.
    majority_at: u64,
    /// How long it believes in itself without one.
    patience_ms: u64,
    pub(crate) observed: Observed,
    pub(crate) in_flight: VecDeque<Proposal>,
    pub(crate) seats: BTreeMap<HostId, Seat>,
    pub(crate) clock: Skewed,
    /// The snapshot on its disk, and how many entries are in it.
    snapshot: (usize, Vec<u8>),
}

impl Controller {
    pub(crate) fn new(member: bool, clock: Skewed) -> Self {
        let state = State::new();
        let snapshot = (0, encoded(&state));
        Self {
            member,
            up: member,
            state,
            applied: 0,
            leads: None,
            majority_at: 0,
            patience_ms: 0,
            observed: Observed::default(),
            in_flight: VecDeque::new(),
            seats: BTreeMap::new(),
            clock,
            snapshot,
        }
    }

    fn apply_one(&mut self, entry: &Entry) -> Result<Outcome, Rejected> {
        self.applied += 1;
        apply(&mut self.state, &entry.stamp, &entry.command)
    }

    fn catch_up(&mut self, log: &[Entry]) {
        for entry in log.iter().skip(self.applied) {
            let _ = self.apply_one(entry);
        }
        if self.applied - self.snapshot.0 >= SNAPSHOT_EVERY {
            self.snapshot = (self.applied, encoded(&self.state));
        }
    }

    /// Memory is gone; what the disk has is read.
    pub(crate) fn restart(&mut self) {
        self.up = true;
        self.state = decoded(&self.snapshot.1);
        self.applied = self.snapshot.0;
    }

    pub(crate) fn receive_snapshot(&mut self, of: &Self) {
        self.snapshot = (of.applied, encoded(&of.state));
        self.restart();
    }

    fn forget_leading(&mut self) -> VecDeque<Proposal> {
        self.leads = None;
        self.seats.clear();
        std::mem::take(&mut self.in_flight)
    }
}

fn encoded(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot::encode(state, &mut bytes).expect("memory takes it");
    bytes
}

fn decoded(mut bytes: &[u8]) -> State {
    snapshot::decode(&mut bytes).expect("it was written whole")
}

impl World {
    fn majority(&self, of: usize) -> bool {
        let members: Vec<usize> =
            (0..self.controllers.len()).filter(|c| self.controllers[*c].member).collect();
        let node = Node::Controller;
        let reached =
            members.iter().filter(|c| self.controllers[**c].up && self.net.both_ways(node(of), node(**c)));
        self.controllers[of].up && self.controllers[of].member && reached.count() * 2 > members.len()
    }

    /// The controller whose proposals are committed, if there is one now.
    pub(crate) fn true_leader(&self) -> Option<usize> {
        self.leader.filter(|c| self.controllers[*c].leads == Some(self.term) && self.majority(*c))
    }

    /// One round of all controllers.
    pub(crate) fn controllers_go_on(&mut self) {
        self.elect();
        for c in 0..self.controllers.len() {
            if !self.controllers[c].up {
                continue;
            }
            if self.controllers[c].leads.is_some() {
                self.lead(c);
            } else {
                self.follow(c);
            }
        }
    }

    fn follow(&mut self, c: usize) {
        let Some(leader) = self.true_leader() else { return };
        if self.net.both_ways(Node::Controller(leader), Node::Controller(c)) && self.rng.chance(70) {
            self.controllers[c].catch_up(&self.log);
        }
    }

    fn elect(&mut self) {
        if self.true_leader().is_some() {
            self.leaderless_since = None;
            return;
        }
        let since = *self.leaderless_since.get_or_insert(self.now());
        let wait = self.rng.below(ELECTION_MAX_MS);
        if self.now() - since < wait {
            return;
        }
        let able: Vec<usize> = (0..self.controllers.len()).filter(|c| self.majority(*c)).collect();
        if let Some(next) = self.rng.pick(&able) {
            self.install(next);
        }
    }

    /// A new term: some of what the last leader had proposed is in the log of the new one, the rest is not.
    pub(crate) fn install(&mut self, next: usize) {
        self.leaderless_since = None;
        if let Some(old) = self.leader.take() {
            let proposed: Vec<Proposal> = self.controllers[old].in_flight.drain(..).collect();
            let landed = self.rng.index(proposed.len() + 1);
            for (n, proposal) in proposed.into_iter().enumerate() {
                if n < landed {
                    self.commit(old, &proposal, false);
                }
                self.unanswered(&proposal.origin);
            }
            if self.mutant == Some(crate::Mutant::LogLosesItsEnd) && self.log.len() > 1 {
                self.log.pop();
            }
        }
        self.term += 1;
        self.leader = Some(next);
        let (now, patience_ms, term) = (self.now(), self.rng.below(STALE_MAX_MS), self.term);
        let log = &self.log;
        let controller = &mut self.controllers[next];
        // Whatever it proposed in an older term of its own is not its business any more.
        let forgotten = controller.forget_leading();
        controller.catch_up(log);
        controller.leads = Some(term);
        (controller.majority_at, controller.patience_ms) = (now, patience_ms);
        controller.observed = Observed::new(controller.clock.now());
        for proposal in forgotten {
            self.unanswered(&proposal.origin);
        }
        self.note(|| format!("controller {next} leads in term {term}"));
        self.check_acknowledged(next);
    }

    /// It leads no longer, and knows it.
    pub(crate) fn step_down(&mut self, c: usize) {
        let hosts: Vec<HostId> = self.controllers[c].seats.keys().copied().collect();
        for host in hosts {
            self.close_seat(c, host);
        }
        for proposal in self.controllers[c].forget_leading() {
            self.unanswered(&proposal.origin);
        }
        self.note(|| format!("controller {c} steps down"));
    }

    /// What it sees, decides and says while it believes to lead.
    fn lead(&mut self, c: usize) {
        let now = self.now();
        let deposed = self.controllers[c].leads != Some(self.term);
        if deposed && let Some(leader) = self.leader {
            let hears = self.net.carries(Node::Controller(leader), Node::Controller(c));
            if hears && self.rng.chance(40) {
                return self.step_down(c);
            }
        }
        if self.majority(c) && !deposed {
            self.controllers[c].majority_at = now;
            while self.controllers[c].in_flight.front().is_some_and(|proposal| proposal.due <= now) {
                let Some(proposal) = self.controllers[c].in_flight.pop_front() else { break };
                self.commit(c, &proposal, true);
            }
        } else if now - self.controllers[c].majority_at > self.controllers[c].patience_ms {
            return self.step_down(c);
        }
        let controller = &self.controllers[c];
        if !controller.in_flight.iter().any(|proposal| matches!(proposal.origin, Origin::Reconciler)) {
            let commands = step(&controller.state, &controller.observed, controller.clock.now());
            for command in commands {
                self.propose(c, command, Origin::Reconciler);
            }
        }
        self.controllers[c].forget_acts();
        self.tell_hosts(c);
    }

    pub(crate) fn propose(&mut self, c: usize, command: Command, origin: Origin) {
        let behind = self.controllers[c].in_flight.back().map_or(0, |proposal| proposal.due);
        let due = behind.max(self.now() + self.rng.below(150));
        self.controllers[c].in_flight.push_back(Proposal { due, command, origin });
    }

    /// It is in the log, for ever. `answers`: the proposer still leads, and tells whoever asked.
    fn commit(&mut self, by: usize, proposal: &Proposal, answers: bool) {
        let stamp = Stamp { index: self.log.len() as u64 + 1, time: self.controllers[by].clock.now() };
        let entry = Entry { stamp, command: proposal.command.clone() };
        let whole = apply(&mut self.whole_log, &stamp, &entry.command);
        self.note(|| format!("{stamp:?} {:?} -> {:?}", entry.command, whole.as_ref().err()));
        self.quiet = 0;
        self.log.push(entry);
        if !answers {
            return;
        }
        let (controller, log) = (&mut self.controllers[by], &self.log);
        controller.catch_up(log.get(..log.len() - 1).unwrap_or_default());
        let own = log.last().map(|entry| controller.apply_one(entry));
        let Some(result) = own else { return };
        if result.as_ref().ok().map(|done| done.revision) != whole.as_ref().ok().map(|done| done.revision) {
            self.fail(&format!("controller {by} came to {result:?}, the whole log to {whole:?}"));
        }
        self.answered(by, &proposal.origin, result);
    }

    fn answered(&mut self, by: usize, origin: &Origin, result: Result<Outcome, Rejected>) {
        match origin {
            Origin::Reconciler => {}
            Origin::Session { host, session } => self.session_decided(by, *host, *session, result.is_ok()),
            Origin::User(op) => self.user_answered(*op, by, result),
            Origin::Members(members) if result.is_ok() => self.members_are(by, members),
            Origin::Members(_) => {}
        }
    }

    fn unanswered(&mut self, origin: &Origin) {
        match origin {
            Origin::User(op) => self.user_unanswered(*op),
            Origin::Session { host, session } => self.session_lost(*host, *session),
            Origin::Reconciler | Origin::Members(_) => {}
        }
    }

    fn members_are(&mut self, by: usize, members: &[usize]) {
        for c in 0..self.controllers.len() {
            let (is, was) = (members.contains(&c), self.controllers[c].member);
            self.controllers[c].member = is;
            if is && !was {
                let (state, applied) = (self.controllers[by].state.clone(), self.controllers[by].applied);
                let clock = self.controllers[c].clock.clone();
                let source = Controller { state, applied, ..Controller::new(true, clock) };
                self.controllers[c].receive_snapshot(&source);
            } else if was && !is {
                self.crash_controller(c);
            }
        }
    }

    pub(crate) fn crash_controller(&mut self, c: usize) {
        self.note(|| format!("controller {c} dies"));
        self.controllers[c].up = false;
        // Its proposals may land yet; whoever asked learns of nothing.
        if self.leader != Some(c) {
            for proposal in std::mem::take(&mut self.controllers[c].in_flight) {
                self.unanswered(&proposal.origin);
            }
        }
        self.controllers[c].leads = None;
        self.controllers[c].seats.clear();
        self.drop_pipes(|pipe| pipe.controller == c);
    }
}

impl Controller {
    /// Keeps its memory bounded, as the leader's loop does every second.
    fn forget_acts(&mut self) {
        self.observed.forget_acts(&self.state);
    }
}
