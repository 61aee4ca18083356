//! What `up` decided, kept in the fleet's folder so that a second `up` and `down` decide the same.

use std::path::Path;

use dunlin_model::capabilities::DriverName;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Layout of the record.
pub(super) const VERSION: u32 = 1;
/// The file within the fleet's folder.
const FILE: &str = "fleet.json";

/// The shape of a local fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetRecord {
    pub(super) version: u32,
    pub(super) controllers: u8,
    pub(super) hosts: u8,
    pub(super) port: u16,
    pub(super) namespaces: bool,
    pub(super) subnet: String,
    /// Tells the interfaces of this fleet from those of others.
    pub(super) tag: String,
    pub(super) drivers: Vec<DriverName>,
}

impl FleetRecord {
    /// The record in `dir`, when there is one.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Failure::Io { what: format!("reading {}", path.display()), source }),
        };
        let record: Self = serde_json::from_slice(&text)
            .map_err(|e| Failure::Local(format!("{} is not a fleet's record: {e}", path.display())))?;
        if record.version != VERSION {
            return Err(Failure::Local(format!("{} was written by another version", path.display())));
        }
        Ok(Some(record))
    }

    /// Writes it into `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).expect("a struct of plain fields is JSON");
        std::fs::write(dir.join(FILE), text)
            .map_err(Failure::io(format!("writing {}", dir.join(FILE).display())))
    }

    /// Where controller `id` listens for clients and agents.
    pub(super) fn api_address(&self, id: u8) -> String {
        format!("{}:{}", self.controller_host(), self.port + u16::from(id - 1) * 2)
    }

    /// Where controller `id` listens for the other controllers.
    pub(super) fn raft_address(&self, id: u8) -> String {
        format!("{}:{}", self.controller_host(), self.port + u16::from(id - 1) * 2 + 1)
    }

    /// The address of a host.
    pub(super) fn host_address(&self, number: u8) -> String {
        if self.namespaces { format!("{}.{number}", self.subnet) } else { format!("127.0.0.{}", 10 + number) }
    }

    /// The machine's own address on the bridge.
    pub(super) fn controller_host(&self) -> String {
        if self.namespaces { format!("{}.254", self.subnet) } else { "127.0.0.1".to_owned() }
    }

    /// Name of a host's network namespace.
    pub(super) fn namespace(&self, number: u8) -> String {
        format!("dunlin-{}-{number}", self.tag)
    }

    /// Name of the bridge between them.
    pub(super) fn bridge(&self) -> String {
        format!("dl{}", self.tag)
    }
}

/// Six hex digits of the folder's path (FNV-1a), short enough for an interface's name.
pub(super) fn tag(dir: &Path) -> String {
    let fold = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = dir.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5, fold);
    format!("{:06x}", hash & 0x00ff_ffff)
}
