//! Connections as tonic takes them: TCP with TLS to a controller, or the local socket of one.

use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::Keyring;

/// Name sent where an endpoint is an address that TLS has no name for; nobody looks at it.
const NO_NAME: &str = "controller.dunlin.invalid";
/// Port of an endpoint that names none.
const PORT: u16 = 443;

/// A connection with TLS.
pub type Stream = tokio_rustls::client::TlsStream<TcpStream>;

type Connecting<T> = Pin<Box<dyn Future<Output = io::Result<TokioIo<T>>> + Send>>;

/// Dials controllers.
#[derive(Clone, Debug)]
pub struct Dialer {
    keyring: Arc<Keyring>,
}

impl Dialer {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Self {
        Self { keyring }
    }

    /// Connects to `host:port`.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Stream> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .or_else(|_| ServerName::try_from(NO_NAME))
            .map_err(io::Error::other)?;
        let stream = TcpStream::connect((bare, port)).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(self.keyring.caller());
        connector.connect(name, stream).await.map_err(clearer)
    }
}

/// Whoever listens there is of another cluster, or of none. The source of the [`io::Error`] of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what listens there is no controller of this cluster: its certificate is of another authority")]
pub struct NotOurs;

/// What TLS says when the other side does not speak it helps nobody.
fn clearer(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => io::Error::other("what listens there does not speak TLS"),
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            io::Error::other(NotOurs)
        }
        Some(rustls::Error::InvalidCertificate(refused)) => {
            io::Error::other(format!("what listens there is no controller of this cluster: {refused}"))
        }
        _ => error,
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let host = uri.host().ok_or_else(|| io::Error::other("the endpoint names no host"))?;
            Ok(TokioIo::new(dialer.connect(host, uri.port_u16().unwrap_or(PORT)).await?))
        })
    }
}

/// Dials the local socket of one controller.
#[derive(Clone, Debug)]
pub struct UnixDialer {
    path: PathBuf,
}

impl UnixDialer {
    /// The socket at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Service<Uri> for UnixDialer {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Connecting<UnixStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move { Ok(TokioIo::new(connect_unix(&path).await?)) })
    }
}

/// A socket's address holds 107 bytes, and folders are longer: it is reached through its open folder.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path).await;
    };
    let folder = std::fs::File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    let near = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    UnixStream::connect(near).await
}
