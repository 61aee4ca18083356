//! The scheduler's answers, for people; for programs they are printed as they are.

use std::fmt::Write as _;

use dunlin_model::advice::{BalancePlan, Capacity, DrainPlan, Explanation, Misfit, PlannedMove};
use dunlin_model::decision::{Candidate, Decision};
use serde::Serialize;

use super::table::{columns, cpus, pain};
use crate::args::Format;
use crate::failure::Failure;

/// Prints an answer: `text` for people, or the answer itself.
fn answer(format: Format, told: &impl Serialize, text: impl FnOnce(bool) -> String) -> Result<(), Failure> {
    match format {
        Format::Json => super::json(told),
        Format::Yaml => super::yaml(told),
        Format::Table | Format::Wide => super::line(&text(format == Format::Wide)),
    }
}

/// `explain`, and `vm create --dry-run`.
pub(crate) fn explanation(format: Format, told: &Explanation) -> Result<(), Failure> {
    answer(format, told, |wide| explained(told, wide))
}

/// An explanation as text.
pub(crate) fn explained(told: &Explanation, wide: bool) -> String {
    let mut text = String::new();
    let noun = told.kind.to_string().to_lowercase();
    for fact in &told.facts {
        let _ = writeln!(text, "{noun} {} {fact}", told.name);
    }
    if let Some(decided) = &told.decided {
        let _ = writeln!(text, "\nDecided at revision {}:", decided.revision);
        text.push_str(&decision(decided));
    }
    if let Some(now) = &told.now {
        let _ = writeln!(text, "\nAs of now, at revision {}:", now.revision);
        text.push_str(&decision(now));
        let rows = told.hosts.iter().map(|host| {
            let score = if host.fits { host.score.to_string() } else { "-".to_owned() };
            let why = if host.fits { String::new() } else { format!("{}: {}", host.reason, host.text) };
            vec![host.host.to_string(), score, why]
        });
        let shown = if wide { usize::MAX } else { 10 };
        let more = told.hosts.len().saturating_sub(shown);
        text.push('\n');
        text.push_str(&columns(&["HOST", "SCORE", "WHY NOT"], rows.take(shown)));
        if more > 0 {
            let _ = writeln!(text, "and {more} more hosts; -o wide tells them");
        }
    }
    for hint in &told.would_help {
        let _ = writeln!(text, "would help: {hint}");
    }
    if !told.make_room.is_empty() {
        text.push_str("\nThese moves would make room:\n");
        text.push_str(&moves(&told.make_room));
    }
    text
}

fn decision(decision: &Decision) -> String {
    let mut text = String::new();
    for (place, found) in [("chosen", &decision.winner), ("next", &decision.runner_up)] {
        if let Some(found) = found {
            let _ = writeln!(text, "  {place} {}", candidate(found));
        }
    }
    let fits = if decision.fitting == 1 {
        "1 host fits".to_owned()
    } else {
        format!("{} hosts fit", decision.fitting)
    };
    let refused: Vec<String> = decision.refused.iter().map(ToString::to_string).collect();
    let refused =
        if refused.is_empty() { String::new() } else { format!("; refused: {}", refused.join("; ")) };
    let _ = writeln!(text, "  {fits}{refused}");
    text
}

fn candidate(found: &Candidate) -> String {
    let terms: Vec<String> =
        found.terms.iter().map(|term| format!("{} {}", term.name, term.points)).collect();
    format!("{} with {} points: {}", found.name, found.score, terms.join(" + "))
}

fn moves(moves: &[PlannedMove]) -> String {
    let row = |planned: &PlannedMove| {
        let cost = &planned.grounds.cost;
        vec![
            planned.wave.to_string(),
            planned.vm.to_string(),
            planned.from.to_string(),
            planned.to.to_string(),
            format!("{} MiB, {} ms", cost.send_mib, cost.total_ms),
            planned.grounds.reason.clone(),
        ]
    };
    columns(&["WAVE", "VM", "FROM", "TO", "COST", "WHY"], moves.iter().map(row))
}

fn misfits(misfits: &[Misfit]) -> String {
    let row = |misfit: &Misfit| {
        vec![misfit.vm.to_string(), misfit.host.to_string(), format!("{}: {}", misfit.reason, misfit.text)]
    };
    columns(&["VM", "HOST", "FITS NOWHERE"], misfits.iter().map(row))
}

/// `host drain --dry-run`.
pub(crate) fn drain(format: Format, plan: &DrainPlan) -> Result<(), Failure> {
    answer(format, plan, |_| {
        let hosts: Vec<String> = plan.hosts.iter().map(ToString::to_string).collect();
        let waves = plan.moves.iter().map(|planned| planned.wave).max().unwrap_or(0);
        let mut text = format!(
            "{} of {} VMs can leave {} in {waves} waves, in about {} s\n",
            plan.moves.len(),
            plan.vms,
            hosts.join(", "),
            plan.total_ms.div_ceil(1_000)
        );
        if !plan.moves.is_empty() {
            text.push_str(&moves(&plan.moves));
        }
        if !plan.misfits.is_empty() {
            text.push_str(&misfits(&plan.misfits));
        }
        text
    })
}

/// `balance plan` and `balance apply`.
pub(crate) fn balance(format: Format, plan: &BalancePlan) -> Result<(), Failure> {
    answer(format, plan, |_| {
        let mode = format!("{:?}", plan.mode).to_lowercase();
        let mut text = format!("{} (mode {mode}, level {})\n", plan.verdict, plan.level);
        if !plan.emptied.is_empty() {
            let names: Vec<&str> = plan.emptied.iter().map(dunlin_model::Name::as_str).collect();
            let _ = writeln!(text, "to be switched off: {}", names.join(", "));
        }
        if !plan.moves.is_empty() {
            let change = pain(plan.pain_before_milli, plan.pain_after_milli);
            let _ = writeln!(text, "pain of the fleet {change} CPUs\n");
            text.push_str(&moves(&plan.moves));
        }
        let row = |host: &dunlin_model::advice::HostLoad| {
            vec![
                host.host.to_string(),
                cpus(host.cpu_milli),
                cpus(host.asked_milli),
                cpus(host.asked_after_milli),
                format!("{} %", host.mem_percent),
                format!("{}/{}", host.measured, host.vms),
            ]
        };
        text.push('\n');
        let head = ["HOST", "CPUS", "ASKED", "AFTER", "MEMORY", "MEASURED"];
        text.push_str(&columns(&head, plan.hosts.iter().map(row)));
        for sentence in &plan.distrusted {
            let _ = writeln!(text, "not believed: {sentence}");
        }
        text
    })
}

/// `cluster capacity`.
pub(crate) fn capacity(format: Format, told: &Capacity) -> Result<(), Failure> {
    answer(format, told, |_| {
        let mut text =
            format!("{} more VMs of {} vCPUs and {} MiB fit\n", told.fits, told.cpus, told.mem_mib);
        if !told.verdict.is_empty() {
            let _ = writeln!(text, "{}", told.verdict);
        }
        let row = |room: &dunlin_model::advice::HostRoom| {
            vec![
                room.host.to_string(),
                room.fits.to_string(),
                room.limit.clone(),
                room.cpus_free.to_string(),
                format!("{} MiB", room.mem_free_mib),
            ]
        };
        let head = ["HOST", "FITS", "THEN", "VCPUS LEFT", "MEMORY LEFT"];
        text.push_str(&columns(&head, told.hosts.iter().map(row)));
        if !told.misfits.is_empty() {
            text.push_str(&misfits(&told.misfits));
        }
        text
    })
}
