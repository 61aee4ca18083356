//! Guests that somebody else started: taken over, and let go of, without their noticing.

use dunlin_model::VmId;
use dunlin_model::observed::EndCause;

use super::board::Look;
use super::execute::{Trouble, is_transient};
use crate::host::Host;
use crate::journal::{Ended, Record, Started};

impl Host {
    /// Takes over the process, or notes why not. May be cut off anywhere: the driver's contract makes a second call
    /// complete the first.
    pub(super) async fn take_over(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        let Some(desired) = &look.desired else { return Ok(()) };
        let incarnation = desired.incarnation;
        let driver = self.driver_of(look)?;
        let started = |up| Some(Started { incarnation, receiving: None, up });
        self.amend(vm, |record| {
            (record.started, record.ended, record.ran) = (started(false), None, Some(incarnation));
        })
        .await?;
        match driver.adopt(vm, incarnation).await {
            Ok(guest) => {
                tracing::info!(%vm, name = %guest.name, %incarnation, "taken over as it runs");
                self.amend(vm, |record| record.started = started(true)).await?;
                self.refresh(vm, look).await?;
            }
            Err(error) if is_transient(&error) => return Err(error.into()),
            Err(error) => {
                let (cause, message) = (EndCause::Refused, error.to_string());
                let ended = Ended { incarnation, cause, message, ever_ran: false, receiving: None };
                self.note_end(vm, ended).await?;
            }
        }
        self.unmanaged_changed.notify_one();
        Ok(())
    }

    /// Lets the guest go on without us. What the fleet made for it stays as it is too, so there must be nothing that it
    /// would remove later.
    pub(super) async fn let_go(&self, vm: VmId, look: &Look) -> Result<(), Trouble> {
        if !look.record.volumes.is_empty() {
            let made: Vec<_> = look.record.volumes.keys().map(ToString::to_string).collect();
            return Err(Trouble::NotYet(format!("it has disks of the fleet's: {}", made.join(", "))));
        }
        tracing::info!(%vm, name = %look.record.name, "handed back as it is");
        self.driver_of(look)?.release(vm).await?;
        self.refresh(vm, look).await
    }

    /// Remembers nothing of it but its incarnation.
    pub(super) async fn bury(&self, vm: VmId) -> Result<(), Trouble> {
        self.amend(vm, Record::bury).await?;
        self.unmanaged_changed.notify_one();
        Ok(())
    }
}
