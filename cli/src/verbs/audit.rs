//! Verbs of the audit log.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dunlin_model::{Invalid, Kind, Object, Timestamp};
use dunlin_proto::v1;
use serde_json::Value;

use super::Session;
use crate::args::{Format, whole};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// List who did what, the oldest first
    #[command(visible_alias = "ls")]
    List(AuditListArgs),
    /// Write every line of every controller to a file, as JSON lines
    Export { file: PathBuf },
    /// Look for lines that were changed or cut out
    Verify,
}

#[derive(Debug, Args)]
pub(crate) struct AuditListArgs {
    /// Only what this user did
    #[arg(long, default_value = "")]
    user: String,
    /// Only this verb, as in create or login
    #[arg(long, default_value = "")]
    verb: String,
    /// Only what ended so: ok, or an error code
    #[arg(long, default_value = "")]
    outcome: String,
    /// Only from this time on, as in 2026-11-23T10:00:00Z, or so long ago, as in 2h or 30m
    #[arg(long)]
    since: Option<String>,
    /// Most lines, the newest
    #[arg(long, default_value_t = 200, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 2000"))]
    limit: u32,
}

/// Who does not belong to the table, in the order of its columns.
const COLUMNS: [&str; 9] = ["at", "who", "via", "from", "verb", "kind", "name", "project", "outcome"];

pub(crate) async fn run(session: &Session, verb: AuditVerb) -> Result<(), Failure> {
    match verb {
        AuditVerb::List(args) => list(session, args).await,
        AuditVerb::Export { file } => export(session, &file).await,
        AuditVerb::Verify => verify(session).await,
    }
}

fn parsed(line: &str) -> Result<Value, Failure> {
    serde_json::from_str(line).map_err(|e| Failure::Local(format!("a line of the audit log is no JSON: {e}")))
}

async fn list(session: &Session, args: AuditListArgs) -> Result<(), Failure> {
    let request = v1::ListAuditRequest {
        user: args.user,
        verb: args.verb,
        outcome: args.outcome,
        since_ms: args.since.as_deref().map(since).transpose()?.unwrap_or(0),
        limit: args.limit,
        controller: 0,
        after: 0,
    };
    let told = session.fleet.access(async |mut client| client.list_audit(request.clone()).await).await?;
    for id in &told.missing {
        output::remark(&format!("controller {id} did not answer; its lines are missing"));
    }
    match session.format {
        Format::Json => told.lines.iter().try_for_each(|line| output::line(line)),
        Format::Yaml => {
            let lines = told.lines.iter().map(|line| parsed(line)).collect::<Result<Vec<_>, _>>()?;
            output::value(Format::Yaml, &lines)
        }
        Format::Table | Format::Wide => {
            let cell = |line: &Value, column: &str| match line[column].as_str() {
                Some("") | None => "-".to_owned(),
                Some(text) => text.to_owned(),
            };
            let mut columns = COLUMNS.to_vec();
            if session.format == Format::Wide {
                columns.push("correlation");
            }
            let rows = told.lines.iter().map(|line| {
                let line = parsed(line)?;
                Ok(columns.iter().map(|column| cell(&line, column)).collect())
            });
            let rows = rows.collect::<Result<Vec<Vec<String>>, Failure>>()?;
            let head: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
            let head: Vec<&str> = head.iter().map(String::as_str).collect();
            output::line(output::table::columns(&head, rows).trim_end())
        }
    }
}

/// A point in time, or how long ago.
fn since(text: &str) -> Result<u64, Invalid> {
    let wrong = || {
        Invalid::new("--since", format!("{text:?} is no time"), "2026-11-23T10:00:00Z, or 90s, 30m, 2h, 7d")
    };
    let unit = |unit: char| match unit {
        's' => Some(1_000),
        'm' => Some(60_000),
        'h' => Some(3_600_000),
        'd' => Some(86_400_000),
        _ => None,
    };
    if let Some(ms) = text.chars().last().and_then(unit) {
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let now = output::Surroundings::at_this_moment().now;
        return Ok(now.0.saturating_sub(count.saturating_mul(ms)));
    }
    let at: Timestamp = serde_json::from_value(Value::String(text.to_owned())).map_err(|_| wrong())?;
    Ok(at.0)
}

async fn controllers(session: &Session) -> Result<Vec<u64>, Failure> {
    let listed = session.fleet.list(Kind::Cluster, false).await?;
    match listed.objects.first() {
        Some(Object::Cluster(cluster)) => Ok(cluster.status.controllers.iter().map(|one| one.id.0).collect()),
        _ => Err(Failure::Local("the cluster is not founded yet".into())),
    }
}

async fn export(session: &Session, path: &Path) -> Result<(), Failure> {
    let failed = || Failure::io(format!("writing {}", path.display()));
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(failed())?);
    let mut count = 0;
    for controller in controllers(session).await? {
        let mut request = v1::ListAuditRequest { controller, ..v1::ListAuditRequest::default() };
        loop {
            let told =
                session.fleet.access(async |mut client| client.list_audit(request.clone()).await).await?;
            for line in &told.lines {
                writeln!(file, "{line}").map_err(failed())?;
            }
            count += told.lines.len();
            let last = told.lines.last().map(|line| parsed(line)).transpose()?;
            match last.and_then(|line| line["seq"].as_u64()) {
                Some(seq) if told.more => request.after = seq,
                _ => break,
            }
        }
    }
    file.flush().map_err(failed())?;
    output::line(&format!("{count} lines written to {}", path.display()))
}

async fn verify(session: &Session) -> Result<(), Failure> {
    let mut broken = 0;
    for controller in controllers(session).await? {
        let request = v1::VerifyAuditRequest { controller };
        let told = session.fleet.access(async |mut client| client.verify_audit(request).await).await?;
        if told.broken.is_empty() {
            output::line(&format!(
                "controller {controller}: {} lines, all as they were written",
                told.lines
            ))?;
        } else {
            broken += 1;
            output::line(&format!("controller {controller}: {} lines, then {}", told.lines, told.broken))?;
        }
    }
    match broken {
        0 => Ok(()),
        _ => Err(Failure::Local("the audit log is not as it was written".into())),
    }
}
