//! What the agent cannot see again: one record for each VM the host has had to do with, each in a file of its own.
//!
//! Owns the folder `vms/` of the data folder. A record is replaced whole and durably before the agent acts on it, so a
//! crash leaves either the old record or the new one. A record that cannot be read is an error that stops the start:
//! going on without it could run a VM twice.
//!
//! Retention: an ended act is kept until a desired set no longer names it; sets only grow in generation, and one that
//! still names it is refused by then. Of a VM that has left, only the highest incarnation it was told is kept, for the
//! last [`TOMBSTONES_MAX`] of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_model::desired::Assignment;
use dunlin_model::observed::EndCause;
use dunlin_model::task::{Act, TaskPhase};
use dunlin_model::vm::Built;
use dunlin_model::{Incarnation, MigrationId, Name, Revision, TaskId, VmId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::durable;
use crate::files::Files;
use crate::identity::DirLock;

/// Layout of the record files. Raised when a record of an older agent cannot be read as it stands.
const VERSION: u32 = 1;

/// VMs that have left of which the incarnation is still kept. The generation of the desired sets fences most; these
/// are the second line, and 1024 of them are 300 KiB.
pub(crate) const TOMBSTONES_MAX: usize = 1024;

/// Why the journal could not be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("journal {path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content is not what was written. Nothing is guessed.
    #[error(
        "journal {path} is damaged: {problem}; restore it, or remove it once you know that this VM does not run here"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer agent wrote it.
    #[error("journal {path} has version {found}, this agent reads {VERSION}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// What is kept of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which VM.
    pub(crate) vm: VmId,
    /// Its name when it was last told.
    pub(crate) name: Name,
    /// The highest incarnation it was told. Lower ones are refused.
    pub(crate) told: Incarnation,
    /// Generation of the desired set that was last acted on.
    pub(crate) generation: Revision,
    /// The assignment last acted on, other than Discard. None once everything is let go.
    pub(crate) assignment: Option<Assignment>,
    /// How the process last brought up is built, with everything it was given and lost since. None of one that an older
    /// agent brought up: it is left as it is.
    #[serde(default)]
    pub(crate) built: Option<Built>,
    /// Changes it cannot follow under the assignment at hand, and why.
    #[serde(default)]
    pub(crate) stuck: BTreeMap<String, String>,
    /// The process last brought up.
    pub(crate) started: Option<Started>,
    /// The incarnation whose vCPUs were last let run here; written before they are.
    pub(crate) ran: Option<Incarnation>,
    /// How the last process ended, where the driver cannot tell.
    pub(crate) ended: Option<Ended>,
    /// The migration it was last sent away for.
    pub(crate) sending: Option<Sending>,
    /// Disks made here, by the disk's name.
    pub(crate) volumes: BTreeMap<Name, PathBuf>,
    /// Files made at the paths its spec names, to receive a migration into, by the disk's name.
    #[serde(default)]
    pub(crate) targets: BTreeMap<Name, Target>,
    /// The disks it was sent away with, or is being, whose files are named by a path of this host.
    #[serde(default)]
    pub(crate) left: Vec<Left>,
    /// Interfaces made here.
    pub(crate) taps: BTreeSet<String>,
    /// Its saved memory.
    pub(crate) saved: Option<Saved>,
    /// Acts begun or ended.
    pub(crate) acts: BTreeMap<TaskId, ActRecord>,
}

/// A file that is, or is to be, made at a path that somebody named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Where.
    pub(crate) path: PathBuf,
    /// For the process of this incarnation: until it has run, the file is only half a disk.
    pub(crate) incarnation: Incarnation,
    /// Which file it is; written before it gets its name, so that no other is ever taken for it.
    pub(crate) mark: Option<Mark>,
}

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Device of its file system.
    pub(crate) device: u64,
    /// Its inode.
    pub(crate) inode: u64,
}

/// A disk of a guest that was sent away. If that guest lives elsewhere now, the file is out of date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// Which disk.
    pub(crate) disk: Name,
    /// Its file.
    pub(crate) path: PathBuf,
    /// The incarnation that wrote to it last.
    pub(crate) incarnation: Incarnation,
}

/// A process that was to be brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// The incarnation it carries.
    pub(crate) incarnation: Incarnation,
    /// For this migration, as its destination.
    pub(crate) receiving: Option<MigrationId>,
    /// The driver has brought it up. Until then a start may be repeated.
    pub(crate) up: bool,
}

/// An ending the driver does not know of: a refused start, or a process that was gone when it was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Of which incarnation.
    pub(crate) incarnation: Incarnation,
    /// How.
    pub(crate) cause: EndCause,
    /// In words.
    pub(crate) message: String,
    /// Had its vCPUs ever run in this incarnation here?
    pub(crate) ever_ran: bool,
    /// It was to receive this migration.
    pub(crate) receiving: Option<MigrationId>,
}

/// A sending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sending {
    /// Which migration.
    pub(crate) migration: MigrationId,
    /// The driver has taken it on: what it says of a sending is about this one.
    pub(crate) begun: bool,
    /// It could not even be begun, and why.
    pub(crate) failed: Option<String>,
}

/// Saved memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Where.
    pub(crate) file: PathBuf,
    /// Its length, bytes.
    pub(crate) size_bytes: u64,
    /// The incarnation that was saved.
    pub(crate) incarnation: Incarnation,
    /// The machine the memory is of; none: as the spec says.
    #[serde(default)]
    pub(crate) built: Option<Built>,
}

