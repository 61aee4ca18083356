//! Which drivers are there: each is watched by a task of its own, so that one that is down or hangs holds up nobody else.
//!
//! ```text
//!            list of its guests, in time         probe
//!   Away --------------------------------> Here -------> told of
//!    ^  <---- no list: again after a while  |
//!    +------------ its daemon goes away ----+   its guests are Unknown until they were listed again
//! ```

use std::sync::Arc;
use std::time::Duration;

use dunlin_drivers::Hypervisor;
use dunlin_drivers::hypervisor::Presence;
use dunlin_model::capabilities::{DriverCapabilities, DriverName};
use tokio::sync::watch;

use crate::host::Host;

/// How long a driver may take to list its guests. The slowest takes over hundreds of processes in seconds; one that takes
/// longer is asked again, and meanwhile it is away.
const LIST_MAX: Duration = Duration::from_secs(60);

/// Between two attempts of a driver that says nothing of when it is back.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long the agent waits for its drivers before it says what it has. A vCPU is really run, which takes seconds; whoever
/// takes longer is told of when he is done.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What is said of a driver that was not heard of yet.
const TRYING: &str = "it is being tried out";

/// Takes over the guests of one driver, probes it, and does so again whenever it was away.
pub(crate) async fn tend(host: Arc<Host>, driver: Arc<dyn Hypervisor>) {
    let name = driver.name();
    let mut presence = driver.presence();
    let mut first = true;
    loop {
        let now = presence.borrow_and_update().clone();
        if let Presence::Away(why) = now {
            // It may be about to connect for the first time.
            if !std::mem::take(&mut first)
                || host.ground.within(SETTLE_MAX, changed(&mut presence)).await.is_none()
            {
                host.gone_away(name, why);
                changed(&mut presence).await;
            }
            continue;
        }
        if let Err(why) = take_over(&host, &driver).await {
            host.gone_away(name, why);
            host.ground.within(AGAIN_AFTER, changed(&mut presence)).await;
            continue;
        }
        tokio::select! {
            biased;
            probed = driver.probe() => host.probed(probed),
            () = changed(&mut presence) => continue,
        }
        changed(&mut presence).await;
    }
}

/// Whoever is always there never changes.
async fn changed(presence: &mut watch::Receiver<Presence>) {
    if presence.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn take_over(host: &Arc<Host>, driver: &Arc<dyn Hypervisor>) -> Result<(), String> {
    let before = host.board.all_news();
    let guests = match host.ground.within(LIST_MAX, driver.list()).await {
        Some(Ok(guests)) => guests,
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err(format!("it did not list its guests within {} s", LIST_MAX.as_secs())),
    };
    host.board.hear_all(driver.name(), guests, &before);
    for vm in host.board.back(driver.name()) {
        host.wake(vm);
    }
    Ok(())
}

impl Host {
    /// Waits until every driver was probed or is known to be away, but not for long.
    pub(crate) async fn settled(&self) {
        let mut probes = self.probes.subscribe();
        let all = probes.wait_for(|probes| probes.values().all(|probed| probed.away != TRYING));
        if self.ground.within(SETTLE_MAX, all).await.is_none() {
            tracing::warn!("a driver takes long to be tried out");
        }
    }

    fn gone_away(&self, driver: DriverName, why: String) {
        tracing::warn!(%driver, %why, "a driver is away");
        self.board.lose(driver, &why);
        self.probes.send_modify(|probes| {
            probes.entry(driver).or_insert_with(|| untried(driver)).away = why;
        });
    }

    fn probed(&self, probed: DriverCapabilities) {
        tracing::info!(driver = %probed.name, version = probed.version, away = probed.away, "a driver was probed");
        self.probes.send_modify(|probes| drop(probes.insert(probed.name, probed)));
    }
}

/// Of a driver of which nothing is known yet.
pub(crate) fn untried(name: DriverName) -> DriverCapabilities {
    DriverCapabilities { name, away: TRYING.to_owned(), ..DriverCapabilities::default() }
}
