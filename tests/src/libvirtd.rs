//! A libvirtd that has a machine for itself, as far as it can see: mount, network, host name and process name spaces of its
//! own. Nothing of it is left when it is dropped.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::eventually;

/// libvirtd is up in a second; its first look at QEMU takes it four, on a busy builder ten times that.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// Binds the host's folders over the usual ones, and becomes its first process. $1 is the host's folder, $2 its name.
const SETTLE: &str = r#"
set -e
mount --make-rprivate /
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
    mkdir -p "$1/${pair%%:*}" "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
for file in passwd group; do cp "/etc/$file" "$1/$file"; done
grep -q ^libvirt-qemu: "$1/passwd" || echo libvirt-qemu:x:64055:64055::/var/lib/libvirt:/bin/false >>"$1/passwd"
for group in libvirt-qemu:64055 kvm:64056 libvirt:64057; do
    grep -q "^${group%%:*}:" "$1/group" || echo "${group%%:*}:x:${group#*:}:" >>"$1/group"
done
for file in passwd group; do mount --bind "$1/$file" "/etc/$file"; done
hostname "$2"
ip link set lo up
umount -q /sys/fs/cgroup/unified 2>/dev/null || true
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/libvirtd.pid" >"$1/libvirtd.out" 2>&1 &
wait
"#;

/// One host.
#[derive(Debug)]
pub struct Libvirtd {
    dir: TempDir,
    child: Child,
}

impl Libvirtd {
    /// Two of them, with a cable between: the first has 10.98.0.1, the second 10.98.0.2.
    pub fn pair() -> anyhow::Result<[Self; 2]> {
        let pair = [Self::start("lva")?, Self::start("lvb")?];
        let [a, b] = [0, 1].map(|host: usize| pair[host].child.id().to_string());
        let inside = |pid: &str, words: &str| {
            let mut command = Command::new("nsenter");
            command.args(["--target", pid, "--net", "--", "ip"]).args(words.split(' '));
            ensure!(command.status()?.success(), "ip {words}");
            Ok(())
        };
        inside(&a, &format!("link add cable type veth peer name cable netns {b}"))?;
        for (pid, address) in [(&a, "10.98.0.1/24"), (&b, "10.98.0.2/24")] {
            inside(pid, &format!("addr add {address} dev cable"))?;
            inside(pid, "link set cable up")?;
        }
        Ok(pair)
    }

    fn start(name: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("lv").tempdir()?;
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let etc = dir.path().join("etc");
        fs::create_dir(&etc)?;
        let open = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nlog_level = 3\n";
        fs::write(etc.join("libvirtd.conf"), format!("{open}host_uuid = \"{}\"\n", uuid.trim()))?;
        let alone = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nsecurity_driver = \"none\"\n\
            namespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n";
        fs::write(etc.join("qemu.conf"), alone)?;
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", SETTLE, "sh"])
            .arg(dir.path())
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("running unshare, as root")?;
        let host = Self { dir, child };
        eventually("libvirtd listens", UP_WITHIN, || {
            std::os::unix::net::UnixStream::connect(host.socket()).map_err(|e| e.to_string())
        })?;
        Ok(host)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/libvirt-sock")
    }

    /// How an agent of this machine reaches it.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Runs virsh on it; returns what it printed.
    pub fn virsh(&self, words: &[&str]) -> anyhow::Result<String> {
        let output =
            Command::new("virsh").args(["--quiet", "--connect", &self.uri()]).args(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "virsh {}: {said}", words.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
