//! Where a console that waits for an agent and the agent that dials for it find each other.
//!
//! A tunnel's name is a secret of 256 bits, told to one agent over its session: whoever shows it is that agent.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::{ErrorCode, Invalid};
use dunlin_proto::{Fault, v1};
use futures_util::Stream;
use tokio::sync::oneshot;
use tonic::{Status, Streaming};

use crate::mint;

/// How long a dialled agent may take to name the tunnel.
const FIRST_CHUNK_TIMEOUT: Duration = Duration::from_secs(5);

/// What flows to the agent.
pub(crate) type ToAgentStream = Pin<Box<dyn Stream<Item = Result<v1::TunnelChunk, Status>> + Send>>;

/// The agent's end of a tunnel.
pub(crate) struct Dialled {
    /// Why it could not open the far end; empty when it could.
    pub(crate) error: String,
    /// What came with the first chunk.
    pub(crate) data: Vec<u8>,
    pub(crate) from_agent: Streaming<v1::TunnelChunk>,
    /// Takes what is to flow to the agent.
    pub(crate) to_agent: oneshot::Sender<ToAgentStream>,
}

type Waiting = Arc<Mutex<BTreeMap<String, oneshot::Sender<Dialled>>>>;

/// The tunnels that wait to be dialled.
#[derive(Default)]
pub(crate) struct Tunnels {
    waiting: Waiting,
}

/// One of them. Dropped, it waits no longer.
pub(crate) struct Expected {
    name: String,
    waiting: Waiting,
    dialled: oneshot::Receiver<Dialled>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The names are secrets.
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}

impl Tunnels {
    /// A new name, and what happens to it.
    pub(crate) fn expect_dial(&self) -> (String, Expected) {
        let (name, (sender, dialled)) = (mint::secret(), oneshot::channel());
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), sender);
        (name.clone(), Expected { name, waiting: Arc::clone(&self.waiting), dialled })
    }

    /// Takes an agent's dial and gives it what is to flow back.
    pub(crate) async fn dial(
        &self,
        mut from_agent: Streaming<v1::TunnelChunk>,
    ) -> Result<ToAgentStream, Fault> {
        let first = tokio::time::timeout(FIRST_CHUNK_TIMEOUT, from_agent.message()).await;
        let first = first.map_err(|_| Fault::new(ErrorCode::Deadline, "the first chunk did not come"))??;
        let first = first.ok_or_else(|| Invalid::new("tunnel", "is missing", "a tunnel's name"))?;
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&first.tunnel);
        let nobody = || Fault::new(ErrorCode::NotFound, "nobody waits for this tunnel");
        let waiting = waiting.ok_or_else(nobody)?;
        let (to_agent, stream) = oneshot::channel();
        let dialled = Dialled { error: first.error, data: first.data, from_agent, to_agent };
        waiting.send(dialled).map_err(|_| nobody())?;
        stream.await.map_err(|_| nobody())
    }
}

impl Expected {
    /// The agent's end, once it has dialled.
    pub(crate) async fn dialled(mut self) -> Option<Dialled> {
        (&mut self.dialled).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
