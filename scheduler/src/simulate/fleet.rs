//! A fleet in a few words, for tests, questions and simulations: a host or a VM a line, `#` begins a comment.
//!
//! ```text
//! host h1 cpus=64 mem=128G rack=r1 zone=z1 node=32:64G node=32:64G label=disk=ssd taint=gpu=yes
//!         has=disk/fast:2000 fact=driver:qemu image=debian net=25000 huge=16G load=12.5 cordoned
//! vm v1 cpus=4 mem=8G on=h1 label=app=db rule=apart:app=db@host rule=together:app=web@rack~20
//!       numa=one|split:2 needs=label:disk=ssd tolerates=gpu=yes prefers=disk=ssd:50 has=disk/fast:100 pinned
//! ```
//!
//! Sizes are GiB (`G`), or MiB (`M`, or none). `~20` makes a rule soft, with that weight. Lines do not wrap.

use dunlin_model::{HostId, Name, VmId};

use super::lines::{At, BadLine, lines};
use crate::policy::Policy;
use crate::score::seat;
use crate::snapshot::{
    Amounts, Demand, Fact, FactKind, HostEntry, HostState, Level, Load, Numa, RuleEntry, Seat, Snapshot,
    VmEntry, Want,
};

/// Most CPUs or MiB of one thing: far above any machine, far below an overflow.
const SIZE_MAX: u64 = 1 << 40;

/// The uid of the n-th host of a simulated fleet.
#[must_use]
pub fn host_uid(number: usize) -> HostId {
    format!("{:032x}", number + 1).parse().expect("32 hex digits are a UUID")
}

/// The uid of the n-th VM of a simulated fleet.
#[must_use]
pub fn vm_uid(number: usize) -> VmId {
    format!("{:032x}", (1_u128 << 96) + number as u128 + 1).parse().expect("32 hex digits are a UUID")
}

/// Reads a fleet. A VM sits where its line says, even where it does not fit.
///
/// # Errors
/// The first line that is not right.
pub fn read(file: &str, bytes: &[u8], policy: Policy) -> Result<Snapshot, BadLine> {
    let mut snapshot = Snapshot::empty(policy);
    for line in lines(file, bytes) {
        let (at, text) = line?;
        let text = text.split('#').next().unwrap_or_default();
        let mut words = text.split_whitespace();
        match words.next() {
            None => {}
            Some("host") => {
                let name: Name = name(at, words.next())?;
                let number = snapshot.host_slots();
                if snapshot.host_named(&name).is_some() {
                    return Err(at.bad("name", format!("host {name} is there already")));
                }
                let (entry, load) = host(at, host_uid(number), name, words)?;
                let host = snapshot.add_host(&entry);
                snapshot.observe_host(host, load);
            }
            Some("vm") => {
                let name: Name = name(at, words.next())?;
                if snapshot.vm_named(&name).is_some() {
                    return Err(at.bad("name", format!("vm {name} is there already")));
                }
                let words: Vec<&str> = words.collect();
                let entry = vm(at, vm_uid(snapshot.vm_slots()), name, &words)?;
                seat_vm(at, &mut snapshot, &entry, &words)?;
            }
            Some(other) => return Err(at.bad("line", format!("begins with {other:?}, not with host or vm"))),
        }
    }
    Ok(snapshot)
}

fn seat_vm(at: At<'_>, snapshot: &mut Snapshot, entry: &VmEntry, words: &[&str]) -> Result<(), BadLine> {
    let vm = snapshot.add_vm(entry);
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    if let Some(milli) = value("load") {
        let cpu = at.milli("load", milli, 0, SIZE_MAX)?;
        snapshot.observe_vm(vm, Some(Load { cpu_mean_milli: cpu, cpu_peak_milli: cpu, ..Load::default() }));
    }
    let Some(on) = value("on") else { return Ok(()) };
    let known = on.parse().ok().and_then(|name| snapshot.host_named(&name));
    let host = known.ok_or_else(|| at.bad("on", format!("no host {on} above this line")))?;
    let profile = snapshot.vm(vm).profile;
    let seat =
        seat(snapshot, profile, host).unwrap_or(Seat { host, nodes: crate::snapshot::NodeSet::default() });
    snapshot.put(vm, seat);
    Ok(())
}

