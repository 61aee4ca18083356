//! Sessions between agents and controllers. What is said crosses in its order and as the bytes of the protocol; a direction
//! that is cut lets it wait. Each end learns of the end of the other when it can be told, and by its silence otherwise.

use std::collections::VecDeque;

use dunlin_controller::reconcile::{Report, desired_set, is_news};
use dunlin_model::desired::DesiredSet;
use dunlin_model::host::HostPhase;
use dunlin_model::{HostId, Revision};
use dunlin_proto::{Wire as _, read, v1};
use dunlin_state::Command;
use prost::Message as _;

use crate::World;
use crate::controllers::Origin;
use crate::net::Node;

/// As the controller has it, ms.
const PING_EVERY_MS: u64 = 2_000;
const CONTROLLER_SILENCE_MS: u64 = 10_000;
/// As the agent has it, ms.
const AGENT_SILENCE_MS: u64 = 7_000;
const DIAL_MAX_MS: u64 = 3_000;
/// A message takes so long at most, ms.
const DELAY_MAX_MS: u64 = 250;

/// The controller's end.
pub(crate) struct Seat {
    pub(crate) session: u64,
    told: Option<DesiredSet>,
    heard_at: u64,
    pinged_at: u64,
}

/// The agent's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) controller: usize,
    pub(crate) session: u64,
    heard_at: u64,
}

/// An agent that waits to be welcome.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialling {
    controller: usize,
    session: u64,
    since: u64,
}

enum Down {
    Desired(Vec<u8>),
    Ping,
}

enum Up {
    Report(Vec<u8>),
    Pong,
}

/// What is on its way.
pub(crate) struct Pipe {
    pub(crate) host: usize,
    pub(crate) controller: usize,
    session: u64,
    down: VecDeque<(u64, Down)>,
    up: VecDeque<(u64, Up)>,
}

impl World {
    pub(crate) fn drop_pipes(&mut self, which: impl Fn(&Pipe) -> bool) {
        self.pipes.retain(|pipe| !which(pipe));
    }

    fn pipe(&mut self, host: usize, controller: usize, session: u64) -> Option<&mut Pipe> {
        let found =
            |pipe: &&mut Pipe| pipe.host == host && pipe.controller == controller && pipe.session == session;
        self.pipes.iter_mut().find(found)
    }

    fn host_index(&self, id: HostId) -> usize {
        self.hosts.iter().position(|host| host.id == id).expect("hosts are never removed")
    }

    /// The controller lets go of a session.
    pub(crate) fn close_seat(&mut self, c: usize, id: HostId) {
        let Some(seat) = self.controllers[c].seats.remove(&id) else { return };
        let now = self.controllers[c].clock.now();
        self.controllers[c].observed.close(id, seat.session, now);
        let host = self.host_index(id);
        self.drop_pipes(|pipe| (pipe.host, pipe.controller, pipe.session) == (host, c, seat.session));
    }

    /// The agent lets go of its session.
    pub(crate) fn hang_up(&mut self, host: usize) {
        self.hosts[host].dialling = None;
        if let Some(line) = self.hosts[host].line.take() {
            let of = (host, line.controller, line.session);
            self.drop_pipes(|pipe| (pipe.host, pipe.controller, pipe.session) == of);
        }
    }

    /// Agents that have no session look for a leader.
    pub(crate) fn dial(&mut self) {
        let now = self.now();
        for host in 0..self.hosts.len() {
            if self.hosts[host].dialling.is_some_and(|dialling| now - dialling.since > DIAL_MAX_MS) {
                self.hosts[host].dialling = None;
            }
            let free = self.hosts[host].line.is_none() && self.hosts[host].dialling.is_none();
            if self.hosts[host].agent.is_some() && self.hosts[host].line.is_none() {
                // Nothing is at rest while an agent looks for a leader.
                self.quiet = 0;
            }
            if !free || self.hosts[host].agent.is_none() || !self.rng.chance(35) {
                continue;
            }
            let c = self.rng.index(self.controllers.len());
            // It proves that it leads before it opens anything.
            if self.true_leader() != Some(c) || !self.net.both_ways(Node::Host(host), Node::Controller(c)) {
                continue;
            }
            let id = self.hosts[host].id;
            let Some(session) = self.controllers[c].state.host(id).map(|host| host.status.session + 1) else {
                continue;
            };
            let clock = self.controllers[c].clock.now();
            self.close_seat(c, id);
            self.controllers[c].observed.open(id, session, clock);
            let command = Command::OpenSession {
                host: id,
                session,
                agent_version: "sim".to_owned(),
                capabilities: crate::hosts::capabilities(),
            };
            self.propose(c, command, Origin::Session { host, session });
            self.hosts[host].dialling = Some(Dialling { controller: c, session, since: now });
        }
    }

