//! The guest's serial console: a unix socket that greets and echoes lines, and the file with all that was said.
//!
//! The socket is opened when somebody first asks for it, so that an idle guest costs neither a task nor a descriptor.
//! A line may be a command to the guest: `poweroff`, `crash`, `status`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;

use dunlin_model::VmId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::table::{Host, now_ms};
use super::{Injection, inject};

/// Conversations with one guest at a time; the next one waits until one of them ends.
const CLIENTS_MAX: usize = 8;
/// Longest line, bytes: what a terminal's line discipline keeps.
const LINE_MAX: usize = 4096;
/// The log stops growing here, bytes.
const LOG_MAX: u64 = 1 << 20;

/// Opens the socket if it is not open.
pub(super) fn open(host: &Arc<Host>, vm: VmId) -> io::Result<()> {
    let mut table = host.table();
    let Some(entry) = table.guests.get_mut(&vm) else { return Ok(()) };
    if entry.console.is_some() || !entry.record.live() {
        return Ok(());
    }
    let path = host.file(vm, "console");
    // Left by an earlier process; nobody answers it any more.
    let _ = std::fs::remove_file(&path);
    let listener = StdListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let _runtime = host.runtime.enter();
    let listener = UnixListener::from_std(listener)?;
    entry.console = Some(host.spawn(serve(Arc::clone(host), vm, listener)));
    Ok(())
}

/// Appends a line to the log. A full or missing disk silences the guest and nothing else.
pub(super) fn say(host: &Host, vm: VmId, line: &str) {
    let file = OpenOptions::new().create(true).append(true).open(host.file(vm, "log"));
    let written = file.and_then(|mut file| match file.metadata()?.len() {
        0..LOG_MAX => writeln!(file, "[{}] {line}", now_ms()),
        _ => Ok(()),
    });
    if let Err(error) = written {
        tracing::warn!(%vm, %error, "console log");
    }
}

async fn serve(host: Arc<Host>, vm: VmId, listener: UnixListener) {
    let mut clients = JoinSet::new();
    loop {
        if clients.len() >= CLIENTS_MAX {
            clients.join_next().await;
        }
        if let Ok((stream, _)) = listener.accept().await {
            let host = Arc::clone(&host);
            clients.spawn(async move {
                // The client went away.
                let _ = converse(&host, vm, stream).await;
            });
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn converse(host: &Arc<Host>, vm: VmId, mut stream: UnixStream) -> io::Result<()> {
    let greeting = format!("simulated guest {vm}; poweroff, crash, status, or anything to be echoed\r\n");
    stream.write_all(greeting.as_bytes()).await?;
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if !matches!(byte, b'\r' | b'\n') {
            if line.len() < LINE_MAX {
                line.push(byte);
            }
            continue;
        }
        let said = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        if said.is_empty() {
            continue;
        }
        let reply = answer(host, vm, &said);
        say(host, vm, &reply);
        stream.write_all(format!("{reply}\r\n").as_bytes()).await?;
        match said.trim() {
            // A guest that stands still hears nothing.
            "poweroff" => drop(inject(host, vm, Injection::PowerOff)),
            "crash" => drop(inject(host, vm, Injection::Panic)),
            _ => {}
        }
    }
}

fn answer(host: &Host, vm: VmId, said: &str) -> String {
    let table = host.table();
    match table.guests.get(&vm).map(|entry| &entry.record) {
        Some(record) if said.trim() == "status" => format!(
            "content {:016x} boots {} ran_ms {}",
            record.memory.content,
            record.memory.boots,
            record.ran_ms(now_ms())
        ),
        _ => said.to_owned(),
    }
}
