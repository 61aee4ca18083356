//! Which objects are meant: by their labels, or by what their fields hold.
//!
//! ```text
//!  selector = term { "," term }
//!  term     = key "=" value | key "==" value | key "!=" value | key "in" "(" value { "," value } ")"
//!           | key "notin" "(" value { "," value } ")" | key | "!" key
//! ```
//! Every term must hold. What is absent is unequal to everything: `a!=b` and `a notin (b)` match objects without `a`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fields::FieldPath;
use crate::invalid::in_range;
use crate::{Invalid, Kind, Labels};

/// Most terms of one selector: each is asked of every object of a list.
pub const TERMS_MAX: u64 = 32;
/// Longest selector, bytes: a URL must hold it.
pub const SELECTOR_BYTES_MAX: u64 = 4_096;

/// What is asked of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Any,
    Absent,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

impl Test {
    fn holds<'v>(&self, mut values: impl Iterator<Item = &'v str>) -> bool {
        match self {
            Self::Any => values.next().is_some(),
            Self::Absent => values.next().is_none(),
            Self::In(wanted) => values.any(|value| wanted.contains(value)),
            Self::NotIn(unwanted) => !values.any(|value| unwanted.contains(value)),
        }
    }
}

/// Objects whose labels are so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, Test)>);

impl LabelSelector {
    /// Reads one. Nothing asked for matches everything.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        terms(text, "label_selector").map(Self)
    }

    /// Is nothing asked for?
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// Are these labels so?
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, test)| test.holds(labels.get(key).map(String::as_str).into_iter()))
    }
}

/// Objects whose fields are so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(FieldPath, Test)>);

impl FieldSelector {
    /// Reads one for objects of that kind; a path that they do not have is refused.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, Invalid> {
        let path = |(key, test): (String, Test)| Ok((FieldPath::parse(kind, &key, "field_selector")?, test));
        terms(text, "field_selector")?.into_iter().map(path).collect::<Result<_, _>>().map(Self)
    }

    /// Is nothing asked for?
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// Are the fields of this object, as JSON, so? Of a list it is enough that one item is.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, test)| {
            let texts: Vec<String> = path.values(object).into_iter().map(text).collect();
            test.holds(texts.iter().map(String::as_str))
        })
    }
}

/// A field's value as a selector writes it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn terms(selector: &str, field: &str) -> Result<Vec<(String, Test)>, Invalid> {
    if selector.trim().is_empty() {
        return Ok(Vec::new());
    }
    in_range(&format!("{field} (bytes)"), selector.len() as u64, 0..=SELECTOR_BYTES_MAX)?;
    let mut found = Vec::new();
    let mut rest = selector;
    loop {
        let (now, later) = first_term(rest);
        found.push(term(now.trim()).ok_or_else(|| {
            let problem = format!("{:?} is no term", now.trim());
            Invalid::new(field, problem, "a=b, a!=b, a in (b,c), a notin (b,c), a, !a; several with commas")
        })?);
        match later {
            Some(later) => rest = later,
            None => break,
        }
    }
    in_range(&format!("{field} (terms)"), found.len() as u64, 0..=TERMS_MAX)?;
    Ok(found)
}

/// Up to the first comma that is not between brackets, and what follows it.
fn first_term(text: &str) -> (&str, Option<&str>) {
    let mut inside = false;
    for (at, c) in text.char_indices() {
        match c {
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => return (&text[..at], Some(&text[at + 1..])),
            _ => {}
        }
    }
    (text, None)
}

fn term(text: &str) -> Option<(String, Test)> {
    let key = |text: &str| {
        let text = text.trim();
        let fits = !text.is_empty() && !text.contains(['=', '!', '(', ')', ',', ' ']);
        fits.then(|| text.to_owned())
    };
    if let Some(absent) = text.strip_prefix('!') {
        return Some((key(absent)?, Test::Absent));
    }
    if let Some(list) = text.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let (name, word) = head.trim().rsplit_once(' ')?;
        let values: BTreeSet<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
        return match word {
            "in" => Some((key(name)?, Test::In(values))),
            "notin" => Some((key(name)?, Test::NotIn(values))),
            _ => None,
        };
    }
    let one = |value: &str| BTreeSet::from([value.trim().to_owned()]);
    if let Some((name, value)) = text.split_once("!=") {
        return Some((key(name)?, Test::NotIn(one(value))));
    }
    if let Some((name, value)) = text.split_once('=') {
        return Some((key(name)?, Test::In(one(value.strip_prefix('=').unwrap_or(value)))));
    }
    Some((key(text)?, Test::Any))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Each form of a term means what it says; absent labels are unequal to everything.
    #[test]
    fn labels() {
        let labels: Labels = [("app", "web"), ("tier", "front"), ("empty", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let check = |text: &str, expect: bool| {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), expect, "{text}");
        };
        for text in [
            "",
            "app=web",
            "app==web",
            "app",
            "!x",
            "x!=y",
            "app in (db, web)",
            "app notin (db),tier=front",
            "empty=",
        ] {
            check(text, true);
        }
        for text in ["app=db", "app!=web", "!app", "x", "app in (db)", "app notin (web)", "app=web,tier=back"]
        {
            check(text, false);
        }
        for text in ["=", "a b", "a in b", "app=web,", "!", "a of (b)", "!a=b", "()", "a in (b"] {
            let refused = LabelSelector::parse(text).unwrap_err();
            assert_eq!(refused.field, "label_selector", "{text}");
        }
    }

    /// Fields are compared as text; a list matches when one item does; a path there is not is refused.
    #[test]
    fn fields() {
        let vm = json!({
            "spec": {"cpus": 2, "boot": "disk", "disks": [{"name": "vda"}, {"name": "vdb"}]},
            "status": {"phase": "Running", "host": null},
        });
        let check = |text: &str, expect: bool| {
            assert_eq!(FieldSelector::parse(Kind::Vm, text).unwrap().matches(&vm), expect, "{text}");
        };
        check("status.phase=Running", true);
        check("status.phase in (Paused,Running),spec.cpus=2", true);
        check("status.phase!=Running", false);
        check("status.host", false);
        check("!status.host", true);
        check("spec.disks.name=vdb", true);
        check("spec.disks.name notin (vdb)", false);
        assert!(FieldSelector::parse(Kind::Vm, "status.fase=x").is_err());
    }

    proptest! {
        /// Whatever is typed is read or refused, and what is read can be asked.
        #[test]
        fn nothing_panics(text in "[ab=!,() in]{0,24}|\\PC{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let _ = selector.matches(&Labels::new());
            }
            if let Ok(selector) = FieldSelector::parse(Kind::Host, &text) {
                let _ = selector.matches(&json!({"status": {"phase": "Up"}}));
            }
        }
    }
}
