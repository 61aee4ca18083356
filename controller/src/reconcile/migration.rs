//! The next step of each migration, from what both of its hosts report. docs/protocol.md has the table.

use dunlin_model::host::HostPhase;
use dunlin_model::migration::{Migration, MigrationFigures, MigrationOutcome, MigrationPhase};
use dunlin_model::observed::{ObservedVm, Process, ReceiveState, SendProgress, SendState};
use dunlin_model::vm::{Power, Vm, VmPhase};
use dunlin_model::{HostId, MigrationId, Timestamp};
use dunlin_state::migration::handed_over;
use dunlin_state::{Command, MigrationEvent, State};

use super::observed::{Observed, Sight};
use super::task::HOST_DOWN_MAX_MS;

/// A destination must listen within this, ms. It makes disks and starts a process; no image is fetched for it.
pub(super) const RESERVED_MAX_MS: u64 = 120_000;
/// A source must have begun to send within this, ms.
pub(super) const PREPARED_MAX_MS: u64 = 60_000;
/// A destination may be Down this long before a copy to it is given up, ms: long enough for its agent's restart.
pub(super) const DESTINATION_DOWN_MAX_MS: u64 = 30_000;
/// A guest that stands still at the switch-over point is not kept waiting longer than this for a destination that cannot
/// be seen, ms.
pub(super) const BLIND_AT_SWITCH_MAX_MS: u64 = 2_000;
/// A destination must have received everything this long after the hand-over, ms; then its process is ended, and the
/// source goes on. What is sent after the switch-over point takes about the downtime limit.
pub(super) const ARRIVE_MAX_MS: u64 = 60_000;
/// Two hosts whose clocks make the stand-still differ by more than this from what the source measured do not agree on
/// the time, ms: the destination goes on within some milliseconds of the end of the source's copy.
const CLOCKS_AGREE_MS: u64 = 1_000;
/// The source's figures are waited for this long after the hand-over, ms; the guest runs meanwhile.
pub(super) const FIGURES_WAIT_MS: u64 = 2_000;

pub(super) fn step(state: &State, observed: &Observed, now: Timestamp, commands: &mut Vec<Command>) {
    for migration in state.active_migrations() {
        let Some(vm) = state.vm(migration.spec.vm) else { continue };
        let scene = Scene { state, observed, now, migration, vm };
        let uid = migration.metadata.uid;
        commands.extend(scene.next().into_iter().map(|event| Command::Migrate { migration: uid, event }));
    }
}

/// When a migration entered the phase it is in.
pub(super) fn since(migration: &Migration) -> Timestamp {
    migration.status.history.last().map_or(migration.metadata.created, |(_, at)| *at)
}

/// Its part as a source of this very migration.
pub(super) fn sending(seen: &ObservedVm, migration: MigrationId) -> Option<&SendState> {
    seen.send.as_ref().filter(|(id, _)| *id == migration).map(|(_, state)| state)
}

/// Its part as a destination of this very migration.
pub(super) fn receiving(seen: &ObservedVm, migration: MigrationId) -> Option<&ReceiveState> {
    seen.receive.as_ref().filter(|(id, _)| *id == migration).map(|(_, state)| state)
}

struct Scene<'a> {
    state: &'a State,
    observed: &'a Observed,
    now: Timestamp,
    migration: &'a Migration,
    vm: &'a Vm,
}

/// The source in Switching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// It says that it never passed the switch-over: nobody else can have the whole guest.
    Kept,
    /// Its process is there and stands still.
    Stands,
    /// Its process is gone.
    Gone,
    Unseen,
}

/// The destination in Switching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// It runs the guest, or did before it ended.
    Ran,
    /// Its process ended before it ever ran, or its host knows nothing of it any more.
    Never,
    /// Its process is there and has not run yet.
    Waits,
    Unseen,
}

impl<'a> Scene<'a> {
    fn next(&self) -> Vec<MigrationEvent> {
        match self.migration.status.phase {
            MigrationPhase::Planned => self.planned(),
            MigrationPhase::Reserved | MigrationPhase::Prepared | MigrationPhase::Copying => {
                self.abort().or_else(|| self.forward()).into_iter().collect()
            }
            MigrationPhase::Switching => self.switching().into_iter().collect(),
            MigrationPhase::Aborting => self.aborting().into_iter().collect(),
            MigrationPhase::Done | MigrationPhase::Aborted => Vec::new(),
        }
    }

