use dunlin_metrics::Metric;
use dunlin_model::vm::Power;
use dunlin_proto::v1;
use reqwest::StatusCode;

use super::rest::Http;
use crate::metrics;
use crate::testing::{Cluster, FakeAgent, eventually, key, vm};

/// The number behind a metric with these labels.
fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

/// What a controller does is counted where it is done, calls by method and code; a write and a report leave their traces in
/// every stage they pass; and every answer says under which id it is in the logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_is_counted() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let token = cluster.token(leader).await;
    let agent = FakeAgent::join(&cluster.endpoint(leader), &token, "h1").await;
    let agent = tokio::spawn(agent.live());
    let node = &cluster.controller(leader).node;
    eventually("the host holds a session", || node.sessions.count() == 1).await;
    let request = v1::CreateRequest {
        idempotency_key: key(),
        object: Some(vm("seen", Power::Running)),
        dry_run: false,
    };
    cluster.client(leader).create(request).await.unwrap();
    let http = Http::new(&cluster, leader);
    let lost =
        http.send(reqwest::Method::GET, "/v1/vms/nobody", &[("dunlin-correlation", "by-hand")], None).await;
    assert_eq!((lost.status, lost.header("dunlin-correlation")), (StatusCode::NOT_FOUND, "by-hand"));
    assert_eq!(http.get("/v1/vms/seen").await.header("dunlin-correlation").len(), 8, "or one of ours");
    assert_eq!(http.get("/nowhere").await.status, StatusCode::NOT_FOUND);

    let reply = http.get("/metrics").await;
    assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, dunlin_metrics::TEXT_FORMAT));
    let text = reply.body.as_str().unwrap();
    for (metric, least) in [
        ("dunlin_api_calls_total{method=\"Fleet/Create\",code=\"ok\"}", 1.0),
        ("dunlin_api_calls_total{method=\"GET /v1/vms/{name}\",code=\"not_found\"}", 1.0),
        ("dunlin_api_calls_total{method=\"GET nothing\",code=\"not_found\"}", 1.0),
        ("dunlin_api_call_seconds_count{method=\"Fleet/Create\"}", 1.0),
        ("dunlin_raft_leads", 1.0),
        ("dunlin_raft_commands_total", 3.0),
        ("dunlin_raft_fsync_seconds_count", 3.0),
        ("dunlin_raft_apply_seconds_count", 3.0),
        ("dunlin_raft_log_index{done=\"applied\"}", 3.0),
        ("dunlin_raft_leader_changes_total", 1.0),
        ("dunlin_sessions", 1.0),
        ("dunlin_session_messages_total{message=\"report\"}", 1.0),
        ("dunlin_reconcile_seconds_count", 1.0),
        ("dunlin_objects{kind=\"Host\",phase=\"Up\"}", 1.0),
        ("dunlin_audit_lines_total", 1.0),
        ("process_resident_memory_bytes", 1.0),
    ] {
        assert!(value(text, metric).is_some_and(|found| found >= least), "{metric}\n{text}");
    }
    agent.abort();
}

/// Whoever shows nothing reads no metrics, though he may ask whether the controller is well; one that knows no leader is alive
/// and not ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alive_is_not_ready() {
    let mut cluster = Cluster::start(3).await;
    let nobody = Http::nobody(&cluster, 1);
    assert_eq!(nobody.get("/metrics").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(nobody.get("/readyz").await.status, StatusCode::OK);
    cluster.stop_one(2).await;
    cluster.stop_one(3).await;
    assert_eq!(nobody.get("/healthz").await.status, StatusCode::OK);
    assert_eq!(nobody.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    cluster.start_one(2).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while nobody.get("/readyz").await.status != StatusCode::OK {
        assert!(tokio::time::Instant::now() < deadline, "it is ready once there is a quorum again");
    }
}

/// The page names every metric with its labels, and none that there is not.
#[test]
fn the_page_has_every_metric() {
    let page = include_str!("../../../docs/observing.md");
    let table: &[&dyn Metric] = metrics::ALL;
    let expected = dunlin_metrics::page(table);
    assert!(page.contains(&expected), "docs/observing.md should have:\n{expected}");
    let process = dunlin_metrics::page(dunlin_metrics::process("0"));
    assert!(page.contains(&process), "docs/observing.md should have:\n{process}");
}
