//! A libvirtd that has a machine for itself, as far as it can see.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// libvirtd is up in a second; its first look at QEMU takes it four, on a busy builder ten times that.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// What the daemon's shell does before it becomes libvirtd: binds the host's folders over the usual ones. $1 is the host's
/// folder, $2 its name.
const SETTLE: &str = r#"
set -e
mount --make-rprivate /
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
    mkdir -p "$1/${pair%%:*}" "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
# Debian's libvirtd wants its own user to be there, whoever QEMU is to run as; only libvirt-daemon-system makes it.
for file in passwd group; do cp "/etc/$file" "$1/$file"; done
grep -q ^libvirt-qemu: "$1/passwd" || echo libvirt-qemu:x:64055:64055::/var/lib/libvirt:/bin/false >>"$1/passwd"
for group in libvirt-qemu:64055 kvm:64056 libvirt:64057; do
    grep -q "^${group%%:*}:" "$1/group" || echo "${group%%:*}:x:${group#*:}:" >>"$1/group"
done
for file in passwd group; do mount --bind "$1/$file" "/etc/$file"; done
hostname "$2"
ip link set lo up
umount -q /sys/fs/cgroup/unified 2>/dev/null || true
echo $$ >"$1/pid"
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/libvirtd.pid" >"$1/libvirtd.out" 2>&1
"#;

/// One host.
pub(super) struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts it and waits until it listens.
    pub(super) fn start(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("lv").tempdir().expect("dir");
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a uuid");
        let etc = dir.path().join("etc");
        fs::create_dir(&etc).expect("folder");
        let conf = format!(
            "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nhost_uuid = \"{}\"\nlog_level = 3\n",
            uuid.trim()
        );
        fs::write(etc.join("libvirtd.conf"), conf).expect("write");
        let conf = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nsecurity_driver = \"none\"\n\
            namespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n";
        fs::write(etc.join("qemu.conf"), conf).expect("write");
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--uts", "sh", "-c", SETTLE, "sh"])
            .arg(dir.path())
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare runs, as root");
        let daemon = Self { dir, child };
        let until = Instant::now() + UP_WITHIN;
        while std::os::unix::net::UnixStream::connect(daemon.socket()).is_err() {
            let said = || fs::read_to_string(daemon.dir.path().join("libvirtd.out")).unwrap_or_default();
            assert!(Instant::now() < until, "libvirtd does not come up: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/libvirt-sock")
    }

    /// How a driver reaches one of its hypervisors: `qemu:///system`, `test:///default`.
    pub(super) fn uri(&self, name: &str) -> String {
        let (driver, path) = name.split_once("://").expect("a URI");
        format!("{driver}+unix://{path}?socket={}", self.socket().display())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Every process of this host: they see the mounts that it sees.
    fn processes(&self) -> Vec<u32> {
        let namespace = |pid: &str| fs::read_link(Path::new("/proc").join(pid).join("ns/mnt")).ok();
        let Some(own) = namespace(&self.child.id().to_string()) else { return Vec::new() };
        let names = fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.file_name());
        let pids = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
        pids.filter(|pid| namespace(&pid.to_string()).as_ref() == Some(&own)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for pid in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // It may have ended by itself meanwhile.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}
