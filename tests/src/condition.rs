//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Between looks: short against a migration, long against a look.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value, and returns it. Fails with the last reason when `limit` is over.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() > deadline => anyhow::bail!("{what}: not within {limit:?}: {why}"),
            Err(_) => std::thread::sleep(LOOK_PAUSE),
        }
    }
}
