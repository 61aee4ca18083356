//! Watch: every change after a revision, in order.
//!
//! A watch keeps no queue of its own: it reads the state's ring of changes at the pace of its client. One that falls so
//! far behind that its place in the ring is gone is cut, with the same `compacted` as a client that comes too late.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::selector::{FieldSelector, LabelSelector};
use dunlin_model::{ErrorCode, Invalid, Kind, Name, Object, Revision};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::changes::Compacted;
use dunlin_state::{Change, State};
use futures_util::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::call::Call;
use super::carry;
use super::reads::{json, reader, show};
use super::streams;
use crate::fleet::View;
use crate::metrics;
use crate::node::Node;
use crate::rights::{self, Caller};

/// Changes taken from the ring at once, except that those of one revision stay together.
const BATCH: usize = 256;
/// How often a watch that has nothing to tell says how far it has come: well within the time the ring holds.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

fn matches(object: &Object, labels: &LabelSelector, fields: &FieldSelector) -> bool {
    labels.matches(object.labels()) && (fields.is_any() || fields.matches(&json(object)))
}

/// A selector over fields is about the fields of one kind.
fn fields(kinds: &[Kind], text: &str) -> Result<FieldSelector, Invalid> {
    match kinds {
        [kind] => FieldSelector::parse(*kind, text),
        _ if text.is_empty() => FieldSelector::parse(Kind::Vm, ""),
        _ => Err(Invalid::new("field_selector", "is over more than one kind", "with exactly one in kinds")),
    }
}

struct Watching {
    node: Arc<Node>,
    caller: Arc<Caller>,
    kinds: BTreeSet<Kind>,
    name: Option<Name>,
    labels: LabelSelector,
    fields: FieldSelector,
    /// With a selector: what the client has been told of and was not told to forget, and whatever matched when it began.
    shown: BTreeSet<Uuid>,
    /// What changed before the watch began may have matched until then.
    began: Revision,
    /// Everything up to here was told or did not match.
    cursor: Revision,
    queue: VecDeque<v1::WatchEvent>,
    views: watch::Receiver<View>,
    bookmark_at: Instant,
    ended: bool,
    _place: streams::Place,
}

/// Begins a watch.
pub(super) async fn watch(
    node: Arc<Node>,
    call: &Call,
    place: streams::Place,
    request: v1::WatchRequest,
) -> Result<impl Stream<Item = Result<v1::WatchEvent, Fault>> + Send + 'static, Fault> {
    let kinds: Vec<Kind> = read(request.kinds, "kinds")?;
    let labels = LabelSelector::parse(&request.label_selector)?;
    let fields = fields(&kinds, &request.field_selector)?;
    let name = if request.name.is_empty() { None } else { Some(request.name.parse()?) };
    let mut view = node.replica.read();
    match kinds.as_slice() {
        [] => drop(rights::grants(&node, &call.caller, &view)?),
        kinds => kinds.iter().try_for_each(|kind| reader(&node, &call.caller, &view, *kind, "").map(drop))?,
    }
    let mut cursor = Revision(request.after_revision);
    if cursor > view.revision() {
        // This controller may be behind the one that named the revision.
        view = carry::view(&node, call, v1::Consistency::Linearizable).await?;
    }
    if cursor > view.revision() {
        let problem = format!("{cursor} is ahead of the cluster");
        let allowed = format!("0 to {}", view.revision());
        return Err(Invalid::new("after_revision", problem, allowed).into());
    }
    if cursor == Revision(0) {
        cursor = view.oldest_revision();
    }
    view.changes_after(cursor).map(drop).map_err(|e| compacted(&e))?;
    let views = node.replica.watch();
    let begun = view.revision();
    let any = labels.is_any() && fields.is_any();
    let every = if kinds.is_empty() { Kind::ALL.to_vec() } else { kinds.clone() };
    let objects = every.into_iter().filter(|_| !any).flat_map(|kind| view.objects_of(kind));
    let shown =
        objects.filter(|object| matches(object, &labels, &fields)).map(|object| object.uid()).collect();
    let watching = Watching {
        node,
        labels,
        fields,
        shown,
        began: begun,
        caller: Arc::clone(&call.caller),
        kinds: kinds.into_iter().collect(),
        name,
        cursor,
        queue: VecDeque::new(),
        views,
        bookmark_at: Instant::now() + BOOKMARK_EVERY,
        ended: false,
        _place: place,
    };
    Ok(futures_util::stream::unfold(watching, Watching::next))
}

