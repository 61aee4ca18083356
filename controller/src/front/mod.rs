//! The one port of a controller: takes connections and lends each to the services behind it.
//!
//! Speaks HTTP/1.1 and HTTP/2 on the same port, since gRPC wants the one and browsers, webhooks and consoles the other; always
//! under TLS. A caller's certificate is proved by the handshake, judged once it is done, and told to every request as an
//! `Arrival`; whoever is revoked later is cut off. The local socket beside it is for who is on this machine already.
//! Knows connections, their bounds and their ends; knows nothing of what is asked over them.

mod listen;
mod local;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use dunlin_pki::Refusal;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpConnectInfo;

pub(crate) use local::{Local, LocalError};

use crate::metrics;
use crate::trust::{Arrival, Keys};

/// How often a quiet connection is tried: a client or agent whose host lost its power must not hold its streams for ever.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// How long the answer to that may take; a busy client is not cut off for being slow.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over its handshake: a thousand agents that come back at once are through in seconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over the head of an HTTP/1.1 request: whoever sends a byte a minute holds no connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what is under way may take to say that it ends, when its caller was revoked; nothing more is let in meanwhile.
const PUT_OUT_GRACE: Duration = Duration::from_millis(250);
/// Connections at once: a thousand agents, their consoles, and as many clients; each holds a few KiB. More wait to be taken.
const CONNECTIONS_MAX: usize = 8_192;

/// Serves until `closing`; then every connection may finish the calls it has under way, for as long as the caller lets
/// this future live.
pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    keys: Arc<Keys>,
    closing: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some((stream, permit)) = listen::next(&listener, &room, &closing).await {
        let connection = arrive(router.clone(), stream, Arc::clone(&keys), closing.clone());
        let held = metrics::API_CONNECTIONS.held();
        connections.spawn(async move {
            connection.await;
            drop((permit, held));
        });
    }
    connections.close();
    connections.wait().await;
}

/// One connection of the network, from its handshake to its end.
async fn arrive(router: Router, stream: TcpStream, keys: Arc<Keys>, closing: CancellationToken) {
    let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: stream.peer_addr().ok() };
    let Some(config) = keys.keyring.server() else { return };
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(from = ?info.remote_addr, %error, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    let arrival = match stream.get_ref().1.peer_certificates() {
        None => Arrival::Nobody(Refusal::Missing),
        Some(chain) => {
            // Who was revoked before is nobody, who is told so for as long as he asks; who is revoked later is cut off.
            let proved = keys.keyring.judge(chain).and_then(|peer| keys.admit(&peer).map(|()| peer));
            proved.map_or_else(Arrival::Nobody, Arrival::Proved)
        }
    };
    let router = router.layer(axum::Extension(info));
    let put_out = async {
        match &arrival {
            Arrival::Proved(peer) => keys.revoked(peer).await,
            Arrival::Nobody(_) | Arrival::Local => std::future::pending().await,
        }
    };
    converse(router.layer(axum::Extension(arrival.clone())), stream, put_out, closing).await;
}

/// What is said on one connection, until either side or the controller ends it, or its caller is put out.
async fn converse<S>(router: Router, stream: S, put_out: impl Future<Output = ()>, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let conversation = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut conversation = std::pin::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = closing.cancelled() => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
        () = put_out => {
            conversation.as_mut().graceful_shutdown();
            tokio::time::timeout(PUT_OUT_GRACE, conversation).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
