//! The task that owns a connection: it alone reads and writes, and knows which answer belongs to which question.
//!
//! ```text
//! asks (at most CALLS_MAX unanswered) --\                            /--> the asker, by serial
//! what is poured into streams -----------+--> socket --> frames ----+---> streams, by serial
//! ping, when nothing was heard ---------/                            \--> events, to all
//! ```
//! A stream has no flow control but the socket's own: when nobody takes its bytes, nothing else of this connection is read
//! either. Streams therefore get a connection of their own ([`super::Client::stream`]).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::ClientError;
use super::transport::Wire;
use crate::libvirt::wire::events::Event;
use crate::libvirt::wire::frame::{
    Frames, PING, PONG, PROGRAM_KEEPALIVE, PROGRAM_REMOTE, STREAM_BYTES_MAX, VERSION,
};
use crate::libvirt::wire::{Fault, Frame, Head, Kind, Status, xdr};

/// Unanswered calls on one connection: beyond this libvirtd stops reading from it (its `max_client_requests`).
const CALLS_MAX: usize = 5;
/// When nothing was heard for so long, the daemon is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(5);
/// So many unanswered pings are a dead connection: half a minute, as libvirt's own client takes it.
const PINGS_MAX: u32 = 5;
/// Bytes waiting to be written before no more is taken on. Two frames of a stream.
const OUT_BYTES_MAX: usize = 512 << 10;

/// A question.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) procedure: i32,
    pub(super) body: Vec<u8>,
    pub(super) reply: oneshot::Sender<Result<Answer, ClientError>>,
    /// Where the stream's bytes go, when the procedure opens one.
    pub(super) stream: Option<mpsc::Sender<Vec<u8>>>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) serial: u32,
    pub(super) body: Vec<u8>,
}

/// What else the task is told.
#[derive(Debug)]
pub(super) enum Pour {
    /// The daemon understands keepalive.
    KeepAlive,
    /// Bytes for a stream.
    Bytes { serial: u32, procedure: i32, bytes: Vec<u8> },
    /// The stream is not wanted any more.
    Abort { serial: u32, procedure: i32 },
}

struct Waiting {
    procedure: i32,
    reply: oneshot::Sender<Result<Answer, ClientError>>,
    stream: Option<mpsc::Sender<Vec<u8>>>,
}

struct Connection {
    out: Vec<u8>,
    serial: u32,
    waiting: BTreeMap<u32, Waiting>,
    streams: BTreeMap<u32, mpsc::Sender<Vec<u8>>>,
    events: broadcast::Sender<Event>,
    keep_alive: bool,
    heard: Instant,
    pings: u32,
}

/// Serves the connection until either end goes away. Everybody who waits is told why.
pub(super) async fn serve(
    wire: Box<dyn Wire>,
    mut asks: mpsc::Receiver<Ask>,
    mut pours: mpsc::Receiver<Pour>,
    events: broadcast::Sender<Event>,
) {
    let (from, mut to) = tokio::io::split(wire);
    let mut frames = Frames::new(from);
    let mut connection = Connection {
        out: Vec::new(),
        serial: 0,
        waiting: BTreeMap::new(),
        streams: BTreeMap::new(),
        events,
        keep_alive: false,
        heard: Instant::now(),
        pings: 0,
    };
    let why = connection.run(&mut frames, &mut to, &mut asks, &mut pours).await;
    tracing::debug!(%why, "a connection to libvirt has ended");
    for waiting in std::mem::take(&mut connection.waiting).into_values() {
        let _ = waiting.reply.send(Err(ClientError::Gone(why.clone())));
    }
    asks.close();
    while let Some(ask) = asks.recv().await {
        let _ = ask.reply.send(Err(ClientError::Gone(why.clone())));
    }
}

impl Connection {
    async fn run(
        &mut self,
        frames: &mut Frames<ReadHalf<Box<dyn Wire>>>,
        to: &mut WriteHalf<Box<dyn Wire>>,
        asks: &mut mpsc::Receiver<Ask>,
        pours: &mut mpsc::Receiver<Pour>,
    ) -> String {
        loop {
            let room = self.out.len() < OUT_BYTES_MAX;
            let ping_at = self.heard + PING_AFTER * (self.pings + 1);
            tokio::select! {
                frame = frames.next() => match frame {
                    Ok(Some(frame)) => {
                        if let Err(why) = self.hear(frame).await {
                            return why;
                        }
                    }
                    Ok(None) => return "the daemon has closed the connection".to_owned(),
                    Err(error) => return error.to_string(),
                },
                wrote = write_some(to, &self.out), if !self.out.is_empty() => match wrote {
                    Ok(count) => drop(self.out.drain(..count)),
                    Err(error) => return error.to_string(),
                },
                ask = asks.recv(), if room && self.waiting.len() < CALLS_MAX => match ask {
                    Some(ask) => self.ask(ask),
                    None => return "nobody needs it any more".to_owned(),
                },
                Some(pour) = pours.recv(), if room => self.pour(pour),
                () = sleep_until(ping_at), if self.keep_alive => {
                    if self.pings >= PINGS_MAX {
                        return format!("the daemon has not answered {PINGS_MAX} pings");
                    }
                    self.pings += 1;
                    self.keepalive(PING);
                }
            }
        }
    }