/// A one-shot act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActRecord {
    /// What.
    pub(crate) act: Act,
    /// On which incarnation.
    pub(crate) incarnation: Incarnation,
    /// When it was begun, ms since 1970 by this host's clock; its patience is counted from here.
    pub(crate) begun_ms: u64,
    /// When its power button was pressed again, ms since 1970; 0: never.
    #[serde(default)]
    pub(crate) pressed_ms: u64,
    /// Restarts of the guest's machine when it was begun.
    #[serde(default)]
    pub(crate) reboots: u32,
    /// How it ended.
    pub(crate) ended: Option<(TaskPhase, String)>,
}

impl Record {
    /// Nothing known yet.
    #[must_use]
    pub(crate) fn new(vm: VmId, name: Name) -> Self {
        Self {
            vm,
            name,
            told: Incarnation(0),
            generation: Revision(0),
            assignment: None,
            built: None,
            stuck: BTreeMap::new(),
            started: None,
            ran: None,
            ended: None,
            sending: None,
            volumes: BTreeMap::new(),
            targets: BTreeMap::new(),
            left: Vec::new(),
            taps: BTreeSet::new(),
            saved: None,
            acts: BTreeMap::new(),
        }
    }

    /// Is nothing of the VM left but the memory of its incarnation?
    #[must_use]
    pub(crate) fn is_tombstone(&self) -> bool {
        self.assignment.is_none()
            && self.started.is_none()
            && self.ended.is_none()
            && self.volumes.is_empty()
            && self.targets.is_empty()
            && self.taps.is_empty()
            && self.saved.is_none()
    }

    /// Lets go of everything but the incarnation and the acts.
    pub(crate) fn bury(&mut self) {
        *self = Self {
            told: self.told,
            generation: self.generation,
            acts: std::mem::take(&mut self.acts),
            ..Self::new(self.vm, self.name.clone())
        };
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    /// Of the record's bytes: a flipped bit is found, not obeyed.
    sha256: String,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    files: Arc<dyn Files>,
    /// A write goes on when the task that wanted it is dropped.
    _lock: DirLock,
}

impl Journal {
    /// Opens the journal in `folder`, which is made when it is not there, and reads every record.
    pub(crate) fn open(
        folder: PathBuf,
        files: Arc<dyn Files>,
        lock: DirLock,
    ) -> Result<(Self, Vec<Record>), JournalError> {
        let at = |source| JournalError::Io { path: folder.clone(), source };
        files.make_folder(&folder).map_err(at)?;
        durable::sweep(&*files, &folder).map_err(at)?;
        let mut records = Vec::new();
        for path in files.list(&folder).map_err(at)? {
            records.push(read(&*files, &path)?);
        }
        let journal = Self { folder, files, _lock: lock };
        journal.thin(&mut records, TOMBSTONES_MAX)?;
        Ok((journal, records))
    }

    /// Makes the record durable without holding anybody up, and gives it back.
    pub(crate) async fn keep(&self, record: Record) -> Result<Record, JournalError> {
        let (journal, path) = (self.clone(), self.path(record.vm));
        self.files.pace().await;
        let kept = durable::off_thread(move || Ok(journal.write(&record).map(|()| record))).await;
        kept.map_err(|source| JournalError::Io { path, source })?
    }

    /// Makes the record durable. Blocks for the disk: call it where that is allowed.
    pub(crate) fn write(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.path(record.vm);
        let at = |source| JournalError::Io { path: path.clone(), source };
        let raw = serde_json::value::to_raw_value(record).map_err(|e| at(e.into()))?;
        let sha256 = digest(raw.get());
        let envelope = Envelope { version: VERSION, sha256, record: &raw };
        let bytes = serde_json::to_vec(&envelope).map_err(|e| at(e.into()))?;
        durable::replace_in(&*self.files, &path, &bytes).map_err(at)
    }

    /// Forgets a VM that has left long ago.
    pub(crate) fn forget(&self, vm: VmId) -> Result<(), JournalError> {
        let path = self.path(vm);
        durable::remove_in(&*self.files, &path).map_err(|source| JournalError::Io { path, source })
    }

    /// Forgets the oldest tombstones above `max`.
    fn thin(&self, records: &mut Vec<Record>, max: usize) -> Result<(), JournalError> {
        records.sort_by_key(|record| (!record.is_tombstone(), record.generation));
        let tombs = records.iter().take_while(|record| record.is_tombstone()).count();
        for record in records.drain(..tombs.saturating_sub(max)) {
            self.forget(record.vm)?;
        }
        Ok(())
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.folder.join(format!("{vm}.json"))
    }
}

fn read(files: &dyn Files, path: &Path) -> Result<Record, JournalError> {
    let damaged = |problem: String| JournalError::Damaged { path: path.to_owned(), problem };
    let bytes = files.read(path).map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
    let envelope: Envelope<'_> = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if envelope.version > VERSION {
        return Err(JournalError::Version { path: path.to_owned(), found: envelope.version });
    }
    if digest(envelope.record.get()) != envelope.sha256 {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let record: Record = serde_json::from_str(envelope.record.get()).map_err(|e| damaged(e.to_string()))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    if stem != Some(record.vm.to_string().as_str()) {
        return Err(damaged(format!("it is the record of {}", record.vm)));
    }
    Ok(record)
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
