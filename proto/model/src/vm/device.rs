//! Disks, network cards and the display of a VM.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MachineType;
use crate::invalid::in_range;
use crate::{Incarnation, Invalid, Name, Secret};

/// Least and most size of an empty disk, MiB; the upper end is 64 TiB.
pub const DISK_MIB: std::ops::RangeInclusive<u64> = 1..=64 << 20;
/// Longest path on a host, bytes: Linux's PATH_MAX.
pub const PATH_MAX: usize = 4095;
/// Longest VNC password, bytes: RFB's DES challenge uses no more than 8.
pub const VNC_PASSWORD_MAX: usize = 8;

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// What the guest would call it: `vda`, `sda`, `hda`.
    pub name: Name,
    /// How it is attached.
    #[serde(default)]
    pub bus: DiskBus,
    /// How its bytes are laid out on the host.
    #[serde(default)]
    pub format: DiskFormat,
    /// Where its bytes come from.
    pub source: DiskSource,
    /// Every host reaches the same bytes; migration then leaves them where they are. Only for a path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// The guest cannot write to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

impl Disk {
    /// Its file, when the guest writes to one that somebody put at a path of its host alone.
    #[must_use]
    pub fn own_path(&self) -> Option<&str> {
        match &self.source {
            DiskSource::Path(path) if !self.shared && !self.read_only => Some(path),
            _ => None,
        }
    }

    /// What the file at `path` is called once the guest `vm` has left its host, having written to it last as
    /// `incarnation`: it is out of date then, and must not be taken for the disk.
    #[must_use]
    pub fn left_behind(path: &str, vm: &Name, incarnation: Incarnation) -> String {
        format!("{path}.stale-{vm}-{incarnation}")
    }

    pub(super) fn validate(&self, machine: MachineType) -> Result<(), Invalid> {
        let fits = match self.bus {
            DiskBus::Virtio => true,
            DiskBus::Ide => machine == MachineType::Pc,
            DiskBus::Sata => machine == MachineType::Q35,
        };
        if !fits {
            let problem = format!("machine {} has no {} bus", machine.as_str(), self.bus);
            return Err(Invalid::new("bus", problem, "virtio everywhere, sata on q35, ide on pc"));
        }
        if self.shared && !matches!(self.source, DiskSource::Path(_)) {
            return Err(Invalid::new(
                "shared",
                "only a path can be shared",
                "source.path on storage that every host sees",
            ));
        }
        match &self.source {
            DiskSource::Image(_) => Ok(()),
            DiskSource::Path(path) => validate_path("source.path", path),
            DiskSource::EmptyMib(size) => in_range("source.empty_mib", *size, DISK_MIB),
        }
    }
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    /// Paravirtual.
    #[default]
    Virtio,
    /// AHCI, on q35.
    Sata,
    /// Parallel ATA, on pc: at most four.
    Ide,
}

impl fmt::Display for DiskBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Virtio => "virtio",
            Self::Sata => "sata",
            Self::Ide => "ide",
        })
    }
}

/// How a disk's bytes are laid out on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// QEMU copy-on-write.
    #[default]
    Qcow2,
    /// Byte for byte.
    Raw,
    /// VMware.
    Vmdk,
}

impl DiskFormat {
    /// QEMU's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
        }
    }
}

/// Where a disk's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A copy of an imported image, made on the host at the first start.
    Image(Name),
    /// A file that is already there: an absolute path on the host. Never deleted with the VM.
    Path(String),
    /// An empty disk of so many MiB, made on the host at the first start.
    EmptyMib(u64),
}

impl DiskSource {
    /// The image, when it is one.
    #[must_use]
    pub fn image(&self) -> Option<&Name> {
        match self {
            Self::Image(name) => Some(name),
            Self::Path(_) | Self::EmptyMib(_) => None,
        }
    }
}

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Hardware address. Given one when the VM is created without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The card the guest sees.
    #[serde(default)]
    pub model: NicModel,
    /// What it is plugged into.
    #[serde(default)]
    pub network: NicNetwork,
}

impl Nic {
    pub(super) fn validate(&self, machine: MachineType) -> Result<(), Invalid> {
        if machine == MachineType::Microvm && self.model != NicModel::Virtio {
            return Err(Invalid::new("model", "microvm has no PCI bus", "virtio"));
        }
        match &self.network {
            NicNetwork::Tap(name) if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) => {
                Err(Invalid::new(
                    "network.tap",
                    format!("{name:?} is no interface name"),
                    "1 to 15 bytes without / or space",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The card the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// Paravirtual.
    #[default]
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Realtek 8139.
    Rtl8139,
}

impl NicModel {
    /// QEMU's device for it on a PCI board.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            Self::E1000 => "e1000",
            Self::Rtl8139 => "rtl8139",
        }
    }
}

/// What a network card is plugged into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NicNetwork {
    /// QEMU's own NAT; the guest reaches out, nothing reaches in.
    #[default]
    User,
    /// A named network; each host's agent knows what stands behind the name.
    Network(Name),
    /// A tap interface of this name, made by the agent when it is not there.
    Tap(String),
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| {
            Invalid::new("mac", format!("{text:?} {why}"), "six hex pairs, unicast: 52:54:00:12:34:56")
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2).ok_or_else(|| refuse("is no MAC address"))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse("is no MAC address"))?;
        }
        if parts.next().is_some() {
            return Err(refuse("is too long"));
        }
        if bytes[0] & 1 == 1 {
            return Err(refuse("is a multicast address"));
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A VNC display.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vnc {
    /// Address it listens on at the host; empty: 127.0.0.1.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub listen: String,
    /// TCP port.
    #[serde(default)]
    pub port: VncPort,
    /// Asked for when set; 1 to 8 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

impl Vnc {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        if !self.listen.is_empty() && self.listen.parse::<core::net::IpAddr>().is_err() {
            return Err(Invalid::new(
                "listen",
                format!("{:?} is no IP address", self.listen),
                "an IPv4 or IPv6 address",
            ));
        }
        if let VncPort::Fixed(port) = self.port {
            in_range("port", port.into(), 5900..=65_535)?;
        }
        match &self.password {
            Some(password) if password.expose() != Secret::REDACTED => {
                in_range("password (bytes)", password.expose().len() as u64, 1..=VNC_PASSWORD_MAX as u64)
            }
            _ => Ok(()),
        }
    }
}

/// Which TCP port the display takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VncPort {
    /// The first free one from 5900.
    #[default]
    Auto,
    /// This one, 5900 and up.
    Fixed(u16),
}

pub(super) fn validate_path(field: &str, path: &str) -> Result<(), Invalid> {
    let sound = path.starts_with('/') && path.len() <= PATH_MAX && !path.contains('\0');
    if sound && !path.split('/').any(|part| part == "..") {
        return Ok(());
    }
    Err(Invalid::new(
        field,
        format!("{path:?} is not usable"),
        "an absolute path without .. of at most 4095 bytes",
    ))
}
