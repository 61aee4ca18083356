//! Everything of this host in one place: its drivers, its files, the board, and the tasks at work on it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_drivers::Hypervisor;
use dunlin_drivers::hypervisor::Guest;
use dunlin_model::capabilities::{DriverCapabilities, DriverName};
use dunlin_model::observed::UnmanagedVm;
use dunlin_model::{Name, VmId};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::converge::board::Board;
use crate::converge::worker::work;
use crate::ground::Ground;
use crate::identity::DirLock;
use crate::images::Images;
use crate::journal::{Journal, Record};
use crate::line::Line;
use crate::presence::{self, untried};
use crate::sample::Measured;
use crate::timed::Timed;
use crate::volumes::Volumes;
use crate::{Error, Folder};

/// Processes brought up at the same time. Starting is heavy on disk and CPU; more at once only makes each one later.
const STARTS_MAX: usize = 8;

/// Between two looks at how much guests have said. A serial port that is written to without a pause gives a few MiB/s.
const TRIM_INTERVAL: Duration = Duration::from_secs(2);

/// The host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) drivers: BTreeMap<DriverName, Arc<dyn Hypervisor>>,
    pub(crate) board: Board,
    /// What each driver was found to be, or why it is away.
    pub(crate) probes: watch::Sender<BTreeMap<DriverName, DriverCapabilities>>,
    pub(crate) measured: watch::Sender<Measured>,
    /// Guests that nobody in the fleet manages.
    pub(crate) unmanaged: watch::Sender<Vec<UnmanagedVm>>,
    /// One was taken over or let go.
    pub(crate) unmanaged_changed: Notify,
    pub(crate) journal: Journal,
    pub(crate) line: Arc<Line>,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    /// Folder of saved memory.
    pub(crate) saves: PathBuf,
    pub(crate) starts: Semaphore,
    pub(crate) ground: Ground,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Released when the last task that could still write has ended.
    _lock: DirLock,
}

impl Host {
    /// Reads the journal, and has every driver take over its guests. One that is not there is tried for as long as it takes.
    pub(crate) fn open(
        config: Config,
        drivers: Vec<Arc<dyn Hypervisor>>,
        line: Arc<Line>,
        lock: DirLock,
        ground: Ground,
    ) -> Result<Arc<Self>, Error> {
        let folder = |name: &str| config.data_dir.join(name);
        let (journal, mut records) = Journal::open(folder("vms"), Arc::clone(&ground.files), lock.clone())?;
        let images = Images::open(folder("images"), Arc::clone(&line)).folder(folder("images"))?;
        let volumes = Volumes::open(folder("volumes"), lock.clone()).folder(folder("volumes"))?;
        let saves = folder("saves");
        std::fs::create_dir_all(&saves).folder(saves.clone())?;
        adopt_orphans(&volumes, &mut records).folder(folder("volumes"))?;
        let board = Board::new(records);
        drivers.iter().for_each(|driver| board.lose(driver.name(), "its guests are being looked for"));
        let untried = drivers.iter().map(|driver| (driver.name(), untried(driver.name()))).collect();
        let host = Arc::new(Self {
            drivers: drivers.into_iter().map(timed).collect(),
            board,
            probes: watch::Sender::new(untried),
            measured: watch::Sender::default(),
            unmanaged: watch::Sender::default(),
            unmanaged_changed: Notify::new(),
            journal,
            line,
            images,
            volumes,
            saves,
            starts: Semaphore::new(STARTS_MAX),
            ground,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            config,
            _lock: lock,
        });
        for driver in host.drivers.values() {
            // Listens before it lists: what happens in between is heard twice, not missed.
            host.spawn(listen(Arc::clone(&host), Arc::clone(driver), driver.notices()));
            host.spawn(trim(Arc::clone(driver), host.ground.clone()));
            host.spawn(presence::tend(Arc::clone(&host), Arc::clone(driver)));
        }
        Ok(host)
    }

    /// Runs a task that ends with the agent.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// This host's clock, ms since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        self.ground.clock.now().0
    }

    /// Has somebody look at the VM.
    pub(crate) fn wake(self: &Arc<Self>, vm: VmId) {
        if self.board.wake(vm) {
            self.spawn(work(Arc::clone(self), vm));
        }
    }
}

fn timed(driver: Arc<dyn Hypervisor>) -> (DriverName, Arc<dyn Hypervisor>) {
    (driver.name(), Arc::new(Timed(driver)))
}

/// A folder of disks without a record: the record was removed by hand. It is reported, so that it can be discarded.
fn adopt_orphans(volumes: &Volumes, records: &mut Vec<Record>) -> std::io::Result<()> {
    for vm in volumes.owners()? {
        if records.iter().any(|record| record.vm == vm) {
            continue;
        }
        // A UUID is a name: it begins with a hex digit and has 36 of hex digits and dashes.
        let Ok(name) = vm.to_string().parse::<Name>() else { continue };
        let mut record = Record::new(vm, name.clone());
        record.volumes.insert(name, volumes.folder_of(vm));
        records.push(record);
    }
    Ok(())
}

/// Keeps what guests say within bounds, as long as the agent lives.
async fn trim(driver: Arc<dyn Hypervisor>, ground: Ground) {
    let mut trouble = String::new();
    loop {
        match driver.trim_logs().await {
            Ok(()) => trouble.clear(),
            Err(error) => {
                let words = error.to_string();
                if words != trouble {
                    tracing::warn!(driver = %driver.name(), %error, "what a guest says is not bounded");
                    trouble = words;
                }
            }
        }
        ground.timer.sleep(TRIM_INTERVAL).await;
    }
}

async fn listen(
    host: Arc<Host>,
    driver: Arc<dyn Hypervisor>,
    mut notices: tokio::sync::broadcast::Receiver<dunlin_drivers::Notice>,
) {
    loop {
        match notices.recv().await {
            Ok(notice) => {
                let vm = notice.guest.vm;
                host.board.hear(driver.name(), vm, Some(notice.guest));
                host.wake(vm);
            }
            Err(RecvError::Lagged(_)) => {
                let before = host.board.all_news();
                match driver.list().await {
                    Ok(guests) => {
                        let vms: Vec<VmId> = guests.iter().map(|guest: &Guest| guest.vm).collect();
                        host.board.hear_all(driver.name(), guests, &before);
                        vms.into_iter().for_each(|vm| host.wake(vm));
                    }
                    Err(error) => {
                        tracing::error!(%error, "notices were missed and the guests could not be listed");
                    }
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}
