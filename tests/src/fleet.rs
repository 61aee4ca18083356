//! A fleet of real processes on this machine, brought up by `dunlin up` and taken down when dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dunlin_model::Object;
use dunlin_model::migration::Migration;
use dunlin_model::vm::{Vm, VmPhase};
use serde_json::Value;

use crate::process::{self, Process};
use crate::{Ring, eventually};

/// Until a guest that was told to start ticks: an emulated boot takes three seconds alone, more with others beside it.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// The shape of a test fleet.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// 1 or 3.
    pub controllers: u8,
    /// Hosts.
    pub hosts: u8,
    /// `qemu`, `test` or both.
    pub drivers: &'static str,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { controllers: 3, hosts: 3, drivers: "qemu" }
    }
}

/// A running fleet.
#[derive(Debug)]
pub struct Fleet {
    root: tempfile::TempDir,
    options: FleetOptions,
    subnet: String,
    port: u16,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Counts the fleets of this process, so that each gets addresses of its own.
static FLEETS: AtomicU32 = AtomicU32::new(0);

impl Fleet {
    /// Starts one and waits until every host is up.
    pub fn start(options: FleetOptions) -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("dl").tempdir()?;
        let number = std::process::id().wrapping_mul(7).wrapping_add(FLEETS.fetch_add(1, Ordering::Relaxed));
        let subnet = format!("10.{}.{}", 100 + number / 250 % 100, number % 250);
        let port = 20_000 + u16::try_from(number % 2000)? * 16;
        let fleet = Self { root, options, subnet, port };
        fleet.up()?;
        Ok(fleet)
    }

    /// Starts whatever is not running.
    pub fn up(&self) -> anyhow::Result<()> {
        let FleetOptions { controllers, hosts, drivers } = &self.options;
        let (controllers, hosts, port) = (controllers.to_string(), hosts.to_string(), self.port.to_string());
        let dir = self.dir().display().to_string();
        let words =
            ["up", "--dir", &dir, "--controllers", &controllers, "--hosts", &hosts, "--driver", drivers];
        self.run(&[&words[..], &["--subnet", &self.subnet, "--port", &port]].concat())?.ok()?;
        Ok(())
    }

