//! What is kept of one guest, and the transitions it can make: a running guest is nothing but its record and the clock.
//!
//! ```text
//! Booting --> Running <--> Paused            Incoming --> Arrived --> Running | Paused
//!                |           |
//!                +-----------+--> Outgoing   (sending: Copying -> AtSwitchover -> Switching -> Sent | Holding)
//!  any of them --> Ended
//! ```
//! Pure: every function takes the time. The file format is JSON with a version; a reader refuses versions it does not know.

use dunlin_model::migration::{Endpoint, MigrationFigures};
use dunlin_model::observed::EndCause;
use dunlin_model::vm::SimSpec;
use dunlin_model::{Incarnation, Name, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Version of the record's file format.
pub(super) const RECORD_VERSION: u32 = 1;

/// Everything the driver knows of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) vm: VmId,
    pub(super) name: Name,
    pub(super) incarnation: Incarnation,
    pub(super) mem_mib: u64,
    pub(super) sim: SimSpec,
    pub(super) disks: Vec<SimDisk>,
    /// The places of its NICs.
    #[serde(default)]
    pub(super) nics: BTreeSet<usize>,
    /// Its devices are not those of a fresh start.
    #[serde(default)]
    pub(super) refitted: bool,
    pub(super) vnc: Option<String>,
    pub(super) state: State,
    pub(super) ever_ran: bool,
    pub(super) memory: Memory,
    /// Restarts of its machine since this process took it over.
    pub(super) reboots: u32,
    /// Wall clock when its vCPUs last began to run; none while they stand still.
    pub(super) running_since_ms: Option<u64>,
    /// The power button was pressed; the guest is off at this time, or when its vCPUs next run after it.
    pub(super) power_off_at_ms: Option<u64>,
    pub(super) reboot_on_shutdown: bool,
    /// It does not hear its power button.
    pub(super) deaf: bool,
    pub(super) saving: Option<Saving>,
    pub(super) sending: Option<Sending>,
}

/// A disk, as far as a migration has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SimDisk {
    pub(super) name: Name,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) shared: bool,
}

/// The guest's memory: what a save or a migration has to carry for it to be the same guest afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Minted at each boot: two guests, or two boots of one, never have the same.
    pub content: u64,
    /// Boots, the first included.
    pub boots: u32,
    /// For how long its vCPUs ran since the first boot, ms.
    pub ran_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// The process comes up; vCPUs start at `ready_ms` unless `paused`.
    Booting {
        ready_ms: u64,
        paused: bool,
    },
    Running,
    Paused,
    /// `receiving` once a source has said hello: from then on this process can take no other stream.
    Incoming {
        listen: String,
        receiving: bool,
    },
    Arrived,
    /// `paused`: what it was before, and is again when the sending is called off.
    Outgoing {
        paused: bool,
    },
    Ended {
        cause: EndCause,
        message: String,
    },
}

/// A save under way. The file appears whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saving {
    pub(super) file: PathBuf,
    pub(super) paused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sending {
    pub(super) endpoint: Endpoint,
    /// Counts the sendings of this guest from here: a task that was called off knows by it that its time is over.
    pub(super) attempt: u64,
    /// The incarnation that was sent. Past the switch-over only a higher one may run here again.
    pub(super) incarnation: Incarnation,
    pub(super) started_ms: u64,
    pub(super) stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    Copying,
    AtSwitchover,
    /// Told to switch. Some or all of the last bytes may be out: written before the first of them.
    Switching,
    Sent(MigrationFigures),
    Holding(String),
    Cancelled(String),
}

impl Record {
    pub(super) fn live(&self) -> bool {
        !matches!(self.state, State::Ended { .. })
    }

    /// Is a task of this process needed to carry it on?
    pub(super) fn needs_link(&self) -> bool {
        let sending = self.sending.as_ref().is_some_and(|sending| sending.stage.under_way());
        self.live() && (sending || self.saving.is_some() || matches!(self.state, State::Incoming { .. }))
    }

    /// Lets the vCPUs run.
    pub(super) fn run(&mut self, now_ms: u64) {
        self.running_since_ms.get_or_insert(now_ms);
        self.ever_ran = true;
        self.state = State::Running;
    }

