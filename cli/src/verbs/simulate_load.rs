//! `simulate` with a day of measured load: what a balancer would have done about it.

use dunlin_model::Invalid;
use dunlin_scheduler::Policy;
use dunlin_scheduler::balance::Eagerness;
use dunlin_scheduler::budget::Budgets;
use dunlin_scheduler::replay::trace::LoadTrace;
use dunlin_scheduler::replay::{Report, Rule, replay, seat::seat};
use dunlin_scheduler::snapshot::{HostEntry, Snapshot};
use serde_json::json;

use crate::args::Format;
use crate::failure::Failure;
use crate::output::{self, table::columns};

/// What `--policy` may be with a load trace.
const RULES: &str = "off, level-1 to level-5, or deviation-PERCENT";

/// vCPUs promised per CPU where VMs are seated, percent: so many that load is what hosts run out of, and not promises.
const OVERCOMMIT_PERCENT: u32 = 600;

/// How the first line of a load trace begins.
pub(super) const HEADER: &[u8] = b"vm,timestamp,";

/// How that fleet is balanced.
pub(super) fn rule(name: &str) -> Result<Rule, Invalid> {
    let unknown = || Invalid::new("--policy", format!("{name:?} is none for a load trace"), RULES);
    if name == "off" {
        return Ok(Rule::None);
    }
    if let Some(level) = name.strip_prefix("level-") {
        let level: u8 = level.parse().map_err(|_| unknown())?;
        return Ok(Rule::Pain { level: Eagerness::try_from(level).map_err(|_| unknown())? });
    }
    let percent = name.strip_prefix("deviation-").and_then(|text| text.parse::<u64>().ok());
    let percent = percent.filter(|percent| (1..=100).contains(percent)).ok_or_else(unknown)?;
    Ok(Rule::Deviation { target_ppm: percent * 10_000 })
}

/// Draws the VMs, seats them, and plays the day once for each rule.
pub(super) fn run(
    hosts: &Snapshot,
    trace: &LoadTrace,
    (count, seed): (usize, u64),
    rules: &[(&str, Rule)],
    format: Format,
) -> Result<(), Failure> {
    let mut fleet = promising(hosts);
    let (series, rejected) = seat(&mut fleet, trace, count, seed);
    let played =
        rules.iter().map(|(name, rule)| (*name, replay(&fleet, &series, *rule, &Budgets::default())));
    let reports: Vec<(&str, Report)> = played.collect();
    match format {
        Format::Json | Format::Yaml => {
            let told: Vec<_> = reports
                .iter()
                .map(|(policy, report)| {
                    json!({ "policy": policy, "vms": series.len(), "rejected": rejected, "report": report })
                })
                .collect();
            output::value(format, &told)
        }
        Format::Table | Format::Wide => output::line(&side_by_side(series.len(), rejected, &reports)),
    }
}

/// The hosts of a fleet without its VMs, whose load nobody knows.
fn promising(hosts: &Snapshot) -> Snapshot {
    let mut fleet =
        Snapshot::empty(Policy { cpu_overcommit_percent: OVERCOMMIT_PERCENT, ..Policy::spread() });
    for (_, row) in hosts.hosts() {
        let total = fleet.policy.promised(row.physical);
        let entry = HostEntry::new(row.uid, row.name.clone(), total);
        fleet.add_host(&HostEntry { physical: row.physical, ..entry });
    }
    fleet
}

fn side_by_side(vms: usize, rejected: u64, reports: &[(&str, Report)]) -> String {
    let head: Vec<&str> = std::iter::once("").chain(reports.iter().map(|(name, _)| *name)).collect();
    let row = |what: &str, of: &dyn Fn(&Report) -> String| {
        std::iter::once(what.to_owned())
            .chain(reports.iter().map(|(_, report)| of(report)))
            .collect::<Vec<_>>()
    };
    let ppm = |value: u64| format!("{}.{:04} %", value / 10_000, value % 10_000);
    let milli = |value: u64| format!("{}.{}", value / 1_000, value % 1_000 / 100);
    columns(
        &head,
        [
            row("VMs", &|_| vms.to_string()),
            row("rejected", &|_| rejected.to_string()),
            row("hosts used, mean", &|report| milli(report.hosts_milli)),
            row("wanted, CPU s", &|report| report.demand_cpu_s.to_string()),
            row("unmet, CPU s", &|report| report.unmet_cpu_s.to_string()),
            row("unmet", &|report| ppm(report.unmet_ppm())),
            row("by moves, CPU s", &|report| report.moving_cpu_s.to_string()),
            row("hottest host", &|report| format!("{} %", report.hottest_percent)),
            row("moves", &|report| report.moves.to_string()),
            row("moved, MiB", &|report| report.sent_mib.to_string()),
            row("there and back", &|report| report.circles.to_string()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule has a name, and what is no rule is refused with those there are.
    #[test]
    fn rules_have_names() {
        let check = |name: &str, expected: Option<Rule>| match rule(name) {
            Ok(found) => assert_eq!(Some(found), expected),
            Err(refused) => assert!(expected.is_none() && refused.to_string().contains(RULES), "{refused}"),
        };
        check("off", Some(Rule::None));
        check("level-5", Some(Rule::Pain { level: Eagerness::try_from(5).unwrap() }));
        check("deviation-10", Some(Rule::Deviation { target_ppm: 100_000 }));
        for wrong in ["spread", "level-0", "level-6", "level-", "deviation-0", "deviation-x"] {
            check(wrong, None);
        }
    }
}
