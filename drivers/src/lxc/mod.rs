//! System containers, with liblxc's tools.
//!
//! `lxc-start -F` is the guest's process: liblxc's monitor, in a session of its own, which outlives the agent and takes
//! its container down with it when it dies. Its configuration is one file that [`config`] writes; its root file system
//! is the VM's only disk, mounted by the monitor in a mount namespace of its own (a loop device that goes when the
//! container goes), so that nothing is ever mounted on the host. Its control groups: [`groups`]. All else is [`keep`].
//!
//! DECISION: the tools, not the library. liblxc forks from the process that calls it, keeps its state in globals, and
//! would have to be there for the whole agent to start; a tool is a process that can hang or die alone. A start costs
//! 50 ms either way, a verb 5 ms.
//!
//! What it has not: saving and migration (CRIU: the probe tries it and says what it said; the driver does not build on it
//! even where it works), a display.
//!
//! SECURITY: root in the container is root on the host, less the capabilities and devices taken from it: there is no user
//! namespace. The host's kernel reads the file system that the image holds. Run containers that you trust.
//!
//! [`keep`]: crate::keep

mod config;
mod groups;
#[cfg(test)]
mod live;
mod probe;
mod tools;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::{DriverCapabilities, DriverName, DriverPower};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Hypervisor;
use crate::hypervisor::Launch;
use crate::keep::{Backend, ConsoleInput, Fault, How, Keep, Live, News, Place, Reset};
use crate::process::{Process, ProcessId};

/// What the hooks have told: a line for each start and stop of the container.
const TOLD: &str = "told";
/// liblxc's own log.
const LOG: &str = "lxc.log";
/// What the tools say on their standard error.
const WORDS: &str = "lxc.words";
/// Between two looks at what the hooks have told: a reboot takes longer.
const LISTEN_EVERY: Duration = Duration::from_millis(50);

/// Where things are on this host.
#[derive(Clone, Debug)]
pub struct LxcConfig {
    /// Folder of the driver's own files; guests' folders are in `guests` below it.
    pub dir: PathBuf,
}

impl LxcConfig {
    /// The tools in PATH, with the driver's files in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

/// The driver.
#[must_use]
pub fn driver(config: LxcConfig) -> impl Hypervisor {
    keep(config)
}

fn keep(config: LxcConfig) -> Keep<Lxc> {
    // liblxc finds its containers by the text of this path.
    let dir = std::path::absolute(&config.dir).unwrap_or(config.dir);
    Keep::new(Lxc { config: LxcConfig { dir } })
}

#[derive(Debug)]
struct Lxc {
    config: LxcConfig,
}

#[async_trait]
impl Backend for Lxc {
    const NAME: DriverName = DriverName::Lxc;
    const POWERS: &'static [DriverPower] =
        &[DriverPower::Pause, DriverPower::Shutdown, DriverPower::Reset, DriverPower::Console];
    const STALE: &'static [&'static str] = &[TOLD, LOG, WORDS];
    const LOGS: &'static [&'static str] = &[WORDS, LOG];

    fn dir(&self) -> &Path {
        &self.config.dir
    }

    async fn probe(&self) -> DriverCapabilities {
        probe::probe(self).await
    }

    async fn plan(&self, launch: &Launch, place: &Place) -> Result<Vec<String>, Fault> {
        let text = config::text(launch, place, groups::Version::of_host())?;
        let folder = place.dir.file(&place.token);
        let written = std::fs::create_dir_all(folder.join("rootfs"))
            .and_then(|()| std::fs::write(folder.join("config"), text));
        written.map_err(|e| Fault::file("write", &folder.join("config"), &e))?;
        Ok(tools::words("lxc-start", place, &["-F"]))
    }

    fn listen(&self, place: &Place, news: mpsc::Sender<News>) -> Result<JoinSet<()>, Fault> {
        let path = place.dir.file(TOLD);
        let length = || std::fs::read_to_string(&path).map_or(0, |told| ups(&told));
        let mut known = length();
        let path = path.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let now = std::fs::read_to_string(&path).map_or(0, |told| ups(&told));
                for _ in known..now {
                    if news.send(News::Up).await.is_err() {
                        return;
                    }
                }
                known = now;
                tokio::time::sleep(LISTEN_EVERY).await;
            }
        });
        Ok(tasks)
    }

    fn fork(&self, place: &Place, words: &[String], lock: &File) -> Result<Process, Fault> {
        let at = |name: &str| place.dir.file(name);
        let (program, arguments) =
            words.split_first().ok_or_else(|| Fault::refused("no program is on record"))?;
        // An earlier process of this incarnation is not to be taken for this one.
        let _ = std::fs::remove_file(at(LOG));
        let words = File::create(at(WORDS)).map_err(|e| Fault::file("create", &at(WORDS), &e))?;
        let mut start = Command::new(program);
        start.args(arguments);
        // liblxc closes what it inherits: the lock is let go of once the process has its command line.
        Process::spawn(start, words, vec![lock.as_raw_fd()])
            .map_err(|e| Fault::file("start", Path::new(program), &e))
    }

    async fn pause(&self, live: &Live) -> Result<(), Fault> {
        tools::run("lxc-freeze", &live.place, &[]).await.map(drop)
    }

    async fn resume(&self, live: &Live) -> Result<(), Fault> {
        tools::run("lxc-unfreeze", &live.place, &[]).await.map(drop)
    }

    async fn is_paused(&self, live: &Live, noted: bool) -> bool {
        match tools::run("lxc-info", &live.place, &["-s", "-H"]).await {
            Ok(state) => state.trim() == "FROZEN",
            Err(_) => noted,
        }
    }

    async fn press(&self, live: &Live) -> Result<(), Fault> {
        tools::run("lxc-stop", &live.place, &["--nokill", "--nowait"]).await.map(drop)
    }

    async fn reset(&self, _live: &Live) -> Result<Reset, Fault> {
        Ok(Reset::Anew)
    }

    fn kill(&self, live: &Live) {
        // The container's first process dies of its monitor's death, and everything in it of that.
        live.process.kill();
    }

    async fn clear(&self, place: &Place, _process: Option<&ProcessId>) -> Result<(), Fault> {
        groups::clear(&place.token).await
    }

    fn how(&self, place: &Place, end: &str) -> How {
        let log = std::fs::read(place.dir.file(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rfind(|line| line.contains("is halting") || line.contains("init exited"));
        if last.is_some_and(|line| line.contains("is halting")) {
            return How::PowerOff;
        }
        let words = place.dir.words(WORDS);
        let words = if words.is_empty() { last_error(&log) } else { words };
        match words {
            words if words.is_empty() => How::Died(format!("the container is gone: {end}")),
            words => How::Died(format!("{words} ({end})")),
        }
    }

    fn usage(&self, place: &Place, _pid: u32) -> Option<(u64, u64)> {
        groups::usage(&place.token)
    }

    fn console(&self, place: &Place) -> ConsoleInput {
        ConsoleInput::Program(VecDeque::from(tools::words("lxc-console", place, &["-t", "0", "-e", "-1"])))
    }
}

/// How often the container was started.
fn ups(told: &str) -> usize {
    told.lines().filter(|line| *line == "up").count()
}

/// The last line of liblxc's log that complains, without its time and place.
fn last_error(log: &str) -> String {
    let line = log.lines().rfind(|line| line.contains(" ERROR ") || line.contains("init exited"));
    let said = line.and_then(|line| line.splitn(3, " - ").nth(2));
    said.unwrap_or_default().to_owned()
}
