//! Verbs of images. Import sends the bytes to a controller first, which keeps them under their hash, and then creates
//! the object that names them: an import that breaks off leaves no image.

use std::io::SeekFrom;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_model::image::Image;
use dunlin_model::image::{ImageFormat, ImageSpec};
use dunlin_model::{
    ErrorCode, Generation, ImageId, Invalid, Kind, Labels, Metadata, Name, Object, Resource, Revision,
    Timestamp,
};
use dunlin_proto::{Fault, v1};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::vm_flags::once;
use super::{Session, host, listing};
use crate::args::ImageVerb;
use crate::client::idempotency_key;
use crate::failure::{Failure, chain};
use crate::output::{self, progress::Progress};

/// Bytes per message of an upload: well below the 4 MiB that a gRPC peer takes by default.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks on their way at once: enough to fill a fast link, few enough to be forgotten.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Reaching whoever has an image's URL.
const FETCH_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long has gone.
const FETCH_SILENCE_MAX: Duration = Duration::from_secs(60);
/// Tries of one import: each may meet a controller that dies.
const UPLOAD_TRIES_MAX: usize = 3;

pub(crate) async fn run(session: &Session, verb: ImageVerb) -> Result<(), Failure> {
    match verb {
        ImageVerb::Import { name, source, format, labels } => {
            import(session, name, &source, format.as_deref(), once("--label", &labels)?).await
        }
        ImageVerb::List(args) => listing::run(session, Kind::Image, &args).await,
        ImageVerb::Show { name } => host::show(session, Kind::Image, &name).await,
        ImageVerb::Delete { name } => {
            let gone = host::delete(session, Kind::Image, &name, false).await?;
            output::done(session.format, "deleted", &gone)
        }
    }
}

async fn import(
    session: &Session,
    name: Name,
    source: &str,
    format: Option<&str>,
    labels: Labels,
) -> Result<(), Failure> {
    let mut progress = Progress::new(&format!("image {name}"));
    let spec = store(session, source, Path::new(source), format, &mut progress).await?;
    drop(progress);
    let metadata = Metadata {
        name,
        uid: ImageId(uuid::Uuid::nil()),
        labels,
        generation: Generation(0),
        revision: Revision(0),
        created: Timestamp(0),
    };
    let image: Image = Resource { metadata, spec, status: Default::default() };
    let request = v1::CreateRequest {
        idempotency_key: idempotency_key(),
        object: Some(Object::from(image).into()),
        dry_run: false,
    };
    // The controllers pass the bytes on among themselves before they answer.
    let image =
        session.fleet.patient().object(async |mut client| client.create(request.clone()).await).await?;
    output::done(session.format, "imported", &image)
}

/// Sends the bytes of a file or URL to a controller, unless that has them. Returns what an image of them says. `file` is
/// where the source is when it is no URL.
pub(super) async fn store(
    session: &Session,
    source: &str,
    file: &Path,
    format: Option<&str>,
    progress: &mut Progress,
) -> Result<ImageSpec, Failure> {
    let Found { path, spec, .. } = find(source, file, format, progress).await?;
    upload(session, &path, &spec, progress).await?;
    Ok(spec)
}

/// The same without sending anything.
pub(super) async fn examine(
    source: &str,
    file: &Path,
    format: Option<&str>,
    progress: &mut Progress,
) -> Result<ImageSpec, Failure> {
    Ok(find(source, file, format, progress).await?.spec)
}

/// Bytes that are at hand, and what an image of them says.
struct Found {
    path: PathBuf,
    spec: ImageSpec,
    /// What was downloaded is there as long as this is.
    _fetched: Option<Fetched>,
}

async fn find(
    source: &str,
    file: &Path,
    format: Option<&str>,
    progress: &mut Progress,
) -> Result<Found, Failure> {
    let format = format.map(parse_format).transpose()?;
    let fetched = if is_url(source) { Some(fetch(source).await?) } else { None };
    let path = fetched.as_ref().map_or(file, |fetched| fetched.path.as_path()).to_owned();
    let mut file =
        tokio::fs::File::open(&path).await.map_err(Failure::io(format!("opening {}", path.display())))?;
    let (sha256, size_bytes, head) = digest(&mut file, &path, progress).await?;
    let spec = ImageSpec {
        format: format.unwrap_or_else(|| sniff(&head)),
        sha256,
        size_bytes,
        source: source.to_owned(),
    };
    spec.validate()?;
    Ok(Found { path, spec, _fetched: fetched })
}

/// Is it one that is fetched, and not a file?
pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

