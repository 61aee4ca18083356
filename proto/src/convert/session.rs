//! What a host is told and what it reports. The frames around these (`FromAgent`, `ToAgent`) stay generated types, used
//! at the two ends of the session only.

use dunlin_model::desired as model;
use dunlin_model::{Invalid, MigrationId};

use super::{Wire, missing, read, refuse};
use crate::v1;

records!(DesiredSet { host, generation, assignments, acts, images }; |set| {
    for (name, image) in &set.images {
        image.validate().map_err(|e| without_spec(e).under(&format!("images[{name}]")))?;
    }
    Ok(())
});

records!(Assignment { vm, name, incarnation, continues, spec, role, built }; |assignment| {
    assignment.spec.validate()?;
    match &assignment.role {
        model::Role::Receive { limits, .. } => {
            limits.validate().map_err(|e| without_spec(e).under("role.receive"))
        }
        model::Role::Send { limits, .. } => {
            limits.validate().map_err(|e| without_spec(e).under("role.send"))
        }
        model::Role::Run { .. }
        | model::Role::Adopt { .. }
        | model::Role::Release
        | model::Role::Hold
        | model::Role::Discard { .. } => Ok(()),
    }
});

/// The model names the fields of an image and of a migration's limits as they stand in those objects' specs.
fn without_spec(mut refusal: Invalid) -> Invalid {
    if let Some(rest) = refusal.field.strip_prefix("spec.") {
        refusal.field = rest.to_owned();
    }
    refusal
}

oneofs!(Role in role {
    Run "run" { power, restore_from, received } as Run,
    Hold "hold",
    Receive "receive" { migration, limits, disks } as Receive,
    Send "send" { migration, endpoint, limits, step, power } as Send,
    Discard "discard" { elsewhere } as Discard,
    Adopt "adopt" { power } as Adopt,
    Release "release",
});

choices!(SendStep { Copy, Switch, Cancel });

records!(ActOrder { task, vm, incarnation, act, cancel });

mod observed {
    use dunlin_model::observed as model;

    use super::{Invalid, Wire, missing, read, refuse, v1};

    records!(ObservedVm {
        vm,
        name,
        incarnation,
        process,
        has_volumes,
        pid,
        vnc,
        saved,
        disk_bytes,
        receive,
        send,
        resumed_at_ms,
        built
    });

    records!(UnmanagedVm { vm, name, driver, running, spec, problem, left_out });

    records!(Unmanaged { host, host_name, guest });

    records!(SavedFile { path, size_bytes, incarnation });

    oneofs!(Process in process {
        None "none",
        Starting "starting" { doing } as Starting,
        Running "running",
        Paused "paused",
        Incoming "incoming",
        Outgoing "outgoing",
        Ended "ended" { cause, message, ever_ran } as Ended,
        Unknown "unknown" { why } as Unknown,
    });

    choices!(EndCause { GuestShutdown, Told, Refused, Died });

    oneofs!(ReceiveState in receive_state {
        Preparing "preparing",
        Ready "ready" (endpoint),
        Arrived "arrived",
        Failed "failed" (why),
    });

    oneofs!(SendState in send_state {
        Copying "copying" (progress),
        AtSwitchover "at_switchover" (progress),
        Sent "sent" (figures),
        Holding "holding" (why),
        Cancelled "cancelled" (why),
    });

    records!(SendProgress {
        remaining_bytes,
        total_bytes,
        transferred_bytes,
        disk_bytes,
        disk_total_bytes,
        dirty_mib_s,
    });

    records!(ActReport { task, phase, progress_percent, message });

    records!(Sample { vm, cpu_ms, wait_ms, rss_mib, dirty_mib_s });
}

macro_rules! sides {
    ($($message:ident $state:ident;)*) => {$(
        impl Wire<v1::$message> for (MigrationId, dunlin_model::observed::$state) {
            fn to_wire(self) -> v1::$message {
                v1::$message { migration: self.0.to_wire(), state: self.1.to_wire() }
            }

            fn from_wire(wire: v1::$message) -> Result<Self, Invalid> {
                Ok((read(wire.migration, "migration")?, read(wire.state, "state")?))
            }
        }
    )*};
}

sides! {
    Receiving ReceiveState;
    Sending SendState;
}
