//! Live migrations.

use dunlin_model::migration as model;
use dunlin_model::migration::{MigrationLimits, MigrationPhase};
use dunlin_model::{Invalid, Timestamp};

use super::{Wire, missing, read, refuse};
use crate::v1;

records!(MigrationSpec { vm, vm_name, to, cause, limits, grounds });

choices!(MigrationCause { User, Drain, Balance });

records!([default] MigrationLimits {
    downtime_ms or MigrationLimits::default().downtime_ms,
    bandwidth_mib_s,
    timeout_s or MigrationLimits::default().timeout_s,
});

records!([default] MigrationStatus {
    phase,
    from,
    from_name,
    to,
    to_name,
    incarnation,
    endpoint,
    outcome,
    cancel,
    reason,
    message,
    figures,
    history,
    chosen,
    effect,
    disk_bytes,
});

choices!([default] MigrationPhase {
    Planned, Reserved, Prepared, Copying, Switching, Done, Aborting, Aborted,
});

choices!(MigrationOutcome { Moved, StayedOnSource, HandedBack, Restarted, Gone });

records!(MigrationFigures { downtime_ms, total_ms, transferred_bytes, disk_bytes, stopped_at_ms });

records!(Endpoint { memory, disks });

impl Wire<v1::PhaseChange> for (MigrationPhase, Timestamp) {
    fn to_wire(self) -> v1::PhaseChange {
        v1::PhaseChange { phase: self.0.to_wire(), at_ms: self.1.to_wire() }
    }

    fn from_wire(wire: v1::PhaseChange) -> Result<Self, Invalid> {
        Ok((read(wire.phase, "phase")?, read(wire.at_ms, "at_ms")?))
    }
}
