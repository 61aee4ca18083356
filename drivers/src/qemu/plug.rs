//! Disks and NICs for a guest that runs, and from it.
//!
//! What is begun stands in the record first, so that an agent killed in the middle finds it and, asked again, ends it.
//! Whether a device is there is asked of QEMU every time; a guest lets go of one when its own kernel has done so, which
//! it may refuse, or never do.

use std::time::Duration;

use dunlin_model::vm::device;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::command;
use super::owner::{Answer, Fault, Owner};
use super::qmp::QmpError;
use super::seats::{self, Seat};
use crate::hypervisor::{Device, DeviceName, LaunchDisk, LaunchNic};

/// How long a guest may take to let go of a device. Linux does within 0.1 s, busy and emulated within one.
const LET_GO_DEADLINE: Duration = Duration::from_secs(8);
/// How often QEMU is asked whether a device is gone, should its event be lost.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Where QEMU keeps the devices that were given a name.
const NAMED_DEVICES: &str = "/machine/peripheral";

impl Owner {
    /// Gives the guest a device. Done when it has it.
    pub(super) async fn plug(&mut self, device: &Device) -> Result<Answer, Fault> {
        self.be_free_to_change()?;
        let name = device.name();
        let key = seats::key(&name);
        let port = match self.record.seats.taken.get(&key) {
            Some(seat) => seat.port,
            None => self.find_seat(device)?,
        };
        let node = seats::plugged_node(port);
        if !self.record.seats.taken.contains_key(&key) {
            let node = matches!(device, Device::Disk(_)).then(|| node.clone());
            self.record.seats.taken.insert(key.clone(), Seat { port, node });
            self.record.seats.moved = true;
            self.store(false).await?;
        }
        if self.has_device(port).await? {
            return Ok(Answer::Done);
        }
        let plugged = match device {
            Device::Disk(disk) => self.plug_disk(disk, port, &node).await,
            Device::Nic { index, card, end } => self.plug_nic(*index, card, end, port).await,
        };
        if let Err(fault) = plugged {
            // What QEMU said is worth more than what may go wrong with clearing up after it.
            let cleared = self.clear_away(&name, &node).await;
            self.note(cleared);
            return Err(fault);
        }
        if let Device::Disk(disk) = device
            && !disk.shared
        {
            let local = (node, disk.name.clone());
            if !self.record.local_disks.contains(&local) {
                self.record.local_disks.push(local);
            }
            self.measure_disks().await?;
        }
        self.store(true).await?;
        Ok(Answer::Done)
    }

    /// Takes a device from the guest. Done when it has none of that name.
    pub(super) async fn unplug(&mut self, name: &DeviceName) -> Result<Answer, Fault> {
        self.be_free_to_change()?;
        let key = seats::key(name);
        let Some(seat) = self.record.seats.taken.get(&key).cloned() else {
            let DeviceName::Disk(disk) = name else { return Ok(Answer::Done) };
            if self.record.local_disks.iter().any(|(_, local)| local == disk) {
                let why = format!("disk {disk} sits on a bus of which nothing can be taken while it runs");
                return Err(Fault::Refused(why));
            }
            return Ok(Answer::Done);
        };
        if self.has_device(seat.port).await? {
            if !self.running {
                return Err(Fault::Busy("a guest that stands still cannot let go of a device".to_owned()));
            }
            match self.qmp.run("device_del", json!({ "id": seats::id(seat.port) })).await {
                // Asked before, by us: it is at it.
                Err(QmpError::Refused { desc, .. }) if desc.contains("in the process of unplug") => {}
                asked => drop(asked?),
            }
            self.wait_let_go(seat.port).await?;
        }
        self.clear_away(name, seat.node.as_deref().unwrap_or_default()).await?;
        Ok(Answer::Done)
    }

    /// Neither a save nor a sending is under way, and it is all here.
    fn be_free_to_change(&self) -> Result<(), Fault> {
        if self.save.is_some() || self.sending.as_ref().is_some_and(|s| s.is_under_way() || s.has_left()) {
            return Err(Fault::Busy("it is being saved, or sent to another host".to_owned()));
        }
        if self.record.incoming && !self.record.ever_ran {
            return Err(Fault::Busy("it has not arrived yet".to_owned()));
        }
        Ok(())
    }

    fn find_seat(&self, device: &Device) -> Result<u32, Fault> {
        let machine = self.record.machine;
        let (seated, what) = match device {
            Device::Disk(disk) => (seats::seats_disk(machine, disk.bus), "a disk on this bus"),
            Device::Nic { card, .. } => (seats::seats_nic(machine, card.model), "a NIC of this model"),
        };
        if !seated {
            return Err(Fault::Refused(format!(
                "{what} cannot be plugged into a running {}",
                machine.as_str()
            )));
        }
        let full = || Fault::Refused(format!("all its {} ports are taken", self.record.seats.ports));
        self.record.seats.free().ok_or_else(full)
    }

