//! A move that the balancer would make, for somebody to approve.
//!
//! ```text
//! Open -> Approved (its migration follows) | Dismissed | Expired (the fleet has changed)
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::Grounds;
use crate::{HostId, MigrationId, Name, RecommendationId, Resource, Timestamp, VmId};

/// One recommendation.
pub type Recommendation = Resource<RecommendationId, RecommendationSpec, RecommendationStatus>;

/// What is recommended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecommendationSpec {
    /// The VM to move.
    pub vm: VmId,
    /// Its name.
    pub vm_name: Name,
    /// The host it is on.
    pub from: HostId,
    /// Its name.
    pub from_name: Name,
    /// The host it should be on.
    pub to: HostId,
    /// Its name.
    pub to_name: Name,
    /// Moves of one wave may run at once; those of a later one want the earlier done. From 1.
    pub wave: u32,
    /// Why.
    pub grounds: Grounds,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecommendationStatus {
    /// See the picture in the module docs.
    pub phase: RecommendationPhase,
    /// Since when.
    pub since: Timestamp,
    /// The migration that came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
    /// Why it is so, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// See the picture in the module docs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RecommendationPhase {
    /// Waits for somebody.
    #[default]
    Open,
    /// Somebody approved it.
    Approved,
    /// Somebody dismissed it; the same move is not recommended again for a while.
    Dismissed,
    /// The fleet has changed so that it is no longer worth while.
    Expired,
}

impl RecommendationPhase {
    /// Is it over?
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Open)
    }
}

impl std::fmt::Display for RecommendationPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Open => "Open",
            Self::Approved => "Approved",
            Self::Dismissed => "Dismissed",
            Self::Expired => "Expired",
        })
    }
}
