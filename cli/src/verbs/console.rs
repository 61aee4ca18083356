//! A VM's serial console, and the log of it.

use std::io::IsTerminal;

use dunlin_proto::{Fault, v1};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use v1::ConsoleMode;

use super::Session;
use crate::failure::Failure;
use crate::output;

/// Leaves the console: Ctrl-], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// Messages on their way to the guest: typing is slow, a paste is short.
const CHUNKS_IN_FLIGHT: usize = 16;
/// Bytes per message.
const CHUNK_BYTES: usize = 4 << 10;

/// Connects the terminal to the guest until Ctrl-], or until either side ends.
pub(crate) async fn interactive(session: &Session, vm: String) -> Result<(), Failure> {
    let (send, mut stream) = open(session, vm, ConsoleMode::Interactive).await?;
    let terminal = RawTerminal::enter()?;
    if terminal.is_some() {
        output::remark("connected; leave with Ctrl-]\r");
    }
    let typed = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = stdin.read(&mut buffer).await.map_err(Failure::io("reading the terminal"))?;
            let escape = buffer[..count].iter().position(|byte| *byte == ESCAPE && terminal.is_some());
            let data = buffer[..escape.unwrap_or(count)].to_vec();
            if count > 0 && send.send(v1::ConsoleChunk { open: None, data }).await.is_err() {
                return Ok(true);
            }
            if escape.is_some() {
                return Ok(true);
            }
            if count == 0 {
                // The end of a pipe: what was piped in is sent, the answers are still to come.
                return Ok(false);
            }
        }
    };
    let shown = show(&mut stream);
    tokio::pin!(typed, shown);
    let left: Result<bool, Failure> = tokio::select! {
        left = &mut typed => left,
        end = &mut shown => return end,
    };
    if left? { Ok(()) } else { shown.await }
}

/// Prints the kept log, and with `follow` what comes after it.
pub(crate) async fn log(session: &Session, vm: String, follow: bool) -> Result<(), Failure> {
    let mode = if follow { ConsoleMode::LogFollow } else { ConsoleMode::Log };
    let (_send, mut stream) = open(session, vm, mode).await?;
    show(&mut stream).await
}

type Opened = (mpsc::Sender<v1::ConsoleChunk>, tonic::Streaming<v1::ConsoleChunk>);

async fn open(session: &Session, vm: String, mode: ConsoleMode) -> Result<Opened, Failure> {
    let first = v1::ConsoleOpen { vm, mode: mode.into() };
    let mut sender = None;
    let slot = std::sync::Mutex::new(&mut sender);
    let call = async |mut client: v1::fleet_client::FleetClient<tonic::transport::Channel>| {
        let (send, receive) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let opening = v1::ConsoleChunk { open: Some(first.clone()), data: Vec::new() };
        // The channel is empty and its receiver alive, so there is room.
        let _ = send.try_send(opening);
        if let Ok(mut slot) = slot.lock() {
            **slot = Some(send);
        }
        client.console(ReceiverStream::new(receive)).await
    };
    let stream = session.fleet.call(call).await?;
    let send = sender.ok_or_else(|| Failure::Local("the console closed at once".into()))?;
    Ok((send, stream))
}

async fn show(stream: &mut tonic::Streaming<v1::ConsoleChunk>) -> Result<(), Failure> {
    let mut stdout = tokio::io::stdout();
    while let Some(chunk) = stream.message().await.map_err(|status| Fault::from_status(&status))? {
        let write = async {
            stdout.write_all(&chunk.data).await?;
            stdout.flush().await
        };
        match write.await {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(Failure::io("writing to standard output"))?,
        }
    }
    Ok(())
}

/// The terminal without echo, line editing and signals; as it was when dropped.
#[derive(Debug)]
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// None when standard input is no terminal.
    fn enter() -> Result<Option<Self>, Failure> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed =
            |e: rustix::io::Errno| Failure::Io { what: "setting up the terminal".into(), source: e.into() };
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
