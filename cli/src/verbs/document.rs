//! Objects as a user writes them, in YAML or JSON, in files.
//!
//! Whatever is refused is refused by the name of the file and the path within it. What may stand in an object is for
//! `dunlin_proto::document`, what values are allowed for the model.

use dunlin_model::Invalid;
use dunlin_model::vm::VmSpec;
use dunlin_proto::document::{self, Written};
use serde::Deserialize as _;
use serde_json::Value;

/// What `vm create -f` takes from an object.
pub(crate) type Document = Written<VmSpec>;

/// Reads a Vm. `origin` is what to call the text in a refusal.
pub(crate) fn parse(text: &[u8], origin: &str) -> Result<Document, Invalid> {
    let value = value(text, origin)?;
    let kind = value.get("kind");
    if let Some(kind) = kind.filter(|kind| kind.as_str() != Some("Vm")) {
        return Err(Invalid::new(format!("{origin}: kind"), format!("{kind} is not made here"), "Vm"));
    }
    document::read(&value).map_err(|e| within(origin, e))
}

/// The refusal, with the name of the text it stands in.
pub(crate) fn within(origin: &str, refusal: Invalid) -> Invalid {
    let field =
        if refusal.field.is_empty() { origin.to_owned() } else { format!("{origin}: {}", refusal.field) };
    Invalid { field, ..refusal }
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

/// Every document of a text, in order; empty ones are passed over. Each with what to call it in a refusal.
pub(crate) fn all(text: &[u8], origin: &str) -> Result<Vec<(String, Value)>, Invalid> {
    let mut found = Vec::new();
    for (number, document) in (1..).zip(serde_norway::Deserializer::from_slice(text)) {
        let place = format!("{origin}, document {number}");
        let wrong =
            |e: serde_norway::Error| Invalid::new(place.clone(), e.to_string(), "an object in YAML or JSON");
        let value = serde_norway::Value::deserialize(document).map_err(wrong)?;
        if value.is_null() {
            continue;
        }
        let value: Value = serde_json::to_value(&value)
            .map_err(|e| Invalid::new(place.clone(), e.to_string(), "keys that are text"))?;
        match value.get("kind").and_then(Value::as_str) {
            // As `get` and every `list` print it.
            Some("List") => {
                let items = value.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
                let named = (1..).zip(items).map(|(item, value)| (format!("{place}, item {item}"), value));
                found.extend(named);
            }
            _ => found.push((place, value)),
        }
    }
    if found.len() == 1 {
        origin.clone_into(&mut found[0].0);
    }
    Ok(found)
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
