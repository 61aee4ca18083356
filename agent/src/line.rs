//! Where the controllers are, and how one is dialled.
//!
//! Owns the list of known endpoints and which of them led last; the session keeps it up to date, and whoever needs a
//! controller (images, consoles) asks here. Remembers nothing across restarts: the identity does.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::Invalid;
use dunlin_pki::Dialer;
use dunlin_proto::Fault;
use tonic::transport::{Channel, Endpoint};

/// Time to connect. A live controller on any network answers a SYN faster; a dead one must not hold up the next.
const CONNECT_TIMEOUT_MS: u64 = 1000;

/// HTTP/2 ping after so long without traffic: a hung or cut-off controller is noticed within this and the next.
const KEEPALIVE_INTERVAL_MS: u64 = 2000;

/// A ping not answered for so long ends the connection.
const KEEPALIVE_TIMEOUT_MS: u64 = 2000;

/// Most endpoints kept: a cluster has at most 5 controllers, and while members change there may be old ones.
const ENDPOINTS_MAX: usize = 16;

/// The controllers as far as they are known.
#[derive(Debug)]
pub(crate) struct Line {
    dialer: Dialer,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    leader: Option<String>,
    controllers: Vec<String>,
}

impl Line {
    /// Starts with these endpoints, the first ones tried first.
    pub(crate) fn new(controllers: impl IntoIterator<Item = String>, dialer: Dialer) -> Self {
        let line = Self { dialer, known: Mutex::default() };
        line.learn(controllers);
        line
    }

    /// Adds endpoints that are not known yet.
    pub(crate) fn learn(&self, controllers: impl IntoIterator<Item = String>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for controller in controllers {
            let controller = with_scheme(&controller);
            if known.controllers.len() < ENDPOINTS_MAX && !known.controllers.contains(&controller) {
                known.controllers.push(controller);
            }
        }
    }

    /// Replaces the list by the cluster's own.
    pub(crate) fn replace(&self, controllers: &[String]) {
        if controllers.is_empty() {
            return;
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).controllers.clear();
        self.learn(controllers.iter().cloned());
    }

    /// Says who leads, or that nobody is known to.
    pub(crate) fn set_leader(&self, leader: Option<&str>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).leader = leader.map(with_scheme);
    }

    /// Every endpoint worth asking, the leader first.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let others = known.controllers.iter().filter(|other| Some(*other) != known.leader.as_ref());
        known.leader.iter().chain(others).cloned().collect()
    }
}

fn with_scheme(endpoint: &str) -> String {
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") }
}

/// Refuses an endpoint that nobody proves anything on.
fn secure(endpoint: &str) -> Result<Endpoint, Fault> {
    if endpoint.starts_with("http://") {
        return Err(Invalid::new(
            "controller",
            format!("{endpoint:?} is not encrypted"),
            "https://host:port",
        )
        .into());
    }
    Ok(Endpoint::from_shared(with_scheme(endpoint))?)
}

impl Line {
    /// Connects to `endpoint`.
    pub(crate) async fn dial(&self, endpoint: &str) -> Result<Channel, Fault> {
        let endpoint = secure(endpoint)?
            .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
            .http2_keep_alive_interval(Duration::from_millis(KEEPALIVE_INTERVAL_MS))
            .keep_alive_timeout(Duration::from_millis(KEEPALIVE_TIMEOUT_MS))
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_with_connector(self.dialer.clone()).await?)
    }
}
