//! What an agent stands on besides its drivers: a clock, a timer and a file system. The machine's in a process; in a
//! simulation they are played, and everything goes as its seed says.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dunlin_pki::Clock;
use tokio::time::Instant;

use crate::files::{Files, ThisMachine};

/// A moment that comes.
pub type Later = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Time that passes, whatever a clock says.
pub trait Timer: Debug + Send + Sync {
    /// Since some moment before everything.
    fn elapsed(&self) -> Duration;
    /// Ready after so long.
    fn sleep(&self, time: Duration) -> Later;
}

/// The machine's.
#[derive(Clone, Copy, Debug)]
struct Machine(Instant);

impl Timer for Machine {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) -> Later {
        Box::pin(tokio::time::sleep(time))
    }
}

/// See the module docs.
#[derive(Clone, Debug)]
pub struct Ground {
    /// This host's time, ms since 1970.
    pub clock: Clock,
    /// What is waited by.
    pub timer: Arc<dyn Timer>,
    /// Where the journal is kept.
    pub files: Arc<dyn Files>,
}

impl Ground {
    /// What comes of it, unless that takes longer.
    pub(crate) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            // In this order, and not by chance: a simulation goes the same way again.
            biased;
            done = work => Some(done),
            () = self.timer.sleep(limit) => None,
        }
    }

    /// This machine's.
    pub(crate) fn this_machine() -> Self {
        let timer = Arc::new(Machine(Instant::now()));
        Self { clock: Clock::system(), timer, files: Arc::new(ThisMachine) }
    }
}
