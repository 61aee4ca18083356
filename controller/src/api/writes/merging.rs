//! Writes that say only a part: a patch, and a document that somebody applies. Both are laid over what is stored.
//!
//! DECISION: the leader merges, and `apply` checks. The log carries the whole object and the revision it was made from, so
//! replicas of different versions cannot read a document differently; when the object was written in between, the
//! revision is stale and the merge is made anew. Whose the fields are is settled when the command is applied.

use dunlin_model::invalid::in_range;
use dunlin_model::merge::{self, Fields, overlay};
use dunlin_model::{Invalid, Kind, Name, Object, Revision};
use dunlin_proto::{Fault, document, read, v1};
use dunlin_state::owners::{Claim, Expected};
use dunlin_state::rights::RightsSpec;
use dunlin_state::{State, Write};
use serde_json::{Value, json};

use super::{create_image, create_vm, find, made, replaced};
use crate::mint;

/// Who applies when nobody says.
const MANAGER: &str = "dunlin-apply";
/// Longest name of a manager, bytes.
const MANAGER_BYTES_MAX: u64 = 64;

/// A merge patch over labels and spec.
pub(super) fn patch(request: &v1::PatchRequest, state: &State) -> Result<Write, Fault> {
    let kind: Kind = read(request.kind, "kind")?;
    let change = parse(&request.patch, "patch")?;
    let found = find(state, kind, &request.name)?;
    let mut whole = found.intent();
    merge::patch(&mut whole, &change);
    let revision = match request.revision {
        0 => found.revision(),
        asked => Revision(asked),
    };
    let write = over(found, whole, revision)?;
    let asked = format!("patch {kind} {} {} {change}", found.uid(), request.revision);
    Ok(Write::Checked { expect: None, claim: None, asked: mint::sha256_hex(&asked), write: Box::new(write) })
}

/// A document over what is stored, or in place of nothing.
pub(super) fn apply(request: &v1::ApplyRequest, state: &State) -> Result<Write, Fault> {
    let kind: Kind = read(request.kind, "kind")?;
    let said = parse(&request.document, "document")?;
    let name: Name = match (kind, request.name.as_str()) {
        // There is one, whatever it is called.
        (Kind::Cluster, "") => find(state, kind, "")?.name().clone(),
        (_, name) => name.parse()?,
    };
    let manager = if request.field_manager.is_empty() { MANAGER } else { &request.field_manager };
    in_range("field_manager (bytes)", manager.len() as u64, 1..=MANAGER_BYTES_MAX)?;
    let intent = intent(&said)?;
    let fields = merge::fields(&intent);
    let write = match state.object_named(kind, &name) {
        Some(stored) => {
            refuse_other_uid(&said, stored)?;
            let mut whole = stored.intent();
            overlay(&mut whole, &intent, &unsaid(state, stored, manager, &fields));
            over(stored, whole, stored.revision())?
        }
        None => anew(kind, &name, &said, state)?,
    };
    let asked = format!("apply {kind} {name} {manager} {} {said}", request.force);
    let claim = Claim { manager: manager.to_owned(), fields, force: request.force };
    Ok(Write::Checked {
        expect: None::<Expected>,
        claim: Some(claim),
        asked: mint::sha256_hex(&asked),
        write: Box::new(write),
    })
}

fn parse(text: &str, field: &str) -> Result<Value, Invalid> {
    let value: Value = serde_json::from_str(text)
        .map_err(|e| Invalid::new(field, format!("is no JSON: {e}"), "a JSON object"))?;
    if value.is_object() { Ok(value) } else { Err(Invalid::new(field, "is no object", "a JSON object")) }
}

/// The part of a document that its writer owns afterwards.
fn intent(said: &Value) -> Result<Value, Invalid> {
    let spec = said.get("spec").cloned().unwrap_or_else(|| json!({}));
    if !spec.is_object() {
        return Err(Invalid::new("spec", "is no object", "an object of fields"));
    }
    match said.pointer("/metadata/labels") {
        None | Some(Value::Null) => Ok(json!({ "spec": spec })),
        Some(labels) => Ok(json!({ "metadata": { "labels": labels }, "spec": spec })),
    }
}

/// What the manager applied before and does not say now, and nobody else does either.
fn unsaid(state: &State, stored: &Object, manager: &str, said: &Fields) -> Fields {
    let Some(owners) = state.owners(stored.kind(), stored.uid()) else { return Fields::new() };
    let others: Fields =
        owners.iter().filter(|(other, _)| *other != manager).flat_map(|(_, fields)| fields.clone()).collect();
    let own = owners.get(manager).into_iter().flatten();
    own.filter(|field| !said.contains(*field) && !others.contains(*field)).cloned().collect()
}

/// The write that makes the stored object say `whole`.
fn over(stored: &Object, mut whole: Value, revision: Revision) -> Result<Write, Fault> {
    let named = whole.pointer("/metadata/name");
    if named.is_some_and(|name| name.as_str() != Some(stored.name().as_str())) {
        let problem = "cannot be changed";
        return Err(Invalid::new("metadata.name", problem, stored.name().to_string()).into());
    }
    if let Some(metadata) = whole.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("name".to_owned(), stored.name().as_str().into());
    } else {
        whole["metadata"] = json!({ "name": stored.name().as_str() });
    }
    refuse_other_uid(&whole, stored)?;
    let object = document::object(stored.kind(), &whole)?;
    let said = object.revision();
    let revision = if said == Revision(0) { revision } else { said };
    Ok(replaced(stored.uid(), revision, object, Some(stored))?)
}

