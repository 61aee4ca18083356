//! One hypervisor process: its birth in a session of its own, its identity, its death.
//!
//! A pid alone is never trusted. A process is the one we mean when its pid, its start time, this boot, and a word in
//! its command line agree; from then on it is held by a pidfd, which cannot come to mean another.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which process, in a way that outlives the reuse of its pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// Clock ticks from the kernel's start to the process's: field 22 of /proc/PID/stat.
    pub(super) start_ticks: u64,
    /// Which start of the kernel.
    pub(super) boot_id: String,
}

/// A process that is held.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    /// How it ended, once that was seen: the kernel tells it a single time.
    end: OnceLock<String>,
}

impl Process {
    /// Starts `command` in a session of its own, with no terminal, `log` as its output, and `inherit` left open in it.
    pub(super) fn spawn(mut command: Command, log: File, inherit: Vec<RawFd>) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        let prepare = move || {
            rustix::process::setsid()?;
            for fd in &inherit {
                // SAFETY: the caller of `spawn` holds these descriptors open until it returns, and this closure runs
                // in the child before it returns, so the number names the caller's descriptor.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and makes only system calls (setsid, fcntl) through rustix,
        // which neither allocate nor take locks; the vector it reads was filled before the fork.
        unsafe { command.pre_exec(prepare) };
        // Dropping `Child` neither kills nor reaps; `gone` reaps through the pidfd.
        let pid = command.spawn()?.id();
        Self::hold(pid)
    }

    /// Holds the process that `id` names, if it still is that one and carries `token`.
    pub(super) fn adopt(id: &ProcessId, token: &str) -> Option<Self> {
        let held = Self::hold(id.pid).ok()?;
        // Looked at after the pidfd was opened: what is true of the pid now is true of what the pidfd holds.
        (held.id == *id && carries(id.pid, token)).then_some(held)
    }

    /// Holds the process whose command line has `token`, wherever it is.
    pub(super) fn find(token: &str) -> Option<Self> {
        let pids = std::fs::read_dir("/proc").ok()?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| carries(*pid, token))
            .filter_map(|pid| Self::hold(pid).ok())
            .find(|held| carries(held.id.pid, token))
    }

    fn hold(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let start_ticks = Stat::read(pid)?.start_ticks;
        let id = ProcessId { pid, start_ticks, boot_id: boot_id()? };
        // SAFETY: the `AsyncFd` owns the descriptor from here on; an `OwnedFd` keeps its number until it is dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Self { id, pidfd: pidfd.map_err(io::Error::from)?, end: OnceLock::new() })
    }

    /// Every process of the session that this one leads or led: a number is not given away again while they live.
    pub(super) fn of_session(id: &ProcessId) -> Vec<Self> {
        let Ok(pids) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = pids.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let belongs = |pid: u32| {
            Stat::read(pid).is_ok_and(|stat| {
                stat.session == u64::from(id.pid) && stat.start_ticks >= id.start_ticks && !stat.is_dead
            })
        };
        let here = boot_id().is_ok_and(|boot| boot == id.boot_id);
        let held = pids.filter(|pid| here && belongs(*pid)).filter_map(|pid| Self::hold(pid).ok());
        // Looked at again: now it is held.
        held.filter(|process| belongs(process.id.pid)).collect()
    }

    /// Asks the kernel to kill it. Nothing happens when it is dead.
    pub(super) fn kill(&self) {
        // ESRCH says it is dead already; nothing else can be wrong with a pidfd of our own.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Ends when the process has, and says how where it was our child. May be called again.
    pub(super) async fn gone(&self) -> String {
        // An error would mean that the runtime is shutting down, and then nobody hears the answer.
        let _ = self.pidfd.readable().await.map(|mut ready| ready.retain_ready());
        self.end.get_or_init(|| self.reap()).clone()
    }

    fn reap(&self) -> String {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (_, Some(signal)) => format!("killed by signal {signal}"),
                _ => "ended".to_owned(),
            },
            // Adopted from an earlier agent: init has reaped it.
            _ => "ended".to_owned(),
        }
    }
}

