//! The QEMU Machine Protocol: one JSON object a line, over the monitor's unix socket.
//!
//! Owns framing, the match of replies to commands by id, deadlines, and the passing of file descriptors. Knows no
//! command by name except the handshake. Source: docs/interop/qmp-spec.rst of QEMU.
//!
//! One task owns the socket. [`Qmp`] is a handle to it that may be cloned; events go to a broadcast channel whose
//! receiver learns when it lagged, and then looks at the guest instead of guessing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Longest line taken. The largest answer in use, the CPU models, has under 200 KiB; a line beyond this is no QEMU.
pub(super) const LINE_BYTES_MAX: usize = 4 << 20;
/// Events kept for a slow receiver. A migration makes about ten; beyond this the receiver looks afresh.
const EVENTS_MAX: usize = 1024;
/// Commands waiting to be written. The owner of a guest sends one at a time.
const COMMANDS_MAX: usize = 16;
/// Bytes taken from the socket at once.
const READ_BYTES: usize = 16 << 10;

/// What went wrong between us and the monitor.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum QmpError {
    /// QEMU answered with an error; these are its words.
    #[error("{desc}")]
    Refused {
        /// `GenericError`, `CommandNotFound` and few others.
        class: String,
        /// For people.
        desc: String,
    },
    /// No answer in time. The command may still be carried out.
    #[error("no answer to {command} within {ms} ms")]
    Deadline {
        /// What was asked.
        command: String,
        /// How long we waited.
        ms: u128,
    },
    /// The socket is closed: the process is gone, or never was.
    #[error("the monitor is closed: {0}")]
    Closed(String),
    /// What came is no QMP.
    #[error("not QMP: {0}")]
    Malformed(String),
}

/// News from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// `STOP`, `MIGRATION`, ...
    pub(super) name: String,
    /// Null where the event has none.
    pub(super) data: Value,
    /// QEMU's clock, ms since 1970.
    pub(super) at_ms: u64,
}

/// A line from QEMU, understood.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The first line; the version as QEMU tells it.
    Greeting(Value),
    /// An answer. The id is missing when QEMU could not parse what it answers.
    Reply(Option<u64>, Result<Value, QmpError>),
    /// News.
    Event(Event),
}

/// Understands one line.
pub(super) fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let malformed = |why: &dyn std::fmt::Display| {
        let start = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        QmpError::Malformed(format!("{why} in {start:?}"))
    };
    let mut value: Value = serde_json::from_slice(line).map_err(|e| malformed(&e))?;
    let Some(object) = value.as_object_mut() else { return Err(malformed(&"no object")) };
    if let Some(greeting) = object.remove("QMP") {
        return Ok(Message::Greeting(greeting));
    }
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(answer) = object.remove("return") {
        return Ok(Message::Reply(id, Ok(answer)));
    }
    if let Some(error) = object.remove("error") {
        let text = |key: &str| error[key].as_str().unwrap_or("unknown").to_owned();
        return Ok(Message::Reply(id, Err(QmpError::Refused { class: text("class"), desc: text("desc") })));
    }
    let Some(name) = object.get("event").and_then(Value::as_str).map(str::to_owned) else {
        return Err(malformed(&"neither greeting, answer nor event"));
    };
    let stamp = &object.get("timestamp").cloned().unwrap_or_default();
    let part = |key: &str| stamp[key].as_u64().unwrap_or(0);
    let at_ms = part("seconds").saturating_mul(1000).saturating_add(part("microseconds") / 1000);
    let data = object.remove("data").unwrap_or(Value::Null);
    Ok(Message::Event(Event { name, data, at_ms }))
}

