//! A libvirtd that has a machine for itself, as far as it can see: mount, network, host name and process name spaces of its
//! own. Nothing of it is left when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::eventually;

/// libvirtd is up in a second; its first look at QEMU takes it four, on a busy builder ten times that.
const UP_WITHIN: Duration = Duration::from_secs(60);

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
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("libvirt-host");
        let child = Command::new(script)
            .arg(dir.path())
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("running tests/libvirt-host, as root")?;
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
