//! Giving a process that runs the disks and NICs its spec asks for now, and taking those it does not.
//!
//! [`next`] is pure and says one change; [`Host::refit`] does it. The journal says how the process is built: a change is
//! in it once it is done, so one that was cut short is done again, which the driver finds done or finishes. What cannot
//! be done is remembered with the reason until another spec comes, and waits for the next start.

use std::collections::BTreeMap;

use dunlin_drivers::error::DriverErrorKind;
use dunlin_drivers::hypervisor::{Device, DeviceName};
use dunlin_model::vm::{Built, NicNetwork, VmSpec};
use dunlin_model::{Name, VmId};

use super::board::Look;
use super::execute::Trouble;
use crate::host::Host;
use crate::network;
use crate::volumes::Need;
use tokio_util::sync::CancellationToken;

/// Tries to have a guest let go of a device, or to give it one, before it waits for the next start.
const TRIES_MAX: u32 = 2;

/// One change of a running machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It gets this disk of its spec.
    PlugDisk(Name),
    /// It loses this disk.
    UnplugDisk(Name),
    /// It gets its next NIC.
    PlugNic(usize),
    /// It loses its last NIC.
    UnplugNic(usize),
}

impl Change {
    /// The field of the spec it is about, as [`Built::pending`] has it.
    pub(super) fn field(&self) -> String {
        match self {
            Self::PlugDisk(name) | Self::UnplugDisk(name) => format!("disks[{name}]"),
            Self::PlugNic(index) | Self::UnplugNic(index) => format!("nics[{index}]"),
        }
    }
}

/// The next change towards `spec` that is not known to be impossible. A disk that changed under its name waits: its
/// bytes may be the same, and nobody pulls a disk from under a guest to put it back.
pub(crate) fn next(built: &Built, spec: &VmSpec, stuck: &BTreeMap<String, String>) -> Option<Change> {
    let has = |name: &Name| built.disks.iter().any(|disk| disk.name == *name);
    let wants = |name: &Name| spec.disks.iter().any(|disk| disk.name == *name);
    let names =
        |disks: &[dunlin_model::vm::Disk]| disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>();
    let gone = names(&built.disks).into_iter().filter(|name| !wants(name)).map(Change::UnplugDisk);
    let fresh = names(&spec.disks).into_iter().filter(|name| !has(name)).map(Change::PlugDisk);
    let same = built.nics.iter().zip(&spec.nics).take_while(|(has, wants)| has == wants).count();
    // NICs are known by their places: to change one, those behind it go first and come again.
    let last = built.nics.len().checked_sub(1);
    let nic = match last.filter(|_| built.nics.len() > same) {
        Some(last) => Some(Change::UnplugNic(last)),
        None => (same < spec.nics.len()).then_some(Change::PlugNic(same)),
    };
    gone.chain(fresh).chain(nic).find(|change| !stuck.contains_key(&change.field()))
}

impl Host {
    /// Does one change, or notes why it cannot be done.
    pub(super) async fn refit(
        &self,
        vm: VmId,
        look: &Look,
        change: &Change,
        tries: u32,
    ) -> Result<(), Trouble> {
        let Some(desired) = &look.desired else { return Ok(()) };
        let done = self.change(vm, look, &desired.spec, change).await;
        self.refresh(vm, look).await?;
        match done {
            Ok(()) => {
                tracing::info!(%vm, name = %look.record.name, ?change, "its machine was changed");
                self.amend(vm, |record| {
                    record.built.iter_mut().for_each(|built| note(built, &desired.spec, change));
                })
                .await
            }
            Err(trouble) if tries >= TRIES_MAX || is_final(&trouble) => {
                tracing::warn!(%vm, name = %look.record.name, ?change, %trouble, "its machine cannot be changed while it runs");
                self.amend(vm, |record| drop(record.stuck.insert(change.field(), trouble.to_string()))).await
            }
            Err(trouble) => Err(trouble),
        }
    }

