//! The serial console as a unix socket: what connects to it is joined to a console stream of the daemon.
//!
//! A stream holds up its connection while nobody reads ([`super::client`]), so each gets one of its own. A second looker-on
//! takes the console from the first, as libvirt has only one.

use std::sync::Arc;

use dunlin_model::VmId;
use dunlin_model::capabilities::DriverPower;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::client::{Client, ClientResult};
use super::link::{Site, domain};
use super::offers::Offers;
use super::wire::calls::DomainOpenConsole;

/// Bytes carried at a time.
const CHUNK_BYTES: usize = 4 << 10;
/// Take the console from whoever has it.
const FLAG_FORCE: u32 = 1;

/// Serves the consoles of all guests that run.
pub(super) fn serve_all(site: &Arc<Site>, offers: &Offers) {
    for vm in site.guests.all() {
        serve(site, vm, offers);
    }
}

/// Serves a guest's console until it ends.
pub(super) fn serve(site: &Arc<Site>, vm: VmId, offers: &Offers) {
    if !offers.powers.contains(&DriverPower::Console) {
        return;
    }
    site.guests.serve_console(vm, || match listen(site, vm) {
        Ok(task) => Some(task),
        Err(error) => {
            tracing::warn!(%vm, %error, "its console cannot be offered");
            None
        }
    });
}

fn listen(site: &Arc<Site>, vm: VmId) -> std::io::Result<JoinHandle<()>> {
    let path = site.guests.shelf.console(vm);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    // Whatever makes a task outlive the driver keeps it from being opened anew.
    let config = site.config.clone();
    Ok(tokio::spawn(async move {
        loop {
            let Ok((looker, _)) = listener.accept().await else { return };
            let joined = async {
                let (client, _events) = Client::open(&config.uri, config.login.as_ref()).await?;
                join(&client, vm, looker).await
            };
            // One at a time: the next one waits in the socket's queue until this one has gone.
            if let Err(error) = joined.await {
                tracing::debug!(%vm, %error, "a console could not be joined");
            }
        }
    }))
}

async fn join(client: &Client, vm: VmId, looker: UnixStream) -> ClientResult<()> {
    let call = DomainOpenConsole { domain: domain(vm), device: None, flags: FLAG_FORCE };
    let mut stream = client.stream(&call).await?;
    let (mut from_looker, mut to_looker) = looker.into_split();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        tokio::select! {
            said = stream.read() => match said {
                Some(bytes) if to_looker.write_all(&bytes).await.is_ok() => {}
                _ => return Ok(()),
            },
            typed = from_looker.read(&mut buffer) => match typed {
                Ok(count) if count > 0 => stream.write(buffer[..count].to_vec()).await?,
                _ => return Ok(()),
            },
        }
    }
}
