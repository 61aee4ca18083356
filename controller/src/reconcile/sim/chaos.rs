//! What users do and what breaks, drawn from the seed.

use dunlin_model::migration::{MigrationCause, MigrationLimits, MigrationSpec};
use dunlin_model::observed::EndCause;
use dunlin_model::task::{Act, TaskSpec};
use dunlin_model::vm::device::{Disk, DiskBus, DiskFormat, DiskSource};
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{HostId, Kind, Labels, MigrationId, TaskId, Timestamp, VmId};
use dunlin_state::{Command, Write};

use super::{Line, Observed, World};

/// VMs at once: few enough that each gets into trouble often.
const VMS_MAX: usize = 5;

impl World {
    pub(super) fn write(&mut self, write: Write) {
        let key = self.rng.uuid().to_string();
        self.commit(&Command::Write { key, write });
        self.quiet = 0;
    }

    fn any_vm(&mut self) -> Option<VmId> {
        let vms: Vec<VmId> = self.state.vms().map(|vm| vm.metadata.uid).collect();
        self.rng.pick(&vms)
    }

    pub(super) fn users(&mut self) {
        if self.state.vms().count() < VMS_MAX && self.rng.chance(10) {
            self.create();
        }
        let Some(vm) = self.any_vm() else { return };
        match self.rng.below(200) {
            0..=19 => self.migrate(vm),
            20..=23 => self.power(vm, Power::Stopped),
            24..=33 => self.power(vm, Power::Running),
            34..=36 => self.power(vm, Power::Paused),
            37 => self.write(Write::DeleteVm { uid: vm }),
            38..=40 => self.task(Act::Shutdown { timeout_s: 10 }, Kind::Vm, vm.0),
            41 => self.task(Act::Save, Kind::Vm, vm.0),
            42 => self.task(Act::Reset, Kind::Vm, vm.0),
            43 => {
                let hosts: Vec<HostId> = self.hosts.iter().map(|host| host.id).collect();
                let host = self.rng.pick(&hosts).unwrap();
                self.task(Act::Drain, Kind::Host, host.0);
            }
            44..=46 => self.cancel_one(),
            47..=49 => self.uncordon_one(),
            _ => {}
        }
    }

    fn power(&mut self, uid: VmId, power: Power) {
        self.write(Write::SetPower { uid, power });
    }

    pub(super) fn create(&mut self) {
        let mut spec = VmSpec::new(64 + self.rng.below(512));
        spec.driver = dunlin_model::capabilities::DriverName::Test;
        spec.power = Power::Running;
        if self.rng.chance(40) {
            spec.disks.push(Disk {
                name: "vda".parse().unwrap(),
                bus: DiskBus::Virtio,
                format: DiskFormat::Raw,
                source: DiskSource::EmptyMib(1),
                shared: false,
                read_only: false,
            });
        }
        let uid = VmId(self.rng.uuid());
        let name = format!("vm{}", self.index).parse().unwrap();
        self.write(Write::CreateVm { uid, own_uid: false, name, labels: Labels::new(), spec });
    }

    fn migrate(&mut self, vm: VmId) {
        let vm_name = self.state.vm(vm).unwrap().metadata.name.clone();
        let limits = MigrationLimits { timeout_s: 20, ..MigrationLimits::default() };
        let spec =
            MigrationSpec { vm, vm_name, to: None, cause: MigrationCause::User, limits, grounds: None };
        let name = format!("m{}", self.index).parse().unwrap();
        let uid = MigrationId(self.rng.uuid());
        self.write(Write::CreateMigration { uid, name, spec });
    }

    pub(super) fn task(&mut self, act: Act, kind: Kind, uid: uuid::Uuid) {
        let spec = TaskSpec { act, kind, uid, name: "any".parse().unwrap() };
        let name = format!("t{}", self.index).parse().unwrap();
        let id = TaskId(self.rng.uuid());
        self.write(Write::CreateTask { uid: id, name, spec });
    }

