//! The table: every route with what it takes, what it answers and who serves it.

use std::pin::Pin;

use axum::http::Method;
use axum::response::Response;
use dunlin_model::Kind;
use dunlin_model::advice::{BalancePlan, Capacity, DrainPlan, Explanation};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::acts::{AdoptBody, DecideBody, PowerBody, TaskBody, Token, TokenBody, UnmanagedVms};
use super::blobs::Stored;
use super::incoming::Incoming;
use super::problem::Refused;
use super::questions::{BalanceBody, Balanced, CapacityBody, DrainBody};
use super::{Rest, acts, blobs, events, objects, questions};

/// An answer on its way.
pub(super) type Served<'a> = Pin<Box<dyn Future<Output = Result<Response, Refused>> + Send + 'a>>;
/// Who serves a route.
pub(super) type Serve = for<'a> fn(&'a Rest, Incoming) -> Served<'a>;
/// Makes a schema, and those of the types it names.
pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Query,
    Header,
}

/// One parameter.
#[derive(Debug)]
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) at: At,
    /// Its type in JSON Schema.
    pub(super) is: &'static str,
    pub(super) about: &'static str,
}

const fn query(name: &'static str, is: &'static str, about: &'static str) -> Param {
    Param { name, at: At::Query, is, about }
}

const fn header(name: &'static str, about: &'static str) -> Param {
    Param { name, at: At::Header, is: "string", about }
}

pub(super) const TIMEOUT: Param = query(
    "timeout",
    "string",
    "Give up after so long, as in `5s` or `500ms`; the service's own bound otherwise.",
);
pub(super) const DRY_RUN: Param =
    query("dry_run", "boolean", "Check only: answer with what would be stored, store nothing.");
pub(super) const CONSISTENCY: Param =
    query("consistency", "string", "`linearizable` (as when not said), or `stale`: this controller's copy.");
pub(super) const FIELDS: Param =
    query("fields", "string", "Only these fields, as in `metadata.name,status.phase`.");
pub(super) const LABEL_SELECTOR: Param =
    query("label_selector", "string", "`a=b,c!=d,e in (f,g),h notin (i),j,!k`: every term must hold.");
pub(super) const FIELD_SELECTOR: Param =
    query("field_selector", "string", "The same over fields, as in `status.phase=Running`.");
pub(super) const LIMIT: Param = query("limit", "integer", "Most objects of one page, 1 to 1000.");
pub(super) const PAGE_TOKEN: Param =
    query("page_token", "string", "`next_page_token` of the page before: the next one of the same revision.");
pub(super) const FORCE: Param =
    query("force", "boolean", "Remove a host that VMs are bound to; take over fields that others own.");
pub(super) const FIELD_MANAGER: Param =
    query("field_manager", "string", "Who applies; `dunlin-apply` when not said.");
pub(super) const KINDS: Param =
    query("kinds", "string", "Only these kinds, as in `Vm,Host`; every one otherwise.");
pub(super) const NAME: Param = query("name", "string", "Only objects of this name.");
pub(super) const AFTER_REVISION: Param =
    query("after_revision", "integer", "Changes after this revision; from the oldest still held otherwise.");
pub(super) const CONSOLIDATE: Param = query(
    "consolidate",
    "boolean",
    "Empty hosts, so that they can be switched off, rather than level the load.",
);
pub(super) const LEVEL: Param = query("level", "integer", "1 to 5; the cluster's own otherwise.");
pub(super) const OFFSET: Param = query("offset", "integer", "Bytes to leave out at the beginning.");
pub(super) const IF_MATCH: Param = header("If-Match", "Only at this revision: an ETag. 412 at any other.");
pub(super) const IF_NONE_MATCH: Param =
    header("If-None-Match", "Only when it is not at this revision: else 304.");
pub(super) const IDEMPOTENCY_KEY: Param = header(
    "Idempotency-Key",
    "The same key and request again: the same answer, and nothing done. 1 to 64 characters.",
);
pub(super) const LAST_EVENT_ID: Param = header("Last-Event-ID", "Goes before `after_revision`.");

