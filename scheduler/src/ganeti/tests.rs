//! Ganeti's numbers, and what the search promises.

use proptest::prelude::*;

use super::score::{Loads, Measured, Score, read_loads};
use super::search::{Limits, apply, balance};
use super::text::{Group, Instance, Node, TextFleet};
use crate::dice::Dice;

const GOLDEN: &str = include_str!("golden.data");
const LOADS: &str = include_str!("golden.loads");

/// The score is the one `hbal -l 0` of Ganeti 3.0.2 prints, for mirrored, promised, stopped and stranded instances, tags,
/// unequal nodes, and with loads, without, and ignoring them.
#[test]
fn the_score_is_that_of_hbal() {
    let fleet = TextFleet::read("golden.data", GOLDEN).unwrap();
    let (loads, none) = (read_loads("golden.loads", LOADS).unwrap(), Loads::new());
    let check = |measured, expected: &str| {
        assert_eq!(format!("{:.8}", Score::new(&fleet, 0, measured).value()), expected);
    };
    check(Measured::Ignored, "22.63325065");
    check(Measured::Loads(&none), "24.04746421");
    check(Measured::Loads(&loads), "25.29861408");
}

/// What is written is what was read, and a plan never moves what must stay.
#[test]
fn a_file_survives_reading_and_writing() {
    let fleet = TextFleet::read("golden.data", GOLDEN).unwrap();
    assert_eq!(TextFleet::read("again", &fleet.write()).unwrap(), fleet);
    let plan = balance(&fleet, 0, Measured::Ignored, Limits::default());
    for step in &plan.moves {
        assert!(
            ["web-1", "web-2", "app-1", "app-2", "old-1"]
                .contains(&fleet.instances[step.instance].name.as_str())
        );
    }
    let judged = Score::new(&apply(&fleet, &plan), 0, Measured::Ignored).value();
    assert!((judged - plan.after).abs() < 1e-9, "{judged} {}", plan.after);
}

