//! The fleet as the scheduler sees it: one row per host, and nothing that placement does not ask for.

use std::collections::BTreeMap;

use dunlin_model::cluster::{ClusterSpec, PlacementPolicy};
use dunlin_model::host::{Host, HostPhase, Reserved};
use dunlin_model::vm::{Vm, VmSpec};
use dunlin_model::{HostId, Labels, VmId};

/// What the cluster has decided about placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Spread or pack.
    pub placement: PlacementPolicy,
    /// vCPUs per real CPU, percent.
    pub cpu_overcommit_percent: u32,
    /// Memory kept back on each host, MiB.
    pub host_reserve_mib: u64,
}

impl From<&ClusterSpec> for Policy {
    fn from(spec: &ClusterSpec) -> Self {
        Self {
            placement: spec.placement,
            cpu_overcommit_percent: spec.cpu_overcommit_percent,
            host_reserve_mib: spec.host_reserve_mib,
        }
    }
}

/// The fleet at one moment, plus what has been placed since in the same round.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// What the cluster has decided.
    pub policy: Policy,
    /// The hosts, in the order of their uids.
    pub hosts: Vec<HostRow<'a>>,
}

/// One host.
#[derive(Clone, Debug)]
pub struct HostRow<'a> {
    /// As it is in the fleet.
    pub host: &'a Host,
    /// Promised, counting what this round placed.
    pub reserved: Reserved,
    /// Labels of the VMs here or on their way here.
    pub guests: BTreeMap<VmId, &'a Labels>,
}

/// A VM to be placed.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Which.
    pub vm: VmId,
    /// What it needs.
    pub spec: &'a VmSpec,
    /// Its labels.
    pub labels: &'a Labels,
    /// The only host that has its disks or its saved memory.
    pub fixed: Option<Fixed>,
    /// Set when it runs already and is to be moved.
    pub moving: Option<Move<'a>>,
}

/// Why a VM is tied to one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The host.
    pub host: HostId,
    /// Its saved memory is there; else its disks.
    pub saved: bool,
}

/// A live migration to find a destination for.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// The host it runs on.
    pub from: HostId,
    /// The destination somebody asked for.
    pub to: Option<&'a dunlin_model::Name>,
}

impl<'a> Request<'a> {
    /// To start a VM that waits for a host.
    #[must_use]
    pub fn start(vm: &'a Vm) -> Self {
        let saved = vm.status.saved.as_ref().map(|saved| Fixed { host: saved.host, saved: true });
        let disks = vm.status.volumes_on.map(|host| Fixed { host, saved: false });
        Self {
            vm: vm.metadata.uid,
            spec: &vm.spec,
            labels: &vm.metadata.labels,
            fixed: saved.or(disks),
            moving: None,
        }
    }

    /// To move a VM that runs: its disks go with it.
    #[must_use]
    pub fn migrate(vm: &'a Vm, moving: Move<'a>) -> Self {
        Self { fixed: None, moving: Some(moving), ..Self::start(vm) }
    }
}

impl<'a> Snapshot<'a> {
    /// Built from plain objects. `guests` says which host each VM is on, or on its way to.
    #[must_use]
    pub fn new(
        policy: Policy,
        hosts: impl Iterator<Item = &'a Host>,
        guests: impl Iterator<Item = (HostId, &'a Vm)>,
    ) -> Self {
        let mut hosts: Vec<HostRow<'a>> = hosts
            .map(|host| HostRow { host, reserved: host.status.reserved, guests: BTreeMap::new() })
            .collect();
        hosts.sort_by_key(|row| row.host.metadata.uid);
        let mut snapshot = Self { policy, hosts };
        for (host, vm) in guests {
            if let Some(row) = snapshot.row_mut(host) {
                row.guests.insert(vm.metadata.uid, &vm.metadata.labels);
            }
        }
        snapshot
    }

    fn row_mut(&mut self, host: HostId) -> Option<&mut HostRow<'a>> {
        let index = self.hosts.binary_search_by_key(&host, |row| row.host.metadata.uid).ok()?;
        self.hosts.get_mut(index)
    }

    /// Counts a placement in, so that the next one of this round sees it.
    pub fn take(&mut self, host: HostId, request: &Request<'a>) {
        if let Some(row) = self.row_mut(host) {
            row.reserved.cpus += u64::from(request.spec.cpus);
            row.reserved.mem_mib += request.spec.mem_mib;
            row.reserved.vms += 1;
            row.guests.insert(request.vm, request.labels);
        }
    }
}

impl HostRow<'_> {
    /// Does its agent hold a session?
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.host.status.phase == HostPhase::Up
    }

    /// Memory that may be promised in all, MiB.
    #[must_use]
    pub fn mem_total_mib(&self, policy: &Policy) -> u64 {
        self.host.status.capabilities.mem_mib.saturating_sub(policy.host_reserve_mib)
    }

    /// Memory that may still be promised, MiB.
    #[must_use]
    pub fn mem_free_mib(&self, policy: &Policy) -> u64 {
        self.mem_total_mib(policy).saturating_sub(self.reserved.mem_mib)
    }

    /// vCPUs that may be promised in all.
    #[must_use]
    pub fn cpus_total(&self, policy: &Policy) -> u64 {
        u64::from(self.host.status.capabilities.cpus) * u64::from(policy.cpu_overcommit_percent) / 100
    }

    /// vCPUs that may still be promised.
    #[must_use]
    pub fn cpus_free(&self, policy: &Policy) -> u64 {
        self.cpus_total(policy).saturating_sub(self.reserved.cpus)
    }
}
