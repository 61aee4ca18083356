//! An image: bytes named by their hash, from which disks, kernels and initrds are made.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ImageId, Invalid, Resource};

/// One imported image.
pub type Image = Resource<ImageId, ImageSpec, ImageStatus>;

/// Largest image the fleet takes, bytes: 2 TiB, far beyond any sensible template.
pub const IMAGE_BYTES_MAX: u64 = 2 << 40;

/// What the image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// How to read it.
    pub format: ImageFormat,
    /// SHA-256 of the bytes, 64 lower-case hex digits.
    pub sha256: String,
    /// Length, bytes.
    pub size_bytes: u64,
    /// Where it came from, for people.
    #[serde(default)]
    pub source: String,
}

impl ImageSpec {
    /// Refuses a digest that is none, and sizes out of range.
    pub fn validate(&self) -> Result<(), Invalid> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if self.sha256.len() != 64 || !self.sha256.chars().all(hex) {
            return Err(Invalid::new(
                "spec.sha256",
                format!("{:?} is no SHA-256", self.sha256),
                "64 lower-case hex digits",
            ));
        }
        crate::invalid::in_range("spec.size_bytes", self.size_bytes, 1..=IMAGE_BYTES_MAX)
    }
}

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// A disk, byte for byte; kernels and initrds too.
    Raw,
    /// A QEMU copy-on-write disk.
    Qcow2,
    /// A VMware disk.
    Vmdk,
}

impl ImageFormat {
    /// QEMU's name of the format.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

/// Nothing yet: an image exists once its bytes have reached a majority of the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageStatus {}
