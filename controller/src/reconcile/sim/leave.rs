//! Hosts that are emptied: as the plan said, whoever leads; and what a cancelled drain leaves behind.

use std::collections::BTreeMap;

use dunlin_model::host::Host;
use dunlin_model::task::{Act, Task, TaskPhase};
use dunlin_model::vm::VmPhase;
use dunlin_model::{HostId, Kind, Labels, Name, Timestamp, VmId};
use dunlin_state::Write;

use super::World;
use crate::advise::{Scene, drain_plan};

/// VMs of a world: two or three on each host, so that a drain takes two turns.
const VMS: usize = 8;
/// Ticks until something that takes a few steps has happened.
const TICKS: u32 = 720;

impl World {
    /// All hosts up and all VMs running, but for those whose start a host refused for good.
    fn inhabited(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.breaks = false;
        world.until("no host is up", TICKS, |world| world.hosts.iter().all(|host| host.session.is_some()));
        for _ in 0..VMS {
            world.create();
        }
        world.until("they do not start", TICKS, |world| {
            world.state.vms().all(|vm| matches!(vm.status.phase, VmPhase::Running | VmPhase::Failed))
        });
        world
    }

    fn host_objects(&self) -> Vec<Host> {
        self.state.hosts().cloned().collect()
    }

    fn drains(&self) -> Vec<Task> {
        self.state.tasks().filter(|task| task.spec.act == Act::Drain).cloned().collect()
    }

    fn homes(&self) -> BTreeMap<Name, Name> {
        let runs = self.state.vms().filter(|vm| vm.status.phase == VmPhase::Running);
        runs.filter_map(|vm| Some((vm.metadata.name.clone(), vm.status.host_name.clone()?))).collect()
    }

    /// Where everything would be if all went as `--dry-run` tells it.
    fn foretold(&self, hosts: &[&Host]) -> BTreeMap<Name, Name> {
        let scene = Scene { state: &self.state, observed: &self.observed, now: Timestamp(self.now) };
        let plan = drain_plan(&scene, hosts);
        assert_eq!((plan.moves.len() as u64, plan.misfits.len()), (plan.vms, 0), "seed {}", self.seed);
        let mut homes = self.homes();
        homes.extend(plan.moves.iter().map(|found| (found.vm.clone(), found.to.clone())));
        homes
    }

    fn cordon(&mut self, host: &Host) {
        self.write(Write::UpdateHost {
            uid: host.metadata.uid,
            revision: host.metadata.revision,
            labels: host.metadata.labels.clone(),
            cordoned: true,
            rack: None,
            zone: None,
            taints: Labels::new(),
            resources: BTreeMap::new(),
        });
    }
}

/// A drain takes every VM to the host that its dry run named, and when the leader is lost on the way, the next one goes on
/// to the same end. Its progress never runs back, and says how long it will take.
#[test]
fn a_drain_goes_as_foretold_whoever_leads() {
    for seed in 1..=12 {
        let mut world = World::inhabited(seed);
        let homes = world.homes();
        let fullest = |host: &Host| homes.values().filter(|home| **home == host.metadata.name).count();
        let host = world.host_objects().into_iter().max_by_key(fullest).expect("there are hosts");
        let foretold = world.foretold(&[&host]);
        world.task(Act::Drain, Kind::Host, host.metadata.uid.0);
        let lost_after = world.rng.below(3);
        let (mut lost, mut before) = (false, 0);
        for _ in 0..TICKS {
            world.tick(super::TICK_MS);
            let task = world.drains().remove(0);
            let drain = task.status.drain.expect("a drain has progress");
            assert!(drain.moved >= before, "seed {seed}: {} VMs moved after {before}", drain.moved);
            before = drain.moved;
            if task.status.phase == TaskPhase::Running && drain.left > 0 {
                assert!(drain.eta_s.is_some(), "seed {seed}: {drain:?}");
            }
            if !lost && drain.moved > lost_after {
                lost = true;
                world.change_leader();
            }
            if task.status.phase.is_terminal() {
                break;
            }
        }
        let task = world.drains().remove(0);
        assert_eq!(task.status.phase, TaskPhase::Succeeded, "seed {seed}: {}", task.status.message);
        assert!(lost, "seed {seed}: nobody was lost");
        assert_eq!(world.homes(), foretold, "seed {seed}");
    }
}

/// Two hosts at once: nothing goes from one to the other. A cancel calls back what has not been handed over, leaves every
/// VM running, and gives each host back the cordon it had.
#[test]
fn a_cancelled_drain_gives_each_host_its_cordon_back() {
    let mut called_back = 0;
    for seed in 1..=12 {
        let mut world = World::inhabited(seed);
        let running = world.homes().len();
        let [first, second, third] = world.host_objects().try_into().expect("three hosts");
        world.cordon(&first);
        world.foretold(&[&first, &second]);
        for host in [&first, &second] {
            world.task(Act::Drain, Kind::Host, host.metadata.uid.0);
        }
        let ticks = 4 + world.rng.below(20);
        for _ in 0..ticks {
            world.tick(super::TICK_MS);
            let to: Vec<HostId> = world.state.active_migrations().filter_map(|m| m.status.to).collect();
            assert!(to.iter().all(|to| *to == third.metadata.uid), "seed {seed}: from one to the other");
        }
        let cordoned =
            |world: &World, host: &Host| world.state.host(host.metadata.uid).unwrap().spec.cordoned;
        assert!(cordoned(&world, &first) && cordoned(&world, &second));
        let begun: Vec<VmId> = world.state.active_migrations().map(|m| m.spec.vm).collect();
        for task in world.drains() {
            world.write(Write::CancelTask { uid: task.metadata.uid });
        }
        world.until("the cancel does not end", TICKS, |world| {
            world.state.active_tasks().next().is_none() && world.state.active_migrations().next().is_none()
        });
        assert!(world.drains().iter().all(|task| task.status.phase == TaskPhase::Cancelled), "seed {seed}");
        assert!(cordoned(&world, &first) && !cordoned(&world, &second), "seed {seed}");
        assert_eq!(world.homes().len(), running, "seed {seed}: somebody was stopped");
        let stayed = |vm: &VmId| world.state.vm(*vm).unwrap().status.host != Some(third.metadata.uid);
        called_back += begun.iter().filter(|vm| stayed(vm)).count();
        world.settle();
    }
    assert!(called_back > 0, "no cancel came in time to call anything back");
}
