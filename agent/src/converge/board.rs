//! The board: for each VM what is wanted, what is there, what is remembered, and whether somebody is at work on it.
//!
//! Memory only, behind one short lock that is never held across an await. Everything is written on it as it comes in,
//! from the session, the drivers and the workers; it decides nothing, but wakes who has to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_drivers::hypervisor::Guest;
use dunlin_model::capabilities::DriverName;
use dunlin_model::desired::{ActOrder, Assignment, DesiredSet};
use dunlin_model::image::ImageSpec;
use dunlin_model::observed::{ActReport, ObservedVm};
use dunlin_model::{Incarnation, Name, Revision, TaskId, VmId};
use thiserror::Error;
use tokio::sync::Notify;
use uuid::Uuid;

use super::observe::{act_report, observe};
use crate::journal::Record;

/// A desired set that is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unwanted {
    #[error("the desired set is for another host")]
    OtherHost,
    #[error("the desired set is of generation {came}, and {known} was taken in before")]
    Stale { came: Revision, known: Revision },
}

/// Everything about one VM at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) driver: Option<DriverName>,
    pub(crate) guest: Option<Guest>,
    pub(crate) desired: Option<Arc<Assignment>>,
    pub(crate) orders: Vec<ActOrder>,
    pub(crate) record: Arc<Record>,
    /// Why its driver cannot be asked now.
    pub(crate) away: Option<String>,
    /// A desired set has come since this process began: what it does not name has been dropped.
    pub(crate) told: bool,
}

#[derive(Debug)]
struct Slot {
    driver: Option<DriverName>,
    guest: Option<Guest>,
    /// Counts what was heard of the guest, so that an older list does not undo a newer notice.
    news: u64,
    desired: Option<Arc<Assignment>>,
    orders: Vec<ActOrder>,
    record: Arc<Record>,
    doing: Option<String>,
    working: bool,
    awake: bool,
    bell: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: BTreeMap<VmId, Slot>,
    /// Drivers whose guests cannot be seen now, and why.
    away: BTreeMap<DriverName, String>,
    generation: Revision,
    told: bool,
    images: Arc<BTreeMap<Name, ImageSpec>>,
    dirty: BTreeSet<VmId>,
    /// A desired set was taken in, and the leader has not been told yet.
    taken_in: bool,
    /// Which commands of users led to what is done: by VM or task.
    threads: BTreeMap<Uuid, String>,
}

/// Threads remembered: a host has fewer VMs and tasks than that.
const THREADS_MAX: usize = 16_384;

/// See the module docs.
#[derive(Debug, Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// What has been sent in this session, so that only changes are sent.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    vms: BTreeMap<VmId, ObservedVm>,
    acts: BTreeMap<TaskId, ActReport>,
}

/// What is to be reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) vms: Vec<ObservedVm>,
    pub(crate) gone: Vec<VmId>,
    pub(crate) acts: Vec<ActReport>,
    pub(crate) generation: Revision,
    /// A set of that generation was taken in since the last report.
    pub(crate) taken_in: bool,
}

impl Changes {
    /// Nothing that the leader does not know?
    pub(crate) fn is_empty(&self) -> bool {
        !self.taken_in && self.vms.is_empty() && self.gone.is_empty() && self.acts.is_empty()
    }
}

impl Slot {
    fn new(record: Record) -> Self {
        Self {
            driver: record.assignment.as_ref().map(|assignment| assignment.spec.driver),
            guest: None,
            news: 0,
            desired: None,
            orders: Vec::new(),
            record: Arc::new(record),
            doing: None,
            working: false,
            awake: false,
            bell: Arc::default(),
        }
    }

    /// The driver that has it, or else the one that is to have it.
    fn driver(&self) -> Option<DriverName> {
        self.driver.or_else(|| self.desired.as_ref().map(|desired| desired.spec.driver))
    }

    fn observed(&self, away: Option<&str>) -> Option<ObservedVm> {
        observe(&self.record, self.desired.as_deref(), self.guest.as_ref(), self.doing.as_deref(), away)
    }
}

