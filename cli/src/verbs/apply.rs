//! `apply`, `diff` and `delete` of files.
//!
//! The merge is the leader's: what stands here is only what a file on this machine adds, the bytes of its images.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dunlin_model::{ErrorCode, Invalid, Kind, Object, merge};
use dunlin_proto::{Fault, v1};
use serde_json::{Value, json};
use similar::TextDiff;
use tokio::time::Instant;

use super::document::within;
use super::files::{self, Document};
use super::{Session, host, image};
use crate::args::Format;
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::output::{self, progress::Progress};

/// Lines around a difference.
const CONTEXT_LINES: usize = 3;
/// Until VMs that are being deleted let go of their images: a guest is killed and its disks are removed.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(60);
/// Between looks whether they have.
const LET_GO_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file, a folder of .yaml, .yml and .json files, or - for standard input
    #[arg(long = "filename", short = 'f', required = true)]
    files: Vec<PathBuf>,
    /// Whose the fields are from now on
    #[arg(long, default_value = "dunlin-apply")]
    field_manager: String,
    /// Take over fields that others own
    #[arg(long)]
    force: bool,
    /// Check only: say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// A file, a folder of .yaml, .yml and .json files, or - for standard input
    #[arg(long = "filename", short = 'f', required = true)]
    files: Vec<PathBuf>,
}

pub(crate) async fn run(session: &Session, args: &ApplyArgs) -> Result<(), Failure> {
    let (mut applied, mut promised) = (Vec::new(), Promised::new());
    for document in files::read(&args.files).await? {
        let (before, after) = one(session, &document, args, args.dry_run, &mut promised).await?;
        let did = match before {
            None => "created",
            Some(before) if before.same_intent(&after) => "unchanged",
            Some(_) => "configured",
        };
        if let Format::Table | Format::Wide = session.format {
            let rehearsed = if args.dry_run { " (dry run)" } else { "" };
            output::done(session.format, &format!("{did}{rehearsed}"), &after)?;
        }
        applied.push(after);
    }
    match (session.format, applied.as_slice()) {
        (Format::Table | Format::Wide, _) => Ok(()),
        (_, [object]) => output::object(session.format, object),
        (_, objects) => output::value(session.format, &json!({"kind": "List", "items": objects})),
    }
}

pub(crate) async fn diff(session: &Session, args: &ApplyArgs) -> Result<(), Failure> {
    let documents = files::read(&args.files).await?;
    let (count, mut changed, mut promised) = (documents.len(), 0, Promised::new());
    for document in documents {
        let (before, after) = one(session, &document, args, true, &mut promised).await?;
        let old = before.as_ref().map(readable).unwrap_or_default();
        let new = readable(&after);
        if old == new {
            continue;
        }
        changed += 1;
        let title = document.title();
        let difference = TextDiff::from_lines(&old, &new);
        let mut unified = difference.unified_diff();
        unified
            .context_radius(CONTEXT_LINES)
            .header(&format!("{title} (as it is)"), &format!("{title} (as applied)"));
        output::line(&unified.to_string())?;
    }
    match changed {
        0 => Ok(()),
        changed => Err(Failure::Differs(format!("{changed} of {count} objects would change"))),
    }
}

/// What a user may write of it, as YAML. Where it runs is not among that: a move is no difference.
fn readable(object: &Object) -> String {
    let mut intent = object.intent();
    if intent.pointer("/metadata/labels").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
        intent["metadata"] = json!({});
    }
    let name = object.name().as_str();
    let metadata = intent["metadata"]["labels"].take();
    let metadata =
        if metadata.is_null() { json!({"name": name}) } else { json!({"name": name, "labels": metadata}) };
    output::yaml_text(&json!({"kind": object.kind(), "metadata": metadata, "spec": intent["spec"]}))
}

/// Images that would be there by now, if this were no dry run.
type Promised = BTreeSet<String>;

