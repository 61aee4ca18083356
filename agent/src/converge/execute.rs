//! Carries one step out: journal first where the step cannot be seen afterwards, then the driver's verb, then a look at
//! what has come of it.

use std::sync::Arc;

use dunlin_drivers::error::DriverErrorKind;
use dunlin_drivers::hypervisor::Run;
use dunlin_drivers::{DriverError, Hypervisor};
use dunlin_model::desired::{ActOrder, Assignment, Role};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::task::{Act, TaskPhase};
use dunlin_model::vm::Built;
use dunlin_model::{Incarnation, MigrationId, TaskId, VmId};
use thiserror::Error;

use super::act::ActStep;
use super::board::Look;
use super::plan::Step;
use super::worker::Next;
use crate::durable;
use crate::host::Host;
use crate::journal::{ActRecord, Ended, JournalError, Record, Saved, Sending, Started, TOMBSTONES_MAX};
use crate::metrics;
use crate::network::{self, NetworkError};
use crate::volumes::VolumeError;

/// Tries to list a driver's guests while they keep changing. Then the notices alone are believed.
const REFRESHES_MAX: u32 = 3;

/// Tries to begin a sending before the migration is reported as cancelled.
const SEND_TRIES_MAX: u32 = 5;

/// A call of the driver that changes what it has.
#[derive(Debug)]
enum Verb<'a> {
    Destroy,
    Pause,
    Resume,
    Adopt(Incarnation),
    SendTo(&'a Endpoint, &'a MigrationLimits),
    Switch,
    CallOff,
}

/// A step that failed and is to be tried again.
#[derive(Debug, Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("{0}")]
    NotYet(String),
    #[error("saved memory could not be removed: {0}")]
    Saved(#[source] std::io::Error),
}

impl Host {
    /// Does what was decided. `tries`: how often the very same has just failed.
    pub(crate) async fn carry_out(
        &self,
        vm: VmId,
        look: &Look,
        next: &Next,
        tries: u32,
    ) -> Result<(), Trouble> {
        match next {
            Next::Accept(desired) => self.accept(vm, desired).await,
            Next::Step(step) => self.step(vm, look, step, tries).await,
            Next::Act(order, step) => self.act(vm, look, order, step).await,
            Next::DropActs(tasks) => self.drop_acts(vm, look, tasks).await,
            Next::Wait(_) => Ok(()),
        }
    }

    /// Changes the VM's record, durably, before it is seen. Only the VM's own worker does.
    pub(crate) async fn amend(&self, vm: VmId, change: impl FnOnce(&mut Record)) -> Result<(), Trouble> {
        let Some(look) = self.board.look(vm) else { return Ok(()) };
        let mut record = (*look.record).clone();
        change(&mut record);
        if record == *look.record {
            return Ok(());
        }
        record.generation = record.generation.max(self.board.generation());
        let timed = metrics::JOURNAL.time();
        let kept = self.journal.keep(record).await?;
        drop(timed);
        self.board.remember(kept);
        Ok(())
    }

    async fn accept(&self, vm: VmId, desired: &Arc<Assignment>) -> Result<(), Trouble> {
        self.amend(vm, |record| {
            record.told = record.told.max(desired.incarnation);
            record.name = desired.name.clone();
            if matches!(desired.role, Role::Discard { .. } | Role::Release) {
                return;
            }
            super::targets::note_leaving(record, desired);
            if let (None, Some(before), Some(_)) = (&record.built, &record.assignment, &record.started) {
                // Brought up by an older agent, as it was told then.
                record.built = Some(Built::of(&before.spec));
            }
            if record.assignment.as_ref().is_none_or(|before| before.spec != desired.spec) {
                // What could not be done for another spec may be tried for this one.
                record.stuck.clear();
            }
            record.assignment = Some((**desired).clone());
        })
        .await
    }

