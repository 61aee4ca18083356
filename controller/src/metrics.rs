//! What this controller counts and times. The whole table: docs/observing.md says what each is for.
//!
//! What happens is counted where it happens; what stands is looked at when it is asked for ([`render`]).

use dunlin_metrics::{Cell, Counter, Family, Gauge, Histogram, Metric};
use dunlin_model::host::Host;
use dunlin_model::migration::Migration;
use dunlin_model::task::Task;
use dunlin_model::vm::Vm;
use dunlin_state::{State, Typed};

use crate::node::Node;

macro_rules! table {
    ($(
        $name:ident = $kind:ident($text:literal, $help:literal $(, [$($label:literal),+], $cell:ident)?);
    )*) => {
        $(pub(crate) static $name: $kind = $kind::new($text, $help $(, &[$($label),+], Cell::$cell)?);)*

        /// Every metric of a controller.
        pub(crate) static ALL: &[&dyn Metric] = &[$(&$name),*];
    };
}

table! {
    RAFT_COMMANDS = Counter("dunlin_raft_commands_total", "Commands proposed here.");
    RAFT_PACKS = Counter("dunlin_raft_packs_total", "Log entries that carried them.");
    RAFT_PROPOSE = Histogram("dunlin_raft_propose_seconds", "From a proposal to its outcome, waiting included.");
    RAFT_PROPOSE_FAILED = Family(
        "dunlin_raft_propose_failures_total", "Proposals without an outcome.", ["why"], Counter
    );
    RAFT_WAITING = Gauge("dunlin_raft_waiting_proposals", "Proposals that wait for a log entry.");
    RAFT_APPENDED = Counter("dunlin_raft_appended_entries_total", "Entries written to the log here.");
    RAFT_APPENDED_BYTES = Counter("dunlin_raft_appended_bytes_total", "Bytes of those.");
    RAFT_APPEND = Histogram("dunlin_raft_append_seconds", "Writing one group of entries, without the sync.");
    RAFT_FSYNC = Histogram("dunlin_raft_fsync_seconds", "One sync of the log.");
    RAFT_APPLIED = Counter("dunlin_raft_applied_commands_total", "Commands applied here.");
    RAFT_APPLY = Histogram("dunlin_raft_apply_seconds", "Applying one batch of entries, without waiting for their sync.");
    RAFT_LEADERS = Counter("dunlin_raft_leader_changes_total", "Changes of the leader that this controller learnt of.");
    RAFT_LEADS = Gauge("dunlin_raft_leads", "1 while this controller leads.");
    RAFT_TERM = Gauge("dunlin_raft_term", "The current term.");
    RAFT_INDEX = Family("dunlin_raft_log_index", "How far the log goes, by what was done with it.", ["done"], Gauge);
    RAFT_BEHIND = Family(
        "dunlin_raft_behind_entries", "On the leader: entries that each controller is behind.", ["controller"], Gauge
    );
    RAFT_SNAPSHOT = Family("dunlin_raft_snapshot_seconds", "Making or installing a snapshot.", ["act"], Histogram);
    API_CALLS = Family("dunlin_api_calls_total", "Calls answered, by method and public code.", ["method", "code"], Counter);
    API_CALL = Family("dunlin_api_call_seconds", "From a request to its answer's head.", ["method"], Histogram);
    API_RUNNING = Gauge("dunlin_api_calls_in_progress", "Calls under way.");
    API_SHED = Family("dunlin_api_shed_total", "Calls and streams refused for want of room.", ["what"], Counter);
    API_STREAMS = Gauge("dunlin_api_streams", "Watches and consoles that are open.");
    API_CONNECTIONS = Gauge("dunlin_api_connections", "Connections of clients, agents and controllers.");
    WATCH_EVENTS = Counter("dunlin_watch_events_total", "Changes and bookmarks told to watches.");
    WATCH_CUT = Counter("dunlin_watch_compacted_total", "Watches that came or fell too far behind.");
    SESSIONS = Gauge("dunlin_sessions", "Agents that hold a session here.");
    SESSION_OPENED = Counter("dunlin_session_opened_total", "Sessions opened.");
    SESSION_ENDED = Family("dunlin_session_ended_total", "Sessions ended, by why.", ["why"], Counter);
    SESSION_MESSAGES = Family("dunlin_session_messages_total", "Messages of agents.", ["message"], Counter);
    SESSION_REPORT = Histogram("dunlin_session_report_seconds", "Taking in one report.");
    SESSION_TOLD = Counter("dunlin_session_desired_sets_total", "Desired sets told to agents.");
    RECONCILE = Histogram("dunlin_reconcile_seconds", "One look of the leader's loop over the fleet.");
    RECONCILE_PROPOSED = Family(
        "dunlin_reconcile_proposals_total", "What came of the loop's proposals.", ["outcome"], Counter
    );
    RECONCILE_RUNNING = Gauge("dunlin_reconcile_proposals_in_progress", "Proposals of the loop under way.");
    BALANCE = Histogram("dunlin_balance_seconds", "One look of the balancer.");
    MIGRATION_PHASE = Family(
        "dunlin_migration_phase_seconds", "How long migrations that are over spent in each phase.", ["phase"], Histogram
    );
    MIGRATIONS = Family("dunlin_migrations_ended_total", "Migrations that are over, by outcome.", ["outcome"], Counter);
    OBJECTS = Family("dunlin_objects", "Objects of the fleet by kind and phase.", ["kind", "phase"], Gauge);
    REVISION = Gauge("dunlin_revision", "The fleet's revision as this controller has it.");
    LEVEL = Gauge("dunlin_feature_level", "The feature level of the cluster.");
    AUDIT_LINES = Counter("dunlin_audit_lines_total", "Lines given to the audit log.");
    AUDIT_UNWRITTEN = Counter("dunlin_audit_unwritten_total", "Refusals of unknown callers that got no line of their own.");
    AUDIT_WAITING = Gauge("dunlin_audit_waiting_lines", "Lines that wait for the disk.");
    DISK_FREE = Gauge("dunlin_disk_free_bytes", "Free under the data directory.");
}

