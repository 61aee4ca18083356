//! What a cluster has decided about placement, as data: which filters may be dropped, and how much each score counts.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::Invalid;
use dunlin_model::cluster::{ClusterSpec, PlacementPolicy};
use serde::{Deserialize, Serialize};

use crate::filter::Reason;

/// Most that one term may count.
pub const WEIGHT_MAX: u16 = 100;

/// A named score. Each gives 0 to [`TERM_MAX`](crate::score::TERM_MAX); more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Term {
    /// The share of CPU and memory left free: the emptiest host.
    Spread,
    /// The share taken, what the fleet has least of counting most: the fullest host.
    Pack,
    /// A host that has VMs already, so that empty ones can be switched off.
    PowerSaving,
    /// Little measured CPU use.
    Load,
    /// Slots for the shapes in use stay whole, those of large and of common shapes above all.
    Slots,
    /// The share taken, what the largest VMs in use take most of counting most: goes with slots.
    Snug,
    /// What is left stays in the proportion in which the fleet's VMs ask for it.
    WholeShapes,
    /// NUMA nodes stay whole, across hosts; within a host the fullest that fit are taken anyway. Where it counts, each
    /// way of lying on nodes is followed apart, which costs a decision for a rare one some tens of microseconds.
    WholeNodes,
    /// The first of VMs that must share a host finds one with room for the rest, and others leave half of it to them.
    /// Counts only where there are such VMs.
    RoomToGrow,
    /// The images are there already.
    Images,
    /// Host labels that were wished for.
    Prefers,
    /// Rules between VMs that were wished for.
    Affinity,
    /// A move stays within its rack or zone.
    NearSource,
}

/// How a cluster places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// For people.
    pub name: String,
    /// Filters that are not asked. Those that guard what cannot run at all are asked anyway.
    pub without: BTreeSet<Reason>,
    /// What each score counts, 0 to [`WEIGHT_MAX`]. Those that are not named count nothing.
    pub weights: BTreeMap<Term, u16>,
    /// vCPUs per real CPU, percent.
    pub cpu_overcommit_percent: u32,
    /// Memory promised per memory there is, percent.
    pub mem_overcommit_percent: u32,
    /// Memory kept back on each host, MiB.
    pub host_reserve_mib: u64,
    /// CPU kept back on each host, thousandths of one.
    pub host_reserve_cpu_milli: u64,
    /// So many hosts may fail at once: a VM is not let in when what they carry would have nowhere to go.
    pub failover_hosts: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self::spread()
    }
}

impl Policy {
    fn named(name: &str, weights: &[(Term, u16)]) -> Self {
        // What somebody wished for by name counts more than what the cluster prefers in general.
        let wishes = [
            (Term::Prefers, 100),
            (Term::Affinity, 100),
            (Term::RoomToGrow, 100),
            (Term::Images, 2),
            (Term::NearSource, 2),
        ];
        Self {
            name: name.to_owned(),
            without: BTreeSet::new(),
            weights: wishes.into_iter().chain(weights.iter().copied()).collect(),
            cpu_overcommit_percent: 100,
            mem_overcommit_percent: 100,
            host_reserve_mib: 0,
            host_reserve_cpu_milli: 0,
            failover_hosts: 0,
        }
    }

    /// The emptiest host, by promise and by measured load.
    #[must_use]
    pub fn spread() -> Self {
        Self::named("spread", &[(Term::Spread, 10), (Term::Load, 10)])
    }

    /// As many VMs on as few hosts as will take them.
    #[must_use]
    pub fn pack() -> Self {
        Self::named("pack", &[(Term::WholeShapes, 20), (Term::Pack, 2)])
    }

    /// Like pack, for fleets where few large VMs come between many small ones: slots for them are kept whole. It costs
    /// about twice the time of a decision by pack.
    #[must_use]
    pub fn pack_slots() -> Self {
        Self::named("pack-slots", &[(Term::Slots, 100), (Term::Snug, 1)])
    }

    /// Like pack, and an empty host is woken last.
    #[must_use]
    pub fn power_saving() -> Self {
        Self::named("power-saving", &[(Term::PowerSaving, 50), (Term::WholeShapes, 10), (Term::Pack, 10)])
    }

    /// What a score counts.
    #[must_use]
    pub fn weight(&self, term: Term) -> u16 {
        self.weights.get(&term).copied().unwrap_or(0)
    }

    /// Refuses values outside their ranges.
    ///
    /// # Errors
    /// Names the field, and what is allowed.
    pub fn validate(&self) -> Result<(), Invalid> {
        let within = |field: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Invalid::new(field, format!("{value} is out of range"), format!("{least} to {most}")))
        };
        for (term, weight) in &self.weights {
            within(&format!("weights.{term:?}"), (*weight).into(), 0, WEIGHT_MAX.into())?;
        }
        within("cpu_overcommit_percent", self.cpu_overcommit_percent.into(), 100, 10_000)?;
        within("mem_overcommit_percent", self.mem_overcommit_percent.into(), 100, 1_000)?;
        within("host_reserve_mib", self.host_reserve_mib, 0, 1 << 20)?;
        within("host_reserve_cpu_milli", self.host_reserve_cpu_milli, 0, 1 << 20)?;
        within("failover_hosts", self.failover_hosts.into(), 0, 64)
    }
}

impl From<&ClusterSpec> for Policy {
    fn from(spec: &ClusterSpec) -> Self {
        let policy = match spec.placement {
            PlacementPolicy::Spread => Self::spread(),
            PlacementPolicy::Pack => Self::pack(),
            PlacementPolicy::PowerSaving => Self::power_saving(),
        };
        let mut weights = policy.weights.clone();
        weights.extend(
            spec.weights.iter().filter_map(|(name, weight)| {
                Some((named(name)?, u16::try_from(*weight).unwrap_or(WEIGHT_MAX)))
            }),
        );
        Self {
            weights,
            without: spec.without.iter().filter_map(|name| named(name)).collect(),
            cpu_overcommit_percent: spec.cpu_overcommit_percent,
            mem_overcommit_percent: spec.mem_overcommit_percent,
            host_reserve_mib: spec.host_reserve_mib,
            failover_hosts: spec.spare_hosts,
            ..policy
        }
    }
}

/// A term or filter by the name it has in JSON. A name of a newer program is passed over: whoever took it in checked it.
fn named<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name)).ok()
}

/// Every term, as `cluster policy` lists them.
pub const TERMS: &[Term] = &[
    Term::Spread,
    Term::Pack,
    Term::PowerSaving,
    Term::Load,
    Term::Slots,
    Term::Snug,
    Term::WholeShapes,
    Term::WholeNodes,
    Term::RoomToGrow,
    Term::Images,
    Term::Prefers,
    Term::Affinity,
    Term::NearSource,
];

impl Term {
    /// As it is written in a policy.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Pack => "pack",
            Self::PowerSaving => "power-saving",
            Self::Load => "load",
            Self::Slots => "slots",
            Self::Snug => "snug",
            Self::WholeShapes => "whole-shapes",
            Self::WholeNodes => "whole-nodes",
            Self::RoomToGrow => "room-to-grow",
            Self::Images => "images",
            Self::Prefers => "prefers",
            Self::Affinity => "affinity",
            Self::NearSource => "near-source",
        }
    }
}