    /// The driver that has, or is to have, the VM.
    pub(crate) fn driver_of(&self, look: &Look) -> Result<&Arc<dyn Hypervisor>, Trouble> {
        let name = look.driver.ok_or_else(|| Trouble::NotYet("no driver has this VM".to_owned()))?;
        let missing = || Trouble::NotYet(format!("driver {name} is not enabled on this host"));
        self.drivers.get(&name).ok_or_else(missing)
    }

    async fn step(&self, vm: VmId, look: &Look, step: &Step, tries: u32) -> Result<(), Trouble> {
        match step {
            Step::Rest => Ok(()),
            Step::Start(mode) => self.start(vm, look, mode, tries).await,
            Step::NoteEnd(ended) => self.note_end(vm, ended.clone()).await,
            Step::TakeOver => self.take_over(vm, look).await,
            Step::LetGo => self.let_go(vm, look).await,
            Step::Bury => self.bury(vm).await,
            Step::DropAll => self.drop_all(vm, look).await,
            Step::DropSaved => self.drop_saved(vm, look).await,
            Step::MigrateOut(migration) => self.migrate_out(vm, look, *migration, tries).await,
            Step::Refit(change) => self.refit(vm, look, change, tries).await,
            Step::Adopt(incarnation) => self.adopt(vm, look, *incarnation).await,
            Step::Forget => {
                self.driver_of(look)?.forget(vm).await?;
                self.unplug(vm, look).await?;
                self.refresh(vm, look).await
            }
            Step::Destroy => {
                tracing::info!(%vm, name = %look.record.name, "destroying its process");
                self.verb(vm, look, Verb::Destroy).await
            }
            Step::Pause | Step::Resume => {
                self.note_arrival(vm, look).await?;
                let verb = if *step == Step::Pause { Verb::Pause } else { Verb::Resume };
                self.verb(vm, look, verb).await
            }
            Step::Switch => self.verb(vm, look, Verb::Switch).await,
            Step::CallOff => self.verb(vm, look, Verb::CallOff).await,
        }
    }

    /// From here on a guest that was received may run. Not written a moment earlier: while bytes of it are on their way the
    /// loss of this host ends the attempt alone, its source has the guest.
    async fn note_arrival(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        let Some(guest) = look.guest.as_ref().filter(|guest| guest.run == Run::Arrived) else {
            return Ok(());
        };
        self.amend(vm, |record| record.ran = Some(guest.incarnation)).await
    }

    /// Calls a verb, and looks at what has come of it, whether or not it worked.
    async fn verb(&self, vm: VmId, look: &Look, verb: Verb<'_>) -> Result<(), Trouble> {
        let driver = self.driver_of(look)?;
        let done = match verb {
            Verb::Destroy => driver.destroy(vm).await,
            Verb::Pause => driver.pause(vm).await.map(drop),
            Verb::Resume => driver.resume(vm).await.map(drop),
            Verb::Adopt(incarnation) => driver.adopt_incarnation(vm, incarnation).await,
            Verb::SendTo(endpoint, limits) => driver.migrate_out(vm, endpoint.clone(), limits.clone()).await,
            Verb::Switch => driver.migrate_switch(vm).await,
            Verb::CallOff => driver.migrate_cancel(vm).await,
        };
        self.refresh(vm, look).await?;
        Ok(done?)
    }

    /// Puts on the board what the driver has now. A notice that comes meanwhile is newer than the list.
    pub(crate) async fn refresh(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        let driver = self.driver_of(look)?;
        for _ in 0..REFRESHES_MAX {
            let news = self.board.news(vm);
            let guest = driver.list().await?.into_iter().find(|guest| guest.vm == vm);
            if self.board.news(vm) == news {
                self.board.hear(driver.name(), vm, guest);
                break;
            }
        }
        Ok(())
    }

    pub(crate) async fn note_end(&self, vm: VmId, ended: Ended) -> Result<(), Trouble> {
        tracing::warn!(%vm, incarnation = %ended.incarnation, why = %ended.message, "the VM has ended");
        self.amend(vm, |record| record.ended = Some(ended)).await?;
        self.board.doing(vm, None);
        Ok(())
    }

