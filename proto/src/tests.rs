//! The properties of the conversions.

use std::fmt::Debug;

use dunlin_model::task::Act;
use dunlin_model::vm::{Disk, Power, Vm, VmSpec};
use dunlin_model::{Invalid, Object};
use proptest::prelude::*;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Wire, strategy, v1};

fn through_bytes<M: Wire<W> + Clone, W: Message + Default>(value: &M) -> M {
    let bytes = value.clone().to_wire().encode_to_vec();
    M::from_wire(W::decode(&*bytes).unwrap()).unwrap()
}

fn through_json<M: Serialize + DeserializeOwned + PartialEq + Debug>(value: &M) -> M {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// An object comes out of bytes, and out of JSON, as it went in.
    #[test]
    fn objects_survive_the_wire(vm in strategy::vm(), host in strategy::host(), migration in strategy::migration(),
                                task in strategy::task(), recommendation in strategy::recommendation()) {
        for object in [Object::from(vm), host.into(), migration.into(), task.into(), recommendation.into()] {
            prop_assert_eq!(&through_bytes::<_, v1::Object>(&object), &object);
            prop_assert_eq!(&through_json(&object), &object);
        }
    }

    /// What a host is told and what it reports come out of bytes, and out of JSON, as they went in.
    #[test]
    fn the_session_survives_the_wire(desired in strategy::desired(), observed in strategy::observed()) {
        prop_assert_eq!(&through_bytes::<_, v1::DesiredSet>(&desired), &desired);
        prop_assert_eq!(&through_json(&desired), &desired);
        prop_assert_eq!(&through_bytes::<_, v1::ObservedVm>(&observed), &observed);
        prop_assert_eq!(&through_json(&observed), &observed);
    }

    /// No bytes whatever make the reader panic, and what it accepts it writes back as the same value.
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in strategy::vm().prop_map(|vm| v1::Object::from(Object::from(vm)).encode_to_vec()),
                                     hits in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6)) {
        for (at, byte) in hits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(Ok(object)) = v1::Object::decode(&*bytes).map(Object::try_from) {
            prop_assert_eq!(&through_bytes::<_, v1::Object>(&object), &object);
        }
    }
}

