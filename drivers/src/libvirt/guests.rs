//! The guests of one driver, as they were last seen: records, what libvirt said of them, and who is at work on which.
//!
//! ```text
//!   libvirt's state, reason ----\
//!                                +--> [`Guest`], told when it has changed
//!   record (incarnation, end) --/
//! ```
//! An end is final: whatever is seen later of that domain, only a start makes it another guest. States are read over one
//! connection, in order; one that was asked for before the last that was taken in is old, and dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use dunlin_model::observed::{EndCause, SendProgress};
use dunlin_model::{Incarnation, VmId};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::record::{Outgoing, Record, Shelf, Stage};
use super::wire::calls::DomainState;
use super::{fail, fail_io};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Guest, Notice, Run, Send};

/// States of a domain, and reasons, as the API numbers them.
pub(super) mod state {
    pub(crate) const PAUSED: i32 = 3;
    pub(crate) const PAUSED_USER: i32 = 1;
    pub(crate) const PAUSED_MIGRATION: i32 = 2;
    pub(crate) const PAUSED_SHUTTING_DOWN: i32 = 8;
    pub(crate) const SHUTOFF: i32 = 5;
    pub(crate) const CRASHED: i32 = 6;
    pub(crate) const PM_SUSPENDED: i32 = 7;
    pub(crate) const OFF_SHUTDOWN: i32 = 1;
    pub(crate) const OFF_DESTROYED: i32 = 2;
    pub(crate) const OFF_SAVED: i32 = 5;
}

/// Notices kept for a slow receiver, which then lists all guests instead.
const NOTICES_MAX: usize = 1024;

/// What is only known while somebody looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) state: Option<DomainState>,
    pub(super) pid: Option<u32>,
    pub(super) vnc: Option<String>,
    pub(super) resumed_at_ms: Option<u64>,
    /// When a sending stopped its vCPUs.
    pub(super) stopped_at_ms: Option<u64>,
    /// How far a sending is.
    pub(super) progress: SendProgress,
    /// Ticket of the look it comes from.
    ticket: u64,
}

