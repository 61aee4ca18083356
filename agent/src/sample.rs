//! Measures guests at a steady pace. Samples go to the leader's memory and never into the log.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::observed::Sample;
use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::host::Host;

/// Between two measurements. CPU use over 5 s is smooth enough to balance by, and 1000 guests cost 200 reads a second.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How long one driver may take over it: what comes later is of another moment.
const SAMPLE_MAX: Duration = Duration::from_secs(4);

/// Samples in one message: 40 bytes each, far below the 4 MiB a message may have.
const SAMPLES_MAX: usize = 4096;

/// What was measured last, and when, ms on this host's steady clock.
pub(crate) type Measured = (u64, Vec<Sample>);

/// Measures for as long as the agent lives, whether or not anybody listens.
pub(crate) async fn keep(host: Arc<Host>) {
    let began = Instant::now();
    let mut turns = interval(SAMPLE_INTERVAL);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let samples = measure(&host).await;
        host.measured.send_replace((at_ms, samples));
    }
}

/// Every guest of every driver that is there, at most [`SAMPLES_MAX`].
async fn measure(host: &Host) -> Vec<Sample> {
    let here = host.drivers.values().filter(|driver| !host.board.is_away(driver.name()));
    let taken = join_all(here.map(async |driver| match timeout(SAMPLE_MAX, driver.sample()).await {
        Ok(Ok(taken)) => taken,
        Ok(Err(error)) => {
            tracing::debug!(%error, "guests could not be measured");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(driver = %driver.name(), "guests were not measured in time");
            Vec::new()
        }
    }));
    let mut samples: Vec<Sample> = taken.await.into_iter().flatten().collect();
    samples.truncate(SAMPLES_MAX);
    samples
}
