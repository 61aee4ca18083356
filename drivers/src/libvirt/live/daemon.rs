//! A libvirtd that has a machine for itself, as far as it can see.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// libvirtd is up in a second; its first look at QEMU takes it four, on a busy builder ten times that.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// One host.
pub(super) struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    /// Two of them, with a cable between: the first has 10.98.0.1, the second 10.98.0.2.
    pub(super) fn pair() -> [Self; 2] {
        let pair = [Self::start("lva"), Self::start("lvb")];
        let [a, b] = [0, 1].map(|host: usize| pair[host].child.id().to_string());
        // Made where it is to be: no name of the machine's own is taken, and it goes with its ends.
        let inside = |pid: &str, words: &str| {
            let mut all = vec!["--target", pid, "--net", "--", "ip"];
            all.extend(words.split(' '));
            assert!(Command::new("nsenter").args(all).status().expect("nsenter runs").success(), "{words}");
        };
        inside(&a, &format!("link add cable type veth peer name cable netns {b}"));
        for (pid, address) in [(&a, "10.98.0.1/24"), (&b, "10.98.0.2/24")] {
            inside(pid, &format!("addr add {address} dev cable"));
            inside(pid, "link set cable up");
        }
        pair
    }

    /// Starts it and waits until it listens.
    fn start(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("lv").tempdir().expect("dir");
        // With the first process of its process name space everything in it ends, however this test ends.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/libvirt-host");
        let child = Command::new(script)
            .arg(dir.path())
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("tests/libvirt-host runs, as root");
        let daemon = Self { dir, child };
        let until = Instant::now() + UP_WITHIN;
        while std::os::unix::net::UnixStream::connect(daemon.socket()).is_err() {
            let said = || fs::read_to_string(daemon.dir.path().join("libvirtd.out")).unwrap_or_default();
            assert!(Instant::now() < until, "libvirtd does not come up: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Ends the daemon, and nothing else: its guests go on.
    pub(super) fn stop(&self) {
        fs::write(self.path("hold"), []).expect("write");
        self.signal("TERM");
    }

    /// Starts it again.
    pub(super) fn go_on(&self) {
        fs::remove_file(self.path("hold")).expect("it was stopped");
    }

    /// Sends the daemon a signal, from inside.
    pub(super) fn signal(&self, signal: &str) {
        let outside = self.child.id();
        let children =
            fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).expect("children");
        let shell = children.split_whitespace().next().expect("its shell").to_owned();
        let pid = fs::read_to_string(self.path("libvirtd.pid")).expect("its pid");
        let kill = ["--target", &shell, "--pid", "--mount", "--", "kill", "-s", signal, pid.trim()];
        assert!(Command::new("nsenter").args(kill).status().expect("nsenter runs").success(), "{signal}");
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
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
