//! A line to a guest's console, and its answer, through `dunlin vm console`.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use crate::{Fleet, eventually};

/// Types `line` on the console of `vm` and waits until the guest has answered with `wanted`.
pub fn console(fleet: &Fleet, vm: &str, line: &str, wanted: &str, limit: Duration) -> anyhow::Result<()> {
    let mut console =
        fleet.command(&["vm", "console", vm])?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut stdin), Some(mut stdout)) = (console.stdin.take(), console.stdout.take()) else {
        anyhow::bail!("no pipes")
    };
    stdin.write_all(format!("{line}\n").as_bytes())?;
    stdin.flush()?;
    let (send, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            if send.send(String::from_utf8_lossy(&buffer[..count]).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut heard = String::new();
    let answer = eventually(&format!("{wanted} on the console of {vm}"), limit, || {
        heard.extend(lines.try_iter());
        if heard.contains(wanted) { Ok(()) } else { Err(format!("heard {} bytes", heard.len())) }
    });
    console.kill()?;
    console.wait()?;
    drop(lines);
    let _ = reader.join();
    answer
}