/// What a VM asks for, in the words of a `vm` line.
///
/// # Errors
/// The first word that is not right.
pub fn read_demand(file: &str, text: &str) -> Result<Demand, BadLine> {
    let words: Vec<&str> = text.split_whitespace().collect();
    Ok(vm(At { file, line: 1 }, vm_uid(0), name(At { file, line: 1 }, Some("asked"))?, &words)?.demand)
}

fn name(at: At<'_>, word: Option<&str>) -> Result<Name, BadLine> {
    let word = word.ok_or_else(|| at.bad("name", "missing"))?;
    word.parse().map_err(|error| at.bad("name", format!("{error}")))
}

fn size(at: At<'_>, field: &str, text: &str) -> Result<u64, BadLine> {
    match (text.strip_suffix('G'), text.strip_suffix('M')) {
        (Some(gib), _) => Ok(at.milli(field, gib, 0, SIZE_MAX)? * 1_024 / 1_000),
        (_, Some(mib)) => at.number(field, mib, 0, SIZE_MAX),
        _ => at.number(field, text, 0, SIZE_MAX),
    }
}

fn pair<'a>(at: At<'_>, field: &str, text: &'a str, between: char) -> Result<(&'a str, &'a str), BadLine> {
    text.rsplit_once(between).ok_or_else(|| at.bad(field, format!("{text:?} has no {between:?}")))
}

fn fact(at: At<'_>, field: &str, text: &str) -> Result<Fact, BadLine> {
    let (kind, what) = text.split_once(':').ok_or_else(|| at.bad(field, format!("{text:?} has no ':'")))?;
    let kind = match kind {
        "label" => FactKind::Label,
        "driver" => FactKind::Driver,
        "arch" => FactKind::Arch,
        "accel" => FactKind::Accel,
        "machine" => FactKind::Machine,
        "cpu-model" => FactKind::CpuModel,
        "cpu-feature" => FactKind::CpuFeature,
        "network" => FactKind::Network,
        "storage" => FactKind::Storage,
        "power" => FactKind::Power,
        other => return Err(at.bad(field, format!("{other:?} is no kind of fact"))),
    };
    Ok(Fact::new(kind, what))
}

fn host<'a>(
    at: At<'_>,
    uid: HostId,
    name: Name,
    words: impl Iterator<Item = &'a str>,
) -> Result<(HostEntry, Option<Load>), BadLine> {
    let mut entry = HostEntry::new(uid, name, Amounts::default());
    let mut load = None;
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "cpus" => entry.total.cpu_milli = at.milli(key, value, 0, SIZE_MAX)?,
            "mem" => entry.total.mem_mib = size(at, key, value)?,
            "huge" => entry.total.huge_mib = size(at, key, value)?,
            "net" => entry.total.net_mbps = at.number(key, value, 0, SIZE_MAX)?,
            "node" => {
                let (cpus, mem) = pair(at, key, value, ':')?;
                entry.nodes.push(Amounts::new(at.milli(key, cpus, 0, SIZE_MAX)?, size(at, key, mem)?));
            }
            "rack" | "zone" => drop(entry.labels.insert(key.to_owned(), value.to_owned())),
            "label" => {
                let (label, value) = pair(at, key, value, '=')?;
                entry.labels.insert(label.to_owned(), value.to_owned());
            }
            "taint" => entry.taints.push(value.to_owned()),
            "fact" => entry.facts.push(fact(at, key, value)?),
            "has" => {
                let (resource, amount) = pair(at, key, value, ':')?;
                entry.named.push((resource.to_owned(), at.number(key, amount, 0, SIZE_MAX)?));
            }
            "image" => entry.images.push(value.to_owned()),
            "load" => {
                let cpu_mean_milli = at.milli(key, value, 0, SIZE_MAX)?;
                load = Some(Load { cpu_mean_milli, cpu_peak_milli: cpu_mean_milli, ..Load::default() });
            }
            "cordoned" => entry.cordoned = true,
            "down" => entry.state = HostState::Down,
            "asleep" => entry.state = HostState::Asleep,
            other => return Err(at.bad(other, "no such property of a host")),
        }
    }
    entry.physical = entry.total;
    Ok((entry, load))
}

