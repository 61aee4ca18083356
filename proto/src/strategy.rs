//! Arbitrary valid model values, for the round-trip properties.

mod built;
mod seen;

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use dunlin_model::decision::{Candidate, Decision, Effect, Grounds, MoveCost, Refusal, Term};
use dunlin_model::desired::{ActOrder, Assignment, DesiredSet, Role, SendStep};
use dunlin_model::host::{Host, HostPhase, HostSpec, HostStatus, Reserved};
use dunlin_model::image::{IMAGE_BYTES_MAX, ImageFormat, ImageSpec};
use dunlin_model::migration::{
    Endpoint, Migration, MigrationCause, MigrationFigures, MigrationLimits, MigrationOutcome, MigrationPhase,
    MigrationSpec, MigrationStatus,
};
use dunlin_model::recommendation::{
    Recommendation, RecommendationPhase, RecommendationSpec, RecommendationStatus,
};
use dunlin_model::task::{Act, DrainProgress, Task, TaskPhase, TaskSpec, TaskStatus};
use dunlin_model::vm::{
    AccelChoice, Adoption, Arch, Boot, CloudInit, Disk, DiskBus, DiskFormat, DiskSource, FileRef, Mac,
    MachineType, Nic, NicModel, NicNetwork, Placement, Power, RestartPolicy, Rule, SavedState, Scope,
    SimSpec, Vm, VmPhase, VmSpec, VmStatus, Vnc, VncPort, Wants,
};
use dunlin_model::{
    Generation, Incarnation, Kind, Labels, Metadata, MigrationId, Name, Resource, Revision, Secret, Timestamp,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use uuid::Uuid;

use self::built::built;
pub(crate) use self::seen::observed;

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}".prop_map(|text| text.parse().unwrap())
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), ".{0,20}"]
}

fn path() -> impl Strategy<Value = String> {
    "/[a-z]{1,8}/[a-zA-Z0-9 ö]{1,12}"
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0..=Timestamp::MAX.0).prop_map(Timestamp)
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    any::<u64>().prop_map(Incarnation)
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map("[a-z./]{1,8}", words(), 0..3)
}

fn metadata<Id: std::fmt::Debug>(make: fn(Uuid) -> Id) -> impl Strategy<Value = Metadata<Id>> {
    (name(), uuid(), labels(), any::<u64>(), any::<u64>(), time()).prop_map(
        move |(name, uid, labels, generation, revision, created)| Metadata {
            name,
            uid: make(uid),
            labels,
            generation: Generation(generation),
            revision: Revision(revision),
            created,
        },
    )
}

fn file() -> impl Strategy<Value = FileRef> {
    prop_oneof![name().prop_map(FileRef::Image), path().prop_map(FileRef::Path)]
}

fn boot(machine: MachineType) -> BoxedStrategy<Boot> {
    let kernel = (file(), of(file()), "[ -~]{0,20}").prop_map(|(kernel, initrd, cmdline)| Boot::Kernel {
        kernel,
        initrd,
        cmdline,
    });
    if machine == MachineType::Microvm {
        return kernel.boxed();
    }
    prop_oneof![Just(Boot::Disk), kernel].boxed()
}

fn disk(machine: MachineType) -> impl Strategy<Value = Disk> {
    let other = match machine {
        MachineType::Q35 => DiskBus::Sata,
        MachineType::Pc => DiskBus::Ide,
        MachineType::Microvm => DiskBus::Virtio,
    };
    let source = prop_oneof![
        name().prop_map(DiskSource::Image),
        path().prop_map(DiskSource::Path),
        (1u64..=64 << 20).prop_map(DiskSource::EmptyMib),
    ];
    let format = select(vec![DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Vmdk]);
    (name(), select(vec![DiskBus::Virtio, other]), format, source, any::<bool>(), any::<bool>()).prop_map(
        |(name, bus, format, source, shared, read_only)| {
            let shared = shared && matches!(source, DiskSource::Path(_));
            Disk { name, bus, format, source, shared, read_only }
        },
    )
}