    fn send(&mut self, head: Head, body: Vec<u8>) -> Result<(), xdr::XdrError> {
        self.out.extend(Frame { head, body }.encode()?);
        Ok(())
    }

    fn keepalive(&mut self, procedure: i32) {
        let head = Head {
            program: PROGRAM_KEEPALIVE,
            version: VERSION,
            procedure,
            kind: Kind::Message,
            serial: 0,
            status: Status::Ok,
        };
        self.send(head, Vec::new()).expect("a frame without a payload is short");
    }

    fn head(procedure: i32, kind: Kind, serial: u32, status: Status) -> Head {
        Head { program: PROGRAM_REMOTE, version: VERSION, procedure, kind, serial, status }
    }

    fn ask(&mut self, ask: Ask) {
        self.serial = self.serial.wrapping_add(1);
        let head = Self::head(ask.procedure, Kind::Call, self.serial, Status::Ok);
        let Ask { procedure, body, reply, stream } = ask;
        match self.send(head, body) {
            Ok(()) => drop(self.waiting.insert(self.serial, Waiting { procedure, reply, stream })),
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    fn pour(&mut self, pour: Pour) {
        let sent = match pour {
            Pour::KeepAlive => {
                self.keep_alive = true;
                self.heard = Instant::now();
                Ok(())
            }
            Pour::Bytes { serial, procedure, bytes } => {
                bytes.chunks(STREAM_BYTES_MAX).try_for_each(|bytes| {
                    let head = Self::head(procedure, Kind::Stream, serial, Status::Continue);
                    self.send(head, bytes.to_vec())
                })
            }
            Pour::Abort { serial, procedure } => {
                self.streams.remove(&serial);
                self.send(Self::head(procedure, Kind::Stream, serial, Status::Error), Vec::new())
            }
        };
        sent.expect("pieces of a stream are short");
    }

    /// Takes in a frame. An error ends the connection.
    async fn hear(&mut self, frame: Frame) -> Result<(), String> {
        (self.heard, self.pings) = (Instant::now(), 0);
        let Head { program, procedure, kind, serial, status, .. } = frame.head;
        match (program, kind) {
            (PROGRAM_KEEPALIVE, Kind::Message) => {
                if procedure == PING {
                    self.keepalive(PONG);
                }
            }
            (PROGRAM_REMOTE, Kind::Message) => match Event::decode(procedure, &frame.body) {
                // Nobody listening is no error.
                Ok(Some(event)) => drop(self.events.send(event)),
                Ok(None) => {}
                Err(error) => tracing::warn!(procedure, %error, "an event of libvirt is not understood"),
            },
            (PROGRAM_REMOTE, Kind::Reply) => self.answer(serial, procedure, status, frame.body)?,
            (PROGRAM_REMOTE, Kind::Stream) => self.stream(serial, procedure, status, frame.body).await,
            _ => {
                return Err(format!(
                    "the daemon sends what was not asked for: program {program:#x}, {kind:?}"
                ));
            }
        }
        Ok(())
    }

    fn answer(&mut self, serial: u32, procedure: i32, status: Status, body: Vec<u8>) -> Result<(), String> {
        let Some(waiting) = self.waiting.remove(&serial).filter(|waiting| waiting.procedure == procedure)
        else {
            return Err(format!(
                "the daemon answers what was not asked: procedure {procedure}, serial {serial}"
            ));
        };
        let answer = match status {
            Status::Ok => {
                if let Some(stream) = waiting.stream {
                    self.streams.insert(serial, stream);
                }
                Ok(Answer { serial, body })
            }
            _ => Err(xdr::decode::<Fault>(&body).map_or_else(ClientError::from, ClientError::from)),
        };
        // Whoever gave up waiting does not want to know.
        let _ = waiting.reply.send(answer);
        Ok(())
    }

    async fn stream(&mut self, serial: u32, procedure: i32, status: Status, body: Vec<u8>) {
        // After an abort some bytes may still come.
        let Some(stream) = self.streams.get(&serial) else { return };
        if status == Status::Continue && !body.is_empty() {
            if stream.send(body).await.is_err() {
                self.pour(Pour::Abort { serial, procedure });
            }
            return;
        }
        // Its end, well or not, is told by closing; the end of a well one is acknowledged.
        self.streams.remove(&serial);
        if status != Status::Error {
            let head = Self::head(procedure, Kind::Stream, serial, Status::Ok);
            self.send(head, Vec::new()).expect("a frame without a payload is short");
        }
    }
}

async fn write_some(to: &mut WriteHalf<Box<dyn Wire>>, bytes: &[u8]) -> std::io::Result<usize> {
    let count = to.write(bytes).await?;
    to.flush().await?;
    Ok(count)
}
