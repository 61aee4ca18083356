//! Whose the fields of an object are: what somebody applied as a document belongs to him until somebody else changes it.
//!
//! ```text
//!  apply by A: spec.cpus   -> A owns spec.cpus, and no longer what A applied before and does not say now
//!  apply by B: spec.cpus   -> the same value: both own it. Another value: refused, or forced: B owns it, A does not
//!  any other write of it   -> nobody owns it; the next apply that says it takes it back
//! ```
//! DECISION: a change by hand (`vm start`, a patch) is drift and not a claim: `diff` shows it and `apply` puts it right,
//! without `--force`. Owners are kept beside the objects, not in them: an object reads the same whoever applied it, and
//! one more owner of an unchanged field is no change of the object.

use std::collections::BTreeMap;

use dunlin_model::merge::{Fields, changed, readable};
use dunlin_model::{ErrorCode, Kind, Object, Revision};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::draft::{Draft, refuse_stale};
use crate::{Rejected, State};

/// Fields by manager.
pub type Owners = BTreeMap<String, Fields>;

/// Managers of one object: more is a fight.
pub const MANAGERS_MAX: usize = 16;
/// Fields named in a refusal; the rest are counted.
const NAMED_MAX: usize = 3;

/// An object that must be at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Its kind.
    pub kind: Kind,
    /// Its uid.
    pub uid: Uuid,
    /// Its revision.
    pub revision: Revision,
}

/// Who applies, and what he says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who.
    pub manager: String,
    /// Every field of his document.
    pub fields: Fields,
    /// Fields that others own and that change are taken from them.
    pub force: bool,
}

impl State {
    /// Who owns fields of that object, and which.
    #[must_use]
    pub fn owners(&self, kind: Kind, uid: Uuid) -> Option<&Owners> {
        self.owners.get(&(kind, uid))
    }
}

/// Carries a write out if the object is as expected, and settles whose its fields are. `before` is the object that it
/// changes.
pub(crate) fn checked(
    draft: &mut Draft,
    expect: Option<&Expected>,
    claim: Option<&Claim>,
    before: Option<(Kind, Uuid)>,
    write: impl FnOnce(&mut Draft) -> Result<(), Rejected>,
) -> Result<(), Rejected> {
    if let Some(Expected { kind, uid, revision }) = expect {
        let noun = kind.to_string().to_ascii_lowercase();
        let gone = || Rejected::new(ErrorCode::NotFound, format!("no {noun} has the uid {uid}"));
        let object = draft.state.object(*kind, *uid).cloned().ok_or_else(gone)?;
        refuse_stale(Object::clone(&object), *revision)?;
    }
    let Some(claim) = claim else { return write(draft) };
    let before = before.and_then(|(kind, uid)| draft.state.object(kind, uid).cloned());
    draft.claiming = true;
    write(draft)?;
    draft.claiming = false;
    let Some(key) = draft.about() else { return Ok(()) };
    let moved = match (before, draft.state.objects.get(&key)) {
        (Some(old), Some(new)) => changed(&old.intent(), &new.intent()),
        _ => Fields::new(),
    };
    let mut owners = draft.state.owners.get(&key).cloned().unwrap_or_default();
    take(&mut owners, claim, &moved)?;
    if owners.is_empty() {
        draft.state.owners.remove(&key);
    } else {
        draft.state.owners.insert(key, owners);
    }
    Ok(())
}

/// Gives the claim's fields to its manager. `moved` are those that changed.
fn take(owners: &mut Owners, claim: &Claim, moved: &Fields) -> Result<(), Rejected> {
    for (manager, own) in owners.iter_mut().filter(|(manager, _)| **manager != claim.manager) {
        let clash: Vec<String> = own.intersection(moved).map(|pointer| readable(pointer)).collect();
        if !clash.is_empty() && !claim.force {
            let more = clash.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named = clash.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("{manager} owns {named}{more}, which {} would change", claim.manager);
            return Err(Rejected::new(ErrorCode::FieldConflict, message));
        }
        own.retain(|pointer| !moved.contains(pointer));
    }
    owners.remove(&claim.manager);
    if !claim.fields.is_empty() {
        owners.insert(claim.manager.clone(), claim.fields.clone());
    }
    owners.retain(|_, own| !own.is_empty());
    if owners.len() > MANAGERS_MAX {
        let message = format!("{MANAGERS_MAX} field managers own parts of it already");
        return Err(Rejected::new(ErrorCode::InvalidArgument, message));
    }
    Ok(())
}

/// A change that nobody applied: what changed is nobody's.
pub(crate) fn release(draft: &mut Draft, key: (Kind, Uuid), old: &Object, new: &Object) {
    if draft.claiming || old.same_intent(new) {
        return;
    }
    let Some(mut owners) = draft.state.owners.get(&key).cloned() else { return };
    let moved = changed(&old.intent(), &new.intent());
    for own in owners.values_mut() {
        own.retain(|pointer| !moved.contains(pointer));
    }
    owners.retain(|_, own| !own.is_empty());
    if owners.is_empty() {
        draft.state.owners.remove(&key);
    } else {
        draft.state.owners.insert(key, owners);
    }
}