fn nic(machine: MachineType) -> impl Strategy<Value = Nic> {
    let models = match machine {
        MachineType::Microvm => vec![NicModel::Virtio],
        _ => vec![NicModel::Virtio, NicModel::E1000, NicModel::Rtl8139],
    };
    let mac = any::<[u8; 6]>().prop_map(|mut bytes| {
        bytes[0] &= !1;
        Mac(bytes)
    });
    let network = prop_oneof![
        Just(NicNetwork::User),
        name().prop_map(NicNetwork::Network),
        "[a-z0-9]{1,15}".prop_map(NicNetwork::Tap),
    ];
    (of(mac), select(models), network).prop_map(|(mac, model, network)| Nic { mac, model, network })
}

fn vnc() -> impl Strategy<Value = Vnc> {
    let listen = select(vec![String::new(), "127.0.0.1".to_owned(), "::".to_owned()]);
    let port = prop_oneof![Just(VncPort::Auto), (5900u16..).prop_map(VncPort::Fixed)];
    (listen, port, of("[a-z]{1,8}".prop_map(Secret::new))).prop_map(|(listen, port, password)| Vnc {
        listen,
        port,
        password,
    })
}

fn resources() -> impl Strategy<Value = BTreeMap<String, u64>> {
    btree_map("(device|licence)/[a-z]{1,5}", 1_u64..=1_000_000, 0..3)
}

fn tolerated() -> impl Strategy<Value = Labels> {
    btree_map("[a-z./]{1,8}", words(), 0..3)
}

fn rule() -> impl Strategy<Value = Rule> {
    let scopes = vec![Scope::Host, Scope::Rack, Scope::Zone];
    let with = btree_map("[a-z./]{1,8}", words(), 1..2);
    (select(vec![Wants::Together, Wants::Apart]), with, select(scopes), of(1u32..=100))
        .prop_map(|(wants, with, over, weight)| Rule { wants, with, over, weight })
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let term = (words(), any::<i64>()).prop_map(|(name, points)| Term { name, points });
    (uuid(), name(), any::<i64>(), vec(term, 0..3)).prop_map(|(host, name, score, terms)| Candidate {
        host: dunlin_model::HostId(host),
        name,
        score,
        terms,
    })
}

fn decision() -> BoxedStrategy<Decision> {
    let refusal =
        (words(), any::<u32>(), words()).prop_map(|(reason, hosts, text)| Refusal { reason, hosts, text });
    (any::<u64>(), of(candidate()), of(candidate()), any::<u32>(), vec(refusal, 0..3))
        .prop_map(|(revision, winner, runner_up, fitting, refused)| Decision {
            revision: Revision(revision),
            winner,
            runner_up,
            fitting,
            refused,
        })
        .boxed()
}

fn effect() -> impl Strategy<Value = Effect> {
    any::<[u64; 6]>().prop_map(|[pain_before_milli, pain_after_milli, a, b, c, d]| Effect {
        pain_before_milli,
        pain_after_milli,
        from_percent_before: a,
        from_percent_after: b,
        to_percent_before: c,
        to_percent_after: d,
    })
}

fn grounds() -> impl Strategy<Value = Grounds> {
    (words(), effect(), any::<[u64; 3]>()).prop_map(
        |(reason, predicted, [send_mib, total_ms, downtime_ms])| Grounds {
            reason,
            predicted,
            cost: MoveCost { send_mib, total_ms, downtime_ms },
        },
    )
}

pub(crate) fn recommendation() -> BoxedStrategy<Recommendation> {
    let ends = (uuid(), name(), uuid(), name());
    let spec = (uuid(), name(), ends, any::<u32>(), grounds()).prop_map(
        |(vm, vm_name, (from, from_name, to, to_name), wave, grounds)| RecommendationSpec {
            vm: dunlin_model::VmId(vm),
            vm_name,
            from: dunlin_model::HostId(from),
            from_name,
            to: dunlin_model::HostId(to),
            to_name,
            wave,
            grounds,
        },
    );
    let phases = vec![
        RecommendationPhase::Open,
        RecommendationPhase::Approved,
        RecommendationPhase::Dismissed,
        RecommendationPhase::Expired,
    ];
    let status =
        (select(phases), time(), of(uuid()), words()).prop_map(|(phase, since, migration, message)| {
            RecommendationStatus { phase, since, migration: migration.map(MigrationId), message }
        });
    resource(dunlin_model::RecommendationId, spec, status).boxed()
}

