//! Runs one of liblxc's tools on a guest.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::error::DriverErrorKind;
use crate::keep::{Fault, Place};

/// A tool answers within milliseconds; one that waits for a monitor that hangs would wait for ever.
const TOOL_DEADLINE: Duration = Duration::from_secs(20);
/// Longest piece of a tool's words that is passed on, characters.
const WORDS_MAX: usize = 1024;

/// The tool, told which container it is about.
pub(super) fn words(tool: &str, place: &Place, arguments: &[&str]) -> Vec<String> {
    let folder = place.dir.file("");
    let folder = folder.to_string_lossy();
    let container = ["-n", place.token.as_str(), "-P", folder.trim_end_matches('/')];
    std::iter::once(tool).chain(container).chain(arguments.iter().copied()).map(str::to_owned).collect()
}

/// Runs it and gives what it printed.
pub(super) async fn run(tool: &str, place: &Place, arguments: &[&str]) -> Result<String, Fault> {
    let words = words(tool, place, arguments);
    run_words(&words).await
}

/// Runs a program and gives what it printed.
pub(super) async fn run_words(words: &[String]) -> Result<String, Fault> {
    let (program, arguments) = words.split_first().ok_or_else(|| Fault::refused("no program"))?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let late = || {
        let limit_s = TOOL_DEADLINE.as_secs();
        Fault::new(DriverErrorKind::Deadline, format!("{program}: no end within {limit_s} s"))
    };
    let output = timeout(TOOL_DEADLINE, output).await.map_err(|_| late())?;
    let output = output.map_err(|e| Fault::new(DriverErrorKind::Transient, format!("{program}: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = if output.stderr.is_empty() { output.stdout } else { output.stderr };
    let said: String = String::from_utf8_lossy(&said).trim().chars().take(WORDS_MAX).collect();
    Err(Fault::refused(format!("{program}: {said} ({})", output.status)))
}
