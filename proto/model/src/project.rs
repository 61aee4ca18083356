//! Projects: whose a VM is, and how much all of theirs may take together.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::in_range;
use crate::{Invalid, Name, ProjectId, Resource};

/// One project.
pub type Project = Resource<ProjectId, ProjectSpec, ProjectStatus>;

/// What a VM belongs to when nobody says.
pub const DEFAULT_PROJECT: &str = "default";

/// The project of that name: where a VM belongs when nobody says.
#[must_use]
pub fn default_project() -> Name {
    DEFAULT_PROJECT.parse().expect("a word is a name")
}

/// Is it the project a VM belongs to when nobody says?
#[must_use]
pub fn is_default(project: &Name) -> bool {
    project.as_str() == DEFAULT_PROJECT
}

/// What a project may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Most of its VMs together.
    #[serde(default)]
    pub quota: Quota,
}

/// Most that the VMs of a project may take together, whether they run or not. What is not said is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u64>,
    /// vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// Memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<u64>,
    /// Disks made for them, MiB: empty ones as large as asked for, copies of images as large as the image's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_mib: Option<u64>,
}

/// What a project has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectStatus {
    /// What its VMs take now. Not kept in the object: filled in where it leaves the house.
    #[serde(default)]
    pub used: Used,
}

/// What VMs take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Used {
    /// VMs.
    pub vms: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// Memory, MiB.
    pub mem_mib: u64,
    /// Disks made for them, MiB.
    pub storage_mib: u64,
}

impl ProjectSpec {
    /// Refuses a description that is too long.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("spec.description (bytes)", self.description.len() as u64, 0..=1_024)
    }
}

impl Quota {
    /// The first bound that `used` is above: its name, what would be used, the bound.
    #[must_use]
    pub fn exceeded_by(&self, used: &Used) -> Option<(&'static str, u64, u64)> {
        let bounds = [
            ("vms", used.vms, self.vms),
            ("vcpus", used.vcpus, self.vcpus),
            ("mem_mib", used.mem_mib, self.mem_mib),
            ("storage_mib", used.storage_mib, self.storage_mib),
        ];
        bounds.into_iter().find_map(|(name, used, most)| {
            let most = most?;
            (used > most).then_some((name, used, most))
        })
    }
}
