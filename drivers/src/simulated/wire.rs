//! The stream between two simulated hypervisors: a length, big-endian, and that many bytes of JSON; one way only.
//!
//! ```text
//! source: Hello{version, vm, ..}  Progress*  Switch{memory}
//! ```
//! The destination answers nothing, as QEMU does without a return path: the source counts the guest as sent when the
//! last byte is written.

use std::io;

use dunlin_model::{Incarnation, VmId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::record::Memory;

/// Version of the stream. The destination refuses any other.
pub(super) const WIRE_VERSION: u32 = 1;
/// Longest frame, bytes: every frame is a handful of numbers; more is not ours.
pub(super) const FRAME_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Frame {
    /// Who comes. `incarnation` is the source's; the destination's is higher.
    Hello { version: u32, vm: VmId, incarnation: Incarnation, mem_mib: u64 },
    /// Copied so far, bytes.
    Progress { memory_bytes: u64, disk_bytes: u64 },
    /// The rest: from here on the guest is whole at the destination.
    Switch { memory: Memory, powering_off: bool },
}

impl Frame {
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(body);
        Ok(bytes)
    }

    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let length = usize::try_from(stream.read_u32().await?).map_err(io::Error::other)?;
        if length > FRAME_MAX {
            let problem = format!("a frame of {length} bytes; at most {FRAME_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        Ok(serde_json::from_slice(&body)?)
    }
}
