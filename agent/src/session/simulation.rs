//! The agent without its process: everything it decides, does and remembers, with drivers, a clock and a disk that
//! somebody else plays. What the simulation in `tests/sim` runs.
//!
//! Real are the board, the plan, the workers, the journal and what crosses the wire. Missing are the wire itself, and
//! what looks at the machine: capabilities, samples, certificates.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dunlin_drivers::Hypervisor;
use dunlin_model::{HostId, Incarnation, Labels, VmId};
use dunlin_pki::{Keyring, Ring, Trust};
use dunlin_proto::v1;

use super::live::{REPORT_VMS_MAX, report, take_in};
use crate::converge::board::Sent;
use crate::ground::Ground;
use crate::host::Host;
use crate::identity::DirLock;
use crate::line::Line;
use crate::{Config, Error, durable};

/// An agent that is played.
#[derive(Debug)]
pub struct Agent {
    host: Arc<Host>,
    id: HostId,
    sent: Sent,
    /// The leader has not heard everything in this session yet.
    new: bool,
}

impl Agent {
    /// Starts, as a process does: reads the journal and takes over what its driver has. From then on everything on this
    /// thread that waits for a disk is done in place, so that the same seed goes the same way.
    pub async fn open(
        id: HostId,
        data_dir: PathBuf,
        driver: Arc<dyn Hypervisor>,
        ground: Ground,
    ) -> Result<Self, Error> {
        durable::stay_on_thread();
        let lock = DirLock::take(&data_dir)?;
        let ring = Ring { shown: None, trust: Trust::Roots(Vec::new()), beside: Vec::new() };
        let keyring =
            Keyring::new(ring, ground.clock.clone()).expect("nothing is shown and nobody is believed");
        let line = Arc::new(Line::new([], keyring.dialer()));
        let host = Host::open(config(id, data_dir), vec![driver], line, lock, ground)?;
        host.settled().await;
        Ok(Self { host, id, sent: Sent::default(), new: true })
    }

    /// A session is open: everything is said anew.
    pub fn greet(&mut self) {
        self.new = true;
    }

    /// The leader said what it wants.
    pub fn take_in(&self, set: v1::DesiredSet) {
        take_in(&self.host, self.id, set);
    }

    /// What there is to say, if anything.
    pub fn report(&mut self) -> Option<v1::Report> {
        if std::mem::take(&mut self.new) {
            return Some(report(self.host.board.everything(&mut self.sent), true));
        }
        let changes = self.host.board.changes(&mut self.sent, REPORT_VMS_MAX);
        (!changes.is_empty()).then(|| report(changes, false))
    }

    /// The highest incarnation it was told of each VM, as far as it is durable.
    #[must_use]
    pub fn told(&self) -> BTreeMap<VmId, Incarnation> {
        self.host.board.told()
    }

    /// Ends as a killed process does: wherever each task of it stands.
    pub async fn kill(self) {
        self.host.stop.cancel();
        self.host.tasks.close();
        self.host.tasks.wait().await;
    }
}

fn config(id: HostId, data_dir: PathBuf) -> Config {
    Config {
        data_dir,
        controllers: Vec::new(),
        token: None,
        name: "played".parse().expect("it is a name"),
        labels: Labels::new(),
        // Who it is, to the hypervisor that is played: there is no wire.
        address: id.to_string(),
        qemu: false,
        libvirt: None,
        libvirt_peer: None,
        lxc: false,
        uml: false,
        test: None,
        image_cache_mib: 0,
        metrics_listen: None,
        level: dunlin_model::Level::NEWEST,
        networks: BTreeMap::new(),
    }
}
