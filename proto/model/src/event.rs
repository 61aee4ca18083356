//! Something that happened, in order, for people and for watchers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{EventId, Kind, Name, Resource};

/// One event. Its `metadata.revision` orders it among all.
pub type Event = Resource<EventId, EventSpec, EventStatus>;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventSpec {
    /// Normal news, or something to look at.
    pub level: EventLevel,
    /// One word for machines: `VmScheduled`, `MigrationDone`.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    /// The object it is about.
    pub about: About,
}

/// The object an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct About {
    /// Its kind.
    pub kind: Kind,
    /// Its name at that time.
    pub name: Name,
    /// Its uid.
    pub uid: Uuid,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// As planned.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An event only happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventStatus {}
