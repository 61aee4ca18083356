//! What the scheduler answers when asked.

use dunlin_model::Invalid;
use dunlin_model::advice as model;

use super::{Wire, missing, read};
use crate::v1;

records!(Explanation { kind, name, revision, facts, decided, now, hosts, would_help, make_room });

records!(HostVerdict { host, fits, score, reason, text });

records!(PlannedMove { wave, vm, from, to, grounds });

records!(Misfit { vm, host, reason, text });

records!(DrainPlan { revision, hosts, vms, moves, misfits, total_ms });

records!(BalancePlan {
    revision,
    mode,
    level,
    verdict,
    pain_before_milli,
    pain_after_milli,
    moves,
    hosts,
    distrusted,
    emptied,
});

records!(HostLoad { host, cpu_milli, asked_milli, asked_after_milli, mem_percent, vms, measured });

records!(Capacity { revision, cpus, mem_mib, fits, hosts, failures, survives, worst, misfits, verdict });

records!(HostRoom { host, fits, limit, cpus_free, mem_free_mib });
