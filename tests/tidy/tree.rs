//! The files of the clone, as git sees them: tracked ones, and new ones that are not ignored.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A text file; `path` is relative to the root of the clone, with `/`.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the crate sits in the clone")
}

pub(crate) fn files() -> Vec<File> {
    let root = root();
    // In a container the clone may belong to another user than the one who tests, and git then refuses to read it.
    let listing = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .expect("git runs");
    assert!(listing.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listing.stderr));
    let names = String::from_utf8(listing.stdout).expect("paths are UTF-8");
    let files: Vec<File> = names.split_terminator('\0').filter_map(|path| read(&root, path)).collect();
    // An empty or foreign listing would make every rule pass.
    assert!(files.iter().any(|file| file.path == "tests/tidy/tree.rs"), "git lists another tree");
    files
}

/// `None` for what is no text, and for a tracked file that is deleted in the working tree.
fn read(root: &Path, path: &str) -> Option<File> {
    let bytes = std::fs::read(root.join(path)).ok()?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
    Some(File { path: path.to_owned(), text })
}
