//! Objects as rows.

use comfy_table::{ContentArrangement, Table, presets};
use dunlin_model::decision::Effect;
use dunlin_model::host::{Host, HostPhase};
use dunlin_model::migration::Migration;
use dunlin_model::recommendation::Recommendation;
use dunlin_model::task::Task;
use dunlin_model::vm::{Vm, VmPhase};
use dunlin_model::{Object, Timestamp};

use super::{Surroundings, rights};

/// A table of `items`, which are of one kind. Empty: a line that says so.
pub(crate) fn render(items: &[Object], wide: bool, around: &Surroundings) -> String {
    let Some(first) = items.first() else { return "none".to_owned() };
    let rows = items.iter().map(|item| row(item, wide, around));
    columns(&header(first, wide), rows).trim_end().to_owned()
}

/// The column heads of a kind.
pub(crate) fn header(object: &Object, wide: bool) -> Vec<&'static str> {
    let (narrow, more): (&[_], &[_]) = match object {
        Object::Cluster(_) => (&["NAME", "PLACEMENT", "LEADER", "CONTROLLERS"], &["UID"]),
        Object::Host(_) => (
            &["NAME", "PHASE", "VMS", "CPUS", "MEMORY", "DRIVERS", "AGE"],
            &["ADDRESS", "KERNEL", "CPU MODEL", "AGENT", "MESSAGE"],
        ),
        Object::Vm(_) => (
            &["NAME", "PHASE", "HOST", "CPUS", "MEMORY", "AGE", "REASON"],
            &["INCARNATION", "PID", "VNC", "RESTARTS", "MESSAGE"],
        ),
        Object::Image(_) => (&["NAME", "FORMAT", "SIZE", "AGE"], &["SHA256", "SOURCE"]),
        Object::Migration(_) => (
            &["NAME", "VM", "FROM", "TO", "PHASE", "DOWNTIME", "TOTAL", "OUTCOME"],
            &["CAUSE", "SENT", "INCARNATION", "MESSAGE"],
        ),
        Object::Task(_) => (&["NAME", "ACT", "ON", "PHASE", "PROGRESS", "AGE"], &["MESSAGE"]),
        Object::Event(_) => (&["TIME", "LEVEL", "REASON", "ABOUT", "MESSAGE"], &["REVISION"]),
        Object::Recommendation(_) => {
            (&["NAME", "VM", "FROM", "TO", "WAVE", "PHASE", "AGE", "GAIN"], &["WHY", "MESSAGE"])
        }
        Object::User(_) | Object::Role(_) | Object::Binding(_) | Object::Project(_) | Object::ApiToken(_) => {
            rights::header(object)
        }
    };
    narrow.iter().chain(if wide { more } else { &[] }).copied().collect()
}

/// One row. Its cells match [`header`].
pub(crate) fn row(object: &Object, wide: bool, around: &Surroundings) -> Vec<String> {
    let (mut cells, more) = match object {
        Object::Cluster(cluster) => {
            let leader = cluster.status.leader.map_or_else(|| "none known".to_owned(), |id| id.to_string());
            let each = |c: &dunlin_model::cluster::Controller| format!("{}={}", c.id, c.endpoint);
            let controllers = cluster.status.controllers.iter().map(each).collect::<Vec<_>>().join(" ");
            let placement = format!("{:?}", cluster.spec.placement).to_lowercase();
            (
                vec![cluster.metadata.name.to_string(), placement, leader, controllers],
                vec![cluster.metadata.uid.to_string()],
            )
        }
        Object::Host(host) => host_row(host, around),
        Object::Vm(vm) => vm_row(vm, around),
        Object::Image(image) => (
            vec![
                image.metadata.name.to_string(),
                image.spec.format.as_str().to_owned(),
                bytes(image.spec.size_bytes),
                age(image.metadata.created, around),
            ],
            vec![image.spec.sha256.clone(), image.spec.source.clone()],
        ),
        Object::Migration(migration) => migration_row(migration, around),
        Object::Task(task) => task_row(task, around),
        Object::Recommendation(found) => recommendation_row(found, around),
        Object::User(_) | Object::Role(_) | Object::Binding(_) | Object::Project(_) | Object::ApiToken(_) => {
            rights::row(object, around)
        }
        Object::Event(event) => (
            vec![
                event.metadata.created.to_string(),
                format!("{:?}", event.spec.level).to_lowercase(),
                event.spec.reason.clone(),
                format!("{}/{}", event.spec.about.kind.to_string().to_lowercase(), event.spec.about.name),
                event.spec.message.clone(),
            ],
            vec![event.metadata.revision.to_string()],
        ),
    };
    if wide {
        cells.extend(more);
    }
    cells
}

