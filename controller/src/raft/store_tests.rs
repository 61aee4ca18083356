//! The log engines against one contract, the log store against the consensus crate's own suite, and stores that were
//! damaged on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dunlin_model::ControllerId;
use openraft::storage::RaftStateMachine;
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftSnapshotBuilder, StorageIOError};
use tempfile::TempDir;
use tokio::sync::watch;

use super::demo_tests::{Demo, Put, copy, free_address, until};
use super::engine::{LogEngine, MetaKey, Numbered};
use super::log_store::LogStore;
use super::sled_engine::SledEngine;
use super::snapshot::SnapshotDir;
use super::state_machine::{Applier, Pending};
use super::types::{Entry, LogId, Pack, StorageError, Types};
use super::witness::Seen;
use super::{Config, Member, OpenError, Replica, SnapshotPolicy, StoreError, log_check, record};

/// The simplest thing that keeps the contract, for as long as it lives.
#[derive(Default)]
struct MemoryEngine {
    log: Mutex<BTreeMap<u64, Vec<u8>>>,
    meta: Mutex<BTreeMap<MetaKey, Vec<u8>>>,
}

impl MemoryEngine {
    fn log(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.log.lock().unwrap()
    }
}

impl LogEngine for MemoryEngine {
    fn append(&self, records: &[Numbered]) -> Result<(), StoreError> {
        self.log().extend(records.iter().cloned());
        Ok(())
    }
    fn read(&self, range: std::ops::Range<u64>, max_bytes: usize) -> Result<Vec<Numbered>, StoreError> {
        let mut bytes = 0;
        let log = self.log();
        let fits = log.range(range).take_while(|(_, record)| {
            let had = bytes;
            bytes += record.len();
            had < max_bytes
        });
        Ok(fits.map(|(number, record)| (*number, record.clone())).collect())
    }
    fn bounds(&self) -> Result<Option<(u64, u64)>, StoreError> {
        let log = self.log();
        Ok(log.first_key_value().zip(log.last_key_value()).map(|((first, _), (last, _))| (*first, *last)))
    }
    fn truncate_from(&self, first: u64) -> Result<(), StoreError> {
        self.log().split_off(&first);
        Ok(())
    }
    fn purge_to(&self, last: u64, limit: u64) -> Result<bool, StoreError> {
        let mut log = self.log();
        let gone: Vec<u64> =
            log.range(..=last).map(|(number, _)| *number).take(usize::try_from(limit).unwrap()).collect();
        gone.iter().for_each(|number| drop(log.remove(number)));
        Ok(log.range(..=last).next().is_some())
    }
    fn put(&self, key: MetaKey, value: &[u8]) -> Result<(), StoreError> {
        self.meta.lock().unwrap().insert(key, value.to_vec());
        Ok(())
    }
    fn get(&self, key: MetaKey) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.meta.lock().unwrap().get(&key).cloned())
    }
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The contract of an engine. `reopen` gives it back as a restart would.
fn conformance(mut engine: Box<dyn LogEngine>, reopen: impl Fn(Box<dyn LogEngine>) -> Box<dyn LogEngine>) {
    let numbers = |engine: &dyn LogEngine| -> Vec<u64> {
        engine.read(0..u64::MAX, usize::MAX).unwrap().into_iter().map(|(number, _)| number).collect()
    };
    let record = |number: u64, length: usize| (number, vec![u8::try_from(number % 251).unwrap(); length]);
    assert_eq!(engine.bounds().unwrap(), None);
    assert!(engine.read(0..9, 1).unwrap().is_empty());
    assert_eq!(engine.get(MetaKey::Vote).unwrap(), None);
    engine.truncate_from(0).unwrap();
    assert!(!engine.purge_to(9, 9).unwrap());

    // Records of every size come back whole, in the order of their numbers, also across byte borders.
    let sizes = [0, 1, 60 << 10, (60 << 10) + 1, 200_000, 1 << 20, 3];
    let records: Vec<_> = (253..).zip(sizes).map(|(number, size)| record(number, size)).collect();
    engine.append(&records).unwrap();
    engine.put(MetaKey::Vote, b"first").unwrap();
    engine.put(MetaKey::Vote, b"second").unwrap();
    engine.sync().unwrap();
    for _ in 0..2 {
        assert_eq!(engine.read(0..u64::MAX, usize::MAX).unwrap(), records);
        assert_eq!(engine.bounds().unwrap(), Some((253, 259)));
        assert_eq!(engine.read(256..258, usize::MAX).unwrap(), records[3..5]);
        assert_eq!(engine.read(257..260, 1).unwrap(), records[4..5], "one record, however large");
        assert_eq!(engine.get(MetaKey::Vote).unwrap().as_deref(), Some(&b"second"[..]));
        engine = reopen(engine);
    }
    // Overwriting, cutting off the end, cutting off the beginning in slices.
    engine.truncate_from(258).unwrap();
    engine.append(&[record(258, 70_000), record(259, 5)]).unwrap();
    assert_eq!(engine.read(258..260, usize::MAX).unwrap(), [record(258, 70_000), record(259, 5)]);
    engine.truncate_from(259).unwrap();
    assert!(engine.purge_to(256, 3).unwrap());
    assert_eq!(numbers(&*engine), [256, 257, 258]);
    assert!(!engine.purge_to(256, 3).unwrap());
    engine.sync().unwrap();
    engine = reopen(engine);
    assert_eq!(numbers(&*engine), [257, 258]);
    engine.purge_to(1_000, 1_000).unwrap();
    assert_eq!(engine.bounds().unwrap(), None);
}