    /// Stops the vCPUs.
    pub(super) fn halt(&mut self, now_ms: u64, state: State) {
        self.memory.ran_ms = self.ran_ms(now_ms);
        self.running_since_ms = None;
        self.state = state;
    }

    /// For how long its vCPUs have run.
    pub(super) fn ran_ms(&self, now_ms: u64) -> u64 {
        self.memory.ran_ms + self.running_since_ms.map_or(0, |since| now_ms.saturating_sub(since))
    }

    /// A fresh start of its machine; running or not stays as it is.
    pub(super) fn reboot(&mut self) {
        self.memory.boots += 1;
        self.reboots += 1;
        self.memory.content = content(self.vm, self.incarnation, self.memory.boots);
        self.power_off_at_ms = None;
    }

    /// Its end. A sending that was under way ends with it.
    pub(super) fn end(&mut self, now_ms: u64, cause: EndCause, message: &str) {
        self.halt(now_ms, State::Ended { cause, message: message.to_owned() });
        self.power_off_at_ms = None;
        self.saving = None;
        if let Some(sending) = &mut self.sending
            && sending.stage.under_way()
        {
            sending.stage = Stage::Cancelled("the guest ended while it was sent".to_owned());
        }
    }

    /// The guest switches itself off, or starts again when somebody asked for that.
    pub(super) fn power_off(&mut self, now_ms: u64) {
        if self.reboot_on_shutdown {
            self.reboot_on_shutdown = false;
            self.reboot();
        } else {
            self.end(now_ms, EndCause::GuestShutdown, "the guest powered off");
        }
    }

    /// Back to what it was before a sending.
    pub(super) fn call_off(&mut self, now_ms: u64, why: &str) {
        if let State::Outgoing { paused } = self.state {
            if paused { self.state = State::Paused } else { self.run(now_ms) }
        }
        if let Some(sending) = &mut self.sending {
            sending.stage = Stage::Cancelled(why.to_owned());
        }
    }

    /// May vCPUs run here again although the guest was on its way out? Only under an incarnation that came after the
    /// sending: that is a hand-back.
    pub(super) fn handed_back(&self) -> bool {
        self.sending.as_ref().is_some_and(|sending| self.incarnation > sending.incarnation)
    }

    /// Bytes that a migration has to copy besides memory.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.disks.iter().filter(|disk| !disk.shared).map(|disk| disk.bytes).sum()
    }

    /// What becomes of it when the process that played it is gone and another one takes over.
    /// `saved`: the file of the save that was under way is there, whole.
    pub(super) fn adopt(&mut self, now_ms: u64, saved: bool) {
        if let State::Incoming { receiving: true, .. } = self.state {
            self.end(now_ms, EndCause::Died, "the agent ended while it received the guest");
        }
        if let Some(saving) = self.saving.take() {
            if saved {
                self.end(now_ms, EndCause::Told, "saved");
            } else if !saving.paused {
                self.run(now_ms);
            }
        }
        match self.sending.as_ref().map(|sending| sending.stage.clone()) {
            // Nothing of the last bytes was written: the destination cannot have the whole guest.
            Some(Stage::Copying | Stage::AtSwitchover) if self.live() => {
                self.call_off(now_ms, "the agent ended while it sent the guest");
            }
            // The last bytes may all be out, so the destination may run it: the only safe claim is that all is sent.
            Some(Stage::Switching) => {
                let figures = MigrationFigures::default();
                self.sending.iter_mut().for_each(|sending| sending.stage = Stage::Sent(figures));
            }
            _ => {}
        }
    }
}

impl Stage {
    /// Does a task work on it?
    pub(super) const fn under_way(&self) -> bool {
        matches!(self, Self::Copying | Self::AtSwitchover | Self::Switching)
    }
}

/// The memory's mark of one boot.
pub(super) fn content(vm: VmId, incarnation: Incarnation, boots: u32) -> u64 {
    let (high, low) = vm.0.as_u64_pair();
    [high, low, incarnation.0, boots.into()].into_iter().fold(0, |seed, part| super::fault::mix(seed ^ part))
}
