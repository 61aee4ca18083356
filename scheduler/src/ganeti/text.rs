//! The text format of Ganeti's tools (`hbal -t FILE`): five blocks, one empty line between them.
//!
//! ```text
//! groups     name|uuid|policy|tags|networks
//! nodes      name|t_mem|n_mem|f_mem|t_dsk|f_dsk|t_cpu|N M Y|group uuid|spindles|tags|excl|free spindles|node cpus|speed
//! instances  name|mem|disk|vcpus|status|Y N|primary|secondary|template|tags|spindle use|spindles|forthcoming
//! tags       one a line
//! policies   owner|std|min;max|templates|vcpu ratio|spindle ratio
//! ```
//!
//! The last fields of nodes and instances may be missing, as in the files of older releases; they are always written.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::input::{BadInput, Line, shown};

/// 1 EiB in MiB: more than any machine has, and sums of a million of them still fit in 64 bits.
const SIZE_MIB_MAX: u64 = 1 << 40;

/// CPUs or spindles of one node or instance.
const COUNT_MAX: u64 = 1 << 20;

/// A whole file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextFleet {
    /// Node groups: an instance moves within its own.
    pub groups: Vec<Group>,
    /// Hosts.
    pub nodes: Vec<Node>,
    /// VMs.
    pub instances: Vec<Instance>,
    /// Cluster tags. `htools:iextags:X` makes instances with the same tag `X:...` stay apart.
    pub tags: Vec<String>,
    /// Policies: the cluster's has no owner, the others name their group.
    pub policies: Vec<Policy>,
}

/// A node group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// What nodes refer to.
    pub uuid: String,
    /// `preferred`, `last_resort` or `unallocable`.
    pub alloc_policy: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Networks.
    pub networks: Vec<String>,
}

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeRole {
    /// An online node.
    #[default]
    Normal,
    /// The online node that leads.
    Leader,
    /// Runs nothing.
    Offline,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Memory in all, MiB.
    pub total_mem_mib: u64,
    /// Memory of the node itself, MiB.
    pub node_mem_mib: u64,
    /// Memory free now, MiB.
    pub free_mem_mib: u64,
    /// Disk in all, MiB.
    pub total_disk_mib: u64,
    /// Disk free now, MiB.
    pub free_disk_mib: u64,
    /// CPUs.
    pub cpus: u64,
    /// Normal, leader, offline.
    pub role: NodeRole,
    /// Index of its group.
    pub group: usize,
    /// Disk spindles.
    pub spindles: u64,
    /// Tags.
    pub tags: Vec<String>,
    /// Whole spindles are given to instances.
    pub exclusive_storage: bool,
    /// Spindles nobody has.
    pub free_spindles: u64,
    /// CPUs the node keeps for itself.
    pub node_cpus: u64,
    /// Speed of a CPU, thousandths of the reference.
    pub cpu_speed_milli: u64,
}

/// A VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Name.
    pub name: String,
    /// Memory, MiB.
    pub mem_mib: u64,
    /// Disk, MiB.
    pub disk_mib: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// One of [`STATUSES`].
    pub status: String,
    /// May a balancer move it?
    pub auto_balance: bool,
    /// Index of the node it runs on.
    pub primary: usize,
    /// Index of the node that mirrors its disk.
    pub secondary: Option<usize>,
    /// One of [`TEMPLATES`].
    pub template: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Spindles' worth of load it puts on a disk.
    pub spindle_use: u64,
    /// Whole spindles it has.
    pub spindles: Option<u64>,
    /// It is promised, and does not exist yet.
    pub forthcoming: bool,
}

/// An instance policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The group's name; empty for the cluster's own.
    pub owner: String,
    /// Standard, minimum and maximum sizes and the disk templates: kept as they are written.
    pub specs: [String; 3],
    /// vCPUs per CPU that may be promised, thousandths.
    pub vcpu_ratio_milli: u64,
    /// Instances per spindle, thousandths.
    pub spindle_ratio_milli: u64,
}

/// What an instance may be doing, in Ganeti's words.
pub const STATUSES: &[&str] = &[
    "running",
    "ERROR_up",
    "ADMIN_down",
    "ADMIN_offline",
    "ERROR_down",
    "ERROR_nodedown",
    "ERROR_nodeoffline",
    "ERROR_wrongnode",
    "USER_down",
];

/// Disk templates, in Ganeti's words.
pub const TEMPLATES: &[&str] =
    &["diskless", "file", "sharedfile", "plain", "blockdev", "drbd", "rbd", "ext", "gluster"];