/// How the objects of one kind stand, phase by phase.
fn phases<'a, T: Typed + 'a>(
    state: &'a State,
    kind: &'static str,
    phase: impl Fn(&T) -> String,
) -> Vec<(String, u64, &'static str)> {
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for object in state.all::<T>() {
        *counts.entry(phase(object)).or_default() += 1;
    }
    counts.into_iter().map(|(phase, count)| (phase, count, kind)).collect()
}

/// Looks at what stands, and writes down everything.
pub(crate) fn render(node: &Node) -> String {
    let view = node.replica.read();
    let raft = node.replica.metrics();
    RAFT_LEADS.set(u64::from(node.leading().is_some()));
    RAFT_TERM.set(raft.term);
    RAFT_WAITING.set(node.replica.waiting() as u64);
    let index = |at: Option<u64>| at.unwrap_or(0);
    RAFT_INDEX.set_all([
        (vec!["written"], index(raft.last_log)),
        (vec!["applied"], index(raft.last_applied)),
        (vec!["snapshot"], index(raft.snapshot)),
        (vec!["purged"], index(raft.purged)),
    ]);
    let behind: Vec<_> = raft.lag.iter().map(|(id, lag)| (id.to_string(), *lag)).collect();
    RAFT_BEHIND.set_all(behind.iter().map(|(id, lag)| (vec![id.as_str()], *lag)));
    API_STREAMS.set(node.streams.count() as u64);
    SESSIONS.set(node.sessions.count() as u64);
    REVISION.set(view.revision().0);
    LEVEL.set(u64::from(view.level().0));
    AUDIT_WAITING.set(node.audit.waiting() as u64);
    DISK_FREE.set(node.room.free_bytes().unwrap_or(0));
    let all = [
        phases::<Host>(&view, "Host", |host| format!("{:?}", host.status.phase)),
        phases::<Vm>(&view, "Vm", |vm| vm.status.phase.to_string()),
        phases::<Migration>(&view, "Migration", |migration| migration.status.phase.to_string()),
        phases::<Task>(&view, "Task", |task| task.status.phase.to_string()),
    ];
    OBJECTS.set_all(all.iter().flatten().map(|(phase, count, kind)| (vec![*kind, phase.as_str()], *count)));
    dunlin_metrics::render(&[ALL, dunlin_metrics::process(env!("CARGO_PKG_VERSION"))])
}

/// A migration has moved on. One that is over tells how long it was in each phase.
pub(crate) fn migrated(migration: &Migration) {
    let status = &migration.status;
    let Some(outcome) = status.outcome else { return };
    MIGRATIONS.inc(&[&format!("{outcome:?}")]);
    for pair in status.history.windows(2) {
        let [(phase, began), (_, ended)] = pair else { continue };
        let took = std::time::Duration::from_millis(ended.0.saturating_sub(began.0));
        MIGRATION_PHASE.observe(&[&phase.to_string()], took);
    }
}
