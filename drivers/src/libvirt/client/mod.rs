//! An async client of one libvirt daemon.
//!
//! Owns a connection from the first byte to the last: the way there ([`transport`]), who one is ([`sasl`]), and a task
//! that matches answers to questions ([`actor`]). Knows the procedures by their table, and nothing of VMs.
//! A connection that is gone stays gone: whoever needs another makes one.

mod actor;
pub mod sasl;
#[cfg(test)]
mod tests;
mod transport;
pub mod uri;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use self::actor::{Answer, Ask, Pour};
pub use self::sasl::Login;
use self::sasl::{SaslError, Scram};
pub use self::uri::{Transport, Uri};
use super::wire::calls::{
    AuthList, AuthPolkit, AuthSaslInit, AuthSaslStart, AuthSaslStep, ConnectOpen, ConnectSupportsFeature,
    SaslStep,
};
use super::wire::events::Event;
use super::wire::xdr::{self, Chars, List, XdrError};
use super::wire::{Call, Fault};

/// From nothing to an open connection. libvirtd answers in milliseconds; ssh may take a few seconds.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// A call that only asks. libvirtd answers within a millisecond, unless another job holds the domain: then it gives up
/// after 30 s itself.
pub const CALL_DEADLINE: Duration = Duration::from_secs(40);
/// Calls waiting for their turn. The agent has one or two under way per VM.
const ASKS_MAX: usize = 64;
/// Events kept for a slow listener, which then asks for all states instead.
const EVENTS_MAX: usize = 1024;
/// Pieces of a stream waiting for its reader.
const PIECES_MAX: usize = 16;
/// Calls that may take minutes (a save, a migration) at one time: some must be left for the others.
const LONG_CALLS_MAX: usize = 3;
/// Steps of a SASL exchange; SCRAM takes two.
const SASL_STEPS_MAX: u32 = 8;
/// "May I send pings?"
const FEATURE_KEEPALIVE: i32 = 10;
/// Ways of saying who one is, as AUTH_LIST numbers them.
const AUTH_NONE: i32 = 0;
const AUTH_SASL: i32 = 1;
const AUTH_POLKIT: i32 = 2;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The way there is closed.
    #[error("cannot connect to {place}: {source}")]
    Connect {
        /// Where to.
        place: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The daemon says no.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// The connection has ended.
    #[error("the connection to libvirt has ended: {0}")]
    Gone(String),
    /// The answer is not one.
    #[error("libvirt's answer is not understood: {0}")]
    Wire(#[from] XdrError),
    /// No answer in time.
    #[error("libvirt has not answered {call} within {} s", .limit.as_secs())]
    Deadline {
        /// Which.
        call: &'static str,
        /// How long one waited.
        limit: Duration,
    },
    /// It does not let us in.
    #[error("libvirt does not let this client in: {0}")]
    Login(#[from] SaslError),
    /// It wants a login, and there is none, or of a kind that is not spoken here.
    #[error("libvirt wants a login: {0}")]
    NoLogin(&'static str),
}

impl From<Fault> for ClientError {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

impl ClientError {
    /// The daemon's answer, when it was one.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    /// Did the daemon say no with this code?
    #[must_use]
    pub fn is(&self, code: i32) -> bool {
        self.fault().is_some_and(|fault| fault.code == code)
    }
}

/// Result of a call.
pub type ClientResult<T> = Result<T, ClientError>;

/// The near end of a connection. Clones share it; it ends with the last one.
#[derive(Clone, Debug)]
pub struct Client {
    asks: mpsc::Sender<Ask>,
    pours: mpsc::Sender<Pour>,
    long: Arc<Semaphore>,
}

impl Client {
    /// Connects, logs in and opens. Events that are registered for come out of the receiver, which closes when the
    /// connection ends.
    ///
    /// # Errors
    /// When that is not done within 30 s, or the daemon says no.
    pub async fn open(uri: &Uri, login: Option<&Login>) -> ClientResult<(Self, broadcast::Receiver<Event>)> {
        let opened = timeout(OPEN_DEADLINE, async {
            let wire = transport::connect(uri).await?;
            let (client, events) = Self::over(wire);
            client.log_in(uri, login).await?;
            let keepalive = ConnectSupportsFeature { feature: FEATURE_KEEPALIVE };
            if client.call(&keepalive).await.is_ok_and(|yes| yes != 0) {
                let _ = client.pours.send(Pour::KeepAlive).await;
            }
            client.call(&ConnectOpen { name: Some(uri.name()), flags: 0 }).await?;
            Ok((client, events))
        });
        let late = ClientError::Deadline { call: "CONNECT_OPEN", limit: OPEN_DEADLINE };
        opened.await.unwrap_or(Err(late))
    }

    fn over(wire: Box<dyn transport::Wire>) -> (Self, broadcast::Receiver<Event>) {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (pours, poured) = mpsc::channel(PIECES_MAX);
        let (events, heard) = broadcast::channel(EVENTS_MAX);
        tokio::spawn(actor::serve(wire, asked, poured, events));
        (Self { asks, pours, long: Arc::new(Semaphore::new(LONG_CALLS_MAX)) }, heard)
    }

    async fn log_in(&self, uri: &Uri, login: Option<&Login>) -> ClientResult<()> {
        let List(ways) = self.call(&AuthList {}).await?;
        match () {
            () if ways.is_empty() || ways.contains(&AUTH_NONE) => Ok(()),
            () if ways.contains(&AUTH_SASL) => {
                let login = login.ok_or(ClientError::NoLogin("a user and a password"))?;
                self.sasl(login, uri.transport != Transport::Tcp).await
            }
            () if ways.contains(&AUTH_POLKIT) => self.call(&AuthPolkit {}).await.map(drop),
            () => Err(ClientError::NoLogin("of a kind that is not spoken here")),
        }
    }

    async fn sasl(&self, login: &Login, private: bool) -> ClientResult<()> {
        let offered = self.call(&AuthSaslInit {}).await?;
        let mechanism = sasl::choose(&offered, private)?;
        let nonce: String = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let nonce = nonce.trim();
        if nonce.is_empty() {
            return Err(SaslError::Protocol("no random nonce").into());
        }
        let mut scram = (mechanism == sasl::SCRAM).then(|| Scram::new(login, nonce));
        let first = scram.as_ref().map_or_else(|| sasl::plain(login), Scram::first);
        let start = AuthSaslStart { mechanism: mechanism.to_owned(), nil: 0, data: Chars(first) };
        let mut step: SaslStep = self.call(&start).await?;
        let mut proved = scram.is_none();
        for _ in 0..SASL_STEPS_MAX {
            let mut answer = None;
            if let Some(scram) = scram.as_mut().filter(|_| !proved) {
                answer = scram.answer(&step.data.0)?;
                proved = answer.is_none();
            }
            match (step.complete != 0, proved) {
                (true, true) => return Ok(()),
                (true, false) => return Err(SaslError::Impostor.into()),
                (false, _) => {}
            }
            let data = Chars(answer.unwrap_or_default());
            step = self.call(&AuthSaslStep { nil: 0, data }).await?;
        }
        Err(SaslError::Protocol("it does not come to an end").into())
    }

    /// Asks, and waits up to [`CALL_DEADLINE`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<C: Call>(&self, call: &C) -> ClientResult<C::Answer> {
        self.call_within(call, CALL_DEADLINE).await
    }

    /// Asks for what takes long. Few of these go on at a time; the others wait.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call_long<C: Call>(&self, call: &C, limit: Duration) -> ClientResult<C::Answer> {
        let gone = |_| ClientError::Gone("it is closed".to_owned());
        let _turn = self.long.acquire().await.map_err(gone)?;
        self.call_within(call, limit).await
    }

    async fn call_within<C: Call>(&self, call: &C, limit: Duration) -> ClientResult<C::Answer> {
        let answer = self.ask(call, None, limit).await?;
        Ok(xdr::decode(&answer.body)?)
    }

    async fn ask<C: Call>(
        &self,
        call: &C,
        stream: Option<mpsc::Sender<Vec<u8>>>,
        limit: Duration,
    ) -> ClientResult<Answer> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { procedure: C::ENTRY.number, body: xdr::encode(call)?, reply, stream };
        let gone = || ClientError::Gone("it is closed".to_owned());
        let told = timeout(limit, async {
            self.asks.send(ask).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        });
        told.await.unwrap_or(Err(ClientError::Deadline { call: C::ENTRY.name, limit }))
    }

    /// Opens a stream. Use a connection of its own: see [`actor`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stream<C: Call>(&self, call: &C) -> ClientResult<Stream> {
        let (pieces, incoming) = mpsc::channel(PIECES_MAX);
        let Answer { serial, .. } = self.ask(call, Some(pieces), CALL_DEADLINE).await?;
        Ok(Stream { client: self.clone(), serial, procedure: C::ENTRY.number, incoming })
    }

    /// Has the connection ended?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.asks.is_closed()
    }
}

/// Bytes both ways, as a console has them.
#[derive(Debug)]
pub struct Stream {
    client: Client,
    serial: u32,
    procedure: i32,
    incoming: mpsc::Receiver<Vec<u8>>,
}

impl Stream {
    /// The next bytes; none: it has ended. May be dropped at any await.
    pub async fn read(&mut self) -> Option<Vec<u8>> {
        self.incoming.recv().await
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn write(&self, bytes: Vec<u8>) -> ClientResult<()> {
        let pour = Pour::Bytes { serial: self.serial, procedure: self.procedure, bytes };
        self.client.pours.send(pour).await.map_err(|_| ClientError::Gone("it is closed".to_owned()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A connection whose queue is full ends with its last client, and the stream with it.
        let _ = self.client.pours.try_send(Pour::Abort { serial: self.serial, procedure: self.procedure });
    }
}
