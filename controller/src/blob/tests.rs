use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::{BlobError, BlobStore, Digest};
use crate::mint;

fn files(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("blobs")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A blob gets its name only when it is whole and has the wanted digest; whatever else happens leaves no file.
#[tokio::test]
async fn a_blob_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let digest: Digest = mint::sha256_hex("hello world").parse().unwrap();

    // Written in pieces, read back whole and from an offset.
    let mut writing = store.write().await;
    assert!(writing.push(b"hello ".to_vec()).await && writing.push(b"world".to_vec()).await);
    let blob = writing.finish(Some(digest.clone())).await.unwrap();
    assert_eq!((blob.digest.clone(), blob.size_bytes), (digest.clone(), 11));
    assert_eq!(store.stat(&digest).unwrap(), Some(blob));
    let mut text = String::new();
    store.read(&digest, 6).await.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "world");

    // Other bytes than promised, no bytes, and a sender that goes away.
    let mut writing = store.write().await;
    writing.push(b"hello".to_vec()).await;
    assert!(matches!(writing.finish(Some(digest.clone())).await, Err(BlobError::Mismatch { .. })));
    assert!(matches!(store.write().await.finish(None).await, Err(BlobError::Empty)));
    let mut writing = store.write().await;
    writing.push(b"half".to_vec()).await;
    crate::testing::eventually("the half is there", || files(dir.path()).len() == 2).await;
    drop(writing);
    let only = vec![digest.to_string()];
    crate::testing::eventually("the half is gone", || files(dir.path()) == only).await;

    // A crash's leftovers go when the store is opened.
    std::fs::write(dir.path().join("blobs/tmp-crashed"), "x").unwrap();
    BlobStore::open(dir.path()).unwrap();
    assert_eq!(files(dir.path()), only);
}

/// Only what no image names is collected, and only after the grace, which begins anew when somebody asks.
#[tokio::test]
async fn unnamed_blobs_go_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let mut digests = Vec::new();
    for text in ["kept", "dropped"] {
        let mut writing = store.write().await;
        writing.push(text.into()).await;
        digests.push(writing.finish(None).await.unwrap().digest);
    }
    let named = BTreeSet::from([digests[0].clone()]);
    assert_eq!(store.collect(&named, Duration::from_secs(60)).unwrap(), []);
    store.stat(&digests[1]).unwrap();
    assert_eq!(store.collect(&named, Duration::from_secs(60)).unwrap(), []);
    assert_eq!(store.collect(&named, Duration::ZERO).unwrap(), [digests[1].clone()]);
    assert_eq!(store.stat(&digests[1]).unwrap(), None);
    assert!(store.stat(&digests[0]).unwrap().is_some());
}
