//! JSON Schemas of what serde reads and writes in a way of its own. Everything else derives them from its fields, so
//! that a field cannot be read and not be described.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::event::Event;
use crate::host::Host;
use crate::image::Image;
use crate::meta::NAME_MAX;
use crate::migration::Migration;
use crate::project::Project;
use crate::recommendation::Recommendation;
use crate::rights::{ApiToken, Binding, Role, User};
use crate::task::Task;
use crate::vm::{Mac, Vm};
use crate::{
    ClusterId, EventId, HostId, ImageId, Kind, Metadata, MigrationId, Name, RecommendationId, Resource,
    Secret, TaskId, Timestamp, VmId,
};

macro_rules! texts {
    ($($(#[$doc:meta])* $kind:ident { $($key:literal: $value:expr),* $(,)? })*) => {$(
        $(#[$doc])*
        impl JsonSchema for $kind {
            fn schema_name() -> Cow<'static, str> {
                stringify!($kind).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", $($key: $value),* })
            }
        }
    )*};
}

texts! {
    Name {
        "description": "Unique within the kind.",
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
        "maxLength": NAME_MAX,
    }
    Timestamp { "format": "date-time" }
    Secret { "description": "Kept, and never shown: reads as ********, and writing that back keeps it." }
    Mac { "pattern": "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$" }
}

macro_rules! uids {
    ($($kind:ident)*) => {$(
        impl JsonSchema for $kind {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($kind).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": "uuid" })
            }
        }
    )*};
}

uids!(ClusterId HostId VmId ImageId MigrationId TaskId EventId RecommendationId);

/// The same for every kind, whatever the type of its uid.
impl<Id> JsonSchema for Metadata<Id> {
    fn schema_name() -> Cow<'static, str> {
        "Metadata".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<Name>();
        let created = generator.subschema_for::<Timestamp>();
        json_schema!({
            "type": "object",
            "description": "The identity card of an object.",
            "properties": {
                "name": name,
                "uid": { "type": "string", "format": "uuid", "description": "Minted once, never reused." },
                "labels": {
                    "type": "object",
                    "description": "Marks for selectors.",
                    "additionalProperties": { "type": "string" },
                },
                "generation": { "type": "integer", "minimum": 0, "description": "Counts the changes of the spec." },
                "revision": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "The cluster's revision at this object's last write.",
                },
                "created": created,
            },
            "required": ["name", "uid", "generation", "revision", "created"],
        })
    }
}

/// `{metadata, spec, status}`; whoever knows the kind adds it.
impl<Id, Spec: JsonSchema, Status: JsonSchema> JsonSchema for Resource<Id, Spec, Status> {
    fn schema_name() -> Cow<'static, str> {
        let spec = Spec::schema_name();
        spec.strip_suffix("Spec").unwrap_or(&spec).to_owned().into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let metadata = generator.subschema_for::<Metadata<Id>>();
        let spec = generator.subschema_for::<Spec>();
        let status = generator.subschema_for::<Status>();
        let kind = Self::schema_name();
        json_schema!({
            "type": "object",
            "properties": {
                "kind": { "const": kind },
                "metadata": metadata,
                "spec": spec,
                "status": status,
            },
            "required": ["kind", "metadata", "spec", "status"],
        })
    }
}

/// The schema of an object of that kind, with the types it names under `$defs`.
#[must_use]
pub fn of(kind: Kind) -> &'static Value {
    static SCHEMAS: LazyLock<BTreeMap<Kind, Value>> =
        LazyLock::new(|| Kind::ALL.into_iter().map(|kind| (kind, make(kind).into())).collect());
    &SCHEMAS[&kind]
}

fn make(kind: Kind) -> Schema {
    match kind {
        Kind::Cluster => schema_for!(Cluster),
        Kind::Host => schema_for!(Host),
        Kind::Vm => schema_for!(Vm),
        Kind::Image => schema_for!(Image),
        Kind::Migration => schema_for!(Migration),
        Kind::Task => schema_for!(Task),
        Kind::Event => schema_for!(Event),
        Kind::Recommendation => schema_for!(Recommendation),
        Kind::User => schema_for!(User),
        Kind::Role => schema_for!(Role),
        Kind::Binding => schema_for!(Binding),
        Kind::Project => schema_for!(Project),
        Kind::ApiToken => schema_for!(ApiToken),
    }
}
