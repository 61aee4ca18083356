//! `vm set`: what a VM has, changed whether or not it runs.

use clap::Args;
use dunlin_model::vm::{Disk, Nic, Vm};
use dunlin_model::{Invalid, Kind, Name, Object};

use super::vm_flags::{disk, nic, set};
use super::{Session, host};
use crate::args::{WaitArgs, whole};
use crate::failure::Failure;
use crate::{output, wait};

#[derive(Debug, Args)]
pub(crate) struct VmSetArgs {
    name: String,
    /// Memory, MiB
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>("16 to 4194304"))]
    mem_mib: Option<u64>,
    /// vCPUs
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 288"))]
    cpus: Option<u32>,
    /// Give it a disk, as in vm create
    #[arg(long = "add-disk", value_name = "SOURCE[,KEY=VALUE]")]
    add_disks: Vec<String>,
    /// Take a disk from it; what is on it is kept until the VM is deleted, and is there again under the same name
    #[arg(long = "remove-disk", value_name = "NAME")]
    remove_disks: Vec<Name>,
    /// Give it a NIC, as in vm create
    #[arg(long = "add-nic", value_name = "KIND[,KEY=VALUE]")]
    add_nics: Vec<String>,
    /// Take a NIC from it, by its place from 0
    #[arg(long = "remove-nic", value_name = "INDEX")]
    remove_nics: Vec<usize>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// The disks and NICs that were typed. A disk without a name gets the next one that is free.
struct Added {
    disks: Vec<String>,
    nics: Vec<Nic>,
}

pub(crate) async fn run(session: &Session, args: VmSetArgs) -> Result<(), Failure> {
    let nics = args.add_nics.iter().map(|text| nic(text)).collect::<Result<Vec<_>, _>>()?;
    let added = Added { disks: args.add_disks.clone(), nics };
    // Said before anything is sent: a typing error is not the fleet's to find.
    added.disks.iter().try_for_each(|text| disk(text, 0).map(drop))?;
    let edit = |object: &mut Object| {
        if let Object::Vm(vm) = object {
            apply(vm, &args, &added);
        }
    };
    let before = super::vm::fetch(session, &args.name).await?;
    refuse_absent(&before, &args)?;
    let vm = host::update(session, Kind::Vm, &args.name, edit).await?;
    if !args.wait.wait {
        return output::done(session.format, "changed", &vm);
    }
    let vm = wait::until(&session.fleet, args.wait, vm, wait::vm_follows).await?;
    output::done(session.format, "changed", &vm)
}

/// A name mistyped would otherwise change nothing and say it is done.
fn refuse_absent(vm: &Vm, args: &VmSetArgs) -> Result<(), Invalid> {
    let disks = &vm.spec.disks;
    if let Some(name) = args.remove_disks.iter().find(|name| !disks.iter().any(|disk| disk.name == **name)) {
        let has: Vec<_> = disks.iter().map(|disk| disk.name.to_string()).collect();
        return Err(Invalid::new("--remove-disk", format!("there is no disk {name}"), has.join(", ")));
    }
    if let Some(index) = args.remove_nics.iter().find(|index| **index >= vm.spec.nics.len()) {
        let allowed = format!("below {}", vm.spec.nics.len());
        return Err(Invalid::new("--remove-nic", format!("there is no NIC {index}"), allowed));
    }
    Ok(())
}

fn apply(vm: &mut Vm, args: &VmSetArgs, added: &Added) {
    let spec = &mut vm.spec;
    set(&mut spec.mem_mib, args.mem_mib);
    set(&mut spec.cpus, args.cpus);
    spec.disks.retain(|disk| !args.remove_disks.contains(&disk.name));
    let mut index = 0;
    spec.nics.retain(|_| {
        index += 1;
        !args.remove_nics.contains(&(index - 1))
    });
    for text in &added.disks {
        if let Some(disk) = next_disk(text, &spec.disks) {
            spec.disks.push(disk);
        }
    }
    spec.nics.extend(added.nics.iter().cloned());
}

/// The disk, under the first usual name that is free where it was given none.
fn next_disk(text: &str, others: &[Disk]) -> Option<Disk> {
    let free = |disk: &Disk| !others.iter().any(|other| other.name == disk.name);
    let mut tries = (0..=others.len()).filter_map(|index| disk(text, index).ok());
    // A name that was given and is taken goes to the fleet, which says so.
    tries.clone().find(free).or_else(|| tries.next())
}
