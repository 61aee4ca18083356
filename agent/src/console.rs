//! Consoles: carries bytes between a VM's serial console and the controller that asked for them.
//!
//! The agent dials, so a host needs no open port. Knows nothing of who looks on at the other end.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::{ErrorCode, VmId};
use dunlin_proto::{Fault, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::host::Host;
use crate::serial_log::{Place, SerialLog};

/// Tunnels open at the same time. Each holds a connection and two buffers.
const TUNNELS_MAX: usize = 64;

/// Bytes carried at a time. A serial console is slow; a log is read faster in larger pieces, but not by much.
const CHUNK_BYTES: usize = 16 << 10;

/// Chunks waiting for the network. Few: a console that is not read must stop, not fill memory.
const CHUNKS_WAITING_MAX: usize = 4;

/// Time for the other end to take in the last bytes and close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The open tunnels.
#[derive(Debug)]
pub(crate) struct Tunnels {
    open: Arc<tokio::sync::Semaphore>,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { open: Arc::new(tokio::sync::Semaphore::new(TUNNELS_MAX)) }
    }
}

impl Tunnels {
    /// Opens what the leader at `endpoint` asked for, in a task of its own.
    pub(crate) fn open(&self, host: &Arc<Host>, endpoint: String, asked: v1::OpenTunnel) {
        let permit = Arc::clone(&self.open).try_acquire_owned();
        let host_again = Arc::clone(host);
        host.spawn(async move {
            let far_end = match &permit {
                Ok(_) => open(&host_again, &asked).await,
                Err(_) => Err(format!("{TUNNELS_MAX} consoles of this host are open already")),
            };
            let vm = asked.vm_uid.clone();
            if let Err(fault) = carry(&host_again, &endpoint, asked.tunnel, far_end).await {
                tracing::debug!(vm, %fault, "a console has ended");
            }
            drop(permit);
        });
    }
}

/// What a tunnel leads to.
enum FarEnd {
    Socket(UnixStream),
    Log { log: SerialLog, from: u64, follow: bool },
}

/// Finds and opens what was asked for, before the tunnel is dialled: its first chunk says whether that worked.
async fn open(host: &Host, asked: &v1::OpenTunnel) -> Result<FarEnd, String> {
    let vm: VmId = asked.vm_uid.parse().map_err(|e: dunlin_model::Invalid| e.to_string())?;
    let look = host.board.look(vm).ok_or("this VM is not on this host")?;
    let driver = host.driver_of(&look).map_err(|trouble| trouble.to_string())?;
    if asked.mode() == v1::ConsoleMode::Interactive {
        let (socket, _) = driver.console(vm).map_err(|error| error.to_string())?;
        let at = |e| format!("{}: {e}", socket.display());
        return UnixStream::connect(&socket).await.map(FarEnd::Socket).map_err(at);
    }
    let path = driver.serial_log(vm);
    let log = SerialLog::open(&path, &host.config.name).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "it has said nothing on this host yet".to_owned(),
        _ => format!("{}: {e}", path.display()),
    })?;
    let place = |place: &v1::LogPlace| Place { log: place.log.clone(), offset: place.offset };
    let from = log.resume(&asked.places.iter().map(place).collect::<Vec<_>>());
    Ok(FarEnd::Log { log, from, follow: asked.mode() == v1::ConsoleMode::LogFollow })
}

type Chunks = mpsc::Sender<v1::TunnelChunk>;

async fn carry(
    host: &Host,
    endpoint: &str,
    tunnel: String,
    far_end: Result<FarEnd, String>,
) -> Result<(), Fault> {
    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let error = far_end.as_ref().err().cloned().unwrap_or_default();
    let first = v1::TunnelChunk { tunnel, error, ..Default::default() };
    let _ = chunks.send(first).await;
    let mut gate = v1::agent_gate_client::AgentGateClient::new(host.line.dial(endpoint).await?);
    let mut from_far = gate.tunnel(ReceiverStream::new(waiting)).await?.into_inner();
    let done = match far_end {
        Err(_) => Ok(()),
        Ok(FarEnd::Socket(socket)) => interactive(socket, &chunks, &mut from_far).await,
        Ok(FarEnd::Log { log, mut from, follow: false }) => read_log(&log, &chunks, &mut from).await,
        Ok(FarEnd::Log { log, from, follow: true }) => tokio::select! {
            done = follow(&log, &chunks, from) => done,
            _ = from_far.message() => Ok(()),
        },
    };
    // Everything is said; what is still on its way out arrives before the other end closes.
    drop(chunks);
    let closed = async { while let Ok(Some(_)) = from_far.message().await {} };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    done.map_err(|error| Fault::new(ErrorCode::Unavailable, error.to_string()))
}

async fn interactive(
    socket: UnixStream,
    chunks: &Chunks,
    from_far: &mut Streaming<v1::TunnelChunk>,
) -> std::io::Result<()> {
    let (mut guest_out, mut guest_in) = socket.into_split();
    let outwards = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = guest_out.read(&mut buffer).await?;
            if read == 0 || !send(chunks, &buffer[..read]).await {
                return Ok(());
            }
        }
    };
    let inwards = async {
        while let Ok(Some(chunk)) = from_far.message().await {
            guest_in.write_all(&chunk.data).await?;
        }
        Ok(())
    };
    tokio::select! {
        done = outwards => done,
        done = inwards => done,
    }
}

/// Sends what the log has from `at` on, and moves `at`.
async fn read_log(log: &SerialLog, chunks: &Chunks, at: &mut u64) -> std::io::Result<()> {
    loop {
        let (data, end) = log.read(*at).await?;
        *at = end;
        if data.is_empty() {
            return Ok(());
        }
        let Place { log, offset } = log.place(end);
        let place = Some(v1::LogPlace { log, offset });
        let chunk = v1::TunnelChunk { data, place, ..Default::default() };
        if chunks.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

/// Sends what the log has and what comes, until it is removed: the VM has left this host, or is no more.
async fn follow(log: &SerialLog, chunks: &Chunks, mut at: u64) -> std::io::Result<()> {
    let mut changes = log.watch()?;
    loop {
        let removed = log.is_removed()?;
        read_log(log, chunks, &mut at).await?;
        if removed || chunks.is_closed() {
            return Ok(());
        }
        changes.next().await?;
    }
}

async fn send(chunks: &Chunks, data: &[u8]) -> bool {
    let chunk = v1::TunnelChunk { data: data.to_vec(), ..Default::default() };
    chunks.send(chunk).await.is_ok()
}
