//! What is kept on disk of each guest: one folder, and in it one file that is replaced whole.
//!
//! ```text
//! <dir>/guests/<vm uid>/  guest.json    what cannot be seen by asking QEMU, written before it is acted upon
//!                         lock          held by the process from fork to death
//!                         qmp.sock      the monitor         console.sock  the serial port
//!                         qemu.log      QEMU's own words
//! <dir>/logs/<vm uid>.log   all that any process of the VM said on its serial port
//! ```
//! Owns the format and its versions. Knows no process and no QMP.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::EndCause;
use dunlin_model::{Incarnation, Name, VmId};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::process::ProcessId;

/// Version of guest.json. A reader refuses a higher one and leaves that guest alone.
pub(super) const RECORD_VERSION: u32 = 1;
/// Longest path of a unix socket, bytes: `sun_path` without its NUL.
const SUN_PATH_MAX: usize = 107;
/// Bytes of qemu.log that may become part of an error.
const WORDS_BYTES_MAX: u64 = 2048;
/// Lines of qemu.log that may become part of an error.
const WORDS_LINES_MAX: usize = 6;

/// guest.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) vm: VmId,
    pub(super) name: Name,
    /// The incarnation it carries now; a hand-back raises it.
    pub(super) incarnation: Incarnation,
    /// A word in the process's command line that no other process has.
    pub(super) token: String,
    /// Set right after the fork.
    pub(super) process: Option<ProcessId>,
    /// Its memory comes from another host, and nobody has taken it over yet.
    pub(super) incoming: bool,
    /// It came up whole. What died before this point was never there.
    pub(super) started: bool,
    pub(super) ever_ran: bool,
    pub(super) vnc: Option<String>,
    pub(super) endpoint: Option<Endpoint>,
    /// Disks to be mirrored by a migration: (node, export).
    pub(super) local_disks: Vec<(String, Name)>,
    /// Those of these nodes on which a read-only view stands: the guest, and so a mirror, begins at the view.
    #[serde(default)]
    pub(super) viewed: Vec<String>,
    /// Their virtual sizes, bytes.
    #[serde(default)]
    pub(super) disk_bytes: BTreeMap<Name, u64>,
    pub(super) reboot_on_shutdown: bool,
    /// How often its machine was restarted in this process.
    #[serde(default)]
    pub(super) reboots: u32,
    pub(super) outgoing: Option<Outgoing>,
    pub(super) saving: Option<Saving>,
    /// How it will have ended when its process is gone; written before it is killed.
    pub(super) ending: Option<EndCause>,
    pub(super) ended: Option<(EndCause, String)>,
}

/// A sending that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outgoing {
    pub(super) endpoint: Endpoint,
    pub(super) limits: MigrationLimits,
    /// The incarnation it was sent under: only a higher one may run here again.
    pub(super) incarnation: Incarnation,
    /// vCPUs ran when it began.
    pub(super) was_running: bool,
    /// All mirrors and exports were asked for.
    pub(super) mirrored: bool,
    /// `migrate_switch` was called: from here a failure leaves the guest standing still.
    pub(super) switched: bool,
    /// When the vCPUs stopped, ms since 1970; 0: they have not.
    pub(super) stopped_at_ms: u64,
    /// Called off or failed before the switch: why.
    pub(super) cancelled: Option<String>,
}

/// A save that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saving {
    pub(super) file: PathBuf,
    /// vCPUs ran when it began.
    pub(super) was_running: bool,
}

/// What went wrong with a guest's folder.
#[derive(Debug, Error)]
pub(super) enum RecordError {
    #[error("cannot {verb} {path}")]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no record of a guest")]
    Format {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has version {version}; this agent knows up to {RECORD_VERSION}")]
    Version { path: PathBuf, version: u32 },
}

/// One guest's folder.
#[derive(Clone, Debug)]
pub(super) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    pub(super) fn new(dir: &Path, vm: VmId) -> Self {
        Self { path: guests(dir).join(vm.to_string()) }
    }

