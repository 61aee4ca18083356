//! User Mode Linux: a kernel that is an ordinary program, driven over its management console.
//!
//! A guest's kernel leads a session of its own and outlives the agent. What it is made of, as words: [`command`]; how it
//! is told to do something: [`mconsole`]; whether it works at all on this CPU: [`probe`]. All else is [`keep`].
//!
//! What it has not: saving, migration, a display, more than one vCPU. The power button is Ctrl-Alt-Del: most guests
//! answer it with a restart, which the driver then turns into the end.
//!
//! SECURITY: a kernel of this kind has the rights of the agent, and whoever is root in the guest can put code into it.
//! Run guests that you trust, as you would run any program as root. A guest's files are opened by the driver, hostfs is
//! confined to an empty folder, and no word of the guest's command line may name a file or a device of the host.
//!
//! [`keep`]: crate::keep

mod command;
#[cfg(test)]
mod live;
mod mconsole;
mod probe;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use async_trait::async_trait;
use dunlin_model::capabilities::{DriverCapabilities, DriverName, DriverPower};
use rustix::fs::{CWD, FileType, Mode};
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinSet;

use crate::Hypervisor;
use crate::hypervisor::Launch;
use crate::keep::{Backend, ConsoleInput, Fault, How, Keep, Live, News, Place, Reset};
use crate::process::{Process, ProcessId, Stat};

/// The named pipe that the console reads.
const CONSOLE_IN: &str = "console.in";
/// Where a guest's kernel sends its news.
const NOTIFY: &str = "notify.sock";
/// The kernel's words before it has a console.
const LOG: &str = "uml.log";

/// Where things are on this host.
#[derive(Clone, Debug)]
pub struct UmlConfig {
    /// Folder of the driver's own files; guests' folders are in `guests` below it.
    pub dir: PathBuf,
    /// The kernel of guests that name none, found in PATH when it has no slash.
    pub kernel: PathBuf,
}

impl UmlConfig {
    /// The kernel of Debian's package, with the driver's files in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), kernel: "linux.uml".into() }
    }
}

/// The driver.
#[must_use]
pub fn driver(config: UmlConfig) -> impl Hypervisor {
    keep(config)
}

fn keep(config: UmlConfig) -> Keep<Uml> {
    Keep::new(Uml { config, trial: OnceCell::new() })
}

#[derive(Debug)]
struct Uml {
    config: UmlConfig,
    /// What came of running a process in a guest; cannot change while the host runs.
    trial: OnceCell<probe::Trial>,
}

