//! A container's configuration file, see lxc.container.conf(5). Pure: a [`Launch`] goes in, text comes out.
//!
//! A line ends a value, so no value may have one: names and addresses cannot, and a path that does is refused.

use std::path::Path;

use dunlin_model::capabilities::DriverName;

use super::groups::Version;
use super::{LOG, TOLD};
use crate::hypervisor::{Launch, LaunchNic};
use crate::keep::{Fault, Place};

/// What a system container does not need, and its host would suffer from.
const CAPABILITIES_DROPPED: &str =
    "mac_admin mac_override sys_time sys_module sys_rawio audit_control syslog wake_alarm";
/// Devices beside the terminals: null, zero, full, random, urandom, tty, console, ptmx, and the terminals behind it.
const DEVICES: [&str; 9] =
    ["c 1:3", "c 1:5", "c 1:7", "c 1:8", "c 1:9", "c 5:0", "c 5:1", "c 5:2", "c 136:*"];
/// System calls that liblxc's own list keeps from containers.
const SECCOMP: &str = "/usr/share/lxc/config/common.seccomp";
/// One period of the CPU limit, µs: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// The file for this launch.
pub(super) fn text(launch: &Launch, place: &Place, version: Version) -> Result<String, Fault> {
    launch.spec.suits(DriverName::Lxc).map_err(|e| Fault::refused(e.to_string()))?;
    let [disk] = launch.disks.as_slice() else {
        return Err(Fault::refused("spec.disks: a container has one disk"));
    };
    let at = |name: &str| line(&place.dir.file(name));
    let mut lines = Vec::new();
    let mut set = |key: &str, value: String| lines.push(format!("{key} = {value}\n"));
    let kind = if disk.path.is_dir() { "dir" } else { "loop" };
    set("lxc.uts.name", launch.name.to_string());
    set("lxc.rootfs.path", format!("{kind}:{}", line(&disk.path)?));
    set("lxc.rootfs.mount", at(&format!("{}/rootfs", place.token))?);
    if disk.read_only {
        set("lxc.rootfs.options", "ro".to_owned());
    }
    set("lxc.console.logfile", line(&place.dir.serial_log())?);
    set("lxc.log.file", at(LOG)?);
    // How a container ended is said at this level only.
    set("lxc.log.level", "DEBUG".to_owned());
    for (key, value) in [
        ("lxc.tty.max", "0"),
        ("lxc.pty.max", "1024"),
        ("lxc.autodev", "1"),
        ("lxc.mount.auto", "proc:mixed sys:mixed cgroup:mixed"),
        ("lxc.signal.halt", "SIGPWR"),
    ] {
        set(key, value.to_owned());
    }
    set("lxc.cap.drop", CAPABILITIES_DROPPED.to_owned());
    if Path::new(SECCOMP).exists() {
        set("lxc.seccomp.profile", SECCOMP.to_owned());
    }
    let told = quoted(&at(TOLD)?);
    set("lxc.hook.start-host", format!("/bin/sh -c {}", quoted(&format!("echo up >>{told}"))));
    limits(&mut set, launch, &place.token, version);
    networks(&mut set, launch)?;
    Ok(lines.concat())
}

fn limits(set: &mut impl FnMut(&str, String), launch: &Launch, token: &str, version: Version) {
    set("lxc.cgroup.dir", super::groups::of(token));
    let (mem_bytes, quota_us) = (launch.spec.mem_mib << 20, u64::from(launch.spec.cpus) * PERIOD_US);
    match version {
        Version::V1 => {
            set("lxc.cgroup.memory.limit_in_bytes", mem_bytes.to_string());
            set("lxc.cgroup.cpu.cfs_quota_us", quota_us.to_string());
            set("lxc.cgroup.devices.deny", "a".to_owned());
            DEVICES.iter().for_each(|device| set("lxc.cgroup.devices.allow", format!("{device} rwm")));
        }
        Version::V2 => {
            set("lxc.cgroup2.memory.max", mem_bytes.to_string());
            set("lxc.cgroup2.cpu.max", format!("{quota_us} {PERIOD_US}"));
            set("lxc.cgroup2.devices.deny", "a".to_owned());
            DEVICES.iter().for_each(|device| set("lxc.cgroup2.devices.allow", format!("{device} rwm")));
        }
    }
}

fn networks(set: &mut impl FnMut(&str, String), launch: &Launch) -> Result<(), Fault> {
    if launch.nics.is_empty() {
        // A network of its own with nothing in it, not the host's.
        set("lxc.net.0.type", "empty".to_owned());
    }
    for (index, nic) in launch.nics.iter().enumerate() {
        let LaunchNic::Veth { interface, bridge } = nic else {
            return Err(Fault::refused(format!("spec.nics[{index}].network: lxc has no NAT of its own")));
        };
        let mut of = |key: &str, value: String| set(&format!("lxc.net.{index}.{key}"), value);
        of("type", "veth".to_owned());
        of("veth.pair", interface.clone());
        if let Some(bridge) = bridge {
            of("link", bridge.clone());
        }
        of("name", format!("eth{index}"));
        of("flags", "up".to_owned());
        if let Some(mac) = launch.spec.nics.get(index).and_then(|nic| nic.mac) {
            of("hwaddr", mac.to_string());
        }
    }
    Ok(())
}

/// A path as a value.
fn line(path: &Path) -> Result<String, Fault> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_control()) && text.trim() == *text);
    text.map(str::to_owned).ok_or_else(|| Fault::refused(format!("{path:?} cannot stand in a configuration")))
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path cannot begin another line of the configuration, and a quote cannot end a shell's word.
    #[test]
    fn values_stay_values() {
        assert_eq!(line(Path::new("/a b/c")).expect("sound"), "/a b/c");
        for bad in ["/a\nlxc.hook.start-host = /bin/evil", "/a\r", "/a ", "/\u{0}"] {
            line(Path::new(bad)).expect_err("refused");
        }
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
