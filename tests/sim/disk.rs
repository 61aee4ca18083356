//! The disk an agent keeps its journal on, as POSIX promises one and no better.
//!
//! ```text
//!   write --> content in memory --sync(file)--> durable      names --sync(folder)--> durable
//!   power lost: of what was not made durable some is there, some is not, and some is half there
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_agent::files::Files;
use dunlin_agent::ground::{Later, Timer as _};

use crate::rng::Rng;
use crate::time::Time;

#[derive(Clone, Debug, Default)]
struct Node {
    content: Vec<u8>,
    /// What would be there after a power loss; None: nothing was ever made durable.
    durable: Option<Vec<u8>>,
    dirty: bool,
}

/// A change of names that no folder sync has covered yet.
#[derive(Clone, Debug)]
enum Renaming {
    Link(PathBuf, u64),
    Move(PathBuf, PathBuf),
    Unlink(PathBuf),
}

#[derive(Debug)]
struct Inner {
    rng: Rng,
    nodes: BTreeMap<u64, Node>,
    next: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending: Vec<Renaming>,
    full: bool,
    pace_ms: u64,
    /// The power goes in the middle of so many operations from now.
    dies_in: Option<u64>,
    dead: bool,
    /// Says it is durable and has done nothing: the fault that proves the net has no hole.
    lies: bool,
}

/// See the module docs.
#[derive(Debug)]
pub(crate) struct Disk {
    inner: Mutex<Inner>,
    time: Time,
}

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &Renaming) {
    match change {
        Renaming::Link(path, node) => drop(names.insert(path.clone(), *node)),
        Renaming::Move(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
        Renaming::Unlink(path) => drop(names.remove(path)),
    }
}

impl Inner {
    /// One more operation: does the disk still work? False: the power goes in the middle of this one.
    fn works(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(gone());
        }
        match &mut self.dies_in {
            Some(0) => {
                self.dead = true;
                Ok(false)
            }
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => Ok(true),
        }
    }

    fn change(&mut self, change: Renaming) -> io::Result<()> {
        let works = self.works()?;
        apply(&mut self.names, &change);
        self.pending.push(change);
        if works { Ok(()) } else { Err(gone()) }
    }

    fn node(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk {
    pub(crate) fn new(seed: u64, time: Time) -> Self {
        let inner = Mutex::new(Inner {
            rng: Rng::new(seed),
            nodes: BTreeMap::new(),
            next: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            full: false,
            pace_ms: 0,
            dies_in: None,
            dead: false,
            lies: false,
        });
        Self { inner, time }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// From now on every write takes so long.
    pub(crate) fn set_pace_ms(&self, ms: u64) {
        self.lock().pace_ms = ms;
    }

    pub(crate) fn set_lies(&self) {
        self.lock().lies = true;
    }

    /// The power goes in the middle of one of the next operations.
    pub(crate) fn die_soon(&self) {
        let mut inner = self.lock();
        inner.dies_in = Some(inner.rng.below(6));
    }

    /// The power stays.
    pub(crate) fn stop_dying(&self) {
        self.lock().dies_in = None;
    }

    /// Has the power gone in the middle of an operation?
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// The power is gone: what was not durable is there, or not, or half.
    pub(crate) fn lose_power(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        // Renamings reach the disk in their order, or not at all.
        let landed = usize::try_from(inner.rng.below(inner.pending.len() as u64 + 1)).expect("it is small");
        inner.names = inner.durable_names.clone();
        for change in inner.pending.drain(..).take(landed) {
            apply(&mut inner.names, &change);
        }
        inner.durable_names = inner.names.clone();
        for node in inner.nodes.values_mut().filter(|node| node.dirty) {
            let torn = usize::try_from(inner.rng.below(node.content.len() as u64 + 1)).expect("it is small");
            node.content = match (inner.rng.below(4), &node.durable) {
                (0, _) => node.content.clone(),
                (1, Some(durable)) => durable.clone(),
                (2, _) => vec![0; node.content.len()],
                _ => node.content.get(..torn).unwrap_or_default().to_vec(),
            };
            node.durable = Some(node.content.clone());
            node.dirty = false;
        }
        (inner.dead, inner.dies_in) = (false, None);
    }

    /// It is a new one.
    pub(crate) fn wipe(&self) {
        let mut inner = self.lock();
        inner.nodes.clear();
        inner.names.clear();
        inner.durable_names.clear();
        inner.pending.clear();
        (inner.dead, inner.dies_in) = (false, None);
    }
}

impl Files for Disk {
    fn make_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.lock();
        if inner.dead {
            return Err(gone());
        }
        Ok(inner.names.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        if inner.dead {
            return Err(gone());
        }
        let node = inner.node(path)?;
        Ok(inner.nodes[&node].content.clone())
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        let works = inner.works()?;
        let whole = works && !inner.full;
        let length = if whole { content.len() } else { content.len() / 2 };
        let number = match inner.node(path) {
            Ok(number) => number,
            Err(_) => {
                inner.next += 1;
                let (number, path) = (inner.next, path.to_owned());
                inner.names.insert(path.clone(), number);
                inner.pending.push(Renaming::Link(path, number));
                number
            }
        };
        let node = inner.nodes.entry(number).or_default();
        node.content = content.get(..length).unwrap_or_default().to_vec();
        node.dirty = true;
        match (works, whole) {
            (true, true) => Ok(()),
            (true, false) => Err(io::ErrorKind::StorageFull.into()),
            (false, _) => Err(gone()),
        }
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        if !inner.works()? {
            return Err(gone());
        }
        let number = inner.node(path)?;
        if !inner.lies
            && let Some(node) = inner.nodes.get_mut(&number)
        {
            node.durable = Some(node.content.clone());
            node.dirty = false;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.node(from)?;
        inner.change(Renaming::Move(from.to_owned(), to.to_owned()))
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        if !inner.works()? {
            return Err(gone());
        }
        if !inner.lies {
            inner.durable_names = inner.names.clone();
            inner.pending.clear();
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.node(path)?;
        inner.change(Renaming::Unlink(path.to_owned()))
    }

    fn pace(&self) -> Later {
        let mut inner = self.lock();
        let pace_ms = inner.pace_ms;
        let wait = Duration::from_millis(inner.rng.below(pace_ms + 1));
        drop(inner);
        self.time.sleep(wait)
    }
}
