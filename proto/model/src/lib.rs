//! The vocabulary of Dunlin: what the fleet is made of and what may be asked of it.
//!
//! Owns ids, units, specs, statuses, capabilities, the contract between controllers and agents, and the table of
//! public errors. Validated and pure: no I/O, no clock, no async, and no generated protocol type.
//!
//! Every object reads as `{kind, metadata, spec, status}`: the spec is what somebody asked for, the status what the
//! fleet reports. Start at [`Object`], then [`Vm`](vm::Vm) and [`fleet`](desired) for what a host is told.

pub mod advice;
pub mod capabilities;
pub mod cluster;
pub mod code;
pub mod decision;
pub mod desired;
pub mod event;
pub mod fields;
pub mod host;
pub mod id;
pub mod identity;
pub mod image;
pub mod invalid;
pub mod level;
pub mod merge;
pub mod meta;
pub mod migration;
pub mod object;
pub mod observed;
pub mod project;
pub mod recommendation;
pub mod rights;
pub mod schema;
pub mod selector;
pub mod task;
#[cfg(test)]
mod tests;
pub mod vm;

pub use code::ErrorCode;
pub use id::{
    ApiTokenId, BindingId, ClusterId, ControllerId, EventId, Generation, HostId, ImageId, Incarnation,
    MigrationId, ProjectId, RecommendationId, Revision, RoleId, TaskId, UserId, VmId,
};
pub use identity::{Identity, Role};
pub use invalid::Invalid;
pub use level::Level;
pub use meta::{Labels, Metadata, Name, Resource, Secret, Timestamp};
pub use object::{Kind, Object};
