//! What a guest is told at its first boot, in cloud-init's words.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::in_range;
use crate::{Invalid, Name, Secret};

/// Most user data, bytes: what clouds take and more, and little beside the log it goes through.
pub const USER_DATA_MAX: usize = 64 << 10;
/// Most network configuration, bytes.
pub const NETWORK_CONFIG_MAX: usize = 16 << 10;
/// Name of the disk that carries it, which no other disk of the VM may have then.
pub const SEED_DISK: &str = "cidata";

/// How user data may begin: the formats that cloud-init knows (its documentation, "User data formats").
const BEGINNINGS: [&str; 3] = ["#", "Content-Type:", "MIME-Version:"];

/// Handed to the guest on a small read-only disk labelled `cidata`: cloud-init's data source NoCloud. The instance is the VM's
/// uid and the host name its name. What changed is there at the next start; cloud-init itself acts on most of it once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    /// A cloud-config or a script, at most 64 KiB. It may hold passwords: never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Secret>,
    /// Network configuration, version 1 or 2, at most 16 KiB; empty: the guest's own default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network_config: String,
}

impl CloudInit {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        in_range("network_config (bytes)", self.network_config.len() as u64, 0..=NETWORK_CONFIG_MAX as u64)?;
        let Some(data) = self.user_data.as_ref().map(Secret::expose) else { return Ok(()) };
        if data == Secret::REDACTED {
            return Ok(());
        }
        in_range("user_data (bytes)", data.len() as u64, 1..=USER_DATA_MAX as u64)?;
        if BEGINNINGS.iter().any(|beginning| data.starts_with(beginning)) {
            return Ok(());
        }
        let problem = "begins with nothing that cloud-init knows";
        Err(Invalid::new("user_data", problem, "#cloud-config, a script with #!, or a MIME document"))
    }

    /// May it have a disk of that name beside its seed?
    pub(super) fn allows(&self, disk: &Name) -> bool {
        disk.as_str() != SEED_DISK
    }
}
