//! The figures of docs/PERFORMANCE.md, each a ratio against a peer or a baseline measured in the same run.
//!
//! `make bench` runs all; `cargo bench -p dunlin-tests -- NAME` runs those whose name contains NAME. Nothing here asserts a
//! time: machines differ, and the reader judges. `chaos` runs only when it is named in full: it measures nothing, and its
//! verdict is its exit status.

// Figures are for reading: a sum is no less true for having been a float.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]
#![allow(clippy::print_stdout)] // What a test or bench says is meant for its reader.

mod agent_rss;
mod chaos;
mod cutting_stock;
mod day;
mod decide;
mod failover;
mod ganeti;
mod lists;
mod load;
mod migration;
mod packing;
mod rules;
mod start;
mod traces;
mod writes;

type Bench = fn() -> anyhow::Result<()>;

fn main() -> anyhow::Result<()> {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if wanted == ["chaos"] {
        return chaos::run();
    }
    let all: [(&str, Bench); 11] = [
        ("start", start::run),
        ("migration", migration::run),
        ("agent-rss", agent_rss::run),
        ("writes", writes::run),
        ("failover", failover::run),
        ("lists", lists::run),
        ("place-decide", decide::run),
        ("place-packing", packing::run),
        ("place-rules", rules::run),
        ("balance-ganeti", ganeti::run),
        ("balance-day", day::run),
    ];
    for (name, run) in all {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            println!("\n## {name}\n");
            run()?;
        }
    }
    Ok(())
}

/// CPU time of this thread, seconds: what other processes do meanwhile does not count.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The middle of the values, and their worst.
fn median_and_worst(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() - 1])
}