/// What a route takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    Nothing,
    Json(MakeSchema),
    /// An object of the route's kind, as somebody writes it.
    Object,
    /// A part of one: a merge patch, or a document that is applied.
    Part,
    Bytes,
}

/// What a route answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answers {
    Json(MakeSchema),
    Object(Kind),
    List(Kind),
    Events,
    Bytes,
}

/// One route.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) kind: Option<Kind>,
    /// `operationId`.
    pub(super) id: String,
    pub(super) summary: String,
    params: &'static [&'static Param],
    pub(super) takes: Takes,
    pub(super) answers: Answers,
    /// The status when it is done.
    pub(super) status: u16,
    pub(super) serve: Serve,
}

impl Route {
    /// Every parameter but those of the path.
    pub(super) fn params(&self) -> impl Iterator<Item = &'static Param> {
        self.params.iter().copied().chain([&TIMEOUT])
    }
}

/// Where the objects of a kind are.
pub(super) fn place(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "/v1/cluster",
        Kind::Host => "/v1/hosts",
        Kind::Vm => "/v1/vms",
        Kind::Image => "/v1/images",
        Kind::Migration => "/v1/migrations",
        Kind::Task => "/v1/tasks",
        Kind::Event => "/v1/events",
        Kind::Recommendation => "/v1/recommendations",
        Kind::User => "/v1/users",
        Kind::Role => "/v1/roles",
        Kind::Binding => "/v1/bindings",
        Kind::Project => "/v1/projects",
        Kind::ApiToken => "/v1/api-tokens",
    }
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn noun(kind: Kind) -> String {
    kind.to_string().to_ascii_lowercase()
}

const WRITE: &[&Param] = &[&DRY_RUN, &IDEMPOTENCY_KEY];
const CHANGE: &[&Param] = &[&DRY_RUN, &IDEMPOTENCY_KEY, &IF_MATCH];
const PART: &[&Param] = &[&DRY_RUN, &IDEMPOTENCY_KEY, &IF_MATCH, &FIELD_MANAGER, &FORCE];
const REMOVE: &[&Param] = &[&DRY_RUN, &IDEMPOTENCY_KEY, &IF_MATCH, &FORCE];
const READ: &[&Param] = &[&CONSISTENCY, &FIELDS, &IF_NONE_MATCH];
const LIST: &[&Param] = &[&CONSISTENCY, &FIELDS, &LABEL_SELECTOR, &FIELD_SELECTOR, &LIMIT, &PAGE_TOKEN];
const WATCH: &[&Param] = &[&KINDS, &NAME, &LABEL_SELECTOR, &FIELD_SELECTOR, &AFTER_REVISION, &LAST_EVENT_ID];

/// The table.
pub(super) fn routes() -> Vec<Route> {
    let mut all: Vec<Route> = Kind::ALL.into_iter().flat_map(of_kind).collect();
    all.extend(of_acts());
    all.extend(of_adoption());
    all.extend(of_advice());
    all.extend(of_streams());
    all
}

