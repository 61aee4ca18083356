//! What users ask for, and how they insist: a request whose answer never came is sent again under its key, until it has
//! one. Some are sent twice from the beginning.

use std::collections::BTreeMap;

use dunlin_model::capabilities::DriverName;
use dunlin_model::migration::{MigrationCause, MigrationLimits, MigrationSpec};
use dunlin_model::task::{Act, TaskSpec};
use dunlin_model::vm::device::{Disk, DiskBus, DiskFormat, DiskSource};
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{HostId, Kind, Labels, MigrationId, Revision, TaskId, VmId};
use dunlin_state::{Command, Outcome, Rejected, State, Write};

use crate::World;
use crate::controllers::Origin;
use crate::net::Node;

/// VMs at once: few enough that each gets into trouble often.
const VMS_MAX: usize = 5;
/// A request that has not been answered for so long is sent again, ms.
const PATIENCE_MS: u64 = 1_500;

/// One request.
pub(crate) struct Request {
    pub(crate) key: String,
    pub(crate) write: Write,
    /// Since when it waits for an answer; None: it has to be sent (again).
    sent: Option<u64>,
    /// The first answer it got: where its effect stands, or that it was refused.
    pub(crate) answer: Option<Result<Revision, ()>>,
}

impl World {
    /// The newest state anybody can read.
    pub(crate) fn view(&self) -> &State {
        &self.whole_log
    }

    pub(crate) fn request(&mut self, write: Write) {
        let key = self.rng.uuid().to_string();
        self.requests.push(Request { key, write, sent: None, answer: None });
    }

    /// Users send what is to be sent.
    pub(crate) fn insist(&mut self) {
        let now = self.now();
        for id in 0..self.requests.len() {
            let request = &self.requests[id];
            let waits = request.sent.is_some_and(|since| now - since < PATIENCE_MS);
            if request.answer.is_some() || waits || !self.rng.chance(50) {
                continue;
            }
            let c = self.rng.index(self.controllers.len());
            if self.controllers[c].leads.is_none() || !self.controllers[c].up {
                continue;
            }
            let (key, write) = (self.requests[id].key.clone(), self.requests[id].write.clone());
            for _ in 0..=u64::from(self.rng.chance(5)) {
                let command = Command::Write { key: key.clone(), write: write.clone() };
                self.propose(c, command, Origin::User(id as u64));
            }
            self.requests[id].sent = Some(now);
        }
    }

    pub(crate) fn user_unanswered(&mut self, id: u64) {
        let index = usize::try_from(id).expect("it is an index");
        self.requests[index].sent = None;
    }

    pub(crate) fn user_answered(&mut self, id: u64, by: usize, result: Result<Outcome, Rejected>) {
        let index = usize::try_from(id).expect("it is an index");
        if self.breaks && self.rng.chance(5) {
            return self.user_unanswered(id);
        }
        let answer = result.map(|done| done.revision).map_err(drop);
        match &self.requests[index].answer {
            None => self.requests[index].answer = Some(answer),
            // Refused, it may be accepted the next time; accepted, it stays what it was.
            Some(Ok(first)) if answer.as_ref() != Ok(first) => {
                let why =
                    format!("{:?} was answered {first} and then {answer:?}", self.requests[index].write);
                self.fail(&why);
            }
            Some(_) => {}
        }
        self.check_answer(by, index);
    }

    pub(crate) fn users(&mut self) {
        if self.view().vms().count() < VMS_MAX && self.rng.chance(8) {
            self.create();
        }
        let vms: Vec<VmId> = self.view().vms().map(|vm| vm.metadata.uid).collect();
        let Some(vm) = self.rng.pick(&vms) else { return };
        match self.rng.below(200) {
            0..=15 => self.migrate(vm),
            16..=18 => self.request(Write::SetPower { uid: vm, power: Power::Stopped }),
            19..=28 => self.request(Write::SetPower { uid: vm, power: Power::Running }),
            29..=31 => self.request(Write::SetPower { uid: vm, power: Power::Paused }),
            32 => self.request(Write::DeleteVm { uid: vm }),
            33..=34 => self.task(Act::Shutdown { timeout_s: 10 }, Kind::Vm, vm.0),
            35..=36 => self.task(Act::Save, Kind::Vm, vm.0),
            37 => self.task(Act::Reset, Kind::Vm, vm.0),
            38 => self.task(Act::Reboot { timeout_s: 10 }, Kind::Vm, vm.0),
            39 => {
                let hosts: Vec<HostId> = self.hosts.iter().map(|host| host.id).collect();
                if let Some(host) = self.rng.pick(&hosts) {
                    self.task(Act::Drain, Kind::Host, host.0);
                }
            }
            40..=41 => self.cancel_one(),
            42..=44 => self.uncordon_one(),
            _ => {}
        }
    }

