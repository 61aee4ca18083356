//! Objects of every kind: list, get, make, replace, change a part, remove.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use dunlin_model::fields::Projection;
use dunlin_model::{ErrorCode, Invalid, Kind, Name, Object, Revision};
use dunlin_proto::v1::fleet_server::Fleet as _;
use dunlin_proto::v1::object::Choice;
use dunlin_proto::{Fault, Wire as _, document, v1};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::incoming::{Incoming, unsupported};
use super::problem::Refused;
use super::route::{
    CONSISTENCY, DRY_RUN, FIELD_MANAGER, FIELD_SELECTOR, FIELDS, FORCE, IF_NONE_MATCH, LABEL_SELECTOR, LIMIT,
    PAGE_TOKEN, Served, place,
};
use super::{Rest, json as answer};
use crate::api::{pages, reads};

/// Media type of a merge patch (RFC 7396).
pub(super) const MERGE_PATCH: &str = "application/merge-patch+json";
/// Media type of a document that is applied, as Kubernetes calls it.
pub(super) const APPLY_PATCH: &str = "application/apply-patch+json";

pub(super) fn get(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let projection = Projection::parse(incoming.kind(), &incoming.text(&FIELDS))?;
        let known = incoming.header(&IF_NONE_MATCH).map(str::to_owned);
        let ask = v1::GetRequest {
            kind: incoming.kind_number(),
            name: incoming.name(),
            consistency: consistency(&incoming)?,
            ..v1::GetRequest::default()
        };
        let object = model(rest.api.get(incoming.request(ask)?).await?.into_inner())?;
        if known.is_some_and(|known| known == etag(&object)) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag(&object))]).into_response());
        }
        let json = projection.of(reads::json(&object));
        Ok(tagged(answer(StatusCode::OK, &json), &object))
    })
}

pub(super) fn list(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let ask = v1::ListRequest {
            kind: incoming.kind_number(),
            consistency: consistency(&incoming)?,
            limit: incoming.number(&LIMIT)?.unwrap_or(0),
            label_selector: incoming.text(&LABEL_SELECTOR),
            field_selector: incoming.text(&FIELD_SELECTOR),
            fields: incoming.text(&FIELDS),
            page_token: incoming.text(&PAGE_TOKEN),
            ..v1::ListRequest::default()
        };
        let request = incoming.request(ask)?;
        let page = rest.api.page(&request, true).await?;
        let next_page_token = page.next.map(|next| pages::token(request.get_ref(), &next));
        let items = page.items.into_iter().filter_map(|item| match item {
            reads::Item::Json(text) => RawValue::from_string(text).ok(),
            reads::Item::Message(_) => None,
        });
        let list = List { kind: "List", revision: page.revision, items: items.collect(), next_page_token };
        Ok(answer(StatusCode::OK, &list))
    })
}

/// A list as it is answered.
#[derive(Serialize)]
struct List {
    kind: &'static str,
    revision: Revision,
    items: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

pub(super) fn create(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        incoming.expect_json()?;
        let dry_run = incoming.flag(&DRY_RUN)?;
        let body = incoming.json().await?;
        let object = match incoming.kind() {
            Kind::Migration => migration(&body)?,
            kind => document::object(kind, &body)?.into(),
        };
        let ask = v1::CreateRequest { idempotency_key: incoming.key(), object: Some(object), dry_run };
        let object = model(rest.api.create(incoming.request(ask)?).await?.into_inner())?;
        Ok(made(&object, dry_run))
    })
}

pub(super) fn replace(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        incoming.expect_json()?;
        let dry_run = incoming.flag(&DRY_RUN)?;
        let condition = incoming.if_match()?;
        let mut body = incoming.json().await?;
        named(&mut body, &incoming.name())?;
        let mut object = v1::Object::from(document::object(incoming.kind(), &body)?);
        let metadata = metadata_of(&mut object);
        if let Some(metadata) = metadata {
            if condition != 0 {
                metadata.revision = condition;
            }
            if metadata.revision == 0 {
                let missing = Invalid::new(
                    "If-Match",
                    "is missing, and so is metadata.revision",
                    "the revision that was read",
                );
                return Err(Refused::new(StatusCode::PRECONDITION_REQUIRED, missing.into()));
            }
        }
        let ask = v1::UpdateRequest { idempotency_key: incoming.key(), object: Some(object), dry_run };
        shown(rest.api.update(incoming.request(ask)?).await?.into_inner())
    })
}

