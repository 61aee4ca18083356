//! What a hypervisor has to tell and to do, to have its guests kept.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use dunlin_model::capabilities::{DriverCapabilities, DriverName, DriverPower};
use tokio::sync::mpsc;

use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::Launch;
use crate::process::{Process, ProcessId};
use crate::run_dir::{RecordError, RunDir};

/// One guest's folder, and what keeps its sockets usable.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) dir: RunDir,
    pub(crate) anchor: Arc<File>,
    /// The word that only the processes of this incarnation have in their command line.
    pub(crate) token: String,
}

impl Place {
    /// A name of the folder's socket that fits into a socket address.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.socket(name, &self.anchor)
    }
}

/// One guest with a process.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) place: Place,
    pub(crate) process: Arc<Process>,
}

/// What a guest says by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Its machine has begun to run: for the first time, or again within the same process.
    Up,
    /// Its kernel has given up, in these words.
    Panicked(String),
}

/// How a process came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The guest powered itself off.
    PowerOff,
    /// It died, in these words.
    Died(String),
}

/// How a reset is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// The machine restarts in its process, and says so.
    InPlace,
    /// By killing the process and starting another.
    Anew,
}

/// How what somebody types reaches the guest's console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleInput {
    /// Bytes go into a named pipe; what the guest says is read from its serial log.
    Pipe(PathBuf),
    /// A program on a terminal of ours carries both ways.
    Program(VecDeque<String>),
}

/// Why something cannot be done.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: DriverErrorKind,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(kind: DriverErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(DriverErrorKind::Refused, message)
    }

    pub(crate) fn of(self, driver: DriverName, verb: &'static str) -> DriverError {
        DriverError::new(driver, verb, self.kind, self.message)
    }

    /// A failed system call on a file.
    pub(crate) fn file(verb: &str, path: &Path, source: &io::Error) -> Self {
        Self::new(DriverErrorKind::Transient, format!("cannot {verb} {}: {source}", path.display()))
    }
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        Self::new(DriverErrorKind::Transient, chain(&error))
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// One kind of hypervisor. Every method ends by a deadline of its own.
#[async_trait]
pub(crate) trait Backend: Send + Sync + std::fmt::Debug + 'static {
    /// Which driver it makes.
    const NAME: DriverName;
    /// What it can do beyond start and stop. `Save`, `Migrate`, `Vnc` never: nothing here does that.
    const POWERS: &'static [DriverPower];
    /// Files of an earlier process in the guest's folder that a new one must not find.
    const STALE: &'static [&'static str];
    /// Files in the guest's folder that grow with what the hypervisor says; the first has its last words.
    const LOGS: &'static [&'static str];

    /// The driver's folder.
    fn dir(&self) -> &Path;

    /// See [`crate::Hypervisor::probe`].
    async fn probe(&self) -> DriverCapabilities;

    /// What to run for this launch. Kept, for every time the guest is started anew. May write into the guest's folder.
    async fn plan(&self, launch: &Launch, place: &Place) -> Result<Vec<String>, Fault>;

    /// Has the guest's news sent until the task is dropped. Called before there is a process.
    fn listen(&self, place: &Place, news: mpsc::Sender<News>) -> Result<tokio::task::JoinSet<()>, Fault>;

    /// Runs what was planned, in a session of its own. `lock` is held until the process has its command line.
    fn fork(&self, place: &Place, words: &[String], lock: &File) -> Result<Process, Fault>;

    /// Stops the vCPUs.
    async fn pause(&self, live: &Live) -> Result<(), Fault>;

    /// Lets them run again.
    async fn resume(&self, live: &Live) -> Result<(), Fault>;

    /// Does the guest of a found process stand still? `noted` is what was last on record.
    async fn is_paused(&self, live: &Live, noted: bool) -> bool;

    /// Presses the power button.
    async fn press(&self, live: &Live) -> Result<(), Fault>;

    /// Restarts the machine, or says that its process has to be killed for that.
    async fn reset(&self, live: &Live) -> Result<Reset, Fault>;

    /// Kills the guest.
    fn kill(&self, live: &Live);

    /// Removes what a dead process has left of the guest: other processes, groups, sockets. Post: nothing of it runs.
    async fn clear(&self, place: &Place, process: Option<&ProcessId>) -> Result<(), Fault>;

    /// How the process came to its end, `end` being what the kernel says of it. Called before [`Self::clear`].
    fn how(&self, place: &Place, end: &str) -> How;

    /// CPU milliseconds used and MiB in memory.
    fn usage(&self, place: &Place, pid: u32) -> Option<(u64, u64)>;

    /// How the console is typed at.
    fn console(&self, place: &Place) -> ConsoleInput;
}
