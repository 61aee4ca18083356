//! The envelope of everything the store writes down: version, checksum, body.
//!
//! DECISION: records are protobuf messages in a versioned envelope; the commands inside are JSON. Both are
//! self-describing and tolerate unknown fields, so version N+1 reads what version N wrote, and a human can read a log
//! with stock tools. A positional format (postcard, bincode) would save about a third of the bytes, and would turn
//! every added field into a migration of a replicated log.

use dunlin_proto::v1 as wire;
use prost::Message;
use prost::bytes::Bytes;

use super::types::{
    DecodeError, Entry, LogId, Vote, entry_from_wire, entry_to_wire, log_id_from_wire, log_id_to_wire,
};
use super::types::{vote_from_wire, vote_to_wire};

/// The version this binary writes, and the highest it reads.
const VERSION: u32 = 1;

/// Wraps a body.
pub(super) fn seal(body: Bytes) -> Vec<u8> {
    wire::Record { version: VERSION, crc32: crc32fast::hash(&body), body }.encode_to_vec()
}

/// Checks an envelope and returns its body.
pub(super) fn unseal(record: Bytes) -> Result<Bytes, DecodeError> {
    let record = wire::Record::decode(record).map_err(DecodeError::Envelope)?;
    if record.version == 0 || record.version > VERSION {
        return Err(DecodeError::Version { found: record.version, known: VERSION });
    }
    if record.crc32 != crc32fast::hash(&record.body) {
        return Err(DecodeError::Checksum);
    }
    Ok(record.body)
}

pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    seal(entry_to_wire(entry).encode_to_vec().into())
}

pub(super) fn decode_entry(record: Vec<u8>) -> Result<Entry, DecodeError> {
    let body = unseal(record.into())?;
    entry_from_wire(wire::LogEntry::decode(body).map_err(DecodeError::Body)?)
}

pub(super) fn encode_log_id(id: &LogId) -> Vec<u8> {
    seal(log_id_to_wire(id).encode_to_vec().into())
}

pub(super) fn decode_log_id(record: Vec<u8>) -> Result<LogId, DecodeError> {
    let body = unseal(record.into())?;
    Ok(log_id_from_wire(wire::LogId::decode(body).map_err(DecodeError::Body)?))
}

pub(super) fn encode_vote(vote: &Vote) -> Vec<u8> {
    seal(vote_to_wire(vote).encode_to_vec().into())
}

pub(super) fn decode_vote(record: Vec<u8>) -> Result<Vote, DecodeError> {
    let body = unseal(record.into())?;
    Ok(vote_from_wire(wire::RaftVote::decode(body).map_err(DecodeError::Body)?))
}

pub(super) fn encode_marks(marks: &wire::StoreMarks) -> Vec<u8> {
    seal(marks.encode_to_vec().into())
}

pub(super) fn decode_marks(record: Vec<u8>) -> Result<wire::StoreMarks, DecodeError> {
    let body = unseal(record.into())?;
    wire::StoreMarks::decode(body).map_err(DecodeError::Body)
}

pub(super) fn encode_identity(identity: &wire::StoreIdentity) -> Vec<u8> {
    seal(identity.encode_to_vec().into())
}

pub(super) fn decode_identity(record: Vec<u8>) -> Result<wire::StoreIdentity, DecodeError> {
    let body = unseal(record.into())?;
    wire::StoreIdentity::decode(body).map_err(DecodeError::Body)
}