fn of_kind(kind: Kind) -> Vec<Route> {
    let (place, noun) = (place(kind), noun(kind));
    let one = if kind == Kind::Cluster { place.to_owned() } else { format!("{place}/{{name}}") };
    let row = |method: Method, path: &str, verb: &str, summary: String, params, takes, serve| Route {
        method,
        path: path.to_owned(),
        kind: Some(kind),
        id: format!("{verb}_{noun}"),
        summary,
        params,
        takes,
        answers: Answers::Object(kind),
        status: 200,
        serve,
    };
    let get = row(
        Method::GET,
        &one,
        "get",
        format!("One {noun} by its name or uid"),
        READ,
        Takes::Nothing,
        objects::get as Serve,
    );
    let mut rows = vec![get];
    if kind != Kind::Cluster {
        let summary = format!("Every {noun} that matches, of one revision");
        let list = row(Method::GET, place, "list", summary, LIST, Takes::Nothing, objects::list);
        rows.push(Route { answers: Answers::List(kind), ..list });
    }
    let rights = matches!(kind, Kind::User | Kind::Role | Kind::Binding | Kind::Project);
    if rights || matches!(kind, Kind::Vm | Kind::Image | Kind::Migration) {
        let create = row(
            Method::POST,
            place,
            "create",
            format!("Make a {noun}"),
            WRITE,
            Takes::Object,
            objects::create,
        );
        rows.push(Route { status: 201, ..create });
    }
    if rights || matches!(kind, Kind::Vm | Kind::Host | Kind::Cluster) {
        let summary =
            format!("Replace the labels and spec of a {noun}; If-Match or metadata.revision is needed");
        rows.push(row(Method::PUT, &one, "replace", summary, CHANGE, Takes::Object, objects::replace));
    }
    if rights || matches!(kind, Kind::Vm | Kind::Host | Kind::Cluster | Kind::Image) {
        let summary =
            format!("Change some fields of a {noun} (merge patch), or apply a document and own its fields");
        rows.push(row(Method::PATCH, &one, "patch", summary, PART, Takes::Part, objects::patch));
    }
    if rights || matches!(kind, Kind::Vm | Kind::Host | Kind::Image | Kind::ApiToken) {
        rows.push(row(
            Method::DELETE,
            &one,
            "delete",
            format!("Remove a {noun}"),
            REMOVE,
            Takes::Nothing,
            objects::delete,
        ));
    }
    rows
}

/// A route that is about one kind and one act.
fn act(
    (method, path): (Method, &str),
    kind: Option<Kind>,
    (id, summary): (&str, &str),
    params: &'static [&'static Param],
    (takes, answers): (Takes, Answers),
    serve: Serve,
) -> Route {
    let (path, id, summary) = (path.to_owned(), id.to_owned(), summary.to_owned());
    Route { method, path, kind, id, summary, params, takes, answers, status: 200, serve }
}

/// Guests that were there before the fleet.
fn of_adoption() -> Vec<Route> {
    vec![
        act(
            (Method::GET, "/v1/unmanaged"),
            Some(Kind::Vm),
            ("list_unmanaged", "Guests on the hosts that nobody in the fleet manages"),
            &[],
            (Takes::Nothing, Answers::Json(schema::<UnmanagedVms>)),
            acts::list_unmanaged,
        ),
        act(
            (Method::POST, "/v1/unmanaged/adopt"),
            Some(Kind::Vm),
            ("adopt_vm", "Take a guest under management, where it is and as it is"),
            WRITE,
            (Takes::Json(schema::<AdoptBody>), Answers::Object(Kind::Vm)),
            acts::adopt,
        ),
        act(
            (Method::POST, "/v1/vms/{name}/release"),
            Some(Kind::Vm),
            ("release_vm", "Hand an adopted VM back as it is"),
            WRITE,
            (Takes::Nothing, Answers::Object(Kind::Vm)),
            acts::release,
        ),
    ]
}

fn of_acts() -> Vec<Route> {
    let (post, put) = (Method::POST, Method::PUT);
    let created = |route: Route| Route { status: 201, ..route };
    vec![
        act(
            (put, "/v1/vms/{name}/power"),
            Some(Kind::Vm),
            ("set_power", "Set what a VM's power should be"),
            CHANGE,
            (Takes::Json(schema::<PowerBody>), Answers::Object(Kind::Vm)),
            acts::power,
        ),
        created(act(
            (post.clone(), "/v1/tasks"),
            Some(Kind::Task),
            ("start_task", "Begin a one-shot act or long work on a VM or host"),
            WRITE,
            (Takes::Json(schema::<TaskBody>), Answers::Object(Kind::Task)),
            acts::start_task,
        )),
        act(
            (post.clone(), "/v1/tasks/{name}/cancel"),
            Some(Kind::Task),
            ("cancel_task", "Ask a task to end"),
            WRITE,
            (Takes::Nothing, Answers::Object(Kind::Task)),
            acts::cancel,
        ),
        act(
            (post.clone(), "/v1/migrations/{name}/cancel"),
            Some(Kind::Migration),
            ("cancel_migration", "Ask a migration to end"),
            WRITE,
            (Takes::Nothing, Answers::Object(Kind::Migration)),
            acts::cancel,
        ),
        act(
            (post.clone(), "/v1/recommendations/{name}/decide"),
            Some(Kind::Recommendation),
            ("decide", "Approve or dismiss a recommendation"),
            WRITE,
            (Takes::Json(schema::<DecideBody>), Answers::Object(Kind::Recommendation)),
            acts::decide,
        ),
        created(act(
            (post, "/v1/tokens"),
            None,
            ("create_token", "Mint a one-time token with which an agent joins; it is shown once"),
            WRITE,
            (Takes::Json(schema::<TokenBody>), Answers::Json(schema::<Token>)),
            acts::create_token,
        )),
    ]
}