impl Inner {
    fn slot(&mut self, vm: VmId, name: &Name) -> &mut Slot {
        self.slots.entry(vm).or_insert_with(|| Slot::new(Record::new(vm, name.clone())))
    }

    /// Everything of a driver is to be reported again.
    fn dirty_of(&mut self, driver: DriverName) -> Vec<VmId> {
        let of = |slot: &Slot| slot.driver() == Some(driver);
        let vms: Vec<VmId> = self.slots.iter().filter(|(_, slot)| of(slot)).map(|(vm, _)| *vm).collect();
        self.dirty.extend(&vms);
        vms
    }

    fn hear(&mut self, driver: DriverName, vm: VmId, guest: Option<Guest>) {
        let slot = match &guest {
            Some(guest) => self.slot(vm, &guest.name.clone()),
            None => match self.slots.get_mut(&vm) {
                Some(slot) => slot,
                None => return,
            },
        };
        slot.news += 1;
        slot.driver = Some(driver);
        if slot.guest != guest {
            slot.guest = guest;
            self.dirty.insert(vm);
        }
    }
}

impl Board {
    /// The board of a host whose journal holds `records`.
    pub(crate) fn new(records: Vec<Record>) -> Self {
        let mut inner = Inner::default();
        for record in records {
            inner.generation = inner.generation.max(record.generation);
            inner.dirty.insert(record.vm);
            inner.slots.insert(record.vm, Slot::new(record));
        }
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a desired set in. Returns the VMs that somebody has to look at.
    pub(crate) fn take_in(&self, set: DesiredSet, host: dunlin_model::HostId) -> Result<Vec<VmId>, Unwanted> {
        if set.host != host {
            return Err(Unwanted::OtherHost);
        }
        let mut inner = self.lock();
        if set.generation < inner.generation {
            return Err(Unwanted::Stale { came: set.generation, known: inner.generation });
        }
        let first = !std::mem::replace(&mut inner.told, true);
        inner.generation = set.generation;
        inner.taken_in = true;
        if *inner.images != set.images {
            inner.images = Arc::new(set.images);
        }
        let mut wanted: BTreeMap<VmId, Arc<Assignment>> =
            set.assignments.into_iter().map(|assignment| (assignment.vm, Arc::new(assignment))).collect();
        for assignment in wanted.values() {
            inner.slot(assignment.vm, &assignment.name);
        }
        let mut orders: BTreeMap<VmId, Vec<ActOrder>> = BTreeMap::new();
        for order in set.acts {
            orders.entry(order.vm).or_default().push(order);
        }
        let mut to_wake = Vec::new();
        let Inner { slots, dirty, .. } = &mut *inner;
        for (vm, slot) in slots.iter_mut() {
            let (desired, orders) = (wanted.remove(vm), orders.remove(vm).unwrap_or_default());
            if first || slot.desired != desired || slot.orders != orders {
                (slot.desired, slot.orders) = (desired, orders);
                dirty.insert(*vm);
                to_wake.push(*vm);
            }
        }
        drop(inner);
        self.changed.notify_one();
        Ok(to_wake)
    }

    /// The guests of a driver cannot be seen for now: nothing is said of them.
    pub(crate) fn lose(&self, driver: DriverName, why: &str) {
        let mut inner = self.lock();
        inner.away.insert(driver, why.to_owned());
        inner.dirty_of(driver);
        drop(inner);
        self.changed.notify_one();
    }

    /// They can be seen, and were all told. Returns those that somebody has to look at.
    pub(crate) fn back(&self, driver: DriverName) -> Vec<VmId> {
        let mut inner = self.lock();
        inner.away.remove(&driver);
        let vms = inner.dirty_of(driver);
        drop(inner);
        self.changed.notify_one();
        vms
    }

    /// Can its guests not be seen now?
    pub(crate) fn is_away(&self, driver: DriverName) -> bool {
        self.lock().away.contains_key(&driver)
    }

    /// How much has been heard of every guest so far.
    pub(crate) fn all_news(&self) -> BTreeMap<VmId, u64> {
        self.lock().slots.iter().map(|(vm, slot)| (*vm, slot.news)).collect()
    }

    /// The whole list of a driver. Guests of it that are not listed have no process and no trace. Of what was heard since
    /// `before` the list says nothing new.
    pub(crate) fn hear_all(&self, driver: DriverName, guests: Vec<Guest>, before: &BTreeMap<VmId, u64>) {
        let mut inner = self.lock();
        let old = |inner: &Inner, vm: &VmId| {
            inner.slots.get(vm).is_some_and(|slot| slot.news != before.get(vm).copied().unwrap_or(0))
        };
        let mut here: BTreeMap<VmId, Guest> = guests.into_iter().map(|guest| (guest.vm, guest)).collect();
        let missing = |slot: &Slot| slot.driver == Some(driver) && slot.guest.is_some();
        let gone: Vec<_> = inner
            .slots
            .iter()
            .filter(|(vm, slot)| missing(slot) && !here.contains_key(vm) && !old(&inner, vm))
            .map(|(vm, _)| *vm)
            .collect();
        for vm in gone {
            inner.hear(driver, vm, None);
        }
        while let Some((vm, guest)) = here.pop_first() {
            if !old(&inner, &vm) {
                inner.hear(driver, vm, Some(guest));
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// What a driver says of one guest; None: it has none.
    pub(crate) fn hear(&self, driver: DriverName, vm: VmId, guest: Option<Guest>) {
        self.lock().hear(driver, vm, guest);
        self.changed.notify_one();
    }

    /// How much has been heard of the guest so far.
    pub(crate) fn news(&self, vm: VmId) -> u64 {
        self.lock().slots.get(&vm).map_or(0, |slot| slot.news)
    }

    /// Everything about one VM.
    pub(crate) fn look(&self, vm: VmId) -> Option<Look> {
        let inner = self.lock();
        let slot = inner.slots.get(&vm)?;
        Some(Look {
            driver: slot.driver,
            guest: slot.guest.clone(),
            desired: slot.desired.clone(),
            orders: slot.orders.clone(),
            record: Arc::clone(&slot.record),
            away: slot.driver().and_then(|driver| inner.away.get(&driver)).cloned(),
            told: inner.told,
        })
    }

    /// Learns which commands led to what comes next.
    pub(crate) fn follow(&self, ids: impl IntoIterator<Item = (String, String)>) {
        let known = ids.into_iter().filter_map(|(uid, id)| Some((uid.parse().ok()?, id)));
        let mut inner = self.lock();
        if inner.threads.len() > THREADS_MAX {
            inner.threads.clear();
        }
        inner.threads.extend(known);
    }

    /// The command that led to what is done with a VM or for a task; empty: none of a user's, as far as is known.
    pub(crate) fn thread(&self, of: Uuid) -> String {
        self.lock().threads.get(&of).cloned().unwrap_or_default()
    }

    /// How many guests each driver has.
    pub(crate) fn guests(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        let inner = self.lock();
        for driver in inner.slots.values().filter(|slot| slot.guest.is_some()).filter_map(|slot| slot.driver)
        {
            *counts.entry(driver.to_string()).or_default() += 1;
        }
        counts
    }

    /// The images the last desired set named.
    pub(crate) fn images(&self) -> Arc<BTreeMap<Name, ImageSpec>> {
        Arc::clone(&self.lock().images)
    }

    /// The same; none before a desired set has come.
    pub(crate) fn images_told(&self) -> Option<Arc<BTreeMap<Name, ImageSpec>>> {
        let inner = self.lock();
        inner.told.then(|| Arc::clone(&inner.images))
    }

    /// The generation last taken in.
    pub(crate) fn generation(&self) -> Revision {
        self.lock().generation
    }

    /// The highest incarnation each VM was told.
    pub(crate) fn told(&self) -> BTreeMap<VmId, Incarnation> {
        self.lock().slots.iter().map(|(vm, slot)| (*vm, slot.record.told)).collect()
    }

    /// Puts up a record that is durable.
    pub(crate) fn remember(&self, record: Record) {
        let mut inner = self.lock();
        let vm = record.vm;
        if let Some(slot) = inner.slots.get_mut(&vm) {
            slot.driver = record.assignment.as_ref().map(|a| a.spec.driver).or(slot.driver);
            slot.record = Arc::new(record);
            inner.dirty.insert(vm);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Says what the agent is at with a VM that has no process.
    pub(crate) fn doing(&self, vm: VmId, doing: Option<String>) {
        let mut inner = self.lock();
        if let Some(slot) = inner.slots.get_mut(&vm)
            && slot.doing != doing
        {
            slot.doing = doing;
            inner.dirty.insert(vm);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Wakes the VM's worker. True when there is none and the caller must send one.
    pub(crate) fn wake(&self, vm: VmId) -> bool {
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get_mut(&vm) else { return false };
        slot.awake = true;
        slot.bell.notify_one();
        !std::mem::replace(&mut slot.working, true)
    }

    /// Rings when the VM's worker is woken.
    pub(crate) fn bell(&self, vm: VmId) -> Arc<Notify> {
        self.lock().slots.get(&vm).map(|slot| Arc::clone(&slot.bell)).unwrap_or_default()
    }

    /// The worker begins to look: what is written from now on wakes it again.
    pub(crate) fn begin_look(&self, vm: VmId) {
        if let Some(slot) = self.lock().slots.get_mut(&vm) {
            slot.awake = false;
        }
    }

    /// The worker has nothing to do. True when it may go home; false when it was woken meanwhile.
    pub(crate) fn leave(&self, vm: VmId) -> bool {
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get_mut(&vm) else { return true };
        slot.working = slot.awake;
        !slot.working
    }

    /// Tombstones beyond `max`, the oldest first, taken off the board.
    pub(crate) fn thin(&self, max: usize) -> Vec<VmId> {
        let mut inner = self.lock();
        let buried =
            |slot: &Slot| slot.record.is_tombstone() && slot.guest.is_none() && slot.desired.is_none();
        let mut tombs: Vec<_> = inner
            .slots
            .iter()
            .filter(|(_, slot)| buried(slot) && !slot.working)
            .map(|(vm, slot)| (slot.record.generation, *vm))
            .collect();
        tombs.sort_unstable();
        let surplus = tombs.len().saturating_sub(max);
        tombs.truncate(surplus);
        tombs.into_iter().map(|(_, vm)| vm).inspect(|vm| drop(inner.slots.remove(vm))).collect()
    }

    /// Waits until something is to be reported.
    pub(crate) async fn changed(&self) {
        let is_news = || {
            let inner = self.lock();
            inner.taken_in || !inner.dirty.is_empty()
        };
        while !is_news() {
            self.changed.notified().await;
        }
    }

    /// Everything there is, for the first report of a session.
    pub(crate) fn everything(&self, sent: &mut Sent) -> Changes {
        *sent = Sent::default();
        let mut inner = self.lock();
        inner.dirty = inner.slots.keys().copied().collect();
        drop(inner);
        let mut changes = self.changes(sent, usize::MAX);
        changes.gone.clear();
        changes
    }

    /// What has changed since it was last sent, of at most `max` VMs.
    pub(crate) fn changes(&self, sent: &mut Sent, max: usize) -> Changes {
        let mut inner = self.lock();
        let taken_in = std::mem::take(&mut inner.taken_in);
        let mut changes = Changes { generation: inner.generation, taken_in, ..Changes::default() };
        for _ in 0..max {
            let Some(vm) = inner.dirty.pop_first() else { break };
            let Some(slot) = inner.slots.get(&vm) else { continue };
            let away = slot.driver().and_then(|driver| inner.away.get(&driver));
            match slot.observed(away.map(String::as_str)) {
                Some(observed) if sent.vms.get(&vm) == Some(&observed) => {}
                Some(observed) => {
                    sent.vms.insert(vm, observed.clone());
                    changes.vms.push(observed);
                }
                // Said again whenever it is asked for again: the leader waits for it.
                None if sent.vms.remove(&vm).is_some() || slot.desired.is_some() => changes.gone.push(vm),
                None => {}
            }
            for (task, act) in &slot.record.acts {
                let report = act_report(*task, act);
                if sent.acts.get(task) != Some(&report) {
                    sent.acts.insert(*task, report.clone());
                    changes.acts.push(report);
                }
            }
        }
        changes
    }
}
