//! Trading a one-time token for an identity. Any controller answers; the leader commits.

use dunlin_model::meta::validate_labels;
use dunlin_model::{HostId, Invalid};
use dunlin_proto::{Fault, read, v1};
use dunlin_state::Command;

use crate::api::call::Call;
use crate::api::{carry, gate, rejected_fault};
use crate::blob::Digest;
use crate::mint;
use crate::node::Node;

/// Longest token, bytes: what is minted has 64.
const TOKEN_BYTES_MAX: usize = 256;

pub(super) async fn join(
    node: &Node,
    call: Call,
    request: v1::JoinRequest,
) -> Result<v1::JoinResponse, Fault> {
    // Refused here already when it makes no sense, wherever the leader is.
    command(request.clone())?;
    let local = |request| commit(node, request);
    let remote = |channel, request| async move { gate(channel).join(request).await };
    carry::to_leader(node, call, request, local, remote).await
}

fn command(request: v1::JoinRequest) -> Result<Command, Fault> {
    if request.token.is_empty() || request.token.len() > TOKEN_BYTES_MAX {
        let problem = format!("{} bytes", request.token.len());
        return Err(Invalid::new("token", problem, "a token as it was printed").into());
    }
    validate_labels(&request.labels)?;
    let secret: Digest = request.secret_sha256.parse().map_err(|mut e: Invalid| {
        e.field = "secret_sha256".into();
        e
    })?;
    Ok(Command::JoinHost {
        token_sha256: mint::sha256_hex(&request.token),
        uid: read(request.host_uid, "host_uid")?,
        name: read(request.name, "name")?,
        labels: request.labels,
        secret_sha256: secret.to_string(),
    })
}

async fn commit(node: &Node, request: v1::JoinRequest) -> Result<v1::JoinResponse, Fault> {
    let host: HostId = read(request.host_uid.clone(), "host_uid")?;
    let proposed = node.replica.propose(&command(request)?).await;
    proposed.map_err(|e| carry::propose_fault(&e))?.map_err(rejected_fault)?;
    let view = node.replica.read();
    let cluster_uid = view.cluster().map(|cluster| cluster.metadata.uid.to_string()).unwrap_or_default();
    tracing::info!(host = %host, "a host joined");
    Ok(v1::JoinResponse { cluster_uid, host_uid: host.to_string(), controllers: endpoints(node) })
}

/// Where the controllers are, for agents.
pub(super) fn endpoints(node: &Node) -> Vec<String> {
    node.controllers().into_iter().map(|controller| controller.endpoint).collect()
}
