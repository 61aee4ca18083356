//! Cluster, image and event: the small ones.

use dunlin_model::Invalid;
use dunlin_model::cluster as model;
use dunlin_model::cluster::{BalanceSpec, ClusterSpec};

use super::{Wire, missing, read, refuse};
use crate::v1;

choices!([default] PlacementPolicy { Spread, Pack, PowerSaving });

records!([default] ClusterSpec {
    placement,
    cpu_overcommit_percent or ClusterSpec::default().cpu_overcommit_percent,
    host_reserve_mib or ClusterSpec::default().host_reserve_mib,
    migrations_per_host or ClusterSpec::default().migrations_per_host,
    migrations_per_fleet or ClusterSpec::default().migrations_per_fleet,
    spare_hosts,
    balance,
    weights,
    without,
    mem_overcommit_percent or ClusterSpec::default().mem_overcommit_percent,
});

records!([default] BalanceSpec { mode, level or BalanceSpec::default().level });

choices!([default] BalanceMode { Off, Recommend, Auto });

records!([default] ClusterStatus { controllers, leader, level });

records!(Controller { id, endpoint });

mod image {
    use dunlin_model::image as model;

    use super::{Invalid, Wire, missing, read, refuse, v1};

    choices!(ImageFormat { Raw, Qcow2, Vmdk });

    records!(ImageSpec { format, sha256, size_bytes, source });

    records!([default] ImageStatus {});
}

mod event {
    use dunlin_model::event as model;

    use super::{Invalid, Wire, missing, read, refuse, v1};

    choices!(EventLevel { Normal, Warning });

    records!(EventSpec { level, reason, message, about });

    records!(About { kind, name, uid });

    records!([default] EventStatus {});
}
