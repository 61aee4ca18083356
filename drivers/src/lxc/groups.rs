//! A container's control groups: what it may use, what it has used, and that nothing of it is left. Versions 1 and 2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::error::DriverErrorKind;
use crate::keep::Fault;

const ROOT: &str = "/sys/fs/cgroup";
/// The group that all of ours are in.
const PARENT: &str = "dunlin";
/// How long killed processes may take to be gone.
const EMPTY_DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks whether they are.
const EMPTY_EVERY: Duration = Duration::from_millis(10);

/// Which interface the host's kernel was set up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Version {
    pub(super) fn of_host() -> Self {
        if Path::new(ROOT).join("cgroup.controllers").exists() { Self::V2 } else { Self::V1 }
    }
}

/// The group of a guest, below the root of every hierarchy.
pub(super) fn of(token: &str) -> String {
    format!("{PARENT}/{token}")
}

/// Every hierarchy's folder of the guest.
fn folders(token: &str) -> Vec<PathBuf> {
    let own = of(token);
    let roots = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<_> = roots.map(|root| root.join(&own)).collect();
    all.push(Path::new(ROOT).join(own));
    all.retain(|folder| folder.is_dir());
    all
}

/// The folder and everything below, the deepest first.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = inner.flat_map(|entry| below(&entry.path())).collect();
    all.push(folder.to_owned());
    all
}

/// Kills what is left in the groups and removes them.
pub(super) async fn clear(token: &str) -> Result<(), Fault> {
    let deadline = Instant::now() + EMPTY_DEADLINE;
    loop {
        let left = folders(token).iter().map(|folder| remove(folder)).filter(Result::is_err).count();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message = format!("processes of {} cannot be killed", of(token));
            return Err(Fault::new(DriverErrorKind::Deadline, message));
        }
        sleep(EMPTY_EVERY).await;
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    for group in below(folder) {
        // A frozen process dies only once it is thawed. In version 2 it dies as it is, and there is no such file.
        let _ = fs::write(group.join("freezer.state"), "THAWED");
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let pids = processes.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw);
        for pid in pids {
            // Gone since it was listed.
            let _ = kill_process(pid, Signal::KILL);
        }
        match fs::remove_dir(&group) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// CPU milliseconds used and MiB in memory, page cache included: what counts against its limit.
pub(super) fn usage(token: &str) -> Option<(u64, u64)> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = of(token);
    let (cpu_ms, bytes) = match Version::of_host() {
        Version::V1 => (
            number(Path::new(ROOT).join("cpuacct").join(&own).join("cpuacct.usage"))? / 1_000_000,
            number(Path::new(ROOT).join("memory").join(&own).join("memory.usage_in_bytes"))?,
        ),
        Version::V2 => {
            let folder = Path::new(ROOT).join(&own);
            let stat = fs::read_to_string(folder.join("cpu.stat")).ok()?;
            let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            (used.trim().parse::<u64>().ok()? / 1000, number(folder.join("memory.current"))?)
        }
    };
    Some((cpu_ms, bytes.div_ceil(1 << 20)))
}