    fn sight(&self, host: Option<HostId>) -> Sight<'a> {
        let sight = host.map_or(Sight::Removed, |host| self.observed.sight(self.state, host));
        // A host that cannot see this guest tells as little of it as one that is not seen.
        let unknown = |seen: &ObservedVm| matches!(seen.process, Process::Unknown { .. });
        if sight.vm(self.vm.metadata.uid).is_some_and(unknown) { Sight::Unseen } else { sight }
    }

    fn source(&self) -> Sight<'a> {
        self.sight(self.migration.status.from)
    }

    fn destination(&self) -> Sight<'a> {
        self.sight(self.migration.status.to)
    }

    fn sending(&self) -> Option<&'a SendState> {
        sending(self.source().vm(self.vm.metadata.uid)?, self.migration.metadata.uid)
    }

    fn runs(&self) -> bool {
        matches!(self.vm.status.phase, VmPhase::Running | VmPhase::Paused)
    }

    /// Why it need not go on, whatever the hosts say.
    fn called_off(&self) -> Option<(&'static str, String)> {
        if self.migration.status.cancel {
            return Some(("Cancelled", self.migration.status.message.clone()));
        }
        if !self.runs() || self.vm.spec.power == Power::Stopped {
            return Some(("VmGone", format!("the VM is {} now", self.vm.status.phase)));
        }
        None
    }

    /// A source that is Down sends nothing, and nobody knows when it will be back.
    fn source_down(&self) -> Option<(&'static str, String)> {
        let host = self.state.host(self.migration.status.from?)?;
        let (name, since) = (&host.metadata.name, host.status.since);
        let late = host.status.phase == HostPhase::Down && self.now.millis_since(since) > HOST_DOWN_MAX_MS;
        late.then(|| ("SourceDown", format!("host {name}, on which the VM is, is down since {since}")))
    }

    /// Nothing was made for it yet: it ends at once.
    fn planned(&self) -> Vec<MigrationEvent> {
        let Some((reason, message)) = self.called_off().or_else(|| self.source_down()) else {
            return Vec::new();
        };
        let stays = self.runs() && self.vm.spec.power != Power::Stopped;
        let outcome = if stays { MigrationOutcome::StayedOnSource } else { MigrationOutcome::Gone };
        let abort = MigrationEvent::Abort { reason: reason.to_owned(), message };
        vec![abort, MigrationEvent::Cleaned { outcome }]
    }

    fn abort(&self) -> Option<MigrationEvent> {
        let (reason, message) = self.called_off().or_else(|| self.failed())?;
        Some(MigrationEvent::Abort { reason: reason.to_owned(), message })
    }

    /// Failures before the hand-over. While the source cannot be seen nothing is decided: its guest runs there, and its
    /// agent will say how the sending stands.
    fn failed(&self) -> Option<(&'static str, String)> {
        let Sight::Seen(_) = self.source() else { return None };
        if let Some(SendState::Cancelled(message) | SendState::Holding(message)) = self.sending() {
            return Some(("SourceFailed", message.clone()));
        }
        self.destination_failed().or_else(|| self.too_long())
    }

    fn destination_failed(&self) -> Option<(&'static str, String)> {
        let uid = self.vm.metadata.uid;
        let status = &self.migration.status;
        let view = match self.destination() {
            Sight::Seen(view) => view,
            Sight::Unseen => return self.destination_away(),
            Sight::Removed => return Some(("HostRemoved", "the destination was removed".to_owned())),
        };
        let Some(seen) = view.vms.get(&uid).filter(|seen| seen.incarnation == status.incarnation) else {
            let lost = status.phase != MigrationPhase::Reserved;
            return lost
                .then(|| ("DestinationFailed", "the destination no longer has its process".to_owned()));
        };
        if let Some(ReceiveState::Failed(message)) = receiving(seen, self.migration.metadata.uid) {
            return Some(("DestinationFailed", message.clone()));
        }
        match &seen.process {
            Process::Ended { message, .. } => Some(("DestinationFailed", message.clone())),
            Process::None if status.phase != MigrationPhase::Reserved => {
                Some(("DestinationFailed", "the destination no longer has its process".to_owned()))
            }
            _ => None,
        }
    }

    fn destination_away(&self) -> Option<(&'static str, String)> {
        let to = self.migration.status.to?;
        let host = self.state.host(to)?;
        let stands = matches!(self.sending(), Some(SendState::AtSwitchover(_)));
        let blind_ms = self.now.millis_since(self.observed.lost_at(to));
        let down_ms = match host.status.phase {
            HostPhase::Up => 0,
            HostPhase::Joining | HostPhase::Down => self.now.millis_since(host.status.since),
        };
        let session = self.observed.host(to).is_some();
        let late =
            down_ms > DESTINATION_DOWN_MAX_MS || (stands && !session && blind_ms > BLIND_AT_SWITCH_MAX_MS);
        late.then(|| ("DestinationDown", format!("host {} is not up", host.metadata.name)))
    }

    fn too_long(&self) -> Option<(&'static str, String)> {
        let in_phase_ms = self.now.millis_since(since(self.migration));
        let (max_ms, what) = match self.migration.status.phase {
            MigrationPhase::Reserved => (RESERVED_MAX_MS, "the destination did not make ready"),
            MigrationPhase::Prepared => (PREPARED_MAX_MS, "the source did not begin to send"),
            _ => (
                self.migration.spec.limits.timeout_s.saturating_mul(1_000),
                "the copy did not come to its end",
            ),
        };
        (in_phase_ms > max_ms).then(|| ("Timeout", format!("{what} within {} s", max_ms / 1_000)))
    }

    fn forward(&self) -> Option<MigrationEvent> {
        let uid = self.migration.metadata.uid;
        let arriving = self.destination().vm(self.vm.metadata.uid);
        let arriving = arriving.filter(|seen| seen.incarnation == self.migration.status.incarnation);
        let receive = arriving.and_then(|seen| receiving(seen, uid));
        match (self.migration.status.phase, receive, self.sending()) {
            (MigrationPhase::Reserved, Some(ReceiveState::Ready(endpoint)), _) => {
                Some(MigrationEvent::Ready { endpoint: endpoint.clone() })
            }
            (MigrationPhase::Prepared, _, Some(SendState::Copying(_) | SendState::AtSwitchover(_))) => {
                Some(MigrationEvent::Started)
            }
            // Not without a destination that can be seen to be there: the guest stands still, and would have to be
            // handed back.
            (MigrationPhase::Copying, Some(_), Some(SendState::AtSwitchover(progress)))
                if arriving.is_some_and(|seen| seen.process == Process::Incoming) =>
            {
                Some(MigrationEvent::HandOver { figures: self.so_far(progress) })
            }
            _ => None,
        }
    }

    fn so_far(&self, progress: &SendProgress) -> MigrationFigures {
        MigrationFigures {
            downtime_ms: 0,
            total_ms: self.now.millis_since(since(self.migration)),
            transferred_bytes: progress.transferred_bytes,
            disk_bytes: progress.disk_bytes,
            stopped_at_ms: 0,
        }
    }

    fn switching(&self) -> Option<MigrationEvent> {
        let figures = match self.sending() {
            Some(SendState::Sent(figures)) => self.stood_still(*figures),
            _ => self.migration.status.figures.unwrap_or_default(),
        };
        let arrived = |outcome| Some(MigrationEvent::Arrived { figures, outcome });
        if self.vm.status.phase == VmPhase::Deleting {
            return arrived(MigrationOutcome::Gone);
        }
        let (source, destination) = (self.source_now(), self.destination_now());
        match (destination, source) {
            (Destination::Ran, Source::Stands) if self.awaits_figures() => None,
            (Destination::Ran, _) => arrived(MigrationOutcome::Moved),
            (_, Source::Kept) => Some(self.hand_back("SendFailed")),
            (Destination::Never, Source::Stands) => Some(self.hand_back("DestinationFailed")),
            (Destination::Never, Source::Gone) => arrived(MigrationOutcome::Restarted),
            (Destination::Waits | Destination::Unseen, Source::Stands | Source::Gone)
            | (Destination::Waits | Destination::Unseen | Destination::Never, Source::Unseen) => None,
        }
    }

    /// The source's hypervisor counts the stand-still up to the end of its copy; the destination knows when its vCPUs ran.
    fn stood_still(&self, mut figures: MigrationFigures) -> MigrationFigures {
        let arrived = self.destination().vm(self.vm.metadata.uid).and_then(|seen| seen.resumed_at_ms);
        let Some(resumed_at_ms) = arrived.filter(|_| figures.stopped_at_ms > 0) else { return figures };
        let by_clocks_ms = resumed_at_ms.saturating_sub(figures.stopped_at_ms);
        if by_clocks_ms <= figures.downtime_ms.saturating_add(CLOCKS_AGREE_MS) {
            figures.downtime_ms = figures.downtime_ms.max(by_clocks_ms);
            // The source's count ends before the destination runs: a whole is not shorter than its part.
            figures.total_ms = figures.total_ms.max(figures.downtime_ms);
        }
        figures
    }

    fn awaits_figures(&self) -> bool {
        let sent = matches!(self.sending(), Some(SendState::Sent(_)));
        !sent && self.now.millis_since(since(self.migration)) < FIGURES_WAIT_MS
    }

    fn source_now(&self) -> Source {
        let view = match self.source() {
            Sight::Seen(view) => view,
            Sight::Unseen => return Source::Unseen,
            Sight::Removed => return Source::Gone,
        };
        let uid = self.vm.metadata.uid;
        let incarnation = self.state.fence(uid).source;
        let Some(seen) = view.vms.get(&uid).filter(|seen| seen.incarnation == incarnation) else {
            return Source::Gone;
        };
        match (&seen.process, sending(seen, self.migration.metadata.uid)) {
            (Process::Unknown { .. }, _) => Source::Unseen,
            (Process::None | Process::Ended { .. }, _) => Source::Gone,
            (_, Some(SendState::Holding(_) | SendState::Cancelled(_))) => Source::Kept,
            // It went on by itself: it can only do that before the switch-over was passed.
            (Process::Running | Process::Paused, None) => Source::Kept,
            _ => Source::Stands,
        }
    }

    fn destination_now(&self) -> Destination {
        let view = match self.destination() {
            Sight::Seen(view) => view,
            Sight::Unseen => return Destination::Unseen,
            Sight::Removed => return Destination::Never,
        };
        let incarnation = self.migration.status.incarnation;
        let seen = view.vms.get(&self.vm.metadata.uid).filter(|seen| seen.incarnation == incarnation);
        match seen.map(|seen| &seen.process) {
            Some(Process::Running | Process::Paused) => Destination::Ran,
            Some(Process::Ended { ever_ran: true, .. }) => Destination::Ran,
            Some(Process::Ended { ever_ran: false, .. } | Process::None) | None => Destination::Never,
            Some(Process::Unknown { .. }) => Destination::Unseen,
            Some(Process::Starting { .. } | Process::Incoming | Process::Outgoing) => Destination::Waits,
        }
    }

    fn hand_back(&self, reason: &str) -> MigrationEvent {
        let words = match self.sending() {
            Some(SendState::Holding(words) | SendState::Cancelled(words)) => words.clone(),
            _ => match self.destination().vm(self.vm.metadata.uid).map(|seen| &seen.process) {
                Some(Process::Ended { message, .. }) => message.clone(),
                _ => "the destination no longer has its process".to_owned(),
            },
        };
        MigrationEvent::HandBack { reason: reason.to_owned(), message: words }
    }

    fn aborting(&self) -> Option<MigrationEvent> {
        let uid = self.vm.metadata.uid;
        let to = self.migration.status.to;
        let destination_clean = match self.destination() {
            Sight::Seen(view) => !view.vms.contains_key(&uid),
            Sight::Unseen => {
                let host = to.and_then(|to| self.state.host(to));
                host.is_some_and(|host| host.status.phase == HostPhase::Down)
            }
            Sight::Removed => true,
        };
        if !destination_clean {
            return None;
        }
        if !self.runs() {
            return Some(MigrationEvent::Cleaned { outcome: MigrationOutcome::Gone });
        }
        if self.vm.spec.power == Power::Stopped {
            // Its host was told to end the process; that is reported first.
            return None;
        }
        let seen = self.source().vm(uid).filter(|seen| seen.incarnation == self.vm.status.incarnation)?;
        let still = matches!(seen.process, Process::Running | Process::Paused);
        let quiet =
            matches!(sending(seen, self.migration.metadata.uid), None | Some(SendState::Cancelled(_)));
        let back = handed_over(self.migration);
        let outcome = if back { MigrationOutcome::HandedBack } else { MigrationOutcome::StayedOnSource };
        (still && (quiet || back)).then_some(MigrationEvent::Cleaned { outcome })
    }
}
