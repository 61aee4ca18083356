//! Watch as server-sent events (HTML Living Standard, 9.2).
//!
//! ```text
//!  event: put | deleted        data: {"type", "revision", "object"}     id: the revision, once it is complete
//!  event: bookmark             data: {"type", "revision"}               id: the revision
//!  event: error, then the end  data: a problem
//! ```
//! Several objects may change at one revision. Only the last of them has an `id`, so that a client that comes again with
//! `Last-Event-ID` has either seen all of a revision or sees all of it again.

use std::convert::Infallible;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use dunlin_model::{Invalid, Kind, Object};
use dunlin_proto::v1::fleet_server::Fleet as _;
use dunlin_proto::v1::watch_event::Type;
use dunlin_proto::{Wire as _, v1};
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tonic::Status;

use super::Rest;
use super::incoming::Incoming;
use super::problem::Refused;
use super::route::{AFTER_REVISION, FIELD_SELECTOR, KINDS, LABEL_SELECTOR, LAST_EVENT_ID, NAME, Served};
use crate::api::reads;

pub(super) fn watch(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let resumed = match incoming.header(&LAST_EVENT_ID) {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                Invalid::new(LAST_EVENT_ID.name, format!("{text:?} is none"), "the id of an event")
            })?),
        };
        let after_revision = match resumed {
            Some(revision) => revision,
            None => incoming.number(&AFTER_REVISION)?.unwrap_or(0),
        };
        let kinds = incoming.text(&KINDS);
        let kinds = kinds.split(',').map(str::trim).filter(|kind| !kind.is_empty());
        let kinds: Vec<Kind> = kinds
            .map(|kind| kind.parse().map_err(|e: Invalid| Invalid { field: KINDS.name.to_owned(), ..e }))
            .collect::<Result<_, Invalid>>()?;
        let ask = v1::WatchRequest {
            kinds: kinds.into_iter().map(Kind::to_wire).collect(),
            after_revision,
            name: incoming.text(&NAME),
            label_selector: incoming.text(&LABEL_SELECTOR),
            field_selector: incoming.text(&FIELD_SELECTOR),
        };
        let changes = rest.api.watch(incoming.request(ask)?).await?.into_inner();
        Ok(stream(changes))
    })
}

fn stream(changes: impl Stream<Item = Result<v1::WatchEvent, Status>> + Send + 'static) -> Response {
    let events = changes.map(|change| {
        let event = change.map_err(Refused::from).and_then(event);
        Ok::<_, Infallible>(event.unwrap_or_else(|refused| {
            told("error", &serde_json::to_value(refused.problem()).unwrap_or(Value::Null))
        }))
    });
    Sse::new(events).into_response()
}

fn event(change: v1::WatchEvent) -> Result<Event, Refused> {
    let (name, revision) = (change.r#type(), change.revision);
    let word = match name {
        Type::Deleted => "deleted",
        Type::Bookmark => "bookmark",
        Type::Put | Type::Unspecified => "put",
    };
    let mut data = json!({"type": word, "revision": revision});
    if let Some(object) = change.object {
        data["object"] = reads::json(&Object::try_from(object)?);
    }
    let event = told(word, &data);
    Ok(if change.complete { event.id(revision.to_string()) } else { event })
}

fn told(word: &str, data: &Value) -> Event {
    // JSON has no line breaks outside of strings, and escapes those within.
    Event::default().event(word).data(data.to_string())
}
