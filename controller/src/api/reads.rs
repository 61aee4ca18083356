//! Get and List: objects of one moment, as they may be seen.

use std::sync::Arc;

use dunlin_model::fields::Projection;
use dunlin_model::rights::Verb;
use dunlin_model::selector::{FieldSelector, LabelSelector};
use dunlin_model::{ErrorCode, Invalid, Kind, Labels, Name, Object, Revision};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::rights::{Grants, widest};
use dunlin_state::{Rejected, State};
use prost::Message as _;
use serde_json::Value;
use uuid::Uuid;

use super::pages::Place;
use crate::audit::Entry;
use crate::node::Node;
use crate::rights::{self, Caller};

/// Most objects of one answer. A client that wants more asks again with `after`.
pub(super) const PAGE_MAX: usize = 1_000;
/// Most bytes of one answer: below the 4 MiB that gRPC clients take by default.
pub(super) const PAGE_BYTES_MAX: usize = 3 << 20;

/// An object as it leaves the house: without its secrets, and the cluster with its leader.
pub(super) fn show(node: &Node, state: &State, object: &Object) -> v1::Object {
    shown(node, state, object).into()
}

/// The same, before it is turned into a message.
fn shown(node: &Node, state: &State, object: &Object) -> Object {
    let mut shown = object.clone();
    shown.redact();
    if let Object::Project(project) = &mut shown {
        project.status.used = state.used(&project.metadata.name);
    }
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
pub(super) fn get(
    node: &Node,
    caller: &Caller,
    state: &State,
    request: &v1::GetRequest,
) -> Result<v1::Object, Fault> {
    let kind = read(request.kind, "kind")?;
    let grants = reader(node, caller, state, kind, &request.name)?;
    let text = match (request.name.as_str(), request.uid.as_str()) {
        ("", uid) => uid,
        (name, "") => name,
        _ => return Err(Invalid::new("uid", "name and uid are both set", "one of them").into()),
    };
    let found = find(state, kind, text).map_err(|fault| rights::hide(fault, &grants))?;
    if !grants.sees(state, found) {
        let noun = kind.to_string().to_ascii_lowercase();
        let fault = Fault::new(ErrorCode::NotFound, format!("no {noun} is called {text:?}"));
        let entry = Entry::of(caller, Verb::Read.as_str()).about(&kind.to_string(), text, None);
        return Err(rights::refuse(node, entry, fault));
    }
    Ok(show(node, state, found))
}

/// What a caller may read, when he may read anything of that kind.
pub(super) fn reader(
    node: &Node,
    caller: &Caller,
    state: &State,
    kind: Kind,
    name: &str,
) -> Result<Grants, Fault> {
    let grants = rights::grants(node, caller, state)?;
    if !grants.sees_any(kind) {
        // Asked again for its words, and its line in the audit log.
        rights::authorise(node, caller, state, (Verb::Read, kind, widest(kind)), name)?;
    }
    Ok(grants)
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) revision: Revision,
    pub(super) items: Vec<Item>,
    /// Where the next page begins, when there is one.
    pub(super) next: Option<Place>,
}

/// An object of a page, as it will be sent: made once, since its length decides where the page ends.
#[derive(Debug)]
pub(super) enum Item {
    Message(Box<v1::Object>),
    Json(String),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.encoded_len(),
            Self::Json(text) => text.len(),
        }
    }
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

impl Wanted {
    /// The object as it will be sent, if it is one of those wanted. As JSON when that is asked for, and whenever only some
    /// of its fields are.
    fn item(&self, node: &Node, state: &State, object: &Object, as_json: bool) -> Option<Item> {
        let shown = shown(node, state, object);
        if self.fields.is_any() && self.projection.is_all() {
            return Some(if as_json {
                Item::Json(text(&shown))
            } else {
                Item::Message(Box::new(shown.into()))
            });
        }
        let whole = json(&shown);
        if !self.fields.matches(&whole) {
            return None;
        }
        let whole_message = self.projection.is_all() && !as_json;
        Some(if whole_message {
            Item::Message(Box::new(shown.into()))
        } else {
            Item::Json(self.projection.of(whole).to_string())
        })
    }
}

/// `List`, of that state: as many as were asked for and as fit, after the place where the page before ended.
pub(super) fn list(
    node: &Node,
    caller: &Caller,
    state: &State,
    request: &v1::ListRequest,
    after: Option<&Name>,
    as_json: bool,
) -> Result<Page, Fault> {
    let wanted = Wanted::of(request)?;
    // A page of an older revision shows what is allowed now, not what was allowed then.
    let grants = match after {
        None => reader(node, caller, state, wanted.kind, "")?,
        Some(_) => reader(node, caller, &node.replica.read(), wanted.kind, "")?,
    };
    let all = grants.sees_all(wanted.kind);
    let limit = match usize::try_from(request.limit) {
        Ok(asked @ 1..=PAGE_MAX) => asked,
        _ => PAGE_MAX,
    };
    let mut page = Page { revision: state.revision(), items: Vec::new(), next: None };
    let mut bytes = 0;
    let chosen = |object: &&Arc<Object>| {
        carries(object.labels(), &request.labels)
            && wanted.labels.matches(object.labels())
            && (all || grants.sees(state, object))
    };
    let mut last: Option<&Name> = None;
    for object in state.objects_by_name(wanted.kind, after).filter(chosen) {
        let Some(item) = wanted.item(node, state, object, as_json) else { continue };
        bytes += item.bytes();
        if let Some(last) = last
            && (page.items.len() == limit || bytes > PAGE_BYTES_MAX)
        {
            page.next = Some(Place { revision: page.revision, after: last.clone() });
            break;
        }
        last = Some(object.name());
        page.items.push(item);
    }
    Ok(page)
}

fn text(object: &Object) -> String {
    serde_json::to_string(object).expect("objects have string keys")
}

/// An object as it reads in JSON.
pub(super) fn json(object: &Object) -> Value {
    serde_json::to_value(object).expect("objects have string keys")
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
