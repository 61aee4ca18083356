//! One VM, one answer: where, and why there, and why not elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use dunlin_model::{HostId, Name};
use serde::{Deserialize, Serialize};

use crate::explain::{No, told};
use crate::filter::{self, Reason};
use crate::request::Request;
use crate::score::{TermScore, score, seat, terms};
use crate::snapshot::{HostIdx, Seat, Snapshot};

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
    /// Which state it was decided on.
    pub revision: u64,
    /// The policy it was decided by.
    pub policy: String,
}

/// A host that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scored {
    /// Which.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// The sum of its terms, each times its weight.
    pub score: u64,
    /// The terms that are not 0.
    pub terms: Vec<TermScore>,
    /// Where it would sit, in the numbers of the snapshot.
    pub seat: Seat,
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

    /// Where it is to sit.
    #[must_use]
    pub fn seat(&self) -> Option<Seat> {
        self.winner.as_ref().map(|winner| winner.seat)
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

/// What a group of hosts was refused for.
type Cause = (Reason, String);

/// How many they are, and the most that one of them has left of what is short, with its unit.
type Size = (u32, Option<(u64, &'static str)>);

/// Chooses a host for one VM by asking every host, and says everything about it. The same snapshot and request give the
/// same answer; among equals the host with the lower index wins. [`Placer`](crate::Placer) gives the same host at a
/// cost that does not grow with the fleet.
#[must_use]
pub fn place(snapshot: &Snapshot, request: &Request) -> Decision {
    let mut groups: BTreeMap<Cause, Size> = BTreeMap::new();
    let mut best: [Option<(u64, HostIdx)>; 2] = [None, None];
    let mut fitting = 0;
    for (host, _) in snapshot.hosts() {
        if let Some(reason) = filter::refuse(snapshot, request, host) {
            let no = told(snapshot, request, host, reason);
            let group = groups.entry((no.reason, no.text)).or_default();
            group.0 += 1;
            group.1 = group.1.max(no.left);
            continue;
        }
        fitting += 1;
        let found = (score(snapshot, snapshot.weights(), request, host), host);
        if best[0].is_none_or(|(score, _)| found.0 > score) {
            best = [Some(found), best[0]];
        } else if best[1].is_none_or(|(score, _)| found.0 > score) {
            best[1] = Some(found);
        }
    }
    let [winner, runner_up] = best.map(|found| scored(snapshot, request, found?));
    let mut refused: Vec<Refusal> = groups.into_iter().map(grouped).collect();
    refused.sort_by_key(|group| std::cmp::Reverse(group.hosts));
    let policy = snapshot.policy.name.clone();
    Decision { winner, runner_up, fitting, refused, revision: snapshot.revision, policy }
}

/// Why not that host? None when it fits, and then its score and the winner's say why another was chosen.
#[must_use]
pub fn why_not(snapshot: &Snapshot, request: &Request, host: HostIdx) -> Option<No> {
    filter::refuse(snapshot, request, host).map(|reason| told(snapshot, request, host, reason))
}

/// A host that fits, with everything that speaks for it.
#[must_use]
pub fn scored(snapshot: &Snapshot, request: &Request, (score, host): (u64, HostIdx)) -> Option<Scored> {
    let row = snapshot.host(host);
    let (seat, terms) = (seat(snapshot, request.profile, host)?, terms(snapshot, request, host));
    Some(Scored { host: row.uid, name: row.name.clone(), score, terms, seat })
}

fn grouped(((reason, text), (hosts, left)): (Cause, Size)) -> Refusal {
    let text = left.map_or(text.clone(), |(left, unit)| format!("{text}{left}{unit})"));
    Refusal { reason, hosts, text }
}
