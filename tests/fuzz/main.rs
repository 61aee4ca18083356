//! Everything that parses bytes from outside, given bytes that nobody meant: no reader may panic, and what a reader takes
//! must bear being used.
//!
//! ```text
//! seeds (files as they really are) --> mutate (by a seed) --> target: read, and use what was read
//! ```
//!
//! A target is a name, its seeds and a function: to have a reader fuzzed, add one to [`TARGETS`]. Every target runs a fixed
//! number of cases, the same each time; with `FUZZ_MINUTES=20` (`make fuzz`) all of them run on with new seeds for so long.
//! An input that breaks a reader is printed as a byte string, to become a case in [`readers`].

mod mutate;
mod outside;
mod readers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use dunlin_scheduler::dice::Dice;
use mutate::mutated;

/// Cases of each target in an ordinary run: about a second in an unoptimised build.
const CASES: u64 = 1_500;

/// Cases of each target between two looks at the clock.
const CASES_PER_ROUND: u64 = 200;

/// One reader.
pub(crate) struct Target {
    name: &'static str,
    /// Files that are right, or nearly.
    seeds: &'static [&'static [u8]],
    /// Words of the format, which mutations put in.
    words: &'static [&'static str],
    /// Reads, and uses what was read: was it taken? Panics when a promise is broken.
    run: fn(&[u8]) -> bool,
}

pub(crate) const TARGETS: &[Target] = &[
    readers::FLEET,
    readers::DEMAND,
    readers::ARRIVALS,
    readers::REQUESTS,
    readers::HOST_SIZES,
    readers::LOADS,
    readers::GANETI,
    readers::GANETI_LOADS,
    readers::SELECTOR,
    readers::FIELDS,
    readers::POLICY,
    readers::VM_SPEC,
    outside::DOMAIN_XML,
    outside::LIBVIRT_FRAME,
    outside::DOCUMENTS,
    outside::BODY,
];

/// Cases `from..from + count` of a target: each of a seed of its own, so that one can be run again alone. How many were
/// taken?
fn run(target: &Target, from: u64, count: u64) -> u64 {
    let mut taken = 0;
    for case in from..from + count {
        let mut dice = Dice::new(case);
        let input = mutated(&mut dice, target.seeds, target.words);
        match catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            Ok(took) => taken += u64::from(took),
            Err(_) => panic!("{}: case {case} broke it: b\"{}\"", target.name, input.escape_ascii()),
        }
    }
    taken
}

/// No reader is broken by what mutation makes of real files. The files themselves are taken, and so is some of what becomes
/// of them, and some is refused: neither what reads nor what refuses is passed by.
#[test]
fn no_reader_breaks() {
    for target in TARGETS {
        for seed in target.seeds {
            assert!((target.run)(seed), "{}: a seed is refused: {}", target.name, seed.escape_ascii());
        }
        let taken = run(target, 0, CASES);
        assert!((CASES / 100..CASES).contains(&taken), "{}: {taken} of {CASES} taken", target.name);
    }
    let minutes = std::env::var("FUZZ_MINUTES").ok().map(|minutes| minutes.parse::<u64>());
    let Some(minutes) = minutes else { return };
    let until =
        Instant::now() + Duration::from_secs(60 * minutes.expect("FUZZ_MINUTES is a number of minutes"));
    let mut next = CASES;
    while Instant::now() < until {
        for target in TARGETS {
            run(target, next, CASES_PER_ROUND);
        }
        next += CASES_PER_ROUND;
    }
}

/// A reader that panics is caught, with the case that did it: the net has no hole.
#[test]
fn a_broken_reader_is_caught() {
    let broken = Target {
        name: "broken",
        seeds: &[b"a=1\nb=2\n"],
        words: &["a=", "="],
        run: |bytes| {
            assert!(bytes.windows(2).filter(|pair| pair == b"a=").count() < 3, "three of them");
            true
        },
    };
    let caught = catch_unwind(AssertUnwindSafe(|| run(&broken, 0, 5_000)));
    let told = caught.expect_err("some case has three of them");
    assert!(told.downcast_ref::<String>().is_some_and(|told| told.starts_with("broken: case ")));
}
