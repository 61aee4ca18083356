//! Where the trace files are: outside the repository, because of their size and their licences.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// Names the folder of the traces; `../shared/data` beside the clone when it is not set.
const FOLDER: &str = "DUNLIN_TRACES";

/// The bytes of a file, unpacked when it ends in `.gz`. None, and a line that says so, when it is not there.
pub(crate) fn read(path: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os(FOLDER).map_or(beside, PathBuf::from);
    let file = folder.join(path);
    if !file.exists() {
        println!("left out: no {}; {FOLDER} names the folder of the traces", file.display());
        return Ok(None);
    }
    if file.extension().is_none_or(|extension| extension != "gz") {
        return Ok(Some(std::fs::read(&file).with_context(|| format!("read {}", file.display()))?));
    }
    let unpacked = Command::new("gzip").arg("-dc").arg(&file).output().context("run gzip")?;
    if !unpacked.status.success() {
        bail!("gzip -dc {}: {}", file.display(), String::from_utf8_lossy(&unpacked.stderr));
    }
    Ok(Some(unpacked.stdout))
}