pub(super) type Cells = (Vec<String>, Vec<String>);

fn host_row(host: &Host, around: &Surroundings) -> Cells {
    let status = &host.status;
    let phase = match (status.phase, host.spec.cordoned) {
        (HostPhase::Joining, _) => "Joining".to_owned(),
        (HostPhase::Up, false) => "Up".to_owned(),
        (HostPhase::Up, true) => "Up,Cordoned".to_owned(),
        (HostPhase::Down, false) => "Down".to_owned(),
        (HostPhase::Down, true) => "Down,Cordoned".to_owned(),
    };
    let way = |d: &dunlin_model::capabilities::DriverCapabilities| {
        let usable = d.accels.iter().filter(|probe| probe.usable);
        let accels: Vec<_> = usable.map(|probe| probe.accel.to_string()).collect();
        let how = if d.away.is_empty() { accels.join(",") } else { "away".to_owned() };
        format!("{}({how})", d.name)
    };
    let capabilities = &status.capabilities;
    let narrow = vec![
        host.metadata.name.to_string(),
        phase,
        status.reserved.vms.to_string(),
        format!("{}/{}", status.reserved.cpus, capabilities.cpus),
        format!("{}/{}", mib(status.reserved.mem_mib), mib(capabilities.mem_mib)),
        capabilities.drivers.iter().map(way).collect::<Vec<_>>().join(" "),
        age(host.metadata.created, around),
    ];
    let more = vec![
        capabilities.address.clone(),
        capabilities.kernel.clone(),
        capabilities.cpu_model.clone(),
        status.agent_version.clone(),
        status.message.clone(),
    ];
    (narrow, more)
}

fn vm_row(vm: &Vm, around: &Surroundings) -> Cells {
    let status = &vm.status;
    let phase = match status.migration {
        Some(_) => format!("{},Migrating", status.phase),
        None if status.waits_for_restart() => format!("{},PendingRestart", status.phase),
        None if !status.pending.is_empty() => format!("{},Changing", status.phase),
        None => status.phase.to_string(),
    };
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let held = !matches!(status.phase, VmPhase::Pending);
    let host = status.host_name.as_ref().filter(|_| held).map(ToString::to_string);
    let narrow = vec![
        vm.metadata.name.to_string(),
        phase,
        dash(host),
        vm.spec.cpus.to_string(),
        mib(vm.spec.mem_mib),
        age(vm.metadata.created, around),
        status.reason.clone(),
    ];
    let more = vec![
        status.incarnation.to_string(),
        dash(status.pid.map(|pid| pid.to_string())),
        dash(status.vnc.clone()),
        status.restarts.to_string(),
        status.message.clone(),
    ];
    (narrow, more)
}

fn migration_row(migration: &Migration, around: &Surroundings) -> Cells {
    let status = &migration.status;
    let host = |name: &Option<dunlin_model::Name>, uid: Option<dunlin_model::HostId>| {
        let known = || uid.and_then(|uid| around.hosts.get(&uid.0).cloned());
        name.as_ref().map(ToString::to_string).or_else(known).unwrap_or_else(|| "-".to_owned())
    };
    let figure = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
    let narrow = vec![
        migration.metadata.name.to_string(),
        migration.spec.vm_name.to_string(),
        host(&status.from_name, status.from),
        host(&status.to_name, status.to),
        status.phase.to_string(),
        figure(status.figures.map(|f| f.downtime_ms)),
        figure(status.figures.map(|f| f.total_ms)),
        status.outcome.map_or_else(|| "-".to_owned(), |outcome| format!("{outcome:?}")),
    ];
    let sent = status.figures.map_or_else(|| "-".to_owned(), |f| bytes(f.transferred_bytes + f.disk_bytes));
    let cause = format!("{:?}", migration.spec.cause).to_lowercase();
    (narrow, vec![cause, sent, status.incarnation.to_string(), status.message.clone()])
}

