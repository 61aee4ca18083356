//! How one controller is set up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use dunlin_model::cluster::Controller;
use dunlin_model::{ControllerId, Invalid, Level, Name, Secret};
use dunlin_pki::Clock;

use crate::raft::{Member, SnapshotPolicy, Timers};
use crate::rights::ProviderConfig;

/// Most controllers of a cluster: each write waits for a majority of them.
pub const CONTROLLERS_MAX: usize = 5;

/// What a cluster is called when nobody says.
pub(crate) const CLUSTER_NAME: &str = "dunlin";

/// Another controller, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub id: ControllerId,
    /// Where clients and agents reach it: `https://host:port`.
    pub api_endpoint: String,
    /// Where its raft transport listens: `host:port`.
    pub raft_endpoint: String,
}

/// How one controller is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This controller's number: 1 and up, its own for ever.
    pub id: ControllerId,
    /// The folder it alone may use. Created when missing.
    pub data_dir: PathBuf,
    /// Where it listens for clients and agents.
    pub api_listen: SocketAddr,
    /// Where clients, agents and the other controllers reach that: `https://host:port`.
    pub api_endpoint: String,
    /// Where it listens for the raft transport of the other controllers.
    pub raft_listen: SocketAddr,
    /// Where the other controllers reach that: `host:port`.
    pub raft_endpoint: String,
    /// The other controllers. What the cluster itself knows goes before this.
    pub peers: Vec<Peer>,
    /// What the cluster is called: when it is founded, and ever after. None: `dunlin`, or whatever there is.
    pub cluster_name: Option<Name>,
    /// Form a new cluster of these controllers (this one and peers), unless this one already belongs to one. The same
    /// list may be given to every one of them at every start. Empty: wait to be contacted.
    pub init: Vec<ControllerId>,
    /// One-time token, for a controller that joins a cluster that is there; needed until it has an identity.
    pub token: Option<Secret>,
    /// Where to show it: controllers of that cluster, `https://host:port`.
    pub join_at: Vec<String>,
    /// Whose time certificates are judged by.
    pub clock: Clock,
    /// The identity provider that vouches for people, if any.
    pub provider: Option<ProviderConfig>,
    /// Heartbeat and election.
    pub timers: Timers,
    /// When the log is compacted.
    pub snapshots: SnapshotPolicy,
    /// The highest feature level this controller reads: that of its release. A lower one is for tests of rolling upgrades.
    pub level: Level,
}

impl Config {
    /// A controller that forms a cluster of its own in `data_dir`.
    #[must_use]
    pub fn single(data_dir: PathBuf, api_listen: SocketAddr, raft_listen: SocketAddr, name: Name) -> Self {
        Self {
            id: ControllerId(1),
            data_dir,
            api_listen,
            api_endpoint: format!("https://{api_listen}"),
            raft_listen,
            raft_endpoint: raft_listen.to_string(),
            peers: Vec::new(),
            cluster_name: Some(name),
            init: vec![ControllerId(1)],
            token: None,
            join_at: Vec::new(),
            clock: Clock::system(),
            provider: None,
            timers: Timers::default(),
            snapshots: SnapshotPolicy::default(),
            level: Level::NEWEST,
        }
    }

    /// Refuses what contradicts itself.
    pub fn validate(&self) -> Result<(), Invalid> {
        let mut ids = BTreeSet::from([self.id]);
        validate_endpoint("api_endpoint", &self.api_endpoint)?;
        self.provider.iter().try_for_each(ProviderConfig::validate)?;
        for (index, peer) in self.peers.iter().enumerate() {
            let field = |name: &str| format!("peers[{index}].{name}");
            if peer.id.0 == 0 || !ids.insert(peer.id) {
                let problem = format!("{} is 0, this controller, or listed twice", peer.id);
                return Err(Invalid::new(field("id"), problem, "a number of its own for each controller"));
            }
            validate_endpoint(&field("api_endpoint"), &peer.api_endpoint)?;
        }
        if ids.len() > CONTROLLERS_MAX {
            return Err(Invalid::new("peers", format!("{} controllers", ids.len()), "1, 3 or 5 in all"));
        }
        for id in &self.init {
            if !ids.contains(id) {
                let problem = format!("controller {id} is neither this one nor a peer");
                return Err(Invalid::new("init", problem, "this controller and its peers"));
            }
        }
        if !self.init.is_empty() && !self.init.contains(&self.id) {
            return Err(Invalid::new("init", "this controller is not in it", "a list with this controller"));
        }
        Ok(())
    }

    /// The name or address at which this controller is reached.
    pub(crate) fn api_host(&self) -> &str {
        host_of(&self.api_endpoint).unwrap_or_default()
    }

    /// The members a new cluster is formed of; empty when this controller is not to form one.
    pub(crate) fn founders(&self) -> BTreeMap<ControllerId, Member> {
        let this = Member { raft: self.raft_endpoint.clone(), api: self.api_endpoint.clone() };
        let peers = self.peers.iter().map(|peer| {
            (peer.id, Member { raft: peer.raft_endpoint.clone(), api: peer.api_endpoint.clone() })
        });
        let all = peers.chain([(self.id, this)]);
        all.filter(|(id, _)| self.init.contains(id)).collect()
    }

    /// Every controller that this one was told of, itself included, by id.
    pub(crate) fn controllers(&self) -> Vec<Controller> {
        let this = Controller { id: self.id, endpoint: self.api_endpoint.clone() };
        let peers =
            self.peers.iter().map(|peer| Controller { id: peer.id, endpoint: peer.api_endpoint.clone() });
        let mut all: Vec<_> = peers.chain([this]).collect();
        all.sort_by_key(|controller| controller.id);
        all
    }
}

pub(crate) fn validate_endpoint(field: &str, endpoint: &str) -> Result<(), Invalid> {
    match endpoint.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':')) {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        _ => Err(Invalid::new(field, format!("{endpoint:?} is no endpoint"), "https://host:port")),
    }
}

/// The name or address within an endpoint, without brackets.
pub(crate) fn host_of(endpoint: &str) -> Option<&str> {
    let (host, _) = endpoint.strip_prefix("https://")?.rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration that contradicts itself is refused with the field that does.
    #[test]
    fn contradictions_are_named() {
        let here: SocketAddr = "127.0.0.1:7000".parse().unwrap();
        let good = Config::single("/tmp/x".into(), here, here, "c".parse().unwrap());
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(good.founders().len(), 1);
        let peer = |id, api: &str| Peer {
            id: ControllerId(id),
            api_endpoint: api.into(),
            raft_endpoint: "127.0.0.2:7001".into(),
        };
        let check = |config: Config, field: &str| {
            assert_eq!(config.validate().map_err(|e| e.field), Err(field.to_owned()));
        };
        let with = |peers: Vec<Peer>| Config { peers, ..good.clone() };
        let init = |init: &[u64]| init.iter().map(|id| ControllerId(*id)).collect();
        check(with(vec![peer(1, "https://127.0.0.2:7000")]), "peers[0].id");
        check(with(vec![peer(2, "127.0.0.2:7000")]), "peers[0].api_endpoint");
        check(with((2..8).map(|id| peer(id, "https://h:1")).collect()), "peers");
        check(Config { api_endpoint: "https://:7000".into(), ..good.clone() }, "api_endpoint");
        check(Config { init: init(&[1, 2]), ..good.clone() }, "init");
        check(Config { init: init(&[2]), ..with(vec![peer(2, "https://h:1")]) }, "init");
    }
}
