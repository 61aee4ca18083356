//! What a check stands on: two hosts, a guest id of its own, and an ear for notices.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::{Incarnation, VmId};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, timeout_at};

use super::{Checked, Failed, Fixture, ensure};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Guest, Hypervisor, Launch, LaunchMode, Notice};

/// The incarnation each check's guest starts with.
pub(super) const FIRST: Incarnation = Incarnation(3);

pub(super) struct World<'f> {
    pub(super) fixture: &'f dyn Fixture,
    hosts: [Option<Arc<dyn Hypervisor>>; 2],
    count: u64,
}

impl<'f> World<'f> {
    pub(super) async fn open(fixture: &'f dyn Fixture) -> DriverResult<Self> {
        let hosts = [Some(fixture.open(0).await?), Some(fixture.open(1).await?)];
        Ok(Self { fixture, hosts, count: 1 })
    }

    pub(super) fn host(&self, host: usize) -> Arc<dyn Hypervisor> {
        self.hosts[host].clone().expect("both hosts are open except within `reopen`")
    }

    /// What kill -9 and a restart do to the agent of a host.
    pub(super) async fn reopen(&mut self, host: usize) -> DriverResult<Arc<dyn Hypervisor>> {
        self.hosts[host] = None;
        self.hosts[host] = Some(self.fixture.open(host).await?);
        Ok(self.host(host))
    }

    /// The guest of this check.
    pub(super) fn vm(&self) -> VmId {
        let text = format!("00000000-0000-4000-8000-{:012x}", self.count);
        text.parse().expect("twelve hex digits make a UUID whole")
    }

    /// Clears away this check's guest and makes room for the next.
    pub(super) async fn next(&mut self) -> DriverResult<()> {
        let vm = self.vm();
        for host in 0..2 {
            self.host(host).destroy(vm).await?;
            self.host(host).forget(vm).await?;
        }
        self.count += 1;
        Ok(())
    }

    pub(super) fn launch(&self, host: usize, incarnation: Incarnation) -> Launch {
        self.fixture.launch(host, self.vm(), incarnation)
    }

    /// Starts this check's guest on host 0.
    pub(super) async fn start(&self) -> DriverResult<Guest> {
        self.host(0).start(self.launch(0, FIRST)).await
    }

    pub(super) fn ear(&self, host: usize) -> Ear {
        let driver = self.host(host);
        Ear { notices: driver.notices(), driver, vm: self.vm(), deadline: self.fixture.deadline() }
    }

    /// The guest on a host, when it has it.
    pub(super) async fn find(&self, host: usize) -> DriverResult<Option<Guest>> {
        let vm = self.vm();
        Ok(self.host(host).list().await?.into_iter().find(|guest| guest.vm == vm))
    }

    pub(super) async fn guest(&self, host: usize) -> Result<Guest, Failed> {
        let guest = self.find(host).await?;
        guest.ok_or_else(|| Failed(format!("host {host} does not list the guest")))
    }

    /// A launch on host 1 that waits for the guest of host 0.
    pub(super) fn incoming(&self, limits: &MigrationLimits) -> Launch {
        let mode = LaunchMode::Incoming { listen: self.fixture.listen(1), limits: limits.clone() };
        Launch { mode, ..self.launch(1, FIRST.next()) }
    }

    /// Starts the guest on host 0, and host 1 waiting for it.
    pub(super) async fn pair(&self, limits: &MigrationLimits) -> Result<Endpoint, Failed> {
        self.start().await?;
        let waiting = self.host(1).start(self.incoming(limits)).await?;
        waiting.endpoint.ok_or_else(|| {
            Failed(format!("a start that takes a migration has no endpoint: {:?}", waiting.run))
        })
    }
}

/// Hears the notices of one guest on one host, from the moment it is made.
pub(super) struct Ear {
    notices: broadcast::Receiver<Notice>,
    driver: Arc<dyn Hypervisor>,
    vm: VmId,
    deadline: Duration,
}

impl Ear {
    /// Waits for a notice that fits.
    pub(super) async fn hear(&mut self, what: &str, fits: impl Fn(&Guest) -> bool) -> Result<Guest, Failed> {
        let until = Instant::now() + self.deadline;
        loop {
            let guests = match timeout_at(until, self.notices.recv()).await {
                Ok(Ok(notice)) => vec![notice.guest],
                Ok(Err(RecvError::Lagged(_))) => self.driver.list().await?,
                Ok(Err(RecvError::Closed)) => return Err(Failed(format!("notices ended before: {what}"))),
                Err(_) => {
                    let now = self.driver.list().await?.into_iter().find(|guest| guest.vm == self.vm);
                    return Err(Failed(format!(
                        "no notice within {:?} of: {what}; it is {now:?}",
                        self.deadline
                    )));
                }
            };
            if let Some(guest) = guests.into_iter().find(|guest| guest.vm == self.vm && fits(guest)) {
                return Ok(guest);
            }
        }
    }
}

/// The verb must fail, in one of these ways.
pub(super) fn refused<T>(what: &str, result: DriverResult<T>, kinds: &[DriverErrorKind]) -> Checked {
    match result {
        Ok(_) => Err(Failed(format!("{what} was accepted"))),
        Err(error) => {
            ensure!(
                kinds.contains(&error.kind),
                "{what} failed as {:?} instead of {kinds:?}: {error}",
                error.kind
            );
            Ok(())
        }
    }
}
