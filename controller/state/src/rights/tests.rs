//! What rights promise, over random rules and as stories.

use std::collections::BTreeSet;

use dunlin_model::project::{ProjectSpec, Quota, Used};
use dunlin_model::rights::{ApiTokenSpec, BindingSpec, RoleRule, RoleSpec, UserSpec, Verb};
use dunlin_model::vm::VmSpec;
use dunlin_model::{ErrorCode, Kind, Labels, Name, Object, Secret, Timestamp, UserId};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Grants, RightsSpec, RightsWrite, Scope, Subject};
use crate::command::{Command, Write};
use crate::tests::{Fleet, vm_id};
use crate::{Rejected, invariant, snapshot};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(text: &[&str]) -> BTreeSet<Name> {
    text.iter().map(|text| name(text)).collect()
}

fn uid(text: &str) -> Uuid {
    let bytes = text.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    Uuid::from_u64_pair(8, bytes)
}

fn create(called: &str, spec: RightsSpec, secret: Option<&str>) -> Write {
    let (uid, name) = (uid(called), name(called));
    let secret = secret.map(Secret::new);
    Write::Rights(RightsWrite::Create { uid, name, labels: Labels::new(), spec, secret })
}

fn user(called: &str) -> Write {
    create(called, RightsSpec::User(UserSpec::default()), Some("$argon2id$planted"))
}

fn bind(called: &str, role: &str, who: &str, project: Option<&str>) -> Write {
    let (role, users, project) = (name(role), names(&[who]), project.map(name));
    create(called, RightsSpec::Binding(BindingSpec { role, users, groups: BTreeSet::new(), project }), None)
}

fn project(called: &str, quota: Quota) -> Write {
    create(called, RightsSpec::Project(ProjectSpec { description: String::new(), quota }), None)
}

fn token(called: &str, user: &str, roles: &[&str], project: Option<&str>) -> Write {
    let (user, roles, project) = (name(user), names(roles), project.map(name));
    let spec = ApiTokenSpec { user, roles, project, expires: Timestamp(100_000), session: false };
    create(called, RightsSpec::ApiToken(spec), Some(&format!("sha256 of {called}")))
}

fn subject(fleet: &Fleet, token: &str) -> Subject {
    fleet.state.bearer(&Secret::new(format!("sha256 of {token}"))).unwrap()
}

fn grants(fleet: &Fleet, token: &str) -> Grants {
    fleet.state.grants(subject(fleet, token), Timestamp(fleet.now)).unwrap()
}

/// A fleet with a project `web`, and for each of these a user of that name who has a token `t-NAME`.
fn fleet(users: &[&str]) -> Fleet {
    let mut fleet = Fleet::new(1);
    fleet.write_ok(project("web", Quota::default()));
    for called in users {
        fleet.write_ok(user(called));
        fleet.write_ok(token(&format!("t-{called}"), called, &[], None));
    }
    fleet
}

fn vm(project: &str) -> VmSpec {
    VmSpec { project: name(project), ..VmSpec::new(64) }
}

fn allowed(fleet: &Fleet, token: &str, write: &Write) -> Result<(), Rejected> {
    fleet.state.asked(write).allow(&grants(fleet, token), &fleet.state)
}

#[track_caller]
fn denied(fleet: &Fleet, token: &str, write: &Write, says: &str) {
    let refused = allowed(fleet, token, write).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Forbidden);
    assert!(refused.message.contains(says), "{refused}");
}

fn rule() -> impl Strategy<Value = RoleRule> {
    let verbs = proptest::collection::btree_set(
        prop::sample::select([&Verb::NEEDED[..], &[Verb::Any]].concat()),
        1..4,
    );
    let kinds = proptest::collection::btree_set(prop::sample::select(Kind::ALL.to_vec()), 0..5);
    (verbs, kinds).prop_map(|(verbs, kinds)| RoleRule { verbs, any_kind: kinds.is_empty(), kinds })
}

