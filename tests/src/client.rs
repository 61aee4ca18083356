//! A client of the API itself, for what the command line is too slow for.

use anyhow::Context;
use dunlin_proto::v1::fleet_client::FleetClient;
use tonic::transport::{Channel, Endpoint};

use crate::Fleet;

/// A connection to the controller at `endpoint`.
pub async fn connect(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("connecting to {}", endpoint.uri()))
}

/// A client of every controller of a fleet, connected when it is used and again when it breaks.
pub fn of_each(fleet: &Fleet) -> anyhow::Result<Vec<FleetClient<Channel>>> {
    let channel = |endpoint: String| Ok(Endpoint::from_shared(endpoint)?.tcp_nodelay(true).connect_lazy());
    fleet.endpoints()?.into_iter().map(|endpoint| channel(endpoint).map(FleetClient::new)).collect()
}