/// Cuts a stream of bytes into lines, none longer than [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Bytes already searched for a newline, so that a long line is searched once.
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its end; empty lines are skipped.
    pub(super) fn next_line(&mut self) -> Result<Option<Vec<u8>>, QmpError> {
        loop {
            let Some(at) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                if self.searched > LINE_BYTES_MAX {
                    return Err(QmpError::Malformed(format!("a line of over {LINE_BYTES_MAX} bytes")));
                }
                return Ok(None);
            };
            let end = self.searched + at;
            let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
            self.searched = 0;
            line.truncate(line.trim_ascii_end().len());
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

struct Command {
    line: Vec<u8>,
    id: u64,
    fd: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// A handle to one monitor. The connection closes with the last handle.
#[derive(Clone, Debug)]
pub(super) struct Qmp {
    commands: mpsc::Sender<Command>,
    ids: Arc<std::sync::atomic::AtomicU64>,
    /// QEMU's version as its greeting has it.
    pub(super) greeting: Arc<Value>,
}

impl Qmp {
    /// Connects to a monitor's socket and shakes hands.
    pub(super) async fn connect(
        path: &Path,
        deadline: Instant,
    ) -> Result<(Self, broadcast::Receiver<Event>), QmpError> {
        let closed = |e: io::Error| QmpError::Closed(e.to_string());
        let stream = timeout_at(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| late("connect", Duration::ZERO))?
            .map_err(closed)?;
        Self::over(stream, deadline).await
    }

    /// Shakes hands over a connected socket.
    pub(super) async fn over(
        stream: UnixStream,
        deadline: Instant,
    ) -> Result<(Self, broadcast::Receiver<Event>), QmpError> {
        let begun = Instant::now();
        let (events, news) = broadcast::channel(EVENTS_MAX);
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let mut wire = Wire { stream, lines: Lines::default(), pending: BTreeMap::new(), events };
        let greeting = timeout_at(deadline, wire.greeting())
            .await
            .map_err(|_| late("the connection", deadline.saturating_duration_since(begun)))??;
        tokio::spawn(wire.run(asked));
        let qmp = Self { commands, ids: Arc::default(), greeting: Arc::new(greeting) };
        let left = deadline.saturating_duration_since(Instant::now());
        qmp.run_within("qmp_capabilities", json!({}), None, left).await?;
        Ok((qmp, news))
    }

    /// Runs a command that answers at once when QEMU is well.
    pub(super) async fn run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run_within(command, arguments, None, super::COMMAND_DEADLINE).await
    }

    /// Hands a file descriptor to QEMU under a name that one later command may use.
    pub(super) async fn give(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.run_within("getfd", arguments, Some(fd), super::COMMAND_DEADLINE).await.map(drop)
    }

    async fn run_within(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.ids.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut line =
            json!({ "execute": command, "arguments": arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + limit;
        let gone = || QmpError::Closed("the connection ended".to_owned());
        timeout_at(deadline, async {
            self.commands.send(Command { line, id, fd, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        })
        .await
        .map_err(|_| late(command, limit))?
    }
}

fn late(command: &str, limit: Duration) -> QmpError {
    QmpError::Deadline { command: command.to_owned(), ms: limit.as_millis() }
}

/// The task's side: the socket and who waits for what.
struct Wire {
    stream: UnixStream,
    lines: Lines,
    pending: BTreeMap<u64, oneshot::Sender<Result<Value, QmpError>>>,
    events: broadcast::Sender<Event>,
}

impl Wire {
    async fn greeting(&mut self) -> Result<Value, QmpError> {
        match parse(&self.line().await?)? {
            Message::Greeting(greeting) => Ok(greeting["version"].clone()),
            other => Err(QmpError::Malformed(format!("{other:?} where a greeting was due"))),
        }
    }

    /// The next line. May be dropped at any await: what was read stays in `lines`.
    async fn line(&mut self) -> Result<Vec<u8>, QmpError> {
        let closed = |e: io::Error| QmpError::Closed(e.to_string());
        let mut bytes = [0; READ_BYTES];
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(line);
            }
            self.stream.readable().await.map_err(closed)?;
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(QmpError::Closed("end of stream".to_owned())),
                Ok(count) => self.lines.push(&bytes[..count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(closed(e)),
            }
        }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Command>) {
        let why = loop {
            tokio::select! {
                line = self.line() => match line.and_then(|line| parse(&line)) {
                    Ok(message) => self.take(message),
                    Err(e) => break e,
                },
                command = asked.recv() => {
                    let Some(command) = command else { return };
                    let written = self.write(&command.line, command.fd).await;
                    self.pending.insert(command.id, command.reply);
                    if let Err(e) = written {
                        break QmpError::Closed(e.to_string());
                    }
                }
            }
        };
        if matches!(why, QmpError::Malformed(_)) {
            tracing::warn!(%why, "closing a QEMU monitor");
        }
        // Nobody is left waiting; the events channel closes with this task, which tells the guest's owner.
        for waiting in std::mem::take(&mut self.pending).into_values() {
            let _ = waiting.send(Err(why.clone()));
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            // No receiver: only the probe, which wants no news.
            Message::Event(event) => drop(self.events.send(event)),
            Message::Reply(Some(id), result) => {
                if let Some(waiting) = self.pending.remove(&id) {
                    // The one who asked has given up at its deadline.
                    let _ = waiting.send(result);
                }
            }
            Message::Reply(None, result) => tracing::warn!(?result, "QEMU answers nobody's command"),
            Message::Greeting(_) => tracing::warn!("QEMU greets a second time"),
        }
    }

    /// Writes all of `bytes`; the descriptor goes with the first of them.
    async fn write(&self, bytes: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            self.stream.writable().await?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let fds = [fd.as_ref().filter(|_| at == 0).map(AsFd::as_fd)];
                let fds: Vec<_> = fds.into_iter().flatten().collect();
                if !fds.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(&fds));
                }
                let data = [io::IoSlice::new(&bytes[at..])];
                let sent = rustix::net::sendmsg(&self.stream, &data, &mut control, SendFlags::NOSIGNAL)?;
                Ok(sent)
            });
            match sent {
                Ok(count) => at += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
