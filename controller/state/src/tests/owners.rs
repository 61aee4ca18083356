use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{ErrorCode, Kind, Labels};

use super::{Fleet, vm_id};
use crate::command::Write;
use crate::owners::{Claim, Expected, Owners};

fn claimed(manager: &str, fields: &[&str], force: bool, write: Write) -> Write {
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    let claim = Some(Claim { manager: manager.to_owned(), fields, force });
    Write::Checked { expect: None, claim, asked: String::new(), write: Box::new(write) }
}

fn update(fleet: &Fleet, change: impl FnOnce(&mut VmSpec)) -> Write {
    let vm = fleet.state.vm(vm_id(1)).unwrap();
    let mut spec = vm.spec.clone();
    change(&mut spec);
    Write::UpdateVm { uid: vm_id(1), revision: vm.metadata.revision, labels: Labels::new(), spec }
}

fn owners(fleet: &Fleet) -> Owners {
    fleet.state.owners(Kind::Vm, vm_id(1).0).cloned().unwrap_or_default()
}

fn of(parts: &[(&str, &[&str])]) -> Owners {
    let fields = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
    parts.iter().map(|(manager, own)| ((*manager).to_owned(), fields(own))).collect()
}

/// Whoever applies a field owns it until it changes otherwise: by another who forces it, or by a hand; with the object the
/// owners go too.
#[test]
fn fields_have_owners() {
    let mut fleet = Fleet::new(1);
    let create = Write::CreateVm {
        uid: vm_id(1),
        own_uid: false,
        name: "vm1".parse().unwrap(),
        labels: Labels::new(),
        spec: VmSpec::new(64),
    };
    fleet.write_ok(claimed("a", &["/spec/mem_mib", "/spec/cpus"], false, create));

    // The same value is shared, another is refused and leaves no trace, and forced it is taken.
    let same = update(&fleet, |_| ());
    let before = fleet.state.revision();
    fleet.write_ok(claimed("b", &["/spec/cpus"], false, same));
    assert_eq!(fleet.state.revision(), before, "one more owner is no change");
    let more = update(&fleet, |spec| spec.cpus = 2);
    let refused = fleet.write_refused(claimed("b", &["/spec/cpus"], false, more.clone()));
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (ErrorCode::FieldConflict, "a owns spec.cpus, which b would change")
    );
    fleet.write_ok(claimed("b", &["/spec/cpus"], true, more));
    assert_eq!(owners(&fleet), of(&[("a", &["/spec/mem_mib"]), ("b", &["/spec/cpus"])]));

    // A hand takes what it changes from everybody, and gives it to nobody.
    let by_hand = update(&fleet, |spec| spec.mem_mib = 128);
    fleet.write_ok(by_hand);
    assert_eq!(owners(&fleet), of(&[("b", &["/spec/cpus"])]));
    fleet.write_ok(Write::SetPower { uid: vm_id(1), power: Power::Running });
    assert_eq!(owners(&fleet), of(&[("b", &["/spec/cpus"])]));

    // What is not at the revision expected is not written.
    let at = |fleet: &Fleet| fleet.state.vm(vm_id(1)).unwrap().metadata.revision;
    let expect = |revision| Some(Expected { kind: Kind::Vm, uid: vm_id(1).0, revision });
    let delete = |revision| Write::Checked {
        expect: expect(revision),
        claim: None,
        asked: String::new(),
        write: Box::new(Write::DeleteVm { uid: vm_id(1) }),
    };
    let stale = fleet.write_refused(delete(before));
    assert!(stale.code == ErrorCode::StaleRevision && stale.current.is_some());
    let now = at(&fleet);
    fleet.write_ok(delete(now));
    fleet.ok(&crate::Command::ForgetVm { vm: vm_id(1) });
    assert_eq!(owners(&fleet), Owners::new());
}
