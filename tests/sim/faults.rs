//! What breaks, drawn from the seed, and how all of it is mended.

use dunlin_model::ControllerId;
use dunlin_model::cluster::Controller as Member;
use dunlin_model::observed::EndCause;
use dunlin_state::Command;

use crate::World;
use crate::controllers::Origin;
use crate::net::Node;

/// A clock is wrong by so much at most, ms.
const SKEW_MAX_MS: u64 = 20_000;
/// A slow disk takes so long for one record at most, ms.
const SLOW_DISK_MS: u64 = 2_000;

impl World {
    fn any_node(&mut self) -> Node {
        let (controllers, hosts) = (self.controllers.len(), self.hosts.len());
        let n = self.rng.index(controllers + hosts);
        if n < controllers { Node::Controller(n) } else { Node::Host(n - controllers) }
    }

    fn nodes(&self) -> Vec<Node> {
        let controllers = (0..self.controllers.len()).map(Node::Controller);
        controllers.chain((0..self.hosts.len()).map(Node::Host)).collect()
    }

    /// One round of faults.
    pub(crate) async fn faults(&mut self) {
        let host = self.rng.index(self.hosts.len());
        let c = self.rng.index(self.controllers.len());
        match self.rng.below(1_000) {
            0..=5 => self.hang_up(host),
            6..=9 => {
                self.note(|| format!("the agent of host {host} dies"));
                self.kill_agent(host).await;
            }
            10..=12 => self.lose_power(host).await,
            13..=16 => self.hosts[host].disk.die_soon(),
            17 => self.lose_disk(host).await,
            18..=29 => {
                let cause = if self.rng.chance(20) { EndCause::GuestShutdown } else { EndCause::Died };
                let ended = self.plane.kill_one(self.hosts[host].id, cause);
                self.note(|| format!("{ended:?} on host {host} ends: {cause:?}"));
            }
            30..=33 => self.change_leader(),
            34..=36 => self.crash_controller(c),
            37..=42 => self.partition(),
            43..=46 => self.part_hypervisors(),
            47..=49 => self.hosts[host].disk.set_full(true),
            50..=53 => self.hosts[host].disk.set_pace_ms(SLOW_DISK_MS),
            54..=57 => self.skew(),
            58..=60 => self.change_members(),
            _ => {}
        }
        self.mend_some().await;
    }

    async fn mend_some(&mut self) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].disk.is_dead() {
                self.lose_power(host).await;
            }
            if self.hosts[host].agent.is_none() && self.rng.chance(5) {
                self.boot(host);
            }
            if self.rng.chance(2) {
                self.hosts[host].disk.set_full(false);
                self.hosts[host].disk.set_pace_ms(0);
                self.net.heal(Node::Host(host));
            }
        }
        for c in 0..self.controllers.len() {
            if self.controllers[c].member && !self.controllers[c].up && self.rng.chance(4) {
                self.controllers[c].restart();
            }
            if self.rng.chance(2) {
                self.net.heal(Node::Controller(c));
            }
        }
        if self.rng.chance(2) {
            self.plane.lock().cut.clear();
        }
    }

    /// A controller that can lead does, whether or not the last one is well.
    pub(crate) fn change_leader(&mut self) {
        let able: Vec<usize> = (0..self.controllers.len())
            .filter(|c| Some(*c) != self.leader && self.controllers[*c].member && self.is_reachable(*c))
            .collect();
        if self.true_leader().is_some()
            && let Some(next) = self.rng.pick(&able)
        {
            self.install(next);
        }
    }

    /// One node is cut off from some of the others, in one direction or in both.
    fn partition(&mut self) {
        let node = self.any_node();
        let (from, to, share) = match self.rng.below(3) {
            0 => (true, false, 100),
            1 => (false, true, 60),
            _ => (true, true, 100),
        };
        for other in self.nodes() {
            if self.rng.chance(share) {
                if from {
                    self.net.cut(node, other);
                }
                if to {
                    self.net.cut(other, node);
                }
            }
        }
        self.note(|| format!("{node:?} is cut off: from it {from}, to it {to}"));
    }

    fn part_hypervisors(&mut self) {
        let (one, other) = (self.rng.index(self.hosts.len()), self.rng.index(self.hosts.len()));
        let (one, other) = (self.hosts[one].id, self.hosts[other].id);
        self.plane.lock().cut.insert((one.min(other), one.max(other)));
    }

    fn skew(&mut self) {
        let by = i64::try_from(self.rng.below(2 * SKEW_MAX_MS)).expect("it is small");
        let by_ms = by - i64::try_from(SKEW_MAX_MS).expect("it is small");
        let node = self.any_node();
        match node {
            Node::Controller(c) => self.controllers[c].clock.set_ms(by_ms),
            Node::Host(host) => self.hosts[host].clock.set_ms(by_ms),
        }
        self.note(|| format!("the clock of {node:?} is wrong by {by_ms} ms"));
    }

    /// A controller comes, or one goes.
    fn change_members(&mut self) {
        let Some(leader) = self.true_leader() else { return };
        let pending = |origin: &Origin| matches!(origin, Origin::Members(_));
        if self.controllers[leader].in_flight.iter().any(|proposal| pending(&proposal.origin)) {
            return;
        }
        let c = self.rng.index(self.controllers.len());
        let mut members: Vec<usize> =
            (0..self.controllers.len()).filter(|c| self.controllers[*c].member).collect();
        match members.iter().position(|member| *member == c) {
            None => members.push(c),
            Some(at) if members.len() > 3 && c != leader => drop(members.remove(at)),
            Some(_) => return,
        }
        let controllers = members.iter().map(|c| member(*c)).collect();
        self.propose(leader, Command::SetControllers { controllers }, Origin::Members(members));
    }

    /// Nothing breaks any more.
    pub(crate) async fn calm(&mut self) {
        self.note(|| "nothing breaks any more".to_owned());
        self.breaks = false;
        self.plane.lock().breaks = false;
        self.plane.lock().cut.clear();
        self.net.heal_all();
        for host in 0..self.hosts.len() {
            if self.hosts[host].disk.is_dead() {
                self.lose_power(host).await;
            }
            self.hosts[host].disk.set_full(false);
            self.hosts[host].disk.set_pace_ms(0);
            self.hosts[host].disk.stop_dying();
            self.hosts[host].clock.set_ms(0);
        }
        for c in 0..self.controllers.len() {
            self.controllers[c].clock.set_ms(0);
            if self.controllers[c].member && !self.controllers[c].up {
                self.controllers[c].restart();
            }
        }
        self.cancel_drains();
    }
}

pub(crate) fn member(c: usize) -> Member {
    Member { id: ControllerId(c as u64 + 1), endpoint: format!("https://10.0.0.{}:7443", c + 1) }
}