/// Every engine keeps the contract.
#[test]
fn engines_conform() {
    conformance(Box::new(MemoryEngine::default()), |engine| engine);
    let dir = TempDir::new().unwrap();
    let open = || -> Box<dyn LogEngine> { Box::new(SledEngine::open(dir.path()).unwrap()) };
    conformance(open(), |engine| {
        drop(engine);
        // What a crash in the middle of sled's own snapshot leaves must not matter.
        fs::write(dir.path().join("snap.00000000000000FF.generating"), b"half").unwrap();
        open()
    });
}

type Stores = (LogStore, Applier<Demo>);

fn stores(dir: &Path, engine: Arc<dyn LogEngine>) -> Stores {
    let pending = Arc::new(Pending::new(1, 1));
    let cluster = watch::Sender::new(String::new()).subscribe();
    let snapshots = SnapshotDir::open(dir.join("snapshot")).unwrap();
    let applier = Applier::open(Demo::default(), snapshots, pending, cluster).unwrap();
    let (log, _closed) = LogStore::open(engine, dir, 1, applier.last_applied()).unwrap();
    (log, applier)
}

struct OnSled;
struct InMemory;

impl StoreBuilder<Types, LogStore, Applier<Demo>, TempDir> for OnSled {
    async fn build(&self) -> Result<(TempDir, LogStore, Applier<Demo>), StorageError> {
        let dir = TempDir::new().map_err(|e| StorageError::from(StorageIOError::write(&e)))?;
        let (log, applier) = stores(dir.path(), Arc::new(SledEngine::open(&dir.path().join("log")).unwrap()));
        Ok((dir, log, applier))
    }
}

impl StoreBuilder<Types, LogStore, Applier<Demo>, TempDir> for InMemory {
    async fn build(&self) -> Result<(TempDir, LogStore, Applier<Demo>), StorageError> {
        let dir = TempDir::new().map_err(|e| StorageError::from(StorageIOError::write(&e)))?;
        let (log, applier) = stores(dir.path(), Arc::new(MemoryEngine::default()));
        Ok((dir, log, applier))
    }
}

/// The log store and the state machine keep the consensus crate's contract.
#[test]
fn the_upstream_suite_passes_in_memory() {
    Suite::test_all(InMemory).unwrap();
}

/// ... and so they do on disk.
#[test]
fn the_upstream_suite_passes_on_sled() {
    Suite::test_all(OnSled).unwrap();
}

/// Whoever asks for the snapshot gets one, also while it is replaced: a controller that cannot read it stops.
#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_is_there_while_it_is_replaced() {
    let dir = TempDir::new().unwrap();
    let (_log, mut applier) = stores(dir.path(), Arc::new(MemoryEngine::default()));
    let mut builders = Vec::new();
    for _ in 0..200 {
        builders.push(applier.get_snapshot_builder().await);
    }
    builders.pop().unwrap().build_snapshot().await.unwrap();
    let builds = tokio::spawn(async move {
        for mut builder in builders {
            builder.build_snapshot().await.unwrap();
        }
    });
    let mut seen = BTreeSet::new();
    while !builds.is_finished() {
        seen.insert(applier.get_current_snapshot().await.unwrap().unwrap().meta.snapshot_id);
    }
    builds.await.unwrap();
    assert!(seen.len() > 20, "the reads fell between the builds: {}", seen.len());
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

