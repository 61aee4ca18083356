//! Tasks and acts.

use dunlin_model::Invalid;
use dunlin_model::task as model;

use super::{Wire, missing, read, refuse};
use crate::v1;

records!(TaskSpec { act, kind, uid, name });

oneofs!(Act in act {
    Shutdown "shutdown" { timeout_s } as Shutdown,
    Reboot "reboot" { timeout_s } as Reboot,
    Reset "reset",
    Save "save",
    Drain "drain",
});

records!([default] TaskStatus {
    phase,
    progress_percent,
    cancel,
    message,
    started as started_ms,
    ended as ended_ms,
    drain,
});

records!(DrainProgress { was_cordoned, moved, left, stuck, wave, waves, eta_s });

choices!([default] TaskPhase { Queued, Running, Succeeded, Failed, Cancelled });