fn vm(at: At<'_>, uid: VmId, name: Name, words: &[&str]) -> Result<VmEntry, BadLine> {
    let mut entry = VmEntry::new(uid, name, Demand::default());
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let demand = &mut entry.demand;
        match key {
            "cpus" => demand.amounts.cpu_milli = at.milli(key, value, 0, SIZE_MAX)?,
            "mem" => demand.amounts.mem_mib = size(at, key, value)?,
            "huge" => demand.amounts.huge_mib = size(at, key, value)?,
            "net" => demand.amounts.net_mbps = at.number(key, value, 0, SIZE_MAX)?,
            "numa" => {
                demand.numa = match value.split_once(':') {
                    None if value == "one" => Numa::One,
                    Some(("split", nodes)) => {
                        let nodes = at.number(key, nodes, 2, crate::snapshot::NODES_MAX as u64)?;
                        Numa::Split(u8::try_from(nodes).unwrap_or(u8::MAX))
                    }
                    _ => return Err(at.bad(key, format!("{value:?} is neither one nor split:N"))),
                }
            }
            "needs" => demand.needs.push(vec![fact(at, key, value)?]),
            "tolerates" => demand.tolerates.push(value.to_owned()),
            "prefers" => {
                let (label, weight) = pair(at, key, value, ':')?;
                demand.prefers.push((label.to_owned(), wish(at, key, weight)?));
            }
            "has" => {
                let (resource, amount) = pair(at, key, value, ':')?;
                demand.named.push((resource.to_owned(), at.number(key, amount, 0, SIZE_MAX)?));
            }
            "image" => demand.images.push(value.to_owned()),
            "label" => demand.labels.push(value.to_owned()),
            "rule" => demand.rules.push(rule(at, value)?),
            "pinned" => entry.movable = false,
            "on" | "load" => {}
            other => return Err(at.bad(other, "no such property of a VM")),
        }
    }
    Ok(entry)
}

fn wish(at: At<'_>, field: &str, text: &str) -> Result<u16, BadLine> {
    Ok(u16::try_from(at.number(field, text, 1, 100)?).unwrap_or(u16::MAX))
}

/// `apart:app=db@host`, `together:app=db@rack~20`, `domain:shard@rack`.
fn rule(at: At<'_>, text: &str) -> Result<RuleEntry, BadLine> {
    let (text, soft) = match text.rsplit_once('~') {
        Some((text, weight)) => (text, Some(wish(at, "rule", weight)?)),
        None => (text, None),
    };
    let (what, level) = pair(at, "rule", text, '@')?;
    let (want, label) = what.split_once(':').ok_or_else(|| at.bad("rule", format!("{what:?} has no ':'")))?;
    let want = match want {
        "together" => Want::Together,
        "apart" => Want::Apart,
        "domain" => Want::OtherValuesApart,
        other => return Err(at.bad("rule", format!("{other:?} is none of together, apart and domain"))),
    };
    let level = match level {
        "host" => Level::Host,
        "rack" => Level::Rack,
        "zone" => Level::Zone,
        other => return Err(at.bad("rule", format!("{other:?} is none of host, rack and zone"))),
    };
    Ok(RuleEntry { label: label.to_owned(), level, want, soft })
}
