//! REST: the same fleet API as JSON over HTTP/1.1 and HTTP/2, for what does not speak gRPC.
//!
//! ```text
//!  HTTP request -> route (a row of the table) -> Incoming -> the same method of `Fleet` or `Advisor` as over gRPC
//!     metadata = its headers, extensions = its extensions            |
//!  HTTP answer  <- JSON of model types, or a problem (RFC 9457) <----+
//! ```
//! Decides nothing and knows no state: what is allowed, done and answered is the service's. An object reads as
//! `dunlin ... -o json` prints it.
//!
//! DECISION: one table of routes ([`route::routes`]) is the only definition. The router, the check of query parameters and
//! the OpenAPI document are made from it, and the schemas in that from the very types that serde reads and writes. With
//! attributes on functions (utoipa) the same path would be described once for each kind and operation, and nothing would
//! hold what a handler reads from the query to what it says it reads. HTTP annotations in the `.proto` files would
//! describe protobuf's JSON, and ours is the model's.

mod acts;
mod blobs;
mod events;
mod incoming;
mod objects;
mod openapi;
mod problem;
mod questions;
mod route;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, get, on};
use dunlin_model::ErrorCode;
use dunlin_proto::Fault;
use serde::Serialize;

use super::{Advice, Api};
use crate::node::Node;
use incoming::Incoming;
use problem::Refused;
use route::Route;

/// What the routes are served by.
#[derive(Clone, Debug)]
struct Rest {
    api: Api,
    advice: Advice,
}

/// Every route, and the pages about them and about this controller's health.
pub(crate) fn router(node: &Arc<Node>, api: &Api, advice: &Advice) -> Router {
    let rest = Arc::new(Rest { api: api.clone(), advice: advice.clone() });
    let mut router = Router::new();
    for route in route::routes() {
        let method = MethodFilter::try_from(route.method.clone()).expect("the table has ordinary methods");
        let (rest, path, route) = (Arc::clone(&rest), route.path.clone(), Arc::new(route));
        let serve = move |request: Request| serve(Arc::clone(&rest), Arc::clone(&route), request);
        router = router.route(&path, on(method, serve));
    }
    let node = Arc::clone(node);
    router
        .route("/openapi.json", get(|| async { json(StatusCode::OK, openapi::document()) }))
        // Answers as long as anything does.
        .route("/healthz", get(|| async { json(StatusCode::OK, &serde_json::json!({"status": "ok"})) }))
        .route("/readyz", get(move || async move { ready(&node) }))
        .method_not_allowed_fallback(no_such_method)
}

/// What answers when no route does: gRPC in its way, everything else with a problem.
pub(crate) fn fallback(router: Router) -> Router {
    router.fallback(|request: Request| async move {
        let kind = request.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return tonic::Status::unimplemented("there is no such method").into_http::<Body>();
        }
        let message =
            format!("there is nothing at {}; /openapi.json says what there is", request.uri().path());
        Refused::from(Fault::new(ErrorCode::NotFound, message)).into_response()
    })
}

async fn no_such_method(method: Method) -> Response {
    let message = format!("{method} is not understood here; /openapi.json says what is");
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, Fault::new(ErrorCode::InvalidArgument, message))
        .into_response()
}

async fn serve(rest: Arc<Rest>, route: Arc<Route>, request: Request) -> Response {
    let incoming = match Incoming::read(&route, request).await {
        Ok(incoming) => incoming,
        Err(refused) => return refused.into_response(),
    };
    let conditional = incoming.is_conditional();
    match (route.serve)(&rest, incoming).await {
        Ok(response) => response,
        Err(refused) => refused.under_condition(conditional).into_response(),
    }
}

/// May it be asked? It has founded or joined its cluster, and knows who leads.
fn ready(node: &Node) -> Response {
    let founded = node.replica.read().cluster().is_some();
    match node.leader() {
        Some(leader) if founded && !node.closing.is_cancelled() => {
            json(StatusCode::OK, &serde_json::json!({"status": "ready", "leader": leader}))
        }
        _ => {
            let message = "this controller is starting or stopping, or knows no leader";
            Refused::from(Fault::new(ErrorCode::Unavailable, message)).into_response()
        }
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_vec(value).expect("what is answered has string keys");
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], text).into_response()
}
