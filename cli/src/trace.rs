//! Spans for an OpenTelemetry collector, over gRPC, when one is named. Each process sends its own, and what a user's command led to
//! is one trace everywhere: its id follows from the command's correlation id, which every process is told anyway.
//!
//! ```text
//!   correlation id --SHA-256--> id of the trace, id of the command's own span; 32 hex digits are a trace's id already
//!   command (CLI) -> call (each controller it passes) -> ...
//!                 -> work (agent) -> verb (of a driver)
//! ```
//! What the fleet does by itself has no correlation id, and is not sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_model::Invalid;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context as Within, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SdkTracerProvider,
};
use sha2::{Digest as _, Sha256};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Instrument as _, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::client::correlation;
use crate::failure::Failure;

/// Spans that wait for the collector. Behind them, newer ones are dropped: a collector that is away costs no more memory.
const QUEUE: usize = 4_096;
/// Spans in one message: some 200 KiB.
const BATCH: usize = 512;
/// How long a span waits for others to go with it.
const DELAY: Duration = Duration::from_secs(1);
/// How long a collector may take to take a message.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last spans of a process may take to leave: a command must not hang on a collector that does.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What sends spans until it is told to end.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

/// Which process sends.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// `dunlin-controller` and so on.
    pub(crate) service: &'static str,
    /// Which of them.
    pub(crate) instance: String,
    /// The command whose own span is the first one here.
    pub(crate) root: Option<&'static str>,
}

/// `http://host:port` of a collector. It is to be near: nothing is encrypted, as names of guests are no secret of one's own host.
pub(crate) fn collector(text: &str) -> Result<String, Invalid> {
    let refuse = |problem: &str| {
        Invalid::new("--otlp-endpoint", problem, "http://HOST:PORT, as in http://127.0.0.1:4317")
    };
    let rest = text.strip_prefix("http://").ok_or_else(|| refuse("it does not begin with http://"))?;
    let rest = rest.trim_end_matches('/');
    if rest.contains('/') || !rest.contains(':') {
        return Err(refuse("it is no host and port"));
    }
    Ok(format!("http://{rest}"))
}

impl Traces {
    /// Begins to send to a collector what the layer sees. Within a runtime, which has to last as long.
    pub(crate) fn begin<S>(endpoint: &str, sender: Sender) -> Result<(Self, impl Layer<S>), Failure>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(collector(endpoint)?);
        let exporter = exporter.with_timeout(EXPORT_TIMEOUT).build();
        let exporter = exporter.map_err(|e| Failure::Local(format!("the collector at {endpoint}: {e}")))?;
        let batches =
            BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_max_export_batch_size(BATCH);
        let batches = batches.with_scheduled_delay(DELAY).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let about = [
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", sender.instance),
        ];
        let about =
            Resource::builder_empty().with_service_name(sender.service).with_attributes(about).build();
        let mut provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(about);
        if let Some(command) = sender.root {
            provider = provider.with_id_generator(Rooted::new(command));
        }
        let provider = provider.build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("dunlin"))
            .with_context_activation(false)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        let ours = Targets::new().with_target("dunlin", LevelFilter::INFO);
        let layer = Threaded { inner: layer, rooted: sender.root.is_some() }.with_filter(ours);
        Ok((Self(provider), layer))
    }

    /// Sends what is left.
    pub(crate) async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FAREWELL_TIMEOUT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// Does a command of a user within its own span, when there is a collector.
pub(crate) async fn command(
    endpoint: Option<&str>,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let Some(endpoint) = endpoint else { return work.await };
    let root = Some(correlation());
    let sender = Sender { service: "dunlin-cli", instance: std::process::id().to_string(), root };
    let (traces, layer) = Traces::begin(endpoint, sender)?;
    tracing_subscriber::registry().with(layer).init();
    let done = work.instrument(tracing::info_span!("command", correlation = correlation())).await;
    traces.end().await;
    done
}

