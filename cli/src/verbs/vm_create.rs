//! `vm create`: from flags, from a file, or from libvirt's domain XML.

use std::path::Path;

use dunlin_drivers::domain_xml;
use dunlin_model::vm::{Power, Vm, VmPhase, VmSpec, VmStatus};
use dunlin_model::{
    Generation, Invalid, Labels, Metadata, Name, Object, Resource, Revision, Timestamp, VmId,
};
use dunlin_proto::v1;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::{Session, explain};
use crate::args::{Format, VmCreateArgs};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::{output, wait};

/// Largest file read, bytes: a spec with every device is some 10 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `-f` reads: a whole object as `vm show -o yaml` prints it, with or without what the fleet adds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: DocumentMetadata,
    spec: VmSpec,
    /// Read and left out: the fleet reports it.
    #[serde(default, rename = "status")]
    _status: serde::de::IgnoredAny,
}

/// The part of `metadata` that a user may say; the rest is read and left out.
#[derive(Debug, Default, Deserialize)]
struct DocumentMetadata {
    #[serde(default)]
    name: Option<Name>,
    #[serde(default)]
    labels: Labels,
}

pub(crate) async fn run(session: &Session, args: VmCreateArgs) -> Result<(), Failure> {
    let (name, mut labels, mut spec) = read(&args).await?;
    let name =
        args.name.clone().or(name).ok_or_else(|| Invalid::new("name", "is missing", "a name for the VM"))?;
    labels.extend(args.flags.labels.iter().cloned());
    if args.start {
        spec.power = Power::Running;
    }
    spec.validate()?;
    let running = spec.power != Power::Stopped;
    let vm = yet_to_be(name, labels, spec);
    let request = v1::CreateRequest {
        idempotency_key: idempotency_key(),
        object: Some(Object::from(vm).into()),
        dry_run: args.dry_run,
    };
    let vm = session.fleet.object(async |mut client| client.create(request.clone()).await).await?;
    if args.dry_run {
        return dry_run(session, &vm).await;
    }
    if running && args.wait.wait {
        let wanted = wait::vm_phase(&[VmPhase::Running, VmPhase::Paused]);
        let vm = wait::until(&session.fleet, args.wait, vm, wanted).await?;
        return output::done(session.format, "created and started", &vm);
    }
    output::done(session.format, "created", &vm)
}

/// A VM that the fleet does not know.
fn yet_to_be(name: Name, labels: Labels, spec: VmSpec) -> Vm {
    let metadata = Metadata {
        name,
        uid: VmId(uuid::Uuid::nil()),
        labels,
        generation: Generation(0),
        revision: Revision(0),
        created: Timestamp(0),
    };
    Resource { metadata, spec, status: VmStatus::default() }
}

/// The same, of which only labels and spec matter.
pub(crate) fn unnamed(name: &str, labels: Labels, spec: VmSpec) -> Result<Vm, Invalid> {
    Ok(yet_to_be(name.parse()?, labels, spec))
}

/// What would be stored, and where it would go: for people the place, for programs both.
async fn dry_run(session: &Session, vm: &Object) -> Result<(), Failure> {
    let Object::Vm(would_be) = vm else { return output::object(session.format, vm) };
    let told = explain::rehearse(session, would_be.clone()).await?;
    match session.format {
        Format::Table | Format::Wide => output::advice::explanation(session.format, &told),
        Format::Json | Format::Yaml => {
            output::value(session.format, &serde_json::json!({"object": vm, "placement": told}))
        }
    }
}

async fn read(args: &VmCreateArgs) -> Result<(Option<Name>, Labels, VmSpec), Failure> {
    let (name, labels, mut spec) = match (&args.file, &args.xml) {
        (Some(path), _) => {
            let document = parse(&bytes(path).await?, path)?;
            (document.metadata.name, document.metadata.labels, document.spec)
        }
        (_, Some(path)) => {
            let text = bytes(path).await?;
            let options = domain_xml::Options { ignore_unsupported: args.ignore_unsupported };
            let parsed = domain_xml::parse(&text, options)
                .map_err(|e| Invalid::new(path.display().to_string(), e.to_string(), "libvirt domain XML"))?;
            for ignored in &parsed.ignored {
                output::remark(&format!("left out: {ignored}"));
            }
            (Some(parsed.name), Labels::new(), parsed.spec)
        }
        (None, None) => return Ok((None, Labels::new(), args.flags.spec()?)),
    };
    args.flags.apply(&mut spec)?;
    Ok((name, labels, spec))
}

/// Reads YAML, of which JSON is a part.
fn parse(text: &[u8], path: &Path) -> Result<Document, Invalid> {
    let wrong = |problem: String| {
        Invalid::new(path.display().to_string(), problem, "a Vm as `vm show -o yaml` prints it")
    };
    // By way of JSON's value, as it was written: see `output`.
    let value: serde_json::Value = serde_norway::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    let document: Document = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    match document.kind.as_deref() {
        None | Some("Vm") => Ok(document),
        Some(other) => Err(wrong(format!("kind is {other:?}"))),
    }
}

/// The whole of a file, or of standard input for `-`.
async fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = || Failure::io(format!("reading {}", path.display()));
    let mut text = Vec::new();
    if path == Path::new("-") {
        tokio::io::stdin().take(FILE_BYTES_MAX + 1).read_to_end(&mut text).await.map_err(failed())?;
    } else {
        let file = tokio::fs::File::open(path).await.map_err(failed())?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).await.map_err(failed())?;
    }
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Invalid::new(path.display().to_string(), "is too long", "at most 1 MiB").into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spec is read with or without what the fleet adds, and a misspelt field is named.
    #[test]
    fn documents() {
        let text = "kind: Vm\nmetadata: {name: web, uid: x, revision: 9}\nspec: {mem_mib: 64}\nstatus: {phase: Running}\n";
        let document = parse(text.as_bytes(), Path::new("web.yaml")).unwrap();
        assert_eq!(document.metadata.name.unwrap().as_str(), "web");
        assert_eq!(document.spec.mem_mib, 64);
        let error = parse(b"spec: {mem_mib: 64, cpu: 2}", Path::new("web.yaml")).unwrap_err().to_string();
        assert!(error.contains("unknown field `cpu`"), "{error}");
        let error = parse(b"kind: Host\nspec: {mem_mib: 64}", Path::new("web.yaml")).unwrap_err().to_string();
        assert!(error.contains("\"Host\""), "{error}");
    }
}
