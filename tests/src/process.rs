//! Processes of a fleet, found by their command line.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A live process and its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its arguments, the program's name first.
    pub words: Vec<String>,
}

impl Process {
    /// Does any argument contain `text`?
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.words.iter().any(|word| word.contains(text))
    }

    /// kill -9.
    pub fn kill(&self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.pid).ok_or_else(|| anyhow::anyhow!("pid 0"))?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Resident memory in KiB: VmRSS of /proc/PID/status.
    pub fn rss_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.ok_or_else(|| anyhow::anyhow!("no VmRSS"))?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}

/// Every live process with a command line that names a path below `dir`.
#[must_use]
pub fn below(dir: &Path) -> Vec<Process> {
    let marker = format!("{}/", dir.display());
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(read).filter(|process| process.mentions(&marker)).collect()
}

/// QEMU processes of one VM, whatever host they are on.
#[must_use]
pub fn guests(dir: &Path, vm_uid: &str) -> Vec<Process> {
    let qemu = |process: &Process| process.words[0].contains("qemu-system");
    below(dir).into_iter().filter(|process| qemu(process) && process.mentions(vm_uid)).collect()
}

fn read(pid: i32) -> Option<Process> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // Every word ends with a zero byte, the last one too.
    let words = line.strip_suffix(&[0])?.split(|byte| *byte == 0);
    Some(Process { pid, words: words.map(|word| String::from_utf8_lossy(word).into_owned()).collect() })
}