fn power() -> impl Strategy<Value = Power> {
    select(vec![Power::Stopped, Power::Running, Power::Paused])
}

fn cloud_init() -> impl Strategy<Value = CloudInit> {
    (of("#[ -~]{1,40}".prop_map(Secret::new)), "[ -~]{0,40}")
        .prop_map(|(user_data, network_config)| CloudInit { user_data, network_config })
}

pub(crate) fn vm_spec() -> BoxedStrategy<VmSpec> {
    let machine = select(vec![MachineType::Q35, MachineType::Pc, MachineType::Microvm]);
    machine
        .prop_flat_map(|machine| {
            let size = (power(), 1u32..=288, 16u64..=4 << 20);
            let how = (
                // A guest of another driver cannot have all that is drawn here.
                select(vec![DriverName::Qemu, DriverName::Test, DriverName::Libvirt]),
                select(vec![AccelChoice::Any, AccelChoice::Kvm, AccelChoice::Tcg]),
                select(vec![Arch::X86_64, Arch::I686]),
                "[a-z0-9+,=-]{0,12}",
                select(vec![RestartPolicy::Never, RestartPolicy::OnCrash]),
            );
            let parts = (
                boot(machine),
                vec(disk(machine), 0..4),
                vec(nic(machine), 0..3),
                of(vnc()),
                of(cloud_init()),
            );
            let prefers = btree_map("[a-z]{1,4}=[a-z]{0,4}", 1u32..=100, 0..3);
            let placement =
                (of(name()), labels(), labels(), vec(rule(), 0..3), tolerated(), prefers, resources())
                    .prop_map(|(host, host_labels, apart_from, rules, tolerates, prefers, resources)| {
                        Placement { host, host_labels, apart_from, rules, tolerates, prefers, resources }
                    });
            let sim = any::<(u64, u64, u32, u32, u64)>().prop_map(
                |(boot_ms, dirty_mib_s, cpu_percent, fault_ppm, seed)| SimSpec {
                    boot_ms,
                    dirty_mib_s,
                    cpu_percent,
                    fault_ppm,
                    seed,
                },
            );
            (size, how, parts, placement, of(sim), name()).prop_map(
                move |(size, how, parts, placement, sim, project)| {
                    let (power, cpus, mem_mib) = size;
                    let (driver, accel, arch, cpu_model, restart) = how;
                    let (boot, mut disks, nics, vnc, cloud_init) = parts;
                    // The drivers that are drawn have it not all.
                    let cloud_init = cloud_init.filter(|_| driver != DriverName::Libvirt);
                    let mut seen = BTreeSet::new();
                    disks.retain(|disk| seen.insert(disk.name.clone()));
                    VmSpec {
                        project,
                        power,
                        cpus,
                        mem_mib,
                        driver,
                        accel,
                        arch,
                        machine,
                        cpu_model,
                        boot,
                        disks,
                        nics,
                        vnc,
                        restart,
                        placement,
                        cloud_init,
                        sim,
                    }
                },
            )
        })
        .boxed()
}