fn parse_format(text: &str) -> Result<ImageFormat, Invalid> {
    [ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vmdk]
        .into_iter()
        .find(|format| format.as_str() == text)
        .ok_or_else(|| Invalid::new("--format", format!("{text:?} is no image format"), "raw, qcow2 or vmdk"))
}

/// The format that the first bytes tell (QEMU's qcow2 spec; VMware's virtual disk format 1.1).
fn sniff(head: &[u8]) -> ImageFormat {
    match head {
        [b'Q', b'F', b'I', 0xfb, ..] => ImageFormat::Qcow2,
        [b'K', b'D', b'M', b'V', ..] => ImageFormat::Vmdk,
        _ => ImageFormat::Raw,
    }
}

async fn digest(
    file: &mut tokio::fs::File,
    path: &Path,
    progress: &mut Progress,
) -> Result<(String, u64, Vec<u8>), Failure> {
    let failed = || Failure::io(format!("reading {}", path.display()));
    let length = file.metadata().await.map_err(failed())?.len();
    let (mut hash, mut buffer, mut head, mut size) = (Sha256::new(), vec![0; CHUNK_BYTES], Vec::new(), 0_u64);
    loop {
        let count = file.read(&mut buffer).await.map_err(failed())?;
        if count == 0 {
            break;
        }
        if head.is_empty() {
            head = buffer[..count.min(8)].to_vec();
        }
        hash.update(&buffer[..count]);
        size += count as u64;
        progress.at(size * 20 / length.max(1), "reading");
    }
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((hex, size, head))
}

async fn upload(
    session: &Session,
    path: &Path,
    spec: &ImageSpec,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let stat = v1::StatBlobRequest { sha256: spec.sha256.clone() };
        let known = session.fleet.call(async |mut client| client.stat_blob(stat.clone()).await).await?;
        if known.present {
            return Ok(());
        }
        progress.at(20, "sending");
        let sent = session
            .fleet
            .patient()
            .call(async |mut client| client.upload_blob(chunks(path).await?).await)
            .await;
        tries += 1;
        match sent {
            Ok(info) if info.sha256 == spec.sha256 => return Ok(()),
            Ok(_) => return Err(Failure::Local(format!("{} changed while it was read", path.display()))),
            Err(fault) if fault.code == ErrorCode::NoCapacity => return Err(fault.into()),
            Err(fault) if !fault.code.retryable() || tries == UPLOAD_TRIES_MAX => return Err(fault.into()),
            Err(_) => {}
        }
    }
}

/// The file as a stream of messages, read as they are taken.
async fn chunks(
    path: &Path,
) -> Result<impl futures_util::Stream<Item = v1::BlobChunk> + use<>, tonic::Status> {
    let unreadable = |e: std::io::Error| -> tonic::Status {
        let fault = Fault::new(ErrorCode::InvalidArgument, format!("reading the image: {e}"));
        tonic::Status::from(fault)
    };
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).await.map_err(unreadable)?;
    let (send, receive) = tokio::sync::mpsc::channel(CHUNKS_IN_FLIGHT);
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        // A read that fails ends the stream early, and the hash then tells.
        while let Ok(count @ 1..) = file.read(&mut buffer).await {
            if send.send(v1::BlobChunk { data: buffer[..count].to_vec() }).await.is_err() {
                break;
            }
        }
    });
    Ok(tokio_stream::wrappers::ReceiverStream::new(receive))
}

/// Downloads to a file that has no name any more, so that it goes away with the command, however that ends.
async fn fetch(url: &str) -> Result<Fetched, Failure> {
    let failed = |e: reqwest::Error| Failure::Local(format!("fetching {url}: {}", chain(&e)));
    let client =
        reqwest::Client::builder().connect_timeout(FETCH_CONNECT_TIMEOUT).read_timeout(FETCH_SILENCE_MAX);
    let response = client.build().map_err(failed)?.get(url).send().await;
    let response = response.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    let path = std::env::temp_dir().join(format!("dunlin-import-{}", uuid::Uuid::new_v4().simple()));
    let writing = || Failure::io(format!("writing what comes from {url} to {}", path.display()));
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).open(&path).await.map_err(writing())?;
    tokio::fs::remove_file(&path).await.map_err(writing())?;
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        file.write_all(&piece.map_err(failed)?).await.map_err(writing())?;
    }
    file.flush().await.map_err(writing())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Ok(Fetched { path, _file: file })
}

/// A downloaded file. Its path is that of the open file, and good as long as that is open.
#[derive(Debug)]
struct Fetched {
    path: std::path::PathBuf,
    _file: tokio::fs::File,
}
