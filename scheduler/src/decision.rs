//! One VM, one answer: where, and why there, and why not elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use dunlin_model::cluster::PlacementPolicy;
use dunlin_model::{HostId, Name};
use serde::{Deserialize, Serialize};

use crate::filter::{self, Reason};
use crate::score::score;
use crate::snapshot::{HostRow, Request, Snapshot};

/// Where a VM goes, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The best host, and its score. None when no host fits.
    pub winner: Option<Scored>,
    /// The next best.
    pub runner_up: Option<Scored>,
    /// Hosts that fit.
    pub fitting: u32,
    /// Hosts that do not, in groups of one reason; the largest group first.
    pub refused: Vec<Refusal>,
}

/// A host that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scored {
    /// Which.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// 0 to [`SCORE_MAX`](crate::score::SCORE_MAX).
    pub score: u64,
}

/// Hosts that were refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For machines.
    pub reason: Reason,
    /// How many.
    pub hosts: u32,
    /// For people: "not enough memory (need 512 MiB, most free 300 MiB)".
    pub text: String,
}

impl Decision {
    /// The host chosen.
    #[must_use]
    pub fn host(&self) -> Option<HostId> {
        self.winner.as_ref().map(|winner| winner.host)
    }

    /// The reason of the largest group, for machines; empty when there is no host at all.
    #[must_use]
    pub fn reason(&self) -> String {
        self.refused.first().map_or("NoHosts".to_owned(), |first| format!("{:?}", first.reason))
    }

    /// Every group in one line: "2 hosts: not enough memory (need 512 MiB, most free 300 MiB); 1 host: cordoned".
    #[must_use]
    pub fn explain(&self) -> String {
        if self.refused.is_empty() && self.fitting == 0 {
            return "the cluster has no hosts".to_owned();
        }
        let groups: Vec<String> = self.refused.iter().map(ToString::to_string).collect();
        groups.join("; ")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.hosts == 1 { "host" } else { "hosts" };
        write!(f, "{} {noun}: {}", self.hosts, self.text)
    }
}

/// Chooses a host for one VM. The same snapshot and request give the same answer.
#[must_use]
pub fn place(snapshot: &Snapshot<'_>, request: &Request<'_>) -> Decision {
    let policy = &snapshot.policy;
    let mut groups: BTreeMap<(Reason, String), (u32, Option<u64>)> = BTreeMap::new();
    let mut fitting: Vec<(u64, &HostRow<'_>)> = Vec::new();
    for row in &snapshot.hosts {
        match filter::refuse(policy, row, request) {
            None => fitting.push((score(policy, row, request), row)),
            Some(no) => {
                let group = groups.entry((no.reason, no.text)).or_default();
                group.0 += 1;
                group.1 = group.1.max(no.left);
            }
        }
    }
    // Among equals the host with fewer VMs spreads and the one with more packs; then the name decides.
    let crowd = |row: &HostRow<'_>| match policy.placement {
        PlacementPolicy::Spread => row.reserved.vms,
        PlacementPolicy::Pack | PlacementPolicy::PowerSaving => u64::MAX - row.reserved.vms,
    };
    fitting.sort_by(|(a, x), (b, y)| {
        b.cmp(a).then(crowd(x).cmp(&crowd(y))).then(x.host.metadata.name.cmp(&y.host.metadata.name))
    });
    let mut best = fitting.iter().map(|(score, row)| Scored {
        host: row.host.metadata.uid,
        name: row.host.metadata.name.clone(),
        score: *score,
    });
    let (winner, runner_up) = (best.next(), best.next());
    let mut refused: Vec<Refusal> = groups.into_iter().map(told).collect();
    refused.sort_by_key(|group| std::cmp::Reverse(group.hosts));
    let fitting = u32::try_from(fitting.len()).unwrap_or(u32::MAX);
    Decision { winner, runner_up, fitting, refused }
}

fn told(((reason, text), (hosts, left)): ((Reason, String), (u32, Option<u64>))) -> Refusal {
    let unit = if reason == Reason::Memory { " MiB" } else { "" };
    let text = left.map_or(text.clone(), |left| format!("{text}{left}{unit})"));
    Refusal { reason, hosts, text }
}