#[derive(Debug)]
struct Known {
    record: Record,
    seen: Seen,
    told: Option<Guest>,
    console: Option<JoinHandle<()>>,
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(console) = &self.console {
            console.abort();
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Guests {
    pub(super) shelf: Shelf,
    pub(super) notices: broadcast::Sender<Notice>,
    known: Mutex<BTreeMap<VmId, Known>>,
    busy: Mutex<BTreeSet<VmId>>,
    tickets: std::sync::atomic::AtomicU64,
}

/// Holds a guest for one verb.
#[derive(Debug)]
pub(super) struct Claim {
    guests: Arc<Guests>,
    vm: VmId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.guests.busy.lock().expect("no code panics while it holds this lock").remove(&self.vm);
    }
}

impl Guests {
    pub(super) fn new(shelf: Shelf) -> Self {
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        Self {
            shelf,
            notices,
            known: Mutex::default(),
            busy: Mutex::default(),
            tickets: std::sync::atomic::AtomicU64::new(1),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<VmId, Known>> {
        self.known.lock().expect("no code panics while it holds this lock")
    }

    /// Reads the records of an earlier agent, once per driver.
    pub(super) fn load(&self, verb: &'static str) -> DriverResult<()> {
        self.shelf.prepare().map_err(|e| fail_io(verb, &e))?;
        let records = self.shelf.all().map_err(|e| fail_io(verb, &e))?;
        let known =
            |record: Record| (record.vm, Known { record, seen: Seen::default(), told: None, console: None });
        self.known().extend(records.into_iter().map(known));
        Ok(())
    }

    /// One verb at a time.
    pub(super) fn claim(self: &Arc<Self>, vm: VmId, verb: &'static str) -> DriverResult<Claim> {
        let free = self.busy.lock().expect("no code panics while it holds this lock").insert(vm);
        let busy = || fail(verb, DriverErrorKind::Busy, "another verb is at work on this guest");
        if free { Ok(Claim { guests: Arc::clone(self), vm }) } else { Err(busy()) }
    }

    pub(super) fn all(&self) -> Vec<VmId> {
        self.known().keys().copied().collect()
    }

    pub(super) fn record(&self, vm: VmId) -> Option<Record> {
        self.known().get(&vm).map(|known| known.record.clone())
    }

    pub(super) fn guest(&self, vm: VmId) -> Option<Guest> {
        self.known().get(&vm).and_then(view)
    }

    /// Every guest that came up.
    pub(super) fn list(&self) -> Vec<Guest> {
        self.known().values().filter_map(view).collect()
    }

    /// The record of a guest that lives.
    pub(super) fn living(&self, vm: VmId, verb: &'static str) -> DriverResult<Record> {
        let none = || fail(verb, DriverErrorKind::NotFound, format!("there is no guest of VM {vm}"));
        let record = self.record(vm).ok_or_else(none)?;
        match &record.ended {
            None => Ok(record),
            Some((_, words)) => {
                Err(fail(verb, DriverErrorKind::NotFound, format!("the guest has ended: {words}")))
            }
        }
    }

    /// Puts a new guest in the place of whatever was there.
    pub(super) async fn place(self: &Arc<Self>, mut record: Record) -> DriverResult<()> {
        let vm = record.vm;
        {
            let mut known = self.known();
            let before = known.get(&vm).map_or(record.revision, |known| known.record.revision);
            // One that was forgotten has left its revision behind, which an older one would never get past.
            record.revision = before.max(self.shelf.last(vm)) + 1;
            known.insert(
                vm,
                Known { record: record.clone(), seen: Seen::default(), told: None, console: None },
            );
        }
        self.store(record, "start").await
    }

    /// Changes a record; durable when it returns.
    pub(super) async fn amend(
        self: &Arc<Self>,
        vm: VmId,
        verb: &'static str,
        change: impl FnOnce(&mut Record),
    ) -> DriverResult<()> {
        let record = {
            let mut known = self.known();
            let Some(known) = known.get_mut(&vm) else { return Ok(()) };
            change(&mut known.record);
            known.record.revision += 1;
            known.record.clone()
        };
        self.store(record, verb).await
    }

    async fn store(self: &Arc<Self>, record: Record, verb: &'static str) -> DriverResult<()> {
        let this = Arc::clone(self);
        let stored = tokio::task::spawn_blocking(move || this.shelf.store(&record)).await;
        stored.expect("the store does not panic").map_err(|e| fail_io(verb, &e))
    }

    /// Forgets a guest: there is none and was none.
    pub(super) fn remove(&self, vm: VmId, verb: &'static str) -> DriverResult<()> {
        let known = self.known().remove(&vm);
        let revision = known.map_or(0, |known| known.record.revision);
        self.shelf.remove(vm, revision).map_err(|e| fail_io(verb, &e))
    }

    /// Taken before a domain's state is asked for.
    pub(super) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// It has come up whole: what was seen of its domain before this does not count.
    pub(super) async fn came_up(self: &Arc<Self>, vm: VmId, verb: &'static str) -> DriverResult<()> {
        let ticket = self.ticket();
        self.note(vm, |seen| seen.ticket = ticket);
        self.amend(vm, verb, |record| record.started = true).await
    }

    /// Takes in what libvirt says of a domain; none: it has none. Tells it when it is news.
    pub(super) async fn take_in(
        self: &Arc<Self>,
        vm: VmId,
        ticket: u64,
        state: Option<DomainState>,
    ) -> DriverResult<()> {
        let changed = {
            let mut known = self.known();
            let Some(known) = known.get_mut(&vm) else { return Ok(()) };
            if ticket < known.seen.ticket || !known.record.started || known.record.ended.is_some() {
                return Ok(());
            }
            known.seen.ticket = ticket;
            let end = end_of(&known.record, state.as_ref());
            known.seen.state = state;
            if end.is_some() {
                known.seen = Seen { ticket, ..Seen::default() };
                known.record.ended = end;
                known.record.revision += 1;
                known.console.take().inspect(JoinHandle::abort);
                Some(known.record.clone())
            } else {
                None
            }
        };
        if let Some(record) = changed {
            self.store(record, "list").await?;
        }
        self.tell(vm);
        Ok(())
    }

    /// Notes what was seen beside the state.
    pub(super) fn note(&self, vm: VmId, note: impl FnOnce(&mut Seen)) {
        if let Some(known) = self.known().get_mut(&vm) {
            note(&mut known.seen);
        }
    }

    pub(super) fn seen(&self, vm: VmId) -> Option<Seen> {
        self.known().get(&vm).map(|known| known.seen.clone())
    }

    /// Tells the guest as it is, when that is news.
    pub(super) fn tell(&self, vm: VmId) {
        let mut known = self.known();
        let Some(known) = known.get_mut(&vm) else { return };
        let guest = view(known);
        if guest != known.told
            && let Some(guest) = &guest
        {
            // Nobody listening is no error.
            let _ = self.notices.send(Notice { guest: guest.clone() });
        }
        known.told = guest;
    }

    /// Has a task serve the guest's console, unless one does.
    pub(super) fn serve_console(&self, vm: VmId, serve: impl FnOnce() -> Option<JoinHandle<()>>) {
        if let Some(known) = self.known().get_mut(&vm)
            && known.record.ended.is_none()
            && known.console.as_ref().is_none_or(JoinHandle::is_finished)
        {
            known.console = serve();
        }
    }

    /// A higher incarnation carries on.
    pub(super) fn may_adopt(&self, vm: VmId, incarnation: Incarnation) -> DriverResult<bool> {
        let record = self.living(vm, "adopt_incarnation")?;
        if incarnation < record.incarnation {
            let words = format!("it carries {} already", record.incarnation);
            return Err(fail("adopt_incarnation", DriverErrorKind::Refused, words));
        }
        Ok(incarnation > record.incarnation)
    }
}

/// How a guest that is in this state has ended; none: it has not.
fn end_of(record: &Record, state: Option<&DomainState>) -> Option<(EndCause, String)> {
    // Nothing has come yet; reasons tell of what was there and is not any more.
    let waits = matches!(state, Some(DomainState { state: state::SHUTOFF, reason: 0 }));
    if record.incoming.is_some() && waits && record.ending.is_none() {
        return None;
    }
    let (cause, words) = match state {
        None => (EndCause::Died, "libvirt has no such domain any more"),
        Some(DomainState { state: state::SHUTOFF, reason }) => match *reason {
            state::OFF_SHUTDOWN => (EndCause::GuestShutdown, "the guest powered itself off"),
            state::OFF_SAVED => (EndCause::Told, "saved"),
            state::OFF_DESTROYED => (EndCause::Died, "somebody destroyed it through libvirt"),
            _ => (EndCause::Died, "its hypervisor has ended"),
        },
        Some(DomainState { state: state::CRASHED, .. }) => (EndCause::Died, "the guest crashed"),
        Some(_) => return None,
    };
    match record.ending {
        Some(told) => Some((told, "it was told to end".to_owned())),
        None => Some((cause, words.to_owned())),
    }
}

fn view(known: &Known) -> Option<Guest> {
    let (record, seen) = (&known.record, &known.seen);
    if !record.started {
        return None;
    }
    let run = run_of(record, seen)?;
    let ended = matches!(run, Run::Ended(..));
    let waits = record.incoming.as_ref().filter(|_| matches!(run, Run::Incoming));
    Some(Guest {
        vm: record.vm,
        name: record.name.clone(),
        incarnation: record.incarnation,
        run,
        pid: seen.pid,
        vnc: seen.vnc.clone(),
        endpoint: waits.cloned(),
        send: record.outgoing.as_ref().filter(|_| !ended).map(|outgoing| send_of(outgoing, seen)),
        disk_bytes: record.local_disks.iter().map(|(_, name, bytes)| (name.clone(), *bytes)).collect(),
        layout: None,
        ever_ran: record.ever_ran,
        reboots: record.reboots,
        resumed_at_ms: seen.resumed_at_ms,
    })
}

/// What its process does; none: it was not looked at yet.
fn run_of(record: &Record, seen: &Seen) -> Option<Run> {
    if let Some((cause, words)) = &record.ended {
        return Some(Run::Ended(*cause, words.clone()));
    }
    let DomainState { state, reason } = seen.state.as_ref()?;
    if record.incoming.is_some() {
        let arrived = (*state, *reason) == (state::PAUSED, state::PAUSED_USER);
        return Some(if arrived { Run::Arrived } else { Run::Incoming });
    }
    let stage = record.outgoing.as_ref().map(|outgoing| &outgoing.stage);
    match (stage, *state, *reason) {
        (Some(Stage::AtSwitchover | Stage::Switching | Stage::Sent(_) | Stage::Holding(_)), ..) => {
            Some(Run::Outgoing)
        }
        // It has just been stopped by its sending, which is about to be told.
        (Some(Stage::Copying), state::PAUSED, state::PAUSED_MIGRATION) => Some(Run::Running),
        (_, state::PAUSED, state::PAUSED_SHUTTING_DOWN) => Some(Run::Running),
        (_, state::PAUSED | state::PM_SUSPENDED, _) => Some(Run::Paused),
        _ => Some(Run::Running),
    }
}

fn send_of(outgoing: &Outgoing, seen: &Seen) -> Send {
    match &outgoing.stage {
        Stage::Copying => Send::Copying(seen.progress),
        Stage::AtSwitchover | Stage::Switching => Send::AtSwitchover(seen.progress),
        Stage::Sent(figures) => Send::Sent(*figures),
        Stage::Holding(words) => Send::Holding(words.clone()),
        Stage::Cancelled(words) => Send::Cancelled(words.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: i32, reason: i32) -> Option<DomainState> {
        Some(DomainState { state, reason })
    }

    /// A guest that was forgotten and is started again, by the same driver, is found by the next one.
    #[tokio::test]
    async fn what_is_started_again_is_written_again() {
        let dir = tempfile::tempdir().expect("dir");
        let vm: VmId = "6ecd1b2e-0000-4000-8000-000000000001".parse().expect("uid");
        let record = |number| Record::new(vm, "web".parse().expect("name"), Incarnation(number));
        let found = || {
            let next = Guests::new(Shelf::new(dir.path().to_owned()));
            next.load("list").expect("load");
            next.record(vm)
        };
        let guests = Arc::new(Guests::new(Shelf::new(dir.path().to_owned())));
        guests.load("list").expect("load");
        guests.place(record(3)).await.expect("place");
        guests.came_up(vm, "start").await.expect("up");
        guests.remove(vm, "forget").expect("forget");
        assert_eq!(found(), None);
        guests.place(record(4)).await.expect("place");
        assert_eq!(found(), guests.record(vm));
        guests.came_up(vm, "start").await.expect("up");
        assert!(found().is_some_and(|found| found.started && found.incarnation == Incarnation(4)));
    }

    /// A state becomes a guest's; an end stays one, whatever is seen after it; an old look changes nothing; and a notice
    /// is sent for news only.
    #[tokio::test]
    async fn ends_are_final_and_old_looks_are_dropped() {
        let dir = tempfile::tempdir().expect("dir");
        let guests = Arc::new(Guests::new(Shelf::new(dir.path().to_owned())));
        guests.load("list").expect("load");
        let vm: VmId = "6ecd1b2e-0000-4000-8000-000000000001".parse().expect("uid");
        let mut notices = guests.notices.subscribe();
        let before = guests.ticket();
        guests.place(Record::new(vm, "web".parse().expect("name"), Incarnation(3))).await.expect("place");
        guests.came_up(vm, "start").await.expect("up");
        guests.take_in(vm, before, seen(state::SHUTOFF, 0)).await.expect("off, before it came up");
        let (old, new) = (guests.ticket(), guests.ticket());
        guests.take_in(vm, new, seen(1, 1)).await.expect("running");
        guests.take_in(vm, old, seen(state::PAUSED, 1)).await.expect("old");
        assert_eq!(guests.guest(vm).expect("there").run, Run::Running);
        guests
            .take_in(vm, guests.ticket(), seen(state::PAUSED, state::PAUSED_SHUTTING_DOWN))
            .await
            .expect("down");
        guests.take_in(vm, guests.ticket(), seen(state::SHUTOFF, state::OFF_SHUTDOWN)).await.expect("off");
        guests.take_in(vm, guests.ticket(), seen(1, 1)).await.expect("again");
        let ended = |guest: &Guest| matches!(guest.run, Run::Ended(EndCause::GuestShutdown, _));
        assert!(ended(&guests.guest(vm).expect("there")));
        assert_eq!(notices.recv().await.expect("first").guest.run, Run::Running);
        assert!(ended(&notices.recv().await.expect("second").guest));
        assert!(notices.try_recv().is_err());
        let again = Guests::new(Shelf::new(dir.path().to_owned()));
        again.load("list").expect("load");
        assert!(ended(&again.list()[0]));
    }

    /// Every way a domain can be off has its cause, and what was told to end has ended as told.
    #[test]
    fn causes() {
        let vm: VmId = "6ecd1b2e-0000-4000-8000-000000000001".parse().expect("uid");
        let record = Record::new(vm, "web".parse().expect("name"), Incarnation(3));
        let cause = |record: &Record, state| end_of(record, Option::as_ref(&state)).map(|(cause, _)| cause);
        assert_eq!(cause(&record, None), Some(EndCause::Died));
        assert_eq!(cause(&record, seen(5, 1)), Some(EndCause::GuestShutdown));
        assert_eq!(cause(&record, seen(5, 2)), Some(EndCause::Died));
        assert_eq!(cause(&record, seen(5, 3)), Some(EndCause::Died));
        assert_eq!(cause(&record, seen(6, 0)), Some(EndCause::Died));
        assert_eq!(cause(&record, seen(1, 0)), None);
        let told = Record { ending: Some(EndCause::Told), ..record };
        assert_eq!(cause(&told, seen(5, 2)), Some(EndCause::Told));
        assert_eq!(cause(&told, seen(3, 1)), None);
    }
}