    async fn change(&self, vm: VmId, look: &Look, spec: &VmSpec, change: &Change) -> Result<(), Trouble> {
        let driver = self.driver_of(look)?;
        match change {
            Change::UnplugDisk(name) => driver.unplug(vm, DeviceName::Disk(name.clone())).await?,
            Change::UnplugNic(index) => {
                driver.unplug(vm, DeviceName::Nic(*index)).await?;
                self.pull(vm, look, *index).await?;
            }
            Change::PlugDisk(name) => {
                let disk = self.make_disk(vm, look, spec, name).await?;
                driver.plug(vm, disk).await?;
            }
            Change::PlugNic(index) => {
                let nics = &spec.nics[..=*index];
                let missing = network::missing(&self.config.networks, vm, nics)?;
                self.amend(vm, |record| record.taps.extend(missing)).await?;
                let end = network::plug_one(&self.config.networks, vm, *index, &nics[*index]).await?;
                driver.plug(vm, Device::Nic { index: *index, card: nics[*index].clone(), end }).await?;
            }
        }
        Ok(())
    }

    /// Makes the disk's file, and says it as the driver needs it.
    async fn make_disk(&self, vm: VmId, look: &Look, spec: &VmSpec, name: &Name) -> Result<Device, Trouble> {
        let missing = || Trouble::NotYet(format!("disk {name} is not asked for any more"));
        let wanted = spec.disks.iter().find(|disk| disk.name == *name).cloned().ok_or_else(missing)?;
        let only = VmSpec {
            disks: vec![wanted],
            boot: dunlin_model::vm::Boot::Disk,
            cloud_init: None,
            ..spec.clone()
        };
        let (catalog, none, given_up) = (self.board.images(), BTreeMap::new(), CancellationToken::new());
        let made = &look.record.volumes;
        let need = Need {
            vm,
            name: &look.record.name,
            spec: &only,
            receiving: false,
            made,
            sizes: &none,
            catalog: &catalog,
            given_up: &given_up,
        };
        let tell = |_: String| {};
        let ready = self.volumes.prepare(need, &self.images, &tell).await?;
        self.amend(vm, |record| record.volumes.extend(ready.made.clone())).await?;
        ready.disks.into_iter().next().map(Device::Disk).ok_or_else(missing)
    }

    /// Removes the tap of a NIC that is gone, if it was made here.
    async fn pull(&self, vm: VmId, look: &Look, index: usize) -> Result<(), Trouble> {
        let nic = look.record.built.as_ref().and_then(|built| built.nics.get(index));
        let Some(NicNetwork::Network(_)) = nic.map(|nic| &nic.network) else { return Ok(()) };
        let tap = network::tap_name(vm, index);
        if look.record.taps.contains(&tap) {
            network::unplug(&tap).await?;
            self.amend(vm, |record| record.taps.retain(|kept| *kept != tap)).await?;
        }
        Ok(())
    }
}

/// Has the machine, as it is written down, changed so.
fn note(built: &mut Built, spec: &VmSpec, change: &Change) {
    match change {
        Change::UnplugDisk(name) => built.disks.retain(|disk| disk.name != *name),
        Change::UnplugNic(index) => built.nics.truncate(*index),
        Change::PlugDisk(name) => {
            built.disks.extend(spec.disks.iter().find(|disk| disk.name == *name).cloned());
        }
        Change::PlugNic(index) => built.nics.extend(spec.nics.get(*index).cloned()),
    }
}

/// Is there no use in trying it again?
fn is_final(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Driver(error) => {
            matches!(error.kind, DriverErrorKind::Unsupported | DriverErrorKind::Refused)
        }
        Trouble::Volume(error) => !error.is_transient(),
        Trouble::Network(_) => true,
        Trouble::Journal(_) | Trouble::NotYet(_) | Trouble::Saved(_) => false,
    }
}
