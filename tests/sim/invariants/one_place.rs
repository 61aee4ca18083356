//! No VM runs twice, and no incarnation of one ever has a process on two hosts.

use std::collections::BTreeMap;

use dunlin_model::{HostId, Incarnation, VmId};

use crate::World;

/// Where each process was begun.
#[derive(Debug, Default)]
pub(crate) struct OnePlace {
    begun: BTreeMap<(VmId, Incarnation), HostId>,
}

impl World {
    pub(crate) fn check_one_place(&mut self) {
        let mut running: BTreeMap<VmId, HostId> = BTreeMap::new();
        let mut broken = None;
        for (host, machine) in &self.plane.lock().machines {
            for process in machine.processes.values() {
                let vm = process.vm;
                if process.executes()
                    && let Some(other) = running.insert(vm, *host)
                {
                    broken = Some(format!("{vm} runs on {other} and on {host}"));
                }
                let begun = *self.one_place.begun.entry((vm, process.incarnation)).or_insert(*host);
                if begun != *host {
                    broken = Some(format!("{vm} {} was on {begun} and is on {host}", process.incarnation));
                }
            }
        }
        if let Some(why) = broken {
            self.fail(&why);
        }
    }
}
