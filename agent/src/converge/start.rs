//! Bringing a VM up: disks, interfaces, process. May take minutes while an image comes, so it is given up as soon as
//! something else is wanted of the VM.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dunlin_drivers::hypervisor::{Launch, LaunchMode, LaunchNic};
use dunlin_model::VmId;
use dunlin_model::capabilities::DriverName;
use dunlin_model::desired::{Assignment, Role};
use dunlin_model::observed::EndCause;
use dunlin_model::vm::{Built, Power};

use super::board::Look;
use super::execute::{Trouble, is_transient};
use super::plan::Start;
use crate::host::Host;
use crate::journal::{Ended, Started};
use crate::network;
use crate::volumes::{Need, VolumeError};
use tokio_util::sync::CancellationToken;

/// Tries to bring a process up when the hypervisor says it may work later. Then it is reported as refused.
const START_TRIES_MAX: u32 = 5;

impl Host {
    /// Brings the VM up, or notes why not.
    pub(super) async fn start(&self, vm: VmId, look: &Look, mode: &Start, tries: u32) -> Result<(), Trouble> {
        let Some(desired) = &look.desired else { return Ok(()) };
        let given_up = CancellationToken::new();
        let prepare = self.prepare(vm, desired, look, mode, &given_up);
        tokio::pin!(prepare);
        let prepared = tokio::select! {
            // In this order, and not by chance: a simulation goes the same way again.
            biased;
            prepared = &mut prepare => prepared,
            () = self.wanted_otherwise(vm, desired) => {
                given_up.cancel();
                // It may be at something that has to be finished.
                prepare.await
            }
        };
        match prepared {
            Ok(launch) => self.bring_up(vm, desired, look, mode, launch, tries).await,
            Err(Trouble::Volume(VolumeError::GivenUp)) => Ok(()),
            Err(trouble) if may_pass(&trouble) => {
                self.board.doing(vm, Some(format!("{trouble}; trying again")));
                Err(trouble)
            }
            Err(trouble) => self.refuse(vm, desired, mode, trouble.to_string()).await,
        }
    }

    /// Waits until this is no longer to be started.
    async fn wanted_otherwise(&self, vm: VmId, desired: &Assignment) {
        let bell = self.board.bell(vm);
        let same = |now: &Assignment| {
            now.incarnation == desired.incarnation
                && std::mem::discriminant(&now.role) == std::mem::discriminant(&desired.role)
        };
        while self.board.look(vm).and_then(|look| look.desired).is_some_and(|now| same(&now)) {
            bell.notified().await;
        }
    }

    async fn prepare(
        &self,
        vm: VmId,
        desired: &Assignment,
        look: &Look,
        mode: &Start,
        given_up: &CancellationToken,
    ) -> Result<Launch, Trouble> {
        let tell = |doing: String| self.board.doing(vm, Some(doing));
        tell("waiting for its turn".to_owned());
        let permit = given_up.run_until_cancelled(self.starts.acquire()).await;
        let _permit = permit.ok_or(VolumeError::GivenUp)?;
        tell("preparing".to_owned());
        let built = built_like(desired, look, mode);
        let spec = &built.as_ref().map_or_else(|| desired.spec.clone(), |built| built.onto(&desired.spec));
        let receiving = matches!(mode, Start::Receive(_));
        let none = BTreeMap::new();
        let sizes = match &desired.role {
            Role::Receive { disks, .. } => disks,
            _ => &none,
        };
        if receiving {
            self.make_targets(vm, desired.incarnation, spec, sizes).await?;
        }
        let catalog = self.board.images();
        let made = &look.record.volumes;
        let name = &desired.name;
        let need = Need { vm, name, spec, receiving, made, sizes, catalog: &catalog, given_up };
        let ready = self.volumes.prepare(need, &self.images, &tell).await?;
        self.amend(vm, |record| record.volumes.extend(ready.made.clone())).await?;
        let nics = match spec.driver {
            // A simulated guest sends nothing.
            DriverName::Test => vec![LaunchNic::User; spec.nics.len()],
            DriverName::Lxc => {
                let ends = network::ends(&self.config.networks, vm, &spec.nics)?;
                // Made by the driver, and gone with the container; remembered for a host that lost it in between.
                let names = ends.iter().filter_map(|end| match end {
                    LaunchNic::Veth { interface, .. } => Some(interface.clone()),
                    LaunchNic::User | LaunchNic::Tap(_) => None,
                });
                let names: Vec<_> = names.collect();
                self.amend(vm, |record| record.taps.extend(names)).await?;
                ends
            }
            DriverName::Qemu | DriverName::Uml | DriverName::Libvirt => {
                let missing = network::missing(&self.config.networks, vm, &spec.nics)?;
                self.amend(vm, |record| record.taps.extend(missing)).await?;
                network::plug(&self.config.networks, vm, &spec.nics).await?
            }
        };
        tell("starting".to_owned());
        Ok(Launch {
            vm,
            name: desired.name.clone(),
            incarnation: desired.incarnation,
            spec: spec.clone(),
            disks: ready.disks,
            kernel: ready.kernel,
            initrd: ready.initrd,
            nics,
            layout: built.map(|built| built.layout).filter(|layout| !layout.is_empty()),
            mode: self.launch_mode(desired, mode),
            paused: matches!(desired.role, Role::Run { power: Power::Paused, .. }),
        })
    }

