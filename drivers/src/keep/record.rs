//! What is kept on disk of each guest: `guest.json`, for what cannot be seen by looking at its processes.

use dunlin_model::observed::EndCause;
use dunlin_model::{Incarnation, Name, VmId};
use serde::{Deserialize, Serialize};

use crate::hypervisor::{Guest, Run};
use crate::process::ProcessId;

/// Version of guest.json. A reader refuses a higher one and leaves that guest alone.
pub(super) const RECORD_VERSION: u32 = 1;

/// guest.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) vm: VmId,
    pub(super) name: Name,
    /// The incarnation it carries now.
    pub(super) incarnation: Incarnation,
    /// A word in the processes' command line that no others have.
    pub(super) token: String,
    /// What is run for it, each time.
    pub(super) words: Vec<String>,
    /// Set right after the fork; none for one that was started paused.
    pub(super) process: Option<ProcessId>,
    /// It came up whole. What died before this point was never there.
    pub(super) started: bool,
    pub(super) ever_ran: bool,
    /// Somebody had it stand still.
    pub(super) paused: bool,
    pub(super) reboot_on_shutdown: bool,
    /// The power button was pressed, and nothing has come of it yet.
    pub(super) pressed: bool,
    /// Its process is killed only to be started anew.
    pub(super) resetting: bool,
    pub(super) reboots: u32,
    /// How it will have ended when its process is gone; written before it is killed.
    pub(super) ending: Option<(EndCause, String)>,
    pub(super) ended: Option<(EndCause, String)>,
}

impl Record {
    pub(super) fn guest(&self, pid: Option<u32>, resumed_at_ms: Option<u64>) -> Guest {
        let run = match &self.ended {
            Some((cause, message)) => Run::Ended(*cause, message.clone()),
            None if self.paused => Run::Paused,
            None => Run::Running,
        };
        Guest {
            vm: self.vm,
            name: self.name.clone(),
            incarnation: self.incarnation,
            pid: pid.filter(|_| self.ended.is_none()),
            vnc: None,
            endpoint: None,
            send: None,
            disk_bytes: Default::default(),
            layout: None,
            ever_ran: self.ever_ran,
            reboots: self.reboots,
            resumed_at_ms,
            run,
        }
    }
}
