//! QEMU's command line for one guest. Pure: a [`Launch`] and what was found out about this host go in, words come out.
//!
//! The same spec gives the same devices in the same order on every host, because a migration needs that. Where a
//! file lies, which port is taken and how the vCPUs are run may differ. Nothing here ever reaches a shell.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use dunlin_model::VmId;
use dunlin_model::capabilities::Accel;
use dunlin_model::vm::{Arch, Boot, DiskBus, MachineType, NicNetwork, Vnc, VncPort, device};
use serde_json::{Value, json};

use super::seats::{self, Seats};
use crate::hypervisor::{DeviceName, Launch, LaunchDisk, LaunchMode, LaunchNic};

/// QEMU's cache of translated code, MiB. Its default of up to 1 GiB is made for one guest on a host; 32 was measured
/// to boot Linux as fast and leaves a guest 20 MiB and more smaller.
const TCG_CACHE_MIB: u32 = 32;
/// Automatic VNC ports tried beyond 5900: as many as a crowded host may have guests.
const VNC_PORTS: u16 = 9999;
/// First VNC port; QEMU counts displays from it.
const VNC_PORT_BASE: u16 = 5900;
/// SATA ports of one AHCI controller; q35 has one built in.
const AHCI_PORTS: usize = 6;
/// The name of QEMU's CPU model that is x86-64-v2, runs under any accelerator, and never changes.
const CPU_DEFAULT_TCG: &str = "Nehalem";

/// What the command line needs to know beside the [`Launch`].
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) accel: Accel,
    /// Listening unix sockets that the process inherits.
    pub(super) qmp_fd: RawFd,
    pub(super) console_fd: RawFd,
    /// See [`super::record::Record::token`].
    pub(super) token: &'a str,
    pub(super) serial_log: &'a Path,
    /// Shared disks on a file system that can bypass the page cache, by their place in the list.
    pub(super) direct: &'a [bool],
    /// Where devices sit.
    pub(super) seats: &'a Seats,
}

/// The word that only the process of this incarnation has in its command line.
pub(super) fn token(launch: &Launch) -> String {
    format!("dunlin.{}.{}", launch.vm, launch.incarnation)
}

/// Name of the block node that holds disk `index`.
pub(super) fn node(index: usize) -> String {
    format!("disk{index}")
}

/// Name of the read-only view on a node.
pub(super) fn view(node: &str) -> String {
    format!("{node}-view")
}

/// Everything after the program's name.
pub(super) fn arguments(launch: &Launch, around: &Surroundings<'_>) -> Vec<String> {
    let mut words = Words(Vec::new());
    board(&mut words, launch, around);
    boot(&mut words, launch);
    channels(&mut words, launch, around);
    for (index, disk) in launch.disks.iter().enumerate() {
        drive(&mut words, launch, index, disk, around.direct.get(index).copied().unwrap_or(false));
    }
    attach(&mut words, launch, around.seats);
    for (index, nic) in launch.nics.iter().enumerate() {
        network(&mut words, launch, index, nic, around.seats);
    }
    if let Some(vnc) = &launch.spec.vnc {
        display(&mut words, launch.spec.machine, vnc);
    }
    if launch.mode != LaunchMode::Boot {
        words.pair("-incoming", "defer");
    }
    words.0
}

struct Words(Vec<String>);

impl Words {
    fn word(&mut self, word: impl Into<String>) {
        self.0.push(word.into());
    }

    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }
}

/// A value inside a comma-separated option: QEMU reads two commas as one.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn board(words: &mut Words, launch: &Launch, around: &Surroundings<'_>) {
    let spec = &launch.spec;
    words.pair("-name", format!("guest={},process={}", launch.name, launch.name));
    words.pair("-uuid", launch.vm.to_string());
    // Nothing from configuration files, no default devices: what is not written here is not there.
    for word in ["-nodefaults", "-no-user-config"] {
        words.word(word);
    }
    words.pair("-display", "none");
    // A guest that powers off stays to be asked why, and to be restarted in place.
    words.word("-no-shutdown");
    // vCPUs wait until the password is set and the start is on record.
    words.word("-S");
    words.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    words.pair("-machine", spec.machine.as_str());
    words.pair("-accel", accel(around.accel));
    words.pair("-cpu", cpu(&spec.cpu_model, spec.arch, around.accel));
    words.pair("-smp", spec.cpus.to_string());
    words.pair("-m", format!("size={}M", spec.mem_mib));
    if spec.machine != MachineType::Microvm {
        // A kernel that panics tells so, instead of looking alive for ever.
        words.pair("-device", "pvpanic-pci");
    }
    for port in seats::ports(spec.machine, around.seats.ports) {
        words.pair("-device", port);
    }
}