fn of_advice() -> Vec<Route> {
    let explained = |kind: Kind, id| {
        let path = format!("{}/{{name}}/explanation", place(kind));
        act(
            (Method::GET, &path),
            Some(kind),
            (id, "Why it is as it is, and what would be decided now"),
            &[],
            (Takes::Nothing, Answers::Json(schema::<Explanation>)),
            questions::explain,
        )
    };
    vec![
        explained(Kind::Vm, "explain_vm"),
        explained(Kind::Host, "explain_host"),
        explained(Kind::Migration, "explain_migration"),
        act(
            (Method::POST, "/v1/explanation"),
            Some(Kind::Vm),
            ("explain_new_vm", "Where a VM that is yet to be created would go"),
            &[],
            (Takes::Object, Answers::Json(schema::<Explanation>)),
            questions::explain_new,
        ),
        act(
            (Method::POST, "/v1/capacity"),
            None,
            ("count_capacity", "How many more VMs of a flavour fit, and whether any so many hosts may fail"),
            &[],
            (Takes::Json(schema::<CapacityBody>), Answers::Json(schema::<Capacity>)),
            questions::capacity,
        ),
        act(
            (Method::POST, "/v1/plans/drain"),
            None,
            ("plan_drain", "How hosts would be emptied, and the proof that it works; changes nothing"),
            &[],
            (Takes::Json(schema::<DrainBody>), Answers::Json(schema::<DrainPlan>)),
            questions::plan_drain,
        ),
        act(
            (Method::GET, "/v1/plans/balance"),
            None,
            ("plan_balance", "What the balancer would move now; changes nothing"),
            &[&LEVEL, &CONSOLIDATE],
            (Takes::Nothing, Answers::Json(schema::<BalancePlan>)),
            questions::plan_balance,
        ),
        act(
            (Method::POST, "/v1/plans/balance/apply"),
            None,
            ("apply_balance", "Plan, and begin every move of the plan"),
            &[&IDEMPOTENCY_KEY],
            (Takes::Json(schema::<BalanceBody>), Answers::Json(schema::<Balanced>)),
            questions::apply_balance,
        ),
    ]
}

fn of_streams() -> Vec<Route> {
    let stored = Answers::Json(schema::<Stored>);
    vec![
        act(
            (Method::GET, "/v1/watch"),
            None,
            ("watch", "Every change after a revision, in order, as server-sent events"),
            WATCH,
            (Takes::Nothing, Answers::Events),
            events::watch,
        ),
        Route {
            status: 201,
            ..act(
                (Method::POST, "/v1/blobs"),
                None,
                ("upload_blob", "Send the bytes of an image, which are stored under their hash"),
                &[],
                (Takes::Bytes, stored),
                blobs::upload,
            )
        },
        act(
            (Method::GET, "/v1/blobs/{sha256}"),
            None,
            ("stat_blob", "Has this controller these bytes?"),
            &[],
            (Takes::Nothing, stored),
            blobs::stat,
        ),
        act(
            (Method::GET, "/v1/blobs/{sha256}/bytes"),
            None,
            ("download_blob", "Read stored bytes back"),
            &[&OFFSET],
            (Takes::Nothing, Answers::Bytes),
            blobs::download,
        ),
    ]
}
