//! The ways to a daemon: a unix socket, TCP, TLS, and a program behind ssh.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::ClientError;
use super::uri::{Transport, Uri};

/// Usual port of TCP.
const TCP_PORT: u16 = 16_509;
/// Usual port of TLS.
const TLS_PORT: u16 = 16_514;
/// What the daemon says inside TLS once it has accepted the client's certificate.
const TLS_WELCOME: u8 = 1;

/// Bytes both ways.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Connects.
pub(super) async fn connect(uri: &Uri) -> Result<Box<dyn Wire>, ClientError> {
    match uri.transport {
        Transport::Unix => unix(uri).await,
        Transport::Tcp => Ok(Box::new(tcp(uri, TCP_PORT).await?)),
        Transport::Tls => tls(uri).await,
        Transport::Ssh => ssh(uri),
    }
}

fn failed(place: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> ClientError {
    move |source| ClientError::Connect { place: place.to_string(), source }
}

fn unfit(
    place: impl std::fmt::Display,
    why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    failed(place)(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
}

async fn unix(uri: &Uri) -> Result<Box<dyn Wire>, ClientError> {
    let sockets = uri.sockets();
    let mut last = None;
    for socket in &sockets {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last = Some(failed(socket.display())(error)),
        }
    }
    Err(last.unwrap_or_else(|| unfit(&uri.driver, "no socket to connect to")))
}

async fn tcp(uri: &Uri, usual: u16) -> Result<TcpStream, ClientError> {
    let port = uri.port.unwrap_or(usual);
    let place = format!("{}:{port}", uri.host);
    let stream = TcpStream::connect((uri.host.as_str(), port)).await.map_err(failed(&place))?;
    // Calls are small, and every one is waited for.
    stream.set_nodelay(true).map_err(failed(place))?;
    Ok(stream)
}

async fn tls(uri: &Uri) -> Result<Box<dyn Wire>, ClientError> {
    let config = tls_config(uri)?;
    let name = ServerName::try_from(uri.host.clone()).map_err(|e| unfit(&uri.host, e))?;
    let stream = tcp(uri, TLS_PORT).await?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(failed(&uri.host))?;
    let welcome =
        stream.read_u8().await.map_err(failed(format!("{}: certificate not accepted", uri.host)))?;
    if welcome != TLS_WELCOME {
        return Err(unfit(&uri.host, "the daemon does not accept this client's certificate"));
    }
    Ok(Box::new(stream))
}

/// Files as libvirt's own client has them: one folder given by `pkipath`, or below `/etc/pki`.
fn tls_config(uri: &Uri) -> Result<ClientConfig, ClientError> {
    let file = |flat: &str, usual: &str| match uri.parameter("pkipath") {
        Some(folder) => Path::new(folder).join(flat),
        None => PathBuf::from(usual),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unfit(&uri.host, e))?;
    let trusting = if matches!(uri.parameter("no_verify"), Some(value) if value != "0") {
        versions.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else {
        let path = file("cacert.pem", "/etc/pki/CA/cacert.pem");
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&path)? {
            roots.add(certificate).map_err(|e| unfit(path.display(), e))?;
        }
        versions.with_root_certificates(roots)
    };
    let (chain, key) = (
        file("clientcert.pem", "/etc/pki/libvirt/clientcert.pem"),
        file("clientkey.pem", "/etc/pki/libvirt/private/clientkey.pem"),
    );
    if !chain.exists() {
        return Ok(trusting.with_no_client_auth());
    }
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|e| unfit(key.display(), e))?;
    trusting.with_client_auth_cert(certificates(&chain)?, secret).map_err(|e| unfit(chain.display(), e))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|e| unfit(path.display(), e))?;
    found.collect::<Result<_, _>>().map_err(|e| unfit(path.display(), e))
}

/// Somebody asked for `no_verify=1`: only the handshake's signatures are checked, not who signed.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A program's output and input as one; it ends with it.
struct Piped {
    out: ChildStdout,
    into: ChildStdin,
    _child: Child,
}

fn ssh(uri: &Uri) -> Result<Box<dyn Wire>, ClientError> {
    let mut command = Command::new("ssh");
    command.args(["-T", "-e", "none", "-o", "BatchMode=yes"]);
    if let Some(port) = uri.port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(user) = &uri.user {
        command.args(["-l", user]);
    }
    if let Some(key) = uri.parameter("keyfile") {
        command.args(["-i", key]);
    }
    if let Some(hosts) = uri.parameter("known_hosts") {
        command.arg("-o").arg(format!("UserKnownHostsFile={hosts}"));
    }
    if matches!(uri.parameter("no_verify"), Some(value) if value != "0") {
        command.args(["-o", "StrictHostKeyChecking=no"]);
    }
    command.args(["--", &uri.host, &far_command(uri)]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed("ssh"))?;
    let (Some(out), Some(into)) = (child.stdout.take(), child.stdin.take()) else {
        return Err(unfit("ssh", "its input and output are not ours"));
    };
    Ok(Box::new(Piped { out, into, _child: child }))
}

/// What runs at the other end: libvirt's own helper, which finds the socket, or netcat on the usual one.
fn far_command(uri: &Uri) -> String {
    let netcat = quoted(uri.parameter("netcat").unwrap_or("nc"));
    let socket = quoted(uri.parameter("socket").unwrap_or("/run/libvirt/libvirt-sock"));
    let helper = format!("exec virt-ssh-helper {}", quoted(&uri.name()));
    let fallback = format!("exec {netcat} -U {socket}");
    match uri.parameter("proxy") {
        Some("netcat") => fallback,
        Some("native") => helper,
        _ if uri.parameter("socket").is_some() || uri.parameter("netcat").is_some() => fallback,
        _ => format!("if command -v virt-ssh-helper >/dev/null 2>&1; then {helper}; else {fallback}; fi"),
    }
}

/// One word to any shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.out).poll_read(cx, buf)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.into).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.into).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.into).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing in a URI is a word of the far shell's.
    #[test]
    fn the_far_shell_sees_words() {
        let uri: Uri = "qemu+ssh://h/system?socket=/tmp/';reboot;'".parse().unwrap();
        assert_eq!(far_command(&uri), r"exec 'nc' -U '/tmp/'\'';reboot;'\'''");
        let uri: Uri = "qemu+ssh://h/system?x=$(reboot)".parse().unwrap();
        assert!(far_command(&uri).contains("virt-ssh-helper 'qemu:///system?x=%24%28reboot%29'; else"));
    }
}