fn accel(accel: Accel) -> String {
    match accel {
        Accel::Kvm => "kvm".to_owned(),
        Accel::Tcg | Accel::Simulated | Accel::Container | Accel::Uml => {
            format!("tcg,tb-size={TCG_CACHE_MIB}")
        }
    }
}

/// The model asked for, or the default: what KVM has, and a fixed model under TCG, where features cost the same.
fn cpu(model: &str, arch: Arch, accel: Accel) -> String {
    match (model, arch, accel) {
        ("", Arch::I686, _) => "qemu32".to_owned(),
        ("", Arch::X86_64, Accel::Kvm) => "host,migratable=on".to_owned(),
        ("", Arch::X86_64, _) => CPU_DEFAULT_TCG.to_owned(),
        (model, ..) => model.to_owned(),
    }
}

fn boot(words: &mut Words, launch: &Launch) {
    if let Some(kernel) = &launch.kernel {
        words.pair("-kernel", kernel.display().to_string());
    }
    if let Some(initrd) = &launch.initrd {
        words.pair("-initrd", initrd.display().to_string());
    }
    if let Boot::Kernel { cmdline, .. } = &launch.spec.boot
        && !cmdline.is_empty()
    {
        words.pair("-append", cmdline.clone());
    }
}

fn channels(words: &mut Words, launch: &Launch, around: &Surroundings<'_>) {
    let Surroundings { token, qmp_fd, console_fd, .. } = around;
    words.pair("-chardev", format!("socket,id={token},fd={qmp_fd},server=on,wait=off"));
    words.pair("-mon", format!("chardev={token},mode=control"));
    let log = escaped(around.serial_log);
    words.pair(
        "-chardev",
        format!("socket,id=serial0,fd={console_fd},server=on,wait=off,logfile={log},logappend=on"),
    );
    words.pair("-serial", "chardev:serial0");
    if launch.spec.machine == MachineType::Microvm {
        words.pair("-global", "virtio-mmio.force-legacy=false");
    }
}

/// Is the disk to be written by a mirror although the guest may not write it?
fn is_filled_read_only(launch: &Launch, disk: &LaunchDisk) -> bool {
    disk.read_only && !disk.shared && matches!(launch.mode, LaunchMode::Incoming { .. })
}

/// The file, the format upon it, and for a read-only disk that a mirror must fill, a read-only view upon that.
fn drive(words: &mut Words, launch: &Launch, index: usize, disk: &LaunchDisk, direct: bool) {
    let node = node(index);
    let filled = is_filled_read_only(launch, disk);
    let read_only = disk.read_only && !filled;
    for part in nodes(disk, &node, read_only, direct) {
        words.pair("-blockdev", part.to_string());
    }
    if filled {
        let view = json!({
            "driver": "raw", "node-name": view(&node), "file": node, "read-only": true,
        });
        words.pair("-blockdev", view.to_string());
    }
}

/// Name of the node below a disk's, which is its file as it lies there.
pub(super) fn file_node(node: &str) -> String {
    format!("{node}-file")
}

/// The two block nodes of a disk.
pub(super) fn nodes(disk: &LaunchDisk, node: &str, read_only: bool, direct: bool) -> [Value; 2] {
    let cache = json!({ "direct": direct, "no-flush": false });
    let file = json!({
        "driver": "file", "node-name": file_node(node), "filename": disk.path.display().to_string(), "locking": "on",
        "discard": "unmap", "read-only": read_only, "cache": cache,
    });
    let format = json!({
        "driver": disk.format.as_str(), "node-name": node, "file": file_node(node), "discard": "unmap",
        "read-only": read_only, "cache": cache,
    });
    [file, format]
}

/// The part of a device's options that says where it sits; empty where it has no seat.
fn seat(machine: MachineType, seats: &Seats, device: &DeviceName) -> String {
    let Some(seat) = seats.taken.get(&seats::key(device)) else { return String::new() };
    let (bus, addr) = seats::address(machine, seat.port);
    format!(",id={},bus={bus},addr={addr}", seats::id(seat.port))
}