impl Watching {
    async fn next(mut self) -> Option<(Result<v1::WatchEvent, Fault>, Self)> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                metrics::WATCH_EVENTS.inc();
                self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            if let Err(fault) = self.take_in() {
                return self.end(fault);
            }
            if !self.queue.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.views.changed() => if changed.is_err() {
                    return self.end(stopping());
                },
                () = tokio::time::sleep_until(self.bookmark_at) => {
                    self.queue.push_back(bookmark(self.cursor));
                }
                () = self.node.closing.clone().cancelled_owned() => return self.end(stopping()),
            }
        }
    }

    fn end(mut self, fault: Fault) -> Option<(Result<v1::WatchEvent, Fault>, Self)> {
        self.ended = true;
        Some((Err(fault), self))
    }

    /// Moves the next matching changes into the queue.
    fn take_in(&mut self) -> Result<(), Fault> {
        let view = self.views.borrow_and_update().clone();
        let changes = view.changes_after(self.cursor).map_err(|e| compacted(&e))?;
        // Asked at every batch: whoever is shut out sees nothing more.
        let grants = rights::grants(&self.node, &self.caller, &view)?;
        let mut reached = None;
        for change in changes {
            if reached != Some(change.revision) {
                // What is queued of the revision before is all that will come of it.
                if let Some(last) = self.queue.back_mut() {
                    last.complete = true;
                }
                if self.queue.len() >= BATCH {
                    self.cursor = reached.unwrap_or(self.cursor);
                    return Ok(());
                }
            }
            reached = Some(change.revision);
            if self.wants(change) && grants.sees(&view, &change.object) {
                let told = event(&self.node, &view, change);
                let told = self.select(change, told);
                self.queue.extend(told);
            }
        }
        if let Some(last) = self.queue.back_mut() {
            last.complete = true;
        }
        self.cursor = self.cursor.max(view.revision());
        Ok(())
    }

    /// What is told of a change that is wanted: all of it; or, once an object matches no longer, that it is gone.
    fn select(&mut self, change: &Change, told: v1::WatchEvent) -> Option<v1::WatchEvent> {
        if self.labels.is_any() && self.fields.is_any() {
            return Some(told);
        }
        let uid = change.object.uid();
        if !change.deleted && matches(&change.object, &self.labels, &self.fields) {
            self.shown.insert(uid);
            return Some(told);
        }
        let known = self.shown.remove(&uid) || change.revision <= self.began;
        known.then(|| v1::WatchEvent { r#type: v1::watch_event::Type::Deleted.into(), ..told })
    }

    fn wants(&self, change: &Change) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&change.object.kind());
        kind && self.name.as_ref().is_none_or(|name| name == change.object.name())
    }
}

fn event(node: &Node, state: &State, change: &Change) -> v1::WatchEvent {
    let kind = if change.deleted { v1::watch_event::Type::Deleted } else { v1::watch_event::Type::Put };
    let object = Some(show(node, state, &change.object));
    v1::WatchEvent { r#type: kind.into(), revision: change.revision.0, object, complete: false }
}

fn bookmark(revision: Revision) -> v1::WatchEvent {
    let kind = v1::watch_event::Type::Bookmark;
    v1::WatchEvent { r#type: kind.into(), revision: revision.0, object: None, complete: true }
}

fn compacted(error: &Compacted) -> Fault {
    metrics::WATCH_CUT.inc();
    Fault::new(ErrorCode::Compacted, error.to_string())
}

fn stopping() -> Fault {
    Fault::new(
        ErrorCode::Unavailable,
        "this controller is stopping; watch from the last revision at another one",
    )
}