    fn cancel_one(&mut self) {
        let moves: Vec<MigrationId> = self.state.active_migrations().map(|m| m.metadata.uid).collect();
        let tasks: Vec<TaskId> = self.state.active_tasks().map(|task| task.metadata.uid).collect();
        if let Some(uid) = self.rng.pick(&moves) {
            self.write(Write::CancelMigration { uid });
        }
        if let Some(uid) = self.rng.pick(&tasks) {
            self.write(Write::CancelTask { uid });
        }
    }

    fn uncordon_one(&mut self) {
        let cordoned = self.state.hosts().find(|host| host.spec.cordoned).cloned();
        if let Some(host) = cordoned {
            self.write(Write::UpdateHost {
                uid: host.metadata.uid,
                revision: host.metadata.revision,
                labels: host.metadata.labels,
                cordoned: false,
                rack: None,
                zone: None,
                taints: Labels::new(),
                resources: std::collections::BTreeMap::new(),
            });
        }
    }

    pub(super) fn faults(&mut self) {
        let index = usize::try_from(self.rng.below(self.hosts.len() as u64)).unwrap();
        match self.rng.below(1_000) {
            0..=9 => self.disconnect(index),
            10..=14 => {
                self.disconnect(index);
                self.hosts[index].crash_agent();
                self.note(Line::Fault("agent dies", index));
            }
            15..=17 => {
                self.disconnect(index);
                self.hosts[index].lose_power();
                self.note(Line::Fault("host loses power", index));
            }
            18 => {
                // Its disk is new: nothing is known there any more.
                self.disconnect(index);
                self.hosts[index].lose_power();
                self.hosts[index].disk.clear();
                self.hosts[index].journal.clear();
                self.note(Line::Fault("host loses its disk", index));
            }
            19..=34 => self.kill_process(index),
            35..=42 => self.change_leader(),
            _ => {}
        }
        for index in 0..self.hosts.len() {
            if !self.hosts[index].agent_up && self.rng.chance(3) {
                self.boot(index);
            }
        }
    }

    pub(super) fn boot(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.powered = true;
        host.agent_up = true;
        host.find_again();
        self.note(Line::Fault("agent is back", index));
    }

    fn kill_process(&mut self, index: usize) {
        let vms: Vec<VmId> = self.hosts[index].processes.keys().copied().collect();
        let Some(vm) = self.rng.pick(&vms) else { return };
        let runs = self.hosts[index].processes[&vm].executes();
        let off = runs && self.rng.chance(20);
        let cause = if off { EndCause::GuestShutdown } else { EndCause::Died };
        self.hosts[index].end(vm, cause, "killed");
        self.note(Line::Guest(vm, cause));
    }

    /// What the old leader proposed lands in part; the new one has seen nothing yet.
    pub(super) fn change_leader(&mut self) {
        self.note(Line::Fault("the leader changes", 0));
        for index in 0..self.hosts.len() {
            self.disconnect(index);
        }
        let lands = usize::try_from(self.rng.below(self.proposed.len() as u64 + 1)).unwrap();
        self.proposed.truncate(lands);
        self.observed = Observed::new(Timestamp(self.now));
    }

    /// Nothing breaks any more, and nobody asks for anything but an end.
    pub(super) fn calm(&mut self) {
        self.breaks = false;
        self.quiet = 0;
        for index in 0..self.hosts.len() {
            if !self.hosts[index].agent_up {
                self.boot(index);
            }
        }
        let drains: Vec<TaskId> = self
            .state
            .active_tasks()
            .filter(|task| task.spec.act == Act::Drain)
            .map(|task| task.metadata.uid)
            .collect();
        for uid in drains {
            self.write(Write::CancelTask { uid });
        }
        for _ in 0..self.hosts.len() {
            self.uncordon_one();
        }
    }
}
