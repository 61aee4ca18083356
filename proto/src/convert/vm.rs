//! What is asked of a VM, and what is reported of it.

use dunlin_model::Invalid;
use dunlin_model::project::default_project;
use dunlin_model::vm as model;
use dunlin_model::vm::{SimSpec, VmSpec};

use super::{Wire, missing, read, refuse};
use crate::v1;

// Shape only: who holds a spec validates it, because the model names its fields from `spec.` on.
records!(VmSpec {
    power,
    cpus or VmSpec::new(0).cpus,
    mem_mib,
    driver,
    accel,
    arch,
    machine,
    cpu_model,
    boot,
    disks,
    nics,
    vnc,
    restart,
    placement,
    cloud_init,
    sim,
    project or default_project(),
});

records!(CloudInit { user_data, network_config });

choices!([default] Power { Stopped, Running, Paused });

choices!([default] AccelChoice { Any, Kvm, Tcg });

choices!([default] Arch { X86_64 = X8664, I686 });

choices!([default] MachineType { Q35, Pc, Microvm });

oneofs!([default] Boot in boot { Disk "disk", Kernel "kernel" { kernel, initrd, cmdline } as Kernel });

oneofs!(FileRef in file_ref { Image "image" (name), Path "path" (path) });

choices!([default] RestartPolicy { Never, OnCrash });

records!([default] Placement { host, host_labels, apart_from, rules, tolerates, prefers, resources });

records!(Rule { wants, with, over, weight });

choices!(Wants { Together, Apart });

choices!([default] Scope { Host, Rack, Zone });

records!([default] SimSpec {
    boot_ms or SimSpec::default().boot_ms,
    dirty_mib_s,
    cpu_percent or SimSpec::default().cpu_percent,
    fault_ppm,
    seed,
});

records!([default] VmStatus {
    phase,
    host,
    host_name,
    volumes_on,
    incarnation,
    continues,
    reason,
    message,
    pid,
    vnc,
    saved,
    migration,
    task,
    restarts,
    since as since_ms,
    chosen,
    last_host,
    built,
    pending,
    adoption,
});

records!(Built { cpus, mem_mib, disks, nics, layout, note }; |built| built.validate());

choices!(Adoption { Asked, Done, Leaving });

choices!([default] VmPhase { Stopped, Pending, Starting, Running, Paused, Saved, Failed, Deleting });

records!(SavedState { host, path, size_bytes });
