use dunlin_drivers::simulated::Injection;
use dunlin_model::MigrationId;
use dunlin_model::desired::SendStep;
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::{ReceiveState, SendState};

use super::*;

const ONE: VmId = VmId(Uuid::from_u128(1));

/// Two hosts and the one guest that moves between them.
struct Pair {
    fake: Fake,
    here: House,
    there: House,
    from: HostId,
    to: HostId,
    generation: u64,
    migration: MigrationId,
}

impl Pair {
    /// The guest runs on the first host as incarnation 1.
    async fn new() -> Self {
        let fake = Fake::start().await;
        let (mut here, mut there) = (House::new("n1", &[&fake]), House::new("n2", &[&fake]));
        here.start().await;
        there.start().await;
        let (from, to) = (here.id(&fake).await, there.id(&fake).await);
        let migration = MigrationId(Uuid::from_u128(50));
        let mut pair = Self { fake, here, there, from, to, generation: 0, migration };
        pair.tell_source(1, running()).await;
        pair.fake.sees("running", from, ONE, runs_as(1)).await;
        pair
    }

    async fn tell(&mut self, host: HostId, assignment: Assignment) {
        self.generation += 1;
        self.fake.tell(host, self.generation, &[assignment], &[]).await;
    }

    async fn tell_source(&mut self, incarnation: u64, role: Role) {
        self.tell(self.from, told(ONE, incarnation, role)).await;
    }

    async fn tell_destination(&mut self, incarnation: u64, role: Role) {
        self.tell(self.to, told(ONE, incarnation, role)).await;
    }

    /// Prepares the destination; where it listens.
    async fn prepare(&mut self) -> Endpoint {
        let limits = MigrationLimits::default();
        self.tell_destination(
            2,
            Role::Receive { migration: self.migration, limits, disks: Default::default() },
        )
        .await;
        let ready =
            |state: &mut fake::State| match state.hosts.get(&self.to)?.vms.get(&ONE)?.receive.clone()? {
                (migration, ReceiveState::Ready(endpoint)) if migration == self.migration => Some(endpoint),
                _ => None,
            };
        self.fake.until("ready", ready).await
    }

    async fn send(&mut self, endpoint: &Endpoint, step: SendStep) {
        let (migration, endpoint, limits) = (self.migration, endpoint.clone(), MigrationLimits::default());
        let power = Power::Running;
        self.tell_source(1, Role::Send { migration, endpoint, limits, step, power }).await;
    }

    async fn source_says(&self, what: &str, fits: impl Fn(&SendState) -> bool) {
        let migration = self.migration;
        let said =
            |seen: &ObservedVm| seen.send.as_ref().is_some_and(|(id, state)| *id == migration && fits(state));
        self.fake.sees(what, self.from, ONE, said).await;
    }

    async fn copy(&mut self) -> Endpoint {
        let endpoint = self.prepare().await;
        self.send(&endpoint, SendStep::Copy).await;
        self.source_says("at the switch-over", |state| matches!(state, SendState::AtSwitchover(_))).await;
        endpoint
    }
}

fn received() -> Role {
    Role::Run { power: Power::Running, restore_from: None, received: true }
}

/// The guest moves with everything it has; both agents are killed on the way and finish what they were told; the source
/// lets go only when it is told to.
#[tokio::test]
async fn a_guest_moves() {
    let mut pair = Pair::new().await;
    let content = pair.here.sim().memory(ONE).unwrap().content;
    let endpoint = pair.copy().await;
    assert!(matches!(pair.fake.sees("outgoing", pair.from, ONE, |_| true).await.process, Process::Outgoing));

    pair.send(&endpoint, SendStep::Switch).await;
    pair.tell_destination(2, received()).await;
    pair.fake.sees("arrived", pair.to, ONE, runs_as(2)).await;
    pair.source_says("sent", |state| matches!(state, SendState::Sent(_))).await;
    assert_eq!(pair.there.sim().memory(ONE).unwrap().content, content);

    // The source is still told Send: killed and back, it stands still and says the same.
    pair.here.restart(&pair.fake).await;
    pair.there.restart(&pair.fake).await;
    pair.source_says("sent", |state| matches!(state, SendState::Sent(_))).await;
    pair.fake.sees("still there", pair.to, ONE, runs_as(2)).await;
    pair.tell_destination(2, received()).await;
    pair.tell_source(2, Role::Discard { elsewhere: true }).await;
    pair.fake.sees_gone(pair.from, ONE).await;
    pair.fake.sees("still there", pair.to, ONE, runs_as(2)).await;
    assert_eq!(pair.there.sim().memory(ONE).unwrap().content, content);
}

