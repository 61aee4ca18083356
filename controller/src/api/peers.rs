//! Connections to the other controllers.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::{ClusterId, Kind, Level, Object};
use dunlin_pki::{Dialer, NotOurs};
use dunlin_proto::v1::access_client::AccessClient;
use dunlin_proto::v1::advisor_client::AdvisorClient;
use dunlin_proto::v1::fleet_client::FleetClient;
use dunlin_proto::v1::identities_client::IdentitiesClient;
use dunlin_proto::{Fault, v1};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::MESSAGE_BYTES_MAX;

/// A controller that does not take a connection for so long is treated as away; on a LAN it takes a millisecond.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a quiet connection with calls on it is tried: a controller that lost its power must not hold calls until
/// their deadline.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
/// How long the answer to that may take: a thousand round trips.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for another controller to answer from memory.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Endpoints kept. A cluster has five; older ones are those of controllers that moved.
const PEERS_MAX: usize = 16;

/// One connection per endpoint, made when it is first used and made again when it breaks.
#[derive(Debug)]
pub(crate) struct Peers {
    dialer: Dialer,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self { dialer, channels: Mutex::default() }
    }

    /// The connection to the controller at `endpoint`.
    pub(crate) fn channel(&self, endpoint: &str) -> Result<Channel, Fault> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(endpoint) {
            return Ok(channel.clone());
        }
        if channels.len() >= PEERS_MAX {
            channels.clear();
        }
        let channel = Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .connect_with_connector_lazy(self.dialer.clone());
        channels.insert(endpoint.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// The fleet API over a connection.
pub(crate) fn fleet(channel: Channel) -> FleetClient<Channel> {
    FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The doorman over a connection.
pub(crate) fn access(channel: Channel) -> AccessClient<Channel> {
    AccessClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The scheduler's answers over a connection.
pub(crate) fn advisor(channel: Channel) -> AdvisorClient<Channel> {
    AdvisorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// What another controller turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// Of that cluster.
    Of(ClusterId),
    /// Of another authority than this controller believes.
    Foreign,
    /// It does not say.
    Silent,
}

/// Whose is the controller at `endpoint`?
pub(crate) async fn company(peers: &Peers, endpoint: &str) -> Company {
    if let Some(cluster) = cluster_of(peers, endpoint).await {
        return Company::Of(cluster);
    }
    let address = endpoint.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':'));
    let Some((host, Ok(port))) = address.map(|(host, port)| (host, port.parse())) else {
        return Company::Silent;
    };
    let dialled = tokio::time::timeout(ASK_TIMEOUT, peers.dialer.connect(host, port)).await;
    match dialled {
        Ok(Err(error))
            if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<NotOurs>) =>
        {
            Company::Foreign
        }
        _ => Company::Silent,
    }
}

/// The cluster of the controller at `endpoint`, from its own copy; none when it does not say.
pub(crate) async fn cluster_of(peers: &Peers, endpoint: &str) -> Option<ClusterId> {
    let mut request = Request::new(v1::GetRequest {
        kind: v1::Kind::from(Kind::Cluster).into(),
        consistency: v1::Consistency::Stale.into(),
        ..v1::GetRequest::default()
    });
    request.set_timeout(ASK_TIMEOUT);
    let mut client = fleet(peers.channel(endpoint).ok()?);
    let answer = tokio::time::timeout(ASK_TIMEOUT, client.get(request)).await.ok()?.ok()?;
    match answer.into_inner().try_into().ok()? {
        Object::Cluster(cluster) => Some(cluster.metadata.uid),
        _ => None,
    }
}

/// The release of the controller at `endpoint` and the highest feature level it reads; none when it does not say. It need not
/// be of any cluster yet.
pub(crate) async fn reads_level(peers: &Peers, endpoint: &str) -> Option<(String, Level)> {
    let mut request = Request::new(v1::WhoAmIRequest {});
    request.set_timeout(ASK_TIMEOUT);
    let mut client = IdentitiesClient::new(peers.channel(endpoint).ok()?);
    let told = tokio::time::timeout(ASK_TIMEOUT, client.who_am_i(request)).await.ok()?.ok()?.into_inner();
    // One that says none is of a time before there were any.
    Some((told.version, Level(told.level.max(Level::OLDEST.0))))
}