    /// Every folder there is.
    pub(super) fn all(dir: &Path) -> Result<Vec<Self>, RecordError> {
        let guests = guests(dir);
        let failed = |source| RecordError::File { verb: "list", path: guests.clone(), source };
        let entries = match fs::read_dir(&guests) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            if name.to_str().is_some_and(|name| name.parse::<VmId>().is_ok()) {
                found.push(Self { path: guests.join(name) });
            }
        }
        Ok(found)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The serial log: beside the guests' folders, since it outlives each process of the VM.
    pub(super) fn serial_log(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        self.path.parent().unwrap_or(&self.path).with_file_name("logs").join(name).with_extension("log")
    }

    /// Makes the folder ready for a new process. The serial log of earlier ones stays.
    pub(super) fn prepare(&self) -> Result<(), RecordError> {
        fs::create_dir_all(&self.path).map_err(|e| self.failed("create", "", e))?;
        let log = self.serial_log();
        fs::create_dir_all(log.parent().unwrap_or(&log))
            .map_err(|e| self.failed("create", "../../logs", e))?;
        for name in ["qmp.sock", "console.sock", "qemu.log"] {
            match fs::remove_file(self.file(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.failed("remove", name, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Replaces guest.json. `durable`: it is on disk when this returns, else it only survives the agent.
    pub(super) fn store(&self, record: &Record, durable: bool) -> Result<(), RecordError> {
        let text =
            serde_json::to_vec_pretty(record).expect("a record has text keys and no failing serializer");
        let fresh = self.file("guest.json.new");
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(&text)?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&fresh, self.file("guest.json"))?;
            if durable { File::open(&self.path)?.sync_all() } else { Ok(()) }
        };
        write().map_err(|e| self.failed("write", "guest.json", e))
    }

    /// Reads guest.json; none when the folder was made and nothing begun.
    pub(super) fn load(&self) -> Result<Option<Record>, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = self.file("guest.json");
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // What a crash of the host leaves of a file that was not flushed yet; its process is gone as well.
            Ok(text) if text.is_empty() => return Ok(None),
            text => text.map_err(|e| self.failed("read", "guest.json", e))?,
        };
        let format = |source| RecordError::Format { path: path.clone(), source };
        let Version { version } = serde_json::from_slice(&text).map_err(format)?;
        if version > RECORD_VERSION {
            return Err(RecordError::Version { path, version });
        }
        serde_json::from_slice(&text).map(Some).map_err(format)
    }

    /// Removes everything kept of this guest.
    pub(super) fn remove(&self) -> Result<(), RecordError> {
        // The record first: a folder without one is swept at the next start of the agent.
        for step in [fs::remove_file(self.file("guest.json")), fs::remove_dir_all(&self.path)] {
            match step {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.failed("remove", "", e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the lock that a process inherits and holds for as long as it lives. None: a process has it.
    pub(super) fn lock(&self) -> Result<Option<File>, RecordError> {
        let failed = |e| self.failed("lock", "lock", e);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.file("lock"), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| failed(e.into()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file.into())),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(failed(e.into())),
        }
    }

    /// A name of this folder's socket that fits into a socket address. `anchor` must be kept open while it is used.
    pub(super) fn socket(&self, name: &str, anchor: &File) -> PathBuf {
        let path = self.file(name);
        if path.as_os_str().len() <= SUN_PATH_MAX {
            return path;
        }
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", anchor.as_raw_fd()))
    }

    /// Opens the folder itself, to be an anchor for [`Self::socket`].
    pub(super) fn anchor(&self) -> Result<File, RecordError> {
        File::open(&self.path).map_err(|e| self.failed("open", "", e))
    }

    /// QEMU's last words.
    pub(super) fn words(&self) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let read = || {
            let mut file = File::open(self.file("qemu.log"))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(WORDS_BYTES_MAX)))?;
            let mut bytes = Vec::new();
            file.take(WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        last_words(&String::from_utf8_lossy(&read().unwrap_or_default()))
    }

    fn failed(&self, verb: &'static str, name: &str, source: io::Error) -> RecordError {
        RecordError::File { verb, path: self.path.join(name), source }
    }
}

fn guests(dir: &Path) -> PathBuf {
    dir.join("guests")
}

/// The last lines that say something, without the program's name before each.
fn last_words(log: &str) -> String {
    let noise = |line: &&str| !line.is_empty() && !line.starts_with("VNC server running");
    let said = |line: &str| {
        let line = line.trim();
        let bare = line.split_once(": ").filter(|(program, _)| program.starts_with("qemu-system-"));
        bare.map_or(line, |(_, rest)| rest).to_owned()
    };
    let lines: Vec<String> = log.lines().map(str::trim).filter(noise).map(said).collect();
    lines[lines.len().saturating_sub(WORDS_LINES_MAX)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(vm: VmId) -> Record {
        Record {
            version: RECORD_VERSION,
            vm,
            name: "web-1".parse().expect("name"),
            incarnation: Incarnation(3),
            token: "dunlin.x.3".into(),
            process: None,
            incoming: false,
            started: true,
            ever_ran: true,
            reboots: 0,
            vnc: Some("127.0.0.1:5900".into()),
            endpoint: None,
            local_disks: vec![("disk0".into(), "vda".parse().expect("name"))],
            viewed: Vec::new(),
            disk_bytes: BTreeMap::from([("vda".parse().expect("name"), 1 << 20)]),
            reboot_on_shutdown: false,
            outgoing: None,
            saving: None,
            ending: None,
            ended: Some((EndCause::GuestShutdown, "it powered off".into())),
        }
    }

    /// A record comes back as it was stored; a half-written one does not hide it; a newer one is refused, not guessed.
    #[test]
    fn a_record_is_replaced_whole_and_its_version_is_obeyed() {
        let dir = tempfile::tempdir().expect("dir");
        let vm: VmId = "6ecd1b2e-0000-4000-8000-000000000001".parse().expect("uid");
        let run = RunDir::new(dir.path(), vm);
        assert!(RunDir::all(dir.path()).expect("no folder yet").is_empty());
        run.prepare().expect("prepare");
        assert_eq!(run.load().expect("nothing begun"), None);
        run.store(&record(vm), true).expect("store");
        fs::write(run.file("guest.json.new"), b"{\"version\":1,").expect("torn write");
        assert_eq!(run.load().expect("load"), Some(record(vm)));
        assert_eq!(RunDir::all(dir.path()).expect("list").len(), 1);
        let newer = Record { version: RECORD_VERSION + 1, ..record(vm) };
        run.store(&newer, false).expect("store");
        assert!(matches!(run.load(), Err(RecordError::Version { version: 2, .. })));
        run.remove().expect("remove");
        run.remove().expect("remove again");
        assert!(!run.path.exists());
    }

    /// What is on disk from version 1 stays readable.
    #[test]
    fn version_1_is_read() {
        let text = include_str!("record_v1.json");
        let record: Record = serde_json::from_str(text).expect("version 1");
        assert_eq!(record.incarnation, Incarnation(7));
        assert_eq!(record.outgoing.expect("sending").stopped_at_ms, 1_795_429_412_389);
    }

    /// The lock tells a living process from a dead one, and a long folder still has usable sockets.
    #[test]
    fn locks_exclude_and_sockets_fit() {
        let dir = tempfile::tempdir().expect("dir");
        let deep = dir.path().join("d".repeat(120));
        let run = RunDir::new(&deep, "6ecd1b2e-0000-4000-8000-000000000001".parse().expect("uid"));
        run.prepare().expect("prepare");
        let held = run.lock().expect("lock").expect("free");
        assert!(run.lock().expect("lock").is_none());
        drop(held);
        assert!(run.lock().expect("lock").is_some());
        let anchor = run.anchor().expect("anchor");
        let listener = std::os::unix::net::UnixListener::bind(run.socket("qmp.sock", &anchor)).expect("bind");
        assert!(run.file("qmp.sock").exists());
        std::os::unix::net::UnixStream::connect(run.socket("qmp.sock", &anchor)).expect("connect");
        drop(listener);
    }

    /// QEMU's words reach people without its name before every line and without chatter.
    #[test]
    fn last_words_are_qemus() {
        let log = "VNC server running on 127.0.0.1:5900\nqemu-system-x86_64: -drive x: no\n\n  really\n";
        assert_eq!(last_words(log), "-drive x: no; really");
        assert_eq!(last_words(""), "");
    }
}