impl Instance {
    /// Counts against memory and vCPUs: it is there and switched on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let off = ["ADMIN_down", "ADMIN_offline", "ERROR_down", "USER_down"];
        !self.forthcoming && !off.contains(&self.status.as_str())
    }

    /// Its storage can be reached from every node of its group, so that only memory has to move.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.template.as_str(), "diskless" | "sharedfile" | "blockdev" | "rbd" | "ext" | "gluster")
    }
}

impl TextFleet {
    /// Reads a file. `file` is the name told when a line is bad.
    ///
    /// # Errors
    /// The first line that is not understood, with its field.
    pub fn read(file: &str, text: &str) -> Result<Self, BadInput> {
        let mut fleet = Self::default();
        let mut names = Names::default();
        let mut block = 0;
        for line in Line::all(file, text) {
            if line.text.is_empty() {
                block += 1;
                continue;
            }
            let fields: Vec<&str> = line.text.split('|').collect();
            match block {
                0 => fleet.groups.push(names.group(&line, &fields)?),
                1 => fleet.nodes.push(names.node(&line, &fields)?),
                2 => fleet.instances.push(names.instance(&line, &fields)?),
                3 => fleet.tags.push(line.text.to_owned()),
                4 => fleet.policies.push(names.policy(&line, &fields)?),
                // As Ganeti does: what follows is of a later release.
                _ => {}
            }
        }
        if block < 3 {
            let reason = format!("{} blocks; allowed: 4 or more, with one empty line between two", block + 1);
            return Err(BadInput { file: file.to_owned(), line: 0, field: "blocks".to_owned(), reason });
        }
        Ok(fleet)
    }

    /// The same file again, every field written out.
    #[must_use]
    pub fn write(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            let (tags, networks) = (group.tags.join(","), group.networks.join(","));
            line(
                &mut text,
                &format!("{}|{}|{}|{tags}|{networks}", group.name, group.uuid, group.alloc_policy),
            );
        }
        text.push('\n');
        for node in &self.nodes {
            self.write_node(&mut text, node);
        }
        text.push('\n');
        for instance in &self.instances {
            self.write_instance(&mut text, instance);
        }
        text.push('\n');
        for tag in &self.tags {
            line(&mut text, tag);
        }
        text.push('\n');
        for policy in &self.policies {
            let ratios = [policy.vcpu_ratio_milli, policy.spindle_ratio_milli].map(decimal).join("|");
            line(&mut text, &format!("{}|{}|{ratios}", policy.owner, policy.specs.join("|")));
        }
        text
    }

    /// The group's vCPU ratio, thousandths. Ganeti's default is 4.
    #[must_use]
    pub fn vcpu_ratio_milli(&self, group: usize) -> u64 {
        self.policy(group).map_or(4_000, |policy| policy.vcpu_ratio_milli)
    }

    /// The group's spindle ratio, thousandths. Ganeti's default is 32.
    #[must_use]
    pub fn spindle_ratio_milli(&self, group: usize) -> u64 {
        self.policy(group).map_or(32_000, |policy| policy.spindle_ratio_milli)
    }

    /// As Ganeti reads them: a group without a policy of its own has Ganeti's default, not the cluster's.
    fn policy(&self, group: usize) -> Option<&Policy> {
        let name = self.groups.get(group).map_or("", |group| group.name.as_str());
        self.policies.iter().rev().find(|policy| policy.owner == name)
    }

    fn write_node(&self, text: &mut String, node: &Node) {
        let role = match node.role {
            NodeRole::Normal => 'N',
            NodeRole::Leader => 'M',
            NodeRole::Offline => 'Y',
        };
        let numbers = [
            node.total_mem_mib,
            node.node_mem_mib,
            node.free_mem_mib,
            node.total_disk_mib,
            node.free_disk_mib,
            node.cpus,
        ];
        let numbers = numbers.map(|number| number.to_string()).join("|");
        let group = self.groups.get(node.group).map_or("", |group| group.uuid.as_str());
        let storage =
            format!("{}|{}|{}", node.tags.join(","), yes(node.exclusive_storage), node.free_spindles);
        let cpu = format!("{}|{}", node.node_cpus, decimal(node.cpu_speed_milli));
        line(text, &format!("{}|{numbers}|{role}|{group}|{}|{storage}|{cpu}", node.name, node.spindles));
    }

    fn write_instance(&self, text: &mut String, instance: &Instance) {
        let name = |node: usize| self.nodes.get(node).map_or("", |node| node.name.as_str());
        let (primary, secondary) = (name(instance.primary), instance.secondary.map_or("", name));
        let spindles = instance.spindles.map_or("-".to_owned(), |spindles| spindles.to_string());
        let size = format!("{}|{}|{}", instance.mem_mib, instance.disk_mib, instance.vcpus);
        let state = format!("{}|{}", instance.status, yes(instance.auto_balance));
        let disk = format!("{}|{}|{}", instance.template, instance.tags.join(","), instance.spindle_use);
        let end = format!("{spindles}|{}", yes(instance.forthcoming));
        line(text, &format!("{}|{size}|{state}|{primary}|{secondary}|{disk}|{end}", instance.name));
    }
}