#[async_trait]
impl Backend for Uml {
    const NAME: DriverName = DriverName::Uml;
    const POWERS: &'static [DriverPower] =
        &[DriverPower::Pause, DriverPower::Shutdown, DriverPower::Reset, DriverPower::Console];
    const STALE: &'static [&'static str] = &[CONSOLE_IN, NOTIFY, LOG];
    const LOGS: &'static [&'static str] = &[LOG];

    fn dir(&self) -> &Path {
        &self.config.dir
    }

    async fn probe(&self) -> DriverCapabilities {
        probe::probe(self).await
    }

    async fn plan(&self, launch: &Launch, place: &Place) -> Result<Vec<String>, Fault> {
        let trial = self.trial().await;
        if !trial.probe.usable {
            return Err(Fault::refused(trial.probe.evidence.clone()));
        }
        command::words(launch, &self.config.kernel, &place.token)
    }

    fn listen(&self, place: &Place, news: mpsc::Sender<News>) -> Result<JoinSet<()>, Fault> {
        mconsole::listen(&place.socket(NOTIFY), news)
    }

    fn fork(&self, place: &Place, words: &[String], lock: &File) -> Result<Process, Fault> {
        let at = |name: &str| place.dir.file(name);
        let failed = |verb: &'static str, path: PathBuf| move |e| Fault::file(verb, &path, &e);
        match rustix::fs::mknodat(CWD, at(CONSOLE_IN), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Err(rustix::io::Errno::EXIST) => {}
            made => made.map_err(|e| Fault::file("make", &at(CONSOLE_IN), &e.into()))?,
        }
        std::fs::create_dir_all(at(command::EMPTY)).map_err(failed("make", at(command::EMPTY)))?;
        let typed = File::options().read(true).write(true).open(at(CONSOLE_IN));
        let typed = typed.map_err(failed("open", at(CONSOLE_IN)))?;
        let said = File::options().create(true).append(true).open(place.dir.serial_log());
        let said = said.map_err(failed("open", place.dir.serial_log()))?;
        let log = File::create(at(LOG)).map_err(failed("create", at(LOG)))?;
        let ready = command::open(words, &place.anchor, &typed, &said)?;
        let mut kernel = Command::new(&ready.program);
        kernel.args(&ready.arguments);
        if self.trial.get().is_some_and(|trial| trial.mended) {
            kernel.env("LD_PRELOAD", probe::mend(&self.config.dir)?);
        }
        let mut inherit =
            vec![place.anchor.as_raw_fd(), typed.as_raw_fd(), said.as_raw_fd(), lock.as_raw_fd()];
        inherit.extend(ready.files.iter().map(AsRawFd::as_raw_fd));
        let program = PathBuf::from(&ready.program);
        let process = Process::spawn(kernel, log, inherit).map_err(failed("start", program));
        drop::<Vec<OwnedFd>>(ready.files);
        process
    }

    async fn pause(&self, live: &Live) -> Result<(), Fault> {
        mconsole::run(&live.place, "stop").await.map(drop)
    }

    async fn resume(&self, live: &Live) -> Result<(), Fault> {
        match mconsole::run(&live.place, "go").await {
            // Somebody else was faster.
            Err(fault) if fault.message.contains("Not stopped") => Ok(()),
            done => done.map(drop),
        }
    }

    async fn is_paused(&self, live: &Live, noted: bool) -> bool {
        mconsole::stands_still(live.process.id.pid).unwrap_or(noted)
    }

    async fn press(&self, live: &Live) -> Result<(), Fault> {
        mconsole::run(&live.place, "cad").await.map(drop)
    }

    async fn reset(&self, live: &Live) -> Result<Reset, Fault> {
        mconsole::run(&live.place, "reboot").await.map(|_| Reset::InPlace)
    }

    fn kill(&self, live: &Live) {
        live.process.kill();
    }

    async fn clear(&self, place: &Place, process: Option<&ProcessId>) -> Result<(), Fault> {
        // The kernel's own threads for I/O outlive it when it is killed.
        for left in process.map(Process::of_session).unwrap_or_default() {
            left.kill();
            left.gone().await;
        }
        let own = place.dir.file(&place.token);
        match std::fs::remove_dir_all(&own) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::file("remove", &own, &e)),
            _ => Ok(()),
        }
    }

    /// A kernel that ends in an orderly way removes its own folder, and its status is 0 where it can be seen.
    fn how(&self, place: &Place, end: &str) -> How {
        let is_seen = end.starts_with("exit code") || end.starts_with("killed");
        let orderly = if is_seen { end == "exit code 0" } else { !place.dir.file(&place.token).exists() };
        if orderly {
            return How::PowerOff;
        }
        match place.dir.words(LOG) {
            words if words.is_empty() => How::Died(format!("the guest's kernel is gone: {end}")),
            words => How::Died(format!("{words} ({end})")),
        }
    }

    /// Every process of the guest is a process of the host, in the kernel's session; its memory is the kernel's.
    fn usage(&self, _place: &Place, pid: u32) -> Option<(u64, u64)> {
        let kernel = Stat::read(pid).ok()?;
        let (mut cpu_ticks, mut pages) = (kernel.children_ticks, kernel.rss_pages);
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(other) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(stat) = Stat::read(other) else { continue };
            if stat.session == u64::from(pid) {
                cpu_ticks += stat.cpu_ticks;
                pages = pages.max(stat.rss_pages);
            }
        }
        Some(Stat { cpu_ticks, rss_pages: pages, ..kernel }.usage())
    }

    fn console(&self, place: &Place) -> ConsoleInput {
        ConsoleInput::Pipe(place.dir.file(CONSOLE_IN))
    }
}