    /// The folder of the fleet.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("f")
    }

    /// A folder for files of the test.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// Connects as the admin that `up` made.
    pub fn dialer(&self) -> anyhow::Result<dunlin_pki::Dialer> {
        Ok(self.keyring()?.dialer())
    }

    /// What that admin shows and believes.
    pub fn keyring(&self) -> anyhow::Result<std::sync::Arc<dunlin_pki::Keyring>> {
        let file = |name: &str| self.root.path().join(name);
        let shown = dunlin_pki::read_shown(&file("local.pem"))?;
        let roots = dunlin_pki::read_roots(&file("local-ca.pem"))?.context("no authorities")?;
        let ring = dunlin_pki::Ring { shown, trust: dunlin_pki::Trust::Roots(roots), beside: Vec::new() };
        Ok(dunlin_pki::Keyring::new(ring, dunlin_pki::Clock::system())?)
    }

    /// Runs `dunlin WORDS...` against this fleet.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        self.run_with_input(words, "")
    }

    /// The same, with text on its standard input.
    pub fn run_with_input(&self, words: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut child = self
            .command(words)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting dunlin")?;
        if let Some(mut stdin) = child.stdin.take() {
            std::io::Write::write_all(&mut stdin, input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        Ok(Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The command itself, for a test that wants to hold on to the process.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .args(words)
            .env("DUNLIN_CONFIG", self.root.path().join("contexts.yaml"))
            .env_remove("DUNLIN_ENDPOINT");
        Ok(command)
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, words: &[&str]) -> anyhow::Result<String> {
        self.run(words)?.ok().with_context(|| format!("dunlin {}", words.join(" ")))
    }

    /// Runs a command that must succeed and print JSON.
    pub fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.ok(&[words, &["-o", "json"]].concat())?)?)
    }

    /// One VM as it is now.
    pub fn vm(&self, name: &str) -> anyhow::Result<Vm> {
        match serde_json::from_value(self.json(&["vm", "show", name])?)? {
            Object::Vm(vm) => Ok(vm),
            other => bail!("{name} is a {}", other.kind()),
        }
    }

    /// Every migration, oldest first.
    pub fn migrations(&self) -> anyhow::Result<Vec<Migration>> {
        let list = self.json(&["migration", "list"])?;
        let items: Vec<Object> = serde_json::from_value(list["items"].clone())?;
        let mut found: Vec<_> = items
            .into_iter()
            .filter_map(|item| if let Object::Migration(migration) = item { Some(migration) } else { None })
            .collect();
        found.sort_by_key(|migration| (migration.metadata.created, migration.metadata.revision));
        Ok(found)
    }

    /// Waits for a VM's phase.
    pub fn wait_phase(&self, name: &str, phase: VmPhase, limit: Duration) -> anyhow::Result<Vm> {
        eventually(&format!("vm {name} {phase}"), limit, || {
            let vm = self.vm(name).map_err(|e| e.to_string())?;
            let told = format!("is {} {} {}", vm.status.phase, vm.status.reason, vm.status.message);
            if vm.status.phase == phase { Ok(vm) } else { Err(told) }
        })
    }

    /// Processes of this fleet whose arguments hold every one of `marks`.
    #[must_use]
    pub fn processes(&self, marks: &[&str]) -> Vec<Process> {
        let all = process::below(&self.dir()).into_iter();
        all.filter(|process| marks.iter().all(|mark| process.mentions(mark))).collect()
    }

    /// The process of controller `id`.
    pub fn controller(&self, id: u64) -> anyhow::Result<Process> {
        let found = self.processes(&[&format!("controller-{id}/data")]);
        found
            .into_iter()
            .find(|process| process.words.get(1).is_some_and(|word| word == "controller"))
            .context("no such controller")
    }

    /// The process of an agent.
    pub fn agent(&self, host: &str) -> anyhow::Result<Process> {
        let found = self.processes(&[&format!("{host}/data")]);
        found
            .into_iter()
            .find(|process| process.words.get(1).is_some_and(|word| word == "agent"))
            .context("no such agent")
    }

    /// Number of the leading controller.
    pub fn leader(&self) -> anyhow::Result<u64> {
        let cluster = self.json(&["cluster", "show"])?;
        cluster["status"]["leader"].as_u64().context("no leader known")
    }

    /// Where each controller answers, by their numbers.
    pub fn endpoints(&self) -> anyhow::Result<Vec<String>> {
        let cluster = self.json(&["cluster", "show"])?;
        let controllers = cluster["status"]["controllers"].as_array().context("no controllers")?;
        let endpoint = |known: &Value| known["endpoint"].as_str().map(str::to_owned);
        controllers.iter().map(endpoint).collect::<Option<_>>().context("a controller without an endpoint")
    }

    /// The QEMU processes of a VM, on any host.
    pub fn guests(&self, vm: &Vm) -> Vec<Process> {
        process::guests(&self.dir(), &vm.metadata.uid.to_string())
    }

    /// Imports the test guest's kernel, initrd and empty disk.
    pub fn import_guest(&self) -> anyhow::Result<()> {
        let guest = guest_dir()?;
        for (name, file) in [("kernel", "vmlinux"), ("initrd", "initrd.img"), ("disk", "disk.raw")] {
            self.ok(&["image", "import", name, &guest.join(file).display().to_string()])?;
        }
        Ok(())
    }

    /// Creates and starts a VM that ticks, with `disk` as its disk argument.
    pub fn create_ticking(&self, name: &str, disk: &str, more: &[&str]) -> anyhow::Result<Vm> {
        self.create_guest(name, disk, "", more)?;
        self.wait_phase(name, VmPhase::Running, BOOT_LIMIT)
    }

    /// The same, with `knobs` of the test guest behind its command line, and without waiting.
    pub fn create_guest(&self, name: &str, disk: &str, knobs: &str, more: &[&str]) -> anyhow::Result<()> {
        let cmdline = std::fs::read_to_string(guest_dir()?.join("cmdline"))?;
        let cmdline = format!("{} {knobs}", cmdline.trim());
        let words = ["vm", "create", name, "--mem-mib", "128", "--kernel", "kernel", "--initrd", "initrd"];
        let rest = ["--cmdline", cmdline.trim(), "--disk", disk, "--start"];
        self.ok(&[&words[..], &rest[..], more].concat())?;
        Ok(())
    }

    /// The raw disk file that a VM's host has for it.
    pub fn disk_file(&self, vm: &Vm) -> anyhow::Result<PathBuf> {
        let host = vm.status.host_name.as_ref().context("the VM is on no host")?;
        let folder = self.dir().join(format!("{host}/data/volumes/{}", vm.metadata.uid));
        let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let raw = entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "raw"));
        raw.with_context(|| format!("no raw disk in {}", folder.display()))
    }

    /// Waits until the disk has a tick beyond `after`, and returns the ring.
    pub fn ticks_beyond(&self, disk: &Path, after: Option<u64>, limit: Duration) -> anyhow::Result<Ring> {
        eventually("a tick on the disk", limit, || {
            let ring = Ring::read(disk).map_err(|e| e.to_string())?;
            let fresh = after.is_none_or(|after| ring.last_seq > after);
            if fresh { Ok(ring) } else { Err(format!("the newest is {}", ring.last_seq)) }
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("DUNLIN_LOGS").is_some() {
            self.tell_logs();
        }
        let dir = self.dir().display().to_string();
        if let Ok(output) = self.run(&["down", "--dir", &dir])
            && output.status != 0
        {
            tracing::error!("dunlin down: {}", output.stderr);
        }
    }
}

impl Fleet {
    /// The ends of all daemons' logs, for whoever reads a failed test.
    fn tell_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.dir()) else { return };
        for entry in entries.flatten() {
            if let Ok(log) = std::fs::read_to_string(entry.path().join("log")) {
                let lines: Vec<_> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                println!("--- {}\n{}", entry.path().display(), tail.join("\n"));
            }
        }
    }
}

impl Output {
    /// The standard output of a command that succeeded.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.status == 0, "exit status {}: {}{}", self.status, self.stderr, self.stdout);
        Ok(self.stdout)
    }
}

/// The `dunlin` binary of this build: beside the test's own folder.
pub fn binary() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let folder = me.ancestors().find(|folder| folder.join("dunlin").is_file());
    Ok(folder.context("the dunlin binary is not built: cargo build --workspace --bins")?.join("dunlin"))
}

/// The test guest that tests/guest/build made.
pub fn guest_dir() -> anyhow::Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    ensure!(dir.join("vmlinux").is_file(), "the test guest is not built: tests/guest/build");
    Ok(dir.canonicalize()?)
}
