//! Where devices sit that may be given to a running guest and taken away again.
//!
//! On q35 that is a port for each: the root bus itself cannot be changed while it runs. The old PC can change its root bus,
//! so there a port is one of its slots, counted from the end. A fresh guest has a port for each disk and NIC that can
//! sit in one, and [`SPARE`] more. The number of ports is part of the machine: a migration and a restore build the same.
//! Pure.

use std::collections::BTreeMap;

use dunlin_model::vm::built::LAYOUT_MAX;
use dunlin_model::vm::{DiskBus, MachineType, Nic, NicModel};
use serde::{Deserialize, Serialize};

use crate::hypervisor::{DeviceName, Launch};

/// Ports beyond those taken at the start. Each costs a guest's boot 25 ms under TCG, and next to nothing under KVM.
const SPARE: u32 = 4;
/// Most ports on q35: five slots of eight functions, from 1e downwards.
const Q35_PORTS_MAX: u32 = 40;
/// Most ports on the old PC, from slot 1f downwards: what is below is for what cannot be taken away.
const PC_PORTS_MAX: u32 = 20;
/// The last slot of q35's root bus that is free: 1f has the board's own devices.
const Q35_LAST: u32 = 0x1e;
/// The last slot of a PCI bus.
const PC_LAST: u32 = 0x1f;

/// Who sits where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seats {
    /// How many ports the machine has.
    pub(super) ports: u32,
    /// By [`key`].
    pub(super) taken: BTreeMap<String, Seat>,
    /// They sit elsewhere than a fresh start would put them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) moved: bool,
}

/// One device's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seat {
    /// Which port.
    pub(super) port: u32,
    /// Its block node; only of a disk that a process has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
}

/// A device's name in the table.
pub(super) fn key(device: &DeviceName) -> String {
    match device {
        DeviceName::Disk(name) => format!("disk:{name}"),
        DeviceName::Nic(index) => format!("nic:{index}"),
    }
}

/// Can a NIC of this model sit in a port of this machine?
pub(super) fn seats_nic(machine: MachineType, model: NicModel) -> bool {
    match machine {
        // A port of q35 is PCI Express; the others are not.
        MachineType::Q35 => model == NicModel::Virtio,
        MachineType::Pc => true,
        MachineType::Microvm => false,
    }
}

/// Can a disk on this bus sit in a port of this machine?
pub(super) fn seats_disk(machine: MachineType, bus: DiskBus) -> bool {
    bus == DiskBus::Virtio && machine != MachineType::Microvm
}

impl Seats {
    /// As the launch says, or as a fresh start puts them.
    pub(super) fn of(launch: &Launch) -> Result<Self, String> {
        let mut seats = match &launch.layout {
            Some(layout) => parse(layout)?,
            None => Self::fresh(launch),
        };
        seats.ports = seats.ports.min(most(launch.spec.machine));
        for (index, disk) in launch.disks.iter().enumerate() {
            if let Some(seat) = seats.taken.get_mut(&key(&DeviceName::Disk(disk.name.clone()))) {
                seat.node = Some(super::command::node(index));
            }
        }
        Ok(seats)
    }

    fn fresh(launch: &Launch) -> Self {
        let machine = launch.spec.machine;
        let disks = launch.disks.iter().filter(|disk| seats_disk(machine, disk.bus));
        let disks = disks.map(|disk| DeviceName::Disk(disk.name.clone()));
        let model = |index: usize| launch.spec.nics.get(index).map(|nic: &Nic| nic.model).unwrap_or_default();
        let nics = (0..launch.nics.len()).filter(|index| seats_nic(machine, model(*index)));
        let keys: Vec<_> = disks.chain(nics.map(DeviceName::Nic)).map(|device| key(&device)).collect();
        let wanted = u32::try_from(keys.len()).unwrap_or(u32::MAX).saturating_add(SPARE);
        let ports = wanted.min(most(machine));
        let taken = keys.into_iter().zip(0..ports).map(|(key, port)| (key, Seat { port, node: None }));
        Self { ports, taken: taken.collect(), moved: false }
    }

    /// A port that nobody sits in.
    pub(super) fn free(&self) -> Option<u32> {
        (0..self.ports).find(|port| self.taken.values().all(|seat| seat.port != *port))
    }

