//! The bytes of images, each stored once under the SHA-256 of its content.
//!
//! Owns `<data>/blobs/`. Refuses to know what an image is, who asks, and how bytes cross the network.
//!
//! ```text
//!  write -> blobs/tmp-RANDOM --hash, fsync, rename--> blobs/SHA256 --unwanted for the grace--> gone
//! ```
//! What lies under a digest is whole and has that digest: a file only gets the name once both are certain. Leftovers
//! of a crash are `tmp-` files, removed when the store opens.

mod store;
mod writing;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use dunlin_model::Invalid;

pub(crate) use store::BlobStore;
pub(crate) use writing::Writing;

/// SHA-256 of a blob: 64 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.len() == 64 && text.chars().all(hex) {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid::new("sha256", format!("{text:?} is no SHA-256"), "64 lower-case hex digits"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
}

/// Why bytes could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("no room for it on the disk of {}: nothing was stored", dir.display())]
    DiskFull { dir: PathBuf },
    #[error("it is longer than {limit} bytes, the most an image may have")]
    TooLarge { limit: u64 },
    #[error("the bytes have SHA-256 {found}, not {wanted}: nothing was stored")]
    Mismatch { wanted: Digest, found: Digest },
    #[error("there are no bytes")]
    Empty,
    #[error("this controller does not have {0}")]
    Absent(Digest),
    #[error("{act} {}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl BlobError {
    fn io(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { dir: path.parent().unwrap_or(&path).to_owned() }
            }
            _ => Self::Io { act, path, source },
        }
    }
}
