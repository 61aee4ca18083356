//! The one port of a controller: takes connections and lends each to the services behind it.
//!
//! Speaks HTTP/1.1 and HTTP/2 on the same port, since gRPC wants the one and browsers, webhooks and consoles the other.
//! Knows connections, their bounds and their ends; knows nothing of what is asked over them.

mod listen;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpConnectInfo;

/// How often a quiet connection is tried: a client or agent whose host lost its power must not hold its streams for ever.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// How long the answer to that may take; a busy client is not cut off for being slow.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over the head of an HTTP/1.1 request: whoever sends a byte a minute holds no connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once: a thousand agents, their consoles, and as many clients; each holds a few KiB. More wait to be taken.
const CONNECTIONS_MAX: usize = 8_192;

/// Serves until `closing`; then every connection may finish the calls it has under way, for as long as the caller lets
/// this future live.
pub(crate) async fn serve(router: Router, listener: TcpListener, closing: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some((stream, permit)) = listen::next(&listener, &room, &closing).await {
        let connection = converse(router.clone(), stream, closing.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    connections.close();
    connections.wait().await;
}

/// One connection, from its first byte to its last.
async fn converse(router: Router, stream: TcpStream, closing: CancellationToken) {
    let peer = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: stream.peer_addr().ok() };
    let router = router.layer(axum::Extension(peer));
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
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
