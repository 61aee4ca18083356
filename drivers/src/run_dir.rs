//! One guest's folder: what is kept on disk of it, one file of which is replaced whole.
//!
//! ```text
//! <dir>/guests/<vm uid>/  guest.json    what cannot be seen by asking the hypervisor, written before it is acted upon
//!                         lock          held by the process from fork to death
//!                         and sockets and words of the driver's own
//! <dir>/logs/<vm uid>.log   all that any process of the VM said on its serial port
//! ```
//! Owns where files lie and how a record is made durable. Knows neither what a record says nor any hypervisor.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dunlin_model::VmId;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest path of a unix socket, bytes: `sun_path` without its NUL.
const SUN_PATH_MAX: usize = 107;
/// Bytes of a log that may become part of an error.
const WORDS_BYTES_MAX: u64 = 2048;
/// Lines of a log that may become part of an error.
const WORDS_LINES_MAX: usize = 6;

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
    #[error("{path} has version {version}; this agent knows up to {known}")]
    Version { path: PathBuf, version: u32, known: u32 },
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

    /// Makes the folder ready for a new process, without these files of an earlier one. Its serial log stays.
    pub(super) fn prepare(&self, stale: &[&str]) -> Result<(), RecordError> {
        fs::create_dir_all(&self.path).map_err(|e| self.failed("create", "", e))?;
        let log = self.serial_log();
        fs::create_dir_all(log.parent().unwrap_or(&log))
            .map_err(|e| self.failed("create", "../../logs", e))?;
        for name in stale {
            match fs::remove_file(self.file(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.failed("remove", name, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Replaces guest.json. `durable`: it is on disk when this returns, else it only survives the agent.
    pub(super) fn store(&self, record: &impl Serialize, durable: bool) -> Result<(), RecordError> {
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

    /// Reads guest.json, up to this version of it; none when the folder was made and nothing begun.
    pub(super) fn load<R: DeserializeOwned>(&self, known: u32) -> Result<Option<R>, RecordError> {
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
        if version > known {
            return Err(RecordError::Version { path, version, known });
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

    /// The last words in the log of that name.
    pub(super) fn words(&self, log: &str) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let read = || {
            let mut file = File::open(self.file(log))?;
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
pub(super) fn last_words(log: &str) -> String {
    let noise = |line: &&str| !line.is_empty() && !line.starts_with("VNC server running");
    let said = |line: &str| {
        let line = line.trim();
        let bare = line.split_once(": ").filter(|(program, _)| program.starts_with("qemu-system-"));
        bare.map_or(line, |(_, rest)| rest).to_owned()
    };
    let lines: Vec<String> = log.lines().map(str::trim).filter(noise).map(said).collect();
    lines[lines.len().saturating_sub(WORDS_LINES_MAX)..].join("; ")
}
