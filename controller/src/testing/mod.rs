//! Controllers in one process on loopback, and an agent that plays its part without a hypervisor.

mod agent;
mod cluster;

use std::time::{Duration, Instant};

pub(crate) use agent::{FakeAgent, given, join};
pub(crate) use cluster::{Cluster, code, key, keyring, ok, shown, vm};

use dunlin_model::Timestamp;
use dunlin_state::trust::Ask;

/// How long a test waits for what must happen: far beyond what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate that a host asks for where nobody signs any.
pub(crate) fn ask(key: &str) -> Ask {
    Ask { key_sha256: key.to_owned(), authority: String::new(), expires: Timestamp::MAX }
}

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
