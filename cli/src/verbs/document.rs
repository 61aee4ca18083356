//! Objects as a user writes them, in YAML or JSON.
//!
//! Nothing in them is passed over: a field that is unknown, said twice, or of another type is refused by its path, with
//! the field that was probably meant. What the fleet itself adds to an object (its status, its counters) is known by name
//! and left out. Says nothing about what values are allowed; that is for the model.

use dunlin_model::vm::VmSpec;
use dunlin_model::{Invalid, Labels, Name, VmId};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

/// Most edits between what was written and what is offered in its place, as a share of what was written.
const NEAR_SHARE: usize = 2;

/// What `vm create -f` takes from an object.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) metadata: Metadata,
    pub(crate) spec: VmSpec,
}

/// A whole object as `vm show -o yaml` prints it, with or without what the fleet adds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "kind")]
    _kind: Option<IgnoredAny>,
    #[serde(default)]
    metadata: Metadata,
    spec: VmSpec,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

/// The part of `metadata` that a user may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    #[serde(default)]
    pub(crate) name: Option<Name>,
    #[serde(default)]
    pub(crate) uid: Option<VmId>,
    #[serde(default)]
    pub(crate) labels: Labels,
    #[serde(rename = "generation")]
    _generation: Option<IgnoredAny>,
    #[serde(rename = "revision")]
    _revision: Option<IgnoredAny>,
    #[serde(rename = "created")]
    _created: Option<IgnoredAny>,
}

/// Reads a Vm. `origin` is what to call the text in a refusal.
pub(crate) fn parse(text: &[u8], origin: &str) -> Result<Document, Invalid> {
    let value = value(text, origin)?;
    let kind = value.get("kind");
    if let Some(kind) = kind.filter(|kind| kind.as_str() != Some("Vm")) {
        return Err(Invalid::new(format!("{origin}: kind"), format!("{kind} is not made here"), "Vm"));
    }
    let Written { metadata, spec, .. } = read(&value, origin)?;
    Ok(Document { metadata, spec })
}

/// Any YAML, of which JSON is a part, as JSON's value: read directly, an enum would have to be written as a YAML tag.
fn value(text: &[u8], origin: &str) -> Result<Value, Invalid> {
    let wrong = |e: serde_norway::Error| Invalid::new(origin, e.to_string(), "one object in YAML or JSON");
    // Only this value refuses a field that is said twice; the other would keep the last one.
    let _: serde_norway::Value = serde_norway::from_slice(text).map_err(wrong)?;
    let value: Value = serde_norway::from_slice(text).map_err(wrong)?;
    match &value {
        Value::Object(_) => Ok(value),
        Value::Null => Err(Invalid::new(origin, "there is nothing in it", "an object with a spec")),
        _ => Err(Invalid::new(origin, "is no object", "an object with a spec")),
    }
}

fn read<T: DeserializeOwned>(value: &Value, origin: &str) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let refusal = refusal(&error.inner().to_string());
        let path = match (path.as_str(), refusal.field.as_str()) {
            (".", "") => return Invalid { field: origin.to_owned(), ..refusal },
            (".", field) => field.to_owned(),
            (path, "") => path.to_owned(),
            (path, field) => format!("{path}.{field}"),
        };
        Invalid { field: format!("{origin}: {path}"), ..refusal }
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

/// What there is, and which of it was probably meant.
fn choices(written: &str, known: &[String]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text.as_bytes(), "web.yaml").unwrap_err().to_string()
    }

    /// A VM is read with or without what the fleet adds; its uid is kept.
    #[test]
    fn whole_objects_and_bare_specs() {
        let uid = "0b3f2ad6-0a51-4b0c-9f9a-3f0b6f2f7a01";
        let text = format!(
            "kind: Vm\nmetadata: {{name: web, uid: {uid}, revision: 9, generation: 1, created: now, labels: {{a: b}}}}\n\
             spec: {{mem_mib: 64, disks: [{{name: vda, source: {{empty_mib: 3}}}}]}}\nstatus: {{phase: Running}}\n"
        );
        let document = parse(text.as_bytes(), "web.yaml").unwrap();
        assert_eq!(document.metadata.name.unwrap().as_str(), "web");
        assert_eq!(document.metadata.uid.unwrap().to_string(), uid);
        assert_eq!((document.metadata.labels.len(), document.spec.disks.len()), (1, 1));
        assert_eq!(parse(b"{\"spec\": {\"mem_mib\": 64}}", "-").unwrap().spec.mem_mib, 64);
    }

    /// Whatever is not as it should be is refused by its path, with what would fit; nothing is passed over.
    #[test]
    fn refusals_name_the_field() {
        let check =
            |text: &str, expect: &str| assert_eq!(refused(text), format!("web.yaml{expect}"), "{text}");
        check(
            "metadata: {lables: {a: b}}\nspec: {mem_mib: 64}",
            ": metadata.lables: there is no such field; allowed: name, uid, labels, generation, revision, created; \
             did you mean `labels`?",
        );
        check(
            "specs: {mem_mib: 64}",
            ": specs: there is no such field; allowed: kind, metadata, spec, status; did you mean `spec`?",
        );
        check(
            "spec: {mem_mib: 64, disks: [{name: vda, bsu: ide, source: {empty_mib: 1}}]}",
            ": spec.disks[0].bsu: there is no such field; allowed: name, bus, format, source, shared, read_only; \
             did you mean `bus`?",
        );
        check(
            "spec: {mem_mib: 64, nics: [{model: e100}]}",
            ": spec.nics[0].model: \"e100\" is not known; allowed: virtio, e1000, rtl8139; did you mean `e1000`?",
        );
        check("spec: {cpus: 1}", ": spec.mem_mib: is missing; allowed: a value");
        check("metadata: {name: a}", ": spec: is missing; allowed: a value");
        check(
            "spec: {mem_mib: lots}",
            ": spec.mem_mib: string \"lots\" does not fit; allowed: a whole number, 0 to 18446744073709551615",
        );
        check(
            "spec: {mem_mib: 64, cpus: -1}",
            ": spec.cpus: integer -1 does not fit; allowed: a whole number, 0 to 4294967295",
        );
        check(
            "metadata: {labels: {a: 1}}\nspec: {mem_mib: 64}",
            ": metadata.labels.a: integer 1 does not fit; allowed: text",
        );
        check(
            "metadata: {name: \"-a\"}\nspec: {mem_mib: 64}",
            ": metadata.name: \"-a\" is not a name; allowed: 1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit",
        );
        check("kind: Host\nspec: {mem_mib: 64}", ": kind: \"Host\" is not made here; allowed: Vm");
        check("", ": there is nothing in it; allowed: an object with a spec");
        check("- 1", ": is no object; allowed: an object with a spec");
        assert!(refused("metadata: {uid: x}\nspec: {mem_mib: 64}").contains("metadata.uid: "));
        assert!(refused("spec: {mem_mib: 64, mem_mib: 128}").contains("duplicate entry"));
        assert!(refused("spec: {mem_mib: 64}\n---\nspec: {mem_mib: 64}").contains("more than one document"));
        assert!(refused("spec: {mem_mib: 64").contains("line 1"));
        assert!(
            refused("spec: {mem_mib: 64, disks: [{name: vda, source: {empty_mib: 1, path: /a}}]}")
                .contains("source")
        );
    }
}
