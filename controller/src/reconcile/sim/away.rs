//! A host that goes and stays away: what the fleet says, what it gives up, and what it never does.

use dunlin_model::HostId;
use dunlin_model::task::{Act, TaskPhase};
use dunlin_model::vm::{Power, Vm, VmPhase};

use super::super::task::HOST_DOWN_MAX_MS;
use super::{CALM_TICK_MS, World};

/// Ticks until something that happens at once has happened.
const SOON_TICKS: u32 = 240;

impl World {
    pub(super) fn until(&mut self, what: &str, mut ticks: u32, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            if ticks == 0 {
                self.fail(what);
            }
            ticks -= 1;
            self.tick(CALM_TICK_MS);
        }
    }

    fn only_vm(&self) -> Vm {
        self.state.vms().next().unwrap().clone()
    }

    fn says_down(&self) -> bool {
        self.only_vm().status.reason == dunlin_state::vm::HOST_DOWN
    }
}

/// A VM on a host that is Down says so and is started nowhere else; its tasks and a drain end with a clear error at their
/// bound, and not before; when the host is back the VM is as it was, and a save that came to its end meanwhile counts.
#[test]
fn a_host_stays_away() {
    for (act, saved) in [(Act::Shutdown { timeout_s: 600 }, false), (Act::Save, true), (Act::Drain, false)] {
        let mut world = World::new(11);
        world.breaks = false;
        world.until("no host is up", SOON_TICKS, |world| {
            world.hosts.iter().all(|host| host.session.is_some())
        });
        world.create();
        let runs = |world: &World| world.only_vm().status.phase == VmPhase::Running;
        world.until("it does not start", SOON_TICKS, runs);
        let before = world.only_vm();
        let on: HostId = before.status.host.unwrap();
        let index = world.hosts.iter().position(|host| host.id == on).unwrap();

        // Gone between the order and its end: the guest and what the agent began go on.
        world.disconnect(index);
        world.hosts[index].crash_agent();
        let (kind, uid) = match act {
            Act::Drain => (dunlin_model::Kind::Host, on.0),
            _ => (dunlin_model::Kind::Vm, before.metadata.uid.0),
        };
        world.task(act.clone(), kind, uid);
        world.until("its VM hides it", SOON_TICKS, World::says_down);
        let told = world.only_vm().status.message;
        assert!(told.contains("is down since"), "{told}");
        let since = world.now;
        let over = |world: &World| world.state.active_tasks().next().is_none();
        let ticks = u32::try_from(2 * HOST_DOWN_MAX_MS / CALM_TICK_MS).unwrap();
        world.until("its task waits for ever", ticks, over);
        assert!(world.now - since >= HOST_DOWN_MAX_MS - 2 * CALM_TICK_MS, "given up too early");
        let task = world.state.tasks().next().unwrap().clone();
        assert_eq!(task.status.phase, TaskPhase::Failed);
        assert!(task.status.message.contains("is down since"), "{}", task.status.message);

        let now = world.only_vm();
        assert_eq!((now.status.host, now.status.incarnation), (Some(on), before.status.incarnation));
        assert!(world.says_down() && now.spec.power == Power::Running);
        if saved {
            // The order had reached the agent: it saved the guest and could tell nobody.
            let path = format!("/saved/{}", before.metadata.uid);
            world.hosts[index].saved_alone(before.metadata.uid, path);
        }
        world.boot(index);
        let wanted = if saved { VmPhase::Saved } else { VmPhase::Running };
        let back = |world: &World| world.only_vm().status.phase == wanted && !world.says_down();
        world.until("it is not as it should be", SOON_TICKS, back);
        assert_eq!(world.only_vm().status.incarnation, before.status.incarnation, "it was started anew");
    }
}
