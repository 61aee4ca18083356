//! Hosts, and what is probed of them.

use dunlin_model::Invalid;
use dunlin_model::host as model;

use super::{Wire, missing, read, refuse};
use crate::v1;

records!([default] HostSpec { cordoned, rack, zone, taints, resources });

records!([default] HostStatus { phase, capabilities, reserved, agent_version, session, since as since_ms, message });

choices!([default] HostPhase { Joining, Up, Down });

records!([default] Reserved { cpus, mem_mib, vms });

mod capabilities {
    use dunlin_model::capabilities as model;

    use super::{Invalid, Wire, missing, read, refuse, v1};

    records!([default] HostCapabilities {
        hostname,
        arch,
        kernel,
        cpu_model,
        cpu_features,
        cpus,
        mem_mib,
        disk_free_mib,
        address,
        networks,
        images,
        drivers,
    });

    choices!([default] DriverName { Qemu, Test, Libvirt, Lxc, Uml });

    records!(DriverCapabilities { name, version, accels, machines, cpu_models, powers, away });

    choices!(Accel { Kvm, Tcg, Simulated, Container, Uml });

    records!(AccelProbe { accel, usable, evidence });

    choices!(DriverPower { Pause, Shutdown, Reset, Save, Migrate, MigrateStorage, Console, Vnc, HotPlug });
}
