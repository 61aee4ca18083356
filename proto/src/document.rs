//! Objects as they are written in JSON and YAML by people and programs.
//!
//! Nothing in them is passed over: a field that is unknown or of another type is refused by its path, with the field that
//! was probably meant. What the fleet itself adds to an object (its status, its counters) is known by name and left out.
//! Says nothing about what values are allowed; that is for the model.

use dunlin_model::cluster::ClusterSpec;
use dunlin_model::host::HostSpec;
use dunlin_model::image::ImageSpec;
use dunlin_model::meta::Metadata;
use dunlin_model::project::ProjectSpec;
use dunlin_model::rights::{BindingSpec, RoleSpec, UserSpec};
use dunlin_model::vm::VmSpec;
use dunlin_model::{
    BindingId, ClusterId, Generation, HostId, ImageId, Invalid, Kind, Labels, Name, Object, ProjectId,
    Resource, Revision, RoleId, Timestamp, UserId, VmId,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use uuid::Uuid;

/// Most edits between what was written and what is offered in its place, as a share of what was written.
const NEAR_SHARE: usize = 2;

/// A whole object as it is shown, with or without what the fleet adds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written<Spec> {
    #[serde(rename = "kind")]
    _kind: Option<IgnoredAny>,
    /// What it is called.
    #[serde(default)]
    pub metadata: Card,
    /// What is asked.
    pub spec: Spec,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

/// The part of `metadata` that a user may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Its name.
    #[serde(default)]
    pub name: Option<Name>,
    /// Its uid, if it has one already.
    #[serde(default)]
    pub uid: Option<Uuid>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    #[serde(rename = "generation")]
    _generation: Option<IgnoredAny>,
    /// The revision it was read at.
    #[serde(default)]
    pub revision: Option<Revision>,
    #[serde(rename = "created")]
    _created: Option<IgnoredAny>,
}

/// The kind a document says it is of.
pub fn kind(document: &Value) -> Result<Kind, Invalid> {
    let all = Kind::ALL.map(|kind| kind.to_string()).join(", ");
    match document.get("kind") {
        Some(Value::String(text)) => {
            let known = Kind::ALL.into_iter().find(|kind| kind.to_string() == *text);
            known.ok_or_else(|| {
                let known = Kind::ALL.map(|kind| kind.to_string());
                Invalid::new("kind", format!("{text:?} is not known"), choices(text, &known))
            })
        }
        Some(other) => Err(Invalid::new("kind", format!("{other} is no kind"), all)),
        None => Err(Invalid::new("kind", "is missing", all)),
    }
}

/// Reads an object that may be written by hand: a Cluster, Host, Vm, Image, User, Role, Binding or Project.
pub fn object(kind: Kind, document: &Value) -> Result<Object, Invalid> {
    if document.get("kind").is_some() {
        let said = self::kind(document)?;
        if said != kind {
            return Err(Invalid::new("kind", format!("is {said}"), kind.to_string()));
        }
    }
    match kind {
        Kind::Cluster => whole::<_, ClusterSpec, _>(document, ClusterId).map(Object::Cluster),
        Kind::Host => whole::<_, HostSpec, _>(document, HostId).map(Object::Host),
        Kind::Vm => whole::<_, VmSpec, _>(document, VmId).map(Object::Vm),
        Kind::Image => whole::<_, ImageSpec, _>(document, ImageId).map(Object::Image),
        Kind::User => whole::<_, UserSpec, _>(document, UserId).map(Object::User),
        Kind::Role => whole::<_, RoleSpec, _>(document, RoleId).map(Object::Role),
        Kind::Binding => whole::<_, BindingSpec, _>(document, BindingId).map(Object::Binding),
        Kind::Project => whole::<_, ProjectSpec, _>(document, ProjectId).map(Object::Project),
        Kind::Migration | Kind::Task | Kind::Event | Kind::Recommendation | Kind::ApiToken => {
            Err(Invalid::new(
                "kind",
                format!("a {kind} is not written as a document"),
                "Cluster, Host, Vm, Image, User, Role, Binding or Project",
            ))
        }
    }
}

fn whole<Id, Spec: DeserializeOwned, Status: Default>(
    document: &Value,
    id: fn(Uuid) -> Id,
) -> Result<Resource<Id, Spec, Status>, Invalid> {
    let Written { metadata: card, spec, .. } = read::<Written<Spec>>(document)?;
    let name = card.name.ok_or_else(|| Invalid::new("metadata.name", "is missing", "a name"))?;
    let metadata = Metadata {
        name,
        uid: id(card.uid.unwrap_or(Uuid::nil())),
        labels: card.labels,
        generation: Generation(0),
        revision: card.revision.unwrap_or_default(),
        created: Timestamp(0),
    };
    Ok(Resource { metadata, spec, status: Status::default() })
}

/// Reads any value; a refusal names the field by its path.
pub fn read<T: DeserializeOwned>(document: &Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        let refusal = refusal(&error.inner().to_string());
        let field = match (path.as_str(), refusal.field.as_str()) {
            (".", "") => String::new(),
            (".", field) => field.to_owned(),
            (path, "") => path.to_owned(),
            (path, field) => format!("{path}.{field}"),
        };
        Invalid { field, ..refusal }
    })
}

/// serde's words in ours. The field is what is missing within the path, if anything is.
fn refusal(words: &str) -> Invalid {
    let quoted =
        |words: &str| -> Vec<String> { words.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    if let Some(rest) = words.strip_prefix("missing field ") {
        return Invalid::new(quoted(rest).join("."), "is missing", "a value");
    }
    for (prefix, problem) in [("unknown field ", "there is no such field"), ("unknown variant ", "")] {
        let Some(rest) = words.strip_prefix(prefix) else { continue };
        let names = quoted(rest);
        let Some((written, known)) = names.split_first() else { continue };
        let problem =
            if problem.is_empty() { format!("{written:?} is not known") } else { problem.to_owned() };
        return Invalid::new("", problem, choices(written, known));
    }
    for prefix in ["invalid type: ", "invalid value: "] {
        let Some((found, expected)) =
            words.strip_prefix(prefix).and_then(|rest| rest.split_once(", expected "))
        else {
            continue;
        };
        return Invalid::new("", format!("{} does not fit", found.replace('`', "")), in_words(expected));
    }
    // A value that the model parses has said it all already, in our own words.
    match words.rsplit_once("; allowed: ") {
        Some((problem, allowed)) => {
            let problem = problem.split_once(": ").map_or(problem, |(_, problem)| problem);
            Invalid::new("", problem, allowed)
        }
        None => Invalid::new("", words, "as `vm show -o yaml` prints it"),
    }
}

/// What there is, and which of it was probably meant: for the `allowed` of a refusal.
pub fn choices(written: &str, known: &[String]) -> String {
    let all = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
    let written = written.to_lowercase();
    let near = known.iter().map(|name| (strsim::damerau_levenshtein(&written, name), name)).min();
    match near {
        Some((edits, name)) if edits * NEAR_SHARE <= written.chars().count() => {
            format!("{all}; did you mean `{name}`?")
        }
        _ => all,
    }
}

fn in_words(expected: &str) -> String {
    match expected {
        "u8" => format!("a whole number, 0 to {}", u8::MAX),
        "u16" => format!("a whole number, 0 to {}", u16::MAX),
        "u32" => format!("a whole number, 0 to {}", u32::MAX),
        "u64" => format!("a whole number, 0 to {}", u64::MAX),
        "a string" | "a borrowed string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object of fields".to_owned(),
        struct_ if struct_.starts_with("struct ") => "an object of fields".to_owned(),
        other => other.replace('`', ""),
    }
}
