//! Image bytes over the network: from clients, to agents, and between controllers until a majority holds them.
//!
//! ```text
//!  UploadBlob -> here -> Create(Image) on the leader: asks all -> pulls -> pushes until a majority has it -> commit
//!                                                    the others pull what a committed image names, in the background
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::cluster::Controller;
use dunlin_model::image::ImageSpec;
use dunlin_model::{ErrorCode, Invalid};
use dunlin_proto::{Fault, v1};
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tonic::{Request, Status};

use super::call::TRANSFER_DEADLINE;
use super::peers::fleet;
use crate::blob::{Blob, BlobError, Digest};
use crate::node::Node;

/// Bytes of one chunk: large enough to spare calls, small enough not to hold other streams up.
const CHUNK_BYTES: usize = 256 << 10;
/// A controller that does not say within this time whether it has a blob counts as one that has not.
const STAT_TIMEOUT: Duration = Duration::from_secs(2);
/// A sender that is silent for so long has gone; its half-written blob is dropped.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often a controller looks for blobs it lacks.
const PULL_EVERY: Duration = Duration::from_secs(5);
/// A blob that no image names is kept this long: time to upload a large one and to create its image, and to create
/// the image again after a mistaken deletion.
const UNNAMED_GRACE: Duration = Duration::from_secs(3600);

/// The same while the disk is nearly full: time to name what was just uploaded.
const UNNAMED_GRACE_SHORT: Duration = Duration::from_secs(60);

/// Takes bytes in and stores them under their hash.
pub(super) async fn upload(
    node: &Node,
    chunks: impl Stream<Item = Result<v1::BlobChunk, Status>>,
) -> Result<v1::BlobInfo, Fault> {
    let mut chunks = std::pin::pin!(chunks);
    let mut writing = node.blobs.write().await;
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, chunks.next()).await;
        match next
            .map_err(|_| Fault::new(ErrorCode::Deadline, "the sender fell silent; nothing was stored"))?
        {
            Some(Ok(chunk)) => {
                if !writing.push(chunk.data).await {
                    break;
                }
            }
            None => break,
            Some(Err(status)) => return Err(status.into()),
        }
    }
    let blob = writing.finish(None).await.map_err(|e| blob_fault(&e))?;
    tracing::info!(sha256 = %blob.digest, size_bytes = blob.size_bytes, "stored a blob");
    Ok(info(&blob))
}

/// Has this controller it?
pub(super) fn stat(node: &Node, request: &v1::StatBlobRequest) -> Result<v1::BlobInfo, Fault> {
    let digest: Digest = request.sha256.parse()?;
    let found = node.blobs.stat(&digest).map_err(|e| blob_fault(&e))?;
    let absent = v1::BlobInfo { sha256: digest.to_string(), size_bytes: 0, present: false };
    Ok(found.as_ref().map_or(absent, info))
}

/// Gives bytes out, from an offset on.
pub(super) async fn download(
    node: &Node,
    request: &v1::DownloadBlobRequest,
) -> Result<impl Stream<Item = Result<v1::BlobChunk, Fault>> + Send + 'static, Fault> {
    let digest: Digest = request.sha256.parse()?;
    let size_bytes = node.blobs.stat(&digest).map_err(|e| blob_fault(&e))?.map_or(0, |blob| blob.size_bytes);
    if request.offset > size_bytes {
        let problem = format!("{} is beyond the end", request.offset);
        return Err(Invalid::new("offset", problem, format!("0 to {size_bytes}")).into());
    }
    let file = node.blobs.read(&digest, request.offset).await.map_err(|e| blob_fault(&e))?;
    Ok(chunks(file))
}

fn chunks(file: tokio::fs::File) -> impl Stream<Item = Result<v1::BlobChunk, Fault>> + Send + 'static {
    futures_util::stream::try_unfold(file, |mut file| async move {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await;
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some((v1::BlobChunk { data }, file))),
            Err(error) => Err(Fault::new(ErrorCode::Internal, format!("read a stored blob: {error}"))),
        }
    })
}

/// Sees to it that a majority of the controllers, this one among them, holds an image's bytes.
pub(super) async fn ensure_stored(node: &Node, spec: &ImageSpec) -> Result<(), Fault> {
    let digest: Digest = spec.sha256.parse()?;
    let controllers = node.controllers();
    let asked = join_all(controllers.iter().map(|controller| size_at(node, controller, &digest))).await;
    let (mut have, lack): (Vec<_>, Vec<_>) =
        controllers.iter().zip(asked).partition(|(_, size)| size.is_some());
    let Some(size_bytes) = have.iter().find_map(|(_, size)| *size) else {
        let problem = format!("no controller that answers has the bytes of {digest}");
        return Err(
            Invalid::new("spec.sha256", problem, "the hash of bytes that were uploaded before").into()
        );
    };
    if size_bytes != spec.size_bytes {
        let problem = format!("{} is not the length of these bytes", spec.size_bytes);
        return Err(Invalid::new("spec.size_bytes", problem, size_bytes.to_string()).into());
    }
    let mut lack: Vec<&Controller> = lack.into_iter().map(|(controller, _)| controller).collect();
    if let Some(here) = lack.iter().position(|controller| controller.id == node.config.id) {
        pull(node, &have[0].0.endpoint, &digest).await?;
        have.push((lack.remove(here), Some(size_bytes)));
    }
    let (mut count, needed) = (have.len(), controllers.len() / 2 + 1);
    let mut why = None;
    for controller in lack {
        if count >= needed {
            break;
        }
        match push(node, &controller.endpoint, &digest).await {
            Ok(()) => count += 1,
            Err(fault) => {
                tracing::warn!(controller = %controller.id, fault = fault.message, "could not push a blob");
                why = Some((fault.code, format!("; controller {}: {}", controller.id, fault.message)));
            }
        }
    }
    if count < needed {
        let (code, why) = why.unwrap_or((ErrorCode::Unavailable, String::new()));
        let message = format!("only {count} of {} controllers hold the image's bytes", controllers.len());
        return Err(Fault::new(code, format!("{message}; {needed} must{why}")));
    }
    Ok(())
}

