//! What a process was built with, where that is not what its VM's spec asks for any more.
//!
//! A spec may change while its VM runs. Disks and NICs follow at once where the driver and the guest let them; vCPUs,
//! memory and the rest wait for the next process. Until then the running machine is known by this: a migration and a
//! restore have to build the very same one again.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Disk, Nic, VmSpec};
use crate::invalid::in_range;
use crate::{Invalid, Name};

/// Longest layout, bytes: a driver's own word on some forty devices.
pub const LAYOUT_MAX: usize = 4096;
/// Longest note, bytes: a sentence for each device that cannot follow.
pub const NOTE_MAX: usize = 4096;

/// The machine as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Built {
    /// vCPUs it has.
    pub cpus: u32,
    /// Memory it has, MiB.
    pub mem_mib: u64,
    /// Disks it has; the order is that in which they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Its network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Where its devices sit, in its driver's own words; empty when they sit where a fresh start would put them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layout: String,
    /// Why it does not follow its spec, as far as it was tried.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Built {
    /// What a process started from this spec is built with.
    #[must_use]
    pub fn of(spec: &VmSpec) -> Self {
        Self {
            cpus: spec.cpus,
            mem_mib: spec.mem_mib,
            disks: spec.disks.clone(),
            nics: spec.nics.clone(),
            ..Self::default()
        }
    }

    /// The spec of this very machine.
    #[must_use]
    pub fn onto(&self, spec: &VmSpec) -> VmSpec {
        VmSpec {
            cpus: self.cpus,
            mem_mib: self.mem_mib,
            disks: self.disks.clone(),
            nics: self.nics.clone(),
            ..spec.clone()
        }
    }

    /// The fields in which it is not what the spec asks for, by their paths below `spec`. The order of disks counts only
    /// for a boot.
    #[must_use]
    pub fn pending(&self, spec: &VmSpec) -> Vec<String> {
        let mut fields = Vec::new();
        if self.cpus != spec.cpus {
            fields.push("cpus".to_owned());
        }
        if self.mem_mib != spec.mem_mib {
            fields.push("mem_mib".to_owned());
        }
        let named = |disks: &[Disk]| -> BTreeMap<Name, Disk> {
            disks.iter().map(|disk| (disk.name.clone(), disk.clone())).collect()
        };
        let (has, asked) = (named(&self.disks), named(&spec.disks));
        let changed = has.iter().filter(|(name, disk)| asked.get(*name) != Some(*disk)).map(|(name, _)| name);
        let fresh = asked.keys().filter(|name| !has.contains_key(*name));
        fields.extend(changed.chain(fresh).map(|name| format!("disks[{name}]")));
        let most = self.nics.len().max(spec.nics.len());
        let differs = |index: &usize| self.nics.get(*index) != spec.nics.get(*index);
        fields.extend((0..most).filter(differs).map(|index| format!("nics[{index}]")));
        fields
    }

    /// Refuses what no driver says.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("layout (bytes)", self.layout.len() as u64, 0..=LAYOUT_MAX as u64)?;
        in_range("note (bytes)", self.note.len() as u64, 0..=NOTE_MAX as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{DiskSource, NicNetwork};

    fn disk(name: &str) -> Disk {
        Disk {
            name: name.parse().unwrap(),
            bus: Default::default(),
            format: Default::default(),
            source: DiskSource::EmptyMib(8),
            shared: false,
            read_only: false,
        }
    }

    /// Every difference is named by its path, an equal machine has none, and laid upon its spec the machine comes back.
    #[test]
    fn differences_are_named() {
        let mut spec = VmSpec::new(128);
        spec.disks = vec![disk("vda"), disk("vdb")];
        spec.nics = vec![Nic { mac: None, model: Default::default(), network: NicNetwork::User }];
        let built = Built::of(&spec);
        assert!(built.pending(&spec).is_empty());
        let mut asked = spec.clone();
        asked.disks.reverse();
        assert!(built.pending(&asked).is_empty(), "the order counts only for a boot");
        (asked.cpus, asked.mem_mib) = (2, 256);
        asked.disks = vec![disk("vda"), disk("vdc")];
        asked.disks[0].read_only = true;
        asked.nics.clear();
        let pending = built.pending(&asked);
        assert_eq!(pending, ["cpus", "mem_mib", "disks[vda]", "disks[vdb]", "disks[vdc]", "nics[0]"]);
        assert_eq!(built.onto(&asked), VmSpec { ..spec });
        let long = Built { layout: "x".repeat(LAYOUT_MAX + 1), ..built };
        assert!(long.validate().is_err());
    }
}