/// The trace of a command, and its own span.
pub(crate) fn trace_of(correlation: &str) -> (TraceId, SpanId) {
    let sum: [u8; 32] = Sha256::digest(correlation.as_bytes()).into();
    let (mut trace, mut span) = ([0; 16], [0; 8]);
    trace.copy_from_slice(&sum[..16]);
    span.copy_from_slice(&sum[16..24]);
    let trace = TraceId::from_bytes(trace);
    let given = Some(correlation).filter(|text| text.len() == 32).map(TraceId::from_hex).and_then(Result::ok);
    (given.filter(|given| *given != TraceId::INVALID).unwrap_or(trace), SpanId::from_bytes(span))
}

/// Gives the first span of a process, its command's, the ids that everybody else knows it by.
#[derive(Debug)]
struct Rooted {
    ids: (TraceId, SpanId),
    begun: AtomicBool,
    others: RandomIdGenerator,
}

impl Rooted {
    fn new(correlation: &str) -> Self {
        let (begun, others) = (AtomicBool::new(false), RandomIdGenerator::default());
        Self { ids: trace_of(correlation), begun, others }
    }
}

impl IdGenerator for Rooted {
    fn new_trace_id(&self) -> TraceId {
        self.ids.0
    }

    fn new_span_id(&self) -> SpanId {
        if self.begun.swap(true, Ordering::Relaxed) { self.others.new_span_id() } else { self.ids.1 }
    }
}

/// Marks a span that is sent, so that those within it are too.
struct Sent;

/// The field `correlation` of a span.
#[derive(Default)]
struct Correlation(String);

impl Visit for Correlation {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "correlation" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// Lets those spans through that a user's command led to, each in the trace of that command.
struct Threaded<L> {
    inner: L,
    /// The command's own span begins here.
    rooted: bool,
}

impl<S, L> Layer<S> for Threaded<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    L: Layer<S>,
{
    fn on_layer(&mut self, subscriber: &mut S) {
        self.inner.on_layer(subscriber);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let parent = match attributes.parent() {
            Some(parent) => ctx.span(parent),
            None if attributes.is_contextual() => ctx.lookup_current(),
            None => None,
        };
        let within = parent.is_some_and(|parent| parent.extensions().get::<Sent>().is_some());
        let mut seen = Correlation::default();
        attributes.record(&mut seen);
        if !within && seen.0.is_empty() {
            return;
        }
        if let Some(span) = ctx.span(id) {
            span.extensions_mut().insert(Sent);
        }
        let (trace, command) = trace_of(&seen.0);
        let of_command = SpanContext::new(trace, command, TraceFlags::SAMPLED, true, TraceState::NONE);
        let parent = Within::new().with_remote_span_context(of_command);
        let _guard = (!within && !self.rooted).then(|| parent.attach());
        self.inner.on_new_span(attributes, id, ctx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        self.inner.on_record(id, values, ctx);
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        self.inner.on_event(event, ctx);
    }

    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        self.inner.on_enter(id, ctx);
    }

    fn on_exit(&self, id: &Id, ctx: Context<'_, S>) {
        self.inner.on_exit(id, ctx);
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        self.inner.on_close(id, ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same id everywhere for the same command, another for another; a program's own trace id is taken as it is; what is no
    /// collector's address is refused.
    #[test]
    fn a_trace_follows_from_its_command() {
        assert_eq!(trace_of("by-hand"), trace_of("by-hand"));
        assert_ne!(trace_of("by-hand").0, trace_of("by-foot").0);
        let own = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_of(own).0.to_string(), own);
        assert_ne!(trace_of(&"0".repeat(32)).0, TraceId::INVALID);
        assert_eq!(collector("http://127.0.0.1:4317/").unwrap(), "http://127.0.0.1:4317");
        for odd in ["127.0.0.1:4317", "https://otel:4317", "http://otel", "http://otel:4317/v1/traces"] {
            assert!(collector(odd).unwrap_err().to_string().starts_with("--otlp-endpoint"), "{odd}");
        }
    }
}