/// Called off at the switch-over, the guest runs on where it was and the destination keeps nothing; the next migration
/// to the same host, with the same incarnation, is not confused by the first.
#[tokio::test]
async fn called_off_and_tried_again() {
    let mut pair = Pair::new().await;
    let content = pair.here.sim().memory(ONE).unwrap().content;
    let endpoint = pair.copy().await;
    pair.send(&endpoint, SendStep::Cancel).await;
    pair.tell_destination(1, Role::Discard { elsewhere: true }).await;
    pair.fake.sees("running where it was", pair.from, ONE, runs_as(1)).await;
    pair.fake.sees_gone(pair.to, ONE).await;

    pair.migration = MigrationId(Uuid::from_u128(51));
    let endpoint = pair.copy().await;
    pair.send(&endpoint, SendStep::Switch).await;
    pair.tell_destination(2, received()).await;
    pair.fake.sees("arrived", pair.to, ONE, runs_as(2)).await;
    assert_eq!(pair.there.sim().memory(ONE).unwrap().content, content);
}

/// The destination dies before it ever ran: it says so and does not boot the guest, and the source, told that its old
/// process carries on, runs the very same guest again under the newest incarnation.
#[tokio::test]
async fn handed_back() {
    let mut pair = Pair::new().await;
    let content = pair.here.sim().memory(ONE).unwrap().content;
    let endpoint = pair.copy().await;
    pair.there.sim().inject(ONE, Injection::Die).unwrap();
    pair.tell_destination(2, received()).await;
    let seen = pair.fake.sees("dead", pair.to, ONE, has_ended).await;
    assert!(matches!(seen.process, Process::Ended { ever_ran: false, .. }), "{seen:?}");
    assert_eq!(seen.incarnation, Incarnation(2));

    pair.send(&endpoint, SendStep::Switch).await;
    pair.source_says("holding", |state| matches!(state, SendState::Holding(_))).await;
    pair.here.restart(&pair.fake).await;
    pair.source_says("holding", |state| matches!(state, SendState::Holding(_))).await;
    let mut back = told(ONE, 3, running());
    back.continues = Some(Incarnation(1));
    pair.tell(pair.from, back).await;
    pair.fake.sees("running again", pair.from, ONE, runs_as(3)).await;
    assert_eq!(pair.here.sim().memory(ONE).unwrap().content, content);
    pair.tell_destination(3, Role::Discard { elsewhere: true }).await;
    pair.fake.sees_gone(pair.to, ONE).await;
}

/// A guest that is paused arrives paused, stands still on whichever side it is, and runs when it is told to.
#[tokio::test]
async fn paused_on_the_way() {
    let mut pair = Pair::new().await;
    let content = pair.here.sim().memory(ONE).unwrap().content;
    pair.tell_source(1, paused()).await;
    pair.fake.sees("paused", pair.from, ONE, |seen| seen.process == Process::Paused).await;
    let endpoint = pair.copy().await;
    pair.send(&endpoint, SendStep::Switch).await;
    let received_paused = Role::Run { power: Power::Paused, restore_from: None, received: true };
    pair.tell_destination(2, received_paused).await;
    let stands = |seen: &ObservedVm| seen.process == Process::Paused && seen.incarnation == Incarnation(2);
    pair.fake.sees("arrived", pair.to, ONE, stands).await;
    pair.tell_destination(2, running()).await;
    pair.fake.sees("running", pair.to, ONE, runs_as(2)).await;
    assert_eq!(pair.there.sim().memory(ONE).unwrap().content, content);
}

/// A destination that has nothing does not boot what it should have received.
#[tokio::test]
async fn nothing_was_received() {
    let mut pair = Pair::new().await;
    pair.tell_destination(2, received()).await;
    let seen = pair.fake.sees("nothing", pair.to, ONE, has_ended).await;
    assert!(matches!(seen.process, Process::Ended { ever_ran: false, .. }), "{seen:?}");
    assert!(pair.there.sim().memory(ONE).is_none());
}

/// The destination is told to run the guest and loses its power before the last bytes of it have come: it never ran
/// there, whatever was told, and the source may go on.
#[tokio::test]
async fn the_power_goes_before_it_had_everything() {
    let mut pair = Pair::new().await;
    pair.copy().await;
    pair.tell_destination(2, received()).await;
    pair.there.kill().await;
    pair.fake.lost(pair.to);
    let driver = pair.there.config.data_dir.join("test");
    // Held by the driver until the last of it is gone.
    eventually("the driver's end", async || SimDriver::open(SimConfig::new(&driver)).await.ok()).await;
    std::fs::remove_dir_all(&driver).unwrap();
    pair.there.start().await;
    pair.tell_destination(2, received()).await;
    let seen = pair.fake.sees("nothing", pair.to, ONE, has_ended).await;
    assert!(matches!(seen.process, Process::Ended { ever_ran: false, .. }), "{seen:?}");
}
