//! The next connection, when there is room for one.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Rest after the system refused a connection, most likely for want of file descriptors: some may close meanwhile.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// The next connection and its place; none when it is time to close.
pub(super) async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    closing: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    closing.run_until_cancelled(taken(listener, room)).await
}

async fn taken(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = Arc::clone(room).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection keeps Nagle's delay");
                }
                return (stream, permit);
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not taken");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}
