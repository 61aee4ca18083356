//! One who follows a guest's console over all its moves, and counts.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{Fleet, eventually};

/// `dunlin vm logs -f NAME`, and what it has printed.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Follower {
    /// Begins to follow.
    pub fn start(fleet: &Fleet, vm: &str) -> anyhow::Result<Self> {
        let mut child = fleet.command(&["vm", "logs", "-f", vm])?.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no pipe")?;
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let said = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, lines, reader: Some(reader) })
    }

    /// Waits until tick `last` was read; every tick up to it must have been, once and in order.
    pub fn reads_every_tick_until(&self, last: u64, limit: Duration) -> anyhow::Result<()> {
        let ticks = eventually("the newest tick is read", limit, || {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let number = |line: &String| line.strip_prefix("tick ")?.split(' ').next()?.parse::<u64>().ok();
            let ticks: Vec<u64> = lines.iter().filter_map(number).collect();
            match ticks.last() {
                Some(newest) if *newest >= last => Ok(ticks),
                newest => Err(format!("of {last} ticks the newest read is {newest:?}")),
            }
        })?;
        ensure!(ticks.first() == Some(&0), "the first tick read is {:?}", ticks.first());
        for pair in ticks.windows(2) {
            ensure!(pair[1] == pair[0] + 1, "after tick {} comes tick {}", pair[0], pair[1]);
        }
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It ends by itself only when its VM does.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