    async fn plug_disk(&mut self, disk: &LaunchDisk, port: u32, node: &str) -> Result<(), Fault> {
        let there = self.qmp.run("query-named-block-nodes", json!({ "flat": true })).await?;
        let has = |name: &Value| there.as_array().into_iter().flatten().any(|one| one["node-name"] == *name);
        let direct = command::direct(std::slice::from_ref(disk))[0];
        for part in command::nodes(disk, node, disk.read_only, direct) {
            if !has(&part["node-name"]) {
                self.qmp.run("blockdev-add", part).await?;
            }
        }
        let (bus, addr) = seats::address(self.record.machine, port);
        let device = json!({ "driver": "virtio-blk-pci", "id": seats::id(port), "bus": bus, "addr": addr, "drive": node });
        self.qmp.run("device_add", device).await?;
        Ok(())
    }

    async fn plug_nic(
        &mut self,
        index: usize,
        card: &device::Nic,
        end: &LaunchNic,
        port: u32,
    ) -> Result<(), Fault> {
        let netdev = command::netdev(index);
        // Left by an agent that was killed before it could go on.
        let _ = self.qmp.run("netdev_del", json!({ "id": netdev })).await;
        let backend = match end {
            LaunchNic::User => json!({ "type": "user", "id": netdev }),
            LaunchNic::Tap(name) | LaunchNic::Veth { interface: name, .. } => {
                json!({ "type": "tap", "id": netdev, "ifname": name, "script": "no", "downscript": "no" })
            }
        };
        self.qmp.run("netdev_add", backend).await?;
        let (bus, addr) = seats::address(self.record.machine, port);
        let mac = card.mac.unwrap_or_else(|| command::mac_of(self.record.vm, index));
        let device = json!({
            "driver": card.model.device(), "id": seats::id(port), "bus": bus, "addr": addr, "netdev": netdev,
            "mac": mac.to_string(), "romfile": "",
        });
        self.qmp.run("device_add", device).await?;
        Ok(())
    }

    async fn has_device(&mut self, port: u32) -> Result<bool, Fault> {
        let named = self.qmp.run("qom-list", json!({ "path": NAMED_DEVICES })).await?;
        let id = seats::id(port);
        Ok(named.as_array().into_iter().flatten().any(|one| one["name"] == id.as_str()))
    }

    /// Waits until the guest has let go.
    async fn wait_let_go(&mut self, port: u32) -> Result<(), Fault> {
        let deadline = Instant::now() + LET_GO_DEADLINE;
        let id = seats::id(port);
        while self.has_device(port).await? {
            if Instant::now() >= deadline {
                return Err(Fault::Busy("the guest has not let go of it".to_owned()));
            }
            let event = tokio::select! {
                _ = self.process.gone() => return Err(QmpError::Closed("QEMU ended".to_owned()).into()),
                event = timeout_at(deadline.min(Instant::now() + LOOK_EVERY), self.events.recv()) => event,
            };
            let Ok(Ok(event)) = event else { continue };
            if event.name == "DEVICE_UNPLUG_GUEST_ERROR" && event.data["device"] == id.as_str() {
                return Err(Fault::Refused("the guest will not let go of it".to_owned()));
            }
            let heard = self.hear(event).await;
            self.note(heard);
        }
        Ok(())
    }

    /// Removes what stood behind a device that is gone, and its seat.
    async fn clear_away(&mut self, name: &DeviceName, node: &str) -> Result<(), Fault> {
        let port = self.record.seats.taken.get(&seats::key(name)).map(|seat| seat.port);
        if let Some(port) = port
            && self.has_device(port).await?
        {
            return Err(Fault::Busy("the device is still there".to_owned()));
        }
        match name {
            DeviceName::Nic(index) => {
                let gone = self.qmp.run("netdev_del", json!({ "id": command::netdev(*index) })).await;
                tolerate_absent(gone)?;
            }
            DeviceName::Disk(disk) => {
                for part in [command::view(node), node.to_owned(), command::file_node(node)] {
                    tolerate_absent(self.qmp.run("blockdev-del", json!({ "node-name": part })).await)?;
                }
                self.record.local_disks.retain(|(_, local)| local != disk);
                self.record.viewed.retain(|viewed| viewed != node);
                self.record.disk_bytes.remove(disk);
            }
        }
        self.record.seats.taken.remove(&seats::key(name));
        self.record.seats.moved = true;
        self.store(true).await?;
        Ok(())
    }
}

/// What is to go may be gone.
fn tolerate_absent(answer: Result<Value, QmpError>) -> Result<(), QmpError> {
    match answer {
        Err(QmpError::Refused { desc, .. })
            if desc.contains("not found") || desc.contains("ailed to find") =>
        {
            Ok(())
        }
        answer => answer.map(drop),
    }
}