/// A log of ten entries as the writer leaves it: all marked, up to 8 committed.
fn ten_entries() -> MemoryEngine {
    let engine = MemoryEngine::default();
    for index in 0..10 {
        let payload = EntryPayload::Normal(Pack::stored(format!("entry {index}").into_bytes().into()));
        let entry = Entry { log_id: id(1, index), payload };
        engine.append(&[(index, record::encode_entry(&entry))]).unwrap();
    }
    mark(&engine, 10);
    engine
}

fn mark(engine: &MemoryEngine, log_end: u64) {
    let committed = Some(super::types::log_id_to_wire(&id(1, 8)));
    let marks = dunlin_proto::v1::StoreMarks { log_end, committed };
    engine.put(MetaKey::Marks, &record::encode_marks(&marks)).unwrap();
}

/// A torn end that nobody was told about is cut off; every other contradiction is refused by name.
#[test]
fn a_damaged_log_is_refused() {
    let check = |engine: &MemoryEngine, applied| {
        log_check::check(engine, Path::new("/data"), applied, Seen::default())
    };
    let refused = |engine: &MemoryEngine, applied, expected: &str| match check(engine, applied) {
        Err(StoreError::Damaged { what, .. }) => assert!(what.contains(expected), "{what}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused: {expected}"),
    };
    let flip = |engine: &MemoryEngine, index: u64| {
        let mut log = engine.log();
        let record = log.get_mut(&index).unwrap();
        *record.last_mut().unwrap() ^= 1;
    };

    let engine = ten_entries();
    let sound = check(&engine, None).unwrap();
    assert_eq!((sound.entries.len(), sound.log_end, sound.committed), (10, 10, Some(id(1, 8))));

    // The last entry was being written: not marked, so not acknowledged.
    mark(&engine, 9);
    flip(&engine, 9);
    assert_eq!(check(&engine, None).unwrap().log_end, 9);
    assert_eq!(engine.bounds().unwrap(), Some((0, 8)), "the torn entry is gone for good");
    // The same wound on an entry that was acknowledged.
    let engine = ten_entries();
    flip(&engine, 9);
    refused(&engine, None, "entry 9 is unreadable: its checksum");
    let engine = ten_entries();
    flip(&engine, 3);
    refused(&engine, None, "entry 3 is unreadable");

    let engine = ten_entries();
    engine.log().remove(&4);
    refused(&engine, None, "entries 4 to 4 are missing");
    let engine = ten_entries();
    engine.truncate_from(7).unwrap();
    refused(&engine, None, "the log ends at 7, but was written up to 10");
    let engine = ten_entries();
    let swapped = engine.log()[&5].clone();
    engine.append(&[(6, swapped)]).unwrap();
    refused(&engine, None, "entry 6 says it is entry 5");
    let engine = ten_entries();
    engine.put(MetaKey::Vote, b"garbage").unwrap();
    refused(&engine, None, "its vote is unreadable");

    // An engine that went back to an older state is consistent in itself; only the witness knows better.
    let engine = ten_entries();
    let seen =
        |log_end, term| log_check::check(&engine, Path::new("/data"), None, Seen { log_end, term }).map(drop);
    assert!(seen(10, 0).is_ok());
    assert!(seen(11, 0).unwrap_err().to_string().contains("the log ends at 10, but was written up to 11"));
    assert!(seen(10, 3).unwrap_err().to_string().contains("but it has voted in term 3"));

    // Purged entries need a snapshot, and may still be lying about.
    let engine = ten_entries();
    engine.put(MetaKey::Purged, &record::encode_log_id(&id(1, 4))).unwrap();
    refused(&engine, None, "purged up to 4, but there is no snapshot");
    refused(&engine, Some(id(1, 3)), "purged up to 4, but the snapshot ends at 3");
    let sound = check(&engine, Some(id(1, 4))).unwrap();
    assert_eq!((sound.entries.len(), sound.log_end), (5, 10));
    // A snapshot that was just installed may lie ahead of the log, and of what was committed here.
    assert!(check(&engine, Some(id(2, 50))).is_ok());
}

