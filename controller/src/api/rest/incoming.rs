//! A request as it came, checked against its row of the table: nothing in it is passed over.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts as _, Query, RawPathParams, Request};
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use dunlin_model::{ErrorCode, Invalid, Kind};
use dunlin_proto::{Fault, document, v1};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tonic::metadata::MetadataMap;

use super::problem::Refused;
use super::route::{At, Param, Route};
use crate::api::call::CALL_DEADLINE;

/// Largest JSON body taken, bytes: an object with every device is some 10 KiB.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;

/// So much of a body that is too large is read all the same, and thrown away: whoever still sends when the connection is
/// closed on him may see a broken pipe instead of the refusal. Who sends more than this has it coming.
const DISCARDED_BYTES_MAX: usize = 8 << 20;

/// A request.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The kind its route is about.
    kind: Option<Kind>,
    path: BTreeMap<String, String>,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
}

impl Incoming {
    /// Refuses what its route does not know.
    pub(super) async fn read(route: &Route, request: Request) -> Result<Self, Refused> {
        let (mut parts, body) = request.into_parts();
        let wrong = |what: &str, e: &dyn std::fmt::Display| {
            Invalid::new(what, e.to_string(), "UTF-8, percent-encoded")
        };
        let path = RawPathParams::from_request_parts(&mut parts, &()).await.map_err(|e| wrong("path", &e))?;
        let path = path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let pairs =
            Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(|e| wrong("query", &e))?;
        let mut query = BTreeMap::new();
        for (name, value) in pairs.0 {
            known(route, &name)?;
            if query.insert(name.clone(), value).is_some() {
                return Err(Invalid::new(name, "is said twice", "once").into());
            }
        }
        Ok(Self { kind: route.kind, path, query, headers: parts.headers, extensions: parts.extensions, body })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind.expect("a route that serves objects is about a kind")
    }

    /// The kind as the protocol names it.
    pub(super) fn kind_number(&self) -> i32 {
        v1::Kind::from(self.kind()).into()
    }

    /// The `{name}` of the path; empty where there is none.
    pub(super) fn name(&self) -> String {
        self.path.get("name").cloned().unwrap_or_default()
    }

    /// The `{sha256}` of the path.
    pub(super) fn sha256(&self) -> String {
        self.path.get("sha256").cloned().unwrap_or_default()
    }

    /// A query parameter; empty when it is not said.
    pub(super) fn text(&self, param: &Param) -> String {
        self.query.get(param.name).cloned().unwrap_or_default()
    }

    /// A flag among the query parameters.
    pub(super) fn flag(&self, param: &Param) -> Result<bool, Invalid> {
        match self.query.get(param.name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => Err(Invalid::new(param.name, format!("{other:?} is neither"), "true or false")),
        }
    }

    /// A number among the query parameters.
    pub(super) fn number<N: std::str::FromStr>(&self, param: &Param) -> Result<Option<N>, Invalid> {
        let number = |text: &String| {
            text.parse().map_err(|_| {
                Invalid::new(param.name, format!("{text:?} is no such number"), "a whole number")
            })
        };
        self.query.get(param.name).map(number).transpose()
    }

    pub(super) fn header(&self, param: &Param) -> Option<&str> {
        self.headers.get(param.name)?.to_str().ok()
    }

    /// Has it an `If-Match`?
    pub(super) fn is_conditional(&self) -> bool {
        self.headers.contains_key(header::IF_MATCH)
    }

    /// The revision of its `If-Match`; 0 for none and for `*`, which any revision is.
    pub(super) fn if_match(&self) -> Result<u64, Invalid> {
        let Some(value) = self.headers.get(header::IF_MATCH) else { return Ok(0) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(0);
        }
        let revision =
            text.trim_start_matches("W/").trim_matches('"').parse().ok().filter(|number| *number > 0);
        revision.ok_or_else(|| {
            Invalid::new("If-Match", format!("{text:?} is none"), "one ETag as it was answered, or *")
        })
    }