fn says(rules: &[RoleRule], verb: Verb, kind: Kind) -> bool {
    rules.iter().any(|rule| {
        let verb = rule.verbs.contains(&verb) || rule.verbs.contains(&Verb::Any);
        verb && (rule.any_kind || rule.kinds.contains(&kind))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// What may be done is exactly what some rule of a bound role says, in its project; a narrowed token allows exactly
    /// what its roles allow besides, so never more; and nobody covers a rule of which he lacks a part.
    #[test]
    fn nothing_without_a_rule_and_no_token_widens(
        mine in proptest::collection::vec(rule(), 0..4), narrow in proptest::collection::vec(rule(), 0..4),
        wide in any::<bool>(), inside in any::<bool>(),
    ) {
        let mut fleet = fleet(&["ada", "bob"]);
        fleet.write_ok(create("mine", RightsSpec::Role(RoleSpec { rules: mine.clone() }), None));
        fleet.write_ok(create("narrow", RightsSpec::Role(RoleSpec { rules: narrow.clone() }), None));
        fleet.write_ok(bind("b", "mine", "ada", (!wide).then_some("web")));
        fleet.write_ok(token("small", "ada", &["narrow"], inside.then_some("web")));
        let (web, other) = (name("web"), name("default"));
        let (ada, bob, small) = (grants(&fleet, "t-ada"), grants(&fleet, "t-bob"), grants(&fleet, "small"));
        for verb in Verb::NEEDED {
            for kind in Kind::ALL {
                let is = says(&mine, verb, kind);
                prop_assert_eq!(ada.may(verb, kind, Scope::Project(&web)), is);
                prop_assert_eq!(ada.may(verb, kind, Scope::Project(&other)), is && wide);
                prop_assert_eq!(ada.may(verb, kind, Scope::Fleet), is && wide);
                prop_assert!(!bob.may(verb, kind, Scope::Anywhere));
                let both = is && says(&narrow, verb, kind);
                prop_assert_eq!(small.may(verb, kind, Scope::Project(&web)), both);
                prop_assert_eq!(small.may(verb, kind, Scope::Fleet), both && wide && !inside);
                prop_assert_eq!(small.may(verb, kind, Scope::Project(&other)), both && wide && !inside);
                let all = grants_of_everything();
                prop_assert!(all.may(verb, kind, Scope::Fleet));
            }
        }
        for rule in &narrow {
            let verbs: Vec<Verb> = rule.verbs.iter().copied().filter(|verb| *verb != Verb::Any).collect();
            let part = |kind| verbs.iter().all(|verb| says(&mine, *verb, kind));
            let covered = ada.covers(rule, Scope::Project(&web));
            prop_assert!(!covered || Kind::ALL.into_iter().filter(|kind| rule.kinds.contains(kind)).all(part));
        }
        for rule in &mine {
            prop_assert!(ada.covers(rule, Scope::Project(&web)));
            prop_assert_eq!(ada.covers(rule, Scope::Fleet), wide || mine.is_empty());
        }
    }
}

fn grants_of_everything() -> Grants {
    Fleet::new(0).state.grants(Subject::Everything, Timestamp(0)).unwrap()
}

/// The built-in roles: a viewer reads and writes nothing, an operator runs VMs and rules nobody, an administrator of a
/// project rules in it alone, and the refusal says which verb on which kind is missing, and where.
#[test]
fn the_built_in_roles() {
    let mut fleet = fleet(&["eve", "opa", "pat", "root"]);
    fleet.write_ok(bind("b1", "viewer", "eve", None));
    fleet.write_ok(bind("b2", "operator", "opa", Some("web")));
    fleet.write_ok(bind("b3", "admin", "pat", Some("web")));
    fleet.write_ok(bind("b4", "admin", "root", None));
    let make = |project: &str| {
        let (uid, labels, spec) = (vm_id(9), Labels::new(), vm(project));
        Write::CreateVm { uid, own_uid: false, name: name("x"), labels, spec }
    };
    denied(&fleet, "t-eve", &make("web"), "eve may not: this needs the verb create on Vm in project web");
    denied(&fleet, "t-opa", &make("default"), "the verb create on Vm in project default");
    for token in ["t-opa", "t-pat", "t-root"] {
        allowed(&fleet, token, &make("web")).unwrap();
    }
    denied(&fleet, "t-opa", &bind("c", "viewer", "opa", Some("web")), "create on Binding");
    allowed(&fleet, "t-pat", &bind("c", "operator", "eve", Some("web"))).unwrap();
    denied(&fleet, "t-pat", &bind("c", "viewer", "eve", None), "create on Binding in the whole fleet");
    denied(&fleet, "t-pat", &project("more", Quota::default()), "create on Project in the whole fleet");
    denied(
        &fleet,
        "t-pat",
        &Write::CreateToken { sha256: String::new(), role: dunlin_model::Role::Host, expires: Timestamp(1) },
        "create on Host",
    );
    allowed(&fleet, "t-root", &project("more", Quota::default())).unwrap();
    let role = fleet.state.role_named(&name("viewer")).unwrap().metadata.clone();
    let (uid, revision) = (role.uid.0, role.revision);
    let spec = RightsSpec::Role(RoleSpec::default());
    let write = RightsWrite::Update { uid, revision, labels: Labels::new(), spec };
    assert_eq!(fleet.write_refused(Write::Rights(write)).code, ErrorCode::WrongState);
    let write = RightsWrite::Delete { kind: Kind::Role, uid };
    assert_eq!(fleet.write_refused(Write::Rights(write)).code, ErrorCode::WrongState);
}

/// Nobody gives away more than he has: by a binding, a role, a group, another's password or another's token.
#[test]
fn nobody_gives_away_more_than_he_has() {
    let mut fleet = fleet(&["clerk", "root"]);
    let rules = vec![RoleRule {
        verbs: [Verb::Read, Verb::Create, Verb::Update, Verb::Delete].into(),
        kinds: [Kind::User, Kind::Role, Kind::Binding, Kind::ApiToken].into(),
        any_kind: false,
    }];
    fleet.write_ok(create("registrar", RightsSpec::Role(RoleSpec { rules: rules.clone() }), None));
    fleet.write_ok(bind("b1", "registrar", "clerk", None));
    fleet.write_ok(bind("b2", "admin", "root", None));
    let mut chiefs =
        BindingSpec { role: name("admin"), users: names(&[]), groups: BTreeSet::new(), project: None };
    chiefs.groups.insert("chiefs".to_owned());
    fleet.write_ok(create("b3", RightsSpec::Binding(chiefs), None));
    let root = UserId(uid("root"));
    let chief = UserSpec { groups: ["chiefs".to_owned()].into(), ..UserSpec::default() };
    let clerk = fleet.state.user_named(&name("clerk")).unwrap().metadata.clone();
    let (labels, revision) = (Labels::new(), clerk.revision);
    let grow =
        RightsWrite::Update { uid: clerk.uid.0, revision, labels, spec: RightsSpec::User(chief.clone()) };
    for write in [
        bind("c", "admin", "clerk", None),
        create(
            "r",
            RightsSpec::Role(RoleSpec {
                rules: vec![RoleRule { verbs: [Verb::Any].into(), kinds: [].into(), any_kind: true }],
            }),
            None,
        ),
        create("u", RightsSpec::User(chief), None),
        Write::Rights(grow),
        Write::Rights(RightsWrite::SetPassword { user: root, hash: None }),
        token("t", "root", &[], None),
    ] {
        denied(&fleet, "t-clerk", &write, "give away rights in the whole fleet");
        allowed(&fleet, "t-root", &write).unwrap();
    }
    allowed(&fleet, "t-clerk", &bind("c", "registrar", "root", None)).unwrap();
    // His own password and tokens need no right, unless by a token that was made to do less.
    fleet.write_ok(token("narrow", "clerk", &["registrar"], None));
    let own = Write::Rights(RightsWrite::SetPassword { user: UserId(clerk.uid.0), hash: None });
    for write in [own, token("t", "clerk", &[], None)] {
        allowed(&fleet, "t-clerk", &write).unwrap();
        fleet.write_ok(user(&format!("u{}", fleet.index)));
    }
    let own = Write::Rights(RightsWrite::SetPassword { user: UserId(uid("root")), hash: None });
    denied(&fleet, "narrow", &own, "give away");
}

/// A token that has expired, was deleted, or whose user is disabled or gone, is refused at once; what named the user goes
/// with him, and another of the same name has none of it.
#[test]
fn what_is_revoked_is_revoked_at_once() {
    let mut fleet = fleet(&["ada"]);
    fleet.write_ok(bind("b", "admin", "ada", None));
    let (ada, subject) = (UserId(uid("ada")), subject(&fleet, "t-ada"));
    let check = |fleet: &Fleet, now: u64| {
        fleet.state.grants(subject, Timestamp(now)).map(drop).map_err(|e| (e.code, e.message))
    };
    assert_eq!(check(&fleet, 99_999), Ok(()));
    let refused = |fleet: &Fleet, now: u64, says: &str| {
        let (code, message) = check(fleet, now).unwrap_err();
        assert!(code == ErrorCode::Unauthenticated && message.contains(says), "{message}");
    };
    refused(&fleet, 100_000, "expired");
    let disable = |fleet: &mut Fleet, disabled: bool| {
        let (labels, revision) = (Labels::new(), fleet.state.user(ada).unwrap().metadata.revision);
        let spec = RightsSpec::User(UserSpec { disabled, ..UserSpec::default() });
        fleet.write_ok(Write::Rights(RightsWrite::Update { uid: ada.0, revision, labels, spec }));
    };
    disable(&mut fleet, true);
    refused(&fleet, 1, "disabled");
    disable(&mut fleet, false);
    assert_eq!(check(&fleet, 1), Ok(()));
    fleet.write_ok(Write::Rights(RightsWrite::Delete { kind: Kind::User, uid: ada.0 }));
    refused(&fleet, 1, "revoked");
    assert!(
        fleet.state.password(ada).is_none() && fleet.state.bearer(&Secret::new("sha256 of t-ada")).is_none()
    );
    fleet.write_ok(user("ada"));
    fleet.write_ok(token("t2", "ada", &[], None));
    assert!(!grants(&fleet, "t2").may(Verb::Read, Kind::Vm, Scope::Anywhere));
    fleet.now += 100_000 + 86_400_000;
    assert!(fleet.state.needs_sweep(Timestamp(fleet.now)));
    fleet.ok(&Command::Sweep);
    assert_eq!(fleet.state.api_tokens().count(), 0);
}

/// Quotas: each bound is checked as a VM is created or grows, what shrinks is never refused, what is deleted makes room,
/// the count survives a snapshot, and a project with VMs stays.
#[test]
fn quotas_hold() {
    let mut fleet = fleet(&[]);
    let quota = Quota { vms: Some(2), vcpus: Some(3), mem_mib: Some(200), storage_mib: Some(10) };
    fleet.write_ok(project("small", quota));
    let make = |number: u64, spec: VmSpec| {
        let called = name(&format!("vm{number}"));
        Write::CreateVm { uid: vm_id(number), own_uid: false, name: called, labels: Labels::new(), spec }
    };
    fleet.write_ok(make(1, VmSpec { cpus: 2, ..vm("small") }));
    let disk = r#"{"name": "vda", "source": {"empty_mib": 11}}"#;
    let disk: dunlin_model::vm::Disk = serde_json::from_str(disk).unwrap();
    for (spec, says) in [
        (VmSpec { cpus: 2, ..vm("small") }, "project small may have 3 vcpus, has 2, and would have 4"),
        (VmSpec { mem_mib: 137, ..vm("small") }, "200 mem_mib, has 64, and would have 201"),
        (VmSpec { disks: vec![disk], ..vm("small") }, "10 storage_mib, has 0, and would have 11"),
    ] {
        let refused = fleet.write_refused(make(2, spec));
        assert!(refused.code == ErrorCode::QuotaExceeded && refused.message.contains(says), "{refused}");
    }
    fleet.write_ok(make(2, vm("small")));
    assert_eq!(fleet.write_refused(make(3, vm("small"))).code, ErrorCode::QuotaExceeded);
    assert_eq!(fleet.write_refused(make(3, vm("nowhere"))).code, ErrorCode::NotFound);
    let resize = |fleet: &Fleet, spec: VmSpec| {
        let revision = fleet.state.vm(vm_id(1)).unwrap().metadata.revision;
        Write::UpdateVm { uid: vm_id(1), revision, labels: Labels::new(), spec }
    };
    let grown = resize(&fleet, VmSpec { cpus: 3, ..vm("small") });
    assert_eq!(fleet.write_refused(grown).code, ErrorCode::QuotaExceeded);
    let shrunk = resize(&fleet, vm("small"));
    fleet.write_ok(shrunk);
    assert_eq!(fleet.state.used(&name("small")), Used { vms: 2, vcpus: 2, mem_mib: 128, storage_mib: 0 });
    let mut bytes = Vec::new();
    snapshot::encode(&fleet.state, &mut bytes).unwrap();
    let read = snapshot::decode(&mut bytes.as_slice()).unwrap();
    invariant::check(&read).unwrap();
    assert_eq!(read.used(&name("small")).vms, 2);
    let delete = Write::Rights(RightsWrite::Delete { kind: Kind::Project, uid: uid("small") });
    assert_eq!(fleet.write_refused(delete).code, ErrorCode::InUse);
    let moved = resize(&fleet, vm("web"));
    fleet.write_ok(moved);
    fleet.write_ok(make(3, vm("small")));
    fleet.write_ok(Write::DeleteVm { uid: vm_id(3) });
    fleet.ok(&Command::ForgetVm { vm: vm_id(3) });
    assert_eq!((fleet.state.used(&name("small")).vms, fleet.state.used(&name("web")).vms), (1, 1));
}

/// What is in another project is not there, as far as anybody without a right in it can tell; one's own is.
#[test]
fn other_projects_are_not_seen() {
    let mut fleet = fleet(&["opa"]);
    fleet.write_ok(bind("b", "operator", "opa", Some("web")));
    fleet.create(1, vm("web"));
    fleet.running(2, 0, 64);
    fleet.write_ok(Fleet::migration(1, 2, None));
    let opa = grants(&fleet, "t-opa");
    let seen = |object: Option<&std::sync::Arc<Object>>| opa.sees(&fleet.state, object.unwrap());
    assert!(seen(fleet.state.object(Kind::Vm, vm_id(1).0)));
    assert!(!seen(fleet.state.object(Kind::Vm, vm_id(2).0)));
    assert!(!seen(fleet.state.objects_of(Kind::Migration).next()));
    assert!(seen(fleet.state.object_named(Kind::User, &name("opa"))));
    assert!(seen(fleet.state.object_named(Kind::ApiToken, &name("t-opa"))));
    let events = fleet.state.objects_of(Kind::Event);
    assert_eq!(events.filter(|event| opa.sees(&fleet.state, event)).count(), 1);
    let refused = allowed(&fleet, "t-opa", &Write::DeleteVm { uid: vm_id(2) }).unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound);
    allowed(&fleet, "t-opa", &Write::DeleteVm { uid: vm_id(1) }).unwrap();
    // Nothing that is printed of a command or an object holds a hash.
    let command = format!("{:?}", user("eve"));
    assert!(!command.contains("planted"), "{command}");
    let objects = serde_json::to_string(&fleet.state.objects.values().collect::<Vec<_>>()).unwrap();
    assert!(!objects.contains("planted") && !objects.contains("sha256 of"), "{objects}");
}
