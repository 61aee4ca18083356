//! Where a VM may run, and beside whom.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::in_range;
use crate::{Invalid, Labels, Name};

/// Most rules of one VM: more is a program, not a wish.
pub const RULES_MAX: usize = 16;
/// Weights of a preference. Preferences are added up, so the range keeps one from drowning every other.
pub const WEIGHT: std::ops::RangeInclusive<u64> = 1..=100;

/// Where it may run. Everything that is not a preference must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Only on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
    /// Only on hosts that carry these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_labels: BTreeMap<String, String>,
    /// Never on a host with another VM that carries one of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub apart_from: BTreeMap<String, String>,
    /// Beside whom, and apart from whom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Host labels it would like, as `key=value`, each with a weight of 1 to 100.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefers: BTreeMap<String, u32>,
    /// Taints of hosts it puts up with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tolerates: BTreeMap<String, String>,
    /// What it takes of what only some hosts have, and how much of each: `device/gpu`, `licence/windows`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, u64>,
}

/// Most resources of one host or VM.
pub const RESOURCES_MAX: usize = 16;
/// What a host may have of one resource, and a VM take.
pub const RESOURCE: std::ops::RangeInclusive<u64> = 1..=1_000_000;

/// Refuses resources without a kind, without a name, or out of range.
///
/// # Errors
/// Names the one under `field`.
pub fn validate_resources(field: &str, resources: &BTreeMap<String, u64>) -> Result<(), Invalid> {
    in_range(field, resources.len() as u64, 0..=RESOURCES_MAX as u64)?;
    for (name, count) in resources {
        let field = format!("{field}[{name}]");
        let known = ["device/", "licence/"].iter().find_map(|kind| name.strip_prefix(kind));
        if known.is_none_or(str::is_empty) || name.len() > crate::meta::LABEL_MAX {
            return Err(Invalid::new(
                field,
                "is no resource",
                "device/NAME or licence/NAME, up to 253 bytes",
            ));
        }
        in_range(&field, *count, RESOURCE)?;
    }
    Ok(())
}

/// Affinity or anti-affinity towards other VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Beside them, or apart from them.
    pub wants: Wants,
    /// Them: other VMs that carry this label. Exactly one.
    pub with: Labels,
    /// How near counts as beside.
    #[serde(default)]
    pub over: Scope,
    /// 1 to 100: only a preference, and how strong. None: required. A required Apart holds both ways, so a newcomer
    /// whose labels it names is kept away too. A required Together holds when the VM starts, and is free for the
    /// first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// Beside or apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wants {
    /// In the same place.
    Together,
    /// In different places.
    Apart,
}

/// What counts as one place. A host that names no rack is a rack of its own; hosts that name no zone are in one zone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// A host.
    #[default]
    Host,
    /// Hosts of one `spec.rack`.
    Rack,
    /// Hosts of one `spec.zone`.
    Zone,
}

impl Scope {
    /// As it reads in YAML.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        }
    }
}

impl Placement {
    /// No rule at all?
    #[must_use]
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses rules that say nothing, or too much.
    pub fn validate(&self) -> Result<(), Invalid> {
        in_range("rules", self.rules.len() as u64, 0..=RULES_MAX as u64)?;
        for (index, rule) in self.rules.iter().enumerate() {
            rule.validate().map_err(|e| e.under(&format!("rules[{index}]")))?;
        }
        for (label, weight) in &self.prefers {
            let field = format!("prefers[{label}]");
            in_range(&field, u64::from(*weight), WEIGHT)?;
            if label.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                return Err(Invalid::new(field, "is no label", "KEY=VALUE"));
            }
        }
        if self.tolerates.keys().any(String::is_empty) {
            return Err(Invalid::new("tolerates", "has an empty key", "keys of taints"));
        }
        validate_resources("resources", &self.resources)
    }

    /// Does it put up with this taint of a host?
    #[must_use]
    pub fn tolerates(&self, key: &str, value: &str) -> bool {
        self.tolerates.get(key).is_some_and(|wanted| wanted == value)
    }

    /// The first of a host's taints that it does not put up with.
    #[must_use]
    pub fn untolerated<'a>(&self, taints: &'a BTreeMap<String, String>) -> Option<(&'a str, &'a str)> {
        let mut taints = taints.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        taints.find(|(key, value)| !self.tolerates(key, value))
    }
}

impl Rule {
    fn validate(&self) -> Result<(), Invalid> {
        if self.with.len() != 1 || self.with.keys().any(String::is_empty) {
            let problem = format!("names {} labels", self.with.len());
            return Err(Invalid::new("with", problem, "exactly one label; a rule for each of several"));
        }
        if let Some(weight) = self.weight {
            in_range("weight", weight.into(), WEIGHT)?;
        }
        Ok(())
    }

    /// Is a VM with these labels one of them?
    #[must_use]
    pub fn is_about(&self, labels: &Labels) -> bool {
        self.with.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The label it is about.
    #[must_use]
    pub fn label(&self) -> Option<(&String, &String)> {
        self.with.first_key_value()
    }

    /// A required Apart: the kind that must never be broken.
    #[must_use]
    pub fn keeps_apart(&self) -> bool {
        self.wants == Wants::Apart && self.weight.is_none()
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let wants = if self.wants == Wants::Apart { "apart from" } else { "together with" };
        let with: Vec<String> = self.with.iter().map(|(key, value)| format!("{key}={value}")).collect();
        write!(f, "{wants} {} over {}", with.join(","), self.over.as_str())
    }
}
