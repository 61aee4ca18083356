//! The consensus crate's type parameters, named once.
//!
//! DECISION: an entry's payload is an encoded [`wire::Pack`], bytes from the moment its proposer packed it until a
//! state machine applies it. The cache, the disk and every follower share those bytes; nothing is encoded twice, and
//! cloning an entry costs one reference count. Every controller, the proposer included, decodes before it applies, so
//! a command that does not survive its own encoding cannot make the leader differ from its followers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::{fmt, io};

use dunlin_model::ControllerId;
use dunlin_proto::v1 as wire;
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::Member;

openraft::declare_raft_types!(
    /// What the consensus crate is generic over.
    pub(super) Types:
        D = Pack,
        R = (),
        NodeId = u64,
        Node = Member,
        SnapshotData = SnapshotData,
);

pub(super) type Raft = openraft::Raft<Types>;
pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Membership = openraft::Membership<u64, Member>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, Member>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, Member>;
pub(super) type Snapshot = openraft::Snapshot<Types>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type RaftMetrics = openraft::RaftMetrics<u64, Member>;

/// The commands of one entry: an encoded [`wire::Pack`].
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pack {
    #[serde(skip)]
    pub(super) bytes: Bytes,
    /// Only in the proposing process: raised when the entry reaches the local log, from when on its fate is open.
    #[serde(skip)]
    appended: Option<Arc<AtomicBool>>,
}

impl Pack {
    pub(super) fn stored(bytes: Bytes) -> Self {
        Self { bytes, appended: None }
    }

    /// A pack of this process, and the flag that tells whether it ever reached the log.
    pub(super) fn proposed(bytes: Bytes) -> (Self, Arc<AtomicBool>) {
        let appended = Arc::new(AtomicBool::new(false));
        (Self { bytes, appended: Some(Arc::clone(&appended)) }, appended)
    }

    /// Was it proposed by this process?
    pub(super) fn is_own(&self) -> bool {
        self.appended.is_some()
    }

    pub(super) fn mark_appended(&self) {
        if let Some(appended) = &self.appended {
            appended.store(true, Ordering::SeqCst);
        }
    }
}

impl PartialEq for Pack {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pack({} bytes)", self.bytes.len())
    }
}

/// A snapshot file on its way out or in.
#[derive(Debug)]
pub(super) struct SnapshotData {
    pub(super) file: tokio::fs::File,
    /// Where it lies; set for a file that is being received, which its installer renames.
    pub(super) incoming: Option<std::path::PathBuf>,
}

impl AsyncRead for SnapshotData {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_read(cx, buf)
    }
}

impl AsyncWrite for SnapshotData {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.file).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
}

impl AsyncSeek for SnapshotData {
    fn start_seek(mut self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.file).start_seek(position)
    }
    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.file).poll_complete(cx)
    }
}

/// The members as the rest of the house names them.
pub(super) fn members(membership: &Membership) -> BTreeMap<ControllerId, Member> {
    membership.nodes().map(|(id, member)| (ControllerId(*id), member.clone())).collect()
}

/// What is wrong with a message or record that does not mean anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("it is not a record: {0}")]
    Envelope(prost::DecodeError),
    #[error("its version is {found}, and this binary knows {known}")]
    Version { found: u32, known: u32 },
    #[error("its checksum does not match")]
    Checksum,
    #[error("its body cannot be read: {0}")]
    Body(prost::DecodeError),
    #[error("it lacks {0}")]
    Missing(&'static str),
    #[error("its membership cannot be read: {0}")]
    Membership(String),
}

pub(super) fn log_id_to_wire(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
}

pub(super) fn log_id_from_wire(id: wire::LogId) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(id.term, id.leader), id.index)
}

pub(super) fn vote_to_wire(vote: &Vote) -> wire::RaftVote {
    wire::RaftVote { term: vote.leader_id.term, candidate: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn vote_from_wire(vote: wire::RaftVote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.candidate)
    } else {
        Vote::new(vote.term, vote.candidate)
    }
}

pub(super) fn entry_to_wire(entry: &Entry) -> wire::LogEntry {
    use wire::log_entry::Payload;
    let payload = match &entry.payload {
        openraft::EntryPayload::Blank => Payload::Blank(true),
        openraft::EntryPayload::Normal(pack) => Payload::Pack(pack.bytes.clone()),
        openraft::EntryPayload::Membership(membership) => {
            Payload::Membership(membership_to_json(membership).into())
        }
    };
    wire::LogEntry { id: Some(log_id_to_wire(&entry.log_id)), payload: Some(payload) }
}

pub(super) fn entry_from_wire(entry: wire::LogEntry) -> Result<Entry, DecodeError> {
    use wire::log_entry::Payload;
    let log_id = log_id_from_wire(entry.id.ok_or(DecodeError::Missing("its log id"))?);
    let payload = match entry.payload.ok_or(DecodeError::Missing("a payload this binary knows"))? {
        Payload::Blank(_) => openraft::EntryPayload::Blank,
        Payload::Pack(bytes) => openraft::EntryPayload::Normal(Pack::stored(bytes)),
        Payload::Membership(json) => openraft::EntryPayload::Membership(membership_from_json(&json)?),
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn meta_to_wire(meta: &SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        last_log: meta.last_log_id.as_ref().map(log_id_to_wire),
        membership_log: meta.last_membership.log_id().as_ref().map(log_id_to_wire),
        membership: membership_to_json(meta.last_membership.membership()),
        snapshot_id: meta.snapshot_id.clone(),
    }
}

pub(super) fn meta_from_wire(meta: wire::SnapshotMeta) -> Result<SnapshotMeta, DecodeError> {
    let membership = membership_from_json(&meta.membership)?;
    Ok(SnapshotMeta {
        last_log_id: meta.last_log.map(log_id_from_wire),
        last_membership: StoredMembership::new(meta.membership_log.map(log_id_from_wire), membership),
        snapshot_id: meta.snapshot_id,
    })
}

fn membership_to_json(membership: &Membership) -> Vec<u8> {
    serde_json::to_vec(membership)
        .expect("a membership is sets and maps with number keys, which JSON can write")
}

fn membership_from_json(json: &[u8]) -> Result<Membership, DecodeError> {
    serde_json::from_slice(json).map_err(|e| DecodeError::Membership(e.to_string()))
}
