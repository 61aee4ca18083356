//! Hosts with two NUMA nodes in racks, and request sequences with rules between VMs, as the files `PM_res.csv`,
//! `topology_provider.csv` and `VM_data_*.csv` have them. The number of a group counts within its strategy: upstream gives
//! the same numbers to groups of each.

use std::collections::BTreeMap;

use dunlin_model::Labels;

use super::lines::{At, BadLine, table};
use super::{Arrival, Trace};
use crate::snapshot::{Amounts, Demand, HostEntry, Level, Numa, RuleEntry, Want};

/// Most CPUs or GiB of a NUMA node or a VM: far above any machine, far below an overflow.
const SIZE_MAX: u64 = 1 << 20;

/// Reads the hosts. Row `i` of the sizes is `host-i` of the topology; hosts without a size are left out.
///
/// # Errors
/// The first line that is not right.
pub fn read_hosts(sizes: (&str, &[u8]), topology: (&str, &[u8])) -> Result<Vec<HostEntry>, BadLine> {
    let mut racks: BTreeMap<String, String> = BTreeMap::new();
    for row in table(topology.0, topology.1, ["host_id", "rack_id"])? {
        let (at, [host, rack]) = row?;
        let rack = at.number("rack_id", rack, 0, u32::MAX.into())?;
        racks.insert(host.to_owned(), rack.to_string());
    }
    let mut hosts = Vec::new();
    for row in table(sizes.0, sizes.1, ["CPU1", "RAM1", "CPU2", "RAM2"])? {
        let (at, [cpu1, ram1, cpu2, ram2]) = row?;
        let node = |cpu: (&str, &str), ram: (&str, &str)| {
            let cpus = at.number(cpu.0, cpu.1, 0, SIZE_MAX)?;
            Ok(Amounts::new(cpus * 1_000, at.number(ram.0, ram.1, 0, SIZE_MAX)? * 1_024))
        };
        let nodes = vec![node(("CPU1", cpu1), ("RAM1", ram1))?, node(("CPU2", cpu2), ("RAM2", ram2))?];
        let name = format!("host-{}", hosts.len());
        let rack = racks
            .get(&name)
            .ok_or_else(|| at.bad("line", format!("{name} has no rack in {}", topology.0)))?;
        let total = nodes[0].plus(nodes[1]);
        let uid = super::fleet::host_uid(hosts.len());
        let parsed = name.parse().map_err(|_| at.bad("line", format!("{name} is no name")))?;
        let labels = Labels::from([("rack".to_owned(), rack.clone())]);
        hosts.push(HostEntry { nodes, labels, ..HostEntry::new(uid, parsed, total) });
    }
    Ok(hosts)
}

/// Reads the requests. Nobody leaves; requests in a row for the same group are one batch.
///
/// # Errors
/// The first line that is not right.
pub fn read_requests(file: &str, bytes: &[u8]) -> Result<Trace, BadLine> {
    let columns = ["flavor_vcpus", "flavor_ram", "numa", "strategy", "group", "domain"];
    let mut trace = Trace::default();
    let mut known: BTreeMap<[&str; 6], usize> = BTreeMap::new();
    let mut last = ["", ""];
    let mut batch = 0;
    for row in table(file, bytes, columns)? {
        let (at, fields) = row?;
        let demand = match known.get(&fields) {
            Some(demand) => *demand,
            None => {
                trace.demands.push(demand(at, fields)?);
                known.insert(fields, trace.demands.len() - 1);
                trace.demands.len() - 1
            }
        };
        let group = [fields[3], fields[4]];
        if group[1].is_empty() || group != last {
            batch += 1;
        }
        last = group;
        let at_s = trace.arrivals.len() as u64;
        trace.arrivals.push(Arrival { at_s, leaves_s: None, demand, batch });
    }
    Ok(trace)
}

fn demand(at: At<'_>, [vcpus, ram, numa, strategy, group, domain]: [&str; 6]) -> Result<Demand, BadLine> {
    let cpus = at.number("flavor_vcpus", vcpus, 1, SIZE_MAX)?;
    let mem_mib = at.number("flavor_ram", ram, 1, SIZE_MAX)? * 1_024;
    let numa = match at.number("numa", numa, 1, 2)? {
        1 => Numa::One,
        _ => Numa::Split(2),
    };
    let mut demand = Demand { amounts: Amounts::new(cpus * 1_000, mem_mib), numa, ..Demand::default() };
    if strategy.is_empty() {
        return Ok(demand);
    }
    if group.is_empty() {
        return Err(at.bad("group", format!("empty, with strategy {strategy}")));
    }
    let (label, level, want) = match strategy {
        "affinity" => (format!("with-{group}"), Level::Host, Want::Together),
        "anti-affinity" => (format!("without-{group}"), Level::Host, Want::Apart),
        "fault_domain" => (format!("domain-of-{group}"), Level::Rack, Want::OtherValuesApart),
        other => {
            let reason = format!("{other:?} is none of affinity, anti-affinity, fault_domain and blank");
            return Err(at.bad("strategy", reason));
        }
    };
    if want == Want::OtherValuesApart {
        if domain.is_empty() {
            return Err(at.bad("domain", "empty, with strategy fault_domain"));
        }
        demand.labels.push(format!("{label}={domain}"));
    } else {
        demand.labels.push(label.clone());
    }
    demand.rules.push(RuleEntry { label, level, want, soft: None });
    Ok(demand)
}
