//! How often a wrong password may be tried. Kept in memory where logins are judged, on the leader; a new leader counts anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dunlin_model::{ErrorCode, Timestamp};
use dunlin_proto::Fault;

/// Failures are forgotten this long after the first of them, ms.
const WINDOW_MS: u64 = 300_000;
/// Failures of one user from one address: a forgotten password, tried and tried again.
const PER_USER_AND_ADDRESS_MAX: u32 = 5;
/// Failures from one address, whoever is tried: an office behind one address, or somebody who tries names.
const PER_ADDRESS_MAX: u32 = 50;
/// Failures of one user from anywhere: more addresses must not mean more guesses.
const PER_USER_MAX: u32 = 100;
/// Counts kept; the oldest go first.
const KEPT_MAX: usize = 10_000;

/// What has failed lately.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    counts: Mutex<BTreeMap<String, Count>>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    since: Timestamp,
    failures: u32,
}

fn keys(user: &str, address: &str) -> [(String, u32); 3] {
    [
        (format!("both {user} {address}"), PER_USER_AND_ADDRESS_MAX),
        (format!("address {address}"), PER_ADDRESS_MAX),
        (format!("user {user}"), PER_USER_MAX),
    ]
}

impl Attempts {
    /// Refuses an attempt after too many failures, with the time to wait.
    pub(crate) fn admit(&self, user: &str, address: &str, now: Timestamp) -> Result<(), Fault> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, most) in keys(user, address) {
            let Some(count) = counts.get(&key).filter(|count| count.failures >= most) else { continue };
            let left_ms = WINDOW_MS.saturating_sub(now.millis_since(count.since));
            if left_ms > 0 {
                let message = format!("too many wrong passwords; try again in {} s", left_ms.div_ceil(1_000));
                return Err(Fault::new(ErrorCode::TooManyAttempts, message));
            }
        }
        Ok(())
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, user: &str, address: &str, now: Timestamp) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= KEPT_MAX {
            counts.retain(|_, count| now.millis_since(count.since) < WINDOW_MS);
        }
        while counts.len() >= KEPT_MAX {
            let oldest = counts.iter().min_by_key(|(_, count)| count.since).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            counts.remove(&oldest);
        }
        for (key, _) in keys(user, address) {
            let count = counts.entry(key).or_insert(Count { since: now, failures: 0 });
            if now.millis_since(count.since) >= WINDOW_MS {
                *count = Count { since: now, failures: 0 };
            }
            count.failures += 1;
        }
    }

    /// Forgets the failures of a user who came in.
    pub(crate) fn succeeded(&self, user: &str, address: &str) {
        let [(both, _), _, _] = keys(user, address);
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(&both);
    }
}