/// Applies one document, or tries to. Returns the object as it was and as it is now.
async fn one(
    session: &Session,
    document: &Document,
    args: &ApplyArgs,
    dry_run: bool,
    promised: &mut Promised,
) -> Result<(Option<Object>, Object), Failure> {
    let before = match session.fleet.get(document.kind, &document.name).await {
        Ok(object) => Some(object),
        Err(fault) if fault.code == ErrorCode::NotFound => None,
        Err(fault) => return Err(fault.into()),
    };
    let value = match document.kind {
        Kind::Image => with_bytes(session, document, before.as_ref(), dry_run).await?,
        _ => document.value.clone(),
    };
    let request = v1::ApplyRequest {
        idempotency_key: idempotency_key(),
        kind: v1::Kind::from(document.kind).into(),
        name: document.name.clone(),
        document: value.to_string(),
        field_manager: args.field_manager.clone(),
        force: args.force,
        dry_run,
    };
    let fleet = if document.kind == Kind::Image { session.fleet.patient() } else { session.fleet.clone() };
    let after = fleet.object(async |mut client| client.apply(request.clone()).await).await;
    let lacks = |fault: &Fault| {
        let named = promised.iter().any(|image| fault.message.contains(&format!("{image:?}")));
        dry_run && named && fault.code == ErrorCode::NotFound
    };
    let after = match after {
        Err(fault) if lacks(&fault) => laid_over(document, before.as_ref(), &value)?,
        settled => settled.map_err(|fault| {
            let message = format!("{}: {}", document.origin, fault.message);
            Fault { message, ..fault }
        })?,
    };
    if dry_run && before.is_none() && document.kind == Kind::Image {
        promised.insert(document.name.clone());
    }
    Ok((before, after))
}

/// What an object would be whose image is yet to be made: the fleet cannot say while that is not there.
fn laid_over(document: &Document, before: Option<&Object>, value: &Value) -> Result<Object, Invalid> {
    let mut whole = before.map_or_else(|| json!({}), Object::intent);
    let said = json!({"metadata": {"labels": value.pointer("/metadata/labels")}, "spec": value.get("spec")});
    merge::overlay(&mut whole, &said, &merge::Fields::new());
    if whole["metadata"]["labels"].is_null() {
        whole["metadata"] = json!({});
    }
    whole["metadata"]["name"] = document.name.as_str().into();
    dunlin_proto::document::object(document.kind, &whole).map_err(|e| within(&document.origin, e))
}

/// The document of an image that names a file or URL: its bytes are sent, and it says their hash. One that says the hash
/// itself, or names a URL that the image was made from before, stays as it is.
async fn with_bytes(
    session: &Session,
    document: &Document,
    before: Option<&Object>,
    dry_run: bool,
) -> Result<Value, Failure> {
    let mut value = document.value.clone();
    let text =
        |name: &str| value.pointer(&format!("/spec/{name}")).and_then(Value::as_str).map(str::to_owned);
    let (Some(source), None) = (text("source"), text("sha256")) else { return Ok(value) };
    let known = matches!(before, Some(Object::Image(image)) if image.spec.source == source);
    if image::is_url(&source) && known {
        return Ok(value);
    }
    let format = text("format");
    let mut progress = Progress::new(&format!("image {}", document.name));
    let file = document.folder.join(&source);
    let spec = if dry_run {
        image::examine(&source, &file, format.as_deref(), &mut progress).await?
    } else {
        image::store(session, &source, &file, format.as_deref(), &mut progress).await?
    };
    drop(progress);
    value["spec"] = serde_json::to_value(&spec).expect("specs have string keys");
    Ok(value)
}

pub(crate) async fn delete(session: &Session, args: &DeleteArgs) -> Result<(), Failure> {
    let mut documents = files::read(&args.files).await?;
    if let Some(cluster) = documents.iter().find(|document| document.kind == Kind::Cluster) {
        let problem = "the cluster is not deleted";
        return Err(Invalid::new(format!("{}: kind", cluster.origin), problem, "Host, Image or Vm").into());
    }
    // What needs others goes before them.
    documents.reverse();
    let wait = if documents.iter().any(|document| document.kind == Kind::Vm) {
        LET_GO_TIMEOUT
    } else {
        Duration::ZERO
    };
    for document in documents {
        match gone(session, &document, wait).await {
            Ok(object) => output::done(session.format, "deleted", &object)?,
            Err(Failure::Fleet(fault)) if fault.code == ErrorCode::NotFound => {
                output::remark(&format!("{} is not there", document.title()));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Deletes one. An image waits until the VMs that were deleted before it have let go of it.
async fn gone(session: &Session, document: &Document, wait: Duration) -> Result<Object, Failure> {
    let began = Instant::now();
    loop {
        match host::delete(session, document.kind, &document.name, false).await {
            Err(Failure::Fleet(fault))
                if fault.code == ErrorCode::InUse
                    && document.kind == Kind::Image
                    && began.elapsed() < wait =>
            {
                tokio::time::sleep(LET_GO_PAUSE).await;
            }
            settled => return settled,
        }
    }
}
