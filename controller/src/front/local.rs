//! The socket in the data directory: for root, and for whoever owns the data directory. The kernel says who calls
//! (SO_PEERCRED, unix(7)), so nobody has to prove more, and the first admin needs no password.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::converse;
use crate::trust::Arrival;

/// Its name within the data directory.
const NAME: &str = "admin.sock";
/// Connections at once: a few people on one machine.
const CONNECTIONS_MAX: usize = 64;
/// Rest after the system refused a connection.
const REFUSED_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listen on {}", path.display())]
pub struct LocalError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Local {
    listener: UnixListener,
    /// Who owns the data directory.
    owner: u32,
}

impl Local {
    /// Makes it, in place of one that an earlier process left. The data directory must be this process's alone by now.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, LocalError> {
        let path = data_dir.join(NAME);
        let open = || {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            // A socket's address holds 107 bytes, and folders are longer: it is reached through its open folder.
            let folder = std::fs::File::open(data_dir)?;
            let near = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(NAME);
            let listener = UnixListener::bind(near)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(Self { listener, owner: folder.metadata()?.uid() })
        };
        open().map_err(|source| LocalError { path: path.clone(), source })
    }

    /// Serves until `closing`.
    pub(crate) async fn serve(self, router: Router, closing: CancellationToken) {
        let connections = TaskTracker::new();
        let router = router.layer(axum::Extension(Arrival::Local));
        while let Some(taken) = closing.run_until_cancelled(self.listener.accept()).await {
            match taken {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX && self.may(&stream) => {
                    let never = std::future::pending();
                    connections.spawn(converse(router.clone(), stream, never, closing.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a local connection was not taken");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    fn may(&self, stream: &UnixStream) -> bool {
        let caller = stream.peer_cred().map(|caller| caller.uid());
        let may = caller.as_ref().is_ok_and(|uid| admitted(*uid, self.owner));
        if !may {
            tracing::warn!(uid = ?caller.ok(), "refused on the local socket");
        }
        may
    }
}

/// Root, and who owns the data directory: both could read the authority's key from it.
const fn admitted(uid: u32, owner: u32) -> bool {
    uid == 0 || uid == owner
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root and the owner are let in, whoever else they are not.
    #[test]
    fn root_and_the_owner_are_let_in() {
        assert!(admitted(0, 1000) && admitted(1000, 1000) && admitted(0, 0));
        assert!(!admitted(1001, 1000) && !admitted(1000, 0));
    }
}