    /// What a process on another host has to be told to have them sit the same; none where a fresh start does that.
    pub(super) fn layout(&self) -> Option<String> {
        let seats = self.taken.iter().map(|(key, seat)| (key.clone(), Seat { node: None, ..seat.clone() }));
        let told = Self { taken: seats.collect(), ..self.clone() };
        self.moved.then(|| serde_json::to_string(&told).expect("strings and numbers"))
    }
}

/// Reads what [`Seats::layout`] wrote, perhaps on another host.
fn parse(layout: &str) -> Result<Seats, String> {
    let refuse = |why: String| Err(format!("the layout of its devices cannot be read: {why}"));
    if layout.len() > LAYOUT_MAX {
        return refuse(format!("{} bytes", layout.len()));
    }
    let seats: Seats = match serde_json::from_str(layout) {
        Ok(seats) => seats,
        Err(e) => return refuse(e.to_string()),
    };
    let mut ports: Vec<u32> = seats.taken.values().map(|seat| seat.port).collect();
    ports.sort_unstable();
    if ports.windows(2).any(|two| two[0] == two[1]) || ports.last().is_some_and(|last| *last >= seats.ports) {
        return refuse("two devices in one port, or one in none".to_owned());
    }
    Ok(seats)
}

fn most(machine: MachineType) -> u32 {
    match machine {
        MachineType::Q35 => Q35_PORTS_MAX,
        MachineType::Pc => PC_PORTS_MAX,
        MachineType::Microvm => 0,
    }
}

/// The ports themselves, as options of `-device`, in their order.
pub(super) fn ports(machine: MachineType, count: u32) -> Vec<String> {
    if machine != MachineType::Q35 {
        return Vec::new();
    }
    let port = |port: u32| {
        let (slot, function) = (Q35_LAST - port / 8, port % 8);
        let first = if function == 0 { ",multifunction=on" } else { "" };
        // No I/O ports: there are not enough for so many, and nothing that sits in one needs them.
        let chassis = port + 1;
        format!(
            "pcie-root-port,id=port{port},bus=pcie.0,addr={slot:#x}.{function},chassis={chassis},io-reserve=0{first}"
        )
    };
    (0..count).map(port).collect()
}

/// The bus and the address on it of what sits in a port.
pub(super) fn address(machine: MachineType, port: u32) -> (String, String) {
    match machine {
        MachineType::Q35 => (format!("port{port}"), "0x0".to_owned()),
        MachineType::Pc | MachineType::Microvm => ("pci.0".to_owned(), format!("{:#x}", PC_LAST - port)),
    }
}

/// The name QEMU knows a device in a port by.
pub(super) fn id(port: u32) -> String {
    format!("seat{port}")
}

/// The block node of a disk that came while the guest ran.
pub(super) fn plugged_node(port: u32) -> String {
    format!("plug{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout comes back as it was told, and one that puts two devices into one port, or one into none, is refused.
    #[test]
    fn a_layout_is_read_back_or_refused() {
        let seat = |port| Seat { port, node: Some("disk0".into()) };
        let taken = BTreeMap::from([("disk:vda".to_owned(), seat(0)), ("nic:0".to_owned(), seat(3))]);
        let seats = Seats { ports: 5, taken, moved: true };
        let told = seats.layout().expect("moved");
        let back = parse(&told).expect("read");
        assert_eq!((back.ports, back.free(), back.taken["nic:0"].port), (5, Some(1), 3));
        assert!(back.taken["disk:vda"].node.is_none(), "a node is a process's own");
        assert_eq!(Seats { moved: false, ..seats }.layout(), None);
        for bad in ["", "{}", "[]", r#"{"ports":1,"taken":{"a":{"port":1}}}"#, &"x".repeat(LAYOUT_MAX + 1)] {
            parse(bad).unwrap_err();
        }
        let twice = r#"{"ports":4,"taken":{"a":{"port":1},"b":{"port":1}}}"#;
        parse(twice).unwrap_err();
    }

    /// Every port has an address of its own.
    #[test]
    fn ports_do_not_collide() {
        let all = ports(MachineType::Q35, Q35_PORTS_MAX);
        let address =
            |word: &String| word.split(',').find(|part| part.starts_with("addr=")).unwrap().to_owned();
        let distinct: std::collections::BTreeSet<_> = all.iter().map(address).collect();
        assert_eq!(distinct.len(), 40);
        assert!(distinct.contains("addr=0x1e.0") && distinct.contains("addr=0x1a.7"));
    }
}
