//! Whether User Mode Linux works here, found out by having a guest run a process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, DriverName};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::Uml;
use crate::keep::{Backend, Fault};

/// How long a trial may take: 0.3 s on an idle host.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of what a trial says that are looked at.
const WORDS_BYTES_MAX: u64 = 64 << 10;
/// `src/uml/xstate.c`, compiled; empty where that was not possible.
const MEND: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/xstate.so"));
/// What a kernel says on a CPU whose registers it cannot keep.
const TOO_MANY_REGISTERS: &str = "ptrace set fp regs failed";
/// The guest's only process, in machine code of x86-64: reboot(MAGIC1, MAGIC2, POWER_OFF), and round and round should
/// that come back.
const POWER_OFF: [u8; 24] = [
    0xb8, 0xa9, 0, 0, 0, 0xbf, 0xad, 0xde, 0xe1, 0xfe, 0xbe, 0x69, 0x19, 0x12, 0x28, 0xba, 0xdc, 0xfe, 0x21,
    0x43, 0x0f, 0x05, 0xeb, 0xfe,
];
/// Where the process's program is loaded.
const LOAD_AT: u64 = 0x40_0000;

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) probe: AccelProbe,
    /// Works only with our own ptrace.
    pub(super) mended: bool,
}

/// Everything at once. Never an error: what does not work is told as such.
pub(super) async fn probe(uml: &Uml) -> DriverCapabilities {
    let trial = uml.trial().await;
    let version = version(&uml.config.kernel).await;
    let powers = if trial.probe.usable { Uml::POWERS } else { &[] };
    DriverCapabilities {
        name: DriverName::Uml,
        version: version.unwrap_or_default(),
        accels: vec![trial.probe.clone()],
        powers: powers.iter().copied().collect(),
        ..Default::default()
    }
}

impl Uml {
    /// Found out once.
    pub(super) async fn trial(&self) -> &Trial {
        self.trial.get_or_init(|| try_out(self)).await
    }
}

async fn version(kernel: &Path) -> Option<String> {
    let told = Command::new(kernel).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let told = timeout(PROBE_DEADLINE, told).await.ok()?.ok()?;
    Some(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

async fn try_out(uml: &Uml) -> Trial {
    let judged = |usable, mended, evidence: String| Trial {
        probe: AccelProbe { accel: Accel::Uml, usable, evidence },
        mended,
    };
    let ran = "a guest's kernel booted, ran a process, and was powered off by it";
    let first = match run(uml, None).await {
        Ok(()) => return judged(true, false, ran.to_owned()),
        Err(words) => words,
    };
    if !first.contains(TOO_MANY_REGISTERS) || MEND.is_empty() {
        return judged(false, false, first);
    }
    let mended = match mend(&uml.config.dir) {
        Ok(mend) => run(uml, Some(&mend)).await,
        Err(fault) => Err(fault.message),
    };
    match mended {
        Ok(()) => {
            let why =
                "this CPU has more registers than the kernel keeps (AMX); the driver's own ptrace mends that";
            judged(true, true, format!("{ran}; {why}"))
        }
        Err(second) => judged(false, false, format!("{first}; with our own ptrace: {second}")),
    }
}

/// Puts the mended ptrace where the program loader finds it.
pub(super) fn mend(dir: &Path) -> Result<PathBuf, Fault> {
    let path = dir.join("xstate.so");
    if std::fs::read(&path).is_ok_and(|there| there == MEND) {
        return Ok(path);
    }
    let fresh = dir.join(format!("xstate.so.{}", std::process::id()));
    let written = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&fresh, MEND))
        .and_then(|()| std::fs::rename(&fresh, &path));
    written.map(|()| path.clone()).map_err(|e| Fault::file("write", &path, &e))
}

/// Boots a guest with one process that powers it off.
async fn run(uml: &Uml, mend: Option<&Path>) -> Result<(), String> {
    let dir = uml.config.dir.join(format!("probe.{}", std::process::id()));
    let made = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(dir.join("initrd"), initrd()));
    made.map_err(|e| format!("{}: {e}", dir.display()))?;
    let told = timeout(PROBE_DEADLINE, boot(uml, &dir, mend)).await;
    let _ = std::fs::remove_dir_all(&dir);
    told.unwrap_or_else(|_| Err(format!("a guest's process did nothing within {PROBE_DEADLINE:?}")))
}

async fn boot(uml: &Uml, dir: &Path, mend: Option<&Path>) -> Result<(), String> {
    let mut kernel = Command::new(&uml.config.kernel);
    kernel.args([
        "mem=64M",
        "umid=probe",
        "uml_dir=./",
        "con=null",
        "ssl=null",
        "con0=fd:0,fd:1",
        "console=tty0",
    ]);
    kernel.args(["initrd=initrd", "hostfs=./empty"]).current_dir(dir).process_group(0);
    kernel.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    if let Some(mend) = mend {
        let mend = std::path::absolute(mend).map_err(|e| e.to_string())?;
        kernel.env("LD_PRELOAD", mend);
    }
    let mut child = kernel.spawn().map_err(|e| format!("{}: {e}", uml.config.kernel.display()))?;
    let _group = Group(child.id());
    let mut words = Vec::new();
    if let Some(said) = child.stdout.take() {
        said.take(WORDS_BYTES_MAX).read_to_end(&mut words).await.map_err(|e| e.to_string())?;
    }
    let status = child.wait().await.map_err(|e| e.to_string())?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    let telling = |line: &&str| line.contains(TOO_MANY_REGISTERS) || line.contains("Kernel panic");
    let told: Vec<&str> = words.lines().filter(telling).map(str::trim).collect();
    let told =
        if told.is_empty() { words.lines().last().unwrap_or_default().to_owned() } else { told.join("; ") };
    Err(format!("a guest's kernel failed: {told} ({status})"))
}

/// Kills what a trial leaves behind: its kernel's own threads outlive it when it is killed.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // ESRCH: they are gone, as they should be.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A root file system with one program; source: the kernel's `initramfs-buffer-format`.
fn initrd() -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, bytes) in [("init", 0o100_755, program()), ("TRAILER!!!", 0, Vec::new())] {
        let numbers = [1, mode, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        numbers.iter().for_each(|number| archive.extend(format!("{number:08x}").into_bytes()));
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// An ELF program of one segment; source: elf(5).
fn program() -> Vec<u8> {
    const HEADS: u64 = 64 + 56;
    let length = HEADS + POWER_OFF.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    elf.extend([LOAD_AT + HEADS, 64, 0].iter().flat_map(|long| long.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend([0, LOAD_AT, LOAD_AT, length, length, 4096].iter().flat_map(|long: &u64| long.to_le_bytes()));
    elf.extend(POWER_OFF);
    elf
}
