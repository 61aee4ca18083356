//! `vm create`: from flags, from a file, or from libvirt's domain XML.

use std::path::Path;

use dunlin_drivers::domain_xml;
use dunlin_model::vm::{Power, Vm, VmPhase, VmSpec, VmStatus};
use dunlin_model::{
    Generation, Invalid, Labels, Metadata, Name, Object, Resource, Revision, Timestamp, VmId,
};
use dunlin_proto::v1;
use tokio::io::AsyncReadExt;

use super::document::{self, Document};
use super::vm_flags::once;
use super::{Session, explain};
use crate::args::{Format, VmCreateArgs};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::{output, wait};

/// Largest file read, bytes: a spec with every device is some 10 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(crate) async fn run(session: &Session, args: VmCreateArgs) -> Result<(), Failure> {
    let Draft { name, uid, mut labels, mut spec } = read(&args).await?;
    let name =
        args.name.clone().or(name).ok_or_else(|| Invalid::new("name", "is missing", "a name for the VM"))?;
    labels.extend(once("--label", &args.flags.labels)?);
    if args.start {
        spec.power = Power::Running;
    }
    spec.validate()?;
    let running = spec.power != Power::Stopped;
    let vm = yet_to_be(name, uid, labels, spec);
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
fn yet_to_be(name: Name, uid: Option<VmId>, labels: Labels, spec: VmSpec) -> Vm {
    let metadata = Metadata {
        name,
        uid: uid.unwrap_or(VmId(uuid::Uuid::nil())),
        labels,
        generation: Generation(0),
        revision: Revision(0),
        created: Timestamp(0),
    };
    Resource { metadata, spec, status: VmStatus::default() }
}

/// The same, of which only labels and spec matter.
pub(crate) fn unnamed(name: &str, labels: Labels, spec: VmSpec) -> Result<Vm, Invalid> {
    Ok(yet_to_be(name.parse()?, None, labels, spec))
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

/// What was typed or read, before the fleet adds to it.
struct Draft {
    name: Option<Name>,
    /// A VM that comes from elsewhere brings its own.
    uid: Option<VmId>,
    labels: Labels,
    spec: VmSpec,
}

async fn read(args: &VmCreateArgs) -> Result<Draft, Failure> {
    let mut draft = match (&args.file, &args.xml) {
        (Some(path), _) => {
            let Document { metadata, spec, .. } = document::parse(&bytes(path).await?, &told(path))?;
            Draft { name: metadata.name, uid: metadata.uid.map(VmId), labels: metadata.labels, spec }
        }
        (_, Some(path)) => {
            let text = bytes(path).await?;
            let options = domain_xml::Options { ignore_unsupported: args.ignore_unsupported };
            let parsed = domain_xml::parse(&text, options)
                .map_err(|e| Invalid::new(told(path), e.to_string(), "libvirt domain XML"))?;
            for ignored in &parsed.ignored {
                output::remark(&format!("left out: {ignored}"));
            }
            Draft { name: Some(parsed.name), uid: parsed.uuid, labels: Labels::new(), spec: parsed.spec }
        }
        (None, None) => {
            return Ok(Draft { name: None, uid: None, labels: Labels::new(), spec: args.flags.spec()? });
        }
    };
    args.flags.apply(&mut draft.spec)?;
    Ok(draft)
}

/// What to call a file in a message.
pub(super) fn told(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// The whole of a file, or of standard input for `-`.
pub(super) async fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = || Failure::io(format!("reading {}", told(path)));
    let mut text = Vec::new();
    if path == Path::new("-") {
        tokio::io::stdin().take(FILE_BYTES_MAX + 1).read_to_end(&mut text).await.map_err(failed())?;
    } else {
        let file = tokio::fs::File::open(path).await.map_err(failed())?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).await.map_err(failed())?;
    }
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Invalid::new(told(path), "is too long", "at most 1 MiB").into());
    }
    Ok(text)
}
