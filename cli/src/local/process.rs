//! Processes of a local fleet: started once, found again by their command line, stopped by pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::failure::Failure;

/// From SIGTERM to SIGKILL: a controller flushes its log in less than one.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// From SIGKILL until the kernel must have removed it.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// Between looks whether a process is gone.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Looks before a process is taken for dead: while one program replaces another, its command line reads as empty.
const EXEC_LOOKS: usize = 10;

/// Becomes a daemon in a network namespace. `ip netns exec` mounts another /sys, which has no control groups in it: those of
/// the machine are kept at $1, where only this process and its children see them, and are put back.
const ENTER: &str = r#"
kept=$1 namespace=$2
shift 2
mount --rbind /sys/fs/cgroup "$kept" || true
exec ip netns exec "$namespace" sh -c '
    kept=$1
    shift
    mountpoint -q "$kept" && mount --rbind "$kept" /sys/fs/cgroup
    exec "$@"
' sh "$kept" "$@"
"#;

/// One daemon of the fleet.
#[derive(Debug)]
pub(super) struct Daemon {
    /// Holds its data and its log.
    dir: PathBuf,
    words: Vec<String>,
    namespace: Option<String>,
    /// Handed over in the environment, where other users cannot read it.
    pub(super) token: Option<String>,
}

impl Daemon {
    pub(super) fn new(dir: PathBuf, words: Vec<String>, namespace: Option<String>) -> Result<Self, Failure> {
        std::fs::create_dir_all(&dir).map_err(Failure::io(format!("making {}", dir.display())))?;
        Ok(Self { dir, words, namespace, token: None })
    }

    /// Fails with its last words when it is not there any more.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for _ in 0..EXEC_LOOKS {
            if self.runs()? {
                return Ok(());
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        let log = self.dir.join("log");
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it said nothing");
        Err(Failure::Local(format!("{} ended: {last}", self.dir.display())))
    }

    fn runs(&self) -> Result<bool, Failure> {
        let data = self.dir.join("data");
        Ok(processes()?.iter().any(|process| process.is_daemon_of(&data)))
    }

    /// Starts it unless it runs. Says whether it was started.
    pub(super) fn start(&self) -> Result<bool, Failure> {
        if self.runs()? {
            return Ok(false);
        }
        let binary = std::env::current_exe().map_err(Failure::io("finding this binary"))?;
        let log = || {
            let path = self.dir.join("log");
            let opened = File::options().create(true).append(true).open(&path);
            opened.map_err(Failure::io(format!("opening {}", path.display())))
        };
        let mut command = match &self.namespace {
            Some(namespace) => {
                let kept = self.dir.join("cgroup");
                std::fs::create_dir_all(&kept).map_err(Failure::io(format!("making {}", kept.display())))?;
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "slave", "sh", "-c", ENTER, "sh"]);
                command.arg(&kept).arg(namespace).arg(&binary);
                command
            }
            None => Command::new(&binary),
        };
        command.args(&self.words).stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        if let Some(token) = &self.token {
            command.env("DUNLIN_TOKEN", token);
        }
        command.spawn().map_err(Failure::io(format!("starting {}", binary.display())))?;
        Ok(true)
    }
}

/// Stops every process whose command line names a path below `dir`: daemons first, then guests. Returns how many.
pub(super) fn stop_all(dir: &Path) -> Result<usize, Failure> {
    let mut stopped = 0;
    // Agents may have been starting a guest when they were told to stop: look again until nothing is left.
    loop {
        let mine: Vec<_> = processes()?.into_iter().filter(|process| process.belongs_to(dir)).collect();
        if mine.is_empty() {
            return Ok(stopped);
        }
        let (daemons, guests): (Vec<_>, Vec<_>) = mine.into_iter().partition(Process::is_daemon);
        let batch = if daemons.is_empty() { guests } else { daemons };
        stopped += batch.len();
        end(&batch, dir)?;
        batch.iter().filter_map(Process::container).for_each(remove_groups);
    }
}

/// Removes the control groups of a container that has ended; whoever else would, its agent, is gone.
fn remove_groups(container: &str) {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    for hierarchy in hierarchies.flatten() {
        for inner in ["lxc.payload", "lxc.monitor"] {
            // What is not there is no error, and what is in use says that something of it still runs.
            let _ =
                std::fs::remove_dir(hierarchy.path().join(format!("dunlin/{container}/{inner}.{container}")));
        }
        let _ = std::fs::remove_dir(hierarchy.path().join("dunlin").join(container));
    }
}

fn end(batch: &[Process], dir: &Path) -> Result<(), Failure> {
    for (signal, grace) in [(Signal::TERM, TERM_GRACE), (Signal::KILL, KILL_GRACE)] {
        let alive = || batch.iter().filter(|process| process.still(dir));
        for process in alive() {
            // It may end between the look and the signal; the pid cannot be another's so soon.
            let _ = rustix::process::kill_process(process.pid, signal);
        }
        let deadline = Instant::now() + grace;
        while alive().next().is_some() && Instant::now() < deadline {
            std::thread::sleep(LOOK_PAUSE);
        }
    }
    match batch.iter().find(|process| process.still(dir)) {
        None => Ok(()),
        Some(process) => {
            Err(Failure::Local(format!("process {} does not end", process.pid.as_raw_nonzero())))
        }
    }
}

/// A process and its command line.
#[derive(Clone, Debug)]
struct Process {
    pid: Pid,
    words: Vec<String>,
}

impl Process {
    fn belongs_to(&self, dir: &Path) -> bool {
        let below = format!("{}/", dir.display());
        let is_qemu = self.words.first().is_some_and(|word| word.contains("qemu"));
        let known = self.is_daemon() || is_qemu || self.container().is_some();
        (known && self.words.iter().any(|word| word.contains(&below)))
            || (self.is_uml() && self.holds(&below))
    }

    /// The name of the container that it watches over.
    fn container(&self) -> Option<&str> {
        let [program, flag, name, ..] = &self.words[..] else { return None };
        (program.ends_with("lxc-start") && flag == "-n" && name.starts_with("dunlin.")).then_some(name)
    }

    /// A user mode kernel names none of its files: it was given them open.
    fn is_uml(&self) -> bool {
        self.words.iter().any(|word| word.starts_with("umid=dunlin."))
    }

    /// Has it a file open below there?
    fn holds(&self, below: &str) -> bool {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero()));
        let files = open.into_iter().flatten().flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        files.into_iter().any(|file| file.to_string_lossy().starts_with(below))
    }

    fn is_daemon(&self) -> bool {
        let is_verb =
            |word: Option<&String>| word.is_some_and(|word| word == "controller" || word == "agent");
        // `sh -c ... dunlin agent --own-session ...` becomes the agent in a moment.
        let enters = self.words.windows(2).any(|pair| is_verb(pair.first()) && pair[1] == "--own-session");
        is_verb(self.words.get(1)) || enters
    }

    fn is_daemon_of(&self, data: &Path) -> bool {
        self.is_daemon() && self.words.iter().any(|word| Path::new(word) == data)
    }

    /// Is it still there, and still the same?
    fn still(&self, dir: &Path) -> bool {
        read(self.pid).is_some_and(|now| now.belongs_to(dir))
    }
}

fn processes() -> Result<Vec<Process>, Failure> {
    let entries = std::fs::read_dir("/proc").map_err(Failure::io("reading /proc"))?;
    let pids = entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    Ok(pids.filter_map(read).collect())
}

/// None for a process that is gone, or only waits to be buried.
fn read(pid: Pid) -> Option<Process> {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let words: Vec<_> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    (line.len() > 1).then_some(Process { pid, words })
}
