//! What a NIC is plugged into on this host: the hypervisor's NAT, or a tap interface.
//!
//! Knows the networks of the configuration. Taps are made with iproute2; those made here are told to the caller, who
//! remembers them and has them removed. A tap that was there already is used and left alone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use dunlin_drivers::hypervisor::LaunchNic;
use dunlin_model::vm::{Nic, NicNetwork};
use dunlin_model::{Name, VmId};
use thiserror::Error;

use crate::config::Network;

/// Why a NIC has nothing to be plugged into.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    /// This host's agent was not told of the network.
    #[error("network {name} is not known on this host; it has: {known}")]
    Unknown {
        /// What was asked for.
        name: Name,
        /// What there is.
        known: String,
    },
    /// `ip` could not be run.
    #[error("ip {arguments}: {source}")]
    Run {
        /// What it was to do.
        arguments: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `ip` refused.
    #[error("ip {arguments}: {words}")]
    Refused {
        /// What it was to do.
        arguments: String,
        /// Its own words.
        words: String,
    },
}

/// A tap a NIC needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tap {
    interface: String,
    bridge: Option<String>,
}

/// A NIC, and the interface to be made for it.
fn resolve(
    networks: &BTreeMap<Name, Network>,
    vm: VmId,
    index: usize,
    nic: &Nic,
) -> Result<Option<Tap>, NetworkError> {
    match &nic.network {
        NicNetwork::User => Ok(None),
        NicNetwork::Tap(interface) => Ok(Some(Tap { interface: interface.clone(), bridge: None })),
        NicNetwork::Network(name) => match networks.get(name) {
            Some(Network::User) => Ok(None),
            Some(Network::Bridge(bridge)) => {
                Ok(Some(Tap { interface: tap_name(vm, index), bridge: Some(bridge.clone()) }))
            }
            None => {
                let known: Vec<_> = networks.keys().map(Name::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(NetworkError::Unknown { name: name.clone(), known })
            }
        },
    }
}

/// `dl` + ten hex digits of the VM + the NIC: within Linux's 15 bytes, and the same at every start.
pub(crate) fn tap_name(vm: VmId, index: usize) -> String {
    let hex = vm.0.simple().to_string();
    format!("dl{}n{index}", &hex[..10])
}

/// The interfaces that would have to be made for `nics`, so that they can be remembered before they are.
pub(crate) fn missing(
    networks: &BTreeMap<Name, Network>,
    vm: VmId,
    nics: &[Nic],
) -> Result<Vec<String>, NetworkError> {
    let mut names = Vec::new();
    for (index, nic) in nics.iter().enumerate() {
        names.extend(resolve(networks, vm, index, nic)?.map(|tap| tap.interface));
    }
    names.retain(|name| !is_there(name));
    Ok(names)
}

/// The ends on this host of the pairs that a container's NICs are to be, none of which is made here.
pub(crate) fn ends(
    networks: &BTreeMap<Name, Network>,
    vm: VmId,
    nics: &[Nic],
) -> Result<Vec<LaunchNic>, NetworkError> {
    let end = |(index, nic)| {
        Ok(match resolve(networks, vm, index, nic)? {
            Some(Tap { interface, bridge }) => LaunchNic::Veth { interface, bridge },
            None => LaunchNic::User,
        })
    };
    nics.iter().enumerate().map(end).collect()
}

/// Makes what is not there and plugs every NIC in.
pub(crate) async fn plug(
    networks: &BTreeMap<Name, Network>,
    vm: VmId,
    nics: &[Nic],
) -> Result<Vec<LaunchNic>, NetworkError> {
    let mut plugged = Vec::with_capacity(nics.len());
    for (index, nic) in nics.iter().enumerate() {
        plugged.push(plug_one(networks, vm, index, nic).await?);
    }
    Ok(plugged)
}

/// The same for one NIC, at its place among the VM's.
pub(crate) async fn plug_one(
    networks: &BTreeMap<Name, Network>,
    vm: VmId,
    index: usize,
    nic: &Nic,
) -> Result<LaunchNic, NetworkError> {
    let Some(tap) = resolve(networks, vm, index, nic)? else { return Ok(LaunchNic::User) };
    if !is_there(&tap.interface) {
        ip(&["tuntap", "add", "dev", &tap.interface, "mode", "tap"]).await?;
    }
    if let Some(bridge) = &tap.bridge {
        ip(&["link", "set", "dev", &tap.interface, "master", bridge]).await?;
    }
    ip(&["link", "set", "dev", &tap.interface, "up"]).await?;
    Ok(LaunchNic::Tap(tap.interface))
}

/// Removes an interface. Done when there is none.
pub(crate) async fn unplug(interface: &str) -> Result<(), NetworkError> {
    if !is_there(interface) {
        return Ok(());
    }
    ip(&["link", "delete", "dev", interface]).await
}

fn is_there(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

async fn ip(arguments: &[&str]) -> Result<(), NetworkError> {
    let output = tokio::process::Command::new("ip").args(arguments).kill_on_drop(true).output().await;
    let text = || arguments.join(" ");
    let output = output.map_err(|source| NetworkError::Run { arguments: text(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NetworkError::Refused { arguments: text(), words })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A NIC finds its network by name, an unknown one is refused by name, and a VM's taps never collide.
    #[test]
    fn networks_resolve() {
        let networks = BTreeMap::from([
            ("lan".parse().unwrap(), "bridge:br0".parse().unwrap()),
            ("nat".parse().unwrap(), Network::User),
        ]);
        let nic = |network| Nic { mac: None, model: Default::default(), network };
        let vm = VmId(uuid::Uuid::from_u128(7));
        let on = |index, network| resolve(&networks, vm, index, &nic(network));
        let named = |name: &str| NicNetwork::Network(name.parse().unwrap());

        assert_eq!(on(0, NicNetwork::User).unwrap(), None);
        assert_eq!(on(0, named("nat")).unwrap(), None);
        let [first, second] = [0, 15].map(|index| on(index, named("lan")).unwrap().unwrap());
        assert_eq!(first.bridge.as_deref(), Some("br0"));
        assert_ne!(first.interface, second.interface);
        assert!(second.interface.len() <= 15, "{}", second.interface);
        assert_eq!(
            on(0, named("san")).unwrap_err().to_string(),
            "network san is not known on this host; it has: lan, nat"
        );
        for bad in ["bridge:", "bridge:a/b", "tap", "bridge:far-too-long-name", "user:x"] {
            bad.parse::<Network>().unwrap_err();
        }
    }
}