/// Has the process this word in its command line? A zombie has none.
fn carries(pid: u32, token: &str) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    line.split(|byte| !is_word(byte)).any(|word| word == token.as_bytes())
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What /proc/PID/stat has for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// User and system time, clock ticks.
    pub(super) cpu_ticks: u64,
    /// The same of children that have ended.
    pub(super) children_ticks: u64,
    /// Its session: the pid of the one that leads it.
    pub(super) session: u64,
    /// It has ended, and nobody has asked how.
    pub(super) is_dead: bool,
    pub(super) start_ticks: u64,
    /// Resident pages.
    pub(super) rss_pages: u64,
}

impl Stat {
    pub(super) fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {text:?}")))
    }

    /// The name in field 2 may contain spaces and parentheses; everything is counted from the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            children_ticks: number(16)? + number(17)?,
            session: number(6)?,
            is_dead: matches!(fields.first(), Some(&("Z" | "X"))),
            start_ticks: number(22)?,
            rss_pages: number(24)?,
        })
    }

    /// CPU milliseconds and resident MiB.
    pub(super) fn usage(&self) -> (u64, u64) {
        let page_bytes = rustix::param::page_size() as u64;
        let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
        (self.cpu_ticks * 1000 / ticks_per_s, (self.rss_pages * page_bytes) >> 20)
    }
}

/// How long the threads of a process have been ready to run while no CPU was free, ms: the second number of
/// /proc/PID/task/TID/schedstat, ns (Documentation/scheduler/sched-stats.rst). 0 where the kernel does not count it.
/// What a thread that has ended waited is lost with it, so the sum may go back.
pub(super) fn waited_ms(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")) else {
        return 0;
    };
    let waited_ns = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(waited_ns).sum::<u64>() / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sleeper(token: &str) -> Process {
        let mut command = Command::new("sleep");
        command.arg("1000").env("DUNLIN_TEST", token).arg0(format!("sleep,{token}=x"));
        let log = File::create("/dev/null").expect("open");
        Process::spawn(command, log, Vec::new()).expect("spawn")
    }

    /// A process is known by more than its pid: a reused pid, another boot or another token is not it; its death is
    /// heard at once, and a second look says the same.
    #[tokio::test]
    async fn identity_is_more_than_a_pid() {
        let token = format!("dunlin.test.{}", std::process::id());
        let child = sleeper(&token);
        let id = child.id.clone();
        // The exec may not have happened when spawn returns on a kernel without CLONE_VFORK; poll for the new name.
        while !carries(id.pid, &token) {
            tokio::task::yield_now().await;
        }
        assert!(Process::adopt(&id, &token).is_some());
        assert!(Process::find(&token).is_some_and(|found| found.id == id));
        assert!(Process::find(&token[..token.len() - 1]).is_none(), "a prefix is another word");
        assert!(Process::adopt(&id, "dunlin.other").is_none());
        let reused = ProcessId { start_ticks: id.start_ticks + 1, ..id.clone() };
        assert!(Process::adopt(&reused, &token).is_none());
        let earlier_boot = ProcessId { boot_id: "earlier".into(), ..id.clone() };
        assert!(Process::adopt(&earlier_boot, &token).is_none());
        let sid = rustix::process::getsid(Pid::from_raw(i32::try_from(id.pid).expect("pid")));
        assert_eq!(
            sid.expect("alive").as_raw_nonzero().get().unsigned_abs(),
            id.pid,
            "leads its own session"
        );

        let adopted = Process::adopt(&id, &token).expect("alive");
        adopted.kill();
        let end = tokio::time::timeout(Duration::from_secs(10), child.gone()).await.expect("dies");
        assert_eq!(end, "killed by signal 9");
        assert_eq!(child.gone().await, "killed by signal 9");
        assert_eq!(adopted.gone().await, "ended");
        adopted.kill();
        assert!(Process::adopt(&id, &token).is_none());
    }

    /// A hostile process name does not shift the fields.
    #[test]
    fn stat_is_counted_from_the_last_parenthesis() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 70 30 0 0 20 0 1 0 4242 1000000 2560 0";
        for name in ["qemu", "a) S 1 2 (b", ") ) )"] {
            let stat = Stat::parse(&format!("99 ({name}) {tail}")).expect("parses");
            let told = (stat.cpu_ticks, stat.start_ticks, stat.rss_pages, stat.session, stat.is_dead);
            assert_eq!(told, (100, 4242, 2560, 3, false));
            assert_eq!(stat.usage().1, 10);
        }
        assert_eq!(Stat::parse("99 (qemu) S 1"), None);
    }
}
