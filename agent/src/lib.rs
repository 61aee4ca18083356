//! The per-host daemon: makes its host what the leader says it should be, and says what it sees.
//!
//! ```text
//!   leader --desired set--> session --> board --look--> workers --verbs--> drivers (the guests themselves)
//!   leader <----reports---- session <-- board <-------- workers, notices <--------+
//!                                         ^--- journal: what cannot be seen again
//! ```
//! Knows one host. Decides nothing of its own about where a VM runs, and stops nothing when it stops itself: guests
//! outlive it and are taken over when it comes back. Entry point: [`run`].

mod capabilities;
mod config;
mod console;
mod converge;
mod durable;
pub mod files;
pub mod ground;
mod host;
mod identity;
mod image_cache;
mod images;
mod journal;
mod keys;
mod line;
mod metrics;
mod network;
mod presence;
mod sample;
mod seed;
mod serial_log;
mod session;
mod targets;
#[cfg(test)]
mod tests;
mod timed;
mod unmanaged;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_drivers::libvirt::{Libvirt, LibvirtConfig};
use dunlin_drivers::lxc::{self, LxcConfig};
use dunlin_drivers::qemu::{Qemu, QemuConfig};
use dunlin_drivers::simulated::{SimConfig, SimDriver};
use dunlin_drivers::uml::{self, UmlConfig};
use dunlin_drivers::{DriverError, Hypervisor};
use thiserror::Error;

pub use config::{Config, Network, SimulatedHost};
pub use identity::IdentityError;
pub use journal::JournalError;
pub use keys::KeysError;
pub use session::simulation;

use ground::Ground;
use host::Host;
use line::Line;

/// Time for tasks to let go of what they hold when the agent stops. They are cut off at their next await; only a write
/// to the disk under way is waited for.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the agent does not run.
#[derive(Debug, Error)]
pub enum Error {
    /// No identity, or another agent has it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What it has to remember cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A folder of its data folder cannot be used.
    #[error("{path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A driver cannot be opened.
    #[error("driver: {0}")]
    Driver(#[source] DriverError),
    /// A libvirt URI is none.
    #[error(transparent)]
    LibvirtUri(#[from] dunlin_model::Invalid),
    /// Metrics cannot be served where they were to be.
    #[error("serve metrics on {address}: {source}")]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Nothing could run a guest.
    #[error("no driver is enabled: a host needs one of qemu, lxc, uml, libvirt and test")]
    NoDriver,
}

/// How often code that is not in use is let go of. What a start or a migration needed is not needed for most minutes of a
/// host's life; what is in use is mapped again in some hundred page faults.
const REST_EVERY: Duration = Duration::from_secs(60);

/// Keeps the agent as small as what it does.
async fn rest() {
    loop {
        tokio::time::sleep(REST_EVERY).await;
        if let Err(error) = dunlin_drivers::footprint::release() {
            tracing::debug!(%error, "what is not in use stays resident");
        }
    }
}

/// Names the folder an error is about.
trait Folder<T> {
    fn folder(self, path: PathBuf) -> Result<T, Error>;
}

impl<T> Folder<T> for std::io::Result<T> {
    fn folder(self, path: PathBuf) -> Result<T, Error> {
        self.map_err(|source| Error::Folder { path, source })
    }
}

/// Runs the agent of this host until `shutdown` is ready. Joins first, when the host has no identity yet. Guests go on
/// when it ends, and when it is killed.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let lock = identity::DirLock::take(&config.data_dir)?;
    let mut drivers: Vec<Arc<dyn Hypervisor>> = Vec::new();
    if config.qemu {
        drivers.push(Arc::new(Qemu::new(QemuConfig::new(config.data_dir.join("qemu")))));
    }
    if let Some(uri) = &config.libvirt {
        let mut libvirt = LibvirtConfig::new(config.data_dir.join("libvirt"), uri)?;
        libvirt.peer.clone_from(&config.libvirt_peer);
        drivers.push(Arc::new(Libvirt::open(libvirt).map_err(Error::Driver)?));
    }
    if config.lxc {
        drivers.push(Arc::new(lxc::driver(LxcConfig::new(config.data_dir.join("lxc")))));
    }
    if config.uml {
        drivers.push(Arc::new(uml::driver(UmlConfig::new(config.data_dir.join("uml")))));
    }
    if let Some(played) = config.test {
        let listen = config.address.clone();
        let sim = SimConfig {
            cpus: played.cpus,
            mem_mib: played.mem_mib,
            listen,
            ..SimConfig::new(config.data_dir.join("test"))
        };
        drivers.push(Arc::new(SimDriver::open(sim).await.map_err(Error::Driver)?));
    }
    if drivers.is_empty() {
        return Err(Error::NoDriver);
    }
    run_locked(config, lock, drivers, shutdown).await
}

/// Runs the agent with drivers that are open already: for tests that make things happen to guests.
pub async fn run_with(
    config: Config,
    drivers: Vec<Arc<dyn Hypervisor>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let lock = identity::DirLock::take(&config.data_dir)?;
    run_locked(config, lock, drivers, shutdown).await
}

async fn run_locked(
    config: Config,
    lock: identity::DirLock,
    drivers: Vec<Arc<dyn Hypervisor>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    tokio::pin!(shutdown);
    let measured = match config.metrics_listen {
        Some(address) => {
            Some(metrics::bind(address).await.map_err(|source| Error::Metrics { address, source })?)
        }
        None => None,
    };
    let enrolled = tokio::select! {
        enrolled = identity::enrol(&config) => enrolled?,
        () = &mut shutdown => return Ok(()),
    };
    tracing::info!(host = %enrolled.host, cluster = %enrolled.cluster, "this host");
    let line = Arc::new(Line::new(
        enrolled.controllers.iter().chain(&config.controllers).cloned(),
        enrolled.keys.keyring.dialer(),
    ));
    let host = Host::open(config, drivers, line, lock, Ground::this_machine())?;
    if let Some(listener) = measured {
        host.spawn(metrics::serve(Arc::clone(&host), listener));
    }
    // However this ends, dropped in the middle too, every task ends with it.
    let _stop = host.stop.clone().drop_guard();
    tokio::select! {
        () = host.settled() => {}
        () = &mut shutdown => return Ok(()),
    }
    host.spawn(sample::keep(Arc::clone(&host)));
    host.spawn(unmanaged::keep(Arc::clone(&host)));
    host.spawn(image_cache::keep(Arc::clone(&host)));
    host.spawn(rest());
    let ended = tokio::select! {
        ended = session::attend(Arc::clone(&host), enrolled) => ended.map_err(Error::from),
        () = shutdown => Ok(()),
    };
    host.stop.cancel();
    host.tasks.close();
    if tokio::time::timeout(STOP_TIMEOUT, host.tasks.wait()).await.is_err() {
        tracing::warn!("stopped while something was still being written");
    }
    ended
}
