//! From the model's placement rules to rows: taints, rules between VMs, preferred labels.

use std::collections::BTreeMap;

use dunlin_model::Labels;
use dunlin_model::host::Host;
use dunlin_model::vm::{Placement, Scope, Wants};

use super::vm::{Level, RuleEntry, Want};

fn text((key, value): (&String, &String)) -> String {
    format!("{key}={value}")
}

/// A host's labels, with where it stands among them.
pub(super) fn labels(host: &Host) -> Labels {
    let mut labels = host.metadata.labels.clone();
    let places = [("rack", &host.spec.rack), ("zone", &host.spec.zone)];
    for (key, place) in places {
        if let Some(place) = place {
            labels.insert(key.to_owned(), place.to_string());
        }
    }
    labels
}

/// Taints, of a host or tolerated, as text.
pub(super) fn taints(taints: &BTreeMap<String, String>) -> Vec<String> {
    taints.iter().map(text).collect()
}

/// The rules of a VM about others.
pub(super) fn rules(placement: &Placement) -> Vec<RuleEntry> {
    let apart = |label| RuleEntry { label, level: Level::Host, want: Want::Apart, soft: None };
    let mut rules: Vec<RuleEntry> = placement.apart_from.iter().map(text).map(apart).collect();
    for rule in &placement.rules {
        let level = match rule.over {
            Scope::Host => Level::Host,
            Scope::Rack => Level::Rack,
            Scope::Zone => Level::Zone,
        };
        let want = match rule.wants {
            Wants::Together => Want::Together,
            Wants::Apart => Want::Apart,
        };
        let soft = rule.weight.map(|weight| u16::try_from(weight).unwrap_or(u16::MAX));
        rules.extend(rule.label().map(text).map(|label| RuleEntry { label, level, want, soft }));
    }
    rules
}

/// Host labels that are wished for, with their weights.
pub(super) fn prefers(placement: &Placement) -> Vec<(String, u16)> {
    let weight = |weight: u32| u16::try_from(weight).unwrap_or(u16::MAX);
    placement.prefers.iter().map(|(label, count)| (label.clone(), weight(*count))).collect()
}
