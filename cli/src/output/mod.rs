//! What the user sees: tables, JSON, YAML, and progress. Never decides anything.

pub(crate) mod advice;
pub(crate) mod progress;
mod rights;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::io::Write;

use dunlin_model::{ErrorCode, Object, Revision, Timestamp};
use serde::Serialize;

use crate::args::Format;
use crate::client::correlation;
use crate::failure::Failure;

/// A list as it reads in JSON and YAML.
#[derive(Serialize)]
struct List<'a> {
    kind: &'static str,
    revision: Revision,
    items: &'a [Object],
}

/// What tables need beside the objects: names behind uids, and what time it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// Host names by uid.
    pub(crate) hosts: BTreeMap<uuid::Uuid, String>,
    pub(crate) now: Timestamp,
}

impl Surroundings {
    /// The clock of this machine, for ages in tables.
    pub(crate) fn at_this_moment() -> Self {
        let since_1970 =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX));
        Self { hosts: BTreeMap::new(), now }
    }
}

/// Prints one object; as a table it is a table of one row, or its YAML with `show`.
pub(crate) fn object(format: Format, object: &Object) -> Result<(), Failure> {
    match format {
        Format::Json => json(object),
        Format::Table | Format::Wide | Format::Yaml => yaml(object),
    }
}

/// Prints an answer that is no object.
pub(crate) fn value(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    if format == Format::Json { json(value) } else { yaml(value) }
}

/// Prints a list.
pub(crate) fn list(
    format: Format,
    revision: Revision,
    items: &[Object],
    around: &Surroundings,
) -> Result<(), Failure> {
    let list = List { kind: "List", revision, items };
    match format {
        Format::Json => json(&list),
        Format::Yaml => yaml(&list),
        Format::Table | Format::Wide => line(&table::render(items, format == Format::Wide, around)),
    }
}

/// Prints what a verb did to an object: one line, or the object itself when a format was asked for.
pub(crate) fn done(format: Format, what: &str, made: &Object) -> Result<(), Failure> {
    match format {
        Format::Table | Format::Wide => {
            line(&format!("{} {} {what}", made.kind().to_string().to_lowercase(), made.name()))
        }
        Format::Json | Format::Yaml => object(format, made),
    }
}

/// Prints a line to standard output. A reader that has gone away is not an error worth telling.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::io("writing to standard output")),
    }
}

/// Tells of a failure: for people a sentence, for programs the code too.
pub(crate) fn failed(format: Format, failure: &Failure) {
    if let Failure::Differs(_) | Failure::Sick(_) = failure {
        return remark(&failure.to_string());
    }
    match (format, failure.code()) {
        (Format::Json, code) => {
            let code = code.map(dunlin_model::ErrorCode::as_str);
            let told = serde_json::json!({"error": {"code": code, "message": failure.to_string(), "correlation": correlation()}});
            remark(&told.to_string());
        }
        // Somebody else will be asked about these: he finds them by this id in the audit log.
        (_, Some(code @ (ErrorCode::Forbidden | ErrorCode::Unauthenticated | ErrorCode::Internal))) => {
            remark(&format!("error: {failure} [{code}] (correlation {})", correlation()));
        }
        (_, Some(code)) => remark(&format!("error: {failure} [{code}]")),
        (_, None) => remark(&format!("error: {failure}")),
    }
}

/// Prints a line for people to standard error, where it does not mix with what a script reads.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// An object as JSON's value.
pub(crate) fn value_of(object: &Object) -> serde_json::Value {
    serde_json::to_value(object).expect("objects have string keys")
}

/// YAML as it is printed.
pub(crate) fn yaml_text(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("objects have string keys");
    serde_norway::to_string(&value).expect("a JSON value is YAML")
}

fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).expect("objects have string keys"))
}

/// YAML by way of JSON's value, so that both read alike: written directly, an enum would become a YAML tag.
fn yaml(value: &impl Serialize) -> Result<(), Failure> {
    line(&yaml_text(value))
}