fn vm_status() -> BoxedStrategy<VmStatus> {
    let phases = vec![
        VmPhase::Stopped,
        VmPhase::Pending,
        VmPhase::Starting,
        VmPhase::Running,
        VmPhase::Paused,
        VmPhase::Saved,
        VmPhase::Failed,
        VmPhase::Deleting,
    ];
    let saved = (uuid(), path(), any::<u64>()).prop_map(|(host, path, size_bytes)| SavedState {
        host: dunlin_model::HostId(host),
        path,
        size_bytes,
    });
    let ids = (of(uuid()), of(name()), of(uuid()), of(uuid()), of(uuid()), of(uuid()));
    let counts = (incarnation(), of(incarnation()), any::<u32>());
    let seen = (
        words(),
        words(),
        of(any::<u32>()),
        of(words()),
        of(saved),
        of(decision()),
        of(built()),
        vec(words(), 0..3),
    );
    let adoptions = of(select(vec![Adoption::Asked, Adoption::Done, Adoption::Leaving]));
    (select(phases), ids, counts, seen, time(), adoptions)
        .prop_map(|(phase, ids, counts, seen, since, adoption)| {
            let (host, host_name, volumes_on, migration, task, last_host) = ids;
            let (incarnation, continues, restarts) = counts;
            let (reason, message, pid, vnc, saved, chosen, built, pending) = seen;
            VmStatus {
                phase,
                host: host.map(dunlin_model::HostId),
                host_name,
                volumes_on: volumes_on.map(dunlin_model::HostId),
                incarnation,
                continues,
                reason,
                message,
                pid,
                vnc,
                saved,
                migration: migration.map(MigrationId),
                task: task.map(dunlin_model::TaskId),
                chosen,
                restarts,
                since,
                last_host: last_host.map(dunlin_model::HostId),
                built,
                pending,
                adoption,
            }
        })
        .boxed()
}

fn resource<Id: std::fmt::Debug, S: std::fmt::Debug, T: std::fmt::Debug>(
    make: fn(Uuid) -> Id,
    spec: impl Strategy<Value = S>,
    status: impl Strategy<Value = T>,
) -> impl Strategy<Value = Resource<Id, S, T>> {
    (metadata(make), spec, status).prop_map(|(metadata, spec, status)| Resource { metadata, spec, status })
}

pub(crate) fn vm() -> BoxedStrategy<Vm> {
    resource(dunlin_model::VmId, vm_spec(), vm_status()).boxed()
}

fn drivers() -> Vec<DriverName> {
    vec![DriverName::Qemu, DriverName::Test, DriverName::Libvirt, DriverName::Lxc, DriverName::Uml]
}

fn driver() -> impl Strategy<Value = DriverCapabilities> {
    let probe = (
        select(vec![Accel::Kvm, Accel::Tcg, Accel::Simulated, Accel::Container, Accel::Uml]),
        any::<bool>(),
        words(),
    )
        .prop_map(|(accel, usable, evidence)| AccelProbe { accel, usable, evidence });
    let powers = vec![
        DriverPower::Pause,
        DriverPower::Shutdown,
        DriverPower::Reset,
        DriverPower::Save,
        DriverPower::Migrate,
        DriverPower::MigrateStorage,
        DriverPower::Console,
        DriverPower::Vnc,
        DriverPower::HotPlug,
    ];
    let texts = || btree_set("[a-z0-9]{1,6}", 0..4);
    let name = select(drivers());
    (name, words(), vec(probe, 0..3), texts(), texts(), btree_set(select(powers), 0..8), words()).prop_map(
        |(name, version, accels, machines, cpu_models, powers, away)| DriverCapabilities {
            name,
            version,
            accels,
            machines,
            cpu_models,
            powers,
            away,
        },
    )
}

fn capabilities() -> impl Strategy<Value = HostCapabilities> {
    let texts = (words(), words(), words(), words(), words());
    let sizes = any::<(u32, u64, u64)>();
    let images = btree_set("[0-9a-f]{64}", 0..3);
    (texts, btree_set("[a-z0-9]{1,6}", 0..4), sizes, labels(), images, vec(driver(), 0..3)).prop_map(
        |(texts, cpu_features, (cpus, mem_mib, disk_free_mib), networks, images, drivers)| {
            let (hostname, arch, kernel, cpu_model, address) = texts;
            HostCapabilities {
                hostname,
                arch,
                kernel,
                cpu_model,
                cpu_features,
                cpus,
                mem_mib,
                disk_free_mib,
                address,
                networks,
                images,
                drivers,
            }
        },
    )
}

