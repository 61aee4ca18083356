//! Once nothing breaks any more everything comes to rest as its spec says: nothing is left to propose, nothing is left
//! over, everybody has the same state, and every user has an answer.

use dunlin_controller::reconcile::step;
use dunlin_model::HostId;
use dunlin_model::host::HostPhase;
use dunlin_model::vm::{Power, Vm, VmPhase};

use crate::World;
use crate::hypervisor::Process;

impl World {
    pub(crate) fn check_at_rest(&self) {
        let Some(leader) = self.true_leader() else { self.fail("nobody leads") };
        let leading = &self.controllers[leader];
        let proposed = step(&leading.state, &leading.observed, leading.clock.now());
        if !proposed.is_empty() {
            self.fail(&format!("at rest, and still {proposed:?}"));
        }
        for (c, controller) in self.controllers.iter().enumerate().filter(|(_, c)| c.member) {
            if controller.state != self.whole_log {
                self.fail(&format!("controller {c} has another state than the whole log makes"));
            }
        }
        if let Some(request) = self.requests.iter().find(|request| request.answer.is_none()) {
            self.fail(&format!("{:?} is never answered", request.write));
        }
        self.check_acknowledged(leader);
        if let Some(migration) = self.whole_log.active_migrations().next() {
            self.fail(&format!("migration {} never ends", migration.metadata.name));
        }
        if let Some(task) = self.whole_log.active_tasks().next() {
            self.fail(&format!("task {} never ends", task.metadata.name));
        }
        if let Some(host) = self.whole_log.hosts().find(|host| host.status.phase != HostPhase::Up) {
            self.fail(&format!("host {} is not up", host.metadata.name));
        }
        self.whole_log.vms().for_each(|vm| self.check_vm_at_rest(vm));
        for (host, process) in self.processes() {
            if self.whole_log.vm(process.vm).is_none() {
                self.fail(&format!("{host} still has {process:?}"));
            }
        }
    }

    /// Every process that lives, and where.
    pub(crate) fn processes(&self) -> Vec<(HostId, Process)> {
        let inner = self.plane.lock();
        let all = inner.machines.iter().flat_map(|(host, machine)| {
            machine
                .processes
                .values()
                .filter(|process| process.is_alive())
                .map(|process| (*host, process.clone()))
        });
        all.collect()
    }

    fn check_vm_at_rest(&self, vm: &Vm) {
        let phase = vm.status.phase;
        let as_asked = match vm.spec.power {
            Power::Running => matches!(phase, VmPhase::Running | VmPhase::Failed),
            Power::Paused => matches!(phase, VmPhase::Paused | VmPhase::Failed),
            Power::Stopped => matches!(phase, VmPhase::Stopped | VmPhase::Saved | VmPhase::Failed),
        };
        if !as_asked {
            self.fail(&format!("VM {} is {phase}, asked for {:?}", vm.metadata.name, vm.spec.power));
        }
        let places = self.processes();
        let places: Vec<_> = places.iter().filter(|(_, process)| process.vm == vm.metadata.uid).collect();
        let lives = matches!(phase, VmPhase::Running | VmPhase::Paused);
        let right = match places.as_slice() {
            [] => !lives,
            [(host, process)] => {
                vm.status.host == Some(*host)
                    && process.incarnation == vm.status.incarnation
                    && process.executes() == (phase == VmPhase::Running)
            }
            _ => false,
        };
        if !right {
            self.fail(&format!("VM {} ({phase}) has the processes {places:?}", vm.metadata.name));
        }
    }
}