    async fn adopt(&self, vm: VmId, look: &Look, incarnation: Incarnation) -> Result<(), Trouble> {
        self.verb(vm, look, Verb::Adopt(incarnation)).await?;
        let started = Started { incarnation, receiving: None, up: true };
        self.amend(vm, |record| (record.started, record.ran) = (Some(started), Some(incarnation))).await
    }

    async fn migrate_out(
        &self,
        vm: VmId,
        look: &Look,
        migration: MigrationId,
        tries: u32,
    ) -> Result<(), Trouble> {
        let Some(Role::Send { endpoint, limits, .. }) = look.desired.as_ref().map(|desired| &desired.role)
        else {
            return Ok(());
        };
        let sending = |begun, failed| Some(Sending { migration, begun, failed });
        self.amend(vm, |record| record.sending = sending(false, None)).await?;
        let done = self.verb(vm, look, Verb::SendTo(endpoint, limits)).await;
        match done {
            Ok(()) => self.amend(vm, |record| record.sending = sending(true, None)).await,
            Err(Trouble::Driver(error)) if !is_transient(&error) || tries >= SEND_TRIES_MAX => {
                self.amend(vm, |record| record.sending = sending(false, Some(error.to_string()))).await
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Removes the interfaces made for the VM.
    async fn unplug(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        for tap in &look.record.taps {
            network::unplug(tap).await?;
        }
        self.amend(vm, |record| record.taps.clear()).await
    }

    async fn drop_saved(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        if let Some(saved) = look.record.saved.clone() {
            durable::off_thread(move || durable::remove(&saved.file)).await.map_err(Trouble::Saved)?;
        }
        self.amend(vm, |record| record.saved = None).await
    }

    async fn drop_all(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        tracing::info!(%vm, name = %look.record.name, "removing what was made for it");
        self.drop_saved(vm, look).await?;
        self.unplug(vm, look).await?;
        if let Ok(driver) = self.driver_of(look) {
            driver.erase_log(vm).await?;
        }
        self.drop_targets(vm, look).await?;
        self.volumes.remove(vm).await?;
        self.amend(vm, Record::bury).await?;
        for old in self.board.thin(TOMBSTONES_MAX) {
            self.journal.forget(old)?;
        }
        Ok(())
    }

    async fn act(&self, vm: VmId, look: &Look, order: &ActOrder, step: &ActStep) -> Result<(), Trouble> {
        match step {
            ActStep::Wait(_) | ActStep::Over => Ok(()),
            ActStep::Save => self.save(vm, look, order).await,
            ActStep::Press => {
                let pressed_ms = self.now_ms();
                self.amend(vm, |record| {
                    record.acts.entry(order.task).and_modify(|act| act.pressed_ms = pressed_ms);
                })
                .await?;
                Ok(self.driver_of(look)?.shutdown(vm).await?)
            }
            ActStep::End(phase, message) => self.end_act(vm, look, order, *phase, message.clone()).await,
            ActStep::Begin => {
                tracing::info!(%vm, task = %order.task, act = order.act.as_str(), "beginning an act");
                let reboots = look.guest.as_ref().map_or(0, |guest| guest.reboots);
                let begun = begun(order, reboots, self.now_ms());
                self.amend(vm, |record| drop(record.acts.insert(order.task, begun))).await?;
                let driver = self.driver_of(look)?;
                let done = match order.act {
                    Act::Save => return self.save(vm, look, order).await,
                    Act::Reset => driver.reset(vm).await,
                    Act::Shutdown { .. } => driver.shutdown(vm).await,
                    Act::Reboot { .. } => match driver.reboot_on_shutdown(vm, true).await {
                        Ok(()) => driver.shutdown(vm).await,
                        Err(e) => Err(e),
                    },
                    Act::Drain => Ok(()),
                };
                match (done, &order.act) {
                    (Err(e), _) => self.end_act(vm, look, order, TaskPhase::Failed, e.to_string()).await,
                    (Ok(()), Act::Reset) => {
                        self.end_act(vm, look, order, TaskPhase::Succeeded, "the machine was reset".into())
                            .await
                    }
                    (Ok(()), _) => Ok(()),
                }
            }
        }
    }

    async fn end_act(
        &self,
        vm: VmId,
        look: &Look,
        order: &ActOrder,
        phase: TaskPhase,
        message: String,
    ) -> Result<(), Trouble> {
        tracing::info!(%vm, task = %order.task, act = order.act.as_str(), %phase, message, "an act has ended");
        if phase != TaskPhase::Succeeded && look.record.acts.contains_key(&order.task) {
            self.call_reboot_off(vm, look, &order.act).await;
        }
        let now_ms = self.now_ms();
        self.amend(vm, |record| {
            let act = record.acts.entry(order.task).or_insert_with(|| begun(order, 0, now_ms));
            act.ended = Some((phase, message));
        })
        .await
    }

    /// A reboot that is no longer waited for must not turn a later power-off into a restart.
    async fn call_reboot_off(&self, vm: VmId, look: &Look, act: &Act) {
        let alive = look.guest.as_ref().is_some_and(|guest| !matches!(guest.run, Run::Ended(..)));
        if let (Act::Reboot { .. }, true, Ok(driver)) = (act, alive, self.driver_of(look))
            && let Err(error) = driver.reboot_on_shutdown(vm, false).await
        {
            tracing::warn!(%vm, %error, "the guest's next power-off may still restart it");
        }
    }

    async fn drop_acts(&self, vm: VmId, look: &Look, tasks: &[TaskId]) -> Result<(), Trouble> {
        for act in tasks.iter().filter_map(|task| look.record.acts.get(task)) {
            if act.ended.is_none() {
                self.call_reboot_off(vm, look, &act.act).await;
            }
        }
        self.amend(vm, |record| record.acts.retain(|task, _| !tasks.contains(task))).await
    }

    async fn save(&self, vm: VmId, look: &Look, order: &ActOrder) -> Result<(), Trouble> {
        let file = self.saves.join(format!("{vm}-{}.memory", order.incarnation));
        let ended = look.guest.as_ref().is_some_and(|guest| matches!(guest.run, Run::Ended(..)));
        let saved = if ended {
            // Ended as it was told to: the file is whole if it is there at all.
            std::fs::metadata(&file).map(|meta| meta.len()).map_err(|e| format!("{}: {e}", file.display()))
        } else {
            let saved = self.driver_of(look)?.save(vm, file.clone()).await;
            self.refresh(vm, look).await?;
            saved.map_err(|e| e.to_string())
        };
        match saved {
            Err(why) => self.end_act(vm, look, order, TaskPhase::Failed, why).await,
            Ok(size_bytes) => {
                let now_ms = self.now_ms();
                let layout = look.guest.as_ref().and_then(|guest| guest.layout.clone()).unwrap_or_default();
                let built = look.record.built.clone().map(|built| Built { layout, ..built });
                let saved = Saved { file, size_bytes, incarnation: order.incarnation, built };
                self.amend(vm, |record| {
                    let act = record.acts.entry(order.task).or_insert_with(|| begun(order, 0, now_ms));
                    act.ended = Some((TaskPhase::Succeeded, format!("{size_bytes} bytes saved")));
                    record.saved = Some(saved);
                })
                .await
            }
        }
    }
}

fn begun(order: &ActOrder, reboots: u32, begun_ms: u64) -> ActRecord {
    let (act, incarnation) = (order.act.clone(), order.incarnation);
    ActRecord { act, incarnation, begun_ms, pressed_ms: 0, reboots, ended: None }
}

/// May the same call work when it is made again?
pub(crate) fn is_transient(error: &DriverError) -> bool {
    use DriverErrorKind::{Busy, Deadline, NotFound, Refused, Transient, Unsupported};
    match error.kind {
        Busy | Deadline | Transient => true,
        NotFound | Refused | Unsupported => false,
    }
}
