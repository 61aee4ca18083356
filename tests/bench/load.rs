//! A load of gRPC calls that costs next to nothing to make: HTTP/2 by hand, one thread a connection.
//!
//! A client library costs as much per call as a good server; on a machine that the servers share it would be what is
//! measured. Speaks just enough of RFC 9113: calls of one method with one message each, answers told apart by whether
//! they hold a message (a refused call has trailers only). Header compression is used as libraries use it: said once,
//! then indexed; the servers are asked to index nothing, so that their headers need no reading.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Connections at most; the callers are spread over them.
const CONNECTIONS_MAX: usize = 8;
/// What every HTTP/2 connection may send before it is allowed more.
const FIRST_WINDOW: i64 = 65_535;
/// What we allow: nothing here waits for a window of ours.
const OUR_WINDOW: u32 = 0x7fff_ffff;
/// How long a server may be silent before the load gives up.
const SILENCE: Duration = Duration::from_secs(20);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Who is called, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `http://host:port` or `https://host:port`.
    pub(crate) endpoint: String,
    /// Who calls, where TLS is spoken.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// `/package.Service/Method`.
    pub(crate) path: &'static str,
}

/// Calls from `callers` at once, each making its next call when its last is answered, for `stretch`. `make` gives the
/// message of each call. Returns the times of those that were answered, in ms, and how long it all took.
pub(crate) fn run(
    target: &Target,
    callers: usize,
    stretch: Duration,
    make: fn() -> Vec<u8>,
) -> anyhow::Result<(Vec<f64>, Duration)> {
    let connections = callers.min(CONNECTIONS_MAX);
    let began = Instant::now();
    let threads: Vec<_> = (0..connections)
        .map(|number| {
            let target = target.clone();
            let callers = callers / connections + usize::from(number < callers % connections);
            std::thread::spawn(move || Connection::open(&target)?.drive(callers, began + stretch, make))
        })
        .collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| anyhow::anyhow!("a connection panicked"))??);
    }
    Ok((times, began.elapsed()))
}

trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

struct Connection {
    stream: Box<dyn Stream>,
    out: Vec<u8>,
    headers: Vec<u8>,
    next_stream: u32,
    window: i64,
    /// Messages that wait for the window.
    waiting: VecDeque<Vec<u8>>,
    /// When each call began, and whether it has been answered.
    open: HashMap<u32, (Instant, bool)>,
    times_ms: Vec<f64>,
}

impl Connection {
    fn open(target: &Target) -> anyhow::Result<Self> {
        let (_, authority) = target.endpoint.split_once("://").context("no scheme")?;
        let authority = authority.to_owned();
        let stream = TcpStream::connect(&authority).with_context(|| format!("connecting to {authority}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let stream: Box<dyn Stream> = match &target.tls {
            Some(config) => {
                let name = ServerName::try_from("controller.invalid")?;
                let session = ClientConnection::new(Arc::clone(config), name)?;
                Box::new(StreamOwned::new(session, stream))
            }
            None => Box::new(stream),
        };
        let mut this = Self {
            stream,
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            headers: first_headers(target.path, &authority),
            next_stream: 1,
            window: FIRST_WINDOW,
            waiting: VecDeque::new(),
            open: HashMap::new(),
            times_ms: Vec::new(),
        };
        let mut settings = Vec::new();
        for (name, value) in [(1_u16, 0_u32), (4, OUR_WINDOW)] {
            settings.extend(name.to_be_bytes());
            settings.extend(value.to_be_bytes());
        }
        this.frame(SETTINGS, 0, 0, &settings);
        this.frame(WINDOW_UPDATE, 0, 0, &(OUR_WINDOW - 65_535).to_be_bytes());
        Ok(this)
    }

    fn drive(mut self, callers: usize, until: Instant, make: fn() -> Vec<u8>) -> anyhow::Result<Vec<f64>> {
        for _ in 0..callers {
            self.waiting.push_back(make());
        }
        let mut buffer = vec![0; 256 << 10];
        let mut filled = 0;
        let mut received: u64 = 0;
        loop {
            self.send_waiting();
            if !self.out.is_empty() {
                self.stream.write_all(&self.out)?;
                self.stream.flush()?;
                self.out.clear();
            }
            if self.open.is_empty() && self.waiting.is_empty() {
                return Ok(self.times_ms);
            }
            let read = self.stream.read(&mut buffer[filled..]).context("waiting for answers")?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
            received += read as u64;
            ensure!(received < u64::from(OUR_WINDOW) - 65_535, "the stretch is too long for one window");
            let mut at = 0;
            while let Some(head) = buffer[at..filled].first_chunk::<9>() {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                ensure!(length + 9 <= buffer.len(), "a frame of {length} bytes");
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
                let Some(body) = buffer[at..filled].get(9..9 + length) else { break };
                if self.take(kind, flags, stream, body)? && Instant::now() < until {
                    self.waiting.push_back(make());
                }
                at += 9 + length;
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
        }
    }

    /// Takes one frame. True when it ended a call.
    fn take(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) -> anyhow::Result<bool> {
        match kind {
            SETTINGS if flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => self.frame(PING, ACK, 0, body),
            WINDOW_UPDATE if stream == 0 => {
                let more = body.first_chunk::<4>().context("a short WINDOW_UPDATE")?;
                self.window += i64::from(u32::from_be_bytes(*more));
            }
            DATA => {
                let call = self.open.get_mut(&stream).context("an answer to no call")?;
                call.1 |= body.len() >= 5;
            }
            GOAWAY => bail!("the server says goodbye"),
            RST_STREAM => bail!("the server cut a call off"),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            let (began, answered) = self.open.remove(&stream).context("an answer to no call")?;
            ensure!(answered, "a call was refused");
            self.times_ms.push(began.elapsed().as_secs_f64() * 1e3);
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends what the window allows.
    fn send_waiting(&mut self) {
        while let Some(message) = self.waiting.front() {
            let bytes = message.len() + 5;
            if self.window < bytes as i64 {
                return;
            }
            self.window -= bytes as i64;
            let mut body = vec![0];
            body.extend((message.len() as u32).to_be_bytes());
            body.extend(message);
            self.waiting.pop_front();
            let stream = self.next_stream;
            self.next_stream += 2;
            self.open.insert(stream, (Instant::now(), false));
            let headers = std::mem::replace(&mut self.headers, INDEXED_HEADERS.to_vec());
            self.frame(HEADERS, END_HEADERS, stream, &headers);
            for (number, part) in body.chunks(16_384).enumerate() {
                let last = (number + 1) * 16_384 >= body.len();
                self.frame(DATA, if last { END_STREAM } else { 0 }, stream, part);
            }
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) {
        self.out.extend(&(body.len() as u32).to_be_bytes()[1..]);
        self.out.extend([kind, flags]);
        self.out.extend(stream.to_be_bytes());
        self.out.extend(body);
    }
}

/// Everything `first_headers` says, by the indexes it has then (RFC 7541): method, scheme, path, authority, type, te.
const INDEXED_HEADERS: [u8; 6] = [0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe];

/// POST, http, and four headers that are to be indexed.
fn first_headers(path: &str, authority: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let mut put = |name: &[u8], value: &str| {
        block.extend(name);
        block.push(u8::try_from(value.len()).expect("paths and addresses are short"));
        block.extend(value.as_bytes());
    };
    put(&[0x44], path);
    put(&[0x41], authority);
    put(&[0x5f], "application/grpc");
    put(&[0x40, 2, b't', b'e'], "trailers");
    block
}