fn refuse_other_uid(said: &Value, stored: &Object) -> Result<(), Invalid> {
    match said.pointer("/metadata/uid").and_then(Value::as_str) {
        Some(uid) if uid != stored.uid().to_string() => {
            Err(Invalid::new("metadata.uid", "is another object's", stored.uid().to_string()))
        }
        _ => Ok(()),
    }
}

/// The write that makes what is not there yet.
fn anew(kind: Kind, name: &Name, said: &Value, state: &State) -> Result<Write, Fault> {
    if let Kind::Host | Kind::Cluster = kind {
        // Neither is made by a document: the refusal says what there is.
        find(state, kind, name.as_str())?;
    }
    let mut whole = said.clone();
    let metadata = whole.as_object_mut().map(|fields| fields.entry("metadata").or_insert_with(|| json!({})));
    match metadata {
        Some(Value::Object(metadata)) => {
            metadata.insert("name".to_owned(), name.as_str().into());
            // It was that of an object that is gone.
            metadata.shift_remove("revision");
        }
        _ => return Err(Invalid::new("metadata", "is no object", "an object of fields").into()),
    }
    match document::object(kind, &whole)? {
        Object::Vm(vm) => Ok(create_vm(vm)),
        Object::Image(image) => Ok(create_image(image)?),
        Object::User(user) => Ok(made(user, RightsSpec::User)),
        Object::Role(role) => Ok(made(role, RightsSpec::Role)),
        Object::Binding(binding) => Ok(made(binding, RightsSpec::Binding)),
        Object::Project(project) => Ok(made(project, RightsSpec::Project)),
        other => {
            let problem = format!("a {} is not made by a document", other.kind());
            let allowed = "Vm, Image, User, Role, Binding or Project";
            Err(Invalid::new("kind", problem, allowed).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::{ErrorCode, Timestamp};
    use dunlin_proto::Wire as _;
    use dunlin_state::{Command, Outcome, Stamp};

    use super::*;

    /// A state alone, without a controller around it.
    struct Alone(State);

    impl Alone {
        fn carry_out(&mut self, write: Result<Write, Fault>) -> Result<Outcome, Fault> {
            let (index, key) = (self.0.index() + 1, format!("k{}", self.0.index()));
            let command = Command::Write { key, write: write? };
            let stamp = Stamp { index, time: Timestamp(index) };
            dunlin_state::apply(&mut self.0, &stamp, &command).map_err(crate::api::rejected_fault)
        }

        fn apply(&mut self, manager: &str, document: &Value) -> Result<Outcome, Fault> {
            let write = apply(&request(manager, document), &self.0);
            self.carry_out(write)
        }
    }

    fn request(manager: &str, document: &Value) -> v1::ApplyRequest {
        v1::ApplyRequest {
            kind: Kind::Vm.to_wire(),
            name: "web".to_owned(),
            document: document.to_string(),
            field_manager: manager.to_owned(),
            ..v1::ApplyRequest::default()
        }
    }

    fn vm(state: &State) -> Value {
        state.object_named(Kind::Vm, &"web".parse().unwrap()).unwrap().intent()
    }

    /// Whatever a document says, applied twice it changes nothing the second time, addresses that the fleet minted
    /// included; what it no longer says goes back to its default, and what another says stays.
    #[test]
    fn applying_twice_is_once() {
        let mut alone = Alone(State::new());
        for document in [
            json!({"spec": {"mem_mib": 64}}),
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"mem_mib": 64, "nics": [{}], "vnc": {"password": "x"}}}),
            json!({"spec": {"mem_mib": 128, "cpus": 3, "nics": [{}, {"model": "e1000"}], "placement": {"host_labels": {"d": "ssd"}}}}),
            json!({"spec": {"mem_mib": 128, "sim": {"boot_ms": 7}, "placement": {"rules": []}}}),
            json!({"metadata": {"labels": null}, "spec": {"mem_mib": 64, "cpu_model": "qemu64"}}),
        ] {
            let once = alone.apply("", &document).unwrap();
            let after = vm(&alone.0);
            let twice = alone.apply("", &document).unwrap();
            assert_eq!((twice.revision, &vm(&alone.0)), (once.revision, &after), "{document}");
        }
        assert_eq!(vm(&alone.0)["spec"]["cpus"], 1, "it was said once, and then no more");
        assert_eq!(vm(&alone.0)["metadata"]["labels"], json!({}));
        alone.apply("ci", &json!({"spec": {"cpus": 2}})).unwrap();
        alone.apply("", &json!({"spec": {"mem_mib": 64}})).unwrap();
        assert_eq!(vm(&alone.0)["spec"]["cpus"], 2);
        let conflict = alone.apply("", &json!({"spec": {"mem_mib": 64, "cpus": 4}})).unwrap_err();
        assert_eq!(conflict.code, ErrorCode::FieldConflict);
        let missing = alone.apply("", &json!({"spec": {}})).unwrap_err();
        assert_eq!(missing.message, "spec.mem_mib: is missing; allowed: a value");
    }

    /// The same key and document again is the same answer, although the object is there by then.
    #[test]
    fn a_repeated_apply_is_recognised() {
        let mut alone = Alone(State::new());
        let ask = request("", &json!({"spec": {"mem_mib": 64}}));
        let mut under_one_key = || {
            let write = apply(&ask, &alone.0).unwrap();
            let stamp = Stamp { index: alone.0.index() + 1, time: Timestamp(1) };
            dunlin_state::apply(&mut alone.0, &stamp, &Command::Write { key: "k".to_owned(), write }).unwrap()
        };
        assert!(!under_one_key().repeated);
        assert!(under_one_key().repeated);
    }
}
