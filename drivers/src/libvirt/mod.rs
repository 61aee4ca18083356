//! Any hypervisor that a libvirt daemon drives, over libvirt's own RPC.
//!
//! ```text
//!  Hypervisor --verbs--> [`verbs`] --calls--> [`client`] --[`wire`]--> libvirtd
//!                           |                                            |
//!                        guests  <------------- link <----- events ------+
//!                     (records, states)   (keeps the connection up)
//! ```
//! A guest is a persistent domain with the VM's UUID; what libvirt cannot be asked (incarnation, whether it ever ran, how
//! it was to end) is in a record of ours, written before it is acted upon, and the incarnation also stands in the
//! domain's metadata. Guests outlive agent and daemon. While the daemon is away nothing is told of them, and verbs fail as
//! transient. What the hypervisor behind the URI lacks is found out by asking ([`offers`]) and is Unsupported.

pub mod client;
mod console;
mod foreign;
mod graft;
mod guests;
mod landing;
mod launch;
mod link;
#[cfg(test)]
mod live;
mod moves;
mod offers;
mod record;
mod start;
mod verbs;
pub mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::Sample;
use dunlin_model::{Incarnation, Invalid, VmId};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use self::client::{ClientError, Login, Transport, Uri};
use self::guests::Guests;
use self::link::{Link, Site};
use self::record::Shelf;
use self::wire::fault;
use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Foreign, Guest, Hypervisor, Launch, Notice, Presence, Run};

/// Which daemon, and where the driver keeps its files.
#[derive(Clone, Debug)]
pub struct LibvirtConfig {
    /// Folder of the driver's own files.
    pub dir: PathBuf,
    /// Where the daemon is.
    pub uri: Uri,
    /// The same as it was written.
    pub uri_text: String,
    /// Who one is, where the daemon asks.
    pub login: Option<Login>,
    /// URI at which agents of other hosts reach this daemon for migrations; `ADDRESS` in it stands for this host's
    /// address. None: by TLS at that address.
    pub peer: Option<String>,
}

impl LibvirtConfig {
    /// The daemon at this URI, without a login.
    ///
    /// # Errors
    /// When it is no URI.
    pub fn new(dir: impl Into<PathBuf>, uri: &str) -> Result<Self, Invalid> {
        Ok(Self { dir: dir.into(), uri: uri.parse()?, uri_text: uri.to_owned(), login: None, peer: None })
    }

    /// Where others reach this daemon.
    fn peer_at(&self, address: &str) -> String {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        match &self.peer {
            Some(peer) => peer.replace("ADDRESS", &host),
            None => format!("{}+tls://{host}{}", self.uri.driver, self.uri.path),
        }
    }

    /// The daemon is on this machine, and so are its files and processes.
    fn is_local(&self) -> bool {
        self.uri.transport == Transport::Unix
    }
}

/// The driver. Dropping it leaves guests running, to be found by the next one with the same folder.
#[derive(Debug)]
pub struct Libvirt {
    site: Arc<Site>,
    keeper: JoinHandle<()>,
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.keeper.abort();
        self.site.moves.clear();
    }
}

fn fail(verb: &'static str, kind: DriverErrorKind, message: impl Into<String>) -> DriverError {
    DriverError::new(DriverName::Libvirt, verb, kind, message)
}

fn fail_io(verb: &'static str, error: &std::io::Error) -> DriverError {
    fail(verb, DriverErrorKind::Transient, format!("the driver's own files: {error}"))
}

/// A call's failure as a verb's.
fn failed(verb: &'static str, error: &ClientError) -> DriverError {
    let kind = match error {
        ClientError::Fault(fault) if fault.is_unsupported() => DriverErrorKind::Unsupported,
        ClientError::Fault(fault) => match fault.code {
            fault::NO_DOMAIN => DriverErrorKind::NotFound,
            fault::TIMEOUT => DriverErrorKind::Busy,
            _ => DriverErrorKind::Refused,
        },
        ClientError::Deadline { .. } => DriverErrorKind::Deadline,
        ClientError::Connect { .. } | ClientError::Gone(_) => DriverErrorKind::Transient,
        ClientError::Wire(_) | ClientError::Login(_) | ClientError::NoLogin(_) => DriverErrorKind::Refused,
    };
    fail(verb, kind, error.to_string())
}

impl Libvirt {
    /// Takes over what an earlier driver with the same folder left, and begins to connect.
    ///
    /// # Errors
    /// When the folder cannot be used or has a record that cannot be read.
    pub fn open(config: LibvirtConfig) -> DriverResult<Self> {
        let guests = Guests::new(Shelf::new(config.dir.clone()));
        guests.load("list")?;
        let site = Arc::new(Site::new(config, guests));
        let keeper = tokio::spawn(link::keep(Arc::clone(&site)));
        Ok(Self { site, keeper })
    }

