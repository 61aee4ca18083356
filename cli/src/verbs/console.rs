//! A VM's serial console, and the log of it.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use dunlin_model::ErrorCode;
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
/// From the end of a followed log to the first look where it goes on: a host that was left says so at once.
const FOLLOW_PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause between two such looks: a VM that comes back after hours should be heard within a second.
const FOLLOW_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Logs of which the place is kept: a VM that is handed back returns to the one before.
const PLACES_MAX: usize = 4;
/// Bytes per message.
const CHUNK_BYTES: usize = 4 << 10;

/// Connects the terminal to the guest until Ctrl-], or until either side ends.
pub(crate) async fn interactive(session: &Session, vm: String) -> Result<(), Failure> {
    let (send, mut stream) = open(session, vm, ConsoleMode::Interactive, &Places::default()).await?;
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
            if count > 0 && send.send(v1::ConsoleChunk { data, ..Default::default() }).await.is_err() {
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
    let mut nowhere = Places::default();
    let shown = show(&mut stream, &mut nowhere);
    tokio::pin!(typed, shown);
    let left: Result<bool, Failure> = tokio::select! {
        left = &mut typed => left,
        end = &mut shown => return end.map(drop),
    };
    if left? { Ok(()) } else { shown.await.map(drop) }
}

/// How far the logs of a VM have been read, the last one at the end. A VM that comes back to a host that still has its log
/// goes on in it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Places(VecDeque<v1::LogPlace>);

impl Places {
    fn note(&mut self, place: v1::LogPlace) {
        self.0.retain(|known| known.log != place.log);
        self.0.push_back(place);
        if self.0.len() > PLACES_MAX {
            self.0.pop_front();
        }
    }
}

/// Prints the kept log, and with `follow` what comes after it, on whatever host: each host keeps what the VM said there,
/// and begins with nothing when the VM comes.
pub(crate) async fn log(session: &Session, vm: String, follow: bool) -> Result<(), Failure> {
    let mut places = Places::default();
    if !follow {
        let (_send, mut stream) = open(session, vm, ConsoleMode::Log, &places).await?;
        return show(&mut stream, &mut places).await.map(drop);
    }
    let (mut held, mut stream) = open(session, vm.clone(), ConsoleMode::LogFollow, &places).await?;
    let mut pause = FOLLOW_PAUSE_MIN;
    loop {
        let before = places.clone();
        match show(&mut stream, &mut places).await {
            Ok(Shown::Ended) => {}
            Ok(Shown::Unwanted) => return Ok(()),
            Err(Failure::Fleet(fault)) if is_passing(&fault) => {}
            Err(failure) => return Err(failure),
        }
        drop(held);
        if places != before {
            pause = FOLLOW_PAUSE_MIN;
        }
        (held, stream) = loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FOLLOW_PAUSE_MAX);
            match open(session, vm.clone(), ConsoleMode::LogFollow, &places).await {
                Ok(opened) => break opened,
                Err(Failure::Fleet(fault)) if fault.code == ErrorCode::NotFound => {
                    output::remark(&format!("vm {vm} is gone"));
                    return Ok(());
                }
                Err(Failure::Fleet(fault)) if is_passing(&fault) => {}
                Err(failure) => return Err(failure),
            }
        };
    }
}

/// May a log that was followed be followed again soon? Its VM is on its way, or a daemon is being replaced.
fn is_passing(fault: &Fault) -> bool {
    fault.code.retryable() || fault.code == ErrorCode::WrongState
}

type Opened = (mpsc::Sender<v1::ConsoleChunk>, tonic::Streaming<v1::ConsoleChunk>);

async fn open(session: &Session, vm: String, mode: ConsoleMode, places: &Places) -> Result<Opened, Failure> {
    let first = v1::ConsoleOpen { vm, mode: mode.into(), places: places.0.iter().cloned().collect() };
    let mut sender = None;
    let slot = std::sync::Mutex::new(&mut sender);
    let call = async |mut client: v1::fleet_client::FleetClient<crate::client::Line>| {
        let (send, receive) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let opening = v1::ConsoleChunk { open: Some(first.clone()), ..Default::default() };
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

/// How a stream came to its end.
enum Shown {
    /// The far side ended it.
    Ended,
    /// Nobody reads what is printed any more.
    Unwanted,
}

/// Prints what comes, and notes how far into a log it has come.
async fn show(
    stream: &mut tonic::Streaming<v1::ConsoleChunk>,
    places: &mut Places,
) -> Result<Shown, Failure> {
    let mut stdout = tokio::io::stdout();
    while let Some(chunk) = stream.message().await.map_err(|status| Fault::from_status(&status))? {
        let write = async {
            stdout.write_all(&chunk.data).await?;
            stdout.flush().await
        };
        match write.await {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Shown::Unwanted),
            other => other.map_err(Failure::io("writing to standard output"))?,
        }
        if let Some(place) = chunk.place {
            places.note(place);
        }
    }
    Ok(Shown::Ended)
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
