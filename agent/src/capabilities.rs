//! What this host is and what works on it, as the leader is told.
//!
//! Read from the kernel and from the drivers' own probes; nothing is assumed. Free disk space is told coarsely, so
//! that a guest that writes does not make the host's object change all the time.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::capabilities::{HostCapabilities, IMAGES_TOLD_MAX};

use crate::host::Host;

/// Free disk space is rounded down to this, MiB.
const DISK_STEP_MIB: u64 = 1024;

/// The host as it is now, with drivers as they were probed.
pub(crate) fn look(host: &Host) -> HostCapabilities {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let cpu = cpu_of(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let mem_mib = mem_mib_of(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let disk_free_mib =
        rustix::fs::statvfs(&host.config.data_dir).map_or(0, |disk| (disk.f_bavail * disk.f_frsize) >> 20);
    let networks: BTreeMap<_, _> =
        host.config.networks.iter().map(|(name, network)| (name.to_string(), network.to_string())).collect();
    let (cpus, mem_mib) =
        host.config.test.map_or((cpu.cpus, mem_mib), |played| (played.cpus, played.mem_mib));
    HostCapabilities {
        hostname: text(uname.nodename()),
        arch: text(uname.machine()),
        kernel: text(uname.release()),
        cpu_model: cpu.model,
        cpu_features: cpu.features,
        cpus,
        mem_mib,
        disk_free_mib: disk_free_mib - disk_free_mib % DISK_STEP_MIB,
        address: host.config.address.clone(),
        networks,
        images: images_of(host),
        drivers: host.probes.borrow().values().cloned().collect(),
    }
}

/// The images used last. None when the folder cannot be read: they are a preference, not a promise.
fn images_of(host: &Host) -> BTreeSet<String> {
    let mut whole: Vec<_> = host.images.whole().unwrap_or_default();
    whole.sort_by_key(|image| std::cmp::Reverse(image.used));
    whole.into_iter().take(IMAGES_TOLD_MAX).map(|image| image.sha256).collect()
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Cpu {
    model: String,
    features: BTreeSet<String>,
    cpus: u32,
}

/// Reads `/proc/cpuinfo`: proc(5). Other architectures than x86 name the model differently or not at all.
fn cpu_of(text: &str) -> Cpu {
    let mut cpu = Cpu::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            "processor" => cpu.cpus += 1,
            "model name" if cpu.model.is_empty() => cpu.model = value.trim().to_owned(),
            "flags" | "Features" if cpu.features.is_empty() => {
                cpu.features = value.split_whitespace().map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    cpu
}

/// Reads `/proc/meminfo`: proc(5). Its kB are KiB.
fn mem_mib_of(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) >> 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's tables are read as proc(5) describes them, and a torn table gives zeros, not a panic.
    #[test]
    fn kernel_tables() {
        let cpu = cpu_of(
            "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nmodel name\t: Fast CPU\n",
        );
        assert_eq!((cpu.cpus, cpu.model.as_str()), (2, "Fast CPU"));
        assert!(cpu.features.contains("vmx"));
        assert_eq!(mem_mib_of("MemTotal:       24576000 kB\nMemFree: 1 kB\n"), 24_000);
        assert_eq!((cpu_of("proc"), mem_mib_of("MemTotal: ?")), (Cpu::default(), 0));
    }
}
