//! What controllers tell of themselves, and the whole cluster looked over from any one of them.

use std::collections::BTreeMap;

use dunlin_model::{ControllerId, Level};
use dunlin_proto::v1::operator_client::OperatorClient;
use dunlin_proto::{read, v1};
use futures_util::future::join_all;

use super::call::Call;
use super::peers::ASK_TIMEOUT;
use crate::doctor::{self, Finding, Grade, HostTold, Patient, Told};
use crate::node::Node;
use crate::{clock, metrics};

/// Of a hundred syncs, how many count: the slowest one is what people feel.
const SYNC_PER_MILLE: usize = 990;

/// What this controller knows of itself.
pub(super) fn own(node: &Node) -> v1::Inspection {
    let raft = node.replica.metrics();
    let (sync_p99_us, syncs) = metrics::RAFT_FSYNC.recent_us(SYNC_PER_MILLE).unwrap_or_default();
    let hosts = node.sessions.seen().into_iter().map(|(host, seen)| v1::HostInspection {
        uid: host.to_string(),
        level: seen.level.0,
        ahead_ms: seen.ahead_ms,
        round_trip_ms: seen.round_trip_ms,
        silent_ms: seen.silent_ms,
    });
    let expires = node.keys.keyring.ring().shown.map_or(0, |shown| shown.expires.0);
    v1::Inspection {
        controller: node.config.id.0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: node.config.level.0,
        now_ms: clock::now().0,
        leads: node.leading().is_some(),
        leader: node.leader().map_or(0, |leader| leader.0),
        last_log: raft.last_log.unwrap_or(0),
        applied: raft.last_applied.unwrap_or(0),
        sync_p99_us: u64::from(sync_p99_us),
        syncs: syncs as u64,
        free_bytes: node.room.free_bytes().unwrap_or(u64::MAX),
        certificate_expires_ms: expires,
        hosts: if node.leading().is_some() { hosts.collect() } else { Vec::new() },
    }
}

/// Asks every controller, and judges.
pub(super) async fn diagnose(node: &Node, call: &Call) -> v1::Diagnosis {
    let raft = node.replica.metrics();
    let endpoints: BTreeMap<_, _> =
        node.controllers().into_iter().map(|known| (known.id, known.endpoint)).collect();
    let ask = raft.members.iter().map(|(id, member)| {
        let (id, votes) = (*id, raft.voters.contains(id));
        let endpoint = endpoints.get(&id).unwrap_or(&member.api);
        async move { Patient { id, votes, told: told(node, call, id, endpoint).await } }
    });
    let patients = join_all(ask).await;
    let found = doctor::judge(&node.replica.read(), &patients, clock::now());
    v1::Diagnosis { findings: found.into_iter().map(finding).collect() }
}

async fn told(node: &Node, call: &Call, id: ControllerId, endpoint: &str) -> Option<Told> {
    let asked = clock::now().0;
    let seen = if id == node.config.id {
        own(node)
    } else {
        let request = call.pass_on(v1::InspectRequest {});
        let mut client = OperatorClient::new(node.peers.channel(endpoint).ok()?);
        tokio::time::timeout(ASK_TIMEOUT, client.inspect(request)).await.ok()?.ok()?.into_inner()
    };
    let took_ms = clock::now().0.saturating_sub(asked);
    let hosts = seen.hosts.into_iter().filter_map(|told| {
        let level = Level(told.level.max(Level::OLDEST.0));
        let ahead_ms = told.ahead_ms.map(|ahead_ms| surely(ahead_ms, told.round_trip_ms));
        Some(HostTold { host: read(told.uid, "uid").ok()?, level, ahead_ms, silent_ms: told.silent_ms })
    });
    let middle = i64::try_from(asked + took_ms / 2).unwrap_or(i64::MAX);
    let ahead_ms = i64::try_from(seen.now_ms).unwrap_or(i64::MAX).saturating_sub(middle);
    Some(Told {
        version: seen.version,
        level: Level(seen.level.max(Level::OLDEST.0)),
        leads: seen.leads,
        leader: (seen.leader > 0).then_some(ControllerId(seen.leader)),
        applied: seen.applied,
        ahead_ms: surely(ahead_ms, took_ms),
        sync_p99_us: (seen.syncs > 0).then_some(seen.sync_p99_us),
        free_bytes: seen.free_bytes,
        certificate: (seen.certificate_expires_ms > 0)
            .then_some(dunlin_model::Timestamp(seen.certificate_expires_ms)),
        hosts: hosts.collect(),
    })
}

/// How far a clock is ahead at least: half of the way there and back may be on either side.
fn surely(ahead_ms: i64, round_trip_ms: u64) -> i64 {
    let unsure = i64::try_from(round_trip_ms.div_ceil(2)).unwrap_or(i64::MAX);
    ahead_ms.signum() * ahead_ms.saturating_abs().saturating_sub(unsure).max(0)
}

fn finding(finding: Finding) -> v1::Finding {
    let grade = match finding.grade {
        Grade::Error => v1::finding::Grade::Error,
        Grade::Warning => v1::finding::Grade::Warning,
        Grade::Fine => v1::finding::Grade::Fine,
    };
    v1::Finding {
        grade: grade.into(),
        check: finding.check.to_owned(),
        about: finding.about,
        found: finding.found,
        advice: finding.advice,
    }
}
