//! The threads of the core: consensus, its transport and its clocks run on a runtime of their own.
//!
//! Thousands of API calls that wait for a turn must not stand in front of a heartbeat or of an election: a thread that
//! mostly sleeps is given the CPU at once when it wakes, a task in a long queue is not.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// One thread may apply a pack while the other answers.
pub(super) const WORKERS: usize = 2;

/// A runtime that may be dropped anywhere.
pub(super) struct Threads {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    pub(super) fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(WORKERS).thread_name("raft").enable_all().build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> &Handle {
        self.runtime.as_ref().map(Runtime::handle).expect("there is a runtime until it is dropped")
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting would block whichever task holds the last handle; the store has closed by then.
            runtime.shutdown_background();
        }
    }
}
