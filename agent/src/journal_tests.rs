use std::fs;

use dunlin_model::desired::Role;
use dunlin_model::vm::{Power, VmSpec};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::files::ThisMachine;

struct Kept {
    dir: TempDir,
}

impl Kept {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn open(&self) -> Result<(Journal, Vec<Record>), JournalError> {
        Journal::open(
            self.dir.path().join("vms"),
            Arc::new(ThisMachine),
            DirLock::take(self.dir.path()).unwrap(),
        )
    }

    fn file(&self, vm: VmId) -> PathBuf {
        self.dir.path().join("vms").join(format!("{vm}.json"))
    }
}

fn full(vm: u128, incarnation: u64) -> Record {
    let vm = VmId(Uuid::from_u128(vm));
    let name: Name = "web-1".parse().unwrap();
    let incarnation = Incarnation(incarnation);
    let role = Role::Run { power: Power::Running, restore_from: None, received: true };
    let spec = VmSpec::new(512);
    let assignment =
        Assignment { vm, name: name.clone(), incarnation, continues: None, spec, role, built: None };
    let migration = MigrationId(Uuid::from_u128(9));
    let act = ActRecord {
        act: Act::Save,
        incarnation,
        begun_ms: 1,
        pressed_ms: 0,
        reboots: 0,
        ended: Some((TaskPhase::Succeeded, "saved".to_owned())),
    };
    Record {
        told: incarnation,
        generation: Revision(7),
        assignment: Some(assignment),
        started: Some(Started { incarnation, receiving: Some(migration), up: true }),
        ran: Some(incarnation),
        sending: Some(Sending { migration, begun: true, failed: None }),
        volumes: BTreeMap::from([(name.clone(), "/volumes/vda".into())]),
        taps: BTreeSet::from(["tap0".to_owned()]),
        saved: Some(Saved { file: "/saves/1".into(), size_bytes: 3, incarnation, built: None }),
        acts: BTreeMap::from([(TaskId(Uuid::from_u128(8)), act)]),
        ..Record::new(vm, name)
    }
}

/// A crash at any byte of a write leaves the old record; a record that is cut or changed anywhere afterwards is an
/// error that names its file, never another record and never none.
#[test]
fn torn_at_every_byte() {
    let kept = Kept::new();
    let (old, new) = (full(1, 4), full(1, 5));
    kept.open().unwrap().0.write(&new).unwrap();
    let bytes = fs::read(kept.file(new.vm)).unwrap();
    assert_eq!(kept.open().unwrap().1, std::slice::from_ref(&new));

    kept.open().unwrap().0.write(&old).unwrap();
    for cut in 0..bytes.len() {
        // The crash while the new content is written beside the old.
        fs::write(durable::half_made(&kept.file(old.vm)), &bytes[..cut]).unwrap();
        assert_eq!(kept.open().unwrap().1, std::slice::from_ref(&old), "cut at {cut}");
    }
    for cut in 0..bytes.len() {
        fs::write(kept.file(new.vm), &bytes[..cut]).unwrap();
        let refusal = kept.open().unwrap_err().to_string();
        assert!(
            refusal.contains(&new.vm.to_string()) && refusal.contains("damaged"),
            "cut at {cut}: {refusal}"
        );
    }
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x04;
        fs::write(kept.file(new.vm), &flipped).unwrap();
        match kept.open() {
            // Only a space between tokens could change without a trace, and there is none.
            Ok(_) => panic!("a flipped bit at {at} was not noticed"),
            Err(JournalError::Damaged { .. } | JournalError::Version { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

/// A record under another VM's name, or of a newer agent, is refused.
#[test]
fn strangers() {
    let kept = Kept::new();
    let record = full(1, 4);
    let other = VmId(Uuid::from_u128(2));
    kept.open().unwrap().0.write(&record).unwrap();
    fs::copy(kept.file(record.vm), kept.file(other)).unwrap();
    assert!(kept.open().unwrap_err().to_string().contains("it is the record of"));
    let newer =
        fs::read_to_string(kept.file(record.vm)).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    fs::write(kept.file(other), newer).unwrap();
    assert!(matches!(kept.open().unwrap_err(), JournalError::Version { found: 2, .. }));
}

/// Of VMs that have left only the newest tombstones stay, and no VM that is here is ever dropped for them.
#[test]
fn tombstones_are_bounded() {
    let kept = Kept::new();
    let (journal, mut records) = kept.open().unwrap();
    let here = Record { generation: Revision(1), ..full(99, 4) };
    records.push(here.clone());
    for vm in 0..8_u64 {
        let mut record = full(vm.into(), 4);
        record.bury();
        assert!(record.is_tombstone());
        assert_eq!(record.told, Incarnation(4));
        record.generation = Revision(1000 + vm);
        records.push(record);
    }
    records.iter().for_each(|record| journal.write(record).unwrap());
    journal.thin(&mut records, 5).unwrap();
    drop(journal);
    let (_, kept) = kept.open().unwrap();
    assert_eq!(kept.len(), 6);
    assert!(kept.contains(&here));
    assert_eq!(kept.iter().filter(|r| r.is_tombstone()).map(|r| r.generation).min(), Some(Revision(1003)));
}
