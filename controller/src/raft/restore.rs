//! Makes the store of a cluster's first controller out of a state that was saved before.
//!
//! The result is what a controller that has taken a snapshot and purged its log would have: a snapshot, an identity and
//! no log. Its one voter is the controller it is made for; others are added as to any cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use dunlin_model::{ClusterId, Timestamp};
use dunlin_proto::v1 as wire;

use super::engine::LogEngine;
use super::identity::Identity;
use super::sled_engine::SledEngine;
use super::snapshot::SnapshotDir;
use super::types::{LogId, Membership, SnapshotMeta, StoredMembership, meta_to_wire};
use super::{Config, Machine, Member, StoreError};

/// The term of the restored entry: a new cluster's first election takes the next one.
const TERM: u64 = 1;

/// Fills `config.data_dir`, which must not exist or be empty, with `machine` as it was after the command number `index`
/// at `time`. Blocks.
pub fn restore<M: Machine>(
    config: &Config,
    cluster: ClusterId,
    member: Member,
    machine: &M,
    index: u64,
    time: Timestamp,
) -> Result<(), StoreError> {
    let dir = &config.data_dir;
    let io_error = |act, source: io::Error| StoreError::Io { act, path: dir.clone(), source };
    std::fs::create_dir_all(dir).map_err(|source| io_error("create", source))?;
    let mut entries = std::fs::read_dir(dir).map_err(|source| io_error("list", source))?;
    if entries.next().is_some() {
        let full = io::Error::new(io::ErrorKind::AlreadyExists, "it is not empty");
        return Err(io_error("restore into", full));
    }
    let last = LogId::new(openraft::CommittedLeaderId::new(TERM, config.id.0), index);
    let voters = vec![BTreeSet::from([config.id.0])];
    let nodes = BTreeMap::from([(config.id.0, member)]);
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), Membership::new(voters, nodes)),
        snapshot_id: format!("restored-{index}"),
    };
    let head = wire::SnapshotHead {
        cluster_id: cluster.to_string(),
        meta: Some(meta_to_wire(&meta)),
        applied_commands: index,
        time_ms: time.0,
    };
    let snapshots = SnapshotDir::open(dir.join("snapshot"))?;
    let file = snapshots.write(&head, |out| machine.encode(out))?;
    snapshots.publish(&file, &head)?;
    // Last of all: without an identity the folder is no store, and the restore is simply done again.
    let engine: Arc<dyn LogEngine> = Arc::new(SledEngine::open(&dir.join("log"))?);
    Identity::open(&*engine, &Config { cluster: Some(cluster), ..config.clone() })?;
    Ok(())
}
