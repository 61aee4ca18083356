//! The kinds of object, and any one of them.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::event::Event;
use crate::host::Host;
use crate::image::Image;
use crate::migration::Migration;
use crate::project::Project;
use crate::recommendation::Recommendation;
use crate::rights::{ApiToken, Binding, Role, User};
use crate::task::Task;
use crate::vm::Vm;
use crate::{Invalid, Labels, Name, Revision};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// The deployment itself; there is one.
    Cluster,
    /// A machine that runs guests.
    Host,
    /// A guest.
    Vm,
    /// A disk, kernel or initrd to start guests from.
    Image,
    /// A live migration, running or past.
    Migration,
    /// Long work or a one-shot act, running or past.
    Task,
    /// Something that happened.
    Event,
    /// A move that the balancer would make, for somebody to approve.
    Recommendation,
    /// A person or a program that may ask for something.
    User,
    /// What somebody may do.
    Role,
    /// Who may do it, and where.
    Binding,
    /// Whose VMs are, and how much they may take.
    Project,
    /// A token that speaks for a user.
    ApiToken,
}

impl Kind {
    /// Every kind, in the order the docs list them.
    pub const ALL: [Self; 13] = [
        Self::Cluster,
        Self::Host,
        Self::Vm,
        Self::Image,
        Self::Migration,
        Self::Task,
        Self::Event,
        Self::Recommendation,
        Self::User,
        Self::Role,
        Self::Binding,
        Self::Project,
        Self::ApiToken,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Kind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|kind| kind.to_string().eq_ignore_ascii_case(text)).ok_or_else(|| {
            Invalid::new(
                "kind",
                format!("{text:?} is not a kind"),
                "Cluster, Host, Vm, Image, Migration, Task, Event, Recommendation, User, Role, Binding, Project or ApiToken",
            )
        })
    }
}

/// Any object, as it reads in JSON and YAML: `{kind, metadata, spec, status}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[allow(clippy::large_enum_variant)] // Held behind an `Arc` wherever there are many.
pub enum Object {
    /// See [`Kind::Cluster`].
    Cluster(Cluster),
    /// See [`Kind::Host`].
    Host(Host),
    /// See [`Kind::Vm`].
    Vm(Vm),
    /// See [`Kind::Image`].
    Image(Image),
    /// See [`Kind::Migration`].
    Migration(Migration),
    /// See [`Kind::Task`].
    Task(Task),
    /// See [`Kind::Event`].
    Event(Event),
    /// See [`Kind::Recommendation`].
    Recommendation(Recommendation),
    /// See [`Kind::User`].
    User(User),
    /// See [`Kind::Role`].
    Role(Role),
    /// See [`Kind::Binding`].
    Binding(Binding),
    /// See [`Kind::Project`].
    Project(Project),
    /// See [`Kind::ApiToken`].
    ApiToken(ApiToken),
}

macro_rules! each {
    ($object:expr, $bound:ident => $value:expr) => {
        match $object {
            Object::Cluster($bound) => $value,
            Object::Host($bound) => $value,
            Object::Vm($bound) => $value,
            Object::Image($bound) => $value,
            Object::Migration($bound) => $value,
            Object::Task($bound) => $value,
            Object::Event($bound) => $value,
            Object::Recommendation($bound) => $value,
            Object::User($bound) => $value,
            Object::Role($bound) => $value,
            Object::Binding($bound) => $value,
            Object::Project($bound) => $value,
            Object::ApiToken($bound) => $value,
        }
    };
}

impl Object {
    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cluster(_) => Kind::Cluster,
            Self::Host(_) => Kind::Host,
            Self::Vm(_) => Kind::Vm,
            Self::Image(_) => Kind::Image,
            Self::Migration(_) => Kind::Migration,
            Self::Task(_) => Kind::Task,
            Self::Event(_) => Kind::Event,
            Self::Recommendation(_) => Kind::Recommendation,
            Self::User(_) => Kind::User,
            Self::Role(_) => Kind::Role,
            Self::Binding(_) => Kind::Binding,
            Self::Project(_) => Kind::Project,
            Self::ApiToken(_) => Kind::ApiToken,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        each!(self, object => &object.metadata.name)
    }

    /// Its uid, without its kind.
    #[must_use]
    pub fn uid(&self) -> Uuid {
        each!(self, object => object.metadata.uid.0)
    }

    /// Its labels.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        each!(self, object => &object.metadata.labels)
    }

    /// The cluster's revision at its last write.
    #[must_use]
    pub fn revision(&self) -> Revision {
        each!(self, object => object.metadata.revision)
    }

    /// What a user may write of it: `{metadata: {labels}, spec}`, as it reads in JSON, secrets included.
    #[must_use]
    pub fn intent(&self) -> Value {
        let spec = each!(self, object => serde_json::to_value(&object.spec));
        json!({
            "metadata": {"labels": self.labels()},
            "spec": spec.expect("specs have string keys"),
        })
    }

    /// Do both say the same of what a user may write?
    #[must_use]
    pub fn same_intent(&self, other: &Self) -> bool {
        let spec = match (self, other) {
            (Self::Cluster(a), Self::Cluster(b)) => a.spec == b.spec,
            (Self::Host(a), Self::Host(b)) => a.spec == b.spec,
            (Self::Vm(a), Self::Vm(b)) => a.spec == b.spec,
            (Self::Image(a), Self::Image(b)) => a.spec == b.spec,
            (Self::Migration(a), Self::Migration(b)) => a.spec == b.spec,
            (Self::Task(a), Self::Task(b)) => a.spec == b.spec,
            (Self::Event(a), Self::Event(b)) => a.spec == b.spec,
            (Self::Recommendation(a), Self::Recommendation(b)) => a.spec == b.spec,
            (Self::User(a), Self::User(b)) => a.spec == b.spec,
            (Self::Role(a), Self::Role(b)) => a.spec == b.spec,
            (Self::Binding(a), Self::Binding(b)) => a.spec == b.spec,
            (Self::Project(a), Self::Project(b)) => a.spec == b.spec,
            (Self::ApiToken(a), Self::ApiToken(b)) => a.spec == b.spec,
            _ => false,
        };
        spec && self.labels() == other.labels()
    }

    /// Takes out what nobody outside may see.
    pub fn redact(&mut self) {
        if let Self::Vm(vm) = self {
            vm.spec.redact();
        }
    }
}

macro_rules! from {
    ($($kind:ident)*) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(object)
            }
        }
    )*};
}

from!(Cluster Host Vm Image Migration Task Event Recommendation User Role Binding Project ApiToken);
