use dunlin_model::{ErrorCode, Kind};
use dunlin_proto::v1;

use crate::mint;
use crate::testing::{Cluster, code, eventually, key, ok};

fn image(name: &str, sha256: &str, size_bytes: u64) -> v1::CreateRequest {
    let spec = v1::ImageSpec {
        format: v1::ImageFormat::Raw.into(),
        sha256: sha256.into(),
        size_bytes,
        source: String::new(),
    };
    let metadata = v1::Metadata { name: name.into(), ..v1::Metadata::default() };
    let image = v1::Image { metadata: Some(metadata), spec: Some(spec), status: None };
    let object = Some(v1::Object { choice: Some(v1::object::Choice::Image(image)) });
    v1::CreateRequest { idempotency_key: key(), object, dry_run: false }
}

/// An image exists only once a majority holds its bytes, wherever they were uploaded; then all get them, and any gives
/// them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_held_by_a_majority_before_it_exists() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let text = "of no image that was uploaded";
    let (found, message) = code(cluster.client(1).create(image("none", &mint::sha256_hex(text), 1)).await);
    assert_eq!(found, ErrorCode::InvalidArgument);
    assert!(message.starts_with("spec.sha256: "), "{message}");

    let chunks: Vec<_> = bytes.chunks(100_000).map(|data| v1::BlobChunk { data: data.to_vec() }).collect();
    let stored = cluster.client(follower).upload_blob(tokio_stream::iter(chunks)).await.unwrap().into_inner();
    assert_eq!(stored.size_bytes, bytes.len() as u64);
    let holders = || {
        let digest = stored.sha256.parse().unwrap();
        (1..=3).filter(|id| cluster.controller(*id).node.blobs.stat(&digest).unwrap().is_some()).count()
    };
    assert_eq!(holders(), 1);
    let (found, message) = code(cluster.client(1).create(image("big", &stored.sha256, 5)).await);
    assert_eq!(found, ErrorCode::InvalidArgument);
    assert!(message.starts_with("spec.size_bytes: 5 is not the length"), "{message}");
    let created = ok(cluster.client(follower).create(image("big", &stored.sha256, stored.size_bytes)).await);
    assert_eq!(created.kind(), Kind::Image);
    assert!(holders() >= 2);
    eventually("every controller holds it", || holders() == 3).await;

    let last = (1..=3).rfind(|id| *id != follower).unwrap();
    let request = v1::DownloadBlobRequest { sha256: stored.sha256.clone(), offset: 1_000_000 };
    let mut chunks = cluster.client(last).download_blob(request).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        read.extend(chunk.data);
    }
    assert!(read == bytes[1_000_000..]);
    let beyond = v1::DownloadBlobRequest { sha256: stored.sha256, offset: 1 << 40 };
    assert_eq!(code(cluster.client(last).download_blob(beyond).await).0, ErrorCode::InvalidArgument);
    let unknown = v1::DownloadBlobRequest { sha256: mint::sha256_hex(text), offset: 0 };
    assert_eq!(code(cluster.client(last).download_blob(unknown).await).0, ErrorCode::NotFound);
}