/// Puts each disk on its bus, in boot order.
fn attach(words: &mut Words, launch: &Launch, seats: &Seats) {
    let (mut sata, mut ide) = (0, 0);
    for (index, disk) in launch.disks.iter().enumerate() {
        let node = node(index);
        let drive = if is_filled_read_only(launch, disk) { view(&node) } else { node };
        let tail = format!("drive={drive},bootindex={}", index + 1);
        // ATA has no read-only hard disk.
        let ata = if disk.read_only { "ide-cd" } else { "ide-hd" };
        let device = match disk.bus {
            DiskBus::Virtio => {
                let seat = seat(launch.spec.machine, seats, &DeviceName::Disk(disk.name.clone()));
                format!("virtio-blk-{}{seat},{tail}", transport(launch.spec.machine))
            }
            DiskBus::Ide => {
                ide += 1;
                format!("{ata},bus=ide.{},unit={},{tail}", (ide - 1) / 2, (ide - 1) % 2)
            }
            DiskBus::Sata => {
                let (controller, port) = (sata / AHCI_PORTS, sata % AHCI_PORTS);
                sata += 1;
                if controller > 0 && port == 0 {
                    words.pair("-device", format!("ich9-ahci,id=ahci{controller}"));
                }
                let bus = if controller == 0 { "ide".to_owned() } else { format!("ahci{controller}") };
                format!("{ata},bus={bus}.{port},{tail}")
            }
        };
        words.pair("-device", device);
    }
}

fn transport(machine: MachineType) -> &'static str {
    if machine == MachineType::Microvm { "device" } else { "pci" }
}

/// Name of what stands behind NIC `index`.
pub(super) fn netdev(index: usize) -> String {
    format!("net{index}")
}

fn network(words: &mut Words, launch: &Launch, index: usize, nic: &LaunchNic, seats: &Seats) {
    let backend = match nic {
        LaunchNic::User => format!("user,id=net{index}"),
        LaunchNic::Tap(name) | LaunchNic::Veth { interface: name, .. } => {
            format!("tap,id=net{index},ifname={name},script=no,downscript=no")
        }
    };
    words.pair("-netdev", backend);
    let asked = launch.spec.nics.get(index).cloned().unwrap_or(device::Nic {
        mac: None,
        model: device::NicModel::default(),
        network: NicNetwork::User,
    });
    let mac = asked.mac.unwrap_or_else(|| mac_of(launch.vm, index));
    // Without its boot ROM a card costs nothing at boot, and no ROM file has to be the same on two hosts.
    let device = match launch.spec.machine {
        MachineType::Microvm => "virtio-net-device".to_owned(),
        _ => format!("{},romfile=", asked.model.device()),
    };
    let seat = seat(launch.spec.machine, seats, &DeviceName::Nic(index));
    words.pair("-device", format!("{device}{seat},netdev=net{index},mac={mac}"));
}

/// The address of a card that was given none: the same on every host.
pub(super) fn mac_of(vm: VmId, index: usize) -> device::Mac {
    let [.., a, b, c, d] = *vm.0.as_bytes();
    let low = u8::try_from(index % 256).expect("a remainder of 256");
    // 52: administered locally, unicast.
    device::Mac([0x52, a, b, c, d, low])
}

fn display(words: &mut Words, machine: MachineType, vnc: &Vnc) {
    let host = match vnc.listen.as_str() {
        "" => "127.0.0.1".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        v4 => v4.to_owned(),
    };
    let port = match vnc.port {
        VncPort::Auto => format!("0,to={VNC_PORTS}"),
        VncPort::Fixed(port) => port.saturating_sub(VNC_PORT_BASE).to_string(),
    };
    let password = if vnc.password.is_some() { ",password=on" } else { "" };
    words.pair("-vnc", format!("{host}:{port}{password}"));
    if machine != MachineType::Microvm {
        words.pair("-device", "VGA");
    }
}

/// Disks a migration has to mirror: (node, export name).
pub(super) fn local_disks(launch: &Launch) -> Vec<(String, dunlin_model::Name)> {
    let all = launch.disks.iter().enumerate();
    all.filter(|(_, disk)| !disk.shared).map(|(index, disk)| (node(index), disk.name.clone())).collect()
}

/// Of these, the nodes with a read-only view upon them.
pub(super) fn viewed(launch: &Launch) -> Vec<String> {
    let all = launch.disks.iter().enumerate();
    all.filter(|(_, disk)| is_filled_read_only(launch, disk)).map(|(index, _)| node(index)).collect()
}

/// Which disks are opened past the page cache: those that another host reads after a migration, where the file
/// system can. Tried, because a file system tells by refusing.
pub(super) fn direct(disks: &[LaunchDisk]) -> Vec<bool> {
    use rustix::fs::{Mode, OFlags, open};
    let can =
        |path: &PathBuf| open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok();
    disks.iter().map(|disk| disk.shared && can(&disk.path)).collect()
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
