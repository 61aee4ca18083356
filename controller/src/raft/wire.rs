//! How controllers speak to one another: TLS, both sides with the certificate of a controller.
//!
//! A handshake runs in a task of its own, so that a caller who says nothing keeps nobody waiting, and nobody but a
//! controller gets past it: whoever else calls is refused by the alert that fits, before a byte of a message is read.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use dunlin_model::Identity;
use dunlin_pki::{CertificateDer, Judge, Keyring, Refusal, Verified, acceptor};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

/// How long a caller may take over its handshake: a hundred round trips of a LAN under load.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Rest after the system refused a connection, most likely for want of file descriptors.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// Handshakes that are done and wait to be served. The server takes them at once.
const DONE_MAX: usize = 16;

/// Returns when who was let in is to be put out.
type Out = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Refuses who was revoked.
type Admits = dyn Fn(&Verified) -> Result<(), Refusal> + Send + Sync;

/// Whom to believe, and as whom to speak.
#[derive(Clone)]
pub struct Wire {
    /// What is shown and trusted.
    pub keyring: Arc<Keyring>,
    /// Refuses who was revoked.
    pub admits: Arc<Admits>,
    /// Waits until a caller who was let in is revoked.
    pub revoked: Arc<dyn Fn(Verified) -> Out + Send + Sync>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<Verified, Refusal> {
        let verified = self.keyring.judge(chain)?;
        (self.admits)(&verified)?;
        match verified.identity {
            Identity::Controller(_) => Ok(verified),
            is => Err(Refusal::Other { is, expected: "a controller".to_owned() }),
        }
    }

    async fn shake(&self, stream: TcpStream) -> io::Result<Line> {
        let judge: Judge = {
            let wire = self.clone();
            Arc::new(move |chain| wire.judge(chain))
        };
        let config = acceptor(&self.keyring.ring(), Some(judge)).map_err(io::Error::other)?;
        let handle = rustix::io::dup(&stream)?;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let verified = self.judge(chain).map_err(io::Error::other)?;
        let Identity::Controller(proved) = verified.identity else {
            return Err(io::Error::other("the judge lets only controllers in"));
        };
        let revoked = (self.revoked)(verified);
        let cut = AbortOnDropHandle::new(tokio::spawn(async move {
            revoked.await;
            // It may be closed already; then there is nothing to cut.
            let _ = rustix::net::shutdown(&handle, Shutdown::Both);
        }));
        Ok(Line::Proved { stream: Box::new(stream), proved: proved.0, _cut: cut })
    }
}

/// One connection of another controller.
pub(super) enum Line {
    /// In the clear: only for tests of the core alone.
    Plain(TcpStream),
    /// With TLS.
    Proved { stream: Box<TlsStream<TcpStream>>, proved: u64, _cut: AbortOnDropHandle<()> },
}

impl Line {
    /// The controller whose certificate was shown.
    pub(super) fn proved(&self) -> Option<u64> {
        match self {
            Self::Plain(_) => None,
            Self::Proved { proved, .. } => Some(*proved),
        }
    }
}

/// Connections as they come, those that were let in.
pub(super) fn lines(listener: TcpListener, wire: Option<Wire>) -> mpsc::Receiver<io::Result<Line>> {
    let (done, lines) = mpsc::channel(DONE_MAX);
    tokio::spawn(async move {
        let complaints = Arc::new(Complaints::default());
        loop {
            let taken = tokio::select! {
                taken = listener.accept() => taken,
                () = done.closed() => return,
            };
            let (stream, from) = match taken {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::debug!(%error, "a controller's connection was not taken");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    continue;
                }
            };
            let nodelay = stream.set_nodelay(true);
            let (done, wire, complaints) = (done.clone(), wire.clone(), Arc::clone(&complaints));
            tokio::spawn(async move {
                let line = match (nodelay, wire) {
                    (Err(error), _) => Err(error),
                    (Ok(()), None) => Ok(Line::Plain(stream)),
                    (Ok(()), Some(wire)) => tokio::time::timeout(HANDSHAKE_TIMEOUT, wire.shake(stream))
                        .await
                        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                };
                match line {
                    // The server is stopping when nobody takes it.
                    Ok(line) => drop(done.send(Ok(line)).await),
                    Err(error) => complaints.tell(from, &error),
                }
            });
        }
    });
    lines
}

/// What was told last: a stranger who tries ten times a second is told of once.
#[derive(Default)]
struct Complaints(Mutex<String>);

impl Complaints {
    fn tell(&self, from: SocketAddr, error: &io::Error) {
        let text = format!("{}: {error}", from.ip());
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            tracing::warn!(from = %from.ip(), %error, "refused on the controllers' port");
            *last = text;
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Proved { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Proved { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Proved { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Proved { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Proved { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Proved { stream, .. } => stream.is_write_vectored(),
        }
    }
}
