//! A client of the API itself, for what the command line is too slow for.

use dunlin_pki::Dialer;
use dunlin_proto::v1::fleet_client::FleetClient;
use tonic::transport::{Channel, Endpoint};

use crate::Fleet;

/// A connection to `endpoint`, made when it is first used: with TLS as whoever `dialer` is, or in the clear.
pub fn lazy(dialer: Option<&Dialer>, endpoint: &str) -> anyhow::Result<Channel> {
    let target = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true);
    Ok(match dialer {
        Some(dialer) => target.connect_with_connector_lazy(dialer.clone()),
        None => target.connect_lazy(),
    })
}

/// A client of every controller of a fleet, as its admin, connected when it is used and again when it breaks.
pub fn of_each(fleet: &Fleet) -> anyhow::Result<Vec<FleetClient<Channel>>> {
    let dialer = fleet.dialer()?;
    fleet.endpoints()?.iter().map(|endpoint| lazy(Some(&dialer), endpoint).map(FleetClient::new)).collect()
}
