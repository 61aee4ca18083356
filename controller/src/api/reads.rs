//! Get and List: objects of one moment, as they may be seen.

use std::sync::Arc;

use dunlin_model::{ErrorCode, Invalid, Kind, Labels, Name, Object};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::{Rejected, State};
use prost::Message as _;
use uuid::Uuid;

use crate::node::Node;

/// Most objects of one answer. A client that wants more asks again with `after`.
pub(super) const PAGE_MAX: usize = 1_000;
/// Most bytes of one answer: below the 4 MiB that gRPC clients take by default.
pub(super) const PAGE_BYTES_MAX: usize = 3 << 20;

/// An object as it leaves the house: without its secrets, and the cluster with its leader.
pub(super) fn show(node: &Node, object: &Object) -> v1::Object {
    let mut shown = object.clone();
    shown.redact();
    if let Object::Cluster(cluster) = &mut shown {
        cluster.status.leader = node.leader();
    }
    shown.into()
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

/// `List`, of that state.
pub(super) fn list(node: &Node, state: &State, request: &v1::ListRequest) -> Result<v1::ListResponse, Fault> {
    let kind = read(request.kind, "kind")?;
    let limit = match usize::try_from(request.limit) {
        Ok(asked @ 1..=PAGE_MAX) => asked,
        _ => PAGE_MAX,
    };
    let mut answer = v1::ListResponse { revision: state.revision().0, objects: Vec::new(), more: false };
    let mut bytes = 0;
    let after = |object: &Object| object.name().as_str() > request.after.as_str();
    let chosen = |object: &&Arc<Object>| after(object) && carries(object.labels(), &request.labels);
    for object in state.objects_by_name(kind).filter(chosen) {
        let shown = show(node, object);
        bytes += shown.encoded_len();
        if answer.objects.len() == limit || (bytes > PAGE_BYTES_MAX && !answer.objects.is_empty()) {
            answer.more = true;
            break;
        }
        answer.objects.push(shown);
    }
    Ok(answer)
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
