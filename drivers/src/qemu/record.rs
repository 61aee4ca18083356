//! What is kept on disk of each guest beside its folder's own files: `guest.json`.
//!
//! Beside it in the folder: `qmp.sock` the monitor, `console.sock` the serial port, `qemu.log` QEMU's own words.
//! Owns the format and its versions. Knows no process and no QMP.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::EndCause;
use dunlin_model::vm::MachineType;
use dunlin_model::{Incarnation, Name, VmId};
use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use super::seats::Seats;

/// Files in a guest's folder that a new process makes anew.
pub(super) const STALE: &[&str] = &["qmp.sock", "console.sock", "qemu.log"];
/// Version of guest.json. A reader refuses a higher one and leaves that guest alone.
pub(super) const RECORD_VERSION: u32 = 1;

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
    /// The board it has.
    #[serde(default)]
    pub(super) machine: MachineType,
    /// Where its devices sit that can be taken away.
    #[serde(default)]
    pub(super) seats: Seats,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run_dir::{RecordError, RunDir, last_words};

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
            machine: MachineType::Q35,
            seats: Seats::default(),
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
        run.prepare(STALE).expect("prepare");
        assert_eq!(run.load::<Record>(RECORD_VERSION).expect("nothing begun"), None);
        run.store(&record(vm), true).expect("store");
        fs::write(run.file("guest.json.new"), b"{\"version\":1,").expect("torn write");
        assert_eq!(run.load::<Record>(RECORD_VERSION).expect("load"), Some(record(vm)));
        assert_eq!(RunDir::all(dir.path()).expect("list").len(), 1);
        let newer = Record { version: RECORD_VERSION + 1, ..record(vm) };
        run.store(&newer, false).expect("store");
        assert!(matches!(run.load::<Record>(RECORD_VERSION), Err(RecordError::Version { version: 2, .. })));
        run.remove().expect("remove");
        run.remove().expect("remove again");
        assert!(!run.file("").exists());
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
        run.prepare(STALE).expect("prepare");
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
