//! `simulate`: what a policy would have done, found by the very code that decides in earnest. Needs no fleet to talk to.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use dunlin_model::Invalid;
use dunlin_scheduler::Policy;
use dunlin_scheduler::ganeti::score::{Loads, Measured};
use dunlin_scheduler::ganeti::search::{Limits, apply};
use dunlin_scheduler::ganeti::{GanetiPlan, TextFleet, balance};
use dunlin_scheduler::replay::trace::LoadTrace;
use dunlin_scheduler::simulate::{Options, Report, Trace, azure, fleet, huawei, replay};
use dunlin_scheduler::snapshot::Snapshot;
use serde_json::json;

use super::simulate_load;
use crate::args::{Format, whole};
use crate::failure::Failure;
use crate::output::{self, table::columns};

/// Largest file read, bytes: a year of arrivals of a large region.
const FILE_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Fleet: hosts and VMs a line each, Ganeti's text format, or a table of host sizes (CPU1,RAM1,...)
    #[arg(long)]
    fleet: PathBuf,
    /// Racks of the hosts, with a table of host sizes
    #[arg(long)]
    topology: Option<PathBuf>,
    /// Arrivals to replay, as Azure's or Huawei's traces have them, or a day of load (vm,timestamp,duration_ms,cpu_mhz);
    /// - for standard input
    #[arg(long)]
    trace: Option<PathBuf>,
    /// With load: the sizes of its VMs (vm,cpu_count,cpu_mhz_total,...)
    #[arg(long)]
    vms: Option<PathBuf>,
    /// With load: VMs that are drawn from the trace; as many as it has when not said
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 1000000"))]
    draw: Option<u32>,
    /// spread, pack, power-saving, or a YAML file; with load: off, level-1 to level-5, or deviation-PERCENT
    #[arg(long, default_value = "spread")]
    policy: String,
    /// A second policy, side by side
    #[arg(long)]
    versus: Option<String>,
    /// What is not in the trace is drawn from this
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = whole::<u64>("0 and up"))]
    seed: u64,
    /// VMs that may be moved within a day to let others in, per mille of those that live
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = whole::<u32>("0 to 1000"))]
    moves_per_day_permille: u32,
    /// Write the fleet after the plan, in Ganeti's text format
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

pub(crate) fn run(args: &SimulateArgs, format: Format) -> Result<(), Failure> {
    let bytes = read(&args.fleet)?;
    if is_ganeti(&bytes) {
        return ganeti(args, &bytes, format);
    }
    let Some(path) = &args.trace else {
        return Err(Invalid::new("--trace", "is missing", "arrivals to replay over this fleet").into());
    };
    let trace_bytes = read(path)?;
    if trace_bytes.starts_with(simulate_load::HEADER) {
        return load(args, (&bytes, &trace_bytes), path, format);
    }
    let trace = trace(path, &trace_bytes, args.seed)?;
    let policies = [Some(args.policy.as_str()), args.versus.as_deref()];
    let options = Options { moves_per_day_permille: args.moves_per_day_permille, ..Options::default() };
    let mut reports = Vec::new();
    for name in policies.into_iter().flatten() {
        let hosts = hosts(args, &bytes, policy(name)?)?;
        reports.push(replay(hosts, &trace, &options).0);
    }
    match format {
        Format::Json | Format::Yaml => output::value(format, &reports),
        Format::Table | Format::Wide => output::line(&side_by_side(&reports)),
    }
}

fn side_by_side(reports: &[Report]) -> String {
    let names: Vec<&str> = reports.iter().map(|report| report.policy.as_str()).collect();
    let head: Vec<&str> = std::iter::once("").chain(names.iter().copied()).collect();
    let row = |what: &str, of: &dyn Fn(&Report) -> String| {
        std::iter::once(what.to_owned()).chain(reports.iter().map(of)).collect::<Vec<_>>()
    };
    let permille = |value: u64| format!("{}.{} %", value / 10, value % 10);
    let milli = |value: u64| format!("{}.{}", value / 1_000, value % 1_000 / 100);
    columns(
        &head,
        [
            row("VMs that came", &|report| report.arrived.to_string()),
            row("rejected", &|report| report.rejected.to_string()),
            row("hosts used, most", &|report| report.hosts_used_max.to_string()),
            row("hosts used, mean", &|report| milli(report.hosts_used_mean_milli)),
            row("density", &|report| permille(report.density_permille)),
            row("moves", &|report| report.moves.to_string()),
            row("moved, MiB", &|report| report.moved_mib.to_string()),
            row("broken rules", &|report| report.violations.to_string()),
        ],
    )
}