fn task_row(task: &Task, around: &Surroundings) -> Cells {
    let narrow = vec![
        task.metadata.name.to_string(),
        task.spec.act.as_str().to_owned(),
        format!("{}/{}", task.spec.kind.to_string().to_lowercase(), task.spec.name),
        task.status.phase.to_string(),
        format!("{} %", task.status.progress_percent),
        age(task.metadata.created, around),
    ];
    (narrow, vec![task.status.message.clone()])
}

fn recommendation_row(found: &Recommendation, around: &Surroundings) -> Cells {
    let spec = &found.spec;
    let narrow = vec![
        found.metadata.name.to_string(),
        spec.vm_name.to_string(),
        spec.from_name.to_string(),
        spec.to_name.to_string(),
        spec.wave.to_string(),
        found.status.phase.to_string(),
        age(found.metadata.created, around),
        pain(spec.grounds.predicted.pain_before_milli, spec.grounds.predicted.pain_after_milli),
    ];
    (narrow, vec![spec.grounds.reason.clone(), found.status.message.clone()])
}

/// Moves that were made to level the load.
pub(crate) fn history(items: &[Object], wide: bool, around: &Surroundings) -> String {
    let moves = items.iter().filter_map(|item| match item {
        Object::Migration(migration) => Some(migration),
        _ => None,
    });
    let dash = || "-".to_owned();
    let gain = |effect: &Effect| pain(effect.pain_before_milli, effect.pain_after_milli);
    let row = |migration: &Migration| {
        let (spec, status) = (&migration.spec, &migration.status);
        let name = |name: &Option<dunlin_model::Name>| name.as_ref().map_or_else(dash, ToString::to_string);
        let mut cells = vec![
            migration.metadata.name.to_string(),
            spec.vm_name.to_string(),
            name(&status.from_name),
            name(&status.to_name),
            status.phase.to_string(),
            age(migration.metadata.created, around),
            spec.grounds.as_ref().map_or_else(dash, |grounds| gain(&grounds.predicted)),
            status.effect.as_ref().map_or_else(dash, gain),
        ];
        if wide {
            cells.push(spec.grounds.as_ref().map_or_else(dash, |grounds| grounds.reason.clone()));
        }
        cells
    };
    let head = ["NAME", "VM", "FROM", "TO", "PHASE", "AGE", "PREDICTED", "OBSERVED", "WHY"];
    let shown = if wide { head.len() } else { head.len() - 1 };
    let rows: Vec<Vec<String>> = moves.map(row).collect();
    if rows.is_empty() { "none".to_owned() } else { columns(&head[..shown], rows) }
}

/// Columns two spaces apart.
pub(crate) fn columns(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Pain before and after, in CPUs.
pub(crate) fn pain(before_milli: u64, after_milli: u64) -> String {
    format!("{} -> {}", cpus(before_milli), cpus(after_milli))
}

/// Thousandths of a CPU, in CPUs.
pub(crate) fn cpus(milli: u64) -> String {
    format!("{}.{:02}", milli / 1_000, milli % 1_000 / 10)
}

fn mib(mib: u64) -> String {
    bytes(mib << 20)
}

/// Bytes in the largest binary unit that keeps at least two digits.
fn bytes(count: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| count >> shift >= 10) {
        Some((shift, unit)) => format!("{} {unit}", count >> shift),
        None => format!("{count} B"),
    }
}

/// How long ago, in its largest unit.
pub(super) fn age(created: Timestamp, around: &Surroundings) -> String {
    let seconds = around.now.millis_since(created) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
