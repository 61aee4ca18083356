//! The objects, the indexes over them, and what else must be remembered. Reading only; `draft` writes.

use std::ops::Bound;
use std::sync::Arc;

use dunlin_model::cluster::Cluster;
use dunlin_model::event::Event;
use dunlin_model::host::Host;
use dunlin_model::image::Image;
use dunlin_model::migration::Migration;
use dunlin_model::project::{Project, Used};
use dunlin_model::recommendation::Recommendation;
use dunlin_model::rights::{ApiToken, Binding, Role, User};
use dunlin_model::task::Task;
use dunlin_model::vm::Vm;
use dunlin_model::{
    ApiTokenId, BindingId, ClusterId, EventId, HostId, ImageId, Incarnation, Kind, Level, MigrationId, Name,
    Object, ProjectId, RecommendationId, Revision, RoleId, Secret, TaskId, Timestamp, UserId, VmId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::changes::History;
use crate::keys::Answers;
use crate::owners::Owners;
use crate::rules::Marks;
use crate::token::Token;
use crate::tracked::{Tracked, TrackedSet, TrackedWhole, Undo};
use crate::trust::Trust;

/// Every object of the fleet. Cloning is O(1) and gives a snapshot that never changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(crate) index: u64,
    pub(crate) time: Timestamp,
    pub(crate) revision: Revision,
    pub(crate) objects: Tracked<(Kind, Uuid), Arc<Object>>,
    pub(crate) names: Tracked<(Kind, Name), Uuid>,
    /// VMs by each host that has to do with them: bound, with disks or with saved memory there.
    pub(crate) by_host: TrackedSet<(HostId, VmId)>,
    /// Migrations that are not over, by each host that takes part.
    pub(crate) moves: TrackedSet<(HostId, MigrationId)>,
    /// Migrations and tasks that are not over, and VMs that are not at rest.
    pub(crate) active: TrackedSet<(Kind, Uuid)>,
    /// VMs by the labels they carry and by those they keep away from.
    pub(crate) marks: Marks,
    /// Events among the objects.
    pub(crate) event_count: usize,
    pub(crate) fences: Tracked<VmId, Fence>,
    pub(crate) orders: Tracked<TaskId, OrderFor>,
    pub(crate) tokens: Tracked<String, Token>,
    pub(crate) trust: TrackedWhole<Trust>,
    /// Whose the fields of an object are, by who applied them.
    pub(crate) owners: Tracked<(Kind, Uuid), Owners>,
    /// Hashes of users' passwords, in PHC form.
    pub(crate) passwords: Tracked<UserId, Secret>,
    /// Users' tokens by their SHA-256, hex.
    pub(crate) bearers: Tracked<Secret, ApiTokenId>,
    /// What each project's VMs take together; none is kept for a project without VMs.
    pub(crate) usage: Tracked<Name, Used>,
    pub(crate) answers: Answers,
    pub(crate) history: History,
}

/// The incarnations of one VM that are not in its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The highest number any process of it was ever promised. Each start, each destination and each hand-back takes
    /// the next one, so that no two processes ever carry the same, not even those of migrations called off.
    pub highest: Incarnation,
    /// The incarnation that the source of its last migration runs, or ran.
    pub source: Incarnation,
}

/// The process a one-shot act was ordered for: it is done to no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderFor {
    /// Which VM.
    pub vm: VmId,
    /// On this host.
    pub host: HostId,
    /// In this incarnation.
    pub incarnation: Incarnation,
}

/// A kind of object, as a type.
pub trait Typed: Sized + 'static {
    /// Which kind.
    const KIND: Kind;
    /// Its uid's type.
    type Id: Copy;
    /// The object, when it is of this kind.
    fn of(object: &Object) -> Option<&Self>;
    /// The uid without its type.
    fn raw(id: Self::Id) -> Uuid;
}