    pub(crate) fn create(&mut self) {
        let mut spec = VmSpec::new(64 + self.rng.below(512));
        spec.driver = DriverName::Test;
        spec.power = Power::Running;
        if self.rng.chance(40) {
            spec.disks.push(Disk {
                name: "vda".parse().expect("a name"),
                bus: DiskBus::Virtio,
                format: DiskFormat::Raw,
                source: DiskSource::EmptyMib(1),
                shared: false,
                read_only: false,
            });
        }
        let uid = VmId(self.rng.uuid());
        let name = format!("vm{}", self.requests.len()).parse().expect("a name");
        self.request(Write::CreateVm { uid, own_uid: false, name, labels: Labels::new(), spec });
    }

    fn migrate(&mut self, vm: VmId) {
        let Some(vm_name) = self.view().vm(vm).map(|vm| vm.metadata.name.clone()) else { return };
        let limits = MigrationLimits { timeout_s: 20, ..MigrationLimits::default() };
        let spec =
            MigrationSpec { vm, vm_name, to: None, cause: MigrationCause::User, limits, grounds: None };
        let name = format!("m{}", self.requests.len()).parse().expect("a name");
        let uid = MigrationId(self.rng.uuid());
        self.request(Write::CreateMigration { uid, name, spec });
    }

    fn task(&mut self, act: Act, kind: Kind, uid: uuid::Uuid) {
        let spec = TaskSpec { act, kind, uid, name: "any".parse().expect("a name") };
        let name = format!("t{}", self.requests.len()).parse().expect("a name");
        let id = TaskId(self.rng.uuid());
        self.request(Write::CreateTask { uid: id, name, spec });
    }

    fn cancel_one(&mut self) {
        let moves: Vec<MigrationId> = self.view().active_migrations().map(|m| m.metadata.uid).collect();
        let tasks: Vec<TaskId> = self.view().active_tasks().map(|task| task.metadata.uid).collect();
        if let Some(uid) = self.rng.pick(&moves) {
            self.request(Write::CancelMigration { uid });
        }
        if let Some(uid) = self.rng.pick(&tasks) {
            self.request(Write::CancelTask { uid });
        }
    }

    pub(crate) fn uncordon_one(&mut self) {
        let cordoned = self.view().hosts().find(|host| host.spec.cordoned).cloned();
        if let Some(host) = cordoned {
            self.request(Write::UpdateHost {
                uid: host.metadata.uid,
                revision: host.metadata.revision,
                labels: host.metadata.labels,
                cordoned: false,
                rack: None,
                zone: None,
                taints: Labels::new(),
                resources: BTreeMap::new(),
            });
        }
    }

    /// Drains would hold hosts cordoned for ever.
    pub(crate) fn cancel_drains(&mut self) {
        let drains: Vec<TaskId> = self
            .view()
            .active_tasks()
            .filter(|task| task.spec.act == Act::Drain)
            .map(|task| task.metadata.uid)
            .collect();
        for uid in drains {
            self.request(Write::CancelTask { uid });
        }
    }

    /// Can this controller be asked by anybody who can be asked themselves?
    pub(crate) fn is_reachable(&self, c: usize) -> bool {
        let up = |other: &usize| self.controllers[*other].up && *other != c;
        let node = Node::Controller;
        self.controllers[c].up
            && (0..self.controllers.len()).filter(up).any(|other| self.net.both_ways(node(c), node(other)))
    }
}