fn line(text: &mut String, content: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{content}");
}

fn yes(flag: bool) -> char {
    if flag { 'Y' } else { 'N' }
}

/// Thousandths as Ganeti's reader wants them: with a point, always.
fn decimal(milli: u64) -> String {
    let fraction = format!("{:03}", milli % 1_000);
    let fraction = fraction.trim_end_matches('0');
    format!("{}.{}", milli / 1_000, if fraction.is_empty() { "0" } else { fraction })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Names seen so far, to resolve references and to refuse doubles.
#[derive(Debug, Default)]
struct Names {
    groups: BTreeMap<String, usize>,
    /// Group names: policies refer to those.
    owners: BTreeMap<String, usize>,
    nodes: BTreeMap<String, usize>,
    instances: BTreeMap<String, usize>,
}

impl Names {
    fn group(&mut self, line: &Line<'_>, fields: &[&str]) -> Result<Group, BadInput> {
        let [name, uuid, alloc_policy, tags, rest @ ..] = fields else {
            return Err(too_few(line, "group", fields.len(), 4));
        };
        if !["preferred", "last_resort", "unallocable"].contains(alloc_policy) {
            let allowed = "allowed: preferred, last_resort, unallocable";
            return Err(line.refuse("alloc_policy", format!("{}; {allowed}", shown(alloc_policy))));
        }
        learn(line, "name", name, &mut self.owners)?;
        learn(line, "uuid", uuid, &mut self.groups)?;
        Ok(Group {
            name: (*name).to_owned(),
            uuid: (*uuid).to_owned(),
            alloc_policy: (*alloc_policy).to_owned(),
            tags: list(tags),
            networks: list(rest.first().unwrap_or(&"")),
        })
    }

    fn node(&mut self, line: &Line<'_>, fields: &[&str]) -> Result<Node, BadInput> {
        if fields.len() < 9 {
            return Err(too_few(line, "node", fields.len(), 9));
        }
        // A node that answers nothing is written with question marks, and counts as offline.
        let dark = fields[1..7].contains(&"?");
        let number = |at: usize, field: &str, most: u64| match fields.get(at) {
            _ if dark && at < 7 => Ok(0),
            Some(text) => line.whole(field, whole_part(text), 0..=most),
            None => Ok(0),
        };
        let role = match fields[7] {
            "Y" => NodeRole::Offline,
            _ if dark => NodeRole::Offline,
            "N" => NodeRole::Normal,
            "M" => NodeRole::Leader,
            other => return Err(line.refuse("role", format!("{}; allowed: N, M, Y", shown(other)))),
        };
        let Some(group) = self.groups.get(fields[8]) else {
            return Err(line.refuse("group", format!("no group has the uuid {}", shown(fields[8]))));
        };
        learn(line, "name", fields[0], &mut self.nodes)?;
        Ok(Node {
            name: fields[0].to_owned(),
            total_mem_mib: number(1, "t_mem", SIZE_MIB_MAX)?,
            node_mem_mib: number(2, "n_mem", SIZE_MIB_MAX)?,
            free_mem_mib: number(3, "f_mem", SIZE_MIB_MAX)?,
            total_disk_mib: number(4, "t_dsk", SIZE_MIB_MAX)?,
            free_disk_mib: number(5, "f_dsk", SIZE_MIB_MAX)?,
            cpus: number(6, "t_cpu", COUNT_MAX)?,
            role,
            group: *group,
            spindles: fields.get(9).map_or(Ok(1), |text| line.whole("spindles", text, 0..=COUNT_MAX))?,
            tags: list(fields.get(10).unwrap_or(&"")),
            exclusive_storage: flag(line, "exclusive_storage", fields.get(11))?,
            free_spindles: number(12, "free_spindles", COUNT_MAX)?,
            node_cpus: fields.get(13).map_or(Ok(1), |text| line.whole("node_cpus", text, 0..=COUNT_MAX))?,
            cpu_speed_milli: fields
                .get(14)
                .map_or(Ok(1_000), |text| line.milli("cpu_speed", text, 1..=1_000_000))?,
        })
    }

    fn instance(&mut self, line: &Line<'_>, fields: &[&str]) -> Result<Instance, BadInput> {
        if fields.len() < 10 {
            return Err(too_few(line, "instance", fields.len(), 10));
        }
        let place = |field: &str, name: &str| {
            let index = self.nodes.get(name).copied();
            index.ok_or_else(|| line.refuse(field, format!("no node is called {}", shown(name))))
        };
        let one_of = |field: &str, text: &str, allowed: &[&str]| {
            let refuse = || line.refuse(field, format!("{}; allowed: {}", shown(text), allowed.join(", ")));
            if allowed.contains(&text) { Ok(text.to_owned()) } else { Err(refuse()) }
        };
        let primary = place("primary", fields[6])?;
        let secondary = if fields[7].is_empty() { None } else { Some(place("secondary", fields[7])?) };
        let template = one_of("template", fields[8], TEMPLATES)?;
        if template == "drbd" && secondary == Some(primary) {
            return Err(line.refuse("secondary", "the mirror is on the node of the disk itself"));
        }
        let spindles = match fields.get(11) {
            None | Some(&"-") => None,
            Some(text) => Some(line.whole("spindles", text, 0..=COUNT_MAX)?),
        };
        let instance = Instance {
            name: fields[0].to_owned(),
            mem_mib: line.whole("mem", fields[1], 0..=SIZE_MIB_MAX)?,
            disk_mib: line.whole("disk", fields[2], 0..=SIZE_MIB_MAX)?,
            vcpus: line.whole("vcpus", fields[3], 0..=COUNT_MAX)?,
            status: one_of("status", fields[4], STATUSES)?,
            auto_balance: flag(line, "auto_balance", fields.get(5))?,
            primary,
            secondary,
            template,
            tags: list(fields[9]),
            spindle_use: fields
                .get(10)
                .map_or(Ok(1), |text| line.whole("spindle_use", text, 0..=COUNT_MAX))?,
            spindles,
            forthcoming: flag(line, "forthcoming", fields.get(12))?,
        };
        learn(line, "name", fields[0], &mut self.instances)?;
        Ok(instance)
    }

    fn policy(&mut self, line: &Line<'_>, fields: &[&str]) -> Result<Policy, BadInput> {
        let [owner, standard, bounds, templates, vcpu_ratio, spindle_ratio, ..] = fields else {
            return Err(too_few(line, "policy", fields.len(), 6));
        };
        if !owner.is_empty() && !self.owners.contains_key(*owner) {
            return Err(line.refuse("owner", format!("no group is called {}", shown(owner))));
        }
        Ok(Policy {
            owner: (*owner).to_owned(),
            specs: [standard, bounds, templates].map(|spec| (*spec).to_owned()),
            vcpu_ratio_milli: line.milli("vcpu_ratio", vcpu_ratio, 0..=1_000_000_000)?,
            spindle_ratio_milli: line.milli("spindle_ratio", spindle_ratio, 0..=1_000_000_000)?,
        })
    }
}

/// `32768.0` is how a float without a fraction is written; it means a whole number.
fn whole_part(text: &str) -> &str {
    text.split_once('.')
        .filter(|(_, rest)| rest.bytes().all(|byte| byte == b'0'))
        .map_or(text, |(whole, _)| whole)
}

fn flag(line: &Line<'_>, field: &str, text: Option<&&str>) -> Result<bool, BadInput> {
    match text.copied() {
        Some("Y") => Ok(true),
        None | Some("N") => Ok(false),
        Some(other) => Err(line.refuse(field, format!("{}; allowed: Y, N", shown(other)))),
    }
}

fn learn(
    line: &Line<'_>,
    field: &str,
    name: &str,
    known: &mut BTreeMap<String, usize>,
) -> Result<(), BadInput> {
    if name.is_empty() {
        return Err(line.refuse(field, "empty"));
    }
    let index = known.len();
    match known.insert(name.to_owned(), index) {
        None => Ok(()),
        Some(_) => Err(line.refuse(field, format!("{} stands there twice", shown(name)))),
    }
}

fn too_few(line: &Line<'_>, what: &str, fields: usize, least: usize) -> BadInput {
    line.refuse(what, format!("{fields} fields; allowed: {least} or more, with | between two"))
}