    /// Its idempotency key; empty when it has none.
    pub(super) fn key(&self) -> String {
        self.header(&super::route::IDEMPOTENCY_KEY).unwrap_or_default().to_owned()
    }

    /// Its media type, without parameters.
    pub(super) fn media_type(&self) -> &str {
        let text =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim()
    }

    /// The same request to the service: its headers are the metadata, its extensions stay what they are.
    pub(super) fn request<T>(&mut self, message: T) -> Result<tonic::Request<T>, Invalid> {
        let metadata = MetadataMap::from_headers(self.headers.clone());
        let mut request = tonic::Request::from_parts(metadata, self.extensions.clone(), message);
        if let Some(timeout) = self.timeout()? {
            request.set_timeout(timeout);
        }
        Ok(request)
    }

    fn timeout(&self) -> Result<Option<Duration>, Invalid> {
        let param = &super::route::TIMEOUT;
        let Some(text) = self.query.get(param.name) else { return Ok(None) };
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let amount: Option<u64> = text[..split].parse().ok().filter(|amount| *amount <= 86_400_000);
        match (amount, &text[split..]) {
            (Some(amount), "s" | "") => Ok(Some(Duration::from_secs(amount))),
            (Some(amount), "ms") => Ok(Some(Duration::from_millis(amount))),
            _ => Err(Invalid::new(param.name, format!("{text:?} is no time"), "as in 5s or 500ms")),
        }
    }

    /// Its body as bytes that come one after the other.
    pub(super) fn take_body(&mut self) -> Body {
        std::mem::take(&mut self.body)
    }

    /// Its body as JSON.
    pub(super) async fn json(&mut self) -> Result<Value, Refused> {
        let whole = tokio::time::timeout(CALL_DEADLINE, gather(self.take_body())).await;
        let bytes = whole.map_err(|_| {
            Fault::new(ErrorCode::Deadline, "the body did not come in time; nothing was done")
        })??;
        let wrong = |e: serde_json::Error| Invalid::new("body", format!("is no JSON: {e}"), "a JSON object");
        Ok(serde_json::from_slice(&bytes).map_err(wrong)?)
    }

    /// The same, read as one of the bodies of the table.
    pub(super) async fn body<T: DeserializeOwned>(&mut self) -> Result<T, Refused> {
        self.expect_json()?;
        Ok(document::read(&self.json().await?)?)
    }

    /// Refuses a body that does not say it is JSON: what a page of another site can make a browser send without asking says
    /// something else, or nothing.
    pub(super) fn expect_json(&self) -> Result<(), Refused> {
        match self.media_type() {
            "application/json" => Ok(()),
            other => Err(unsupported(other, "application/json")),
        }
    }
}

/// A body of a kind that is not taken.
pub(super) fn unsupported(media_type: &str, taken: &str) -> Refused {
    let invalid = Invalid::new("Content-Type", format!("{media_type:?} is not taken here"), taken);
    Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, invalid.into())
}

fn known(route: &Route, name: &str) -> Result<(), Invalid> {
    let params: Vec<String> =
        route.params().filter(|param| param.at == At::Query).map(|param| param.name.to_owned()).collect();
    if params.iter().any(|known| known == name) {
        return Ok(());
    }
    Err(Invalid::new(name, "there is no such parameter here", document::choices(name, &params)))
}

/// The whole body, or why not.
async fn gather(body: Body) -> Result<Vec<u8>, Fault> {
    let (mut chunks, mut bytes, mut size) = (body.into_data_stream(), Vec::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|e| Fault::new(ErrorCode::InvalidArgument, format!("the body broke off: {e}")))?;
        size = size.saturating_add(chunk.len());
        if size <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&chunk);
        } else if size > DISCARDED_BYTES_MAX {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if size > BODY_BYTES_MAX {
        return Err(Fault::new(
            ErrorCode::TooLarge,
            format!("the body is larger than {BODY_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}
