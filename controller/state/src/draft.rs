//! One command's changes in the making. They are made in place; whoever refuses the command has them taken back.
//!
//! Owns what must hold however an object changes: revisions, name and host indexes, reservations, history, events.

use std::sync::Arc;

use dunlin_model::event::{About, Event, EventLevel, EventSpec, EventStatus};
use dunlin_model::host::Reserved;
use dunlin_model::meta::Metadata;
use dunlin_model::vm::VmPhase;
use dunlin_model::{
    ErrorCode, EventId, Generation, HostId, Kind, Labels, Name, Object, Resource, Revision, Timestamp,
};
use uuid::Uuid;

use crate::changes::Change;
use crate::reserve::{claim, hosts_of};
use crate::rights::RightsWrite;
use crate::{Rejected, State, Typed, Write, owners};

/// Events kept, over all objects; about the last hour of a busy fleet. Older ones fall out silently.
pub(crate) const EVENTS_MAX: usize = 4_096;

type Key = (Kind, Uuid);

pub(crate) struct Draft<'a> {
    pub(crate) state: &'a mut State,
    revision: Revision,
    /// Keys in the order they were first touched; the object as it last was, when it is removed.
    touched: Vec<(Key, Option<Arc<Object>>)>,
    events: Vec<EventSpec>,
    result: Option<(Kind, Uuid)>,
    /// Somebody applies a document: what changes is his.
    pub(crate) claiming: bool,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(state: &'a mut State) -> Self {
        let revision = state.revision.next();
        Self { state, revision, touched: Vec::new(), events: Vec::new(), result: None, claiming: false }
    }

    /// The time of the command.
    pub(crate) fn now(&self) -> Timestamp {
        self.state.time
    }

    /// A copy of an object to change and `put` back, or the refusal that there is none.
    pub(crate) fn take<T: Typed + Clone>(&mut self, id: T::Id) -> Result<T, Rejected> {
        self.result = Some((T::KIND, T::raw(id)));
        let found = self.state.get::<T>(id).cloned();
        found.ok_or_else(|| {
            let noun = T::KIND.to_string().to_ascii_lowercase();
            Rejected::new(ErrorCode::NotFound, format!("no {noun} has the uid {}", T::raw(id)))
        })
    }

    /// The identity card of a new object, or the refusal that its name or uid is taken.
    pub(crate) fn card<T: Typed, Id>(
        &mut self,
        uid: Id,
        raw: Uuid,
        name: &Name,
        labels: &Labels,
    ) -> Result<Metadata<Id>, Rejected> {
        self.result = Some((T::KIND, raw));
        let noun = T::KIND.to_string().to_ascii_lowercase();
        if self.state.names.contains_key(&(T::KIND, name.clone())) {
            let message = format!("a {noun} called {name} exists");
            return Err(Rejected::new(ErrorCode::AlreadyExists, message));
        }
        if let Some(other) = self.state.objects.get(&(T::KIND, raw)) {
            let message = format!("metadata.uid: {raw} is the uid of the {noun} {}", other.name());
            return Err(Rejected::new(ErrorCode::AlreadyExists, message));
        }
        Ok(Metadata {
            name: name.clone(),
            uid,
            labels: labels.clone(),
            generation: Generation(1),
            revision: self.revision,
            created: self.now(),
        })
    }

    /// Stores an object, unless it is as it was.
    pub(crate) fn put(&mut self, object: impl Into<Object>) {
        let mut object: Object = object.into();
        let key = (object.kind(), object.uid());
        if let Object::Vm(vm) = &mut object {
            crate::vm::tell_down(self.state, vm);
        }
        let old = self.state.objects.get(&key).cloned();
        if old.as_deref() == Some(&object) {
            return;
        }
        if let Some(old) = &old {
            owners::release(self, key, old, &object);
        }
        set_revision(&mut object, self.revision);
        let new = Arc::new(object);
        self.touch(key, None);
        self.state.objects.insert(key, Arc::clone(&new));
        self.reindex(old.as_deref(), Some(&new));
    }

    /// Stores an object under a new revision although it is as it was: something about it happened that is not in it.
    pub(crate) fn put_anew(&mut self, object: impl Into<Object>) {
        let mut object: Object = object.into();
        let key = (object.kind(), object.uid());
        set_revision(&mut object, self.revision);
        let old = self.state.objects.get(&key).cloned();
        let new = Arc::new(object);
        self.touch(key, None);
        self.state.objects.insert(key, Arc::clone(&new));
        self.reindex(old.as_deref(), Some(&new));
    }

    /// Removes an object, if it is there.
    pub(crate) fn remove(&mut self, kind: Kind, uid: Uuid) {
        if let Some(old) = self.state.objects.remove(&(kind, uid)) {
            self.reindex(Some(&old), None);
            self.state.owners.remove(&(kind, uid));
            self.touch((kind, uid), Some(old));
        }
    }

    /// Notes what happened. Stored only when the command changes something.
    pub(crate) fn event<Id: Copy, Spec, Status>(
        &mut self,
        level: EventLevel,
        reason: &str,
        object: &Resource<Id, Spec, Status>,
        message: impl Into<String>,
    ) where
        Resource<Id, Spec, Status>: Typed<Id = Id>,
    {
        let Metadata { name, uid, .. } = &object.metadata;
        let (kind, uid) = (Resource::<Id, Spec, Status>::KIND, Resource::<Id, Spec, Status>::raw(*uid));
        let about = About { kind, name: name.clone(), uid };
        self.events.push(EventSpec { level, reason: reason.to_owned(), message: message.into(), about });
    }

    /// The object that a write changes, where there is one already and its fields may belong to somebody.
    pub(crate) fn changed_by(&self, write: &Write) -> Option<Key> {
        match write {
            Write::UpdateVm { uid, .. } => Some((Kind::Vm, uid.0)),
            Write::UpdateHost { uid, .. } => Some((Kind::Host, uid.0)),
            Write::UpdateImage { uid, .. } => Some((Kind::Image, uid.0)),
            Write::UpdateCluster { .. } => {
                self.state.cluster().map(|cluster| (Kind::Cluster, cluster.metadata.uid.0))
            }
            Write::Rights(RightsWrite::Update { uid, spec, .. }) => Some((spec.kind(), *uid)),
            _ => None,
        }
    }

    /// The object the command is about, once that is known.
    pub(crate) fn about(&self) -> Option<Key> {
        self.result
    }

    /// Names the object the command answers with, where that is not the one taken last.
    pub(crate) fn answer(&mut self, kind: Kind, uid: Uuid) {
        self.result = Some((kind, uid));
    }

    /// Completes what nobody can refuse any more. Returns the object the command was about.
    pub(crate) fn commit(mut self) -> Option<Arc<Object>> {
        if !self.touched.is_empty() {
            self.state.revision = self.revision;
            self.store_events();
            for (key, removed) in &self.touched {
                let deleted = removed.is_some();
                let current = removed.as_ref().or_else(|| self.state.objects.get(key));
                if let Some(object) = current {
                    let change = Change { revision: self.revision, object: Arc::clone(object), deleted };
                    self.state.history.push(change);
                }
            }
        }
        self.result.and_then(|key| {
            let gone =
                self.touched.iter().find(|(at, _)| *at == key).and_then(|(_, removed)| removed.clone());
            self.state.objects.get(&key).cloned().or(gone)
        })
    }

    fn store_events(&mut self) {
        for (ordinal, spec) in (0..).zip(std::mem::take(&mut self.events)) {
            let uid = Uuid::from_u64_pair(self.state.index, ordinal);
            let name = format!("event-{}-{ordinal}", self.state.index);
            let metadata = Metadata {
                name: name.parse().expect("digits and dashes make a name"),
                uid: EventId(uid),
                labels: Labels::new(),
                generation: Generation(1),
                revision: self.revision,
                created: self.state.time,
            };
            self.put(Event { metadata, spec, status: EventStatus {} });
            self.state.event_count += 1;
        }
        // Events fall out unseen: nobody waits for the deletion of old news.
        while self.state.event_count > EVENTS_MAX {
            let oldest = self.state.objects_of(Kind::Event).next().cloned();
            let Some(oldest) = oldest else { return };
            self.state.objects.remove(&(Kind::Event, oldest.uid()));
            self.state.event_count -= 1;
            self.reindex(Some(&oldest), None);
        }
    }

    fn touch(&mut self, key: (Kind, Uuid), removed: Option<Arc<Object>>) {
        match self.touched.iter_mut().find(|(at, _)| *at == key) {
            Some((_, state)) => *state = removed,
            None => self.touched.push((key, removed)),
        }
    }

    fn reindex(&mut self, old: Option<&Object>, new: Option<&Object>) {
        if old.map(Object::name) != new.map(Object::name) {
            if let Some(old) = old {
                self.state.names.remove(&(old.kind(), old.name().clone()));
            }
            if let Some(new) = new {
                self.state.names.insert((new.kind(), new.name().clone()), new.uid());
            }
        }
        self.state.marks.follow(old, new);
        crate::quota::follow(self.state, old, new);
        if let Some(old) = old {
            self.index_hosts(old, false);
        }
        if let Some(new) = new {
            self.index_hosts(new, true);
        }
        let before = old.and_then(|object| claim(self.state, object));
        let after = new.and_then(|object| claim(self.state, object));
        if before != after {
            if let Some((host, size)) = before {
                self.reserve(host, size, false);
            }
            if let Some((host, size)) = after {
                self.reserve(host, size, true);
            }
        }
    }

    fn index_hosts(&mut self, object: &Object, add: bool) {
        for host in hosts_of(object) {
            match object {
                Object::Vm(vm) if add => self.state.by_host.insert((host, vm.metadata.uid)),
                Object::Vm(vm) => self.state.by_host.remove(&(host, vm.metadata.uid)),
                Object::Migration(m) if add => self.state.moves.insert((host, m.metadata.uid)),
                Object::Migration(m) => self.state.moves.remove(&(host, m.metadata.uid)),
                _ => {}
            }
        }
        if !is_active(object) {
            return;
        }
        let key = (object.kind(), object.uid());
        if add {
            self.state.active.insert(key);
        } else {
            self.state.active.remove(&key);
        }
    }

    fn reserve(&mut self, host: HostId, size: Reserved, add: bool) {
        let Some(mut host) = self.state.host(host).cloned() else { return };
        let reserved = &mut host.status.reserved;
        let change = |have: u64, size: u64| if add { have + size } else { have.saturating_sub(size) };
        reserved.cpus = change(reserved.cpus, size.cpus);
        reserved.mem_mib = change(reserved.mem_mib, size.mem_mib);
        reserved.vms = change(reserved.vms, size.vms);
        self.put(host);
    }
}

