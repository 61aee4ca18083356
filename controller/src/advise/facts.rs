//! Sentences with numbers.

use dunlin_model::Timestamp;
use dunlin_model::decision::Effect;
use dunlin_scheduler::snapshot::Load;

/// Thousandths of a CPU, in CPUs.
pub(super) fn cpus(milli: u64) -> String {
    format!("{}.{:02}", milli / 1_000, milli % 1_000 / 10)
}

/// What a guest uses.
pub(super) fn load(load: Option<&Load>, now: Timestamp) -> String {
    let Some(load) = load else { return "has not been measured yet".to_owned() };
    format!(
        "wants {} CPUs on average and {} at its peak (used and waited for), and {} MiB; measured {} s ago",
        cpus(load.cpu_mean_milli),
        cpus(load.cpu_peak_milli),
        load.mem_mib,
        load.age_ms(now.0) / 1_000
    )
}

/// "1 VM", "2 VMs".
pub(super) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Before and after, of the fleet and both hosts.
pub(super) fn effect(effect: &Effect) -> String {
    let Effect {
        pain_before_milli,
        pain_after_milli,
        from_percent_before,
        from_percent_after,
        to_percent_before,
        to_percent_after,
    } = effect;
    format!(
        "pain of the fleet {} -> {} CPUs, source {from_percent_before} -> {from_percent_after} %, destination \
         {to_percent_before} -> {to_percent_after} %",
        cpus(*pain_before_milli),
        cpus(*pain_after_milli)
    )
}
