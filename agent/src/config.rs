//! What the agent is told when it is started. Checked by whoever reads arguments; nothing here touches the host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use dunlin_model::{Invalid, Labels, Level, Name, Secret};

/// Everything the agent of one host needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of everything it keeps: identity, journal, images, volumes, and the drivers' own state.
    pub data_dir: PathBuf,
    /// Endpoints of controllers, `https://ADDRESS:PORT` or `ADDRESS:PORT`. The identity remembers more of them; at
    /// least one is needed to join.
    pub controllers: Vec<String>,
    /// One-time token, needed until the host has joined.
    pub token: Option<Secret>,
    /// Name the host joins under.
    pub name: Name,
    /// Labels it joins with.
    pub labels: Labels,
    /// Address at which other hosts reach this one; migrations are received on it.
    pub address: String,
    /// Run guests with QEMU.
    pub qemu: bool,
    /// Run guests with whatever the libvirt daemon at this URI drives.
    pub libvirt: Option<String>,
    /// URI at which agents of other hosts reach that daemon for migrations; `ADDRESS` in it stands for this host's
    /// address. By TLS at that address when it is not said.
    pub libvirt_peer: Option<String>,
    /// Run containers.
    pub lxc: bool,
    /// Run guests with User Mode Linux.
    pub uml: bool,
    /// Play guests with the simulated hypervisor, on a pretended host of this size.
    pub test: Option<SimulatedHost>,
    /// Most that fetched images may take, MiB. Those that a VM here needs stay whatever they take.
    pub image_cache_mib: u64,
    /// Where metrics and health are served, on the loopback only; nowhere when none.
    pub metrics_listen: Option<SocketAddr>,
    /// The highest feature level this agent reads: that of its release. A lower one is for tests of rolling upgrades.
    pub level: Level,
    /// Networks that a NIC may name here.
    pub networks: BTreeMap<Name, Network>,
}

/// The size of a host that is only played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulatedHost {
    /// CPUs.
    pub cpus: u32,
    /// Memory, MiB.
    pub mem_mib: u64,
}

/// What stands behind a network's name on this host. Reads as `user` or `bridge:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The hypervisor's own NAT.
    User,
    /// A bridge of the kernel's, which exists; each NIC gets a tap on it.
    Bridge(String),
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Bridge(bridge) => write!(f, "bridge:{bridge}"),
        }
    }
}

impl FromStr for Network {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let sound = |name: &str| (1..=15).contains(&name.len()) && !name.contains(['/', ' ', ':']);
        match text.split_once(':') {
            None if text == "user" => Ok(Self::User),
            Some(("bridge", bridge)) if sound(bridge) => Ok(Self::Bridge(bridge.to_owned())),
            _ => Err(Invalid::new("network", format!("{text:?} is none"), "user or bridge:INTERFACE")),
        }
    }
}
