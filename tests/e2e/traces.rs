//! A small collector of OpenTelemetry, and what one command looks like to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use dunlin_tests::eventually;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};

use crate::operations::{Controllers, wait_host};
use crate::site::LIMIT;

/// A span, as it was received.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    fields: BTreeMap<String, String>,
}

/// Keeps every span it is sent.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut kept = self.0.lock().expect("nobody panics with it");
        for group in request.into_inner().resource_spans {
            let about = fields(group.resource.map(|resource| resource.attributes).unwrap_or_default());
            let service = about.get("service.name").cloned().unwrap_or_default();
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    fields: fields(span.attributes),
                });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fields(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |one: KeyValue| match one.value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => Some((one.key, text)),
        _ => None,
    };
    attributes.into_iter().filter_map(text).collect()
}

impl Collector {
    /// Listens until the runtime is dropped.
    fn start() -> anyhow::Result<(Self, SocketAddr, tokio::runtime::Runtime)> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        drop(listener);
        let this = Self::default();
        let service = TraceServiceServer::new(this.clone());
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
        Ok((this, address, runtime))
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().expect("nobody panics with it").clone()
    }

    /// Those of one trace.
    fn trace(&self, id: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace == id).collect()
    }
}

/// A command's own span is the root of a trace that has, from four processes, its calls at the controller that was asked and at the
/// leader, and at the agent the work that came of it with the driver's verb; all of it hangs together, and no other command is in it.
/// What the fleet does by itself is not sent.
#[test]
fn one_trace_from_the_command_to_the_driver() -> anyhow::Result<()> {
    let (collector, address, _runtime) = Collector::start()?;
    let endpoint = format!("http://{address}");
    let mut all = Controllers::found_with(1, &["--otlp-endpoint", &endpoint])?;
    for id in [2, 3] {
        all.join(id)?;
        all.add(&["add"], id)?;
    }
    let token = all.ok(&["token", "create"])?;
    let data = all.site.path("h1").display().to_string();
    let controller = format!("https://{}", all.addresses[&1].0);
    let words =
        ["agent", "--data-dir", &data, "--controller", &controller, "--name", "h1", "--driver", "test"];
    let agent = [&words[..], &["--otlp-endpoint", &endpoint]].concat();
    let _agent = all.site.start("h1", &agent, &[("DUNLIN_TOKEN", token.trim())])?;
    wait_host(&all, "Up")?;
    let leader = all.voters()?.1;
    let follower = (1..=3).find(|id| *id != leader).context("a follower")?;
    let create =
        ["vm", "create", "web", "--driver", "test", "--start", "--wait", "--otlp-endpoint", &endpoint];
    all.ok_at(follower, &create)?;

    let root = eventually("the command's span is there", LIMIT, || {
        let spans = collector.spans();
        let root = spans.iter().find(|span| span.service == "dunlin-cli").cloned();
        root.ok_or_else(|| format!("{spans:?}"))
    })?;
    ensure!(root.parent.is_empty() || root.parent == "0".repeat(16), "it is the root: {root:?}");
    let correlation = root.fields.get("correlation").context("its id")?.clone();
    let spans = eventually("all of it is there", LIMIT, || {
        let spans = collector.trace(&root.trace);
        let started = |span: &Span| span.fields.get("verb").is_some_and(|verb| verb == "start");
        let calls = spans.iter().filter(|span| span.name == "call").count();
        let is_there = |id: &str| spans.iter().any(|span| span.id == id);
        let whole = spans.iter().all(|span| span.id == root.id || is_there(&span.parent));
        if whole && calls >= 2 && spans.iter().any(started) { Ok(spans) } else { Err(format!("{spans:?}")) }
    })?;
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
    ensure!(services == ["dunlin-agent", "dunlin-cli", "dunlin-controller"].into(), "{services:?}");
    let of_others =
        spans.iter().find(|span| span.fields.get("correlation").is_some_and(|own| *own != correlation));
    ensure!(of_others.is_none(), "{of_others:?}");
    let ids: BTreeMap<_, _> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let verb = spans.iter().find(|span| span.name == "verb").context("a verb")?;
    ensure!(verb.service == "dunlin-agent" && ids[verb.parent.as_str()].name == "work", "{verb:?}");
    let stray = collector
        .spans()
        .into_iter()
        .find(|span| !span.fields.contains_key("correlation") && span.parent.is_empty());
    ensure!(stray.is_none(), "what nobody asked for was sent: {stray:?}");
    Ok(())
}