/// Ganeti's text format: its own score before and after, and the moves.
fn ganeti(args: &SimulateArgs, bytes: &[u8], format: Format) -> Result<(), Failure> {
    let file = args.fleet.display().to_string();
    let mut known = TextFleet::read(&file, &text(&args.fleet, bytes)?).map_err(bad)?;
    let mut told = Vec::new();
    let mut rows = Vec::new();
    for group in 0..known.groups.len() {
        let plan = balance(&known, group, Measured::Loads(&Loads::default()), Limits::default());
        let name = known.groups[group].name.clone();
        rows.extend(ganeti_rows(&known, &name, &plan));
        told.push(json!({
            "group": name, "score_before": plan.before, "score_after": plan.after, "moves": plan.moves.len(),
        }));
        known = apply(&known, &plan);
    }
    if let Some(path) = &args.write {
        std::fs::write(path, known.write()).map_err(Failure::io(format!("writing {}", path.display())))?;
    }
    match format {
        Format::Json | Format::Yaml => output::value(format, &told),
        Format::Table | Format::Wide => {
            let mut text = String::new();
            for group in &told {
                let score = |key: &str| group[key].as_f64().unwrap_or_default();
                let (before, after) = (score("score_before"), score("score_after"));
                let name = group["group"].as_str().unwrap_or_default();
                text.push_str(&format!(
                    "group {name}: score {before:.8} -> {after:.8} in {} moves\n",
                    group["moves"]
                ));
            }
            if !rows.is_empty() {
                text.push_str(&columns(&["GROUP", "INSTANCE", "FROM", "TO", "SCORE"], rows));
            }
            output::line(&text)
        }
    }
}

fn ganeti_rows(fleet: &TextFleet, group: &str, plan: &GanetiPlan) -> Vec<Vec<String>> {
    let node = |at: usize| fleet.nodes[at].name.clone();
    let row = |step: &dunlin_scheduler::ganeti::GanetiMove| {
        let instance = fleet.instances[step.instance].name.clone();
        vec![group.to_owned(), instance, node(step.from), node(step.to), format!("{:.8}", step.score)]
    };
    plan.moves.iter().map(row).collect()
}

/// Four blocks with an empty line between two, and `|` between fields.
fn is_ganeti(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').find(|line| !line.is_empty());
    first.is_some_and(|line| line.contains(&b'|'))
}

fn hosts(args: &SimulateArgs, bytes: &[u8], policy: Policy) -> Result<Snapshot, Failure> {
    let file = args.fleet.display().to_string();
    if !bytes.starts_with(b"CPU1") {
        return fleet::read(&file, bytes, policy).map_err(bad);
    }
    let Some(path) = &args.topology else {
        return Err(Invalid::new("--topology", "is missing", "the racks of these hosts").into());
    };
    let racks = read(path)?;
    let entries = huawei::read_hosts((&file, bytes), (&path.display().to_string(), &racks)).map_err(bad)?;
    let mut snapshot = Snapshot::empty(policy);
    for entry in &entries {
        snapshot.add_host(entry);
    }
    Ok(snapshot)
}

fn trace(path: &Path, bytes: &[u8], seed: u64) -> Result<Trace, Failure> {
    let file = path.display().to_string();
    if bytes.starts_with(b"flavor_vcpus") {
        return huawei::read_requests(&file, bytes).map_err(bad);
    }
    azure::read(&file, bytes, seed).map_err(bad)
}

/// A day of measured load under one or two ways to balance it.
fn load(
    args: &SimulateArgs,
    (fleet, samples): (&[u8], &[u8]),
    path: &Path,
    format: Format,
) -> Result<(), Failure> {
    let named = match (args.policy.as_str(), &args.versus) {
        // The default of arrivals says nothing about load.
        ("spread", versus) => [Some("level-3"), versus.as_deref()],
        (policy, versus) => [Some(policy), versus.as_deref()],
    };
    let mut rules = Vec::new();
    for name in named.into_iter().flatten() {
        rules.push((name, simulate_load::rule(name)?));
    }
    let Some(sizes) = &args.vms else {
        return Err(Invalid::new("--vms", "is missing", "the sizes of the VMs of this load").into());
    };
    let (file, sizes_file) = (path.display().to_string(), sizes.display().to_string());
    let (samples, sizes) = (text(path, samples)?, text(sizes, &read(sizes)?)?);
    let trace = LoadTrace::read((&sizes_file, &sizes), (&file, &samples)).map_err(bad)?;
    let count = args.draw.map_or(trace.vms.len(), |count| count as usize);
    let hosts = hosts(args, fleet, Policy::spread())?;
    simulate_load::run(&hosts, &trace, (count, args.seed), &rules, format)
}

/// One of those that have a name, or a file.
fn policy(name: &str) -> Result<Policy, Failure> {
    match name {
        "spread" => Ok(Policy::spread()),
        "pack" => Ok(Policy::pack()),
        "power-saving" => Ok(Policy::power_saving()),
        path if Path::new(path).is_file() => {
            let wrong = |e: String| Invalid::new(path, e, "a policy, as `cluster policy -o yaml` prints it");
            let value: serde_json::Value =
                serde_norway::from_slice(&read(Path::new(path))?).map_err(|e| wrong(e.to_string()))?;
            let policy: Policy = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
            policy.validate()?;
            Ok(policy)
        }
        _ => {
            let problem = format!("{name:?} is no policy and no file");
            Err(Invalid::new("--policy", problem, "spread, pack, power-saving, or a YAML file").into())
        }
    }
}

/// The line that was not understood.
fn bad(error: impl std::fmt::Display) -> Failure {
    Failure::Local(error.to_string())
}

fn text(path: &Path, bytes: &[u8]) -> Result<String, Failure> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Invalid::new(path.display().to_string(), "is not text", "UTF-8").into())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = || Failure::io(format!("reading {}", path.display()));
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed())?;
    } else {
        let file = std::fs::File::open(path).map_err(failed())?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed())?;
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Invalid::new(path.display().to_string(), "is too long", "at most 1 GiB").into());
    }
    Ok(bytes)
}