pub(crate) fn host() -> BoxedStrategy<Host> {
    let spec = (any::<bool>(), of(name()), of(name()), tolerated(), resources()).prop_map(
        |(cordoned, rack, zone, taints, resources)| HostSpec { cordoned, rack, zone, taints, resources },
    );
    let reserved = any::<(u64, u64, u64)>().prop_map(|(cpus, mem_mib, vms)| Reserved { cpus, mem_mib, vms });
    let phase = select(vec![HostPhase::Joining, HostPhase::Up, HostPhase::Down]);
    let status = (phase, capabilities(), reserved, words(), any::<u64>(), time(), words()).prop_map(
        |(phase, capabilities, reserved, agent_version, session, since, message)| HostStatus {
            phase,
            capabilities,
            reserved,
            agent_version,
            session,
            since,
            message,
        },
    );
    resource(dunlin_model::HostId, spec, status).boxed()
}

fn limits() -> impl Strategy<Value = MigrationLimits> {
    (1u64..=60_000, 0u64..=1 << 20, 1u64..=86_400).prop_map(|(downtime_ms, bandwidth_mib_s, timeout_s)| {
        MigrationLimits { downtime_ms, bandwidth_mib_s, timeout_s }
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (words(), words()).prop_map(|(memory, disks)| Endpoint { memory, disks })
}

fn figures() -> impl Strategy<Value = MigrationFigures> {
    any::<[u64; 5]>().prop_map(|[downtime_ms, total_ms, transferred_bytes, disk_bytes, stopped_at_ms]| {
        MigrationFigures { downtime_ms, total_ms, transferred_bytes, disk_bytes, stopped_at_ms }
    })
}

fn migration_phase() -> impl Strategy<Value = MigrationPhase> {
    use MigrationPhase::{Aborted, Aborting, Copying, Done, Planned, Prepared, Reserved, Switching};
    select(vec![Planned, Reserved, Prepared, Copying, Switching, Done, Aborting, Aborted])
}

pub(crate) fn migration() -> BoxedStrategy<Migration> {
    let cause = select(vec![MigrationCause::User, MigrationCause::Drain, MigrationCause::Balance]);
    let spec = (uuid(), name(), of(name()), cause, limits(), of(grounds())).prop_map(
        |(vm, vm_name, to, cause, limits, grounds)| MigrationSpec {
            vm: dunlin_model::VmId(vm),
            vm_name,
            to,
            cause,
            limits,
            grounds,
        },
    );
    let outcomes = vec![
        MigrationOutcome::Moved,
        MigrationOutcome::StayedOnSource,
        MigrationOutcome::HandedBack,
        MigrationOutcome::Restarted,
        MigrationOutcome::Gone,
    ];
    let ends = (of(uuid()), of(name()), of(uuid()), of(name()));
    let told = (of(select(outcomes)), any::<bool>(), words(), words(), of(decision()), of(effect()));
    let history = (vec((migration_phase(), time()), 0..4), sizes());
    let status = (migration_phase(), ends, incarnation(), of(endpoint()), told, of(figures()), history)
        .prop_map(
            |(
                phase,
                (from, from_name, to, to_name),
                incarnation,
                endpoint,
                told,
                figures,
                (history, disk_bytes),
            )| {
                let (outcome, cancel, reason, message, chosen, effect) = told;
                MigrationStatus {
                    phase,
                    from: from.map(dunlin_model::HostId),
                    from_name,
                    to: to.map(dunlin_model::HostId),
                    to_name,
                    incarnation,
                    endpoint,
                    outcome,
                    cancel,
                    reason,
                    message,
                    figures,
                    chosen,
                    effect,
                    history,
                    disk_bytes,
                }
            },
        );
    resource(MigrationId, spec, status).boxed()
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        any::<u64>().prop_map(|timeout_s| Act::Shutdown { timeout_s }),
        any::<u64>().prop_map(|timeout_s| Act::Reboot { timeout_s }),
        select(vec![Act::Reset, Act::Save, Act::Drain]),
    ]
}

pub(crate) fn task() -> BoxedStrategy<Task> {
    let spec = (act(), select(Kind::ALL.to_vec()), uuid(), name())
        .prop_map(|(act, kind, uid, name)| TaskSpec { act, kind, uid, name });
    let phases = vec![
        TaskPhase::Queued,
        TaskPhase::Running,
        TaskPhase::Succeeded,
        TaskPhase::Failed,
        TaskPhase::Cancelled,
    ];
    let counts = (any::<[u64; 3]>(), any::<[u32; 2]>(), of(any::<u64>()), any::<bool>());
    let drain = counts.prop_map(|([moved, left, stuck], [wave, waves], eta_s, was_cordoned)| DrainProgress {
        was_cordoned,
        moved,
        left,
        stuck,
        wave,
        waves,
        eta_s,
    });
    let times = (of(time()), of(time()));
    let status = (select(phases), 0u32..=100, any::<bool>(), words(), of(drain), times).prop_map(
        |(phase, progress_percent, cancel, message, drain, (started, ended))| TaskStatus {
            phase,
            progress_percent,
            cancel,
            message,
            drain,
            started,
            ended,
        },
    );
    resource(dunlin_model::TaskId, spec, status).boxed()
}

fn role() -> impl Strategy<Value = Role> {
    let run = (power(), of(words()), any::<bool>()).prop_map(|(power, restore_from, received)| Role::Run {
        power,
        restore_from,
        received,
    });
    let receive = (uuid(), limits(), sizes()).prop_map(|(migration, limits, disks)| Role::Receive {
        migration: MigrationId(migration),
        limits,
        disks,
    });
    let discard = any::<bool>().prop_map(|elsewhere| Role::Discard { elsewhere });
    let step = select(vec![SendStep::Copy, SendStep::Switch, SendStep::Cancel]);
    let send = (uuid(), endpoint(), limits(), step, power()).prop_map(
        |(migration, endpoint, limits, step, power)| Role::Send {
            migration: MigrationId(migration),
            endpoint,
            limits,
            step,
            power,
        },
    );
    let adopt = power().prop_map(|power| Role::Adopt { power });
    prop_oneof![run, Just(Role::Hold), receive, send, discard, adopt, Just(Role::Release)]
}

/// Sizes of disks by their names, bytes.
fn sizes() -> impl Strategy<Value = BTreeMap<Name, u64>> {
    btree_map(name(), any::<u64>(), 0..3)
}

fn images() -> impl Strategy<Value = BTreeMap<Name, ImageSpec>> {
    let format = select(vec![ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vmdk]);
    let image = (format, "[0-9a-f]{64}", 1..=IMAGE_BYTES_MAX, words())
        .prop_map(|(format, sha256, size_bytes, source)| ImageSpec { format, sha256, size_bytes, source });
    btree_map(name(), image, 0..3)
}

pub(crate) fn desired() -> BoxedStrategy<DesiredSet> {
    let assignment = (uuid(), name(), incarnation(), of(incarnation()), vm_spec(), role(), of(built()))
        .prop_map(|(vm, name, incarnation, continues, spec, role, built)| Assignment {
            vm: dunlin_model::VmId(vm),
            name,
            incarnation,
            continues,
            spec,
            role,
            built,
        });
    let order = (uuid(), uuid(), incarnation(), act(), any::<bool>()).prop_map(
        |(task, vm, incarnation, act, cancel)| ActOrder {
            task: dunlin_model::TaskId(task),
            vm: dunlin_model::VmId(vm),
            incarnation,
            act,
            cancel,
        },
    );
    (uuid(), any::<u64>(), vec(assignment, 0..4), vec(order, 0..3), images())
        .prop_map(|(host, generation, assignments, acts, images)| DesiredSet {
            host: dunlin_model::HostId(host),
            generation: Revision(generation),
            assignments,
            acts,
            images,
        })
        .boxed()
}
