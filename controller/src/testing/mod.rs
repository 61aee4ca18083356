//! Controllers in one process on loopback, and an agent that plays its part without a hypervisor.

mod agent;
mod cluster;

use std::time::{Duration, Instant};

pub(crate) use agent::FakeAgent;
pub(crate) use cluster::{Cluster, code, key, ok, vm};

/// How long a test waits for what must happen: far beyond what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for `future`, not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("never happened: {what}"),
    }
}