macro_rules! typed {
    ($($kind:ident $id:ident $get:ident $named:ident $all:ident;)*) => {
        $(impl Typed for $kind {
            const KIND: Kind = Kind::$kind;
            type Id = $id;
            fn of(object: &Object) -> Option<&Self> {
                match object { Object::$kind(object) => Some(object), _ => None }
            }
            fn raw(id: $id) -> Uuid {
                id.0
            }
        })*

        impl State {
            $(
                #[doc = concat!("The ", stringify!($kind), " of that uid.")]
                #[must_use]
                pub fn $get(&self, id: $id) -> Option<&$kind> {
                    self.get::<$kind>(id)
                }

                #[doc = concat!("The ", stringify!($kind), " of that name.")]
                #[must_use]
                pub fn $named(&self, name: &Name) -> Option<&$kind> {
                    self.named::<$kind>(name)
                }

                #[doc = concat!("Every ", stringify!($kind), ", by uid.")]
                pub fn $all(&self) -> impl DoubleEndedIterator<Item = &$kind> {
                    self.all::<$kind>()
                }
            )*
        }
    };
}

typed! {
    Host HostId host host_named hosts;
    Vm VmId vm vm_named vms;
    Image ImageId image image_named images;
    Migration MigrationId migration migration_named migrations;
    Task TaskId task task_named tasks;
    Event EventId event event_named events;
    Recommendation RecommendationId recommendation recommendation_named recommendations;
    User UserId user user_named users;
    Role RoleId role role_named roles;
    Binding BindingId binding binding_named bindings;
    Project ProjectId project project_named projects;
    ApiToken ApiTokenId api_token api_token_named api_tokens;
}

impl Typed for Cluster {
    const KIND: Kind = Kind::Cluster;
    type Id = ClusterId;
    fn of(object: &Object) -> Option<&Self> {
        match object {
            Object::Cluster(object) => Some(object),
            _ => None,
        }
    }
    fn raw(id: ClusterId) -> Uuid {
        id.0
    }
}

fn whole(kind: Kind) -> std::ops::RangeInclusive<(Kind, Uuid)> {
    (kind, Uuid::nil())..=(kind, Uuid::max())
}

impl State {
    /// An empty fleet, before the first command.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The cluster's revision: counts the commands that changed something.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Log index of the last command applied.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// The cluster's time: the highest stamp applied.
    #[must_use]
    pub const fn time(&self) -> Timestamp {
        self.time
    }

