//! Objects: metadata, spec and status, and any one of the kinds.

use dunlin_model as model;
use dunlin_model::meta::validate_labels;
use dunlin_model::{Invalid, Metadata, Resource};
use model::cluster::{Cluster, ClusterSpec, ClusterStatus};
use model::event::{Event, EventSpec, EventStatus};
use model::host::{Host, HostSpec, HostStatus};
use model::image::{Image, ImageSpec, ImageStatus};
use model::migration::{Migration, MigrationSpec, MigrationStatus};
use model::project::{Project, ProjectSpec, ProjectStatus};
use model::recommendation::{Recommendation, RecommendationSpec, RecommendationStatus};
use model::rights::{
    ApiToken, ApiTokenSpec, ApiTokenStatus, Binding, BindingSpec, BindingStatus, Role as RightsRole,
    RoleSpec, RoleStatus, User, UserSpec, UserStatus,
};
use model::task::{Task, TaskSpec, TaskStatus};
use model::vm::{Vm, VmSpec, VmStatus};
use uuid::Uuid;

use super::{Wire, missing, read, refuse};
use crate::v1;

choices!(Kind {
    Cluster,
    Host,
    Vm,
    Image,
    Migration,
    Task,
    Event,
    Recommendation,
    User,
    Role,
    Binding,
    Project,
    ApiToken
});

oneofs!(Object in object {
    Cluster "cluster" (object),
    Host "host" (object),
    Vm "vm" (object),
    Image "image" (object),
    Migration "migration" (object),
    Task "task" (object),
    Event "event" (object),
    Recommendation "recommendation" (object),
    User "user" (object),
    Role "role" (object),
    Binding "binding" (object),
    Project "project" (object),
    ApiToken "api_token" (object),
});

impl<Id: Wire<String>> Wire<Option<v1::Metadata>> for Metadata<Id> {
    fn to_wire(self) -> Option<v1::Metadata> {
        let Self { name, uid, labels, generation, revision, created } = self;
        Some(v1::Metadata {
            name: name.to_wire(),
            uid: uid.to_wire(),
            labels,
            generation: generation.to_wire(),
            revision: revision.to_wire(),
            created_ms: created.to_wire(),
        })
    }

    fn from_wire(wire: Option<v1::Metadata>) -> Result<Self, Invalid> {
        let wire = wire.ok_or_else(missing)?;
        // An object that is yet to be created has no uid; whoever creates it mints one in place of the nil one.
        let uid = if wire.uid.is_empty() { Uuid::nil().to_string() } else { wire.uid };
        Ok(Self {
            name: read(wire.name, "name")?,
            uid: read(uid, "uid")?,
            labels: wire.labels,
            generation: read(wire.generation, "generation")?,
            revision: read(wire.revision, "revision")?,
            created: read(wire.created_ms, "created_ms")?,
        })
    }
}

macro_rules! objects {
    ($($object:ident $spec:ident $status:ident $check:expr;)*) => {$(
        impl From<$object> for v1::$object {
            fn from(object: $object) -> Self {
                let Resource { metadata, spec, status } = object;
                Self { metadata: metadata.to_wire(), spec: spec.to_wire(), status: status.to_wire() }
            }
        }

        impl TryFrom<v1::$object> for $object {
            type Error = Invalid;

            fn try_from(wire: v1::$object) -> Result<Self, Invalid> {
                let metadata = Metadata::from_wire(wire.metadata).map_err(|e| e.under("metadata"))?;
                let spec: $spec = read(wire.spec, "spec")?;
                let status: $status = read(wire.status, "status")?;
                validate_labels(&metadata.labels)?;
                let check: fn(&$spec) -> Result<(), Invalid> = $check;
                check(&spec)?;
                Ok(Self { metadata, spec, status })
            }
        }

        impl Wire<v1::$object> for $object {
            fn to_wire(self) -> v1::$object {
                self.into()
            }

            // The kind is no part of the path: an object's fields are named as in YAML.
            fn from_wire(wire: v1::$object) -> Result<Self, Invalid> {
                wire.try_into()
            }
        }
    )*};
}

objects! {
    Cluster ClusterSpec ClusterStatus ClusterSpec::validate;
    Host HostSpec HostStatus HostSpec::validate;
    Vm VmSpec VmStatus VmSpec::validate;
    Image ImageSpec ImageStatus ImageSpec::validate;
    Migration MigrationSpec MigrationStatus |spec| spec.limits.validate();
    Task TaskSpec TaskStatus |_| Ok(());
    Event EventSpec EventStatus |_| Ok(());
    Recommendation RecommendationSpec RecommendationStatus |_| Ok(());
    User UserSpec UserStatus UserSpec::validate;
    RightsRole RoleSpec RoleStatus RoleSpec::validate;
    Binding BindingSpec BindingStatus BindingSpec::validate;
    Project ProjectSpec ProjectStatus ProjectSpec::validate;
    ApiToken ApiTokenSpec ApiTokenStatus ApiTokenSpec::validate;
}