fn vm() -> v1::Vm {
    v1::Vm {
        metadata: Some(v1::Metadata { name: "web".into(), ..Default::default() }),
        spec: Some(v1::VmSpec {
            mem_mib: 512,
            disks: vec![v1::Disk {
                name: "vda".into(),
                source: Some(v1::DiskSource { choice: Some(v1::disk_source::Choice::EmptyMib(64)) }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        status: None,
    }
}

/// The least that a client may send to create a VM means what the same YAML means: every default of the model.
#[test]
fn absent_fields_take_the_defaults_of_the_model() {
    let vm = Vm::try_from(vm()).unwrap();
    let disk: Disk = serde_json::from_str(r#"{"name": "vda", "source": {"empty_mib": 64}}"#).unwrap();
    let expected = VmSpec { disks: vec![disk], ..VmSpec::new(512) };
    assert_eq!(vm.spec, expected);
    assert!(vm.metadata.uid.0.is_nil());
    let empty = dunlin_model::cluster::ClusterSpec::try_from(v1::ClusterSpec::default()).unwrap();
    assert_eq!(empty, dunlin_model::cluster::ClusterSpec::default());
    let empty = dunlin_model::migration::MigrationLimits::try_from(v1::MigrationLimits::default()).unwrap();
    assert_eq!(empty, dunlin_model::migration::MigrationLimits::default());
    let empty = dunlin_model::vm::SimSpec::try_from(v1::SimSpec::default()).unwrap();
    assert_eq!(empty, dunlin_model::vm::SimSpec::default());
}

/// A refusal names the field by the path it has in YAML.
#[test]
fn refusals_name_the_field() {
    type Spoil = fn(&mut v1::Vm);
    let refused = |change: Spoil| {
        let mut vm = vm();
        change(&mut vm);
        Vm::try_from(vm).expect_err("must be refused").field
    };
    let table: &[(&str, Spoil)] = &[
        ("metadata", |vm| vm.metadata = None),
        ("metadata.name", |vm| vm.metadata.as_mut().unwrap().name = "-".into()),
        ("metadata.uid", |vm| vm.metadata.as_mut().unwrap().uid = "7".into()),
        ("metadata.labels[\"\"]", |vm| {
            vm.metadata.as_mut().unwrap().labels.insert(String::new(), "x".into());
        }),
        ("spec", |vm| vm.spec = None),
        ("spec.power", |vm| vm.spec.as_mut().unwrap().power = 99),
        ("spec.cpus", |vm| vm.spec.as_mut().unwrap().cpus = Some(0)),
        ("spec.mem_mib", |vm| vm.spec.as_mut().unwrap().mem_mib = 0),
        ("spec.disks[0].bus", |vm| vm.spec.as_mut().unwrap().disks[0].bus = 99),
        ("spec.disks[0].bus", |vm| vm.spec.as_mut().unwrap().disks[0].bus = v1::DiskBus::Ide.into()),
        ("spec.disks[0].source", |vm| vm.spec.as_mut().unwrap().disks[0].source = None),
        ("spec.disks[0].source", |vm| {
            vm.spec.as_mut().unwrap().disks[0].source = Some(v1::DiskSource { choice: None });
        }),
        ("spec.disks[0].source.image", |vm| {
            let choice = v1::disk_source::Choice::Image("a b".into());
            vm.spec.as_mut().unwrap().disks[0].source = Some(v1::DiskSource { choice: Some(choice) });
        }),
        ("spec.boot.kernel.initrd.image", |vm| {
            let file =
                |name: &str| Some(v1::FileRef { choice: Some(v1::file_ref::Choice::Image(name.to_owned())) });
            let kernel =
                v1::boot::Kernel { kernel: file("vmlinuz"), initrd: file(""), cmdline: String::new() };
            let choice = Some(v1::boot::Choice::Kernel(kernel));
            vm.spec.as_mut().unwrap().boot = Some(v1::Boot { choice });
        }),
        ("spec.vnc.port.fixed", |vm| {
            let port = Some(v1::VncPort { choice: Some(v1::vnc_port::Choice::Fixed(70_000)) });
            vm.spec.as_mut().unwrap().vnc = Some(v1::Vnc { port, ..Default::default() });
        }),
        ("metadata.created_ms", |vm| vm.metadata.as_mut().unwrap().created_ms = u64::MAX),
        ("status.host", |vm| {
            vm.status = Some(v1::VmStatus { host: Some("h1".into()), ..Default::default() });
        }),
    ];
    for (field, change) in table {
        assert_eq!(refused(*change), *field);
    }
}

/// Inside what a host is told, too: limits and images are validated where they stand.
#[test]
fn refusals_inside_a_desired_set_name_the_field() {
    let uid = "00000000-0000-0000-0000-000000000001";
    let assignment = |role: v1::role::Choice, mem_mib: u64| v1::Assignment {
        vm: uid.into(),
        name: "web".into(),
        spec: Some(v1::VmSpec { mem_mib, ..Default::default() }),
        role: Some(v1::Role { choice: Some(role) }),
        ..Default::default()
    };
    let set = |assignment: v1::Assignment| v1::DesiredSet {
        host: uid.into(),
        assignments: vec![assignment],
        ..Default::default()
    };
    let field = |set: v1::DesiredSet| {
        dunlin_model::desired::DesiredSet::try_from(set).expect_err("must be refused").field
    };
    let hold = || v1::role::Choice::Hold(v1::Unit {});
    assert_eq!(field(set(assignment(hold(), 1))), "assignments[0].spec.mem_mib");
    let limits = v1::MigrationLimits { timeout_s: Some(0), ..Default::default() };
    let receive = v1::role::Receive { migration: uid.into(), limits: Some(limits), ..Default::default() };
    let role = v1::role::Choice::Receive(receive);
    assert_eq!(field(set(assignment(role, 512))), "assignments[0].role.receive.limits.timeout_s");
    let step = v1::role::Send {
        migration: uid.into(),
        endpoint: Some(v1::Endpoint::default()),
        ..Default::default()
    };
    assert_eq!(field(set(assignment(v1::role::Choice::Send(step), 512))), "assignments[0].role.send.step");
    let mut bad = set(assignment(hold(), 512));
    let image = v1::ImageSpec {
        format: v1::ImageFormat::Raw.into(),
        sha256: "00".into(),
        size_bytes: 1,
        ..Default::default()
    };
    bad.images.insert("debian".into(), image);
    assert_eq!(field(bad), "images[debian].sha256");
}

/// A request that forgot to say which power or act is refused: no default stops a guest.
#[test]
fn outside_a_spec_power_and_act_have_no_default() {
    let unset: Result<Power, Invalid> = v1::Power::Unspecified.try_into();
    unset.expect_err("must be refused");
    let unset: Result<Act, Invalid> = v1::Act { choice: None }.try_into();
    unset.expect_err("must be refused");
}

/// The small kinds and reports, too, come out as they went in.
#[test]
fn the_small_ones_survive_the_wire() {
    let objects = [
        r#"{"kind": "Cluster", "metadata": METADATA,
            "spec": {"placement": "pack", "cpu_overcommit_percent": 150, "host_reserve_mib": 0, "migrations_per_host": 3,
                "migrations_per_fleet": 9, "spare_hosts": 1, "balance": {"mode": "auto", "level": 5},
                "weights": {"load": 7}, "without": ["apart-from"], "mem_overcommit_percent": 120},
            "status": {"controllers": [{"id": 1, "endpoint": "https://c1:7000"}], "leader": 1}}"#,
        r#"{"kind": "Image", "metadata": METADATA, "spec": {"format": "vmdk", "sha256":
            "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "size_bytes": 9, "source": "x"}, "status": {}}"#,
        r#"{"kind": "Event", "metadata": METADATA, "spec": {"level": "warning", "reason": "HostDown", "message": "m",
            "about": {"kind": "Host", "name": "h1", "uid": "00000000-0000-0000-0000-000000000009"}}, "status": {}}"#,
        r#"{"kind": "User", "metadata": METADATA, "spec": {"display_name": "Ada", "groups": ["/a b"], "disabled": true,
            "vouched_by": "https://i#7"}, "status": {"password_set": "2026-11-23T10:00:00.123Z"}}"#,
        r#"{"kind": "Role", "metadata": METADATA, "spec": {"rules": [{"verbs": ["read", "console"], "kinds": ["Vm", "ApiToken"]},
            {"verbs": ["any"], "any_kind": true}]}, "status": {"built_in": true}}"#,
        r#"{"kind": "Binding", "metadata": METADATA, "spec": {"role": "viewer", "users": ["ada"], "groups": ["g"],
            "project": "web"}, "status": {}}"#,
        r#"{"kind": "Project", "metadata": METADATA, "spec": {"description": "d", "quota": {"vms": 1, "vcpus": 2, "mem_mib": 3,
            "storage_mib": 4}}, "status": {"used": {"vms": 5, "vcpus": 6, "mem_mib": 7, "storage_mib": 8}}}"#,
        r#"{"kind": "ApiToken", "metadata": METADATA, "spec": {"user": "ada", "roles": ["viewer"], "project": "web",
            "expires": "2026-11-23T10:00:00.123Z", "session": true}, "status": {"last_used": "2026-11-23T10:00:00.123Z"}}"#,
    ];
    let metadata = r#"{"name": "one", "uid": "00000000-0000-0000-0000-000000000001", "labels": {"a": "b"},
        "generation": 2, "revision": 3, "created": "2026-11-23T10:00:00.123Z"}"#;
    for text in objects {
        let object: Object = serde_json::from_str(&text.replace("METADATA", metadata)).unwrap();
        assert_eq!(through_bytes::<_, v1::Object>(&object), object);
    }
    let vm = dunlin_model::VmId(uuid::Uuid::from_u128(5));
    let sample =
        dunlin_model::observed::Sample { vm, cpu_ms: 6, wait_ms: 5, rss_mib: 7, dirty_mib_s: Some(8) };
    assert_eq!(through_bytes::<_, v1::Sample>(&sample), sample);
    let report = dunlin_model::observed::ActReport {
        task: dunlin_model::TaskId(vm.0),
        phase: dunlin_model::task::TaskPhase::Failed,
        progress_percent: 40,
        message: "no answer".to_owned(),
    };
    assert_eq!(through_bytes::<_, v1::ActReport>(&report), report);
}