    /// The cluster object. None before `FoundCluster`.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.all::<Cluster>().next()
    }

    /// What may be written.
    #[must_use]
    pub fn level(&self) -> Level {
        self.cluster().map(|cluster| cluster.status.level).unwrap_or_default()
    }

    /// The object of that kind and uid, shared.
    #[must_use]
    pub fn object(&self, kind: Kind, uid: Uuid) -> Option<&Arc<Object>> {
        self.objects.get(&(kind, uid))
    }

    /// The object of that kind and name, shared.
    #[must_use]
    pub fn object_named(&self, kind: Kind, name: &Name) -> Option<&Arc<Object>> {
        let uid = self.names.get(&(kind, name.clone()))?;
        self.object(kind, *uid)
    }

    /// Every object of a kind whose name sorts after that one, in the order of names.
    pub fn objects_by_name(&self, kind: Kind, after: Option<&Name>) -> impl Iterator<Item = &Arc<Object>> {
        // No name sorts before the digit.
        let first = || "0".parse().expect("a digit is a name");
        let from = after
            .map_or_else(|| Bound::Included((kind, first())), |name| Bound::Excluded((kind, name.clone())));
        let named = self.names.range((from, Bound::Unbounded)).take_while(move |((at, _), _)| *at == kind);
        named.filter_map(move |(_, uid)| self.object(kind, *uid))
    }

    /// Every object of a kind, in the order of uids; events in the order they happened.
    pub fn objects_of(&self, kind: Kind) -> impl DoubleEndedIterator<Item = &Arc<Object>> {
        self.objects.range(whole(kind)).map(|(_, object)| object)
    }

    /// The object of that type and uid.
    #[must_use]
    pub fn get<T: Typed>(&self, id: T::Id) -> Option<&T> {
        T::of(self.objects.get(&(T::KIND, T::raw(id)))?)
    }

    /// The object of that type and name.
    #[must_use]
    pub fn named<T: Typed>(&self, name: &Name) -> Option<&T> {
        T::of(self.object_named(T::KIND, name)?)
    }

    /// Every object of that type, by uid.
    pub fn all<T: Typed>(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.objects.range(whole(T::KIND)).filter_map(|(_, object)| T::of(object))
    }

    /// VMs bound to a host: those it may run.
    pub fn host_vms(&self, host: HostId) -> impl Iterator<Item = &Vm> {
        self.vms_touching(host).filter(move |vm| vm.status.host == Some(host))
    }

    /// VMs that have to do with a host: bound to it, or with disks or saved memory there.
    pub fn vms_touching(&self, host: HostId) -> impl Iterator<Item = &Vm> {
        let range = (host, VmId(Uuid::nil()))..=(host, VmId(Uuid::max()));
        self.by_host.range(range).filter_map(|(_, vm)| self.vm(*vm))
    }

    /// Migrations that are not over and in which a host takes part.
    pub fn host_migrations(&self, host: HostId) -> impl Iterator<Item = &Migration> {
        let range = (host, MigrationId(Uuid::nil()))..=(host, MigrationId(Uuid::max()));
        self.moves.range(range).filter_map(|(_, id)| self.migration(*id))
    }

    /// VMs of which something is to be done or seen: all but those that are Stopped, Saved or Failed.
    pub fn active_vms(&self) -> impl Iterator<Item = &Vm> {
        self.active.range(whole(Kind::Vm)).filter_map(|(_, uid)| self.vm(VmId(*uid)))
    }

    /// Migrations that are not over.
    pub fn active_migrations(&self) -> impl Iterator<Item = &Migration> {
        self.active.range(whole(Kind::Migration)).filter_map(|(_, uid)| self.migration(MigrationId(*uid)))
    }

    /// Tasks that are not over.
    pub fn active_tasks(&self) -> impl Iterator<Item = &Task> {
        self.active.range(whole(Kind::Task)).filter_map(|(_, uid)| self.task(TaskId(*uid)))
    }

    /// The migration a VM is in, when it is in one.
    #[must_use]
    pub fn migration_of(&self, vm: &Vm) -> Option<&Migration> {
        self.migration(vm.status.migration?)
    }

    /// The incarnations of a VM that are not in its status.
    #[must_use]
    pub fn fence(&self, vm: VmId) -> Fence {
        self.fences.get(&vm).copied().unwrap_or_default()
    }

    /// The process a task's act was ordered for. None for a Drain and for a task that is over.
    #[must_use]
    pub fn order_of(&self, task: TaskId) -> Option<OrderFor> {
        self.orders.get(&task).copied()
    }

    /// From here on, what a command does can be taken back.
    pub(crate) fn begin(&mut self) {
        self.each_tracked(|tracked| tracked.begin());
    }

    /// What it did stands.
    pub(crate) fn keep(&mut self) {
        self.each_tracked(|tracked| tracked.keep());
    }

    /// What it did is undone.
    pub(crate) fn take_back(&mut self) {
        self.each_tracked(|tracked| tracked.take_back());
    }

    fn each_tracked(&mut self, act: fn(&mut dyn Undo)) {
        let Self { objects, names, by_host, moves, active, marks, .. } = self;
        let Self { fences, orders, trust, tokens, owners, passwords, bearers, usage, .. } = self;
        let [carried, avoided] = marks.tracked();
        let all: [&mut dyn Undo; 15] = [
            objects, names, by_host, moves, active, carried, avoided, fences, orders, trust, tokens, owners,
            passwords, bearers, usage,
        ];
        all.into_iter().for_each(act);
    }
}