    pub(crate) fn session_decided(&mut self, c: usize, host: usize, session: u64, open: bool) {
        let now = self.now();
        let id = self.hosts[host].id;
        let waits = self.hosts[host]
            .dialling
            .is_some_and(|dialling| (dialling.controller, dialling.session) == (c, session));
        let reached = self.net.both_ways(Node::Host(host), Node::Controller(c));
        if !(open && waits && reached && self.hosts[host].agent.is_some()) {
            let clock = self.controllers[c].clock.now();
            self.controllers[c].observed.close(id, session, clock);
            if waits {
                self.hosts[host].dialling = None;
            }
            return;
        }
        self.hosts[host].dialling = None;
        self.hosts[host].line = Some(Line { controller: c, session, heard_at: now });
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.greet();
        }
        let seat = Seat { session, told: None, heard_at: now, pinged_at: now };
        self.controllers[c].seats.insert(id, seat);
        let (down, up) = (VecDeque::new(), VecDeque::new());
        self.pipes.push(Pipe { host, controller: c, session, down, up });
    }

    pub(crate) fn session_lost(&mut self, host: usize, session: u64) {
        if self.hosts[host].dialling.is_some_and(|dialling| dialling.session == session) {
            self.hosts[host].dialling = None;
        }
    }

    /// What a leader says to the hosts that sit with it.
    pub(crate) fn tell_hosts(&mut self, c: usize) {
        let now = self.now();
        let ids: Vec<HostId> = self.controllers[c].seats.keys().copied().collect();
        for id in ids {
            let host = self.host_index(id);
            let session = self.controllers[c].seats[&id].session;
            if self.pipe(host, c, session).is_none() {
                // The other end is gone. It is told so, when there is a way.
                let told = self.net.carries(Node::Host(host), Node::Controller(c));
                let silent = now - self.controllers[c].seats[&id].heard_at > CONTROLLER_SILENCE_MS;
                if silent || (told && self.rng.chance(60)) {
                    self.close_seat(c, id);
                }
                continue;
            }
            if now - self.controllers[c].seats[&id].heard_at > CONTROLLER_SILENCE_MS {
                self.close_seat(c, id);
                continue;
            }
            let known =
                self.controllers[c].state.host(id).map(|host| (host.status.session, host.status.phase));
            if known.is_none_or(|(open, phase)| open != session || phase == HostPhase::Down) {
                self.close_seat(c, id);
                continue;
            }
            self.ping(c, id, host);
            self.tell(c, id, host);
        }
    }

    fn ping(&mut self, c: usize, id: HostId, host: usize) {
        let now = self.now();
        let Some(seat) = self.controllers[c].seats.get_mut(&id) else { return };
        if now - seat.pinged_at >= PING_EVERY_MS {
            seat.pinged_at = now;
            let session = seat.session;
            self.say(host, c, session, Down::Ping);
        }
    }

    fn say(&mut self, host: usize, c: usize, session: u64, message: Down) {
        let at = self.now() + self.rng.below(DELAY_MAX_MS);
        if let Some(pipe) = self.pipe(host, c, session) {
            let at = pipe.down.back().map_or(at, |(before, _)| at.max(*before));
            pipe.down.push_back((at, message));
        }
    }

    fn tell(&mut self, c: usize, id: HostId, host: usize) {
        let controller = &self.controllers[c];
        let new = desired_set(&controller.state, &controller.observed, id, controller.clock.now());
        let Some(new) = new else { return };
        let seat = &controller.seats[&id];
        if seat.told.as_ref().is_some_and(|told| !is_news(&controller.state, told, &new)) {
            return;
        }
        let session = seat.session;
        let wire: v1::DesiredSet = new.clone().to_wire();
        let bytes = wire.encode_to_vec();
        // Said twice is said once.
        for _ in 0..=u64::from(self.rng.chance(5)) {
            self.say(host, c, session, Down::Desired(bytes.clone()));
        }
        if let Some(seat) = self.controllers[c].seats.get_mut(&id) {
            seat.told = Some(new);
        }
        self.quiet = 0;
    }

    /// Everything that arrives now, and what agents have to say.
    pub(crate) fn carry(&mut self) {
        for host in 0..self.hosts.len() {
            self.hear_leader(host);
            self.report(host);
            self.hear_host(host);
        }
    }

    fn hear_leader(&mut self, host: usize) {
        let now = self.now();
        let Some(line) = self.hosts[host].line else { return };
        let carries = self.net.carries(Node::Controller(line.controller), Node::Host(host));
        let silent = now - line.heard_at > AGENT_SILENCE_MS;
        if self.pipe(host, line.controller, line.session).is_none() {
            if silent || (carries && self.rng.chance(60)) {
                self.hang_up(host);
            }
            return;
        }
        loop {
            let Some(pipe) = self.pipe(host, line.controller, line.session) else { return };
            if !carries {
                break;
            }
            let Some(message) = due(&mut pipe.down, now) else { break };
            if let Some(line) = &mut self.hosts[host].line {
                line.heard_at = now;
            }
            match message {
                Down::Ping => self.answer(host, line, Up::Pong),
                Down::Desired(bytes) => {
                    let set = v1::DesiredSet::decode(bytes.as_slice()).expect("it was encoded");
                    if let Some(agent) = &self.hosts[host].agent {
                        agent.take_in(set);
                    }
                    self.quiet = 0;
                }
            }
        }
        if silent {
            self.hang_up(host);
        }
    }

    fn answer(&mut self, host: usize, line: Line, message: Up) {
        let at = self.now() + self.rng.below(DELAY_MAX_MS);
        if let Some(pipe) = self.pipe(host, line.controller, line.session) {
            let at = pipe.up.back().map_or(at, |(before, _)| at.max(*before));
            pipe.up.push_back((at, message));
        }
    }

    fn report(&mut self, host: usize) {
        let Some(line) = self.hosts[host].line else { return };
        let Some(report) = self.hosts[host].agent.as_mut().and_then(dunlin_agent::simulation::Agent::report)
        else {
            return;
        };
        self.quiet = 0;
        self.answer(host, line, Up::Report(report.encode_to_vec()));
    }

    fn hear_host(&mut self, host: usize) {
        let (now, id) = (self.now(), self.hosts[host].id);
        for c in 0..self.controllers.len() {
            let Some(session) = self.controllers[c].seats.get(&id).map(|seat| seat.session) else { continue };
            while self.net.carries(Node::Host(host), Node::Controller(c)) {
                let Some(pipe) = self.pipe(host, c, session) else { break };
                let Some(message) = due(&mut pipe.up, now) else { break };
                if let Some(seat) = self.controllers[c].seats.get_mut(&id) {
                    seat.heard_at = now;
                }
                if let Up::Report(bytes) = message {
                    let report = v1::Report::decode(bytes.as_slice()).expect("it was encoded");
                    self.controllers[c].observed.take_in(id, session, read_report(report));
                }
            }
        }
    }
}

/// The next message, if it has come by now.
fn due<T>(queue: &mut VecDeque<(u64, T)>, now: u64) -> Option<T> {
    queue.front().filter(|(at, _)| *at <= now)?;
    queue.pop_front().map(|(_, message)| message)
}

/// As the controller reads one.
fn read_report(report: v1::Report) -> Report {
    Report {
        complete: report.complete,
        vms: read(report.vms, "vms").expect("an agent says what can be read"),
        gone: read(report.gone, "gone").expect("an agent says what can be read"),
        acts: read(report.acts, "acts").expect("an agent says what can be read"),
        taken: Revision(report.generation),
    }
}
