//! VMs of a load trace on a fleet, placed as the product places them: by what they were promised, since nothing has been
//! measured yet.

use super::Series;
use super::trace::LoadTrace;
use crate::decision::place;
use crate::request::Request;
use crate::simulate::fleet::vm_uid;
use crate::snapshot::{Amounts, Demand, Snapshot, VmEntry};

/// The first uid's number: behind those of a fleet's own VMs.
const FIRST: usize = 1 << 24;

/// Draws so many VMs with a day each and seats them. Returns what each wants, and how many found no host.
#[must_use]
pub fn seat(fleet: &mut Snapshot, trace: &LoadTrace, count: usize, seed: u64) -> (Series, u64) {
    let (mut series, mut rejected) = (Series::new(), 0);
    for (number, drawn) in trace.draw(count, seed).into_iter().enumerate() {
        let known = &trace.vms[drawn.vm];
        let demand = Demand { amounts: Amounts::new(known.cpus * 1_000, known.mem_mib), ..Demand::default() };
        let name = format!("drawn-{number}").parse().expect("a word and a number make a name");
        let vm = fleet.add_vm(&VmEntry::new(vm_uid(FIRST + number), name, demand));
        match place(fleet, &Request::start(fleet, vm)).seat() {
            Some(seat) => {
                fleet.put(vm, seat);
                series.insert(vm, known.days[drawn.day].clone());
            }
            None => {
                fleet.remove_vm(vm);
                rejected += 1;
            }
        }
    }
    (series, rejected)
}
