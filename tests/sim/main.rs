//! The fleet against its seed: real state machine, reconcilers, agents and protocol, on a clock, a network, disks and
//! hypervisors that are played. One seed is one run, and runs the same again.
//!
//! ```text
//!   users --writes--> controllers (apply, step, desired_set: real) <--sessions--> agents (board, plan, workers, journal: real)
//!                        |                                                            |               |
//!                     log: its contract, played                          disk: POSIX, played    hypervisor: played
//! ```
//! Phase 1: requests, migrations, drains and changes of members, while everything breaks that can: partitions in one
//! direction or both, crashes, power losses with torn and lost writes, slow and full disks, delayed and repeated
//! messages, lost answers, stale leaders, wrong clocks. Phase 2: nothing breaks any more, and everything must come to
//! rest as its spec says. The [invariants] hold after every step.
//!
//! Played, not real: consensus itself (its own tests are in `controller/src/raft`), TLS and HTTP, images, and what a
//! certificate or a right forbids.

#![allow(clippy::print_stdout)] // What a test or bench says is meant for its reader.

mod controllers;
mod disk;
mod faults;
mod hosts;
mod hypervisor;
mod invariants;
mod net;
mod rng;
mod sessions;
mod time;
mod users;
mod verbs;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use world::World;
use world::run;

/// Seeds of an ordinary run: half a minute on two CPUs, unoptimised. `DUNLIN_SIM_SEEDS` asks for more
/// (`make sim SEEDS=10000`), `DUNLIN_SIM_SEED` says where to begin: the seed of a failure alone replays it, and
/// `DUNLIN_SIM_TRACE=1` tells what happens in it.
const SEEDS: u64 = 120;

/// Seeds within which a broken part must be found.
const SEEDS_TO_FIND: u64 = 60;

/// A part that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The disks of the hosts say that something is durable when it is not.
    DisksLie,
    /// Each new leader lacks the last entry that the one before it had committed.
    LogLosesItsEnd,
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// How each run ended, counted: what never happens proves nothing.
type Outcomes = BTreeMap<String, u64>;

fn run_all(seeds: impl Iterator<Item = u64>) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for seed in seeds {
        for (what, times) in run(seed, None).outcomes() {
            *outcomes.entry(what).or_default() += times;
        }
    }
    outcomes
}

/// Whatever breaks, no VM runs twice, nothing acknowledged is lost, incarnations only grow, watchers see every revision
/// in order, and tasks end; and once nothing breaks any more the fleet is as its specs say.
#[test]
fn whatever_breaks_the_fleet_heals() {
    let (from, count) = (number("DUNLIN_SIM_SEED", 1), number("DUNLIN_SIM_SEEDS", SEEDS));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(4);
    let outcomes = std::thread::scope(|scope| {
        let share = |n: u64| move || run_all((from..from + count).filter(move |seed| seed % threads == n));
        let shares: Vec<_> = (0..threads).map(|n| scope.spawn(share(n))).collect();
        let mut all = Outcomes::new();
        for one in shares {
            for (what, times) in one.join().expect("a seed failed: it is printed above") {
                *all.entry(what).or_default() += times;
            }
        }
        all
    });
    println!("{count} seeds from {from}: {outcomes:?}");
    if count >= SEEDS {
        for what in
            ["Moved", "StayedOnSource", "HandedBack", "save Succeeded", "drain Succeeded", "terms", "lists"]
        {
            assert!(outcomes.get(what).is_some_and(|times| *times > 0), "never {what}: {outcomes:?}");
        }
    }
}

/// One seed is one run: the whole log and every process are the same again.
#[test]
fn the_same_seed_goes_the_same_way() {
    for seed in 1..=3 {
        assert_eq!(run(seed, None).print(), run(seed, None).print(), "seed {seed}");
    }
}

/// What is broken on purpose is found by some seed: the net has no hole.
#[test]
fn what_is_broken_is_found() {
    for mutant in [Mutant::DisksLie, Mutant::LogLosesItsEnd] {
        let found = |seed: &u64| catch_unwind(AssertUnwindSafe(|| drop(run(*seed, Some(mutant))))).is_err();
        let seed = (1..=SEEDS_TO_FIND).find(found);
        println!("{mutant:?}: found by seed {seed:?}");
        assert!(seed.is_some(), "{mutant:?} was not found");
    }
}
