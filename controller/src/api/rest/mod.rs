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
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, get, on};
use dunlin_model::rights::Verb;
use dunlin_model::{ErrorCode, Kind};
use dunlin_proto::Fault;
use dunlin_state::rights::Scope;
use serde::Serialize;

use super::{Advice, Api};
use crate::metrics;
use crate::node::Node;
use crate::rights::{self, Caller};
use incoming::Incoming;
use problem::Refused;
use route::Route;

/// How long a controller may take to find out that it has caught up: an answer of the leader, and a few syncs.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

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
    let (node, probed) = (Arc::clone(node), Arc::clone(node));
    router
        .route("/openapi.json", get(|| async { json(StatusCode::OK, openapi::document()) }))
        // Answers as long as anything does.
        .route("/healthz", get(|| async { json(StatusCode::OK, &serde_json::json!({"status": "ok"})) }))
        .route("/readyz", get(move || async move { ready(&probed).await }))
        .route(
            "/metrics",
            get(move |request: Request| {
                let caller = Caller::of(request.extensions());
                async move { measures(&node, caller).await }
            }),
        )
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

/// May it be asked? It has founded or joined its cluster, knows who leads, and has all that was committed just now.
async fn ready(node: &Node) -> Response {
    let caught_up = async {
        // Whoever knocks a thousand times a second must not keep the leader busy.
        let _one = node.readiness.acquire().await.ok()?;
        node.replica.linearizable().await.ok()
    };
    let founded = node.replica.read().cluster().is_some();
    let current = tokio::time::timeout(READY_TIMEOUT, caught_up).await.ok().flatten();
    match (node.leader(), current) {
        (Some(leader), Some(view)) if founded && !node.closing.is_cancelled() => {
            let told = serde_json::json!({"status": "ready", "leader": leader, "revision": view.revision()});
            json(StatusCode::OK, &told)
        }
        _ => {
            let message =
                "this controller is starting or stopping, knows no leader, or has not caught up with it";
            Refused::from(Fault::new(ErrorCode::Unavailable, message)).into_response()
        }
    }
}

/// What it counts and times, for whoever may read the cluster.
async fn measures(node: &Arc<Node>, caller: Arc<Caller>) -> Response {
    let right = (Verb::Read, Kind::Cluster, Scope::Fleet);
    let allowed = rights::authorise(node, &caller, &node.replica.read(), right, "metrics");
    if let Err(fault) = allowed {
        return Refused::from(fault).into_response();
    }
    let looked = Arc::clone(node);
    match tokio::task::spawn_blocking(move || metrics::render(&looked)).await {
        Ok(text) => ([(header::CONTENT_TYPE, dunlin_metrics::TEXT_FORMAT)], text).into_response(),
        Err(error) => Refused::from(Fault::new(ErrorCode::Internal, error.to_string())).into_response(),
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_vec(value).expect("what is answered has string keys");
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], text).into_response()
}
