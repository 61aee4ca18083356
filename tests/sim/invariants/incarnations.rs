//! Incarnations only grow: in the log, and in what each host was told, for as long as it keeps its disk.

use std::collections::BTreeMap;

use dunlin_model::{Incarnation, VmId};

use crate::World;

/// The highest seen so far.
#[derive(Debug, Default)]
pub(crate) struct Incarnations {
    log: BTreeMap<VmId, Incarnation>,
    /// By host and by the disks it has had.
    hosts: BTreeMap<(usize, u32), BTreeMap<VmId, Incarnation>>,
}

impl World {
    pub(crate) fn check_incarnations(&mut self) {
        let mut broken = None;
        for vm in self.whole_log.vms() {
            let (uid, now) = (vm.metadata.uid, vm.status.incarnation);
            let before = self.incarnations.log.insert(uid, now).unwrap_or_default();
            if now < before {
                broken = Some(format!("incarnation {before} of {uid} has become {now}"));
            }
        }
        for (n, host) in self.hosts.iter().enumerate() {
            let Some(agent) = &host.agent else { continue };
            let told = agent.told();
            let before = self.incarnations.hosts.entry((n, host.disks)).or_default();
            for (vm, highest) in before.iter() {
                let now = told.get(vm).copied().unwrap_or_default();
                if now < *highest {
                    broken = Some(format!("host {n} was told incarnation {highest} of {vm} and knows {now}"));
                }
            }
            *before = told;
        }
        if let Some(why) = broken {
            self.fail(&why);
        }
    }
}
