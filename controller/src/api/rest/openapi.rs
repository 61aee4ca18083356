//! The OpenAPI 3.1 document, made from the table of routes and the types that serde reads and writes.

use std::sync::LazyLock;

use dunlin_model::cluster::Cluster;
use dunlin_model::event::Event;
use dunlin_model::host::Host;
use dunlin_model::image::Image;
use dunlin_model::migration::Migration;
use dunlin_model::project::Project;
use dunlin_model::recommendation::Recommendation;
use dunlin_model::rights::{ApiToken, Binding, Role, User};
use dunlin_model::task::Task;
use dunlin_model::vm::Vm;
use dunlin_model::{ErrorCode, Kind};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::objects::{APPLY_PATCH, MERGE_PATCH};
use super::problem::Problem;
use super::route::{Answers, At, Param, Route, Takes, routes};

/// Where the types are described.
const SCHEMAS: &str = "/components/schemas";

/// The document.
pub(super) fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(make);
    &DOCUMENT
}

fn make() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = SCHEMAS.into();
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes() {
        let operation = operation(&route, &mut generator);
        let path = paths.entry(route.path.clone()).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let problem = generator.subschema_for::<Problem>();
    for (path, about) in
        [("/healthz", "Does this controller run?"), ("/readyz", "May this controller be asked?")]
    {
        paths.insert(path.to_owned(), json!({"get": {
            "operationId": path.trim_start_matches('/'),
            "summary": about,
            "responses": {
                "200": {"description": "Yes."},
                "503": {"description": "No.", "content": {"application/problem+json": {"schema": problem}}},
            },
        }}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Dunlin fleet API",
            "version": "v1",
            "description": "Virtual machines over a fleet of hosts. Every object reads as {kind, metadata, spec, status}.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {"Problem": {
                "description": format!("Why not (RFC 9457). Codes: {}.", codes()),
                "content": {"application/problem+json": {"schema": problem}},
            }},
        },
    })
}

fn codes() -> String {
    ErrorCode::ALL.iter().map(|code| format!("{code} {}", code.http())).collect::<Vec<_>>().join(", ")
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    parameters.extend(route.params().map(parameter));
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            route.status.to_string(): {"description": "Done.", "content": answers(route, generator)},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    });
    if let Some(content) = takes(route, generator) {
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn parameter(param: &Param) -> Value {
    let at = match param.at {
        At::Query => "query",
        At::Header => "header",
    };
    json!({"name": param.name, "in": at, "description": param.about, "schema": {"type": param.is}})
}

fn takes(route: &Route, generator: &mut SchemaGenerator) -> Option<Value> {
    match route.takes {
        Takes::Nothing => None,
        Takes::Json(make) => Some(json!({"application/json": {"schema": make(generator)}})),
        Takes::Object => {
            Some(json!({"application/json": {"schema": written(route.kind?, generator, false)}}))
        }
        Takes::Part => {
            let schema = written(route.kind?, generator, true);
            Some(json!({MERGE_PATCH: {"schema": schema}, APPLY_PATCH: {"schema": schema}}))
        }
        Takes::Bytes => Some(json!({"application/octet-stream": {}})),
    }
}

fn answers(route: &Route, generator: &mut SchemaGenerator) -> Value {
    match route.answers {
        Answers::Json(make) => json!({"application/json": {"schema": make(generator)}}),
        Answers::Object(kind) => json!({"application/json": {"schema": object(kind, generator)}}),
        Answers::List(kind) => json!({"application/json": {"schema": {
            "type": "object",
            "properties": {
                "kind": {"const": "List"},
                "revision": {"type": "integer", "description": "The revision the list was read at: watch from here."},
                "items": {"type": "array", "items": object(kind, generator)},
                "next_page_token": {"type": "string", "description": "There is more: give it back as page_token."},
            },
            "required": ["kind", "revision", "items"],
        }}}),
        Answers::Events => json!({"text/event-stream": {"schema": {"type": "string"}}}),
        Answers::Bytes => json!({"application/octet-stream": {}}),
    }
}

fn object(kind: Kind, generator: &mut SchemaGenerator) -> Value {
    let schema = match kind {
        Kind::Cluster => generator.subschema_for::<Cluster>(),
        Kind::Host => generator.subschema_for::<Host>(),
        Kind::Vm => generator.subschema_for::<Vm>(),
        Kind::Image => generator.subschema_for::<Image>(),
        Kind::Migration => generator.subschema_for::<Migration>(),
        Kind::Task => generator.subschema_for::<Task>(),
        Kind::Event => generator.subschema_for::<Event>(),
        Kind::Recommendation => generator.subschema_for::<Recommendation>(),
        Kind::User => generator.subschema_for::<User>(),
        Kind::Role => generator.subschema_for::<Role>(),
        Kind::Binding => generator.subschema_for::<Binding>(),
        Kind::Project => generator.subschema_for::<Project>(),
        Kind::ApiToken => generator.subschema_for::<ApiToken>(),
    };
    schema.into()
}

/// An object as somebody writes it. Of a part nothing is required, and null takes a field away.
fn written(kind: Kind, generator: &mut SchemaGenerator, part: bool) -> Value {
    // What is written refers to what is answered.
    object(kind, generator);
    let spec = if part || kind == Kind::Migration {
        json!({"type": "object", "description": format!("Fields of the spec of a {kind}.")})
    } else {
        json!({"$ref": format!("#{SCHEMAS}/{kind}Spec")})
    };
    let mut schema = json!({
        "type": "object",
        "description": format!("A {kind} as it is answered, of which status and counters do not count."),
        "properties": {
            "kind": {"const": kind},
            "metadata": {"type": "object", "properties": {
                "name": {"type": "string"},
                "uid": {"type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
                "revision": {"type": "integer", "description": "As If-Match, but refused with 409."},
            }},
            "spec": spec,
            "status": {"description": "Left out."},
        },
    });
    if !part {
        schema["required"] = json!(["metadata", "spec"]);
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Where the document lies for those who read it without a controller.
    const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

    /// The committed document is the one that is served. `DUNLIN_BLESS=1` writes it.
    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let text = serde_json::to_string_pretty(document()).unwrap() + "\n";
        if std::env::var_os("DUNLIN_BLESS").is_some() {
            std::fs::write(COMMITTED, &text).unwrap();
        }
        let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
        assert!(committed == text, "docs/openapi.json is out of date: run this test with DUNLIN_BLESS=1");
    }

    /// Every operation has a name of its own, every type it names is described, and every route is in it.
    #[test]
    fn the_document_is_whole() {
        let document = document();
        let mut ids = BTreeSet::new();
        for route in routes() {
            let operation = &document["paths"][&route.path][route.method.as_str().to_ascii_lowercase()];
            assert_eq!(operation["operationId"], route.id.as_str());
            assert!(ids.insert(route.id.clone()), "{} twice", route.id);
        }
        let text = document.to_string();
        for found in text.split("\"$ref\":\"#").skip(1) {
            let pointer = found.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer} is not described");
        }
    }
}
