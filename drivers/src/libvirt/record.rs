//! What is kept on disk of each guest: what libvirt cannot be asked.
//!
//! ```text
//! <dir>/guests/<vm uid>.json   replaced whole, before it is acted upon
//! <dir>/consoles/<vm uid>      unix socket of the serial console, while an agent is there
//! <dir>/logs/<vm uid>.log      all the guest said on its serial port, where the hypervisor keeps that
//! ```
//! Owns the format and its versions. Knows no daemon.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use std::collections::BTreeMap;

use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationLimits};
use dunlin_model::observed::EndCause;
use dunlin_model::{Incarnation, Name, VmId};
use serde::{Deserialize, Serialize};

/// Version of a record. A reader refuses a higher one.
const RECORD_VERSION: u32 = 1;

/// A guest's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    /// Grows with every change: an older one never replaces a newer one.
    pub(super) revision: u64,
    pub(super) vm: VmId,
    pub(super) name: Name,
    pub(super) incarnation: Incarnation,
    /// It came up whole. What did not is cleared away.
    pub(super) started: bool,
    pub(super) ever_ran: bool,
    pub(super) reboots: u32,
    pub(super) reboot_on_shutdown: bool,
    /// It has a display, and its address is to be asked for.
    pub(super) has_display: bool,
    /// How it will have ended when it is gone; written before it is told to go.
    pub(super) ending: Option<EndCause>,
    pub(super) ended: Option<(EndCause, String)>,
    /// Where its memory was saved.
    pub(super) saved: Option<PathBuf>,
    /// Its disks that only this host has: libvirt's name, ours, and the virtual size in bytes.
    #[serde(default)]
    pub(super) local_disks: Vec<(String, Name, u64)>,
    /// Its memory comes from another host, and nobody has taken it over yet: where it is waited for.
    #[serde(default)]
    pub(super) incoming: Option<Endpoint>,
    #[serde(default)]
    pub(super) outgoing: Option<Outgoing>,
    /// Somebody else made it; it can be given back.
    #[serde(default)]
    pub(super) adopted: bool,
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
    pub(super) stage: Stage,
}

/// How far a sending is. Written before it is acted upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Under way.
    Copying,
    /// All is there but for the word that it may run; it stands still here, whole.
    AtSwitchover,
    /// The word is being given.
    Switching,
    /// The word was given.
    Sent(MigrationFigures),
    /// The word did not arrive, or nobody knows.
    Holding(String),
    /// Called off, or failed: it goes on here.
    Cancelled(String),
}

impl Record {
    /// Of a guest that is about to be started.
    pub(super) fn new(vm: VmId, name: Name, incarnation: Incarnation) -> Self {
        Self {
            version: RECORD_VERSION,
            revision: 0,
            vm,
            name,
            incarnation,
            started: false,
            ever_ran: false,
            reboots: 0,
            reboot_on_shutdown: false,
            has_display: false,
            ending: None,
            ended: None,
            saved: None,
            local_disks: Vec::new(),
            incoming: None,
            outgoing: None,
            adopted: false,
        }
    }
}

/// The records of one driver.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    /// Revision on disk of each record; a removed one has the highest there is.
    written: Mutex<BTreeMap<VmId, u64>>,
}

impl Shelf {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, written: Mutex::default() }
    }

    pub(super) fn log(&self, vm: VmId) -> PathBuf {
        self.dir.join("logs").join(vm.to_string()).with_extension("log")
    }

    pub(super) fn console(&self, vm: VmId) -> PathBuf {
        self.dir.join("consoles").join(vm.to_string())
    }

    fn record(&self, vm: VmId) -> PathBuf {
        self.dir.join("guests").join(vm.to_string()).with_extension("json")
    }

    /// Makes the folders.
    pub(super) fn prepare(&self) -> io::Result<()> {
        ["guests", "consoles", "logs"].iter().try_for_each(|name| fs::create_dir_all(self.dir.join(name)))
    }

    /// Every record there is. One that cannot be read is an error: its guest must not be taken for none.
    pub(super) fn all(&self) -> io::Result<Vec<Record>> {
        let entries = match fs::read_dir(self.dir.join("guests")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let bad = |why: String| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
                };
                let record: Record =
                    serde_json::from_slice(&fs::read(&path)?).map_err(|e| bad(e.to_string()))?;
                if record.version > RECORD_VERSION {
                    return Err(bad(format!(
                        "version {}; this agent knows {RECORD_VERSION}",
                        record.version
                    )));
                }
                found.push(record);
            }
        }
        Ok(found)
    }

    /// Replaces a record, durably, unless a newer one is there.
    pub(super) fn store(&self, record: &Record) -> io::Result<()> {
        let mut written = self.written.lock().expect("no code panics while it holds this lock");
        let last = written.entry(record.vm).or_default();
        if *last >= record.revision {
            return Ok(());
        }
        let path = self.record(record.vm);
        let fresh = path.with_extension("new");
        let text =
            serde_json::to_vec_pretty(record).expect("a record has text keys and no failing serializer");
        let mut file = File::create(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(path.parent().unwrap_or(&path))?.sync_all()?;
        *last = record.revision;
        Ok(())
    }

    /// The highest revision there was of a guest's record, removed or not.
    pub(super) fn last(&self, vm: VmId) -> u64 {
        let written = self.written.lock().expect("no code panics while it holds this lock");
        written.get(&vm).copied().unwrap_or_default()
    }

    /// Removes everything kept of a guest but its log. `last`: no revision up to it comes back.
    pub(super) fn remove(&self, vm: VmId, last: u64) -> io::Result<()> {
        let mut written = self.written.lock().expect("no code panics while it holds this lock");
        written.insert(vm, last);
        [self.record(vm), self.console(vm)].iter().try_for_each(|path| gone(path))
    }

    /// Removes a guest's log.
    pub(super) fn erase_log(&self, vm: VmId) -> io::Result<()> {
        gone(&self.log(vm))
    }

    /// Cuts every log that is too long; tells the first that cannot be cut.
    pub(super) fn trim(&self) -> io::Result<()> {
        let entries = match fs::read_dir(self.dir.join("logs")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut first = Ok(());
        for entry in entries.flatten() {
            match crate::logs::trim(&entry.path()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound && first.is_ok() => first = Err(e),
                _ => {}
            }
        }
        first
    }
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record comes back as it was stored, an older one never replaces it, and what is no record is refused.
    #[test]
    fn records_only_go_forward() {
        let dir = tempfile::tempdir().expect("dir");
        let shelf = Shelf::new(dir.path().to_owned());
        assert!(shelf.all().expect("no folder").is_empty());
        shelf.prepare().expect("prepare");
        let vm: VmId = "6ecd1b2e-0000-4000-8000-000000000001".parse().expect("uid");
        let old = Record { revision: 1, ..Record::new(vm, "web".parse().expect("name"), Incarnation(3)) };
        let new = Record { revision: 2, started: true, ..old.clone() };
        shelf.store(&new).expect("store");
        shelf.store(&old).expect("ignored");
        assert_eq!(shelf.all().expect("read"), std::slice::from_ref(&new));
        shelf.remove(vm, 2).expect("remove");
        shelf.store(&new).expect("ignored");
        assert!(shelf.all().expect("read").is_empty());
        let newer = Record { version: 2, revision: 3, ..new };
        shelf.store(&newer).expect("store");
        assert!(shelf.all().is_err());
        fs::write(shelf.record(vm), b"{").expect("write");
        assert!(shelf.all().is_err());
    }
}
