//! Guests on this host that nobody in the fleet manages: looked for at a steady pace, told whenever they are others.

use std::sync::Arc;
use std::time::Duration;

use dunlin_drivers::Hypervisor;
use dunlin_drivers::hypervisor::Foreign;
use dunlin_model::capabilities::DriverName;
use dunlin_model::observed::UnmanagedVm;
use tokio::time::{sleep, timeout};

use crate::host::Host;

/// Between two looks. Somebody else's tools start guests when they like; a person looks for them a little later.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a driver may take to list them.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Most that are told of: with a spec of 4 KiB each, 2 MiB, half of what a message may have.
const UNMANAGED_MAX: usize = 512;

/// Looks for as long as the agent lives.
pub(crate) async fn keep(host: Arc<Host>) {
    loop {
        let mut found = Vec::new();
        for driver in host.drivers.values().filter(|driver| !host.board.is_away(driver.name())) {
            found.extend(look(driver).await);
        }
        if found.len() > UNMANAGED_MAX {
            tracing::warn!(found = found.len(), told = UNMANAGED_MAX, "too many guests that nobody manages");
            found.truncate(UNMANAGED_MAX);
        }
        host.unmanaged.send_if_modified(|told| {
            *told != found && {
                *told = found;
                true
            }
        });
        let mut probes = host.probes.subscribe();
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = host.unmanaged_changed.notified() => {}
            // A driver has come, or has gone.
            _ = probes.changed() => {}
        }
    }
}

async fn look(driver: &Arc<dyn Hypervisor>) -> Vec<UnmanagedVm> {
    match timeout(LOOK_MAX, driver.foreign()).await {
        Ok(Ok(found)) => found.into_iter().map(|foreign| told(driver.name(), foreign)).collect(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "guests that nobody manages could not be listed");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// As the leader is told: a spec that it would refuse is said to be none.
fn told(driver: DriverName, foreign: Foreign) -> UnmanagedVm {
    let Foreign { vm, name, running, spec, left_out } = foreign;
    let spec = spec.and_then(|mut spec| {
        spec.driver = driver;
        spec.validate().map_err(|refusal| refusal.to_string())?;
        Ok(spec)
    });
    let (spec, problem) = match spec {
        Ok(spec) => (Some(spec), String::new()),
        Err(problem) => (None, problem),
    };
    UnmanagedVm { vm, name, driver, running, spec, problem, left_out }
}