    fn launch_mode(&self, desired: &Assignment, mode: &Start) -> LaunchMode {
        match (mode, &desired.role) {
            (Start::Restore(file), _) => LaunchMode::Restore(PathBuf::from(file)),
            (Start::Receive(_), Role::Receive { limits, .. }) => {
                LaunchMode::Incoming { listen: self.config.address.clone(), limits: limits.clone() }
            }
            _ => LaunchMode::Boot,
        }
    }

    async fn bring_up(
        &self,
        vm: VmId,
        desired: &Assignment,
        look: &Look,
        mode: &Start,
        launch: Launch,
        tries: u32,
    ) -> Result<(), Trouble> {
        let incarnation = desired.incarnation;
        let receiving = match mode {
            Start::Receive(migration) => Some(*migration),
            Start::Boot | Start::Restore(_) => None,
        };
        let Some(driver) = self.drivers.get(&desired.spec.driver) else {
            let why = format!("driver {} is not enabled on this host", desired.spec.driver);
            return self.refuse(vm, desired, mode, why).await;
        };
        let started = |up| Some(Started { incarnation, receiving, up });
        let built = Built::of(&launch.spec);
        self.amend(vm, |record| {
            record.started = started(false);
            record.built = Some(built.clone());
            record.stuck.clear();
            record.ended = None;
            // Written before its vCPUs can run. A guest that is received is let run later, and that is written then.
            record.ran = if receiving.is_none() { Some(incarnation) } else { None };
        })
        .await?;
        match driver.start(launch).await {
            Ok(_) => {
                self.amend(vm, |record| record.started = started(true)).await?;
                self.refresh(vm, look).await?;
                self.board.doing(vm, None);
                Ok(())
            }
            Err(error) if is_transient(&error) && tries < START_TRIES_MAX => {
                self.board.doing(vm, Some(format!("{error}; trying again")));
                Err(error.into())
            }
            Err(error) => self.refuse(vm, desired, mode, error.to_string()).await,
        }
    }

    async fn refuse(
        &self,
        vm: VmId,
        desired: &Assignment,
        mode: &Start,
        message: String,
    ) -> Result<(), Trouble> {
        let receiving = match mode {
            Start::Receive(migration) => Some(*migration),
            Start::Boot | Start::Restore(_) => None,
        };
        let (incarnation, cause) = (desired.incarnation, EndCause::Refused);
        self.note_end(vm, Ended { incarnation, cause, message, ever_ran: false, receiving }).await
    }
}

/// The machine that the memory to come is of, where that is not as the spec says.
fn built_like(desired: &Assignment, look: &Look, mode: &Start) -> Option<Built> {
    match mode {
        Start::Boot => None,
        Start::Restore(_) => look.record.saved.as_ref().and_then(|saved| saved.built.clone()),
        Start::Receive(_) => desired.built.clone(),
    }
}

/// Will it work when tried again later, without anybody changing anything?
fn may_pass(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Volume(error) => error.is_transient(),
        Trouble::Journal(_) | Trouble::NotYet(_) => true,
        Trouble::Driver(_) | Trouble::Network(_) | Trouble::Saved(_) => false,
    }
}