/// A store with a snapshot and some log behind it, closed.
async fn used_store(dir: &Path) -> Config {
    let mut config = Config::new(ControllerId(1), dir, free_address());
    config.snapshots = SnapshotPolicy { every_entries: 20, every_bytes: 1 << 20, keep_entries: 2 };
    let replica = Replica::open(config.clone(), Demo::default()).await.unwrap();
    let member = Member { raft: config.listen.to_string(), api: String::new() };
    replica.init(&BTreeMap::from([(config.id, member)])).await.unwrap();
    until("a leader", async || replica.leadership().borrow().is_me.then_some(())).await;
    for i in 0..60 {
        replica.propose(&Put::new(format!("k{i}"), "v")).await.unwrap();
    }
    until("a purge", async || {
        replica.snapshot().await;
        replica.metrics().purged.filter(|purged| *purged > 20)
    })
    .await;
    replica.shutdown().await;
    config
}

async fn refusal(config: &Config) -> String {
    match Replica::open(config.clone(), Demo::default()).await {
        Err(OpenError::Store(StoreError::Damaged { what, .. })) => what,
        Err(other) => panic!("{}", super::state_machine::error_chain(&other)),
        Ok(_) => panic!("it was not refused"),
    }
}

/// A real store whose files were garbled, emptied or removed does not start, and says what is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let config = used_store(dir.path()).await;
    let mut files = fs::read_dir(dir.path().join("snapshot")).unwrap().map(|item| item.unwrap().path());
    let snapshot = files.find(|path| path.extension().is_some_and(|end| end == "snap")).unwrap();
    let good = fs::read(&snapshot).unwrap();

    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&snapshot, &bad).unwrap();
    assert!(refusal(&config).await.contains("its checksum does not match"));
    fs::write(&snapshot, &good[..good.len() - 1]).unwrap();
    assert!(refusal(&config).await.contains("its length is not what it says"));
    fs::remove_file(&snapshot).unwrap();
    assert!(refusal(&config).await.contains("but there is no snapshot"));
    // Half a snapshot under a temporary name is nothing.
    fs::write(&snapshot, &good).unwrap();
    // (Its number is none that a build which the closing cut off may have had.)
    fs::write(dir.path().join("snapshot/70000.tmp"), &bad).unwrap();
    let risen = Replica::open(config.clone(), Demo::default()).await.unwrap();
    assert_eq!(
        until("all of it", async || Some(risen.read()).filter(|view| view.index == 60)).await.map.len(),
        60
    );
    risen.shutdown().await;
    assert!(!dir.path().join("snapshot/70000.tmp").exists());

    fs::remove_dir_all(dir.path().join("log")).unwrap();
    assert!(refusal(&config).await.contains("but the store is empty"));
}

/// Wherever its database is garbled, a store is refused or has everything that was acknowledged: it never comes up
/// with less.
#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_database_never_forgets() {
    let dir = TempDir::new().unwrap();
    let used = used_store(&dir.path().join("used")).await;
    let length = fs::metadata(used.data_dir.join("log/db")).unwrap().len();
    let (mut refused, mut whole) = (0, 0);
    for block in 0..=24 {
        let mut config = used.clone();
        config.data_dir = dir.path().join(block.to_string());
        copy(&used.data_dir, &config.data_dir);
        let file = OpenOptions::new().write(true).open(config.data_dir.join("log/db")).unwrap();
        if block < 24 {
            file.write_all_at(&[0xA5; 2048], length * block / 24).unwrap();
        }
        match Replica::open(config, Demo::default()).await {
            Err(_) => refused += 1,
            Ok(risen) => {
                let all = until("everything or the end", async || {
                    let stopped = tokio::time::timeout(Duration::ZERO, risen.stopped()).await.is_ok();
                    (stopped || risen.read().index == 60).then(|| risen.read().index == 60)
                });
                if all.await {
                    whole += 1;
                } else {
                    refused += 1;
                }
                risen.shutdown().await;
            }
        }
    }
    println!("{refused} refused, {whole} whole, of {length} bytes");
    // The last copy was left alone.
    assert!(refused > 0 && whole > 0, "{refused} refused, {whole} whole");
}

/// The envelope refuses what is not whole and what is newer, by name.
#[test]
fn records_are_checked() {
    let whole = record::seal(b"body".to_vec().into());
    assert_eq!(&record::unseal(whole.clone().into()).unwrap()[..], b"body");
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(record::unseal(flipped.into()).unwrap_err().to_string(), "its checksum does not match");
    let newer =
        dunlin_proto::v1::Record { version: 2, crc32: crc32fast::hash(b"x"), body: b"x".to_vec().into() };
    let newer = prost::Message::encode_to_vec(&newer);
    assert_eq!(
        record::unseal(newer.into()).unwrap_err().to_string(),
        "its version is 2, and this binary knows 1"
    );
    assert!(record::unseal(whole[..whole.len() - 1].to_vec().into()).is_err());
}
