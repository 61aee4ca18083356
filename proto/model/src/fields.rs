//! Fields of objects by their path, as in `status.phase` or `spec.disks.name`: which there are, what they hold, and
//! objects with only some of them.
//!
//! A path goes through lists as if they were not there: `spec.disks.name` is the name of any disk. Which paths there are
//! is read from the schema of the kind, so that a misspelt one is refused rather than found nowhere.

use serde_json::{Map, Value};

use crate::{Invalid, Kind, schema};

/// Most paths of one projection: an object has fewer fields worth naming.
pub const PATHS_MAX: usize = 64;
/// Longest path, bytes: far longer than any there is.
const PATH_BYTES_MAX: usize = 512;

/// A path that objects of some kind may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(Vec<String>);

impl FieldPath {
    /// Refuses what no object of that kind has, with what it has at that place. `field` names the text in a refusal.
    pub fn parse(kind: Kind, text: &str, field: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > PATH_BYTES_MAX {
            return Err(Invalid::new(field, format!("{text:?} is no path"), "a path as in status.phase"));
        }
        let root = schema::of(kind);
        let mut at = vec![root];
        for (index, name) in text.split('.').enumerate() {
            let next: Vec<&Value> = at.iter().flat_map(|node| step(root, node, name)).collect();
            if next.is_empty() {
                let begun = text.split('.').take(index).collect::<Vec<_>>().join(".");
                let place = if begun.is_empty() { format!("a {kind}") } else { begun };
                let mut known: Vec<&str> = at.iter().flat_map(|node| names(root, node)).collect();
                known.sort_unstable();
                known.dedup();
                let known = if known.is_empty() { "nothing below it".to_owned() } else { known.join(", ") };
                return Err(Invalid::new(field, format!("{place} has no field {name:?}"), known));
            }
            at = next;
        }
        Ok(Self(text.split('.').map(str::to_owned).collect()))
    }

    /// What stands there: nothing, one value, or one for each item of the lists on the way. Nulls are nothing.
    #[must_use]
    pub fn values<'v>(&self, object: &'v Value) -> Vec<&'v Value> {
        let mut found = Vec::new();
        collect(object, &self.0, &mut found);
        found
    }
}

fn collect<'v>(value: &'v Value, path: &[String], found: &mut Vec<&'v Value>) {
    match (value, path) {
        (Value::Array(items), _) => items.iter().for_each(|item| collect(item, path, found)),
        (Value::Null, _) => {}
        (_, []) => found.push(value),
        (Value::Object(fields), [first, rest @ ..]) => {
            if let Some(inner) = fields.get(first) {
                collect(inner, rest, found);
            }
        }
        _ => {}
    }
}

/// Which fields of an object are wanted. Its kind always is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection(Vec<FieldPath>);

impl Projection {
    /// Reads `metadata.name,status.phase`. Nothing asked for is everything.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, Invalid> {
        let paths = text.split(',').map(str::trim).filter(|path| !path.is_empty());
        let paths: Vec<FieldPath> =
            paths.map(|path| FieldPath::parse(kind, path, "fields")).collect::<Result<_, _>>()?;
        crate::invalid::in_range("fields", paths.len() as u64, 0..=PATHS_MAX as u64)?;
        Ok(Self(paths))
    }

    /// Is everything wanted?
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// The object with these fields alone.
    #[must_use]
    pub fn of(&self, object: Value) -> Value {
        if self.is_all() {
            return object;
        }
        let kind = [vec!["kind".to_owned()]];
        let wanted: Vec<&[String]> =
            kind.iter().map(Vec::as_slice).chain(self.0.iter().map(|path| path.0.as_slice())).collect();
        keep(object, &wanted)
    }
}

fn keep(value: Value, wanted: &[&[String]]) -> Value {
    if wanted.iter().any(|path| path.is_empty()) {
        return value;
    }
    match value {
        Value::Array(items) => items.into_iter().map(|item| keep(item, wanted)).collect(),
        Value::Object(fields) => {
            let mut kept = Map::new();
            for (name, inner) in fields {
                let below: Vec<&[String]> =
                    wanted.iter().filter(|path| path[0] == name).map(|path| &path[1..]).collect();
                if !below.is_empty() {
                    kept.insert(name, keep(inner, &below));
                }
            }
            Value::Object(kept)
        }
        other => other,
    }
}

/// The schema itself and every one it stands for: what it refers to, what it may be, what its items are.
fn forms<'s>(root: &'s Value, node: &'s Value) -> Vec<&'s Value> {
    let mut all = vec![node];
    let mut next = 0;
    while let Some(node) = all.get(next).copied() {
        next += 1;
        if let Some(to) = node.get("$ref").and_then(Value::as_str) {
            all.extend(root.pointer(to.trim_start_matches('#')));
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            all.extend(node.get(key).and_then(Value::as_array).into_iter().flatten());
        }
        all.extend(node.get("items"));
    }
    all
}

fn step<'s>(root: &'s Value, node: &'s Value, name: &str) -> Vec<&'s Value> {
    let below = |form: &'s Value| {
        let named = form.get("properties").and_then(|fields| fields.get(name));
        named.or_else(|| form.get("additionalProperties").filter(|any| any.is_object()))
    };
    forms(root, node).into_iter().filter_map(below).collect()
}

fn names<'s>(root: &'s Value, node: &'s Value) -> Vec<&'s str> {
    let fields = |form: &'s Value| form.get("properties").and_then(Value::as_object);
    forms(root, node).into_iter().filter_map(fields).flat_map(Map::keys).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Paths lead through structures, options, maps and lists; one that leads nowhere is refused with what is there.
    #[test]
    fn paths_are_those_of_the_schema() {
        for path in [
            "kind",
            "metadata.labels.app",
            "spec.boot.kernel.cmdline",
            "spec.disks.source.image",
            "spec.vnc.port",
        ] {
            FieldPath::parse(Kind::Vm, path, "fields").unwrap();
        }
        let refused = FieldPath::parse(Kind::Vm, "status.fase", "fields").unwrap_err().to_string();
        assert!(refused.starts_with("fields: status has no field \"fase\"; allowed: "), "{refused}");
        assert!(refused.contains(", phase,"), "{refused}");
        let refused = FieldPath::parse(Kind::Host, "status.phase.x", "fields").unwrap_err().to_string();
        assert!(refused.ends_with("allowed: nothing below it"), "{refused}");
        assert!(FieldPath::parse(Kind::Vm, "", "fields").is_err());
    }

    /// A projection keeps what it names, lists item by item, and the kind.
    #[test]
    fn projections_keep_what_they_name() {
        let vm = json!({
            "kind": "Vm",
            "metadata": {"name": "a", "uid": "u"},
            "spec": {"cpus": 2, "disks": [{"name": "vda", "bus": "virtio"}, {"name": "vdb"}]},
            "status": {"phase": "Running"},
        });
        let check = |fields: &str, expect: Value| {
            assert_eq!(Projection::parse(Kind::Vm, fields).unwrap().of(vm.clone()), expect, "{fields}");
        };
        check("", vm.clone());
        check(
            "metadata.name, status.phase",
            json!({"kind": "Vm", "metadata": {"name": "a"}, "status": {"phase": "Running"}}),
        );
        check(
            "spec.disks.name",
            json!({"kind": "Vm", "spec": {"disks": [{"name": "vda"}, {"name": "vdb"}]}}),
        );
        check("spec.cpus,spec", json!({"kind": "Vm", "spec": vm["spec"]}));
        check("spec.vnc.port", json!({"kind": "Vm", "spec": {}}));
    }
}
