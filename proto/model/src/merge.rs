//! Documents over objects: what a patch, or a document that says only some fields, makes of `{metadata: {labels}, spec}`.
//!
//! A field is named by its JSON Pointer (RFC 6901). Objects are gone into field by field. Lists are one field each, and
//! so is what stands or falls as a whole ([`WHOLE`]): a disk list or a boot method half mine and half yours is nobody's.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Objects that are one field: an alternative, or something that is there or not.
const WHOLE: &[&str] = &["/spec/boot", "/spec/vnc", "/spec/sim"];

/// Pointers of fields.
pub type Fields = BTreeSet<String>;

/// JSON Merge Patch (RFC 7396): a null takes a field away, an object is gone into, anything else replaces.
pub fn patch(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            fields.shift_remove(name);
        } else {
            self::patch(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Every field a document says.
#[must_use]
pub fn fields(document: &Value) -> Fields {
    let mut found = Fields::new();
    walk(document, &mut String::new(), &mut |pointer, _| {
        found.insert(pointer.to_owned());
    });
    found
}

/// The fields in which two objects differ.
#[must_use]
pub fn changed(old: &Value, new: &Value) -> Fields {
    let mut found = Fields::new();
    for (one, other) in [(old, new), (new, old)] {
        walk(one, &mut String::new(), &mut |pointer, value| {
            if other.pointer(pointer) != Some(value) {
                found.insert(pointer.to_owned());
            }
        });
    }
    found
}

/// The object with what the document says, and without the fields of `dropped`.
pub fn overlay(object: &mut Value, document: &Value, dropped: &Fields) {
    dropped.iter().for_each(|pointer| remove(object, pointer));
    walk(document, &mut String::new(), &mut |pointer, value| put(object, pointer, value.clone()));
}

/// As people write it: `spec.disks`, `metadata.labels[a.b]`.
#[must_use]
pub fn readable(pointer: &str) -> String {
    let mut text = String::new();
    for token in pointer.split('/').skip(1).map(unescape) {
        match (text.as_str(), token.contains('.')) {
            (_, true) => text = format!("{text}[{token}]"),
            ("", false) => text = token,
            (_, false) => text = format!("{text}.{token}"),
        }
    }
    text
}

fn walk(value: &Value, pointer: &mut String, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(inner) if !WHOLE.contains(&pointer.as_str()) => {
            for (name, value) in inner {
                let length = pointer.len();
                pointer.push('/');
                pointer.push_str(&escape(name));
                walk(value, pointer, visit);
                pointer.truncate(length);
            }
        }
        value => visit(pointer, value),
    }
}

fn remove(object: &mut Value, pointer: &str) {
    if let Some((parent, name)) = pointer.rsplit_once('/')
        && let Some(Value::Object(fields)) = object.pointer_mut(parent)
    {
        fields.shift_remove(&unescape(name));
    }
}

fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for token in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(fields) = at else { return };
        at = fields.entry(unescape(token)).or_insert(Value::Null);
    }
    *at = value;
}

fn escape(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7396, appendix A.
    #[test]
    fn patches_as_the_rfc_says() {
        for (target, change, expect) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut result = target.clone();
            patch(&mut result, &change);
            assert_eq!(result, expect, "{target} with {change}");
        }
    }

    /// Fields are leaves, lists and wholes; a document lays over an object just these.
    #[test]
    fn documents_touch_what_they_say() {
        let mut vm = json!({
            "metadata": {"labels": {"a.b/c": "1", "old": "x"}},
            "spec": {"cpus": 1, "boot": "disk", "disks": [1], "placement": {"host": "h1", "tolerates": {"gpu": "yes"}}},
        });
        let before = vm.clone();
        let document = json!({
            "metadata": {"labels": {"a.b/c": "2"}},
            "spec": {"boot": {"kernel": {"kernel": "k"}}, "disks": [2, 3], "placement": {"host": "h2"}},
        });
        let said = ["/metadata/labels/a.b~1c", "/spec/boot", "/spec/disks", "/spec/placement/host"];
        assert_eq!(fields(&document), said.map(str::to_owned).into());
        overlay(&mut vm, &document, &["/metadata/labels/old".to_owned()].into());
        assert_eq!(vm["spec"]["placement"], json!({"host": "h2", "tolerates": {"gpu": "yes"}}));
        assert_eq!(vm["spec"]["boot"], document["spec"]["boot"]);
        assert_eq!(vm["metadata"]["labels"], json!({"a.b/c": "2"}));
        let mut touched = fields(&document);
        touched.insert("/metadata/labels/old".to_owned());
        assert_eq!(changed(&before, &vm), touched);
        assert_eq!(readable("/metadata/labels/a.b~1c"), "metadata.labels[a.b/c]");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3u8).prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..3).prop_map(Value::from),
                btree_map("[ab~/.]{0,2}|spec|boot", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        btree_map("[ab~/.]{0,2}|spec", value(), 0..4)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    proptest! {
        /// Whatever is laid over whatever else: nothing panics, the second time changes nothing, what was said is there,
        /// and nothing that was not said has changed.
        #[test]
        fn laying_over_twice_is_once(object in object(), document in object()) {
            let mut once = object.clone();
            overlay(&mut once, &document, &Fields::new());
            let mut twice = once.clone();
            overlay(&mut twice, &document, &Fields::new());
            prop_assert_eq!(&once, &twice);
            let said = fields(&document);
            for pointer in &said {
                prop_assert_eq!(once.pointer(pointer), document.pointer(pointer));
            }
            let mut patched = object.clone();
            patch(&mut patched, &document);
            let again = { let mut again = patched.clone(); patch(&mut again, &document); again };
            prop_assert_eq!(&patched, &again, "a merge patch is idempotent too");
            prop_assert!(changed(&once, &twice).is_empty());
            prop_assert_eq!(changed(&object, &object), Fields::new());
        }
    }
}
