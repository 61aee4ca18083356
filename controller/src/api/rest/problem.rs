//! Refusals as problem details (RFC 9457), with our codes from the one table.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dunlin_model::{ErrorCode, Invalid, Object};
use dunlin_proto::Fault;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::api::reads::json;

/// After so long it may go better, s: an election is over by then, and so are the calls that were in the way.
const RETRY_AFTER_S: &str = "1";

/// A refusal, with the status that HTTP has for it where the table's is too coarse.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    fault: Box<Fault>,
}

/// Why a request was refused (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Problem {
    /// `urn:dunlin:error:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// What the code means, always the same.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong here.
    detail: String,
    /// Which line of the public error table.
    code: ErrorCode,
    /// May the same request succeed later without being changed?
    retryable: bool,
    /// The field that is wrong, by its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What would have been accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<String>,
    /// Names that are nearly the one asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    near: Vec<String>,
    /// With `stale_revision`: the object as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<Value>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, fault: Fault) -> Self {
        Self { status, fault: Box::new(fault) }
    }

    /// The same, when the request had an `If-Match`: what does not hold then is its condition (RFC 9110, 13.1.1).
    pub(super) fn under_condition(self, conditional: bool) -> Self {
        let failed = conditional && self.fault.code == ErrorCode::StaleRevision;
        let status = if failed { StatusCode::PRECONDITION_FAILED } else { self.status };
        Self { status, ..self }
    }

    /// As it is told in JSON.
    pub(super) fn problem(&self) -> Problem {
        let Fault { code, message, current } = &*self.fault;
        let details = self.fault.details();
        Problem {
            kind: format!("urn:dunlin:error:{code}"),
            title: code.meaning(),
            status: self.status.as_u16(),
            detail: message.clone(),
            code: *code,
            retryable: code.retryable(),
            field: details.field,
            allowed: details.allowed,
            near: details.near,
            current: current.as_deref().map(|object: &Object| json(object)),
        }
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        let status = StatusCode::from_u16(fault.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, fault)
    }
}

impl From<Invalid> for Refused {
    fn from(invalid: Invalid) -> Self {
        Fault::from(invalid).into()
    }
}

impl From<tonic::Status> for Refused {
    fn from(status: tonic::Status) -> Self {
        Fault::from(status).into()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let text = serde_json::to_vec(&self.problem()).expect("a problem has string keys");
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, [(header::CONTENT_TYPE, kind)], text).into_response();
        // For the metrics: whoever answers in JSON has no trailer that says it.
        response.extensions_mut().insert(self.fault.code);
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}
