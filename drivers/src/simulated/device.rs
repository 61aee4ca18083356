//! Devices that come and go while a simulated guest runs: lines in its record.

use super::record::{Record, SimDisk, State};
use crate::hypervisor::{Device, DeviceName};

/// Where its devices sit.
pub(super) fn layout(record: &Record) -> String {
    let disks: Vec<&str> = record.disks.iter().map(|disk| disk.name.as_str()).collect();
    let nics: Vec<String> = record.nics.iter().map(ToString::to_string).collect();
    format!("disks {}; NICs {}", disks.join(", "), nics.join(", "))
}

/// Gives it the device, unless it has it. False in a state in which nothing can be plugged in.
pub(super) fn plug(record: &mut Record, device: &Device) -> bool {
    if !matches!(record.state, State::Running | State::Paused) {
        return false;
    }
    match device {
        Device::Disk(disk) if record.disks.iter().all(|has| has.name != disk.name) => {
            let bytes = std::fs::metadata(&disk.path).map_or(0, |file| file.len());
            let (name, path) = (disk.name.clone(), disk.path.clone());
            record.disks.push(SimDisk { name, path, bytes, shared: disk.shared });
            record.refitted = true;
        }
        Device::Disk(_) => {}
        Device::Nic { index, .. } => {
            record.refitted |= record.nics.insert(*index);
        }
    }
    true
}

/// Takes the device away. Its kernel always lets go, but only while it runs: false when it stands still and has one.
pub(super) fn unplug(record: &mut Record, device: &DeviceName) -> bool {
    let has = match device {
        DeviceName::Disk(name) => record.disks.iter().any(|disk| disk.name == *name),
        DeviceName::Nic(index) => record.nics.contains(index),
    };
    if !has || record.state != State::Running {
        return !has;
    }
    record.refitted = true;
    match device {
        DeviceName::Disk(name) => record.disks.retain(|disk| disk.name != *name),
        DeviceName::Nic(index) => {
            record.nics.remove(index);
        }
    }
    true
}
