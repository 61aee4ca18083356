//! The hosts: a real agent each, on a hypervisor, a disk and a clock that are played.

use std::path::PathBuf;
use std::sync::Arc;

use dunlin_agent::Error;
use dunlin_agent::ground::Ground;
use dunlin_agent::simulation::Agent;
use dunlin_model::HostId;
use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use tokio::task::JoinHandle;

use crate::World;
use crate::disk::Disk;
use crate::hypervisor::Driver;
use crate::sessions::{Dialling, Line};
use crate::time::Skewed;

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) agent: Option<Agent>,
    /// An agent that begins. Killed as soon as it has begun, when it was killed meanwhile.
    opening: Option<(JoinHandle<Result<Agent, Error>>, bool)>,
    pub(crate) line: Option<Line>,
    pub(crate) dialling: Option<Dialling>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) data_dir: PathBuf,
    pub(crate) clock: Skewed,
    /// Counts the disks it has had.
    pub(crate) disks: u32,
}

impl Host {
    pub(crate) fn new(id: HostId, disk: Arc<Disk>, data_dir: PathBuf, clock: Skewed) -> Self {
        let (agent, opening, line, dialling) = (None, None, None, None);
        Self { id, agent, opening, line, dialling, disk, data_dir, clock, disks: 1 }
    }
}

impl World {
    /// The agent begins.
    pub(crate) fn boot(&mut self, host: usize) {
        let one = &self.hosts[host];
        if one.agent.is_some() || one.opening.is_some() {
            return;
        }
        let driver = Driver { host: one.id, plane: Arc::clone(&self.plane), data_dir: one.data_dir.clone() };
        let timer = Arc::new(self.plane.time.clone());
        let ground = Ground { clock: one.clock.clock(), timer, files: Arc::clone(&one.disk) as _ };
        let opening = Agent::open(one.id, one.data_dir.clone(), Arc::new(driver), ground);
        self.hosts[host].opening = Some((tokio::spawn(opening), false));
    }

    /// Agents that have begun.
    pub(crate) async fn booted(&mut self) {
        for host in 0..self.hosts.len() {
            if !self.hosts[host].opening.as_ref().is_some_and(|(opening, _)| opening.is_finished()) {
                continue;
            }
            let Some((opening, doomed)) = self.hosts[host].opening.take() else { continue };
            match opening.await.expect("it does not panic") {
                Ok(agent) if doomed => agent.kill().await,
                Ok(agent) => {
                    self.note(|| format!("the agent of host {host} is up"));
                    self.hosts[host].agent = Some(agent);
                }
                Err(Error::Journal(error)) if self.hosts[host].disk.is_dead() => {
                    self.note(|| format!("the agent of host {host} stops: {error}"));
                }
                Err(error) => self.fail(&format!("the agent of host {host} does not start: {error}")),
            }
        }
    }

    pub(crate) async fn kill_agent(&mut self, host: usize) {
        self.hang_up(host);
        if let Some((_, doomed)) = &mut self.hosts[host].opening {
            *doomed = true;
        }
        if let Some(agent) = self.hosts[host].agent.take() {
            agent.kill().await;
        }
    }

    pub(crate) async fn lose_power(&mut self, host: usize) {
        self.note(|| format!("host {host} loses its power"));
        self.kill_agent(host).await;
        self.hosts[host].disk.lose_power();
        self.plane.lose_power(self.hosts[host].id);
    }

    /// The host comes back with an empty disk: nothing is known there any more.
    pub(crate) async fn lose_disk(&mut self, host: usize) {
        if self.hosts[host].opening.is_some() {
            return;
        }
        self.note(|| format!("host {host} loses its disk"));
        self.kill_agent(host).await;
        self.plane.lose_power(self.hosts[host].id);
        self.plane.forget_all(self.hosts[host].id);
        self.hosts[host].disk.wipe();
        self.hosts[host].disks += 1;
        std::fs::remove_dir_all(&self.hosts[host].data_dir).expect("it was made here");
        std::fs::create_dir_all(&self.hosts[host].data_dir).expect("it was there before");
    }
}

pub(crate) fn capabilities() -> HostCapabilities {
    let powers = [
        DriverPower::Pause,
        DriverPower::Shutdown,
        DriverPower::Reset,
        DriverPower::Save,
        DriverPower::Migrate,
        DriverPower::MigrateStorage,
    ];
    let probe = AccelProbe { accel: Accel::Simulated, usable: true, evidence: String::new() };
    let driver = DriverCapabilities {
        name: DriverName::Test,
        accels: vec![probe],
        powers: powers.into_iter().collect(),
        ..DriverCapabilities::default()
    };
    HostCapabilities { cpus: 8, mem_mib: 4_096, drivers: vec![driver], ..HostCapabilities::default() }
}
