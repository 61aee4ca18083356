//! The agents' door: the one session of each host, and tunnels.
//!
//! ```text
//!  Hello -> not the leader ------------------> Redirect
//!        -> unknown, or another's certificate > Goodbye unauthenticated
//!        -> another process of it is alive --> Goodbye already_exists
//!        -> OpenSession committed -----------> Welcome, desired set; then
//!             reports, capabilities <--> desired sets, pings
//!             leadership lost, stopping -----> Redirect
//!             silent, broken, removed -------> ends
//!  ended, and no new one within the grace ---> the reconcilers commit CloseSession: the host is Down
//! ```
//! Owns what lives in the leader's memory about hosts: who sits where ([`Sessions`]), what they report ([`Board`]).

mod attend;
mod board;
mod hello;
mod seats;
mod tunnels;

use std::pin::Pin;
use std::sync::Arc;

use dunlin_model::ErrorCode;
use dunlin_proto::v1::agent_gate_server::{AgentGate, AgentGateServer};
use dunlin_proto::{Fault, v1};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use board::Board;
pub(crate) use seats::Sessions;
pub(crate) use tunnels::Tunnels;

use crate::api::MESSAGE_BYTES_MAX;
use crate::node::Node;
use crate::trust::Peer;

/// Messages on their way to one agent. It takes them in at once; one that does not is cut by the pings.
const TO_AGENT_MAX: usize = 64;

/// The AgentGate service of one controller.
#[derive(Debug)]
pub(crate) struct Gate {
    node: Arc<Node>,
}

impl Gate {
    pub(crate) fn service(node: Arc<Node>) -> AgentGateServer<Self> {
        AgentGateServer::new(Self { node }).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl AgentGate for Gate {
    type SessionStream = ReceiverStream<Result<v1::ToAgent, Status>>;
    type TunnelStream = Pin<Box<dyn Stream<Item = Result<v1::TunnelChunk, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let address = request.remote_addr();
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Fault::new(ErrorCode::Unauthenticated, "no certificate was shown"))?;
        let (to_agent, receiver) = mpsc::channel(TO_AGENT_MAX);
        // Ends by itself when the agent goes, when the controller stops, and when it no longer leads.
        tokio::spawn(attend::attend(Arc::clone(&self.node), request.into_inner(), to_agent, address, peer));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    #[tracing::instrument(skip_all)]
    async fn tunnel(
        &self,
        request: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        Ok(Response::new(self.node.tunnels.dial(request.into_inner()).await?))
    }
}
