//! Real libvirtds on this machine, each in mount, network and host name spaces of its own: hosts of their own to libvirt.
//! Nothing of them is left when a test ends.

mod adoption;
mod away;
mod conforms;
mod daemon;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder with the guest's kernel, made when it is not there.
fn guest_files() -> &'static Path {
    static FILES: OnceLock<PathBuf> = OnceLock::new();
    FILES.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let status = std::process::Command::new(root.join("tests/guest/build")).status();
        assert!(status.expect("tests/guest/build runs").success(), "tests/guest/build makes the guest");
        root.join("target/guest")
    })
}