/// Two ways to say a part: a merge patch, and a document whose fields the one who applies it owns.
pub(super) fn patch(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let dry_run = incoming.flag(&DRY_RUN)?;
        let force = incoming.flag(&FORCE)?;
        let media_type = incoming.media_type().to_owned();
        let revision = incoming.if_match()?;
        let (kind, name, idempotency_key) = (incoming.kind_number(), incoming.name(), incoming.key());
        match media_type.as_str() {
            "application/json" | MERGE_PATCH => {
                let patch = incoming.json().await?.to_string();
                let ask = v1::PatchRequest { idempotency_key, kind, name, patch, dry_run, revision };
                shown(rest.api.patch(incoming.request(ask)?).await?.into_inner())
            }
            APPLY_PATCH => {
                let mut body = incoming.json().await?;
                if !name.is_empty() {
                    named(&mut body, &name)?;
                }
                let ask = v1::ApplyRequest {
                    idempotency_key,
                    kind,
                    name,
                    document: body.to_string(),
                    field_manager: incoming.text(&FIELD_MANAGER),
                    force,
                    dry_run,
                };
                shown(rest.api.apply(incoming.request(ask)?).await?.into_inner())
            }
            other => Err(unsupported(other, &format!("{MERGE_PATCH} or {APPLY_PATCH}"))),
        }
    })
}

pub(super) fn delete(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let ask = v1::DeleteRequest {
            idempotency_key: incoming.key(),
            kind: incoming.kind_number(),
            name: incoming.name(),
            force: incoming.flag(&FORCE)?,
            dry_run: incoming.flag(&DRY_RUN)?,
            revision: incoming.if_match()?,
        };
        shown(rest.api.delete(incoming.request(ask)?).await?.into_inner())
    })
}

/// A migration as somebody asks for it: its VM by name or uid.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default)]
    vm: String,
    #[serde(default)]
    vm_name: String,
    #[serde(default)]
    to: Option<Name>,
    #[serde(default)]
    limits: dunlin_model::migration::MigrationLimits,
}

fn migration(body: &Value) -> Result<v1::Object, Invalid> {
    let written: document::Written<Wish> = document::read(body)?;
    let Wish { vm, vm_name, to, limits } = written.spec;
    let spec = v1::MigrationSpec {
        vm,
        vm_name,
        to: to.map(|name| name.to_string()),
        limits: limits.to_wire(),
        ..v1::MigrationSpec::default()
    };
    let metadata = v1::Metadata {
        name: written.metadata.name.map(|name| name.to_string()).unwrap_or_default(),
        labels: written.metadata.labels,
        ..v1::Metadata::default()
    };
    let migration = v1::Migration { metadata: Some(metadata), spec: Some(spec), status: None };
    Ok(v1::Object { choice: Some(Choice::Migration(migration)) })
}

/// The name in the path is the object's name; a body that says another is refused.
fn named(body: &mut Value, name: &str) -> Result<(), Invalid> {
    let refuse = |problem: &str| Invalid::new("metadata", problem, "an object of fields");
    let fields = body.as_object_mut().ok_or_else(|| Invalid::new("body", "is no object", "a JSON object"))?;
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    let metadata = metadata.as_object_mut().ok_or_else(|| refuse("is no object"))?;
    match metadata.get("name").and_then(Value::as_str) {
        Some(said) if !name.is_empty() && said != name => {
            Err(Invalid::new("metadata.name", format!("{said:?} is not the name in the path"), name))
        }
        None if !name.is_empty() => {
            metadata.insert("name".to_owned(), name.into());
            Ok(())
        }
        _ => Ok(()),
    }
}

fn metadata_of(object: &mut v1::Object) -> Option<&mut v1::Metadata> {
    match object.choice.as_mut()? {
        Choice::Vm(object) => object.metadata.as_mut(),
        Choice::Host(object) => object.metadata.as_mut(),
        Choice::Cluster(object) => object.metadata.as_mut(),
        _ => None,
    }
}

fn consistency(incoming: &Incoming) -> Result<i32, Invalid> {
    match incoming.text(&CONSISTENCY).as_str() {
        "" | "linearizable" => Ok(v1::Consistency::Linearizable.into()),
        "stale" => Ok(v1::Consistency::Stale.into()),
        other => Err(Invalid::new(CONSISTENCY.name, format!("{other:?} is none"), "linearizable or stale")),
    }
}

/// Reads what the service answered. That it cannot be read would be our fault.
pub(super) fn model(object: v1::Object) -> Result<Object, Refused> {
    Object::try_from(object).map_err(|e| Fault::new(ErrorCode::Internal, e.to_string()).into())
}

/// An object as it is now.
pub(super) fn shown(object: v1::Object) -> Result<Response, Refused> {
    let object = model(object)?;
    Ok(tagged(answer(StatusCode::OK, &object), &object))
}

/// An object that was made, and where it is.
pub(super) fn made(object: &Object, dry_run: bool) -> Response {
    if dry_run {
        return answer(StatusCode::OK, object);
    }
    let mut response = tagged(answer(StatusCode::CREATED, object), object);
    let location = format!("{}/{}", place(object.kind()), object.name());
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn tagged(mut response: Response, object: &Object) -> Response {
    if let Ok(tag) = HeaderValue::try_from(etag(object)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn etag(object: &Object) -> String {
    format!("\"{}\"", object.revision())
}
