//! Measures guests at a steady pace. Samples go to the leader's memory and never into the log.

use std::time::Duration;

use dunlin_model::observed::Sample;

use crate::host::Host;

/// Between two measurements. CPU use over 5 s is smooth enough to balance by, and 1000 guests cost 200 reads a second.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Samples in one message: 40 bytes each, far below the 4 MiB a message may have.
pub(crate) const SAMPLES_MAX: usize = 4096;

/// Every guest of every driver, at most [`SAMPLES_MAX`].
pub(crate) async fn measure(host: &Host) -> Vec<Sample> {
    let mut samples = Vec::new();
    for driver in host.drivers.values() {
        match driver.sample().await {
            Ok(taken) => samples.extend(taken),
            Err(error) => tracing::debug!(%error, "guests could not be measured"),
        }
    }
    samples.truncate(SAMPLES_MAX);
    samples
}