    /// The power is there, or the verb is refused. What was found at the last connection counts.
    fn require(&self, verb: &'static str, power: DriverPower) -> DriverResult<()> {
        match &*self.site.link.borrow() {
            Link::Up(_, offers) if !offers.powers.contains(&power) => {
                Err(DriverError::unsupported(DriverName::Libvirt, verb))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    fn name(&self) -> DriverName {
        DriverName::Libvirt
    }

    async fn probe(&self) -> DriverCapabilities {
        match self.site.connected("probe").await {
            Ok((_, offers)) => offers.capabilities(),
            Err(error) => {
                let evidence = format!("{}: {}", self.site.config.uri_text, error.message);
                let accels = vec![AccelProbe { accel: Accel::Tcg, usable: false, evidence }];
                let away = error.message;
                DriverCapabilities { name: DriverName::Libvirt, accels, away, ..Default::default() }
            }
        }
    }

    async fn list(&self) -> DriverResult<Vec<Guest>> {
        if self.site.guests.all().is_empty() {
            return Ok(Vec::new());
        }
        let (client, offers) = self.site.connected("list").await?;
        start::sweep(&self.site, &client).await?;
        self.site.look_at_all(&client, "list").await?;
        console::serve_all(&self.site, &offers);
        Ok(self.site.guests.list())
    }

    fn presence(&self) -> watch::Receiver<Presence> {
        self.site.presence.subscribe()
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.site.guests.notices.subscribe()
    }

    async fn foreign(&self) -> DriverResult<Vec<Foreign>> {
        foreign::foreign(&self.site).await
    }

    async fn adopt(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<Guest> {
        foreign::adopt(&self.site, vm, incarnation).await
    }

    async fn release(&self, vm: VmId) -> DriverResult<()> {
        foreign::release(&self.site, vm).await
    }

    async fn start(&self, launch: Launch) -> DriverResult<Guest> {
        start::start(&self.site, launch).await
    }

    async fn shutdown(&self, vm: VmId) -> DriverResult<()> {
        self.require("shutdown", DriverPower::Shutdown)?;
        verbs::shutdown(&self.site, vm).await
    }

    async fn reboot_on_shutdown(&self, vm: VmId, reboot: bool) -> DriverResult<()> {
        self.require("reboot_on_shutdown", DriverPower::Shutdown)?;
        verbs::reboot_on_shutdown(&self.site, vm, reboot).await
    }

    async fn reset(&self, vm: VmId) -> DriverResult<()> {
        self.require("reset", DriverPower::Reset)?;
        verbs::reset(&self.site, vm).await
    }

    async fn destroy(&self, vm: VmId) -> DriverResult<()> {
        verbs::destroy(&self.site, vm).await
    }

    async fn forget(&self, vm: VmId) -> DriverResult<()> {
        verbs::forget(&self.site, vm).await
    }

    async fn erase_log(&self, vm: VmId) -> DriverResult<()> {
        self.site.guests.shelf.erase_log(vm).map_err(|e| fail_io("erase_log", &e))
    }

    async fn pause(&self, vm: VmId) -> DriverResult<Guest> {
        self.require("pause", DriverPower::Pause)?;
        verbs::pause(&self.site, vm).await
    }

    async fn resume(&self, vm: VmId) -> DriverResult<Guest> {
        verbs::resume(&self.site, vm).await
    }

    async fn adopt_incarnation(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<()> {
        verbs::adopt_incarnation(&self.site, vm, incarnation).await
    }

    async fn save(&self, vm: VmId, file: PathBuf) -> DriverResult<u64> {
        self.require("save", DriverPower::Save)?;
        verbs::save(&self.site, vm, file).await
    }

    async fn migrate_out(&self, vm: VmId, endpoint: Endpoint, limits: MigrationLimits) -> DriverResult<()> {
        self.require("migrate_out", DriverPower::Migrate)?;
        moves::migrate_out(&self.site, vm, endpoint, limits).await
    }

    async fn migrate_switch(&self, vm: VmId) -> DriverResult<()> {
        self.require("migrate_switch", DriverPower::Migrate)?;
        moves::migrate_switch(&self.site, vm).await
    }

    async fn migrate_cancel(&self, vm: VmId) -> DriverResult<()> {
        self.require("migrate_cancel", DriverPower::Migrate)?;
        moves::migrate_cancel(&self.site, vm).await
    }

    fn serial_log(&self, vm: VmId) -> PathBuf {
        self.site.guests.shelf.log(vm)
    }

    async fn trim_logs(&self) -> DriverResult<()> {
        let guests = Arc::clone(&self.site.guests);
        let trimmed = tokio::task::spawn_blocking(move || guests.shelf.trim()).await;
        trimmed.expect("trimming does not panic").map_err(|e| fail_io("trim_logs", &e))
    }

    fn console(&self, vm: VmId) -> DriverResult<(PathBuf, PathBuf)> {
        self.require("console", DriverPower::Console)?;
        self.site.guests.living(vm, "console")?;
        Ok((self.site.guests.shelf.console(vm), self.site.guests.shelf.log(vm)))
    }

    async fn sample(&self) -> DriverResult<Vec<Sample>> {
        if self.site.guests.list().iter().all(|guest| matches!(guest.run, Run::Ended(..))) {
            return Ok(Vec::new());
        }
        verbs::sample(&self.site).await
    }
}
