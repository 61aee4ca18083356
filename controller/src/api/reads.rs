//! Get and List: objects of one moment, as they may be seen.

use std::sync::Arc;

use dunlin_model::fields::Projection;
use dunlin_model::selector::{FieldSelector, LabelSelector};
use dunlin_model::{ErrorCode, Invalid, Kind, Labels, Name, Object, Revision};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::{Rejected, State};
use prost::Message as _;
use serde_json::Value;
use uuid::Uuid;

use super::pages::Place;
use crate::node::Node;

/// Most objects of one answer. A client that wants more asks again with `after`.
pub(super) const PAGE_MAX: usize = 1_000;
/// Most bytes of one answer: below the 4 MiB that gRPC clients take by default.
pub(super) const PAGE_BYTES_MAX: usize = 3 << 20;

/// An object as it leaves the house: without its secrets, and the cluster with its leader.
pub(super) fn show(node: &Node, object: &Object) -> v1::Object {
    shown(node, object).into()
}

/// The same, before it is turned into a message.
fn shown(node: &Node, object: &Object) -> Object {
    let mut shown = object.clone();
    shown.redact();
    if let Object::Cluster(cluster) = &mut shown {
        cluster.status.leader = node.leader();
    }
    shown
}

/// A refusal by the state as the client sees it.
pub(crate) fn rejected_fault(rejected: Rejected) -> Fault {
    let fault = Fault::new(rejected.code, rejected.message);
    match rejected.current {
        Some(current) => fault.with_current(*current),
        None => fault,
    }
}

/// The object of that kind and name, where a uid may stand for the name.
pub(super) fn find<'a>(state: &'a State, kind: Kind, text: &str) -> Result<&'a Arc<Object>, Fault> {
    if let (Kind::Cluster, "") = (kind, text) {
        let cluster = state.objects_of(kind).next();
        return cluster.ok_or_else(|| Fault::new(ErrorCode::Unavailable, "the cluster is being founded"));
    }
    let name: Name = text.parse()?;
    let by_uid = || Uuid::parse_str(text).ok().and_then(|uid| state.object(kind, uid));
    let found = state.object_named(kind, &name).or_else(by_uid);
    found.ok_or_else(|| rejected_fault(state.unknown(kind, text)))
}

/// `Get`, of that state.
pub(super) fn get(node: &Node, state: &State, request: &v1::GetRequest) -> Result<v1::Object, Fault> {
    let kind = read(request.kind, "kind")?;
    let text = match (request.name.as_str(), request.uid.as_str()) {
        ("", uid) => uid,
        (name, "") => name,
        _ => return Err(Invalid::new("uid", "name and uid are both set", "one of them").into()),
    };
    Ok(show(node, find(state, kind, text)?))
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) revision: Revision,
    pub(super) objects: Vec<Object>,
    /// In place of the objects, when only some of their fields were asked for.
    pub(super) parts: Option<Vec<Value>>,
    /// Where the next page begins, when there is one.
    pub(super) next: Option<Place>,
}

/// What a list is of.
struct Wanted {
    kind: Kind,
    labels: LabelSelector,
    fields: FieldSelector,
    projection: Projection,
}

impl Wanted {
    fn of(request: &v1::ListRequest) -> Result<Self, Invalid> {
        let kind = read(request.kind, "kind")?;
        Ok(Self {
            kind,
            labels: LabelSelector::parse(&request.label_selector)?,
            fields: FieldSelector::parse(kind, &request.field_selector)?,
            projection: Projection::parse(kind, &request.fields)?,
        })
    }
}

/// `List`, of that state: as many as were asked for and as fit, after the place where the page before ended.
pub(super) fn list(
    node: &Node,
    state: &State,
    request: &v1::ListRequest,
    after: Option<&Name>,
) -> Result<Page, Fault> {
    let wanted = Wanted::of(request)?;
    let limit = match usize::try_from(request.limit) {
        Ok(asked @ 1..=PAGE_MAX) => asked,
        _ => PAGE_MAX,
    };
    let mut page = Page { revision: state.revision(), objects: Vec::new(), parts: None, next: None };
    let mut parts = Vec::new();
    let mut bytes = 0;
    let chosen = |object: &&Arc<Object>| {
        carries(object.labels(), &request.labels) && wanted.labels.matches(object.labels())
    };
    let mut last: Option<Name> = None;
    for object in state.objects_by_name(wanted.kind, after).filter(chosen) {
        let shown = shown(node, object);
        let json = (!wanted.fields.is_any() || !wanted.projection.is_all()).then(|| json(&shown));
        if json.as_ref().is_some_and(|json| !wanted.fields.matches(json)) {
            continue;
        }
        let part = json.filter(|_| !wanted.projection.is_all()).map(|json| wanted.projection.of(json));
        bytes += part.as_ref().map_or_else(|| size(&shown), |part| part.to_string().len());
        let count = page.objects.len() + parts.len();
        if let Some(last) = last.take_if(|_| count == limit || (bytes > PAGE_BYTES_MAX && count > 0)) {
            page.next = Some(Place { revision: page.revision, after: last });
            break;
        }
        last = Some(shown.name().clone());
        match part {
            Some(part) => parts.push(part),
            None => page.objects.push(shown),
        }
    }
    page.parts = (!wanted.projection.is_all()).then_some(parts);
    Ok(page)
}

/// About what an object takes on the wire, bytes.
fn size(object: &Object) -> usize {
    v1::Object::from(object.clone()).encoded_len()
}

/// An object as it reads in JSON.
pub(super) fn json(object: &Object) -> Value {
    serde_json::to_value(object).expect("objects have string keys")
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
