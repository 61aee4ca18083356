//! The disks given as paths, in a migration: received into files made at the same paths, and left behind under another
//! name. Journals each step before it is taken; the files themselves are [`crate::targets`]'.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dunlin_model::capabilities::DriverName;
use dunlin_model::desired::{Assignment, Role};
use dunlin_model::vm::{Disk, VmSpec};
use dunlin_model::{Incarnation, Name, VmId};

use super::board::Look;
use super::execute::Trouble;
use crate::durable::off_thread;
use crate::host::Host;
use crate::journal::{Left, Record, Target};
use crate::targets;
use crate::volumes::{self, VolumeError};

/// Keeps in mind which files a guest is sent away from, as long as that is the last that was heard of it.
pub(super) fn note_leaving(record: &mut Record, desired: &Assignment) {
    match desired.role {
        Role::Send { .. } => {
            let left = |disk: &Disk| {
                let (disk, path) = (disk.name.clone(), PathBuf::from(disk.own_path()?));
                Some(Left { disk, path, incarnation: desired.incarnation })
            };
            // What its process has, whatever its spec asks for by now.
            let spec =
                record.built.as_ref().map_or_else(|| desired.spec.clone(), |built| built.onto(&desired.spec));
            record.left = own_disks(&spec).filter_map(left).collect();
        }
        // It is here: handed back, or never sent.
        Role::Run { .. } | Role::Adopt { .. } | Role::Hold => record.left.clear(),
        Role::Receive { .. } | Role::Discard { .. } | Role::Release => {}
    }
}

/// Disks with files that a user put at a path; nothing reads those of a simulated guest.
fn own_disks(spec: &VmSpec) -> impl Iterator<Item = &Disk> {
    let real = spec.driver != DriverName::Test;
    spec.disks.iter().filter(move |disk| real && disk.own_path().is_some())
}

impl Host {
    /// Makes an empty file at the path of each disk that is received into one.
    pub(super) async fn make_targets(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        spec: &VmSpec,
        sizes: &BTreeMap<Name, u64>,
    ) -> Result<(), Trouble> {
        // It was here before, and lives elsewhere now: what it left must not stand in its own way.
        self.drop_left(vm).await?;
        for disk in own_disks(spec) {
            let Some(path) = disk.own_path().map(PathBuf::from) else { continue };
            let bytes = *sizes.get(&disk.name).ok_or_else(|| volumes::size_unknown(disk, &path))?;
            let known = self.board.look(vm).and_then(|look| look.record.targets.get(&disk.name).cloned());
            let target = Target { path, incarnation, mark: None };
            if let Some(known) = known {
                let same = known.path == target.path && known.incarnation == target.incarnation;
                if same && targets::is_there(&known) {
                    continue;
                }
                self.drop_target(vm, &disk.name, known).await?;
            }
            if let Err(trouble) = self.make_target(vm, disk, &target, bytes).await {
                let made = self.board.look(vm).and_then(|look| look.record.targets.get(&disk.name).cloned());
                self.drop_target(vm, &disk.name, made.unwrap_or(target)).await?;
                return Err(trouble);
            }
        }
        Ok(())
    }

    async fn make_target(&self, vm: VmId, disk: &Disk, target: &Target, bytes: u64) -> Result<(), Trouble> {
        let Target { path, incarnation, .. } = target;
        let no = |why| VolumeError::NotReceivable { disk: disk.name.clone(), path: path.clone(), why };
        if let Some(why) = targets::refusal(path, &self.config.data_dir) {
            return Err(no(why).into());
        }
        let failed = |source| VolumeError::Io { disk: disk.name.to_string(), source };
        self.note_target(vm, &disk.name, target.clone()).await?;
        let beside = targets::beside(path, vm, *incarnation);
        targets::begin(&beside).map_err(failed)?;
        volumes::make_empty(disk, bytes, &beside).await?;
        let from = beside.clone();
        let mark = off_thread(move || targets::finish(&from)).await.map_err(failed)?;
        self.note_target(vm, &disk.name, Target { mark: Some(mark), ..target.clone() }).await?;
        let to = path.clone();
        match off_thread(move || targets::claim(&beside, &to)).await {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(no(targets::taken()).into()),
            claimed => Ok(claimed.map_err(failed)?),
        }
    }

    async fn note_target(&self, vm: VmId, disk: &Name, target: Target) -> Result<(), Trouble> {
        self.amend(vm, |record| drop(record.targets.insert(disk.clone(), target))).await
    }

    async fn drop_target(&self, vm: VmId, disk: &Name, target: Target) -> Result<(), Trouble> {
        let failed = |source| VolumeError::Io { disk: disk.to_string(), source };
        off_thread(move || targets::unmake(&target, vm)).await.map_err(failed)?;
        self.amend(vm, |record| drop(record.targets.remove(disk))).await
    }

    /// The guest lives elsewhere: what was made here for it goes, and what somebody put here gets a name that says so.
    async fn drop_left(&self, vm: VmId) -> Result<(), Trouble> {
        let Some(look) = self.board.look(vm) else { return Ok(()) };
        for left in &look.record.left {
            match look.record.targets.get(&left.disk) {
                Some(target) if target.path == left.path => {
                    self.drop_target(vm, &left.disk, target.clone()).await?;
                }
                _ => set_aside(left, &look.record.name).await,
            }
        }
        self.amend(vm, |record| record.left.clear()).await
    }

    /// Told to let go of the VM. A disk that has been run from here is kept, if it may be the only one.
    pub(super) async fn drop_targets(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        let Some(desired) = &look.desired else { return Ok(()) };
        let elsewhere = matches!(desired.role, Role::Discard { elsewhere: true });
        if elsewhere {
            self.drop_left(vm).await?;
        }
        let Some(look) = self.board.look(vm) else { return Ok(()) };
        for (disk, target) in &look.record.targets {
            let ran = look.record.ran.is_some_and(|ran| ran >= target.incarnation);
            let called_off = elsewhere && desired.incarnation == target.incarnation;
            if !ran || called_off {
                self.drop_target(vm, disk, target.clone()).await?;
            }
        }
        Ok(())
    }
}

async fn set_aside(left: &Left, vm: &Name) {
    let to = Disk::left_behind(&left.path.display().to_string(), vm, left.incarnation);
    let (from, aside) = (left.path.clone(), PathBuf::from(&to));
    match off_thread(move || targets::set_aside(&from, Path::new(&aside))).await {
        Ok(()) => tracing::info!(disk = %left.disk, to, "the guest has left; its old disk was set aside"),
        // The guest is well where it is. Should it come back, it is told that the file is in its way.
        Err(error) => {
            tracing::warn!(disk = %left.disk, path = %left.path.display(), %error, "an old disk stays at its path");
        }
    }
}
