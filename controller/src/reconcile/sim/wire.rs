//! Sessions, messages, and what hypervisors do by themselves.

use dunlin_model::observed::EndCause;
use dunlin_model::{MigrationId, Timestamp, VmId};
use dunlin_state::Command;

use super::agent::{Send, Stage};
use super::{Line, World, capabilities};

impl World {
    /// Agents that have no session get one, sooner or later.
    pub(super) fn connect(&mut self) {
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            if !host.agent_up || host.session.is_some() || !self.rng.chance(20) {
                continue;
            }
            let id = host.id;
            let session = self.state.host(id).unwrap().status.session + 1;
            self.must(&Command::OpenSession {
                host: id,
                session,
                agent_version: "sim".to_owned(),
                capabilities: capabilities(),
            });
            self.observed.open(id, session, Timestamp(self.now));
            self.links.insert(id, super::Link::default());
            let host = &mut self.hosts[index];
            host.session = Some(session);
            host.said = None;
            // A set of an earlier session is acted on no further: it may be from a leader that was deposed.
            host.set = None;
        }
    }

    pub(super) fn disconnect(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if let Some(session) = host.session.take() {
            host.said = None;
            let id = host.id;
            self.links.remove(&id);
            self.observed.close(id, session, Timestamp(self.now));
            self.note(Line::Fault("session lost", index));
        }
    }

    pub(super) fn carry(&mut self) {
        for host in &mut self.hosts {
            let Some(link) = self.links.get_mut(&host.id) else { continue };
            while link.down.front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, set)) = link.down.pop_front() else { break };
                host.take_set(set);
                self.quiet = 0;
            }
            if host.agent_up
                && let Some(report) = host.report(self.now)
            {
                let after = link.up.back().map_or(self.now, |(at, _)| *at);
                link.up.push_back((after.max(self.now) + self.rng.below(150), report));
                self.quiet = 0;
            }
            let Some(session) = host.session else { continue };
            while link.up.front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, report)) = link.up.pop_front() else { break };
                self.observed.take_in(host.id, session, report);
            }
        }
    }

    /// What goes on in guests and between hypervisors, whether an agent looks or not.
    pub(super) fn hypervisors(&mut self) {
        let sends: Vec<(usize, VmId, MigrationId, Send)> = self
            .hosts
            .iter()
            .enumerate()
            .flat_map(|(index, host)| {
                host.processes.iter().filter_map(move |(vm, guest)| {
                    guest.send.clone().map(|(id, send)| (index, *vm, id, send))
                })
            })
            .collect();
        for (index, vm, migration, send) in sends {
            self.send_goes_on(index, vm, migration, &send);
        }
        self.orphans();
    }

    fn peer(&self, vm: VmId, migration: MigrationId) -> Option<usize> {
        self.hosts.iter().position(|host| {
            host.processes.get(&vm).is_some_and(
                |guest| matches!(guest.stage, Stage::Incoming { migration: id, .. } if id == migration),
            )
        })
    }

    fn set_send(&mut self, index: usize, vm: VmId, send: Send, stage: Option<Stage>) {
        let guest = self.hosts[index].processes.get_mut(&vm).unwrap();
        if let Some((_, old)) = &mut guest.send {
            *old = send;
        }
        if let Some(stage) = stage {
            guest.stage = stage;
        }
    }

    fn send_goes_on(&mut self, index: usize, vm: VmId, migration: MigrationId, send: &Send) {
        let peer = self.peer(vm, migration);
        match send {
            Send::Copying { .. } | Send::AtSwitchover if peer.is_none() && self.rng.chance(30) => {
                // The other end is gone: the hypervisor gives up and lets its guest go on.
                let back = if self.rng.chance(80) { Stage::Running } else { Stage::Paused };
                let stage = if matches!(send, Send::Copying { .. }) { None } else { Some(back) };
                self.set_send(index, vm, Send::Cancelled, stage);
            }
            Send::Copying { until } if *until <= self.now && peer.is_some() => {
                self.set_send(index, vm, Send::AtSwitchover, Some(Stage::Still));
            }
            Send::Passing { until } if *until <= self.now => self.pass(index, vm, peer),
            Send::Blink => self.set_send(index, vm, Send::Holding, Some(Stage::Still)),
            _ => {}
        }
    }

    /// The last bytes: they arrive, or do not, and the source learns of it, or does not.
    fn pass(&mut self, index: usize, vm: VmId, peer: Option<usize>) {
        let broken = self.breaks;
        match peer {
            Some(peer) if !(broken && self.rng.chance(25)) => {
                self.set_send(index, vm, Send::Sent, None);
                let guest = self.hosts[peer].processes.get_mut(&vm).unwrap();
                if let Stage::Incoming { arrived, .. } = &mut guest.stage {
                    *arrived = true;
                }
            }
            Some(peer) => {
                let knows = self.rng.chance(50);
                self.set_send(index, vm, if knows { Send::Blink } else { Send::Sent }, None);
                if self.rng.chance(60) {
                    self.hosts[peer].end(vm, EndCause::Died, "the stream broke");
                }
            }
            None => {
                let knows = self.rng.chance(50);
                self.set_send(index, vm, if knows { Send::Blink } else { Send::Sent }, None);
            }
        }
    }

    /// Destinations whose source is gone: some notice, some wait for ever.
    fn orphans(&mut self) {
        let sources: Vec<(VmId, MigrationId)> = self
            .hosts
            .iter()
            .flat_map(|host| host.processes.iter())
            .filter_map(|(vm, guest)| guest.send.as_ref().map(|(id, _)| (*vm, *id)))
            .collect();
        let mut dead = Vec::new();
        for (index, host) in self.hosts.iter().enumerate() {
            for (vm, guest) in &host.processes {
                if let Stage::Incoming { migration, arrived: false, .. } = guest.stage
                    && self.state.migration(migration).is_some_and(|m| m.status.endpoint.is_some())
                    && !sources.contains(&(*vm, migration))
                {
                    dead.push((index, *vm));
                }
            }
        }
        for (index, vm) in dead {
            if self.rng.chance(1) {
                self.hosts[index].end(vm, EndCause::Died, "the source is gone");
            }
        }
    }
}