/// The length of a blob at one controller; none when it is not there or cannot be asked.
async fn size_at(node: &Node, controller: &Controller, digest: &Digest) -> Option<u64> {
    if controller.id == node.config.id {
        return node.blobs.stat(digest).ok()?.map(|blob| blob.size_bytes);
    }
    let mut client = fleet(node.peers.channel(&controller.endpoint).ok()?);
    let mut request = Request::new(v1::StatBlobRequest { sha256: digest.to_string() });
    request.set_timeout(STAT_TIMEOUT);
    let info = client.stat_blob(request).await.ok()?.into_inner();
    info.present.then_some(info.size_bytes)
}

async fn pull(node: &Node, endpoint: &str, digest: &Digest) -> Result<(), Fault> {
    let mut client = fleet(node.peers.channel(endpoint)?);
    let mut request = Request::new(v1::DownloadBlobRequest { sha256: digest.to_string(), offset: 0 });
    request.set_timeout(TRANSFER_DEADLINE);
    let mut chunks = client.download_blob(request).await?.into_inner();
    let mut writing = node.blobs.write().await;
    while let Some(chunk) = chunks.message().await? {
        if !writing.push(chunk.data).await {
            break;
        }
    }
    writing.finish(Some(digest.clone())).await.map_err(|e| blob_fault(&e))?;
    tracing::info!(sha256 = %digest, from = endpoint, "pulled a blob");
    Ok(())
}

async fn push(node: &Node, endpoint: &str, digest: &Digest) -> Result<(), Fault> {
    let file = node.blobs.read(digest, 0).await.map_err(|e| blob_fault(&e))?;
    // A file that cannot be read ends the stream early; the receiver then stores it under another hash, which is
    // noticed below and collected there.
    let chunks = futures_util::StreamExt::filter_map(chunks(file), |chunk| async { chunk.ok() });
    let mut request = Request::new(chunks);
    request.set_timeout(TRANSFER_DEADLINE);
    let stored = fleet(node.peers.channel(endpoint)?).upload_blob(request).await?.into_inner();
    if stored.sha256 == digest.as_str() {
        return Ok(());
    }
    Err(Fault::new(ErrorCode::Internal, format!("{endpoint} received other bytes than were sent")))
}

/// Until the controller stops: fetches what images name and this controller lacks, drops what none names.
pub(crate) async fn keep_blobs(node: Arc<Node>) {
    let mut rounds = tokio::time::interval(PULL_EVERY);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = rounds.tick() => keep_once(&node).await,
            () = node.closing.cancelled() => return,
        }
    }
}

async fn keep_once(node: &Node) {
    let view = node.replica.read();
    let named: BTreeSet<Digest> = view.images().filter_map(|image| image.spec.sha256.parse().ok()).collect();
    drop(view);
    for digest in &named {
        if !matches!(node.blobs.stat(digest), Ok(None)) {
            continue;
        }
        for controller in node.controllers() {
            if controller.id == node.config.id || size_at(node, &controller, digest).await.is_none() {
                continue;
            }
            match pull(node, &controller.endpoint, digest).await {
                Ok(()) => break,
                Err(fault) => {
                    tracing::warn!(sha256 = %digest, controller = %controller.id, fault = fault.message, "could not pull a blob");
                }
            }
        }
    }
    let grace = if node.room.is_short() { UNNAMED_GRACE_SHORT } else { UNNAMED_GRACE };
    match node.blobs.collect(&named, grace) {
        Ok(gone) => {
            for digest in gone {
                tracing::info!(sha256 = %digest, "dropped an unnamed blob");
            }
        }
        Err(error) => tracing::warn!(%error, "could not drop unnamed blobs"),
    }
}

fn info(blob: &Blob) -> v1::BlobInfo {
    v1::BlobInfo { sha256: blob.digest.to_string(), size_bytes: blob.size_bytes, present: true }
}

fn blob_fault(error: &BlobError) -> Fault {
    let code = match error {
        BlobError::DiskFull { .. } => ErrorCode::NoCapacity,
        BlobError::TooLarge { .. } | BlobError::Empty | BlobError::Mismatch { .. } => {
            ErrorCode::InvalidArgument
        }
        BlobError::Absent(_) => ErrorCode::NotFound,
        BlobError::Io { .. } => ErrorCode::Internal,
    };
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    Fault::new(code, format!("{error}{cause}"))
}