/// A bad line is told by file, line, field and reason.
#[test]
fn bad_files_are_refused_with_their_line() {
    let check = |from: &str, to: &str, expected: &str| {
        let error = TextFleet::read("f.data", &GOLDEN.replacen(from, to, 1)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        "|g1|preferred",
        "|g1|best",
        "f.data:1: alloc_policy: \"best\"; allowed: preferred, last_resort, unallocable",
    );
    check("a|32768", "a|-5", "f.data:3: t_mem: \"-5\" is not a whole number; allowed: 0 to 1099511627776");
    check("a|32768|512|20000", "a|32768", "f.data:3: role: \"4\"; allowed: N, M, Y");
    check("16|M|g1", "16|M|g2", "f.data:3: group: no group has the uuid \"g2\"");
    check("web-2", "web-1", "f.data:9: name: \"web-1\" stands there twice");
    check("Y|a||ext", "Y|z||ext", "f.data:8: primary: no node is called \"z\"");
    check(
        "running",
        "dancing",
        "f.data:8: status: \"dancing\"; allowed: running, ERROR_up, ADMIN_down, ADMIN_offline, \
           ERROR_down, ERROR_nodedown, ERROR_nodeoffline, ERROR_wrongnode, USER_down",
    );
    check(
        "ext,plain,drbd,sharedfile,rbd|4.0",
        "ext|NaN",
        "f.data:20: vcpu_ratio: \"NaN\" is not a decimal number",
    );
    let error = TextFleet::read("f.data", "group-1|g1|preferred||\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "f.data:0: blocks: 1 blocks; allowed: 4 or more, with one empty line between two"
    );
}

/// Unequal nodes of one group, filled with a skew.
fn skewed(nodes: usize, instances: usize, seed: u64) -> (TextFleet, Loads) {
    let mut dice = Dice::new(seed);
    let group =
        Group { name: "g".into(), uuid: "u".into(), alloc_policy: "preferred".into(), ..Group::default() };
    let mut fleet = TextFleet { groups: vec![group], ..TextFleet::default() };
    for at in 0..nodes {
        let size = [1, 1, 2][dice.below(3)];
        fleet.nodes.push(Node {
            name: format!("n{at}"),
            total_mem_mib: size * 65_536,
            node_mem_mib: 1_024,
            free_mem_mib: size * 65_536 - 1_024,
            cpus: size * 16,
            node_cpus: 1,
            cpu_speed_milli: 1_000,
            spindles: 1,
            ..Node::default()
        });
    }
    let mut loads = Loads::new();
    for at in 0..instances {
        let mem_mib = 1_024 << dice.below(3);
        let primary = dice.below(nodes) * dice.below(nodes) / nodes.max(1);
        if fleet.nodes[primary].free_mem_mib <= mem_mib {
            continue;
        }
        fleet.nodes[primary].free_mem_mib -= mem_mib;
        let name = format!("i{at}");
        let parts = |dice: &mut Dice| f64::from(u32::try_from(dice.below(1_000)).unwrap()) / 1_000.0;
        loads.insert(name.clone(), [parts(&mut dice), parts(&mut dice), 0.0, 0.0]);
        fleet.instances.push(Instance {
            name,
            mem_mib,
            vcpus: 1 + dice.below(4) as u64,
            status: "running".into(),
            auto_balance: true,
            primary,
            template: "ext".into(),
            spindle_use: 1,
            ..Instance::default()
        });
    }
    (fleet, loads)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every move of a plan fits when it runs, moves its instance once, and the score it names is the one of a fresh count;
    /// the plan ends lower than it began, and the same question gives the same plan.
    #[test]
    fn every_step_of_a_plan_fits(nodes in 2_usize..12, instances in 0_usize..80, seed: u64) {
        let (fleet, loads) = skewed(nodes, instances, seed);
        let measured = Measured::Loads(&loads);
        let limits = Limits { effort: 50_000, ..Limits::default() };
        let plan = balance(&fleet, 0, measured, limits);
        prop_assert!(plan.after <= plan.before);
        prop_assert_eq!(&plan, &balance(&fleet, 0, measured, limits));
        let mut now = fleet.clone();
        let mut seen = std::collections::BTreeSet::new();
        for step in &plan.moves {
            prop_assert!(seen.insert(step.instance));
            prop_assert_eq!(now.instances[step.instance].primary, step.from);
            let one = super::GanetiPlan { before: 0.0, after: 0.0, moves: vec![*step] };
            prop_assert!(now.nodes[step.to].free_mem_mib > now.instances[step.instance].mem_mib);
            now = apply(&now, &one);
            let vcpus: u64 = now.instances.iter().filter(|i| i.primary == step.to).map(|i| i.vcpus).sum();
            prop_assert!(vcpus + now.nodes[step.to].node_cpus <= 4 * now.nodes[step.to].cpus);
            let fresh = Score::new(&now, 0, measured).value();
            prop_assert!((fresh - step.score).abs() < 1e-6, "{} {}", fresh, step.score);
        }
    }

    /// Whatever is done to a file, it is read or refused.
    #[test]
    fn no_text_breaks_the_readers(cuts in proptest::collection::vec((any::<u16>(), any::<u16>(), "[0-9|,.;:?\nYNa-]{0,4}"), 1..6)) {
        let (mut text, mut loads) = (GOLDEN.to_owned(), LOADS.to_owned());
        for (at, length, with) in &cuts {
            for text in [&mut text, &mut loads] {
                let from = usize::from(*at) % (text.len() + 1);
                let to = (from + usize::from(*length) % 8).min(text.len());
                text.replace_range(from..to, with);
            }
        }
        if let Ok(fleet) = TextFleet::read("f", &text) {
            prop_assert_eq!(&TextFleet::read("f", &fleet.write()).unwrap(), &fleet);
            for group in 0..fleet.groups.len() {
                let limits = Limits { effort: 50_000, ..Limits::default() };
                prop_assert!(balance(&fleet, group, Measured::Ignored, limits).after.is_finite());
            }
        }
        let _ = read_loads("l", &loads);
    }
}
