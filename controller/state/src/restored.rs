//! What a state that was saved in the past may still claim when it is brought back.
//!
//! A VM never runs twice, and that must hold for a backup too: since it was taken, guests were started, moved and ended.
//! So a restored state starts nothing by itself: every host is cordoned until somebody has looked, and every incarnation
//! that is given out from now on lies above all that can ever have been given out before.

use std::sync::Arc;

use dunlin_model::image::Image;
use dunlin_model::project::Project;
use dunlin_model::vm::{Power, Vm, VmPhase, VmStatus};
use dunlin_model::{ClusterId, Incarnation, Kind, Object};

use crate::State;
use crate::state::Fence;

/// Commands that may have been committed after the backup, and more: at 10,000 a second, three years.
const LOST_COMMANDS_MAX: u64 = 1_000_000_000_000;

impl State {
    /// The state to go on from after a restore: in the same cluster, or as the beginning of another one.
    #[must_use]
    pub fn restored(mut self, other: Option<ClusterId>) -> Self {
        if let Some(uid) = other {
            self = self.transplanted(uid);
        }
        // Watchers and idempotency keys of the old history must not be taken for those of the new one.
        self.index += LOST_COMMANDS_MAX;
        self.revision.0 += LOST_COMMANDS_MAX;
        // Nor certificates that were issued since.
        self.trust.counters.serial += LOST_COMMANDS_MAX;
        self.history = crate::changes::History::starting_at(self.revision);
        let highest = Incarnation(self.index);
        let vms: Vec<_> = self.vms().map(|vm| vm.metadata.uid).collect();
        for vm in vms {
            let fence = self.fence(vm);
            self.fences.insert(vm, Fence { highest, ..fence });
        }
        let hosts: Vec<_> = self.hosts().cloned().collect();
        for mut host in hosts {
            host.spec.cordoned = true;
            host.metadata.revision = self.revision;
            self.objects.insert((Kind::Host, host.metadata.uid.0), Arc::new(Object::Host(host)));
        }
        self
    }

    /// The cluster's policy, its images, its projects and its VMs, stopped, in a cluster of another identity: hosts, and all that
    /// happened on them, belong to the old one.
    fn transplanted(self, uid: ClusterId) -> Self {
        let mut new = Self { index: self.index, time: self.time, revision: self.revision, ..Self::new() };
        if let Some(cluster) = self.cluster() {
            let mut cluster = cluster.clone();
            cluster.metadata.uid = uid;
            cluster.status.controllers.clear();
            new.take_in(Object::Cluster(cluster));
        }
        for image in self.all::<Image>() {
            new.take_in(Object::Image(image.clone()));
        }
        for project in self.all::<Project>() {
            new.take_in(Object::Project(project.clone()));
        }
        for vm in self.all::<Vm>().filter(|vm| vm.status.phase != VmPhase::Deleting) {
            let mut vm = vm.clone();
            vm.spec.power = Power::Stopped;
            vm.spec.placement.host = None;
            vm.status = VmStatus { since: self.time, ..VmStatus::default() };
            new.take_in(Object::Vm(vm));
        }
        crate::quota::count_anew(&mut new);
        new
    }

    fn take_in(&mut self, object: Object) {
        crate::snapshot::insert(self, Arc::new(object));
    }
}