/// Is there something to be done about it, or to be seen of it?
pub(crate) fn is_active(object: &Object) -> bool {
    match object {
        Object::Vm(vm) => !matches!(vm.status.phase, VmPhase::Stopped | VmPhase::Saved | VmPhase::Failed),
        Object::Migration(m) => !m.status.phase.is_terminal(),
        Object::Task(task) => !task.status.phase.is_terminal(),
        _ => false,
    }
}

fn set_revision(object: &mut Object, revision: Revision) {
    match object {
        Object::Cluster(object) => object.metadata.revision = revision,
        Object::Host(object) => object.metadata.revision = revision,
        Object::Vm(object) => object.metadata.revision = revision,
        Object::Image(object) => object.metadata.revision = revision,
        Object::Migration(object) => object.metadata.revision = revision,
        Object::Task(object) => object.metadata.revision = revision,
        Object::Event(object) => object.metadata.revision = revision,
        Object::Recommendation(object) => object.metadata.revision = revision,
        Object::User(object) => object.metadata.revision = revision,
        Object::Role(object) => object.metadata.revision = revision,
        Object::Binding(object) => object.metadata.revision = revision,
        Object::Project(object) => object.metadata.revision = revision,
        Object::ApiToken(object) => object.metadata.revision = revision,
    }
}

/// Refuses a revision that is not the object's own, with the object as it is.
pub(crate) fn refuse_stale(object: impl Into<Object>, read: Revision) -> Result<(), Rejected> {
    let object = object.into();
    if object.revision() == read {
        return Ok(());
    }
    let (kind, name, is) = (object.kind(), object.name().clone(), object.revision());
    let noun = kind.to_string().to_ascii_lowercase();
    let message = format!("{noun} {name} was read at revision {read} and is at {is} now");
    Err(Rejected { code: ErrorCode::StaleRevision, message, current: Some(Box::new(object)) })
}
